"""Writes down the steps that the calls of a graph become, rule by rule."""

import collections
import inspect
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NoReturn

import keras
import numpy as np

from keras_muffnet.graph import Call
from keras_muffnet.graph import Graph
from keras_muffnet.quantization.layouts import has_channels_first
from keras_muffnet.quantization.layouts import kind_of
from keras_muffnet.quantization.steps import FOREIGN
from keras_muffnet.quantization.steps import INPUT_RANGE
from keras_muffnet.quantization.steps import RefusedError
from keras_muffnet.quantization.steps import Slot
from keras_muffnet.quantization.steps import Step
from keras_muffnet.quantization.steps import refuse

# For each kind of layer or operation a function of the writer and the numbers
# of the tensors that it is called on. It writes steps, and returns the number
# of the tensor that is the output, or a list of several.
Rules = Mapping[str, Callable[..., Any]]

# Sizes are numbers but for the batch axis, which has None.
Shape = tuple[Any, ...]


class Writer:
    """Writes down the steps of a graph, call by call.

    A rule finds in it the present call and its layer or operation.

    Sequences, `(batch, length, channels)`, are written as images of height 1,
    as LiteRT does itself: all shapes and axes here are those of the images.
    Images whose channels are first in the model have them last here, from the
    first layer that has a data format on to one that goes by other axes.
    """

    def __init__(
        self,
        graph: Graph,
        rules: Rules,
        float_layers: Collection[str] = (),
        keeps_unknown: bool = False,
    ) -> None:
        self.graph = graph
        self.rules = rules
        self.float_layers = {*float_layers}
        self.keeps_unknown = keeps_unknown
        # Of the layers without a rule that fits: all, and those that are not
        # to be left in float.
        self.kept: list[str] = []
        self.problems: list[str] = []
        self.steps: list[Step] = []
        self.layers: dict[str, Any] = {}
        self.number: dict[int, int] = {}
        # Of the tensors whose channels are first in the model and last here;
        # and the others of each, where both are read.
        self.moved: set[int] = set()
        self.turned: dict[tuple[int, bool], int] = {}
        self.channels_first = False
        self.names: dict[int, str] = {}
        # Names that the engines use themselves.
        self.taken = {x.name for x in graph.inputs} | {*self._input_names()}
        self.parts: dict[tuple[str, str], str] = {}
        self.calls_of: collections.Counter[str] = collections.Counter()
        self.used: collections.Counter[str] = collections.Counter()
        self.readers = collections.Counter(
            id(x) for call in graph.calls for x in call.inputs
        )

    def write(self) -> tuple[list[Step], tuple[int, ...]]:
        """Returns the steps, and the numbers of the model's outputs."""
        self._write_inputs()
        self._name_layers()
        for call in self.graph.calls:
            self._write_call(call)
        if self.problems:
            problems = dict.fromkeys(self.problems)
            raise RefusedError(
                f"{'; '.join(problems)}. To leave such layers in float, name "
                'them in `float_layers`, or give it "unknown"; or say by '
                "`register_rule` what they do"
            )
        outputs = tuple(map(self._write_output, self.graph.outputs))
        return self.steps, outputs

    def _input_names(self) -> list[str]:
        count = len(self.graph.inputs)
        return [INPUT_RANGE + (f"_{k}" if k else "") for k in range(count)]

    def _write_inputs(self) -> None:
        names = self._input_names()
        for k, (x, name) in enumerate(
            zip(self.graph.inputs, names, strict=True)
        ):
            self.steps.append(Step(name, name, "Input", (0,), {"index": k}))
            self.number[id(x)] = len(self.steps)
        for x, name in zip(self.graph.inputs, names, strict=True):
            if stored(x.shape) != tuple(x.shape):
                name = self._free(f"{name}_as_map")
                settings = {"target_shape": stored(x.shape)[1:]}
                step = Step(
                    name, name, "Reshape", (self.number[id(x)],), settings
                )
                self.steps.append(step)
                self.number[id(x)] = len(self.steps)

    def _write_output(self, x: Any) -> int:
        number = self._number(x, moved=False)
        if stored(x.shape) == tuple(x.shape):
            return number
        name = self._free(f"{self.steps[number - 1].name}_as_sequence")
        settings = {"target_shape": tuple(x.shape[1:])}
        self.steps.append(Step(name, name, "Reshape", (number,), settings))
        return len(self.steps)

    def _name_layers(self) -> None:
        """Gives layers of one name, as of two backbones, names of their own."""
        for call in self.graph.calls:
            if id(call.operation) not in self.names:
                name = self._free(call.name)
                self.names[id(call.operation)] = name
                self.layers[name] = call.operation

    def _free(self, name: str) -> str:
        tried, count = name, 1
        while tried in self.taken:
            count += 1
            tried = f"{name}_{count}"
        self.taken.add(tried)
        return tried

    def _write_call(self, call: Call) -> None:
        operation = call.operation
        self.call = call
        self.layer = operation
        self.name = self.names[id(operation)]
        self.calls_of[self.name] += 1
        self.used.clear()
        before, turned = len(self.steps), dict(self.turned)
        try:
            results = self._apply_rule(call)
        except RefusedError as error:
            self.moved.difference_update(map(id, call.outputs))
            self.channels_first = False
            self.turned = turned
            named = {self.name, operation.name} & self.float_layers
            if not (named or self.keeps_unknown):
                self.problems.append(error.problem)
            self.kept.append(error.problem)
            del self.steps[before:]
            results = self._write_foreign(call)
        if isinstance(results, int):
            results = [results]
        for x, result in zip(call.outputs, results, strict=True):
            self.number[id(x)] = result

    def _apply_rule(self, call: Call) -> Any:
        operation = call.operation
        rule = self.rules.get(kind_of(operation))
        if rule is None:
            reason = "is of none of the known kinds"
            if call.closed:
                reason += f", {call.closed}"
            self.refuse(reason)
        moved = self.channels_first = has_channels_first(
            call, any(id(x) in self.moved for x in call.inputs)
        )
        inputs = [self._number(x, moved) for x in call.inputs]
        try:
            inspect.signature(rule).bind(self, *inputs)
        except TypeError:  # a mask, as a rule
            self.refuse(f"must not be called on {len(inputs)} tensors")
        rank = len(call.inputs[0].shape)
        if moved:
            self.moved.update(
                id(x) for x in call.outputs if len(x.shape) == rank > 2
            )
        return rule(self, *inputs)

    def _number(self, x: Any, moved: bool) -> int:
        """The number of a tensor with its channels last here, or as it is."""
        number, rank = self.number[id(x)], len(x.shape)
        if rank < 3 or (id(x) in self.moved) == moved:
            return number
        key = id(x), moved
        if key not in self.turned:
            last = (*range(2, rank), 1)
            order = last if moved else (rank - 1, *range(1, rank - 1))
            if rank == 3:
                order = (1, 3, 2)
            where = "last" if moved else "first"
            name = self.steps[number - 1].name
            name = self._free(f"{name}_channels_{where}")
            settings = {"dims": order}
            self.steps.append(Step(name, name, "Permute", (number,), settings))
            self.turned[key] = len(self.steps)
        return self.turned[key]

    def _write_foreign(self, call: Call) -> list[int]:
        """Writes a layer as it is, for each of its outputs."""
        self.used.clear()
        inputs = []
        for k, x in enumerate(call.inputs):
            number = self._number(x, moved=False)
            if stored(x.shape) != tuple(x.shape):
                number = self.reshape(number, tuple(x.shape), part=f"given{k}")
            inputs.append(number)
        slots = iter(map(Slot, range(len(inputs))))
        arguments = keras.tree.map_structure(
            lambda x: next(slots) if isinstance(x, keras.KerasTensor) else x,
            [list(call.args), dict(call.kwargs)],
        )
        results = []
        for k, x in enumerate(call.outputs):
            number = self.add(
                FOREIGN,
                *inputs,
                part=f"output{k}" if k else "",
                operation=call.operation,
                arguments=arguments,
                output=k,
                call=(self.name, self.calls_of[self.name]),
            )
            if stored(x.shape) != tuple(x.shape):
                number = self.reshape(number, stored(x.shape), part=f"made{k}")
            results.append(number)
        return results

    def add(
        self,
        kind: str,
        *inputs: int,
        part: str = "",
        weights: Sequence[Any] = (),
        trainable: bool = True,
        **settings: Any,
    ) -> int:
        """Writes a step of the present layer and returns its tensor.

        Args:
            kind: the step's kind.
            *inputs: the tensors that it reads.
            part: what of the layer it is, if not all of it.
            weights: see `Step`.
            trainable: see `Step`.
            **settings: see `Step`.
        """
        self.used[part] += 1
        if self.used[part] > 1:
            part = f"{part}{self.used[part]}"
        layer_name = self.name_part(part) if part else self.name
        count = self.calls_of[self.name]
        name = layer_name + (f"_call{count}" if count > 1 else "")
        arrays = tuple(np.asarray(w, np.float32) for w in weights)
        step = Step(name, layer_name, kind, inputs, settings, arrays)
        self.steps.append(
            step._replace(sources=(self.name,), trainable=trainable)
        )
        return len(self.steps)

    def constant(self, value: Any) -> int:
        """Writes a tensor of constants, without a batch axis."""
        value = np.asarray(value, np.float32)
        return self.add("Constant", 0, part="constant", value=value.tolist())

    def reshape(self, x: int, shape: Shape, part: str = "shape") -> int:
        """Writes a reshaping, with a batch axis of any size."""
        return self.add("Reshape", x, part=part, target_shape=shape[1:])

    def permute(self, x: int, order: Sequence[int], part: str = "axes") -> int:
        """Writes a transposition, the batch axis, 0, included."""
        if list(order) == sorted(order):
            return x
        return self.add("Permute", x, part=part, dims=tuple(order[1:]))

    def name_part(self, part: str) -> str:
        """A name for a part of the present layer, which no layer has."""
        key = (self.name, part)
        name = f"{self.name}_{part}"
        while key not in self.parts:
            if name not in self.taken:
                self.taken.add(name)
                self.parts[key] = name
            name += "_"
        return self.parts[key]

    def is_output(self) -> bool:
        """Whether the present call's output is only the model's output."""
        (x,) = self.call.outputs
        outputs = [id(y) for y in self.graph.outputs]
        return id(x) in outputs and not self.readers[id(x)]

    def shape(self, number: int = 0) -> Shape:
        """The shape of the present call's output, batch axis included."""
        x = self.call.outputs[number]
        return stored(x.shape, id(x) in self.moved)

    def input_shape(self, number: int = 0) -> Shape:
        """The shape of the present call's input, batch axis included."""
        return stored(self.call.inputs[number].shape, self.channels_first)

    def axis(self, axis: int) -> int:
        """Where an axis of the present call's input is here."""
        rank = len(self.call.inputs[0].shape)
        axis %= rank
        if axis == 0:
            self.refuse("must leave the batch axis alone")
        if self.channels_first:
            axis = rank - 1 if axis == 1 else axis - 1
        return axis + (1 if rank == 3 else 0)

    def axes(self, axis: Any) -> tuple[int, ...]:
        """The same for several axes."""
        if axis is None:
            self.refuse("must leave the batch axis alone")
        given = axis if isinstance(axis, (tuple, list)) else (axis,)
        return tuple(sorted(self.axis(a) for a in given))

    def laid_out(self, value: Any) -> np.ndarray:
        """A constant operand of the present call, with its axes as here."""
        array = np.asarray(keras.ops.convert_to_numpy(value), np.float32)
        rank = len(self.call.outputs[0].shape)
        if not self.channels_first or array.size == 1:
            return array
        array = array.reshape((1,) * (rank - array.ndim) + array.shape)
        return np.moveaxis(array, 1, -1)

    def constants(self) -> list[Any]:
        """What the present call was given other than tensors."""
        given = [*self.call.args, *self.call.kwargs.values()]
        return [x for x in given if not isinstance(x, keras.KerasTensor)]

    def argument(self, name: str, position: int) -> Any:
        """What the present call was given by name or, else, by position."""
        if name in self.call.kwargs or position >= len(self.call.args):
            return self.call.kwargs.get(name)
        return self.call.args[position]

    def single(self, value: Any, name: str) -> float:
        """One number that the present call was given; refuses several."""
        if isinstance(value, keras.KerasTensor):
            self.refuse(f"must have a constant {name}")
        array = np.asarray(keras.ops.convert_to_numpy(value))
        if array.size != 1:
            self.refuse(
                f"must have one number as its {name}. "
                f"Found: an array of shape {array.shape}"
            )
        return float(array.reshape(()))

    def refuse(self, reason: str) -> NoReturn:
        """Raises for the present layer."""
        path = getattr(self.layer, "path", None)
        where = "" if path in (None, self.layer.name) else f", at {path!r},"
        refuse(self.name, f"({type(self.layer).__name__}){where} {reason}")


def stored(shape: Sequence[int | None], moved: bool = False) -> Any:
    """The shape that a tensor has among the steps, batch axis included.

    Args:
        shape: the shape in the model.
        moved: whether its channels are first there and last here.
    """
    shape = tuple(shape)
    if moved and len(shape) > 2:
        shape = (shape[0], *shape[2:], shape[1])
    return (shape[0], 1, *shape[1:]) if len(shape) == 3 else shape
