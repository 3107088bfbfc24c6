"""Format-independent inference of detectors."""

import os
import pathlib
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_muffnet._optional import load_optional
from keras_muffnet.detection.evaluation import predict
from keras_muffnet.detection.postprocess import Detections
from keras_muffnet.detection.ssd import predictions_layer
from keras_muffnet.evaluation.classifiers import saved_labels
from keras_muffnet.litert.model import EXTRA
from keras_muffnet.preprocessing import preprocess_input

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
        classes: how many; None where the file does not say.
    """

    size: tuple[int, int]
    detect: Callable[[np.ndarray], Detections]
    class_names: tuple[str, ...] = ()
    classes: int | None = None


def from_keras(model: keras.Model) -> Detector:
    """Makes a detector of a model that `SSD` built."""
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

    classes = model.output_shape[-1] - 5
    return Detector(layer.image_size, detect, classes=classes)


def from_saved_model(loaded: Any, folder: pathlib.Path) -> Detector:
    """Makes a detector of a SavedModel that `export_saved_model` wrote.

    Args:
        loaded: what `tf.saved_model.load` gave.
        folder: where it lies.
    """
    tf = load_optional("tensorflow", "tensorflow")
    signature = loaded.signatures["serving_default"]
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

    labels = saved_labels(folder)
    return Detector(size, detect, labels, len(labels) or None)


def from_litert(path: pathlib.Path) -> Detector:
    """Makes a detector of a `.tflite` file that `export_litert` wrote."""
    litert = load_optional("ai_edge_litert.interpreter", EXTRA)
    try:
        interpreter = litert.Interpreter(
            model_path=str(path), num_threads=os.cpu_count() or 1
        )
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise OSError(f"{str(path)!r} is damaged: {error}") from error
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


def gives_objects(outputs: Iterable[str]) -> bool:
    """Whether these are the outputs of an exported detector."""
    return set(_NAMES) <= set(outputs)


def _in_pixels(found: Detections, size: tuple[int, int]) -> Detections:
    """From `(y_min, x_min, y_max, x_max)` in shares to the package's boxes."""
    height, width = size
    sides = np.array([width, height, width, height], np.float32)
    return found._replace(boxes=found.boxes[..., [1, 0, 3, 2]] * sides)
