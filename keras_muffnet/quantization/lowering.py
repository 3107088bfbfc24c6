"""Rewrites a Keras model in the few operations that are quantized.

Whatever scales and shifts channels by constants (batch normalisation,
rescaling, the constants inside a hard sigmoid) becomes part of the convolution
before it, or a 1x1 depthwise convolution where there is none. Activations are
split into what LiteRT runs in integers: swish is sigmoid times x, hard sigmoid
a line cut off by a ReLU. What is left is a list of steps of some twenty kinds,
which both engines know how to build.
"""

import collections
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import NoReturn

import keras
import numpy as np
from keras import layers

from keras_muffnet.graph import Call
from keras_muffnet.graph import Graph
from keras_muffnet.graph import trace

# The kinds that have weights: a kernel and a bias.
KERNELS = ("Conv2D", "Dense", "DepthwiseConv2D")


class Step(NamedTuple):
    """One operation. The step at index k makes tensor k + 1.

    Attributes:
        name: a name of its own: that of the Keras layer, or one made from it.
        layer_name: the same for all calls of one layer, which share weights.
        kind: "Affine" or the name of a layer class, which Keras 2 and 3 share.
        inputs: numbers of the tensors it reads; 0 is the model's input.
        settings: arguments of the layer.
        weights: kernel and, where there is one, bias; scale and offset of each
            channel for "Affine"; otherwise none.
        scale: what each output channel of the Keras layer's kernel has been
            multiplied by.
        scale_behind: the part of it from behind the last batch normalisation.
        sources: names of the Keras layers that it stands for, the first of
            which has the kernel.
        range: number of the range that its output is quantized with; None
            where its output is not quantized.
        bits: bits of the kernel, 0 for a step left in float.
        trainable: False for weights that no kernel of the model became.
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


class Lowered(NamedTuple):
    """A model as steps.

    Attributes:
        input_shape: `(height, width, channels)` of an image.
        steps: in an order in which they can run.
        outputs: numbers of the tensors that the model gives.
    """

    input_shape: tuple[int, int, int]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]


def lower(model: keras.Model) -> Lowered:
    """Rewrites a model in steps.

    Args:
        model: a functional or built sequential model with one input, a batch
            of channels-last images of known size.

    Raises:
        ValueError: naming the layer and the reason, if the model has a layer
            that has no counterpart in integers; or if its input is not as
            above.
    """
    graph = trace(model)
    shape = _image_shape(graph)
    steps, outputs = _Writer(graph).write()
    steps, outputs = _fold_affine(steps, outputs)
    steps, outputs = _affine_to_depthwise(steps, outputs)
    return Lowered(shape, tuple(map(_with_uneven_bias, steps)), outputs)


def refuse(name: str, reason: str) -> NoReturn:
    """Raises for a layer that cannot be quantized."""
    raise ValueError(f"`model` cannot be quantized: layer {name!r} {reason}")


def _image_shape(graph: Graph) -> tuple[int, int, int]:
    if len(graph.inputs) != 1:
        raise ValueError(
            "`model` must have one input. Received a model with "
            f"{len(graph.inputs)}"
        )
    shape = tuple(graph.inputs[0].shape[1:])
    if len(shape) != 3 or None in shape:
        raise ValueError(
            "`model` must take images of one size, (height, width, channels). "
            f"Received a model with input shape {shape}"
        )
    return shape


class _Writer:
    """Writes down the steps of a graph, call by call."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.steps: list[Step] = []
        self.number = {id(graph.inputs[0]): 0}
        self.taken = {call.operation.name for call in graph.calls}
        self.parts: dict[tuple[str, str], str] = {}
        self.calls_of: collections.Counter[str] = collections.Counter()
        self.readers = collections.Counter(
            id(x) for call in graph.calls for x in call.inputs
        )

    def write(self) -> tuple[list[Step], tuple[int, ...]]:
        for call in self.graph.calls:
            self.write_call(call)
        outputs = tuple(self.number[id(x)] for x in self.graph.outputs)
        return self.steps, outputs

    def write_call(self, call: Call) -> None:
        operation = call.operation
        rule = next((_RULES[k] for k in _kinds(operation) if k in _RULES), None)
        if rule is None:
            known = sorted({kind.removeprefix("op ") for kind in _RULES})
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
        return tuple(self.call.outputs[0].shape)

    def refuse(self, reason: str) -> NoReturn:
        refuse(self.layer.name, f"({type(self.layer).__name__}) {reason}")

    def activate(self, x: int) -> int:
        """Writes the activation of a layer that has one."""
        activation = self.layer.activation
        for function, write in _ACTIVATIONS.items():
            if activation is function:
                return write(self, x)
        name = getattr(activation, "__name__", activation)
        if activation is keras.activations.softmax:
            if self.is_output():
                return x
            self.refuse("has a softmax, which only the last layer may have")
        known = ", ".join(f.__name__ for f in _ACTIVATIONS)
        self.refuse(f"must have one of the activations {known}. Found: {name}")


