"""Sums, differences, products, extremes, means and matrices."""

from collections.abc import Callable

import keras
import numpy as np

from keras_muffnet.quantization.rules.activations import bound
from keras_muffnet.quantization.rules.activations import cut
from keras_muffnet.quantization.rules.activations import product
from keras_muffnet.quantization.rules.activations import unary
from keras_muffnet.quantization.rules.convolutions import matmul_constant
from keras_muffnet.quantization.rules.scaling import affine
from keras_muffnet.quantization.rules.scaling import per_example
from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Writer


def _arithmetic(kind: str) -> Callable[..., int]:
    """Two tensors, or a tensor and a constant on either side."""

    def write(w: Writer, *inputs: int) -> int:
        if len(inputs) == 2:
            if kind == "Divide":
                w.refuse("must have a constant as one of its operands")
            return _of_two(w, kind, *inputs)
        operands = [*w.call.args, *w.call.kwargs.values()]
        if len(operands) != 2:
            w.refuse(f"must have two operands, but has {len(operands)}")
        (x,) = inputs
        first = isinstance(operands[0], keras.KerasTensor)
        constant = w.laid_out(operands[1] if first else operands[0])
        if kind == "Divide" and not first:
            w.refuse("must divide by a constant, not the other way round")
        if w.input_shape() != w.shape():
            return _enlarged(w, kind, x, constant, first)
        if kind in ("Maximum", "Minimum"):
            return _extreme(w, kind, x, constant)
        if kind == "Divide":
            constant = 1 / constant
        scale, offset = {
            "Add": (1.0, constant),
            "Subtract": (1.0, -constant) if first else (-1.0, constant),
            "Multiply": (constant, 0.0),
            "Divide": (constant, 0.0),
        }[kind]
        return affine(w, x, scale, offset)

    return write


def _of_two(w: Writer, kind: str, x: int, y: int, part: str = "") -> int:
    ranks = {len(t.shape) for t in w.call.inputs}
    if len(ranks) > 1:
        w.refuse(
            "must have operands of the same number of axes. Found shapes "
            f"{[tuple(t.shape) for t in w.call.inputs]}"
        )
    return w.add(kind, x, y, part=part)


def _enlarged(
    w: Writer, kind: str, x: int, constant: np.ndarray, first: bool
) -> int:
    """A constant of more channels or pixels than the tensor."""
    shape = w.shape()
    if len(w.input_shape()) != len(shape):
        w.refuse("must not give a tensor more axes")
    if kind == "Divide":
        kind, constant = "Multiply", 1 / constant
    other = w.constant(per_example(w, constant, shape))
    return w.add(kind, *((x, other) if first else (other, x)))


def _extreme(w: Writer, kind: str, x: int, constant: np.ndarray) -> int:
    if constant.size > 1:
        other = w.constant(per_example(w, constant, w.shape()))
        return w.add(kind, x, other)
    value = float(constant.reshape(()))
    if kind == "Maximum":
        return bound(w, x, low=value)
    return bound(w, x, high=value)


def _merge(kind: str) -> Callable[..., int]:
    """Keras's merging layers, which take two tensors or more."""

    def write(w: Writer, x: int, *others: int) -> int:
        for k, other in enumerate(others):
            x = _of_two(w, kind, x, other, part=f"{k}" if k else "")
        return x

    return write


def _average(w: Writer, *inputs: int) -> int:
    x = _merge("Add")(w, *inputs)
    return affine(w, x, 1 / len(inputs), 0.0, part="mean")


def _clip(w: Writer, x: int) -> int:
    low, high = [
        None if v is None else w.single(v, name)
        for name, v in (("x_min", w.layer.x_min), ("x_max", w.layer.x_max))
    ]
    if low is not None and high is not None and low <= 0 <= high:
        return cut(w, x, low, high)
    return bound(w, x, low, high)


def _negative(w: Writer, x: int) -> int:
    return affine(w, x, -1.0, 0.0)


def _absolute(w: Writer, x: int) -> int:
    return unary(w, x, "abs")


def _square(w: Writer, x: int) -> int:
    return product(w, x, x)


def _power(w: Writer, *inputs: int) -> int:
    _, exponent = [*w.call.args, *w.call.kwargs.values()]
    if len(inputs) != 1 or isinstance(exponent, keras.KerasTensor):
        w.refuse("must have a constant exponent")
    (x,) = inputs
    value = w.single(exponent, "exponent")
    if value == 1:
        return x
    if value in (2, 3, 4):
        square = product(w, x, x)
        if value == 2:
            return square
        return product(w, square, x if value == 3 else square)
    if value in (0.5, -0.5):
        return unary(w, x, "sqrt" if value > 0 else "rsqrt")
    w.refuse(f"must have an exponent of 2, 3, 4, 1/2 or -1/2. Found: {value}")


