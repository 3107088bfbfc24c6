"""One way to ask a detector, whatever it was saved as."""

import os
import pathlib
from collections.abc import Callable
from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_muffnet._optional import load_optional
from keras_muffnet.detection.evaluation import predict
from keras_muffnet.detection.postprocess import Detections
from keras_muffnet.detection.ssd import predictions_layer
from keras_muffnet.detection.ssd import pretrained_ssd
from keras_muffnet.evaluation.classifiers import latest_version
from keras_muffnet.litert.model import EXTRA
from keras_muffnet.preprocessing import preprocess_input
from keras_muffnet.published import published_detectors

# Names of what the exported detectors give, in the order of `Detections`.
_NAMES = ("boxes", "scores", "classes", "num_detections")


class Detector(NamedTuple):
    """A detector of objects in images with three channels.

    Attributes:
        size: height and width of its images in pixels.
        detect: from float32 pixels in [0, 255], `(n, height, width, 3)`, to
            `Detections` of NumPy, in pixels of these images.
        class_names: of a detector that ships, or of a SavedModel with labels;
            else empty.
    """

    size: tuple[int, int]
    detect: Callable[[np.ndarray], Detections]
    class_names: tuple[str, ...] = ()


def load_detector(path: str | os.PathLike[str]) -> Detector:
    """Loads a detector that ships, or was saved in any of three ways.

    Pixels are scaled by `keras_muffnet.preprocess_input`.

    Args:
        path: the name of a detector that ships, a key of
            `keras_muffnet.published_detectors()`; a `.keras` file of what
            `SSD` built; a SavedModel that `export_saved_model` wrote, or a
            folder of its versions, of which the latest is taken; or a
            `.tflite` file of `export_litert`.

    Raises:
        ValueError: if the path is none of these.
        OSError: if a file is damaged.
        ImportError: if the package that runs the file is not installed.
    """
    published = published_detectors().get(str(path))
    if published is not None:
        found = _keras(pretrained_ssd(str(path)))
        return found._replace(class_names=published.class_names)
    path = pathlib.Path(path)
    if path.is_dir():
        return _saved_model(latest_version(path))
    if not path.is_file():
        raise ValueError(
            "`path` must be an existing file or folder, or one of "
            f"{', '.join(published_detectors())}. "
            f"Received: path={str(path)!r}"
        )
    if path.suffix == ".tflite":
        return _litert(path)
    if path.suffix == ".keras":
        return _keras(keras.saving.load_model(path, compile=False))
    raise ValueError(
        "`path` must end in .keras or .tflite, or be a folder that holds a "
        f"SavedModel. Received: path={str(path)!r}"
    )


def _keras(model: keras.Model) -> Detector:
    layer = predictions_layer(model)
    channels_first = model.input_shape[-1] != 3
    # TensorFlow would have XLA compile it for each size of a batch.
    model.compile(jit_compile=keras.backend.backend() == "jax")

    def detect(pixels: np.ndarray) -> Detections:
        images = preprocess_input(pixels)
        if channels_first:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        found = predict(model, images)
        return Detections(*map(ops.convert_to_numpy, found))

    return Detector(layer.image_size, detect)


def _saved_model(folder: pathlib.Path) -> Detector:
    tf = load_optional("tensorflow", "tensorflow")
    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures["serving_default"]
    _check_outputs(signature.structured_outputs, folder)
    [spec] = signature.structured_input_signature[1].values()
    size = (spec.shape[1], spec.shape[2])

    def detect(pixels: np.ndarray) -> Detections:
        # `loaded` owns the variables, which go with it.
        answer = loaded.signatures["serving_default"](
            images=tf.constant(preprocess_input(pixels))
        )
        return _in_pixels(
            Detections(*(answer[name].numpy() for name in _NAMES)), size
        )

    names = folder / "assets" / "labels.txt"
    labels = names.read_text("utf-8").splitlines() if names.exists() else ()
    return Detector(size, detect, tuple(labels))


def _litert(path: pathlib.Path) -> Detector:
    litert = load_optional("ai_edge_litert.interpreter", EXTRA)
    try:
        interpreter = litert.Interpreter(
            model_path=str(path), num_threads=os.cpu_count() or 1
        )
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise OSError(f"{str(path)!r} is damaged: {error}") from error
    signatures = interpreter.get_signature_list()
    _check_outputs(
        signatures.get("serving_default", {}).get("outputs", ()), path
    )
    run = interpreter.get_signature_runner("serving_default")
    [shape] = [x["shape"] for x in interpreter.get_input_details()]
    size = (int(shape[1]), int(shape[2]))

    def detect(pixels: np.ndarray) -> Detections:
        answers = [run(images=x[None]) for x in preprocess_input(pixels)]
        return _in_pixels(
            Detections(
                *(np.concatenate([a[name] for a in answers]) for name in _NAMES)
            ),
            size,
        )

    return Detector(size, detect)


def _check_outputs(outputs: Iterable[str], path: pathlib.Path) -> None:
    if not set(_NAMES) <= set(outputs):
        raise ValueError(
            "`path` must hold a detector, with outputs "
            f"{', '.join(_NAMES)}. Received: path={str(path)!r} with "
            f"{', '.join(sorted(outputs)) or 'none'}"
        )


def _in_pixels(found: Detections, size: tuple[int, int]) -> Detections:
    """From `(y_min, x_min, y_max, x_max)` in shares to the package's boxes."""
    height, width = size
    sides = np.array([width, height, width, height], np.float32)
    return found._replace(boxes=found.boxes[..., [1, 0, 3, 2]] * sides)
