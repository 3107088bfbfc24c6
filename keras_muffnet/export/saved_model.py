"""SavedModels in TF Serving's layout, and float LiteRT files made of them."""

import os
import pathlib
import tempfile
from typing import Any

import keras
import tensorflow as tf

from keras_muffnet.applications import preprocess_input
from keras_muffnet.files import written_aside
from keras_muffnet.litert import read_operations

# Operations of a file whose weights were not frozen: right answers, ten times
# slower.
_UNFROZEN = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}


def export_saved_model(
    model: keras.Model, base_path: str | os.PathLike[str]
) -> pathlib.Path:
    """Writes a model as the next version below a TF Serving base path.

    The SavedModel has two signatures, both with a free batch size and one
    output, `predictions`:

    * `serving_default`, input `images`: float32 `(batch, height, width,
      channels)`, scaled by `keras_muffnet.preprocess_input`.
    * `serving_bytes`, input `image_bytes`: strings `(batch,)`, each an encoded
      PNG, JPEG, GIF (first frame) or BMP image of any size, which is decoded,
      resized and scaled in the graph. Over REST, `{"b64": "..."}`. Only for
      models with a static input size and 1 or 3 channels.

    Args:
        model: a Keras model with one image input and one output.
        base_path: folder of the versions; it may not exist yet.

    Returns:
        The folder written, `base_path/N` with N one above the largest version
        that is there, or 1. It appears under that name only when it is whole.

    Raises:
        ValueError: if the model is not of that kind, or Keras does not run on
            TensorFlow.
    """
    height, width, channels = _image_shape(model)
    base_path = pathlib.Path(base_path)
    version = 1 + max(_versions(base_path), default=0)
    archive = keras.export.ExportArchive()
    archive.track(model)

    def predict(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"predictions": model(images, training=False)}

    archive.add_endpoint(
        "serving_default",
        predict,
        [
            tf.TensorSpec(
                (None, height, width, channels), tf.float32, name="images"
            )
        ],
    )
    if height is not None and width is not None and channels in (1, 3):

        def predict_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
            return predict(decode_images(image_bytes, height, width, channels))

        archive.add_endpoint(
            "serving_bytes",
            predict_bytes,
            [tf.TensorSpec((None,), tf.string, name="image_bytes")],
        )
    with written_aside(base_path / str(version)) as folder:
        archive.write_out(str(folder), verbose=False)
    return base_path / str(version)


def decode_images(
    image_bytes: tf.Tensor, height: int, width: int, channels: int
) -> tf.Tensor:
    """Decodes, resizes and scales encoded images, as part of a graph.

    Args:
        image_bytes: strings `(batch,)`, each an encoded image.
        height: height to resize to, in pixels.
        width: width to resize to, in pixels.
        channels: 1 or 3.

    Returns:
        float32 `(batch, height, width, channels)`, bilinearly resized (with
        antialiasing, the aspect ratio not kept) and scaled by
        `keras_muffnet.preprocess_input`.

    Raises:
        tf.errors.InvalidArgumentError: at run time, if an image cannot be
            decoded.
    """

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(
            encoded, channels=channels, expand_animations=False
        )
        image = tf.image.resize(image, (height, width), antialias=True)
        return tf.ensure_shape(image, (height, width, channels))

    pixels = tf.map_fn(
        decode,
        image_bytes,
        fn_output_signature=tf.TensorSpec(
            (height, width, channels), tf.float32
        ),
    )
    return preprocess_input(pixels)


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
    shape = _image_shape(model)
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


def _versions(base_path: pathlib.Path) -> list[int]:
    if not base_path.is_dir():
        return []
    names = [entry.name for entry in base_path.iterdir() if entry.is_dir()]
    return [int(name) for name in names if name.isdecimal()]


def _image_shape(model: Any) -> tuple[int | None, int | None, int]:
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "Exporting needs Keras to run on TensorFlow: set KERAS_BACKEND. "
            f"Received: KERAS_BACKEND={keras.backend.backend()}"
        )
    if not isinstance(model, keras.Model) or not hasattr(model, "inputs"):
        raise ValueError(
            "`model` must be a functional or a built sequential Keras model. "
            f"Received: {model!r}"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "`model` must have one input and one output. Received a model "
            f"with {len(model.inputs)} and {len(model.outputs)}"
        )
    shape = tuple(model.inputs[0].shape[1:])
    if len(shape) != 3 or shape[-1] is None:
        raise ValueError(
            "`model` must take channels-last images. "
            f"Received a model with input shape {model.input_shape}"
        )
    return shape
