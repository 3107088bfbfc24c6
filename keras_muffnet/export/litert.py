"""LiteRT files, and such files in TF Serving's layout."""

import functools
import os
import pathlib
import shutil
from typing import Any

import keras
import tensorflow as tf

from keras_muffnet._files import write_version
from keras_muffnet._files import written_aside
from keras_muffnet.detection.ssd import is_detector
from keras_muffnet.export.checks import image_shape
from keras_muffnet.export.detection import finding
from keras_muffnet.litert.converter import convert_function

# What TF Serving looks for in a version's folder.
FILE = "model.tflite"


def export_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    quantized: Any = None,
) -> pathlib.Path:
    """Writes a model as a LiteRT file with a static batch of 1.

    The file is float32; that of a detector finds the boxes itself, with what
    `export_saved_model` describes as outputs of its one signature.

    ```python
    from keras_muffnet import export

    export.export_litert(model, "model.tflite")
    ```

    Args:
        model: a Keras model with one image input of static size.
        path: the `.tflite` file to write.
        quantized: for a detector of int8, what `quantization.quantize_aware`
            made of `detection.two_outputs(model)`, with the same images,
            trained or not. Input and outputs stay float32, and so do the few
            operations behind the network. For classifiers see
            `quantization.convert`.

    Returns:
        `path`.

    Raises:
        ValueError: if the model is not of that kind, or Keras does not run on
            TensorFlow.
        RuntimeError: if LiteRT lacks an operation, or the file would hold
            variables.
        ImportError: if ai-edge-litert, which checks that, is not installed.
    """
    shape = image_shape(model)
    if None in shape:
        raise ValueError(
            "`model` must have a static input size to be a LiteRT file. "
            f"Received a model with input shape {model.input_shape}"
        )
    # The converter folds by itself, from variables.
    run = functools.partial(model, training=False)
    if is_detector(model):
        serve = finding(model, run, quantized)
    elif quantized is None:
        serve = run
    else:
        raise ValueError(
            "`quantized` must be None for a model that is not a detector. "
            f"Received: model={model!r}"
        )
    images = tf.TensorSpec((1, *shape), tf.float32, name="images")
    signature = tf.function(
        lambda images: serve(images), input_signature=[images], autograph=False
    ).get_concrete_function()

    def configure(converter: tf.lite.TFLiteConverter) -> None:
        if quantized is not None:
            # Without it the converter leaves float operations.
            converter.optimizations = [tf.lite.Optimize.DEFAULT]

    content = convert_function(signature, configure)
    with written_aside(path) as aside:
        aside.write_bytes(content)
    return pathlib.Path(path)


def publish_litert(
    path: str | os.PathLike[str], base_path: str | os.PathLike[str]
) -> pathlib.Path:
    """Copies a LiteRT file, int8 or float, as the next version of a model.

    ```python
    from keras_muffnet import export

    export.publish_litert("model.tflite", "served/flowers")
    ```

    Args:
        path: the `.tflite` file. It is copied as it is, metadata included.
        base_path: folder of the versions; it may not exist yet.

    Returns:
        The folder written, `base_path/N` with `model.tflite` in it; N is as
        `files.write_version` chooses it.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a LiteRT file.
    """
    check_litert(path)
    return write_version(
        base_path, lambda folder: shutil.copyfile(path, folder / FILE)
    )


def check_litert(path: str | os.PathLike[str], name: str = "path") -> None:
    """Raises `ValueError` for what is not a LiteRT file, with the argument."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start[4:] != b"TFL3":
        raise ValueError(
            f"`{name}` must be a .tflite file. "
            f"Received: {os.fspath(path)!r}, which starts with {start!r}"
        )
