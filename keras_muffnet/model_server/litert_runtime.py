"""Runs `.tflite` files, without TensorFlow."""

import importlib.util
import os
import pathlib
import queue
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from keras_muffnet.data.decoding import decode_as_served
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.litert import read_operations
from keras_muffnet.litert.metadata import read_metadata
from keras_muffnet.model_server.errors import invalid_argument
from keras_muffnet.model_server.servable import Servable
from keras_muffnet.model_server.servable import Signature
from keras_muffnet.preprocessing import MEAN
from keras_muffnet.preprocessing import STD

_TOP = 5
_MAX_PIXELS = 64 * 2**20

_METHOD = "tensorflow/serving/predict"


def load_litert(
    path: str | os.PathLike[str], name: str, version: int
) -> Servable:
    """Loads the one `.tflite` file of a version's folder.

    The signatures are those that `keras_muffnet.export` gives a SavedModel:
    `serving_default` takes float images and quantizes them where the file does;
    `serving_bytes` takes encoded images where Pillow is installed, scales them
    as the file's metadata say, and names classes by the file's labels.
    `predictions` are what the file gives, dequantized.

    Args:
        path: The version's folder. It is only read.
        name: The model's name.
        version: The version's number.

    Raises:
        ValueError: The folder does not hold one such file, or the file has
            more than one input or output.
        ImportError: ai-edge-litert is not installed.
    """
    files = sorted(pathlib.Path(path).glob("*.tflite"))
    if len(files) != 1:
        raise ValueError(
            f"Expected one .tflite file in {os.fspath(path)}. Received: "
            f"{', '.join(file.name for file in files) or 'none'}"
        )
    runner = _Runner(files[0])
    scores = {"predictions": ("DT_FLOAT", [-1, *runner.output_shape])}
    signatures = {
        "serving_default": Signature(
            {"images": "float32"},
            tuple(scores),
            lambda images: [runner.predict(images)],
        )
    }
    images = {"images": ("DT_FLOAT", [-1, *runner.input_shape[1:]])}
    definitions = {"serving_default": _signature_def(images, scores)}
    if importlib.util.find_spec("PIL") is not None:
        decode = _Decoder(files[0], runner.input_shape)
        outputs = dict(scores)
        if decode.labels is not None:
            # By name, as TensorFlow gives them.
            outputs = {
                "classes": ("DT_STRING", [-1, decode.top]),
                **scores,
                "scores": ("DT_FLOAT", [-1, decode.top]),
            }

        def run(image_bytes: np.ndarray) -> list[np.ndarray]:
            predictions = runner.predict(decode(image_bytes, runner.map))
            if decode.labels is None:
                return [predictions]
            names, best = decode.best(predictions)
            return [names, predictions, best]

        signatures["serving_bytes"] = Signature(
            {"image_bytes": "string"}, tuple(outputs), run
        )
        definitions["serving_bytes"] = _signature_def(
            {"image_bytes": ("DT_STRING", [-1])}, outputs
        )
    return Servable(name, version, signatures, definitions, runner.close)