def _kinds(operation: Any) -> list[str]:
    if isinstance(operation, keras.layers.Layer):
        return [type(operation).__name__]
    # Functions of keras.ops, recorded when they are called on Keras's tensors.
    return [f"op {type(operation).__name__}"]


# Activations. A ReLU has `max_value` None, 6 or 1; with 1 it cuts off what the
# quantized model cuts off by its range.


def _relu(w: _Writer, x: int, max_value: float | None = None) -> int:
    return w.add("ReLU", x, part=_part(w, "relu"), max_value=max_value)


def _sigmoid(w: _Writer, x: int) -> int:
    part = _part(w, "sigmoid")
    return w.add("Activation", x, part=part, activation="sigmoid")


def _tanh(w: _Writer, x: int) -> int:
    return w.add("Activation", x, part=_part(w, "tanh"), activation="tanh")


def _silu(w: _Writer, x: int) -> int:
    gate = w.add("Activation", x, part="sigmoid", activation="sigmoid")
    return w.add("Multiply", x, gate, part="product")


def _hard_sigmoid(w: _Writer, x: int) -> int:
    line = _affine(w, x, 1 / 6, 0.5, part="line")
    return w.add("ReLU", line, part="cut", max_value=1.0)


def _hard_silu(w: _Writer, x: int) -> int:
    return w.add("Multiply", x, _hard_sigmoid(w, x), part="product")


def _part(w: _Writer, name: str) -> str:
    """Names the step by its layer alone where it is all of the layer."""
    return "" if isinstance(w.layer, (layers.Activation, layers.ReLU)) else name


_ACTIVATIONS: dict[Any, Callable[[_Writer, int], int]] = {
    keras.activations.linear: lambda w, x: x,
    keras.activations.relu: _relu,
    keras.activations.relu6: lambda w, x: _relu(w, x, 6.0),
    keras.activations.sigmoid: _sigmoid,
    keras.activations.tanh: _tanh,
    keras.activations.silu: _silu,
    keras.activations.hard_sigmoid: _hard_sigmoid,
    keras.activations.hard_silu: _hard_silu,
}


# Layers with kernels.


def _convolution(w: _Writer, x: int) -> int:
    layer = w.layer
    settings = {
        name: getattr(layer, name)
        for name in ("kernel_size", "strides", "padding", "dilation_rate")
    }
    if isinstance(layer, layers.DepthwiseConv2D):
        settings["depth_multiplier"] = layer.depth_multiplier
        kind = "DepthwiseConv2D"
    else:
        settings.update(filters=layer.filters, groups=layer.groups)
        kind = "Conv2D"
    weights = layer.get_weights()
    return w.activate(w.add(kind, x, weights=weights, **settings))


