"""One way to ask a model, whatever it was saved as."""

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
from keras_muffnet.muffnet import MuffNet
from keras_muffnet.preprocessing import scales_pixels

Normalization = tuple[float, float]
# How `keras_muffnet.preprocess_input` scales pixels.
_DEFAULT: Normalization = (128.0, 128.0)


class Predictor(NamedTuple):
    """A model of images with three channels.

    Attributes:
        size: height and width of its images in pixels; None for any.
        predict: from float32 pixels in [0, 255], `(n, height, width, 3)`, to
            float32 probabilities `(n, classes)`.
    """

    size: tuple[int | None, int | None]
    predict: Callable[[np.ndarray], np.ndarray]


def load_predictor(
    path: str | os.PathLike[str],
    *,
    network: dict[str, Any] | None = None,
    normalization: Normalization | None = None,
) -> Predictor:
    """Loads a model that was saved in any of four ways.

    Args:
        path: a `.keras` file; the weights of a MuffNet, `.weights.h5`; a
            SavedModel, or a folder of its versions, of which the latest is
            taken; or a `.tflite` file.
        network: for weights, the arguments of `MuffNet`.
        normalization: mean and standard deviation that pixels are scaled
            with. By default what a `.tflite` file says of itself, nothing for
            a Keras model whose first layer scales, and (128, 128) otherwise.

    Raises:
        ValueError: if the path is none of these, or the model has not one
            image of three channels as its input and scores as its output.
        OSError: if a file is damaged.
        ImportError: if the package that runs the file is not installed.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _saved_model(latest_version(path), normalization or _DEFAULT)
    if not path.is_file():
        raise ValueError(
            "`path` must be an existing file or folder. "
            f"Received: path={str(path)!r}"
        )
    if path.suffix == ".tflite":
        return _litert(path, normalization)
    if path.suffix == ".keras":
        return _keras(
            keras.saving.load_model(path, compile=False), normalization
        )
    if path.suffix == ".h5":
        if network is None:
            raise ValueError(
                "`network` must be given for weights. "
                f"Received: path={str(path)!r}, network=None"
            )
        return _keras(MuffNet(weights=path, **network), normalization)
    raise ValueError(
        "`path` must end in .keras, .weights.h5 or .tflite, or be a folder "
        f"that holds a SavedModel. Received: path={str(path)!r}"
    )


def _keras(
    model: keras.Model, normalization: Normalization | None
) -> Predictor:
    shape = tuple(model.input_shape[1:])
    channels_first = shape[-1] != 3 and shape[0] == 3
    if channels_first:
        shape = (*shape[1:], shape[0])
    size = _checked(shape, model.output_shape, model.name)
    if normalization is None:
        normalization = (0.0, 1.0) if scales_pixels(model) else _DEFAULT
    mean, std = normalization
    # TensorFlow would have XLA compile it for each size of a batch, which
    # takes longer than most test sets.
    model.compile(jit_compile=keras.backend.backend() == "jax")

    def predict(pixels: np.ndarray) -> np.ndarray:
        images = (pixels - mean) / std
        if channels_first:
            images = images.transpose(0, 3, 1, 2)
        scores = model.predict_on_batch(np.ascontiguousarray(images))
        return probabilities(ops.convert_to_numpy(scores))

    return Predictor(size, predict)


def latest_version(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a SavedModel, or of the latest of its versions.

    Raises:
        ValueError: if it is none and has none.
    """
    if (folder / "saved_model.pb").exists():
        return folder
    versions = [p for p in folder.iterdir() if p.name.isdecimal()]
    if not versions:
        raise ValueError(
            "`path` must hold saved_model.pb, or versions of a SavedModel "
            f"in folders named 1, 2, ... Received: path={str(folder)!r}"
        )
    return max(versions, key=lambda p: int(p.name))


def _saved_model(
    folder: pathlib.Path, normalization: Normalization
) -> Predictor:
    tf = load_optional("tensorflow", "tensorflow")
    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures["serving_default"]
    inputs = signature.structured_input_signature[1]
    outputs = signature.structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            "`path` must hold a model with one input and one output. "
            f"Received: path={str(folder)!r} with {sorted(inputs)} and "
            f"{sorted(outputs)}"
        )
    [(name, spec)], [(answer, scores)] = inputs.items(), outputs.items()
    size = _checked(tuple(spec.shape[1:]), scores.shape, str(folder))
    mean, std = normalization

    def predict(pixels: np.ndarray) -> np.ndarray:
        images = tf.constant((pixels - mean) / std, tf.float32)
        # `loaded` owns the variables, which go with it.
        given = loaded.signatures["serving_default"](**{name: images})
        return probabilities(given[answer].numpy())

    return Predictor(size, predict)


def _litert(
    path: pathlib.Path, normalization: Normalization | None
) -> Predictor:
    try:
        model = LiteRTModel(path, threads=os.cpu_count() or 1)
    except RuntimeError as error:
        raise OSError(f"{str(path)!r} is damaged: {error}") from error
    size = _checked(model.input_shape[1:], (None, None), str(path))
    mean: Any = _DEFAULT[0]
    std: Any = _DEFAULT[1]
    if normalization is not None:
        mean, std = normalization
    else:
        try:
            metadata = read_metadata(path.read_bytes())
        except ValueError:  # it has none
            pass
        else:
            mean, std = (
                np.array(values or default, np.float32)
                for values, default in (
                    (metadata.mean, mean),
                    (metadata.std, std),
                )
            )

    def predict(pixels: np.ndarray) -> np.ndarray:
        return probabilities(model.predict((pixels - mean) / std))

    return Predictor(size, predict)


def _checked(
    shape: tuple[Any, ...], output: tuple[Any, ...], name: str
) -> tuple[int | None, int | None]:
    if len(shape) != 3 or shape[-1] != 3 or len(output) != 2:
        raise ValueError(
            "`path` must hold a classifier of images with three channels. "
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
