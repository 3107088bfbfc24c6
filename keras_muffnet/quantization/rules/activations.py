"""Activations, as what LiteRT has integers for.

A ReLU has `max_value` None, 6 or 1; with 1 it cuts off what the quantized model
cuts off by its range.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_muffnet.quantization.rules.scaling import affine
from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Writer


def activate(w: Writer, x: int) -> int:
    """Writes the activation of a layer that has one."""
    activation = w.layer.activation
    for function, write in ACTIVATIONS.items():
        if activation is function:
            return write(w, x)
    name = getattr(activation, "__name__", activation)
    if activation is keras.activations.softmax:
        if w.is_output():
            return x
        w.refuse("has a softmax, which only the last layer may have")
    known = ", ".join(f.__name__ for f in ACTIVATIONS)
    w.refuse(f"must have one of the activations {known}. Found: {name}")


def _relu(w: Writer, x: int, max_value: float | None = None) -> int:
    return w.add("ReLU", x, part=_part(w, "relu"), max_value=max_value)


def _sigmoid(w: Writer, x: int) -> int:
    part = _part(w, "sigmoid")
    return w.add("Activation", x, part=part, activation="sigmoid")


def _tanh(w: Writer, x: int) -> int:
    return w.add("Activation", x, part=_part(w, "tanh"), activation="tanh")


def _silu(w: Writer, x: int) -> int:
    gate = w.add("Activation", x, part="sigmoid", activation="sigmoid")
    return w.add("Multiply", x, gate, part="product")


def _hard_sigmoid(w: Writer, x: int) -> int:
    line = affine(w, x, 1 / 6, 0.5, part="line")
    return w.add("ReLU", line, part="cut", max_value=1.0)


def _hard_silu(w: Writer, x: int) -> int:
    return w.add("Multiply", x, _hard_sigmoid(w, x), part="product")


def _part(w: Writer, name: str) -> str:
    """Names the step by its layer alone where it is all of the layer."""
    return "" if isinstance(w.layer, (layers.Activation, layers.ReLU)) else name


ACTIVATIONS: dict[Any, Callable[[Writer, int], int]] = {
    keras.activations.linear: lambda w, x: x,
    keras.activations.relu: _relu,
    keras.activations.relu6: lambda w, x: _relu(w, x, 6.0),
    keras.activations.sigmoid: _sigmoid,
    keras.activations.tanh: _tanh,
    keras.activations.silu: _silu,
    keras.activations.hard_sigmoid: _hard_sigmoid,
    keras.activations.hard_silu: _hard_silu,
}


def _activation(w: Writer, x: int) -> int:
    return activate(w, x)


def _relu_layer(w: Writer, x: int) -> int:
    layer = w.layer
    if layer.negative_slope or layer.threshold:
        w.refuse("must have no negative slope and no threshold")
    if layer.max_value not in (None, 1, 6):
        w.refuse(f"must have max_value 6, 1 or none. Found: {layer.max_value}")
    return _relu(w, x, layer.max_value)


def _function(function: Any) -> Callable[..., int]:
    return lambda w, x: ACTIVATIONS[function](w, x)


RULES: Rules = {
    "Activation": _activation,
    "ReLU": _relu_layer,
    "op HardSigmoid": _function(keras.activations.hard_sigmoid),
    "op HardSilu": _function(keras.activations.hard_silu),
    "op Relu": _function(keras.activations.relu),
    "op Relu6": _function(keras.activations.relu6),
    "op Sigmoid": _function(keras.activations.sigmoid),
    "op Silu": _function(keras.activations.silu),
    "op Tanh": _function(keras.activations.tanh),
}