def _separable(w: _Writer, x: int) -> int:
    layer = w.layer
    depthwise, pointwise, *bias = layer.get_weights()
    x = w.add(
        "DepthwiseConv2D",
        x,
        part="depthwise",
        weights=[depthwise],
        kernel_size=layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        depth_multiplier=layer.depth_multiplier,
    )
    x = w.add(
        "Conv2D",
        x,
        part="pointwise",
        weights=[pointwise, *bias],
        kernel_size=(1, 1),
        strides=(1, 1),
        padding="valid",
        dilation_rate=(1, 1),
        filters=layer.filters,
        groups=1,
    )
    return w.activate(x)


def _dense(w: _Writer, x: int) -> int:
    if len(w.shape()) != 2:
        w.refuse("must take vectors, of shape (batch, features)")
    weights = w.layer.get_weights()
    return w.activate(w.add("Dense", x, weights=weights, units=w.layer.units))


# Scaling and shifting by constants.


def _affine(
    w: _Writer,
    x: int,
    scale: Any,
    offset: Any,
    part: str = "",
    is_norm: bool = False,
) -> int:
    """Writes x * scale + offset, with one number each for each channel."""
    rank, count = len(w.shape()), w.shape()[-1]
    if rank not in (2, 4):
        w.refuse("must take images or vectors")
    arrays = []
    for value in (scale, offset):
        value = np.asarray(keras.ops.convert_to_numpy(value), np.float32)
        if value.size not in (1, count) or (
            value.size > 1 and value.shape[-1] != count
        ):
            w.refuse(
                "must scale and shift by one constant, or by one a channel. "
                f"Found constants of shape {value.shape}"
            )
        arrays.append(np.broadcast_to(value.reshape(-1), (count,)))
    settings = {"rank": rank, "is_norm": is_norm}
    return w.add("Affine", x, part=part, weights=arrays, **settings)


def _batch_normalization(w: _Writer, x: int) -> int:
    layer = w.layer
    if layer.axis not in (-1, len(w.shape()) - 1):
        w.refuse(f"must be over the last axis, but is over {layer.axis}")
    as_array = keras.ops.convert_to_numpy
    scale = norm_scale(layer)
    offset = -as_array(layer.moving_mean) * scale
    if layer.center:
        offset = offset + as_array(layer.beta)
    return _affine(w, x, scale, offset, is_norm=True)


def norm_scale(layer: layers.BatchNormalization) -> np.ndarray:
    """What a batch normalisation multiplies each channel by."""
    as_array = keras.ops.convert_to_numpy
    scale = 1 / np.sqrt(as_array(layer.moving_variance) + layer.epsilon)
    return scale * as_array(layer.gamma) if layer.scale else scale


def _rescaling(w: _Writer, x: int) -> int:
    return _affine(w, x, w.layer.scale, w.layer.offset)


def _normalization(w: _Writer, x: int) -> int:
    as_array = keras.ops.convert_to_numpy
    mean = as_array(w.layer.mean)
    spread = np.maximum(np.sqrt(as_array(w.layer.variance)), 1e-7)
    if w.layer.invert:
        return _affine(w, x, spread, mean)
    return _affine(w, x, 1 / spread, -mean / spread)


def _arithmetic(kind: str) -> Callable[..., int]:
    """Two tensors, or a tensor and a constant on either side."""

    def write(w: _Writer, *inputs: int) -> int:
        if len(inputs) == 2:
            if kind not in ("Add", "Multiply", "Subtract"):
                w.refuse("must have a constant as one of its operands")
            return w.add(kind, *inputs)
        operands = [*w.call.args, *w.call.kwargs.values()]
        if len(operands) != 2:
            w.refuse(f"must have two operands, but has {len(operands)}")
        if tuple(w.call.inputs[0].shape) != w.shape():
            w.refuse("must not make more channels or pixels of a tensor")
        first = isinstance(operands[0], keras.KerasTensor)
        constant = operands[1] if first else operands[0]
        constant = np.asarray(keras.ops.convert_to_numpy(constant), float)
        if kind == "Divide" and not first:
            w.refuse("must divide by a constant, not the other way round")
        if kind == "Divide":
            constant = 1 / constant
        scale, offset = {
            "Add": (1.0, constant),
            "Subtract": (1.0, -constant) if first else (-1.0, constant),
            "Multiply": (constant, 0.0),
            "Divide": (constant, 0.0),
        }[kind]
        return _affine(w, inputs[0], scale, offset)

    return write


