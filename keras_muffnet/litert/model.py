"""Runs and inspects LiteRT (`.tflite`) files."""

import math
import os
import re
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from keras_muffnet._optional import load_optional

# What brings ai-edge-litert.
EXTRA = "quantization"

# They change how a number is written, not the number.
CASTS = ("QUANTIZE", "DEQUANTIZE")


class Operation(NamedTuple):
    """One operation of a `.tflite` file.

    Attributes:
        name: such as "CONV_2D".
        dtypes: types of the tensors it reads and writes, such as "INT8".
    """

    name: str
    dtypes: tuple[str, ...]


class Node(NamedTuple):
    """An operation and the numbers of its tensors.

    Attributes:
        operation: the operation.
        inputs: tensors that it reads, weights included.
        outputs: tensors that it writes.
    """

    operation: Operation
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class _Graph(NamedTuple):
    """A graph of a `.tflite` file.

    Attributes:
        nodes: its operations, in order.
        ends: the numbers of its inputs' and outputs' tensors.
    """

    nodes: list[Node]
    ends: frozenset[int]


class Tensor(NamedTuple):
    """What a `.tflite` file says of one of its tensors.

    Attributes:
        name: made of the names of the layers it comes from.
        size: number of values.
        scale: step between two levels; NaN for one that is not quantized, or
            that has a scale for each channel.
        limits: the numbers that its lowest and its highest level stand for.
    """

    name: str
    size: int
    scale: float
    limits: tuple[float, float]


