"""Other sizes of images and sequences."""

import keras
import numpy as np

from keras_muffnet.quantization.rules.convolutions import dense
from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Writer

# What LiteRT has operations for. Others are products with matrices.
_OPERATIONS = ("nearest", "bilinear")


def _resize(w: Writer, x: int) -> int:
    layer = w.layer
    for name in ("crop_to_aspect_ratio", "pad_to_aspect_ratio"):
        if getattr(layer, name):
            w.refuse(f"must not have {name}=True")
    if w.shape() == w.input_shape():
        return x
    if layer.antialias or layer.interpolation not in _OPERATIONS:
        return _by_matrices(w, x, layer.interpolation, layer.antialias)
    size = w.shape()[1:3]
    return w.add("Resize", x, size=size, interpolation=layer.interpolation)


def _upsampling(w: Writer, x: int) -> int:
    size, interpolation = w.layer.size, w.layer.interpolation
    if interpolation not in _OPERATIONS:
        return _by_matrices(w, x, interpolation, antialias=False)
    return w.add("UpSampling2D", x, size=size, interpolation=interpolation)


def _upsampling_sequence(w: Writer, x: int) -> int:
    size = (1, w.layer.size)
    return w.add("UpSampling2D", x, size=size, interpolation="nearest")


def _by_matrices(w: Writer, x: int, interpolation: str, antialias: bool) -> int:
    """Each new pixel is a sum of old ones: of a row first, then of a column."""
    (_, *before, _), (_, *after, _) = w.input_shape(), w.shape()
    rows, columns = [
        _weights(old, new, interpolation, antialias)
        for old, new in zip(before, after, strict=True)
    ]
    x = w.permute(x, (0, 1, 3, 2))
    x = dense(w, x, [columns], rank=4, trainable=False)
    x = w.permute(x, (0, 3, 2, 1))
    x = dense(w, x, [rows], rank=4, trainable=False)
    return w.permute(x, (0, 3, 1, 2))


def _weights(
    old: int, new: int, interpolation: str, antialias: bool
) -> np.ndarray:
    """What each old pixel of a line adds to each new one, `(old, new)`."""
    lines = np.eye(old, dtype=np.float32)[None, :, :, None]
    resized = keras.ops.image.resize(
        lines,
        (old, new),
        interpolation,
        antialias=antialias,
        data_format="channels_last",
    )
    return keras.ops.convert_to_numpy(resized)[0, :, :, 0]


RULES: Rules = {
    "Resizing": _resize,
    "UpSampling1D": _upsampling_sequence,
    "UpSampling2D": _upsampling,
    "op Resize": _resize,
}
