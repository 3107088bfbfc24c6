"""The kinds of steps that Keras has functions for, but no layers."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers
from keras import ops

_PACKAGE = "keras_muffnet"


def _function(x: Any, function: str, **arguments: Any) -> Any:
    return FUNCTIONS[function](x, **arguments)


def _unit(x: Any, axis: int) -> Any:
    # In the words that the converter knows it by.
    square = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(square, 1e-12))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": ops.abs,
    "exp": ops.exp,
    "gelu": ops.gelu,
    "hard_shrink": lambda x, threshold: ops.where(
        ops.logical_or(x > threshold, x < -threshold), x, 0.0
    ),
    "l2_normalize": _unit,
    "leaky_relu": lambda x, slope: ops.leaky_relu(x, slope),
    "log": ops.log,
    "log_softmax": ops.log_softmax,
    "rsqrt": ops.rsqrt,
    "softmax": ops.softmax,
    "sqrt": ops.sqrt,
    "threshold": lambda x, threshold: ops.where(x > threshold, x, 0.0),
}


def _bound(x: Any, low: float | None, high: float | None) -> Any:
    if low is not None:
        x = ops.maximum(x, low)
    return x if high is None else ops.minimum(x, high)


def _constant(x: Any, value: Any) -> Any:
    value = ops.convert_to_tensor(value, "float32")
    return ops.broadcast_to(value, (ops.shape(x)[0], *value.shape))


def _matmul(inputs: Any, transpose_b: bool) -> Any:
    x, y = inputs
    return ops.matmul(x, ops.swapaxes(y, -1, -2) if transpose_b else y)


def _reduce(x: Any, function: str, axes: Any, keepdims: bool) -> Any:
    functions = {
        "max": ops.max,
        "mean": ops.mean,
        "min": ops.min,
        "sum": ops.sum,
    }
    return functions[function](x, axis=tuple(axes), keepdims=keepdims)


def _slice(x: Any, key: Any) -> Any:
    return x[(slice(None), *(slice(*k) for k in key))]


OPERATIONS: dict[str, Callable[..., Any]] = {
    "Bound": _bound,
    "Constant": _constant,
    "Cut": _bound,
    "Function": _function,
    "Gather": lambda x, indices, axis: ops.take(x, indices, axis=axis),
    "MatMul": _matmul,
    "Pad": lambda x, widths, mode: ops.pad(x, widths, mode),
    "PadWith": lambda x, widths, value: ops.pad(
        x, widths, constant_values=value
    ),
    "Reduce": _reduce,
    "Resize": lambda x, size, interpolation: ops.image.resize(
        x, tuple(size), interpolation, data_format="channels_last"
    ),
    "Slice": _slice,
    "Tile": lambda x, repeats: ops.tile(x, repeats),
}


@keras.saving.register_keras_serializable(_PACKAGE)
class Operation(layers.Layer):
    """One of `OPERATIONS` as a layer.

    Args:
        kind: its name there.
        settings: what it is called with besides its input.
    """

    def __init__(
        self, kind: str, settings: Mapping[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.kind = kind
        self.settings = dict(settings)

    def call(self, inputs: Any) -> Any:
        """Computes it."""
        return OPERATIONS[self.kind](inputs, **self.settings)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The shape of what it gives for an input, or several, of a shape."""
        if self.kind == "Constant":
            return (input_shape[0], *np.shape(self.settings["value"]))
        several = isinstance(input_shape[0], (list, tuple))
        shapes = input_shape if several else [input_shape]
        inputs = [keras.KerasTensor(shape, "float32") for shape in shapes]
        return tuple(self.call(inputs if several else inputs[0]).shape)

    def get_config(self) -> dict[str, Any]:
        """What it is made again from."""
        config = {"kind": self.kind, "settings": self.settings}
        return {**super().get_config(), **config}
