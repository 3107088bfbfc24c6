"""What moves values or blends them, and what does nothing."""

from collections.abc import Callable

import keras
from keras import layers

from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Writer


def _like(*names: str) -> Callable[..., int]:
    """The same layer, with these of its settings."""

    def write(w: Writer, *inputs: int) -> int:
        settings = {name: getattr(w.layer, name) for name in names}
        return w.add(type(w.layer).__name__, *inputs, **settings)

    return write


def _pass(w: Writer, x: int) -> int:
    """Layers that do nothing when a model is used."""
    return x


def _dropout(w: Writer, x: int) -> int:
    noise_shape = getattr(w.layer, "noise_shape", None)
    if isinstance(w.layer, layers.SpatialDropout2D):
        noise_shape = (None, 1, 1, w.shape()[-1])
    return w.add("Dropout", x, rate=w.layer.rate, noise_shape=noise_shape)


def _reshape(w: Writer, x: int) -> int:
    return w.add("Reshape", x, target_shape=w.shape()[1:])


def _concatenate(w: Writer, *inputs: int) -> int:
    axis = getattr(w.layer, "axis", -1)
    rank = len(w.shape())
    if axis % rank == 0:
        w.refuse("must not concatenate along the batch")
    return w.add("Concatenate", *inputs, axis=axis % rank)


def _channel_slice(w: Writer, x: int) -> int:
    return _slice(w, x, w.layer.start, w.layer.stop)


def _channel_gather(w: Writer, x: int) -> int:
    indices = keras.ops.convert_to_numpy(w.layer.indices)
    return w.add("ChannelGather", x, indices=tuple(map(int, indices)))


def _channel_shuffle(w: Writer, x: int) -> int:
    _, height, width, channels = w.shape()
    groups = w.layer.groups
    apart = (height * width, groups, channels // groups)
    x = w.add("Reshape", x, part="apart", target_shape=apart)
    x = w.add("Permute", x, part="swap", dims=(1, 3, 2))
    return w.add("Reshape", x, target_shape=(height, width, channels))


def _slice(w: Writer, x: int, start: int, stop: int, part: str = "") -> int:
    if len(w.shape()) != 4 or start >= stop:
        w.refuse("must take some of the channels of images")
    return w.add("ChannelSlice", x, part=part, start=start, stop=stop)


def _get_item(w: Writer, x: int) -> int:
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


def _split(w: Writer, x: int) -> list[int]:
    if w.layer.axis % len(w.shape()) != len(w.shape()) - 1:
        w.refuse("must split the last axis")
    numbers, start = [], 0
    for k, part in enumerate(w.call.outputs):
        stop = start + part.shape[-1]
        numbers.append(_slice(w, x, start, stop, part=f"{k}"))
        start = stop
    return numbers


def _upsampling(w: Writer, x: int) -> int:
    if w.layer.interpolation not in ("nearest", "bilinear"):
        w.refuse(
            "must have interpolation 'nearest' or 'bilinear'. "
            f"Found: {w.layer.interpolation!r}"
        )
    return _like("size", "interpolation")(w, x)


def _flat_pool(w: Writer, x: int) -> int:
    kind = type(w.layer).__name__
    return w.add(kind, x, keepdims=w.layer.keepdims)


_pool = _like("pool_size", "strides", "padding")

RULES: Rules = {
    "AveragePooling2D": _pool,
    "ChannelGather": _channel_gather,
    "ChannelShuffle": _channel_shuffle,
    "ChannelSlice": _channel_slice,
    "Concatenate": _concatenate,
    "Cropping2D": _like("cropping"),
    "Dropout": _dropout,
    "Flatten": _reshape,
    "GaussianNoise": _pass,
    "GlobalAveragePooling2D": _flat_pool,
    "GlobalMaxPooling2D": _flat_pool,
    "Identity": _pass,
    "MaxPooling2D": _pool,
    "Permute": _like("dims"),
    "Reshape": _reshape,
    "SpatialDropout2D": _dropout,
    "UpSampling2D": _upsampling,
    "ZeroPadding2D": _like("padding"),
    "op Concatenate": _concatenate,
    "op GetItem": _get_item,
    "op Reshape": _reshape,
    "op Split": _split,
}