class LiteRTModel:
    """A `.tflite` file, on the CPU.

    ```python
    from keras_muffnet.litert import LiteRTModel

    scores = LiteRTModel("model.tflite").predict(images[:1])
    ```

    Attributes:
        path: the file.
        input_shape: shape of the first input, batch axis of 1 included.
        input_dtype: NumPy type of the file's first input, int8 for a quantized
            one.
        input_shapes: the same for all inputs, by name.
        inputs: numbers of the inputs' tensors, in the order of the names.
        outputs: numbers of the outputs' tensors, in the model's order.
        ends: the numbers of both.

    Args:
        path: the `.tflite` file.
        threads: number of CPU threads.
        keep_tensors: whether to keep what each operation gives, for `values`.
            The model then runs without delegates, that is more slowly and
            with some values rounded the other way.

    Raises:
        ImportError: if `ai-edge-litert` is not installed.
        ValueError: if the file is none of that kind.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int = 1,
        keep_tensors: bool = False,
    ) -> None:
        self.path = os.fspath(path)
        litert = load_optional("ai_edge_litert.interpreter", EXTRA)
        resolver = litert.OpResolverType
        self._interpreter = litert.Interpreter(
            model_path=self.path,
            num_threads=threads,
            experimental_preserve_all_tensors=keep_tensors,
            experimental_op_resolver_type=(
                resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES
                if keep_tensors
                else resolver.AUTO
            ),
        )
        self._interpreter.allocate_tensors()
        self._inputs, self._outputs = self._details()
        self.inputs = tuple(int(d["index"]) for d in self._inputs.values())
        self.outputs = tuple(int(d["index"]) for d in self._outputs.values())
        self.ends = (*self.inputs, *self.outputs)
        self.input_shapes = {
            name: tuple(int(size) for size in detail["shape"])
            for name, detail in self._inputs.items()
        }
        first = next(iter(self._inputs))
        self.input_shape = self.input_shapes[first]
        self.input_dtype = np.dtype(self._inputs[first]["dtype"])

    def _details(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The inputs and outputs by their names in the file's signature."""
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        if len(self._interpreter.get_signature_list()) != 1:
            # Of old converters: there are no names but the tensors'.
            return (
                {detail["name"]: detail for detail in inputs},
                {detail["name"]: detail for detail in outputs},
            )
        signature = self._interpreter.get_signature_runner()
        named = signature.get_input_details(), signature.get_output_details()
        by_name = [
            {name: details[name] for name in sorted(details, key=_by_number)}
            for details in named
        ]
        return by_name[0], by_name[1]

    def predict(self, images: Any, verbose: int = 0) -> Any:
        """Runs the model on examples one by one.

        Args:
            images: float batch `(n, height, width, channels)`, or of another
                shape that the model takes, scaled as the float model wants it.
                For several inputs a list of them, in the order of
                `input_shapes`, or a dict by name. A quantized input is
                quantized here.
            verbose: 1 shows a progress bar.

        Returns:
            float32 array of shape `(n, ...)`, dequantized where needed. For
            several outputs a list of them, in the model's order; if they have
            names, a dict.

        Raises:
            ValueError: if there are no images or not of the model's input
                shape.
        """
        batches = self._checked(images)
        quantized = [
            _quantize(x, detail)
            for x, detail in zip(batches, self._inputs.values(), strict=True)
        ]
        progress = None
        if verbose:
            import keras

            progress = keras.utils.Progbar(len(quantized[0]), unit_name="image")
        outputs: list[list[np.ndarray]] = [[] for _ in self.outputs]
        for number, example in enumerate(zip(*quantized, strict=True), 1):
            self._set_inputs(example)
            self.invoke()
            for values, index in zip(outputs, self.outputs, strict=True):
                values.append(self._interpreter.get_tensor(index)[0])
            if progress is not None:
                progress.update(number)
        found = {
            name: _dequantize(np.stack(values), detail)
            for values, (name, detail) in zip(
                outputs, self._outputs.items(), strict=True
            )
        }
        if len(found) == 1:
            return next(iter(found.values()))
        if all(re.fullmatch(r"output_\d+", name) for name in found):
            return list(found.values())
        return found

    def _checked(self, images: Any) -> list[np.ndarray]:
        """One array for each input."""
        shapes = self.input_shapes
        if isinstance(images, Mapping):
            if images.keys() != shapes.keys():
                raise ValueError(
                    f"`images` must have the keys {', '.join(shapes)}. "
                    f"Received: {', '.join(images)}"
                )
            images = [images[name] for name in shapes]
        elif len(shapes) == 1:
            images = [images]
        elif not isinstance(images, (list, tuple)) or (
            len(images) != len(shapes)
        ):
            raise ValueError(
                f"`images` must be {len(shapes)} arrays, for the inputs "
                f"{', '.join(shapes)}. Received: {type(images).__name__}"
            )
        batches = [np.asarray(x) for x in images]
        for x, shape in zip(batches, shapes.values(), strict=True):
            if x.shape != (len(batches[0]), *shape[1:]) or not len(x):
                raise ValueError(
                    "`images` must have shape (n, "
                    f"{', '.join(map(str, shape[1:]))}), with n at least 1. "
                    f"Received: images of shape {x.shape}"
                )
        return batches

    def values(self, images: Any, numbers: Sequence[int]) -> list[np.ndarray]:
        """Runs the model on images and returns what is inside it.

        Args:
            images: as for `predict`.
            numbers: numbers of the tensors wanted. Others than `ends` need a
                model made with `keep_tensors`.

        Returns:
            For each tensor its values, dequantized where needed, with one more
            axis in front for the images.
        """
        found: list[list[np.ndarray]] = [[] for _ in numbers]
        quantized = [
            _quantize(x, detail)
            for x, detail in zip(
                self._checked(images), self._inputs.values(), strict=True
            )
        ]
        for example in zip(*quantized, strict=True):
            self._set_inputs(example)
            self.invoke()
            for values, number in zip(found, numbers, strict=True):
                values.append(self._interpreter.get_tensor(number))
        details = {
            detail["index"]: detail
            for detail in self._interpreter.get_tensor_details()
        }
        return [
            _dequantize(np.stack(values), details[number])
            for values, number in zip(found, numbers, strict=True)
        ]

    def tensors(self) -> dict[int, Tensor]:
        """The file's tensors by number."""
        found = {}
        for detail in self._interpreter.get_tensor_details():
            scale, zero_point = detail["quantization"]
            low = high = math.nan
            if scale:
                levels = np.iinfo(detail["dtype"])
                low = scale * (levels.min - zero_point)
                high = scale * (levels.max - zero_point)
            found[int(detail["index"])] = Tensor(
                detail["name"],
                math.prod(map(int, detail["shape"])),
                scale or math.nan,
                (low, high),
            )
        return found

    def invoke(self) -> None:
        """Runs the model once on the input set last; for timing."""
        self._interpreter.invoke()

    def operations(self) -> list[Operation]:
        """The file's operations; see `read_operations`."""
        with open(self.path, "rb") as file:
            return read_operations(file.read())

    def nodes(self) -> list[Node]:
        """The operations of the file's main graph, with their tensors."""
        with open(self.path, "rb") as file:
            return _read_graphs(file.read())[0].nodes

    def _set_inputs(self, example: Sequence[np.ndarray]) -> None:
        for number, x in zip(self.inputs, example, strict=True):
            self._interpreter.set_tensor(number, x[None])

    def clear_inputs(self) -> None:
        """Sets all inputs to zeros; for timing."""
        self._set_inputs(
            [
                np.zeros(detail["shape"][1:], detail["dtype"])
                for detail in self._inputs.values()
            ]
        )


