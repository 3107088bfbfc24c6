"""SavedModels in TF Serving's layout."""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Sequence

import keras
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto

from keras_muffnet._arguments import positive_integer
from keras_muffnet._files import write_version
from keras_muffnet.detection.ssd import is_detector
from keras_muffnet.export.checks import image_shape
from keras_muffnet.export.decoding import MAX_PIXELS
from keras_muffnet.export.decoding import decode_images
from keras_muffnet.export.detection import Serve
from keras_muffnet.export.detection import Tensors
from keras_muffnet.export.detection import finding
from keras_muffnet.export.detection import naming_found
from keras_muffnet.export.inference import make_inference_fn
from keras_muffnet.export.litert import FILE
from keras_muffnet.export.litert import check_litert
from keras_muffnet.export.model_card import model_card
from keras_muffnet.export.warm_up import write_warm_up
from keras_muffnet.graph import trace
from keras_muffnet.litert.metadata import check_labels
from keras_muffnet.preprocessing import PREPROCESSING_FILE
from keras_muffnet.preprocessing import preprocessing_of

# Layers that give on what they get, in another shape at most.
_PASSING = (
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Reshape,
)
# Height and width of a warm-up image for a model of free size.
_WARM_UP_SIZE = 224


def export_saved_model(
    model: keras.Model,
    base_path: str | os.PathLike[str],
    *,
    labels: Sequence[str] | None = None,
    top_k: int = 5,
    preprocess: Callable[[tf.Tensor], tf.Tensor] | None = None,
    max_pixels: int = MAX_PIXELS,
    fold: bool = True,
    litert: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Writes a model as the next version below a TF Serving base path.

    The SavedModel has two signatures with a free batch size:

    * `serving_default`, input `images`: float32 `(batch, height, width,
      channels)`, scaled as the model takes them. Height and width are free
      where the model's are. Output `predictions`: float32, what the model
      answers, also from a model of mixed precision.
    * `serving_bytes`, input `image_bytes`: strings `(batch,)`, each an encoded
      image of any size (see `decode_images` for formats and the error for a
      bad one), resized or cropped as the model was trained and scaled by
      `preprocess`. Over REST, `{"b64": "..."}`.
      Output `predictions` and, where `labels` are given, the best classes,
      best first: `classes`, strings `(batch, top_k)`, and `scores`, float32
      `(batch, top_k)`, which are probabilities: the softmax of what the model
      answers if its last layer has no activation. Only for models with a
      static input size and 1 or 3 channels.

    A detector, as `keras_muffnet.detection.SSD` builds it, gives instead of
    `predictions` the objects found, best first, k = 100 for each image:
    `boxes`, float32 `(batch, k, 4)`, `(y_min, x_min, y_max, x_max)` as shares
    of the image's height and width; `scores`, float32 `(batch, k)`; `classes`,
    int32 `(batch, k)`; `num_detections`, int32 `(batch,)`, behind which the
    others are padding of 0, 0 and -1; and where `labels` are given, under
    `labels`, the classes' names, strings `(batch, k)`. Both signatures give
    all of these.

    Beside it the folder holds a model card, `README.md`, the labels,
    `assets/labels.txt`, the model's configuration, `assets.extra/config.json`,
    how images are made ready for it, `assets.extra/preprocessing.json`, and
    requests that TF Serving warms it up with.

    ```python
    from keras_muffnet import export

    export.export_saved_model(
        model, "served/flowers", labels=["daisy", "rose", "tulip"]
    )
    ```

    Args:
        model: a Keras model with one image input and one output.
        base_path: folder of the versions; it may not exist yet. Its name
            stands for the model's in the model card.
        labels: names of the classes, as many as the output's last axis, or
            as the detector was built for. Defaults to those that the model
            was saved with.
        top_k: how many of the classes `serving_bytes` names; all, if there are
            fewer.
        preprocess: scales float32 pixels in [0, 255], `(batch, height, width,
            channels)`, for the model, in TensorFlow. Defaults to what the
            model was trained with; see
            `keras_muffnet.preprocessing.preprocessing_of`.
        max_pixels: the most pixels of an encoded image, against small files
            that fill the memory once decoded.
        fold: whether batch normalization becomes part of the kernels before
            it and weights become constants, which is faster. The answers stay
            the same up to rounding. What the model's graph does not allow
            stays as it is, and the model card says so. With False the
            SavedModel has all layers, with variables.
        litert: a LiteRT file of the same model, to be put beside it as
            `model.tflite`; see `export_litert`. This package's model server
            runs it where it gives the same answers.

    Returns:
        The folder written, `base_path/N`; N is as `files.write_version`
        chooses it.

    Raises:
        ValueError: if the model is not of that kind, an argument not as above
            above, or Keras does not run on TensorFlow.
    """
    shape = image_shape(model)
    encoded_shape = _encoded_shape(shape)
    known = preprocessing_of(model)
    if labels is None and encoded_shape is not None:
        labels = known.class_names or None
    if labels is not None:
        _check_classes(model, labels, top_k)
        known = dataclasses.replace(known, class_names=tuple(labels))
    about = known.describe()
    if litert is not None:
        check_litert(litert, "litert")
    if preprocess is None:
        preprocess = known.scale
    else:
        about = known.describe("scaled by `preprocess`")
    base_path = pathlib.Path(base_path)
    detects = is_detector(model)
    run, running = make_inference_fn(model, fold)
    answer = finding(model, run) if detects else _predicting(run)

    images = tf.TensorSpec((None, *shape), tf.float32, name="images")

    # A function of its own, so that the model is traced and written once.
    @tf.function(input_signature=[images], autograph=False)
    def predict(images: tf.Tensor) -> Tensors:
        return answer(images)

    def write(folder: pathlib.Path) -> None:
        # The model itself is not tracked: its variables are those of the
        # endpoints, and Keras would write them twice (keras#23553).
        archive = keras.export.ExportArchive()
        with tempfile.TemporaryDirectory() as scratch:
            table = None
            if labels is not None:
                table = _class_names(labels, pathlib.Path(scratch))
                archive.track(table)
            default = predict
            if detects and table is not None:
                default = naming_found(predict, table)
            archive.add_endpoint("serving_default", default, [images])
            if encoded_shape is not None:
                serve = _taking_bytes(
                    default, preprocess, encoded_shape, max_pixels, known.crop
                )
                if not detects and table is not None:
                    serve = _naming(serve, model, table, top_k)
                encoded = tf.TensorSpec((None,), tf.string, name="image_bytes")
                archive.add_endpoint("serving_bytes", serve, [encoded])
            archive.write_out(str(folder), verbose=False)
        if litert is not None:
            shutil.copyfile(litert, folder / FILE)
        extra = folder / "assets.extra"
        extra.mkdir()
        (extra / "config.json").write_text(model.to_json(indent=2))
        (extra / PREPROCESSING_FILE).write_text(
            json.dumps(known.get_config(), indent=2) + "\n", "utf-8"
        )
        takes_bytes = encoded_shape is not None
        write_warm_up(extra, _warm_up_inputs(shape, takes_bytes))
        (folder / "README.md").write_text(
            model_card(
                model, base_path.name, about, running, labels, takes_bytes
            ),
            "utf-8",
        )

    return write_version(base_path, write)


def _predicting(run: Callable[[tf.Tensor], tf.Tensor]) -> Serve:
    def predict(images: tf.Tensor) -> Tensors:
        return {"predictions": tf.cast(run(images), tf.float32)}

    return predict


def _encoded_shape(
    shape: tuple[int | None, int | None, int],
) -> tuple[int, int, int] | None:
    """What encoded images are made to, where a model can take them."""
    height, width, channels = shape
    if height is None or width is None or channels not in (1, 3):
        return None
    return height, width, channels


def _check_classes(
    model: keras.Model, labels: Sequence[str], top_k: int
) -> None:
    if _encoded_shape(image_shape(model)) is None:
        raise ValueError(
            "`labels` must be left out for a model without a static input "
            "size and 1 or 3 channels, which takes no encoded images. "
            f"Received a model with input shape {model.input_shape}"
        )
    if is_detector(model):
        check_labels(labels, model.output_shape[-1] - 5)
        return
    if len(model.output_shape) != 2:
        raise ValueError(
            "`labels` must be left out for a model that is not a classifier, "
            "with outputs (batch, classes). Received a model with output "
            f"shape {model.output_shape}"
        )
    check_labels(labels, model.output_shape[-1])
    positive_integer("top_k", top_k)
    _gives_logits(model)


def _gives_logits(model: keras.Model) -> bool:
    """Whether the last layer with a say in it has no activation."""
    operation = None
    for call in reversed(trace(model).calls):
        operation = call.operation
        if not isinstance(operation, _PASSING) and not (
            isinstance(operation, keras.layers.Activation)
            and operation.activation is keras.activations.linear
        ):
            break
    activation = getattr(operation, "activation", operation)
    name = getattr(activation, "__name__", type(activation).__name__).lower()
    if name not in ("linear", "softmax", "sigmoid"):
        raise ValueError(
            "`model` must end in a layer with activation softmax, sigmoid or "
            "none, to give scores to classes by `labels`. Received a model "
            f"that ends in {operation!r}"
        )
    return name == "linear"


def _class_names(
    labels: Sequence[str], folder: pathlib.Path
) -> tf.lookup.StaticHashTable:
    """A table from class to name, by way of a file that is to be an asset."""
    path = folder / "labels.txt"
    path.write_text("".join(f"{label}\n" for label in labels), "utf-8")
    names = tf.lookup.TextFileInitializer(
        str(path),
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
    )
    return tf.lookup.StaticHashTable(names, default_value="")


def _taking_bytes(
    predict: Serve,
    preprocess: Callable[[tf.Tensor], tf.Tensor],
    shape: tuple[int, int, int],
    max_pixels: int,
    crop: float | None,
) -> Serve:
    """Decodes and scales what `predict` is to take."""

    def predict_bytes(image_bytes: tf.Tensor) -> Tensors:
        pixels = decode_images(image_bytes, *shape, max_pixels, crop)
        return predict(preprocess(pixels))

    return predict_bytes


def _naming(
    predict: Serve,
    model: keras.Model,
    table: tf.lookup.StaticHashTable,
    top_k: int,
) -> Serve:
    """Adds names and scores of the best classes to what `predict` answers."""
    top_k = min(top_k, model.output_shape[-1])
    logits = _gives_logits(model)

    def predict_and_name(image_bytes: tf.Tensor) -> Tensors:
        answer = predict(image_bytes)
        scores = answer["predictions"]
        if logits:
            scores = tf.nn.softmax(scores)
        best, classes = tf.math.top_k(scores, top_k)
        names = table.lookup(tf.cast(classes, tf.int64))
        return {**answer, "classes": names, "scores": best}

    return predict_and_name


def _warm_up_inputs(
    shape: tuple[int | None, int | None, int], takes_bytes: bool
) -> dict[str, dict[str, TensorProto]]:
    height, width, channels = shape
    size = (height or _WARM_UP_SIZE, width or _WARM_UP_SIZE)
    # One number, which is taken for all.
    blank = tf.make_tensor_proto(0.0, tf.float32, (1, *size, channels))
    inputs = {"serving_default": {"images": blank}}
    if takes_bytes:
        # Formats that every TensorFlow decodes: one that it does not would
        # keep TF Serving from loading the model.
        gray = tf.fill((48, 64, 3), tf.constant(128, tf.uint8))
        encoded = [tf.io.encode_jpeg(gray), tf.io.encode_png(gray)]
        inputs["serving_bytes"] = {
            "image_bytes": tf.make_tensor_proto(tf.stack(encoded).numpy())
        }
    return inputs
