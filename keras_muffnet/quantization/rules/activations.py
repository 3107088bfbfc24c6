"""Activations, as what LiteRT has integers for, or a sum of that.

What is not among LiteRT's integer operations is made of those that are: an ELU
of a maximum and an exponential, softplus of a maximum and the logarithm of a
sigmoid. Minima and maxima with constants have the scale of their input, so
that they add no rounding.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_muffnet.quantization.layouts import kind_of
from keras_muffnet.quantization.rules.scaling import affine
from keras_muffnet.quantization.rules.scaling import per_example
from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Shape
from keras_muffnet.quantization.writer import Writer

# What softplus need not exceed for its tanh to be 1 in 8 bits.
_TANH_IS_ONE = 4.0


def activate(w: Writer, x: int) -> int:
    """Writes the activation of a layer that has one."""
    activation = w.layer.activation
    if isinstance(activation, layers.Layer):
        return _of_layer(w, x, activation)
    for function, write in ACTIVATIONS.items():
        if activation is function:
            return write(w, x)
    name = getattr(activation, "__name__", activation)
    known = ", ".join(f.__name__ for f in ACTIVATIONS)
    w.refuse(f"must have one of the activations {known}. Found: {name}")


def _of_layer(w: Writer, x: int, layer: layers.Layer) -> int:
    """An activation that is given as a layer."""
    rule = RULES.get(kind_of(layer))
    if rule is None:
        w.refuse(
            "must have an activation that is known. "
            f"Found: {type(layer).__name__}"
        )
    if not layer.built:  # as its first call would do
        layer.build(w.call.outputs[0].shape)
    outer, w.layer = w.layer, layer
    try:
        return rule(w, x)
    finally:
        w.layer = outer


def unary(
    w: Writer, x: int, function: str, part: str = "", **arguments: Any
) -> int:
    """Writes one of the functions that the engines have tables of."""
    part = part or _part(w, function)
    return w.add("Function", x, part=part, function=function, **arguments)


def bound(
    w: Writer, x: int, low: float | None = None, high: float | None = None
) -> int:
    """Writes a minimum or maximum with constants, in the input's scale."""
    return w.add("Bound", x, part="bound", low=low, high=high)


def cut(w: Writer, x: int, low: float, high: float, part: str = "") -> int:
    """Writes limits, around zero, that a quantized model's range cuts off at.

    It costs nothing behind a convolution and elsewhere a minimum and a maximum.
    """
    return w.add("Cut", x, part=part, low=low, high=high)


def product(w: Writer, x: int, y: int) -> int:
    """Writes a product of two tensors."""
    return w.add("Multiply", x, y, part="product")


def total(w: Writer, x: int, y: int) -> int:
    """Writes a sum of two tensors."""
    return w.add("Add", x, y, part="sum")


def _relu(w: Writer, x: int, max_value: float | None = None) -> int:
    return w.add("ReLU", x, part=_part(w, "relu"), max_value=max_value)


def _general_relu(
    w: Writer,
    x: int,
    max_value: float | None,
    negative_slope: float,
    threshold: float,
) -> int:
    if threshold:
        if negative_slope or threshold < 0:
            w.refuse(
                "must have no negative slope, or a threshold of 0, and no "
                f"threshold below that. Found: negative_slope={negative_slope},"
                f" threshold={threshold}"
            )
        x = unary(w, x, "threshold", threshold=threshold)
        return x if max_value is None else bound(w, x, high=max_value)
    if negative_slope:
        x = unary(w, x, "leaky_relu", slope=negative_slope)
        return x if max_value is None else bound(w, x, high=max_value)
    if max_value in (None, 1, 6):
        return _relu(w, x, max_value)
    return cut(w, x, 0.0, max_value, part=_part(w, "relu"))


def _sigmoid(w: Writer, x: int, part: str = "") -> int:
    part = part or _part(w, "sigmoid")
    return w.add("Activation", x, part=part, activation="sigmoid")


def _tanh(w: Writer, x: int, part: str = "") -> int:
    part = part or _part(w, "tanh")
    return w.add("Activation", x, part=part, activation="tanh")


def _silu(w: Writer, x: int) -> int:
    return product(w, x, _sigmoid(w, x, "sigmoid"))


def _hard_sigmoid(w: Writer, x: int) -> int:
    line = affine(w, x, 1 / 6, 0.5, part="line")
    return w.add("ReLU", line, part="cut", max_value=1.0)


def _hard_silu(w: Writer, x: int) -> int:
    return product(w, x, _hard_sigmoid(w, x))


def _leaky_relu(w: Writer, x: int, negative_slope: float = 0.2) -> int:
    return unary(w, x, "leaky_relu", slope=float(negative_slope))


