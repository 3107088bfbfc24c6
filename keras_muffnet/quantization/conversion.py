"""From Keras models, fake-quantized or not, to LiteRT files."""

import importlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_muffnet.graph import input_structure
from keras_muffnet.litert.converter import convert_function
from keras_muffnet.litert.model import find_departures
from keras_muffnet.litert.scales import with_single_scales
from keras_muffnet.quantization.custom import modules_to_import
from keras_muffnet.quantization.weights import engine_of

Configure = Callable[[tf.lite.TFLiteConverter], None]


def convert_quantized(
    model: Any, io_dtype: str, softmax: bool = False
) -> bytes:
    """Converts a model that is fake-quantized throughout, or in most layers.

    Args:
        model: a model made by one of the engines. One in Keras 3 that does not
            run on TensorFlow here is converted by another process.
        io_dtype: name of the type of the file's inputs and outputs.
        softmax: whether a softmax that the model ends in is part of the file.

    Returns:
        The `.tflite` file's bytes.

    Raises:
        RuntimeError: naming the operations, if any that is not next to a layer
            left in float is not of integers.
    """
    is_keras_3 = isinstance(model, keras.Model)
    if is_keras_3 and keras.backend.backend() != "tensorflow":
        return _converted_elsewhere(model, io_dtype, softmax)
    engine = engine_of(model)
    if not softmax:
        model = engine.without_softmax(model)

    def configure(converter: tf.lite.TFLiteConverter) -> None:
        # Without optimizations the converter leaves float operations.
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.dtypes.as_dtype(io_dtype)
        converter.inference_output_type = tf.dtypes.as_dtype(io_dtype)

    with engine.kernels_in_float(model):
        content = _convert(model, configure, quantized=True)
    content = with_single_scales(content)
    has_float_layers = any("barrier" in n.lower() for n in _class_names(model))
    unwanted = () if has_float_layers else find_departures(content)[0]
    if unwanted:
        raise RuntimeError(
            "The converted model must consist of integer operations alone, but "
            f"these came out in float: {', '.join(unwanted)}"
        )
    return content


def convert_float(
    model: keras.Model, precision: str, calibration_data: Any
) -> bytes:
    """Converts a float model, leaving all of the quantization to the converter.

    Args:
        model: a Keras 3 model.
        precision: "float16", "dynamic_range" or "int16"; see
            `keras_muffnet.quantization.convert`.
        calibration_data: an array for each input, for "int16".

    Returns:
        The `.tflite` file's bytes.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "`precision` must be 'int8' unless Keras runs on TensorFlow: set "
            f"KERAS_BACKEND. Received: precision={precision!r}"
        )

    def configure(converter: tf.lite.TFLiteConverter) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int16":
            converter.representative_dataset = lambda: (
                [x[None] for x in example]
                for example in zip(*calibration_data, strict=True)
            )
            int16 = (
                "EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8"
            )
            converter.target_spec.supported_ops = [
                getattr(tf.lite.OpsSet, int16)
            ]

    return _convert(model, configure)


def _convert(
    model: Any, configure: Configure, quantized: bool = False
) -> bytes:
    # The file has its inputs in the order of these names.
    names = [
        f"images_{k:03}" if k else "images" for k in range(len(model.inputs))
    ]
    softmax = engine_of(model).final_softmax(model) if quantized else []
    is_keras_3 = isinstance(model, keras.Model)
    structure = input_structure(model) if is_keras_3 else model.input

    @tf.function(
        input_signature=[
            tf.TensorSpec((1, *x.shape[1:]), x.dtype, name)
            for x, name in zip(model.inputs, names, strict=True)
        ]
    )
    def serve(*tensors: tf.Tensor) -> Any:
        inputs = tensors if len(tensors) > 1 else tensors[0]
        if isinstance(structure, dict):
            inputs = keras.tree.pack_sequence_as(structure, tensors)
        outputs = model(inputs, training=False)
        flat = tf.nest.flatten(outputs)
        for k, is_softmax in enumerate(softmax):
            if is_softmax:  # the only range that LiteRT has for it
                flat[k] = tf.quantization.fake_quant_with_min_max_args(
                    flat[k], 0.0, 255 / 256
                )
        paths = [path for path, _ in keras.tree.flatten_with_path(outputs)]
        if max(map(len, paths)) > 1:
            # Signatures have but one level of names. These keep the order.
            return {
                "_".join(["output", f"{k:03}", *map(str, path)]): x
                for k, (path, x) in enumerate(zip(paths, flat, strict=True))
            }
        return tf.nest.pack_sequence_as(outputs, flat)

    return convert_function(serve.get_concrete_function(), configure)


def _class_names(model: Any) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def _converted_elsewhere(
    model: keras.Model, io_dtype: str, softmax: bool
) -> bytes:
    modules = modules_to_import(model.layers)
    with tempfile.TemporaryDirectory() as folder:
        saved = os.path.join(folder, "model.keras")
        written = pathlib.Path(folder, "model.tflite")
        model.save(saved)
        done = subprocess.run(
            [
                *(sys.executable, "-m", __name__, saved, written, io_dtype),
                *("softmax" if softmax else "logits", *modules),
            ],
            env={
                **os.environ,
                "KERAS_BACKEND": "tensorflow",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
        )
        if done.returncode:
            errors = re.findall(
                r"^\w*(?:Error|Exception): .*", done.stderr, re.MULTILINE
            )
            reason = errors[-1] if errors else done.stderr
            raise RuntimeError(f"The conversion failed: {reason}")
        return written.read_bytes()


def _main(
    saved: str, written: str, io_dtype: str, end: str, *modules: str
) -> None:
    """What the process that another backend starts does."""
    from keras_muffnet.quantization import load

    for name in modules:
        importlib.import_module(name)
    content = convert_quantized(load(saved), io_dtype, end == "softmax")
    pathlib.Path(written).write_bytes(content)


if __name__ == "__main__":
    _main(*sys.argv[1:])
