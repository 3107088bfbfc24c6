"""Normalizations whose statistics are those of each example."""

from typing import Any

import keras
import numpy as np

from keras_muffnet.quantization.rules.activations import product
from keras_muffnet.quantization.rules.activations import unary
from keras_muffnet.quantization.rules.arithmetic import reduce
from keras_muffnet.quantization.rules.scaling import affine
from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Shape
from keras_muffnet.quantization.writer import Writer


def _standardized(
    w: Writer,
    x: int,
    axes: tuple[int, ...],
    shape: Shape,
    epsilon: float,
    centered: bool = True,
) -> int:
    """(x - mean) / sqrt(variance + epsilon), of tensors of this shape.

    Args:
        w: the writer.
        x: the tensor.
        axes: those that mean and variance are over.
        shape: the tensor's.
        epsilon: what is added to the variance.
        centered: False takes the mean as 0.
    """
    if centered:
        mean = reduce(w, x, "mean", axes, "mean")
        x = w.add("Subtract", x, mean, part="difference")
    square = w.add("Multiply", x, x, part="square")
    variance = reduce(w, square, "mean", axes, "variance")
    kept = tuple(1 if k in axes else s for k, s in enumerate(shape))
    variance = affine(w, variance, 1.0, epsilon, part="line", shape=kept)
    return product(w, x, unary(w, variance, "rsqrt", "rsqrt"))


def _scaled(w: Writer, x: int, gamma: Any, beta: Any) -> int:
    if gamma is None and beta is None:
        return x
    gamma = 1.0 if gamma is None else gamma
    beta = 0.0 if beta is None else beta
    return affine(w, x, gamma, beta, part="scaled")


def _layer_normalization(w: Writer, x: int) -> int:
    layer = w.layer
    axes = w.axes(layer.axis)
    x = _standardized(w, x, axes, w.shape(), layer.epsilon)
    return _scaled(w, x, *_over(w, axes, layer.gamma, layer.beta))


def _over(w: Writer, axes: tuple[int, ...], *values: Any) -> list[Any]:
    """Constants of the axes normalized over, in the shape of an example."""
    shape = [s if k in axes else 1 for k, s in enumerate(w.shape())]
    return [
        None
        if value is None
        else np.reshape(keras.ops.convert_to_numpy(value), shape[1:])
        for value in values
    ]


def _rms_normalization(w: Writer, x: int) -> int:
    layer = w.layer
    axes = w.axes(layer.axis)
    x = _standardized(w, x, axes, w.shape(), layer.epsilon, centered=False)
    return _scaled(w, x, *_over(w, axes, layer.scale, None))


def _group_normalization(w: Writer, x: int) -> int:
    layer, shape = w.layer, w.shape()
    if w.axis(layer.axis) != len(shape) - 1 or len(shape) != 4:
        w.refuse("must be over the channels of images or sequences")
    groups = shape[3] if layer.groups == -1 else layer.groups
    apart = (None, shape[1] * shape[2], groups, shape[3] // groups)
    x = w.reshape(x, apart)
    x = _standardized(w, x, (1, 3), apart, layer.epsilon)
    return _scaled(w, w.reshape(x, shape), layer.gamma, layer.beta)


def _unit_normalization(w: Writer, x: int) -> int:
    axes, last = w.axes(w.layer.axis), len(w.shape()) - 1
    if len(axes) > 1:
        w.refuse("must be over one axis")
    (axis,) = axes
    order = list(range(last + 1))
    order[axis], order[last] = last, axis
    x = unary(w, w.permute(x, order), "l2_normalize", "unit", axis=-1)
    return w.permute(x, order)


RULES: Rules = {
    "GroupNormalization": _group_normalization,
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
    "UnitNormalization": _unit_normalization,
}