def _exponential_line(w: Writer, x: int, alpha: float, part: float) -> int:
    """part * x above zero, and part * alpha * (exp(x / alpha') - 1) below."""
    low = unary(w, bound(w, x, high=0.0), "exp", part="exp")
    high = bound(w, x, low=0.0)
    if part != 1:
        high = affine(w, high, part, 0.0, part="scaled")
    return total(w, high, affine(w, low, alpha, -alpha, part="line"))


def _elu(w: Writer, x: int, alpha: float = 1.0) -> int:
    return _exponential_line(w, x, alpha, 1.0)


def _selu(w: Writer, x: int) -> int:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return _exponential_line(w, x, alpha * scale, scale)


def _celu(w: Writer, x: int, alpha: float = 1.0) -> int:
    if alpha == 1:
        return _elu(w, x)
    low = affine(w, bound(w, x, high=0.0), 1 / alpha, 0.0, part="scaled")
    line = affine(w, unary(w, low, "exp", "exp"), alpha, -alpha, part="line")
    return total(w, bound(w, x, low=0.0), line)


def _gelu(w: Writer, x: int, approximate: bool = False) -> int:
    return unary(w, x, "gelu", approximate=bool(approximate))


def _log_of_sigmoid(w: Writer, x: int) -> int:
    """log(sigmoid(|x|)), between log(1/2) and 0."""
    size = unary(w, x, "abs", "abs")
    return unary(w, _sigmoid(w, size, "sigmoid"), "log", "log")


def _softplus(w: Writer, x: int) -> int:
    high = bound(w, x, low=0.0)
    return w.add("Subtract", high, _log_of_sigmoid(w, x), part="sum")


def _log_sigmoid(w: Writer, x: int) -> int:
    return total(w, bound(w, x, high=0.0), _log_of_sigmoid(w, x))


def _mish(w: Writer, x: int) -> int:
    soft = cut(w, _softplus(w, x), 0.0, _TANH_IS_ONE, part="cut")
    return product(w, x, _tanh(w, soft, "tanh"))


def _softsign(w: Writer, x: int) -> int:
    size = affine(w, unary(w, x, "abs", "abs"), 1.0, 1.0, part="line")
    root = unary(w, size, "rsqrt", "rsqrt")
    return product(w, product(w, x, root), root)


def _tanh_shrink(w: Writer, x: int) -> int:
    return w.add("Subtract", x, _tanh(w, x, "tanh"), part="difference")


def _soft_shrink(w: Writer, x: int, threshold: float = 0.5) -> int:
    high = bound(w, x, low=threshold)
    return total(w, high, bound(w, x, high=-threshold))


def _hard_shrink(w: Writer, x: int, threshold: float = 0.5) -> int:
    return unary(w, x, "hard_shrink", threshold=threshold)


def _threshold(w: Writer, x: int, threshold: float, default: float) -> int:
    if default or threshold < 0:
        w.refuse("must put 0 in place of what is below a positive threshold")
    return unary(w, x, "threshold", threshold=threshold)


def _squareplus(w: Writer, x: int, b: float = 4.0) -> int:
    square = affine(w, product(w, x, x), 1.0, b, part="line")
    root = unary(w, square, "sqrt", "sqrt")
    return affine(w, total(w, x, root), 0.5, 0.0, part="half")


def _sparse_sigmoid(w: Writer, x: int) -> int:
    line = affine(w, x, 0.5, 0.5, part="line")
    return w.add("ReLU", line, part="cut", max_value=1.0)


def _sparse_plus(w: Writer, x: int) -> int:
    curve = _sparse_sigmoid(w, x)
    above = affine(w, bound(w, x, low=1.0), 1.0, -1.0, part="above")
    return total(w, above, product(w, curve, curve))


def _glu(w: Writer, x: int, axis: int = -1) -> int:
    axis, (*_, count) = w.axis(axis), w.input_shape()
    if axis != len(w.shape()) - 1:
        w.refuse("must be over the last axis")
    half = count // 2
    a, b = [
        w.add("ChannelSlice", x, part="half", start=start, stop=start + half)
        for start in (0, half)
    ]
    return product(w, a, _sigmoid(w, b, "sigmoid"))


def softmax(w: Writer, x: int, axis: Any = -1) -> int:
    """Writes a softmax, which is left out at the model's end."""
    if w.argument("mask", 1) is not None:
        w.refuse("must have no mask")
    if w.is_output():
        return x
    axes = w.axes(axis)
    if len(axes) > 1:
        w.refuse(f"must have a softmax over one axis. Found: {axis}")
    return w.add(
        "Function",
        x,
        part=_part(w, "softmax"),
        function="softmax",
        axis=axes[0],
    )


def _log_softmax(w: Writer, x: int, axis: int = -1) -> int:
    return unary(w, x, "log_softmax", axis=w.axis(axis))


def _part(w: Writer, name: str) -> str:
    """Names the step by its layer alone where it is all of the layer."""
    whole = (layers.Activation, layers.ReLU, layers.Softmax, layers.LeakyReLU)
    return "" if isinstance(w.layer, whole) else name


