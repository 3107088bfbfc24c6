"""How pixels are scaled for a network."""

from typing import Any

import keras
import numpy as np

from keras_muffnet.graph import trace
from keras_muffnet.layers import standardize_data_format

# `preprocess_input` subtracts the mean and divides by the standard deviation.
MEAN = STD = 128.0


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Scales pixels from [0, 255] to [-1, 127/128]: `(x - 128) / 128`.

    With these numbers a quantized model's int8 input is the pixel minus 128,
    exactly.

    Args:
        x: array or tensor of images, pixels in [0, 255], of any shape.
        data_format: None, "channels_last" or "channels_first". The scaling is
            the same for each channel, so either gives the same.

    Returns:
        An array, if `x` is one, or a tensor, of Keras's float type and the
        shape of `x`. `x` itself is left as it is.

    Raises:
        ValueError: if `data_format` is none of the above.
    """
    standardize_data_format(data_format)
    if isinstance(x, (np.ndarray, np.generic, list, tuple)):
        return (np.asarray(x, dtype=keras.config.floatx()) - MEAN) / STD
    return (keras.ops.cast(x, keras.config.floatx()) - MEAN) / STD


def scales_pixels(model: keras.Model) -> bool:
    """Tells whether a model takes pixels as they are, in [0, 255].

    So it is taken to be if the first thing that it does is a
    `keras.layers.Rescaling` or a `keras.layers.Normalization`. All others are
    taken to want pixels scaled by `preprocess_input`.

    Args:
        model: a functional or sequential model.
    """
    first = trace(model).calls[0].operation
    scaling = (keras.layers.Normalization, keras.layers.Rescaling)
    return isinstance(first, scaling)
