"""From a fake-quantized tf_keras model to an int8 LiteRT file."""

import os
import pathlib
import tempfile
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.quantization.keras import QuantizeWrapperV2

from keras_muffnet.files import written_aside
from keras_muffnet.litert import read_operations

_UNWANTED = ("QUANTIZE", "DEQUANTIZE", "VAR_HANDLE", "READ_VARIABLE")


def convert_model(model: Any, path: str | os.PathLike[str]) -> pathlib.Path:
    """Does what `keras_muffnet.quantization.convert` says."""
    if not _is_fake_quantized(model):
        raise ValueError(
            "`quantized_model` must be a model that `quantize_aware` returned. "
            f"Received: {model!r}"
        )
    path = pathlib.Path(path)
    content = _converted(model)
    unwanted = _unwanted_operations(content)
    if unwanted:
        raise RuntimeError(
            "The converted model must consist of int8 operations alone, but "
            f"these came out otherwise: {', '.join(unwanted)}"
        )
    with written_aside(path) as aside:
        aside.write_bytes(content)
    return path


def _is_fake_quantized(model: Any) -> bool:
    return isinstance(model, tf_keras.Model) and any(
        isinstance(layer, QuantizeWrapperV2) for layer in model.layers
    )


def _converted(model: tf_keras.Model) -> bytes:
    @tf.function(
        input_signature=[
            tf.TensorSpec((1, *model.input_shape[1:]), name="images")
        ]
    )
    def serve(images: tf.Tensor) -> tf.Tensor:
        return model(images, training=False)

    # Holding the variables, not the model, saves nothing but this function:
    # tf_keras would add one or more for every layer, which takes a minute.
    module = tf.Module()
    signature = serve.get_concrete_function()
    module.used = signature.variables
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=signature)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        # Without optimizations the converter leaves float operations.
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
        return converter.convert()


def _unwanted_operations(content: bytes) -> list[str]:
    found = []
    for number, (name, dtypes) in enumerate(read_operations(content)):
        is_float = any(dtype.startswith("FLOAT") for dtype in dtypes)
        if is_float or name in _UNWANTED:
            found.append(f"{'float ' if is_float else ''}{name} #{number}")
    return found