ACTIVATIONS: dict[Any, Callable[[Writer, int], int]] = {
    keras.activations.celu: _celu,
    keras.activations.elu: _elu,
    keras.activations.exponential: lambda w, x: unary(w, x, "exp"),
    keras.activations.gelu: _gelu,
    keras.activations.glu: _glu,
    keras.activations.hard_shrink: _hard_shrink,
    keras.activations.hard_sigmoid: _hard_sigmoid,
    keras.activations.hard_silu: _hard_silu,
    keras.activations.hard_tanh: lambda w, x: cut(
        w, x, -1.0, 1.0, part=_part(w, "cut")
    ),
    keras.activations.leaky_relu: _leaky_relu,
    keras.activations.linear: lambda w, x: x,
    keras.activations.log_sigmoid: _log_sigmoid,
    keras.activations.log_softmax: _log_softmax,
    keras.activations.mish: _mish,
    keras.activations.relu: _relu,
    keras.activations.relu6: lambda w, x: _relu(w, x, 6.0),
    keras.activations.selu: _selu,
    keras.activations.sigmoid: _sigmoid,
    keras.activations.silu: _silu,
    keras.activations.soft_shrink: _soft_shrink,
    keras.activations.softmax: softmax,
    keras.activations.softplus: _softplus,
    keras.activations.softsign: _softsign,
    keras.activations.sparse_plus: _sparse_plus,
    keras.activations.sparse_sigmoid: _sparse_sigmoid,
    keras.activations.squareplus: _squareplus,
    keras.activations.tanh: _tanh,
    keras.activations.tanh_shrink: _tanh_shrink,
}


def _activation(w: Writer, x: int) -> int:
    return activate(w, x)


def _relu_layer(w: Writer, x: int) -> int:
    layer = w.layer
    max_value = None if layer.max_value is None else float(layer.max_value)
    return _general_relu(
        w, x, max_value, float(layer.negative_slope), float(layer.threshold)
    )


def _prelu(w: Writer, x: int) -> int:
    shape: Shape = w.shape()
    alpha = keras.ops.convert_to_numpy(w.layer.alpha)
    if alpha.size == 1:
        return _leaky_relu(w, x, float(alpha.reshape(())))
    alpha = per_example(w, w.laid_out(alpha[None]), shape)
    if alpha.shape[-1] == alpha.size:
        alpha = alpha.reshape(-1)
    low = affine(w, bound(w, x, high=0.0), alpha, 0.0, part="slope")
    return total(w, bound(w, x, low=0.0), low)


def _with(write: Callable[..., int], *names: str) -> Callable[..., int]:
    """A rule that takes settings of the layer or operation."""

    def rule(w: Writer, x: int) -> int:
        settings = {name: getattr(w.layer, name) for name in names}
        for name, value in settings.items():
            if hasattr(value, "shape"):
                settings[name] = w.single(value, name)
        return write(w, x, *settings.values())

    return rule


RULES: Rules = {
    "Activation": _activation,
    "ELU": _with(_elu, "alpha"),
    "LeakyReLU": _with(_leaky_relu, "negative_slope"),
    "PReLU": _prelu,
    "ReLU": _relu_layer,
    "Softmax": _with(softmax, "axis"),
    "op Celu": _with(_celu, "alpha"),
    "op Elu": _with(_elu, "alpha"),
    "op Exp": lambda w, x: unary(w, x, "exp"),
    "op Gelu": _with(_gelu, "approximate"),
    "op Glu": _with(_glu, "axis"),
    "op HardShrink": _with(_hard_shrink, "threshold"),
    "op HardSigmoid": _hard_sigmoid,
    "op HardSilu": _hard_silu,
    "op HardTanh": ACTIVATIONS[keras.activations.hard_tanh],
    "op LeakyRelu": _with(_leaky_relu, "negative_slope"),
    "op Log": lambda w, x: unary(w, x, "log"),
    "op LogSigmoid": _log_sigmoid,
    "op LogSoftmax": _with(_log_softmax, "axis"),
    "op Relu": _relu,
    "op Relu6": ACTIVATIONS[keras.activations.relu6],
    "op Rsqrt": lambda w, x: unary(w, x, "rsqrt"),
    "op Selu": _selu,
    "op Sigmoid": _sigmoid,
    "op Silu": _silu,
    "op SoftShrink": _with(_soft_shrink, "threshold"),
    "op Softmax": _with(softmax, "axis"),
    "op Softplus": _softplus,
    "op Softsign": _softsign,
    "op SparsePlus": _sparse_plus,
    "op SparseSigmoid": _sparse_sigmoid,
    "op Sqrt": lambda w, x: unary(w, x, "sqrt"),
    "op Squareplus": _with(_squareplus, "b"),
    "op Tanh": _tanh,
    "op TanhShrink": _tanh_shrink,
    "op Threshold": _with(_threshold, "threshold", "default_value"),
}
