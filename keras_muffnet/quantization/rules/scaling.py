"""Scaling and shifting by constants."""

from typing import Any

import keras
import numpy as np

from keras_muffnet.folding import norm_line
from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Writer


def affine(
    w: Writer,
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


def _batch_normalization(w: Writer, x: int) -> int:
    layer = w.layer
    if layer.axis not in (-1, len(w.shape()) - 1):
        w.refuse(f"must be over the last axis, but is over {layer.axis}")
    return affine(w, x, *norm_line(layer), is_norm=True)


def _rescaling(w: Writer, x: int) -> int:
    return affine(w, x, w.layer.scale, w.layer.offset)


def _normalization(w: Writer, x: int) -> int:
    as_array = keras.ops.convert_to_numpy
    mean = as_array(w.layer.mean)
    spread = np.maximum(np.sqrt(as_array(w.layer.variance)), 1e-7)
    if w.layer.invert:
        return affine(w, x, spread, mean)
    return affine(w, x, 1 / spread, -mean / spread)


RULES: Rules = {
    "BatchNormalization": _batch_normalization,
    "Normalization": _normalization,
    "Rescaling": _rescaling,
}
