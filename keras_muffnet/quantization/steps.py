"""The operations that are quantized, in which a Keras model is rewritten."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import NoReturn

import numpy as np

from keras_muffnet.graph import Graph

# The kinds that have weights: a kernel and a bias.
KERNELS = ("Conv2D", "Conv2DTranspose", "Dense", "DepthwiseConv2D")

# A layer or function that stays as it is, in float; its settings are
# "operation", and "arguments" in which a `Slot` stands for each tensor.
FOREIGN = "Foreign"

# The first input's name among the steps; others have a number behind it.
INPUT_RANGE = "input_range"


class Step(NamedTuple):
    """One operation. The step at index k makes tensor k + 1.

    Attributes:
        name: a name of its own: that of the Keras layer, or one made from it.
        layer_name: the same for all calls of one layer, which share weights.
        kind: "Affine" or the name of a layer class, which Keras 2 and 3 share.
        inputs: numbers of the tensors it reads; 0 stands for the inputs.
        settings: arguments of the layer.
        weights: kernel and, where there is one, bias; scale and offset of each
            channel for "Affine"; otherwise none.
        scale: what each output channel of the Keras layer's kernel has been
            multiplied by.
        scale_behind: the part of it from behind the last batch normalization.
        sources: names of the Keras layers that it stands for, the first of
            which has the kernel.
        range: number of the range that its output is quantized with; None
            where its output is not quantized.
        bits: bits of the kernel, 0 for a step left in float.
        trainable: False for weights that no kernel of the model became, and
            for those of a layer that is not trained.
        trains_bias: whether the bias is trained, if the kernel is.
        per_channel: whether the kernel's output channels have a range each.
        penalties: regularizers and constraints by the name of the argument.
    """

    name: str
    layer_name: str
    kind: str
    inputs: tuple[int, ...]
    settings: Mapping[str, Any] = {}
    weights: tuple[np.ndarray, ...] = ()
    sources: tuple[str, ...] = ()
    scale: Any = 1.0
    scale_behind: Any = 1.0
    range: int | None = None
    bits: int = 8
    trainable: bool = True
    trains_bias: bool = True
    per_channel: bool = True
    penalties: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Slot:
    """Stands for the input of a number among a call's arguments."""

    number: int


class Lowered(NamedTuple):
    """A model as steps.

    Attributes:
        input_shapes: of the inputs, without the batch axis.
        steps: in an order in which they can run. Those of kind "Input" are
            first, one for each input.
        outputs: numbers of the tensors that the model gives.
        layers: the model's layers and functions by their names in the steps:
            where several have one name, a number is behind it.
        graph: the calls that the steps stand for.
    """

    input_shapes: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    layers: Mapping[str, Any]
    graph: Graph


def count_readers(steps: Sequence[Step], outputs: Sequence[int]) -> list[int]:
    """For each tensor, how many steps read it; being an output counts too."""
    counts = [0] * (len(steps) + 1)
    for number in (*outputs, *(x for step in steps for x in step.inputs)):
        counts[number] += 1
    return counts


class Rewriting:
    """A list of steps made from another, and where its tensors went."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.number = [0]

    def add(self, step: Step) -> int:
        """Adds a step and returns the number of its tensor."""
        self.steps.append(step)
        return len(self.steps)


class RefusedError(ValueError):
    """That a layer cannot be quantized.

    Attributes:
        problem: the layer and the reason.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"`model` cannot be quantized: {problem}")
        self.problem = problem


def refuse(name: str, reason: str) -> NoReturn:
    """Raises for a layer that cannot be quantized."""
    raise RefusedError(f"layer {name!r} {reason}")
