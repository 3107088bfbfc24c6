"""Float LiteRT files, and such files in TF Serving's layout."""

import os
import pathlib
import shutil
import tempfile

import keras
import tensorflow as tf

from keras_muffnet.export.checks import image_shape
from keras_muffnet.files import write_version
from keras_muffnet.files import written_aside
from keras_muffnet.litert import read_operations

# Operations of a file whose weights were not frozen: right answers, ten times
# slower.
_UNFROZEN = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}
# What TF Serving looks for in a version's folder.
_FILE = "model.tflite"


def export_litert(
    model: keras.Model, path: str | os.PathLike[str]
) -> pathlib.Path:
    """Writes a model as a float32 LiteRT file with a static batch of 1.

    Args:
        model: a Keras model with one image input of static size.
        path: the `.tflite` file to write.

    Returns:
        `path`.

    Raises:
        ValueError: if the model is not of that kind, or Keras does not run on
            TensorFlow.
        RuntimeError: if the converted file would hold variables.
        ImportError: if ai-edge-litert, which checks that, is not installed.
    """
    shape = image_shape(model)
    if None in shape:
        raise ValueError(
            "`model` must have a static input size to be a LiteRT file. "
            f"Received a model with input shape {model.input_shape}"
        )
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        lambda images: model(images, training=False),
        [tf.TensorSpec((1, *shape), tf.float32, name="images")],
    )
    with tempfile.TemporaryDirectory() as folder:
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        content = converter.convert()
    unfrozen = _UNFROZEN & {op.name for op in read_operations(content)}
    if unfrozen:
        raise RuntimeError(
            "The converted model must hold its weights as constants. "
            f"Found operations: {', '.join(sorted(unfrozen))}"
        )
    with written_aside(path) as aside:
        aside.write_bytes(content)
    return pathlib.Path(path)


def publish_litert(
    path: str | os.PathLike[str], base_path: str | os.PathLike[str]
) -> pathlib.Path:
    """Copies a LiteRT file, int8 or float, as the next version of a model.

    Args:
        path: the `.tflite` file. It is copied as it is, metadata included.
        base_path: folder of the versions; it may not exist yet.

    Returns:
        The folder written, `base_path/N` with `model.tflite` in it; N is as
        `files.write_version` chooses it.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no LiteRT file.
    """
    with open(path, "rb") as file:
        start = file.read(8)
    if start[4:] != b"TFL3":
        raise ValueError(
            "`path` must be a .tflite file. "
            f"Received: {os.fspath(path)!r}, which starts with {start!r}"
        )
    return write_version(
        base_path, lambda folder: shutil.copyfile(path, folder / _FILE)
    )
