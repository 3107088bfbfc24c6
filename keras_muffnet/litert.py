"""Runs and inspects LiteRT (`.tflite`) files of image models."""

import os
import time
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from keras_muffnet.optional import load_optional

# What brings ai-edge-litert.
EXTRA = "quantization"


class Operation(NamedTuple):
    """One operation of a `.tflite` file.

    Attributes:
        name: such as "CONV_2D".
        dtypes: types of the tensors it reads and writes, such as "INT8".
    """

    name: str
    dtypes: tuple[str, ...]


class LiteRTModel:
    """A `.tflite` file with one image input and one output, on the CPU.

    Attributes:
        path: the file.
        input_shape: shape of the input, batch axis of 1 included.
        input_dtype: NumPy type of the file's input, int8 for a quantized one.

    Args:
        path: the `.tflite` file.
        threads: number of CPU threads.

    Raises:
        ImportError: if `ai-edge-litert` is not installed.
        ValueError: if the file has another number of inputs or outputs.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self.path = os.fspath(path)
        litert = load_optional("ai_edge_litert.interpreter", EXTRA)
        self._interpreter = litert.Interpreter(
            model_path=self.path, num_threads=threads
        )
        self._interpreter.allocate_tensors()
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ValueError(
                "`path` must be a model with one input and one output. "
                f"Received: {self.path!r} with {len(inputs)} inputs and "
                f"{len(outputs)} outputs"
            )
        self._input, self._output = inputs[0], outputs[0]
        self.input_shape = tuple(int(size) for size in self._input["shape"])
        self.input_dtype = np.dtype(self._input["dtype"])

    def predict(self, images: np.ndarray, verbose: int = 0) -> np.ndarray:
        """Runs the model on images one by one.

        Args:
            images: float batch `(n, height, width, channels)`, scaled as the
                float model wants it. A quantized input is quantized here.
            verbose: 1 shows a progress bar.

        Returns:
            float32 array of shape `(n, ...)`, dequantized where needed.

        Raises:
            ValueError: if there are no images or not of the model's input
                shape.
        """
        images = np.asarray(images)
        if (
            images.ndim != 4
            or images.shape[1:] != self.input_shape[1:]
            or not len(images)
        ):
            raise ValueError(
                "`images` must have shape (n, "
                f"{', '.join(map(str, self.input_shape[1:]))}), with n at "
                f"least 1. Received: images of shape {images.shape}"
            )
        quantized = _quantize(images, self._input)
        progress = None
        if verbose:
            import keras

            progress = keras.utils.Progbar(len(images), unit_name="image")
        outputs = []
        for number, image in enumerate(quantized, start=1):
            self._set_input(image[None])
            self.invoke()
            outputs.append(
                self._interpreter.get_tensor(self._output["index"])[0]
            )
            if progress is not None:
                progress.update(number)
        return _dequantize(np.stack(outputs), self._output)

    def invoke(self) -> None:
        """Runs the model once on the input set last; for timing."""
        self._interpreter.invoke()

    def operations(self) -> list[Operation]:
        """The file's operations; see `read_operations`."""
        with open(self.path, "rb") as file:
            return read_operations(file.read())

    def _set_input(self, batch: np.ndarray) -> None:
        self._interpreter.set_tensor(self._input["index"], batch)


def read_operations(content: bytes) -> list[Operation]:
    """Lists the operations of a `.tflite` file, in order.

    Read off the file itself: a loaded interpreter hides the operations that
    its delegates take over.

    Args:
        content: the file's bytes.

    Raises:
        ImportError: if `ai-edge-litert` is not installed.
    """
    schema = load_optional("ai_edge_litert.schema_py_generated", EXTRA)
    op_names = _names(schema.BuiltinOperator)
    type_names = _names(schema.TensorType)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    return [
        Operation(
            op_names[_code(model.operatorCodes[operator.opcodeIndex])],
            tuple(
                type_names[graph.tensors[k].type]
                for k in (*operator.inputs, *operator.outputs)
                if k >= 0  # an operand that is left out has number -1
            ),
        )
        for graph in model.subgraphs
        for operator in graph.operators
    ]


def _names(enumeration: Any) -> dict[int, str]:
    values = vars(enumeration).items()
    return {code: name for name, code in values if isinstance(code, int)}


def _code(operator_code: Any) -> int:
    # Old files hold the code in one field, new ones in the other.
    return max(operator_code.builtinCode, operator_code.deprecatedBuiltinCode)


def median_latencies(
    models: Sequence[LiteRTModel], rounds: int = 60, warm_up: int = 10
) -> list[float]:
    """Times models side by side, one run of each in turn.

    Args:
        models: models to compare, each with the threads it was made with.
        rounds: number of timed runs of each.
        warm_up: number of runs of each before those.

    Returns:
        The median time of one image in milliseconds, for each model.
    """
    for model in models:
        shape, dtype = model.input_shape, model.input_dtype
        model._set_input(np.zeros(shape, dtype))
    times: list[list[float]] = [[] for _ in models]
    for round_number in range(warm_up + rounds):
        for model, measured in zip(models, times, strict=True):
            start = time.perf_counter()
            model.invoke()
            if round_number >= warm_up:
                measured.append(time.perf_counter() - start)
    return [1000 * float(np.median(measured)) for measured in times]


def _quantize(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(detail["dtype"])
    if np.issubdtype(dtype, np.floating):
        return values.astype(dtype)
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(dtype)
    levels = np.round(values / scale) + zero_point
    return np.clip(levels, limits.min, limits.max).astype(dtype)


def _dequantize(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    if np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float32)
    scale, zero_point = detail["quantization"]
    return ((values.astype(np.float32) - zero_point) * scale).astype(np.float32)
