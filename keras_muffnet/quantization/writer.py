"""Writes down the steps that the calls of a graph become, rule by rule."""

import collections
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NoReturn

import keras
import numpy as np

from keras_muffnet.graph import Call
from keras_muffnet.graph import Graph
from keras_muffnet.quantization.steps import Step
from keras_muffnet.quantization.steps import refuse

# For each kind of layer or operation a function of the writer and the numbers
# of the tensors that it is called on. It writes steps, and returns the number
# of the tensor that is the output, or a list of several.
Rules = Mapping[str, Callable[..., Any]]


class Writer:
    """Writes down the steps of a graph, call by call.

    A rule finds in it the present call and its layer or operation.
    """

    def __init__(self, graph: Graph, rules: Rules) -> None:
        self.graph = graph
        self.rules = rules
        self.steps: list[Step] = []
        self.number = {id(graph.inputs[0]): 0}
        self.taken = {call.operation.name for call in graph.calls}
        self.parts: dict[tuple[str, str], str] = {}
        self.calls_of: collections.Counter[str] = collections.Counter()
        self.readers = collections.Counter(
            id(x) for call in graph.calls for x in call.inputs
        )

    def write(self) -> tuple[list[Step], tuple[int, ...]]:
        """Returns the steps, and the numbers of the model's outputs."""
        for call in self.graph.calls:
            self._write_call(call)
        outputs = tuple(self.number[id(x)] for x in self.graph.outputs)
        return self.steps, outputs

    def _write_call(self, call: Call) -> None:
        operation = call.operation
        kinds = [k for k in kinds_of(operation) if k in self.rules]
        rule = self.rules[kinds[0]] if kinds else None
        if rule is None:
            known = sorted({kind.removeprefix("op ") for kind in self.rules})
            refuse(
                operation.name,
                f"({type(operation).__name__}) is of none of the known kinds: "
                f"{', '.join(known)}",
            )
        if getattr(operation, "data_format", None) == "channels_first":
            refuse(operation.name, "must take channels-last images")
        self.call = call
        self.layer = operation
        self.calls_of[operation.name] += 1
        results = rule(self, *[self.number[id(x)] for x in call.inputs])
        if isinstance(results, int):
            results = [results]
        for x, result in zip(call.outputs, results, strict=True):
            self.number[id(x)] = result

    def add(
        self,
        kind: str,
        *inputs: int,
        part: str = "",
        weights: Sequence[Any] = (),
        **settings: Any,
    ) -> int:
        """Writes a step of the present layer and returns its tensor."""
        layer_name = self.name_part(part) if part else self.layer.name
        count = self.calls_of[self.layer.name]
        name = layer_name + (f"_call{count}" if count > 1 else "")
        arrays = tuple(np.asarray(w, np.float32) for w in weights)
        sources = (self.layer.name,)
        self.steps.append(
            Step(name, layer_name, kind, inputs, settings, arrays, sources)
        )
        return len(self.steps)

    def name_part(self, part: str) -> str:
        """A name for a part of the present layer, which no layer has."""
        key = (self.layer.name, part)
        name = f"{self.layer.name}_{part}"
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

    def shape(self) -> tuple[int, ...]:
        """The shape of the present call's output, batch axis included."""
        return tuple(self.call.outputs[0].shape)

    def refuse(self, reason: str) -> NoReturn:
        """Raises for the present layer."""
        refuse(self.layer.name, f"({type(self.layer).__name__}) {reason}")


def kinds_of(operation: Any) -> list[str]:
    """What rules for a layer or operation are listed under."""
    if isinstance(operation, keras.layers.Layer):
        return [type(operation).__name__]
    # Functions of keras.ops, recorded when they are called on Keras's tensors.
    return [f"op {type(operation).__name__}"]
