"""Format-independent inference of classifiers."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_muffnet._optional import load_optional
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.litert.metadata import read_metadata
from keras_muffnet.preprocessing import MEAN
from keras_muffnet.preprocessing import PREPROCESSING_FILE
from keras_muffnet.preprocessing import STD
from keras_muffnet.preprocessing import Preprocessing
from keras_muffnet.preprocessing import preprocessing_of

Normalization = tuple[float, float]


class Predictor(NamedTuple):
    """A model of images with three channels.

    Attributes:
        size: height and width of its images in pixels; None for any.
        predict: from float32 pixels in [0, 255], `(n, height, width, 3)`, to
            float32 probabilities `(n, classes)`.
        class_names: of a model that ships or knows them; else empty.
        classes: how many; None where the file does not say.
        crop: how images get the model's size; see `Preprocessing.crop`.
    """

    size: tuple[int | None, int | None]
    predict: Callable[[np.ndarray], np.ndarray]
    class_names: tuple[str, ...] = ()
    classes: int | None = None
    crop: float | None = None


def from_keras(
    model: keras.Model, normalization: Normalization | None = None
) -> Predictor:
    """Makes a predictor of a Keras model; see `models.load_model`."""
    # A subclassed model has no inputs before it is called.
    inputs = getattr(model, "inputs", None) or ()
    outputs = getattr(model, "outputs", None) or ()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            "`model` must be a Functional or Sequential model with one input "
            f"and one output. Received: {model.name!r}, with {len(inputs)} "
            f"inputs and {len(outputs)} outputs"
        )
    shape = tuple(model.input_shape[1:])
    channels_first = shape[-1] != 3 and shape[0] == 3
    if channels_first:
        shape = (*shape[1:], shape[0])
    size = _checked(shape, model.output_shape, model.name)
    known = preprocessing_of(model)
    mean, std = normalization or (known.mean, known.std)
    # TensorFlow would have XLA compile it for each size of a batch, which
    # takes longer than most test sets.
    model.compile(jit_compile=keras.backend.backend() == "jax")

    def predict(pixels: np.ndarray) -> np.ndarray:
        images = (pixels - mean) / std
        if channels_first:
            images = images.transpose(0, 3, 1, 2)
        scores = model.predict_on_batch(np.ascontiguousarray(images))
        return probabilities(ops.convert_to_numpy(scores))

    return Predictor(
        size, predict, known.class_names, model.output_shape[-1], known.crop
    )


def from_saved_model(
    loaded: Any,
    folder: pathlib.Path,
    normalization: Normalization | None = None,
) -> Predictor:
    """Makes a predictor of a SavedModel; see `models.load_model`.

    Args:
        loaded: what `tf.saved_model.load` gave.
        folder: where it lies.
        normalization: mean and standard deviation; None for those that it
            was exported with.
    """
    tf = load_optional("tensorflow", "tensorflow")
    signature = loaded.signatures["serving_default"]
    inputs = signature.structured_input_signature[1]
    outputs = signature.structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            "`model` must have one input and one output. "
            f"Received: model={str(folder)!r} with {sorted(inputs)} and "
            f"{sorted(outputs)}"
        )
    [(name, spec)], [(answer, scores)] = inputs.items(), outputs.items()
    size = _checked(tuple(spec.shape[1:]), scores.shape, str(folder))
    known = Preprocessing()
    saved = folder / "assets.extra" / PREPROCESSING_FILE
    if saved.is_file():
        known = Preprocessing.from_config(json.loads(saved.read_text("utf-8")))
    mean, std = normalization or (known.mean, known.std)

    def predict(pixels: np.ndarray) -> np.ndarray:
        images = tf.constant((pixels - mean) / std, tf.float32)
        # `loaded` owns the variables, which go with it.
        given = loaded.signatures["serving_default"](**{name: images})
        return probabilities(given[answer].numpy())

    labels = saved_labels(folder)
    return Predictor(size, predict, labels, scores.shape[-1], known.crop)


def saved_labels(folder: pathlib.Path) -> tuple[str, ...]:
    """Returns the labels that a SavedModel was exported with, if any."""
    path = folder / "assets" / "labels.txt"
    return tuple(path.read_text("utf-8").splitlines()) if path.exists() else ()


def from_litert(
    path: pathlib.Path, normalization: Normalization | None = None
) -> Predictor:
    """Makes a predictor of a `.tflite` file; see `models.load_model`."""
    try:
        model = LiteRTModel(path, threads=os.cpu_count() or 1)
    except RuntimeError as error:
        raise OSError(f"{str(path)!r} is damaged: {error}") from error
    size = _checked(model.input_shape[1:], (None, None), str(path))
    mean: Any = MEAN
    std: Any = STD
    labels: tuple[str, ...] = ()
    crop: float | None = None
    try:
        metadata = read_metadata(path.read_bytes())
    except ValueError:  # it has none
        pass
    else:
        labels, crop = metadata.labels or (), metadata.crop
        if metadata.mean:
            mean = np.array(metadata.mean, np.float32)
        if metadata.std:
            std = np.array(metadata.std, np.float32)
    if normalization is not None:
        mean, std = normalization

    def predict(pixels: np.ndarray) -> np.ndarray:
        return probabilities(model.predict((pixels - mean) / std))

    return Predictor(size, predict, labels, crop=crop)


def _checked(
    shape: tuple[Any, ...], output: tuple[Any, ...], name: str
) -> tuple[int | None, int | None]:
    if len(shape) != 3 or shape[-1] != 3 or len(output) != 2:
        raise ValueError(
            "`model` must be a classifier of images with three channels. "
            f"Received: {name!r}, from {shape} to {tuple(output)}"
        )
    return shape[0], shape[1]


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Returns scores as they are if they are probabilities, or their softmax.

    Args:
        scores: `(n, classes)`, probabilities or logits. Taken for the former
            where all lie in [0, 1]. Their sum is not asked for: that of 8-bit
            probabilities is not 1.

    Returns:
        float32 `(n, classes)`.
    """
    scores = scores.astype(np.float32)
    if scores.min() >= 0 and scores.max() <= 1:
        return scores
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