def reduce(
    w: Writer, x: int, function: str, axes: tuple[int, ...], part: str = ""
) -> int:
    """Writes a reduction that keeps its axes."""
    return w.add(
        "Reduce", x, part=part, function=function, axes=axes, keepdims=True
    )


def reduction(function: str) -> Callable[..., int]:
    """A mean, a sum or an extreme over some axes."""

    def write(w: Writer, x: int) -> int:
        layer = w.layer
        if getattr(layer, "initial", None) is not None:
            w.refuse("must have no initial value")
        axes = w.axes(layer.axis)
        if len(w.call.inputs[0].shape) == 3:
            axes = tuple(sorted({1, *axes}))  # the height, which is 1
        kept = [
            1 if k in axes else size for k, size in enumerate(w.input_shape())
        ]
        left = tuple(s for k, s in enumerate(kept) if k not in axes)
        if not layer.keepdims and left == w.shape():
            return w.add(
                "Reduce", x, function=function, axes=axes, keepdims=False
            )
        if tuple(kept) == w.shape():
            return reduce(w, x, function, axes)
        return w.reshape(reduce(w, x, function, axes, function), w.shape())

    return write


def global_pool(function: str) -> Callable[..., int]:
    """Of a sequence."""

    def write(w: Writer, x: int) -> int:
        keepdims = w.layer.keepdims
        return (
            w.add("Reduce", x, function=function, axes=(1, 2), keepdims=False)
            if not keepdims
            else reduce(w, x, function, (1, 2))
        )

    return write


def matrices(
    w: Writer,
    x: int,
    y: int,
    transpose_x: bool = False,
    transpose_y: bool = False,
    part: str = "",
) -> int:
    """Writes products of matrices, on the last two axes of both."""
    if transpose_x:
        x = w.permute(x, (0, 1, 3, 2))
    return w.add("MatMul", x, y, part=part, transpose_b=transpose_y)


def _matmul(w: Writer, *inputs: int) -> int:
    if len(inputs) == 1:
        first, second = [*w.call.args, *w.call.kwargs.values()]
        if not isinstance(first, keras.KerasTensor):
            w.refuse("must have its constant operand on the right")
        return matmul_constant(w, inputs[0], second)
    shape, x, y = w.shape(), *inputs
    ours, theirs = [t.shape for t in w.call.inputs]
    if len(shape) == 5 and ours[:3] == theirs[:3]:
        count = shape[1] * shape[2]
        x = w.reshape(x, (None, count, *ours[3:]), part="left")
        y = w.reshape(y, (None, count, *theirs[3:]), part="right")
        return w.reshape(matrices(w, x, y), shape)
    if len(shape) != 4:
        w.refuse("must be of two tensors of 3 to 5 axes, alike in the first")
    return matrices(w, x, y)


def _dot(w: Writer, x: int, y: int) -> int:
    axes = w.layer.axes
    ranks = [len(t.shape) for t in w.call.inputs]
    if isinstance(axes, int):
        axes = [axes % rank for rank in ranks]
    if ranks not in ([2, 2], [3, 3]) or 0 in axes:
        w.refuse("must be of two vectors or of two sequences")
    if w.layer.normalize:
        x, y = [
            unary(w, v, "l2_normalize", "unit", axis=axis + rank - 2)
            for v, axis, rank in zip((x, y), axes, ranks, strict=True)
        ]
    if ranks == [2, 2]:
        return reduce(w, product(w, x, y), "sum", (1,))
    return matrices(w, x, y, axes[0] == 1, axes[1] == 2)


RULES: Rules = {
    "Add": _merge("Add"),
    "Average": _average,
    "Dot": _dot,
    "GlobalAveragePooling1D": global_pool("mean"),
    "GlobalMaxPooling1D": global_pool("max"),
    "Maximum": _merge("Maximum"),
    "Minimum": _merge("Minimum"),
    "Multiply": _merge("Multiply"),
    "Subtract": _merge("Subtract"),
    "op Absolute": _absolute,
    "op Add": _arithmetic("Add"),
    "op Amax": reduction("max"),
    "op Amin": reduction("min"),
    "op Clip": _clip,
    "op Divide": _arithmetic("Divide"),
    "op Matmul": _matmul,
    "op Max": reduction("max"),
    "op Maximum": _arithmetic("Maximum"),
    "op Mean": reduction("mean"),
    "op Min": reduction("min"),
    "op Minimum": _arithmetic("Minimum"),
    "op Multiply": _arithmetic("Multiply"),
    "op Negative": _negative,
    "op Power": _power,
    "op Square": _square,
    "op Subtract": _arithmetic("Subtract"),
    "op Sum": reduction("sum"),
    "op TrueDivide": _arithmetic("Divide"),
}