def _signature_def(
    inputs: Mapping[str, tuple[str, Sequence[int]]],
    outputs: Mapping[str, tuple[str, Sequence[int]]],
) -> dict[str, Any]:
    """Returns the JSON form of a `SignatureDef`."""

    def describe(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> dict:
        return {
            name: {
                "dtype": dtype,
                "tensor_shape": {
                    "dim": [{"size": str(n), "name": ""} for n in shape],
                    "unknown_rank": False,
                },
                "name": name,
            }
            for name, (dtype, shape) in tensors.items()
        }

    return {
        "inputs": describe(inputs),
        "outputs": describe(outputs),
        "method_name": _METHOD,
        "defaults": {},
    }


class _Decoder:
    """Makes a model's input of encoded images, and names of its answers.

    Attributes:
        labels: The class names in the file's metadata, or None.
        top: How many of them are given.
    """

    def __init__(self, path: pathlib.Path, input_shape: Sequence[int]):
        _, self._height, self._width, self._channels = input_shape
        content = path.read_bytes()
        self.labels: tuple[str, ...] | None = None
        self._mean, self._std = np.array((MEAN,)), np.array((STD,))
        self._crop: float | None = None
        try:
            metadata = read_metadata(content)
        except ValueError:
            pass  # A file without.
        else:
            self.labels = metadata.labels
            self._crop = metadata.crop
            if metadata.mean:
                self._mean = np.array(metadata.mean)
                self._std = np.array(metadata.std)
        self.top = min(_TOP, len(self.labels or ()))
        names = [operation.name for operation in read_operations(content)]
        self._has_probabilities = "SOFTMAX" in names[-2:]

    def __call__(
        self, image_bytes: np.ndarray, run_all: Callable[..., Iterable]
    ) -> np.ndarray:
        """Decodes, resizes (bilinearly, with antialiasing), crops, scales.

        Args:
            image_bytes: The images.
            run_all: As `map`; may run several at a time.
        """
        if image_bytes.ndim != 1:
            raise invalid_argument(
                "Expected `image_bytes` of shape (batch,). "
                f"Received: shape {image_bytes.shape}"
            )
        if len(image_bytes) < 2:
            run_all = map
        numbers = range(len(image_bytes))
        images = list(run_all(self._decode, numbers, image_bytes))
        shape = (-1, self._height, self._width, self._channels)
        pixels = np.array(images, np.float32).reshape(shape)
        return ((pixels - self._mean) / self._std).astype(np.float32)

    def _decode(self, index: int, data: bytes) -> np.ndarray:
        size = (self._height, self._width)
        try:
            return decode_as_served(
                data, size, self._channels, _MAX_PIXELS, self._crop
            )
        except ValueError as error:
            raise invalid_argument(
                f"image_bytes[{index}] cannot be decoded: {error}"
            ) from error

    def best(self, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the most likely classes' names and their scores."""
        assert self.labels is not None
        scores = predictions
        if not self._has_probabilities:
            powers = np.exp(predictions - predictions.max(-1, keepdims=True))
            scores = powers / powers.sum(-1, keepdims=True)
        order = np.argsort(-scores, axis=-1, kind="stable")[:, : self.top]
        labels = np.array([label.encode() for label in self.labels], object)
        return labels[order], np.take_along_axis(scores, order, axis=-1)


class _Runner:
    """Interpreters of one file, one for each core, each for one thread."""

    def __init__(self, path: pathlib.Path):
        self._idle: queue.SimpleQueue[LiteRTModel] = queue.SimpleQueue()
        self._count = os.cpu_count() or 1
        try:
            models = [LiteRTModel(path) for _ in range(self._count)]
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"Expected a .tflite file in {path}. Received: {error}"
            ) from error
        ends = len(models[0].inputs), len(models[0].outputs)
        if ends != (1, 1) or len(models[0].input_shape) != 4:
            raise ValueError(
                f"Expected a network of one input, of images, and one output "
                f"in {path}. Received: {ends[0]} inputs, the first of shape "
                f"{models[0].input_shape}, and {ends[1]} outputs"
            )
        for model in models:
            self._idle.put(model)
        self._pool = ThreadPoolExecutor(self._count, "litert")
        self.input_shape = models[0].input_shape
        zeros = np.zeros(self.input_shape, np.float32)
        self.output_shape = self.predict(zeros).shape[1:]

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Answers a batch, a share of it by each interpreter."""
        if images.shape[1:] != self.input_shape[1:] or len(images) < 2:
            return self._predict(images)
        shares = np.array_split(images, min(self._count, len(images)))
        return np.concatenate(list(self._pool.map(self._predict, shares)))

    def map(self, function: Callable[..., Any], *values: Iterable) -> Iterable:
        """As Python's, but that the calls run at a time."""
        return self._pool.map(function, *values)

    def close(self) -> None:
        self._pool.shutdown()

    def _predict(self, images: np.ndarray) -> np.ndarray:
        model = self._idle.get()
        try:
            return model.predict(images)
        except ValueError as error:
            raise invalid_argument(str(error)) from error
        finally:
            self._idle.put(model)
