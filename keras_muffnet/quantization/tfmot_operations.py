"""`keras_operations` for tf_keras."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras

_PACKAGE = "keras_muffnet"


def _function(x: tf.Tensor, function: str, **arguments: Any) -> tf.Tensor:
    return FUNCTIONS[function](x, **arguments)


FUNCTIONS: dict[str, Callable[..., tf.Tensor]] = {
    "abs": tf.abs,
    "exp": tf.exp,
    "gelu": tf.nn.gelu,
    "hard_shrink": lambda x, threshold: tf.where(
        tf.logical_or(x > threshold, x < -threshold), x, 0.0
    ),
    "l2_normalize": tf.nn.l2_normalize,
    "leaky_relu": lambda x, slope: tf.nn.leaky_relu(x, slope),
    "log": tf.math.log,
    "log_softmax": tf.nn.log_softmax,
    "rsqrt": tf.math.rsqrt,
    "softmax": tf.nn.softmax,
    "sqrt": tf.sqrt,
    "threshold": lambda x, threshold: tf.where(x > threshold, x, 0.0),
}


def _bound(x: tf.Tensor, low: float | None, high: float | None) -> tf.Tensor:
    if low is not None:
        x = tf.maximum(x, low)
    return x if high is None else tf.minimum(x, high)


def _constant(x: tf.Tensor, value: Any) -> tf.Tensor:
    value = tf.constant(value, tf.float32)
    return tf.broadcast_to(value, (tf.shape(x)[0], *value.shape))


def _pad(x: tf.Tensor, widths: Any, mode: str) -> tf.Tensor:
    return tf.pad(x, widths, mode.upper())


def _reduce(
    x: tf.Tensor, function: str, axes: Any, keepdims: bool
) -> tf.Tensor:
    functions = {
        "max": tf.reduce_max,
        "mean": tf.reduce_mean,
        "min": tf.reduce_min,
        "sum": tf.reduce_sum,
    }
    return functions[function](x, axis=axes, keepdims=keepdims)


OPERATIONS: dict[str, Callable[..., tf.Tensor]] = {
    "Bound": _bound,
    "Constant": _constant,
    "Cut": _bound,
    "Function": _function,
    "Gather": lambda x, indices, axis: tf.gather(x, indices, axis=axis),
    "MatMul": lambda x, transpose_b: tf.matmul(*x, transpose_b=transpose_b),
    "Pad": _pad,
    "PadWith": lambda x, widths, value: tf.pad(
        x, widths, constant_values=value
    ),
    "Reduce": _reduce,
    "Resize": lambda x, size, interpolation: tf.image.resize(
        x, size, interpolation
    ),
    "Slice": lambda x, key: x[(slice(None), *(slice(*k) for k in key))],
    "Tile": lambda x, repeats: tf.tile(x, repeats),
}


@tf_keras.saving.register_keras_serializable(_PACKAGE)
class Operation(tf_keras.layers.Layer):
    """See `keras_operations.Operation`."""

    def __init__(
        self, kind: str, settings: Mapping[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.kind = kind
        self.settings = dict(settings)

    def call(self, inputs: Any) -> tf.Tensor:
        """Computes it."""
        return OPERATIONS[self.kind](inputs, **self.settings)

    def get_config(self) -> dict[str, Any]:
        """What it is made again from."""
        config = {"kind": self.kind, "settings": dict(self.settings)}
        return {**super().get_config(), **config}
