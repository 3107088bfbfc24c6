"""Quantization-aware training and conversion to int8 LiteRT files.

    from keras_muffnet import quantization

    twin = quantization.quantize_aware(model, images[:500])
    twin.compile(tf_keras.optimizers.SGD(5e-4, momentum=0.9), ...)
    twin.fit(images, labels)
    quantization.convert(twin, "model.tflite")

TensorFlow's Model Optimization toolkit (tfmot) knows tf_keras, the former
Keras 2, alone; so a Keras 3 model is rebuilt there. Both Keras versions live
in one process, whichever is imported first. But tfmot sets the environment
variable `TF_USE_LEGACY_KERAS`, so that from then on `tf.keras` means tf_keras,
in this process and in those that it starts: code that counts on `tf.keras`
being Keras 3 belongs in another one. Nothing of this happens, and TensorFlow
is not loaded, before one of the functions is called.
"""

import importlib
import os
import pathlib
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

if TYPE_CHECKING:
    import keras

__all__ = ["convert", "quantize_aware"]


def quantize_aware(model: "keras.Model", calibration_data: np.ndarray) -> Any:
    """Makes a trainable twin of a model that computes as if in int8.

    The twin's weights are copies. Its activations are rounded to 8 bits within
    ranges that are found here, by running the float model on the calibration
    data, and stay as they are; kernels are rounded too, per output channel.
    Batch normalisation is frozen: its statistics would drift, and conversion
    folds it into the kernels.

    The twin gives logits: a softmax at the model's end is left out. In int8 a
    probability is a multiple of 1/256, so that close classes tie.

    Args:
        model: a trained functional or sequential Keras 3 model of one input, a
            batch of channels-last images of fixed size, scaled as
            `keras_muffnet.preprocess_input` does, and one output.
        calibration_data: float images `(n, height, width, channels)`, scaled
            alike; some hundreds of the training split.

    Returns:
        A `tf_keras.Model`, not compiled. Train it gently: SGD with a learning
        rate that decays from 5e-4 or less.

    Raises:
        ValueError: if the model has a layer that cannot be quantized, or the
            calibration data is no finite float array of the model's input
            shape within [-1, 127/128].
        ImportError: if the packages for quantization are not installed.
    """
    from keras_muffnet.quantization import plan

    planned = plan.plan_quantization(model)
    _check_calibration_data(
        calibration_data, planned.input_shape, plan.INPUT_RANGE
    )
    twin = _load("twin")
    ranges = twin.calibrate(planned, calibration_data)
    return twin.quantized_twin(planned, ranges)


def convert(quantized_model: Any, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a model made by `quantize_aware` as an int8 LiteRT file.

    Weights, activations, input and output are int8, for one image at a time.

    Args:
        quantized_model: what `quantize_aware` returned, trained or not.
        path: where to write, ending in `.tflite`. The file appears once it is
            complete and checked.

    Returns:
        The path.

    Raises:
        ValueError: if the model was not made by `quantize_aware`, or the path
            does not end in `.tflite`.
        RuntimeError: naming the operations, if any of the file's operations is
            not int8, converts between scales or reads a variable.
        ImportError: if the packages for quantization are not installed.
    """
    if pathlib.Path(path).suffix != ".tflite":
        raise ValueError(f"`path` must end in '.tflite'. Received: {path!r}")
    return _load("conversion").convert_model(quantized_model, path)


def _check_calibration_data(
    data: Any, shape: tuple[int, int, int], limits: tuple[float, float]
) -> None:
    if not isinstance(data, np.ndarray) or data.dtype.kind != "f":
        found = getattr(data, "dtype", type(data).__name__)
        raise ValueError(
            "`calibration_data` must be a float array, scaled as "
            f"`keras_muffnet.preprocess_input` does. Received: {found}"
        )
    if data.ndim != 4 or data.shape[1:] != shape or not len(data):
        raise ValueError(
            "`calibration_data` must have shape (n, "
            f"{', '.join(map(str, shape))}), with n at least 1. "
            f"Received: an array of shape {data.shape}"
        )
    low, high = data.min(), data.max()
    # Not a number compares as False.
    if not (limits[0] <= low and high <= limits[1]):
        raise ValueError(
            "`calibration_data` must be finite and within "
            f"[{limits[0]}, {limits[1]}], as `keras_muffnet.preprocess_input` "
            f"scales images. Received: values in [{low}, {high}]"
        )


def _load(module: str) -> Any:
    """Imports one of the modules that need TensorFlow and tfmot."""
    try:
        return importlib.import_module(f"{__name__}.{module}")
    except ImportError as error:
        raise ImportError(
            f"Quantization needs {error.name}: "
            'pip install "keras-muffnet[quantization]"'
        ) from error
