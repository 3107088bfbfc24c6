"""Scaling and shifting by constants."""

from typing import Any

import keras
import numpy as np

from keras_muffnet.folding import norm_line
from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Shape
from keras_muffnet.quantization.writer import Writer


def affine(
    w: Writer,
    x: int,
    scale: Any,
    offset: Any,
    part: str = "",
    is_norm: bool = False,
    shape: Shape | None = None,
) -> int:
    """Writes x * scale + offset.

    Args:
        w: the writer.
        x: the tensor.
        scale: constants whose shape fits that of an example in the batch.
        offset: the same.
        part: see `Writer.add`.
        is_norm: whether it is a batch normalization.
        shape: the tensor's shape, if not that of the present call's output.
    """
    shape = shape or w.shape()
    scale, offset = [
        np.asarray(keras.ops.convert_to_numpy(value), np.float32)
        for value in (scale, offset)
    ]
    count = shape[-1]
    if len(shape) in (2, 4) and all(
        _by_channel(v, count) for v in (scale, offset)
    ):
        arrays = [
            np.broadcast_to(v.reshape(-1), (count,)) for v in (scale, offset)
        ]
        return w.add(
            "Affine",
            x,
            part=part,
            weights=arrays,
            rank=len(shape),
            is_norm=is_norm,
        )
    if not (scale == 1).all():
        x = w.add("Multiply", x, w.constant(per_example(w, scale, shape)))
    if offset.any():
        x = w.add("Add", x, w.constant(per_example(w, offset, shape)))
    return x


def _by_channel(value: np.ndarray, count: int) -> bool:
    return value.size == 1 or value.shape[-1] == count == value.size


def per_example(w: Writer, value: np.ndarray, shape: Shape) -> np.ndarray:
    """Constants as operands of a tensor, with all axes but the batch's."""
    rank = len(shape)
    if value.ndim == rank:
        if value.shape[0] != 1:
            w.refuse(
                "must have constants that are the same for the whole batch. "
                f"Found constants of shape {value.shape}"
            )
        value = value[0]
    if value.ndim == 3 and rank == 4 and len(w.call.outputs[0].shape) == 3:
        value = value[0]  # the batch axis of a sequence
    return value.reshape((1,) * (rank - 1 - value.ndim) + value.shape)


def _batch_normalization(w: Writer, x: int) -> int:
    layer = w.layer
    if w.axis(layer.axis) != len(w.shape()) - 1:
        w.refuse(f"must be over the last axis, but is over {layer.axis}")
    return affine(w, x, *norm_line(layer), is_norm=True)


def _rescaling(w: Writer, x: int) -> int:
    scale, offset = np.asarray(w.layer.scale), np.asarray(w.layer.offset)
    if scale.ndim == 1 and keras.config.image_data_format() == "channels_first":
        scale = scale[:, None, None]  # as the layer does
    return affine(w, x, w.laid_out(scale), w.laid_out(offset))


def _normalization(w: Writer, x: int) -> int:
    mean, variance = map(w.laid_out, (w.layer.mean, w.layer.variance))
    spread = np.maximum(np.sqrt(variance), 1e-7)
    if w.layer.invert:
        return affine(w, x, spread, mean)
    return affine(w, x, 1 / spread, -mean / spread)


RULES: Rules = {
    "BatchNormalization": _batch_normalization,
    "Normalization": _normalization,
    "Rescaling": _rescaling,
}
