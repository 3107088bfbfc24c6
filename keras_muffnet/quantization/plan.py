"""Where a model's activations are quantized, and which share one range.

A convolution, its batch normalisation and its ReLU become one integer
operation, and so do an addition and its ReLU. Such a unit's output is
quantized once, at its end: a fake quantization inside it would keep the
converter from folding it.

Slicing, concatenating and max-pooling move integers without changing them, so
all they join must have the same scale. Those tensors form a group with one
range, and every unit that feeds the group quantizes its output with it.
Otherwise the converter has to insert a requantization at each such place.
"""

import collections
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
from keras import layers

from keras_muffnet.graph import Call
from keras_muffnet.graph import Graph
from keras_muffnet.graph import trace
from keras_muffnet.layers import ChannelSlice

_CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)

# Their outputs are input values, moved or left as they are.
_PASSING = (
    ChannelSlice,
    layers.Concatenate,
    layers.Dropout,
    layers.GlobalMaxPooling2D,
    layers.Identity,
    layers.MaxPooling2D,
)

_COMPUTING = (
    *_CONVOLUTIONS,
    layers.Activation,
    layers.Add,
    layers.BatchNormalization,
    layers.Dense,
    layers.GlobalAveragePooling2D,
    layers.ReLU,
)

_RELU_FOLDS_INTO = (
    *_CONVOLUTIONS,
    layers.Add,
    layers.BatchNormalization,
    layers.Dense,
)

_ACTIVATIONS = {
    keras.activations.linear: "linear",
    keras.activations.relu: "relu",
    keras.activations.softmax: "softmax",
}

# `preprocess_input` gives (pixel - 128) / 128: each pixel is exactly a level.
INPUT_RANGE = (-1.0, 127 / 128)

# The model's input is tensor 0.
_INPUT = 0


class Step(NamedTuple):
    """One layer of a plan. The step at index k makes tensor k + 1.

    Attributes:
        layer: the Keras layer.
        inputs: numbers of the tensors it is called on; 0 is the model's input.
        activation: "linear" or "relu", where the layer has an activation.
        range: number of the range that its output is quantized with; None
            where its output is not quantized.
    """

    layer: keras.layers.Layer
    inputs: tuple[int, ...]
    activation: str | None
    range: int | None


class Plan(NamedTuple):
    """How a model is quantized.

    Attributes:
        input_shape: `(height, width, channels)` of an image.
        steps: the model's layers in an order in which they can run. The last
            one makes the logits: a softmax at the end is left out.
        ranges: for each range the names of the layers whose outputs share it.
            The first range is the input's and names none.
    """

    input_shape: tuple[int, int, int]
    steps: tuple[Step, ...]
    ranges: tuple[tuple[str, ...], ...]


def plan_quantization(model: keras.Model) -> Plan:
    """Plans the quantization of a model.

    Args:
        model: a functional or built sequential model with one input, a batch
            of channels-last images of known size, and one output.

    Raises:
        ValueError: naming the layer and the reason, if the model has a layer
            that cannot be quantized; or if its input or output is not as
            above.
    """
    graph = trace(model)
    shape = _image_shape(graph)
    steps = _steps(graph)
    folded = _folded(steps)
    group = _groups(steps)
    ranges: dict[int, list[str]] = {group[_INPUT]: []}
    quantized = []
    for k, step in enumerate(steps):
        if k in folded or _passes(step):
            quantized.append(step)
            continue
        root = group[k + 1]
        if root == group[_INPUT]:
            _refuse(
                step.layer,
                "is joined with the model's input, whose range is fixed",
            )
        ranges.setdefault(root, []).append(step.layer.name)
        quantized.append(step._replace(range=list(ranges).index(root)))
    return Plan(shape, tuple(quantized), tuple(map(tuple, ranges.values())))


def _image_shape(graph: Graph) -> tuple[int, int, int]:
    for name, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        if len(tensors) != 1:
            raise ValueError(
                f"`model` must have one {name}. Received a model with "
                f"{len(tensors)}"
            )
    shape = tuple(graph.inputs[0].shape[1:])
    if len(shape) != 3 or None in shape:
        raise ValueError(
            "`model` must take images of one size, (height, width, channels). "
            f"Received a model with input shape {shape}"
        )
    return shape