def _merge(kind: str) -> Callable[..., int]:
    """Keras's merging layers, which take two tensors or more."""

    def write(w: _Writer, x: int, *others: int) -> int:
        for k, other in enumerate(others):
            x = w.add(kind, x, other, part=f"{k}" if k else "")
        return x

    return write


# What moves values or blends them.


def _like(*names: str) -> Callable[..., int]:
    """The same layer, with these of its settings."""

    def write(w: _Writer, *inputs: int) -> int:
        settings = {name: getattr(w.layer, name) for name in names}
        return w.add(type(w.layer).__name__, *inputs, **settings)

    return write


def _activation(w: _Writer, x: int) -> int:
    return w.activate(x)


def _relu_layer(w: _Writer, x: int) -> int:
    layer = w.layer
    if layer.negative_slope or layer.threshold:
        w.refuse("must have no negative slope and no threshold")
    if layer.max_value not in (None, 1, 6):
        w.refuse(f"must have max_value 6, 1 or none. Found: {layer.max_value}")
    return _relu(w, x, layer.max_value)


def _pass(w: _Writer, x: int) -> int:
    """Layers that do nothing when a model is used."""
    return x


def _dropout(w: _Writer, x: int) -> int:
    noise_shape = getattr(w.layer, "noise_shape", None)
    if isinstance(w.layer, layers.SpatialDropout2D):
        noise_shape = (None, 1, 1, w.shape()[-1])
    return w.add("Dropout", x, rate=w.layer.rate, noise_shape=noise_shape)


def _reshape(w: _Writer, x: int) -> int:
    return w.add("Reshape", x, target_shape=w.shape()[1:])


def _concatenate(w: _Writer, *inputs: int) -> int:
    axis = getattr(w.layer, "axis", -1)
    rank = len(w.shape())
    if axis % rank == 0:
        w.refuse("must not concatenate along the batch")
    return w.add("Concatenate", *inputs, axis=axis % rank)


def _channel_slice(w: _Writer, x: int) -> int:
    return _slice(w, x, w.layer.start, w.layer.stop)


def _channel_gather(w: _Writer, x: int) -> int:
    indices = keras.ops.convert_to_numpy(w.layer.indices)
    return w.add("ChannelGather", x, indices=tuple(map(int, indices)))