def _by_number(name: str) -> tuple[str, int, str]:
    """Sorts `output_10` behind `output_9`."""
    found = re.fullmatch(r"(.*?)(\d+)", name)
    return (found[1], int(found[2]), name) if found else (name, -1, name)


def read_operations(content: bytes) -> list[Operation]:
    """Lists the operations of a `.tflite` file, in order.

    Read off the file itself: a loaded interpreter hides the operations that
    its delegates take over.

    ```python
    import pathlib
    from keras_muffnet.litert import read_operations

    content = pathlib.Path("model.tflite").read_bytes()
    print([operation.name for operation in read_operations(content)])
    ```

    Args:
        content: the file's bytes.

    Raises:
        ImportError: if `ai-edge-litert` is not installed.
    """
    graphs = _read_graphs(content)
    return [node.operation for graph in graphs for node in graph.nodes]


def find_departures(content: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Finds what a quantized `.tflite` file has besides integer operations.

    What gives the file's inputs and outputs another type is left out.

    Args:
        content: the file's bytes.

    Returns:
        The float operations and the requantizations, by name and number.

    Raises:
        ImportError: if `ai-edge-litert` is not installed.
    """
    in_float, requantizations = [], []
    graphs = _read_graphs(content)
    nodes = [(node, graph.ends) for graph in graphs for node in graph.nodes]
    for number, (node, ends) in enumerate(nodes):
        name, dtypes = node.operation
        if name in CASTS and ends.intersection(node.inputs + node.outputs):
            continue
        if any(dtype.startswith("FLOAT") for dtype in dtypes):
            in_float.append(f"{name} #{number}")
        elif name == "QUANTIZE":
            requantizations.append(f"{name} #{number}")
    return tuple(in_float), tuple(requantizations)


def _read_graphs(content: bytes) -> list[_Graph]:
    schema = load_optional("ai_edge_litert.schema_py_generated", EXTRA)
    op_names = _names(schema.BuiltinOperator)
    type_names = _names(schema.TensorType)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    graphs = []
    for graph in model.subgraphs:
        nodes = []
        for operator in graph.operators:
            # An operand that is left out has number -1.
            inputs = tuple(int(k) for k in operator.inputs if k >= 0)
            outputs = tuple(int(k) for k in operator.outputs if k >= 0)
            operation = Operation(
                op_names[
                    operator_of(model.operatorCodes[operator.opcodeIndex])
                ],
                tuple(
                    type_names[graph.tensors[k].type]
                    for k in (*inputs, *outputs)
                ),
            )
            nodes.append(Node(operation, inputs, outputs))
        ends = frozenset(map(int, (*graph.inputs, *graph.outputs)))
        graphs.append(_Graph(nodes, ends))
    return graphs


def _names(enumeration: Any) -> dict[int, str]:
    values = vars(enumeration).items()
    return {code: name for name, code in values if isinstance(code, int)}


def operator_of(operator_code: Any) -> int:
    """The number of the operation that a code of a file stands for."""
    # Old files hold the code in one field, new ones in the other.
    return max(operator_code.builtinCode, operator_code.deprecatedBuiltinCode)


def median_latencies(
    models: Sequence[LiteRTModel],
    rounds: int = 60,
    warm_up: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Times models side by side, one run of each in turn.

    Args:
        models: models to compare, each with the threads it was made with.
        rounds: number of timed runs of each.
        warm_up: number of runs of each before those.
        clock: gives seconds; `time.process_time` leaves out what other
            programs take of a busy machine.

    Returns:
        The median time of one image in milliseconds, for each model.
    """
    for model in models:
        model.clear_inputs()
    times: list[list[float]] = [[] for _ in models]
    for round_number in range(warm_up + rounds):
        for model, measured in zip(models, times, strict=True):
            start = clock()
            model.invoke()
            if round_number >= warm_up:
                measured.append(clock() - start)
    return [1000 * float(np.median(measured)) for measured in times]


def _quantize(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(detail["dtype"])
    if np.issubdtype(dtype, np.floating):
        return values.astype(dtype)
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(dtype)
    # Integers without a scale, such as pixels, stand for themselves.
    levels = np.round(values / (scale or 1)) + zero_point
    return np.clip(levels, limits.min, limits.max).astype(dtype)


def _dequantize(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    if np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float32)
    scale, zero_point = detail["quantization"]
    values = values.astype(np.float32) - zero_point
    return (values * (scale or 1)).astype(np.float32)
