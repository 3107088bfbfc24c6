"""Runs and inspects LiteRT (`.tflite`) files of image models."""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np


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
        self._interpreter = _litert("interpreter").Interpreter(
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
            ValueError: if the images do not have the model's input shape.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.input_shape[1:]:
            raise ValueError(
                "`images` must have shape (n, "
                f"{', '.join(map(str, self.input_shape[1:]))}). "
                f"Received: images of shape {images.shape}"
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

    def ops(self) -> list[str]:
        """Names of the file's operations, in order, such as "CONV_2D"."""
        schema = _litert("schema_py_generated")
        names = {
            code: name
            for name, code in vars(schema.BuiltinOperator).items()
            if isinstance(code, int)
        }
        with open(self.path, "rb") as file:
            model = schema.Model.GetRootAsModel(file.read(), 0)
        codes = [
            model.OperatorCodes(k) for k in range(model.OperatorCodesLength())
        ]
        ops = []
        for k in range(model.SubgraphsLength()):
            graph = model.Subgraphs(k)
            for n in range(graph.OperatorsLength()):
                code = codes[graph.Operators(n).OpcodeIndex()]
                # Old files hold the code in the byte, new ones in the int.
                ops.append(
                    names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
                )
        return ops

    def _set_input(self, batch: np.ndarray) -> None:
        self._interpreter.set_tensor(self._input["index"], batch)


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


def _litert(module: str) -> Any:
    # Loaded on use: a package that only some users install.
    import importlib

    try:
        return importlib.import_module(f"ai_edge_litert.{module}")
    except ImportError as error:
        raise ImportError(
            "LiteRT files need ai-edge-litert: "
            'pip install "keras-muffnet[quantization]"'
        ) from error


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
