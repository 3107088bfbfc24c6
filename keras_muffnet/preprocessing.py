"""How pixels are scaled for a network.

Keras is imported by what needs it, on use, so that the constants are there
for all parts of the package.
"""

from typing import TYPE_CHECKING
from typing import Any

import numpy as np

if TYPE_CHECKING:
    import keras

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
    import keras

    from keras_muffnet.layers import standardize_data_format

    standardize_data_format(data_format)
    if isinstance(x, (np.ndarray, np.generic, list, tuple)):
        return (np.asarray(x, dtype=keras.config.floatx()) - MEAN) / STD
    return (keras.ops.cast(x, keras.config.floatx()) - MEAN) / STD


def scales_pixels(model: "keras.Model") -> bool:
    """Tells whether a model takes pixels as they are, in [0, 255].

    So it is taken to be if the first thing that it does is a
    `keras.layers.Rescaling` or a `keras.layers.Normalization`. All others are
    taken to want pixels scaled by `preprocess_input`.

    Args:
        model: a functional or sequential model.
    """
    import keras

    from keras_muffnet.graph import trace

    first = trace(model).calls[0].operation
    scaling = (keras.layers.Normalization, keras.layers.Rescaling)
    return isinstance(first, scaling)


def normalization_of(model: "keras.Model") -> tuple[float, float]:
    """Returns the mean and the standard deviation that a model's pixels need.

    (0, 1) for a model that scales pixels itself, and else those of
    `preprocess_input`.

    Args:
        model: a functional or sequential model.
    """
    return (0.0, 1.0) if scales_pixels(model) else (MEAN, STD)