def _steps(graph: Graph) -> list[Step]:
    """The model's layers, without a final softmax and with no ranges yet."""
    number = {id(graph.inputs[0]): _INPUT}
    steps: list[Step] = []
    for call in graph.calls:
        layer = call.operation
        activation = _activation(layer)
        if activation == "softmax" and call is graph.calls[-1]:
            if isinstance(layer, layers.Activation):
                break
            activation = "linear"
        _check_layer(call, activation)
        if any(layer.name == step.layer.name for step in steps):
            _refuse(layer, "is called twice, or has another layer's name")
        inputs = tuple(number[id(x)] for x in call.inputs)
        steps.append(Step(layer, inputs, activation, None))
        number[id(call.outputs[0])] = len(steps)
    return steps


def _activation(layer: Any) -> str | None:
    activation = getattr(layer, "activation", None)
    if activation is None:
        return None
    return _ACTIVATIONS.get(activation, "another")


def _check_layer(call: Call, activation: str | None) -> None:
    layer = call.operation
    if type(layer) not in (*_PASSING, *_COMPUTING):
        known = sorted(kind.__name__ for kind in (*_PASSING, *_COMPUTING))
        _refuse(layer, f"is of none of the known kinds: {', '.join(known)}")
    if activation not in (None, "linear", "relu"):
        _refuse(
            layer,
            "must have a linear or ReLU activation, or a softmax if it is the "
            "last layer",
        )
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        _refuse(layer, "must take channels-last images")
    for setting, value in (("groups", 1), ("dilation_rate", (1, 1))):
        found = getattr(layer, setting, value)
        if found != value:
            _refuse(layer, f"must have {setting} {value}, but has {found}")
    if isinstance(layer, layers.BatchNormalization) and layer.axis not in (
        -1,
        len(call.inputs[0].shape) - 1,
    ):
        _refuse(layer, f"must be over the last axis, but is over {layer.axis}")
    if isinstance(layer, layers.ReLU) and (
        layer.negative_slope
        or layer.threshold
        or layer.max_value not in (None, 6)
    ):
        _refuse(layer, "must be a plain ReLU or ReLU6")
    if isinstance(layer, layers.Add) and len(call.inputs) != 2:
        _refuse(layer, f"must add two tensors, but adds {len(call.inputs)}")
    if isinstance(layer, layers.Dense) and len(call.inputs[0].shape) != 2:
        _refuse(layer, "must take vectors, of shape (batch, features)")


def _folded(steps: Sequence[Step]) -> set[int]:
    """Indices of the steps that the next one's operation folds into."""
    readers = collections.Counter(x for step in steps for x in step.inputs)
    folded = set()
    for step in steps:
        before = step.inputs[0] - 1
        if (
            before >= 0
            and readers[before + 1] == 1
            and _folds(step, steps[before])
        ):
            folded.add(before)
        elif isinstance(step.layer, layers.BatchNormalization):
            _refuse(
                step.layer,
                "must follow a convolution without an activation, whose "
                "output nothing else reads",
            )
    return folded


def _folds(step: Step, before: Step) -> bool:
    if before.activation == "relu":
        return False
    if isinstance(step.layer, layers.BatchNormalization):
        return isinstance(before.layer, _CONVOLUTIONS)
    is_relu = isinstance(step.layer, layers.ReLU) or (
        isinstance(step.layer, layers.Activation) and step.activation == "relu"
    )
    return is_relu and isinstance(before.layer, _RELU_FOLDS_INTO)


def _passes(step: Step) -> bool:
    if isinstance(step.layer, layers.Activation):
        return step.activation == "linear"
    return isinstance(step.layer, _PASSING)


def _groups(steps: Sequence[Step]) -> list[int]:
    """For each tensor a number that those joined with it have too."""
    parent = list(range(len(steps) + 1))

    def root(tensor: int) -> int:
        while parent[tensor] != tensor:
            tensor = parent[tensor]
        return tensor

    for k, step in enumerate(steps):
        if _passes(step):
            for tensor in step.inputs:
                parent[root(tensor)] = root(k + 1)
    return [root(tensor) for tensor in range(len(parent))]


def _refuse(layer: Any, reason: str) -> None:
    raise ValueError(
        f"`model` cannot be quantized: layer {layer.name!r} "
        f"({type(layer).__name__}) {reason}"
    )