def _channel_shuffle(w: _Writer, x: int) -> int:
    _, height, width, channels = w.shape()
    groups = w.layer.groups
    apart = (height * width, groups, channels // groups)
    x = w.add("Reshape", x, part="apart", target_shape=apart)
    x = w.add("Permute", x, part="swap", dims=(1, 3, 2))
    return w.add("Reshape", x, target_shape=(height, width, channels))


def _slice(w: _Writer, x: int, start: int, stop: int, part: str = "") -> int:
    if len(w.shape()) != 4 or start >= stop:
        w.refuse("must take some of the channels of images")
    return w.add("ChannelSlice", x, part=part, start=start, stop=stop)


def _get_item(w: _Writer, x: int) -> int:
    (shape,) = [tuple(x.shape) for x in w.call.inputs]
    _, key = [*w.call.args, *w.call.kwargs.values()]
    key = list(key) if isinstance(key, (tuple, list)) else [key]
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key[at : at + 1] = [slice(None)] * (len(shape) - len(key) + 1)
    key += [slice(None)] * (len(shape) - len(key))
    whole = all(k == slice(None) for k in key[:-1])
    if not whole or not isinstance(key[-1], slice) or key[-1].step is not None:
        w.refuse("must slice the last axis alone, without a step")
    start, stop, _ = key[-1].indices(shape[-1])
    return _slice(w, x, start, stop)


def _split(w: _Writer, x: int) -> list[int]:
    if w.layer.axis % len(w.shape()) != len(w.shape()) - 1:
        w.refuse("must split the last axis")
    numbers, start = [], 0
    for k, part in enumerate(w.call.outputs):
        stop = start + part.shape[-1]
        numbers.append(_slice(w, x, start, stop, part=f"{k}"))
        start = stop
    return numbers


def _upsampling(w: _Writer, x: int) -> int:
    if w.layer.interpolation not in ("nearest", "bilinear"):
        w.refuse(
            "must have interpolation 'nearest' or 'bilinear'. "
            f"Found: {w.layer.interpolation!r}"
        )
    return _like("size", "interpolation")(w, x)


def _flat_pool(w: _Writer, x: int) -> int:
    kind = type(w.layer).__name__
    return w.add(kind, x, keepdims=w.layer.keepdims)


def _function(function: Any) -> Callable[..., int]:
    return lambda w, x: _ACTIVATIONS[function](w, x)


_pool = _like("pool_size", "strides", "padding")

_RULES: dict[str, Callable[..., Any]] = {
    "Activation": _activation,
    "Add": _merge("Add"),
    "AveragePooling2D": _pool,
    "BatchNormalization": _batch_normalization,
    "ChannelGather": _channel_gather,
    "ChannelShuffle": _channel_shuffle,
    "ChannelSlice": _channel_slice,
    "Concatenate": _concatenate,
    "Conv2D": _convolution,
    "Cropping2D": _like("cropping"),
    "Dense": _dense,
    "DepthwiseConv2D": _convolution,
    "Dropout": _dropout,
    "Flatten": _reshape,
    "GaussianNoise": _pass,
    "GlobalAveragePooling2D": _flat_pool,
    "GlobalMaxPooling2D": _flat_pool,
    "Identity": _pass,
    "MaxPooling2D": _pool,
    "Multiply": _merge("Multiply"),
    "Normalization": _normalization,
    "Permute": _like("dims"),
    "ReLU": _relu_layer,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "SeparableConv2D": _separable,
    "SpatialDropout2D": _dropout,
    "Subtract": _merge("Subtract"),
    "UpSampling2D": _upsampling,
    "ZeroPadding2D": _like("padding"),
    "op Add": _arithmetic("Add"),
    "op Concatenate": _concatenate,
    "op Divide": _arithmetic("Divide"),
    "op GetItem": _get_item,
    "op HardSigmoid": _function(keras.activations.hard_sigmoid),
    "op HardSilu": _function(keras.activations.hard_silu),
    "op Multiply": _arithmetic("Multiply"),
    "op Relu": _function(keras.activations.relu),
    "op Relu6": _function(keras.activations.relu6),
    "op Reshape": _reshape,
    "op Sigmoid": _function(keras.activations.sigmoid),
    "op Silu": _function(keras.activations.silu),
    "op Split": _split,
    "op Subtract": _arithmetic("Subtract"),
    "op Tanh": _function(keras.activations.tanh),
    "op TrueDivide": _arithmetic("Divide"),
}


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


def _fold_affine(
    steps: Sequence[Step], outputs: tuple[int, ...]
) -> tuple[list[Step], tuple[int, ...]]:
    """Multiplies scales and offsets into the kernels before them."""
    readers = count_readers(steps, outputs)
    homes: dict[str, set[str]] = collections.defaultdict(set)
    for step in steps:
        number = step.inputs[0]
        home = steps[number - 1].layer_name if number else ""
        homes[step.layer_name].add(home)
    new = Rewriting()
    for step in steps:
        moved = step._replace(inputs=tuple(new.number[x] for x in step.inputs))
        x, before = step.inputs[0], moved.inputs[0]
        if step.kind != "Affine":
            new.number.append(new.add(moved))
        elif (
            before > 0
            and readers[x] == 1
            and _takes(new.steps[before - 1], step, homes)
        ):
            new.steps[before - 1] = _scaled(new.steps[before - 1], step)
            new.number.append(before)
        else:
            new.number.append(new.add(moved))
    return new.steps, tuple(new.number[x] for x in outputs)


def _takes(step: Step, affine: Step, homes: dict[str, set[str]]) -> bool:
    """Whether a step can become one with the scale and offset behind it.

    What a kernel's bias has learned must find a place in the Keras model: in
    its layer's own bias, or in a batch normalisation of no other layer.

    Args:
        step: the step.
        affine: the scale and offset.
        homes: for each layer those that it is called on.
    """
    if step.kind not in KERNELS:
        return step.kind == "Affine"
    if affine.settings["is_norm"]:
        return len(homes[affine.layer_name]) == 1
    return len(step.weights) == 2 or not affine.weights[1].any()


def _scaled(step: Step, affine: Step) -> Step:
    is_norm = affine.settings["is_norm"]
    scale, offset = affine.weights
    kernel, *bias = step.weights
    if step.kind == "DepthwiseConv2D":
        kernel = kernel * scale.reshape(kernel.shape[2:])
    else:
        kernel = kernel * scale
    weights = [kernel]
    if bias:
        weights.append(bias[0] * scale + offset)
    elif is_norm:
        weights.append(offset)
    return step._replace(
        weights=tuple(weights),
        scale=step.scale * scale,
        scale_behind=1.0 if is_norm else step.scale_behind * scale,
        sources=(*step.sources, *affine.sources),
    )


def _affine_to_depthwise(
    steps: Sequence[Step], outputs: tuple[int, ...]
) -> tuple[list[Step], tuple[int, ...]]:
    """Makes convolutions of the scales and offsets that are left."""
    new = Rewriting()
    for step in steps:
        inputs = tuple(new.number[x] for x in step.inputs)
        moved = step._replace(inputs=inputs)
        if step.kind != "Affine":
            new.number.append(new.add(moved))
        elif step.settings["rank"] == 4:
            new.number.append(new.add(_depthwise(moved)))
        else:
            count = len(step.weights[0])
            map_, vector = [
                Step(
                    f"{step.name}_{name}",
                    f"{step.layer_name}_{name}",
                    "Reshape",
                    inputs,
                    {"target_shape": shape},
                    sources=step.sources,
                )
                for name, shape in (
                    ("to_map", (1, 1, count)),
                    ("to_vector", (count,)),
                )
            ]
            x = new.add(map_)
            x = new.add(_depthwise(moved._replace(inputs=(x,))))
            new.number.append(new.add(vector._replace(inputs=(x,))))
    return new.steps, tuple(new.number[x] for x in outputs)


def _depthwise(affine: Step) -> Step:
    scale, offset = affine.weights
    return affine._replace(
        kind="DepthwiseConv2D",
        settings={
            "kernel_size": (1, 1),
            "strides": (1, 1),
            "padding": "valid",
            "dilation_rate": (1, 1),
            "depth_multiplier": 1,
        },
        weights=(scale.reshape(1, 1, -1, 1), offset),
        trainable=False,
    )


def _with_uneven_bias(step: Step) -> Step:
    """Makes one channel's bias differ in its last bit, if all are the same.

    The converter would store the bias as one number, and quantize that with
    the first channel's scale for all of them.
    """
    if len(step.weights) != 2:
        return step
    kernel, bias = step.weights
    if len(bias) > 1 and bias[0] != 0 and (bias == bias[0]).all():
        bias = bias.copy()
        bias[0] = np.nextafter(bias[0], np.float32(0))
    return step._replace(weights=(kernel, bias))
