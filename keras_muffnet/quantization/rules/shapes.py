"""What moves values or blends them, and what does nothing."""

import math
import operator
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_muffnet.quantization.layouts import kind_of
from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Writer
from keras_muffnet.quantization.writer import stored

# What does nothing when a model is used.
IDLE = (
    "ActivityRegularization",
    "AlphaDropout",
    "AugMix",
    "CutMix",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "MixUp",
    "RandAugment",
    *(name for name in dir(layers) if name.startswith("Random")),
    "op ConvertToTensor",
    "op Copy",
    "op StopGradient",
)

_WHOLE = slice(None)
# What stands for minus infinity, in float16 too.
_LOWEST = float(np.finfo("float16").min)


def _pass(w: Writer, x: int) -> int:
    return x


def _cast(w: Writer, x: int) -> int:
    given, made = [
        keras.backend.is_float_dtype(y.dtype)
        for y in (*w.call.inputs, *w.call.outputs)
    ]
    if given and not made:
        w.refuse(
            "must not round: a cast to "
            f"{w.call.outputs[0].dtype} has no place among 8-bit integers"
        )
    return x


def _dropout(w: Writer, x: int) -> int:
    noise_shape = getattr(w.layer, "noise_shape", None)
    if isinstance(w.layer, (layers.SpatialDropout1D, layers.SpatialDropout2D)):
        noise_shape = (None, 1, 1, w.shape()[-1])
    elif noise_shape is not None:
        noise_shape = stored(noise_shape, w.channels_first)
    return w.add("Dropout", x, rate=w.layer.rate, noise_shape=noise_shape)


# Shapes.


def _reshape(w: Writer, x: int) -> int:
    (batch, *sizes), (_, *sizes_before) = w.shape(), w.input_shape()
    if sizes == sizes_before:
        return x
    known = batch is None and None not in sizes
    if not known or math.prod(sizes) != math.prod(sizes_before):
        w.refuse("must leave the batch axis alone")
    return w.add("Reshape", x, target_shape=tuple(sizes))


def _permuted(order: Callable[[Writer, int], Sequence[int]]) -> Any:
    """Changes the order of the axes, given with the batch's, 0, among them."""

    def write(w: Writer, x: int) -> int:
        rank = len(w.call.inputs[0].shape)
        axes = [axis % rank for axis in order(w, rank)]
        if axes[0]:
            w.refuse("must leave the batch axis where it is")
        if rank == 3:
            axes = [0, 1, *(axis + 1 for axis in axes[1:])]
        return w.permute(x, axes, part="")

    return write


def _transposed(w: Writer, rank: int) -> Sequence[int]:
    axes = w.layer.axes
    return range(rank)[::-1] if axes is None else axes


def _moved(w: Writer, rank: int) -> Sequence[int]:
    source, destination = [
        [a % rank for a in (v if isinstance(v, (tuple, list)) else [v])]
        for v in (w.layer.source, w.layer.destination)
    ]
    order = [axis for axis in range(rank) if axis not in source]
    for place, axis in sorted(zip(destination, source, strict=True)):
        order.insert(place, axis)
    return order


def _swapped(w: Writer, rank: int) -> Sequence[int]:
    order = list(range(rank))
    a, b = w.layer.axis1 % rank, w.layer.axis2 % rank
    order[a], order[b] = order[b], order[a]
    return order


def _repeat_vector(w: Writer, x: int) -> int:
    x = w.reshape(x, (None, 1, 1, w.shape()[-1]))
    return w.add("Tile", x, repeats=(1, 1, w.layer.n, 1))


def _tile(w: Writer, x: int) -> int:
    repeats = w.layer.repeats
    rank = len(w.call.inputs[0].shape)
    repeats = [repeats] if isinstance(repeats, int) else list(repeats)
    repeats = [1] * (rank - len(repeats)) + repeats
    return _tiled(w, x, repeats)


def _tiled(w: Writer, x: int, repeats: Sequence[int]) -> int:
    rank = len(w.call.inputs[0].shape)
    if len(repeats) != rank or repeats[0] != 1:
        w.refuse("must leave the batch axis alone")
    if rank == 3:
        repeats = [1, 1, *repeats[1:]]
    return w.add("Tile", x, repeats=tuple(map(int, repeats)))


def gather(
    w: Writer, x: int, indices: Iterable[int], axis: int, part: str = ""
) -> int:
    """Writes a choice of places on an axis."""
    places = tuple(map(int, indices))
    return w.add("Gather", x, part=part, indices=places, axis=axis)


def _repeat(w: Writer, x: int) -> int:
    if w.layer.axis is None:
        w.refuse("must have an axis")
    axis = w.axis(w.layer.axis)
    places = np.repeat(np.arange(w.input_shape()[axis]), w.layer.repeats)
    return gather(w, x, places, axis)


def _take(w: Writer, x: int) -> int:
    (indices,) = w.constants()[:1] or [None]
    if w.layer.axis is None or indices is None:
        w.refuse("must have an axis, and constant indices")
    axis = w.axis(w.layer.axis)
    indices = np.asarray(keras.ops.convert_to_numpy(indices))
    x = gather(w, x, indices.reshape(-1), axis)
    return x if indices.ndim == 1 else w.reshape(x, w.shape())


def _roll(w: Writer, x: int) -> int:
    if not isinstance(w.layer.axis, (int, tuple, list)):
        w.refuse("must have an axis")
    axes = w.axes(w.layer.axis)
    shifts = w.layer.shift
    shifts = [shifts] * len(axes) if isinstance(shifts, int) else shifts
    given = np.atleast_1d(w.layer.axis)
    for axis, shift in zip(given, shifts, strict=True):
        stored_axis = w.axis(int(axis))
        places = np.roll(np.arange(w.input_shape()[stored_axis]), shift)
        x = gather(w, x, places, stored_axis)
    return x


# Joining and taking apart.


def _concatenate(w: Writer, *inputs: int) -> int:
    axis = getattr(w.layer, "axis", -1)
    if axis % len(w.call.inputs[0].shape) == 0:
        w.refuse("must not concatenate along the batch")
    return _joined(w, inputs, w.axis(axis))


def _joined(w: Writer, inputs: Sequence[int], axis: int) -> int:
    if len(inputs) == 1:
        return inputs[0]
    return w.add("Concatenate", *inputs, axis=axis)


def _stack(w: Writer, *inputs: int) -> int:
    rank = len(w.call.outputs[0].shape)
    axis = w.layer.axis % rank
    if axis == 0:
        w.refuse("must not stack along the batch")
    shape = list(w.call.outputs[0].shape)
    shape[axis] = 1
    parts = [w.reshape(x, stored(shape)) for x in inputs]
    return _joined(w, parts, axis + (1 if rank == 3 else 0))


def _concatenate_constants(w: Writer, *inputs: int) -> int:
    """Tensors and constants, in the order in which they are given."""
    given = w.call.args[0] if w.call.args else w.call.kwargs["xs"]
    if len(inputs) == len(given):
        return _concatenate(w, *inputs)
    rank = len(w.call.inputs[0].shape)
    axis = w.layer.axis % rank
    numbers, left = [], list(inputs)
    for operand in given:
        if isinstance(operand, keras.KerasTensor):
            numbers.append(left.pop(0))
            continue
        value = np.asarray(keras.ops.convert_to_numpy(operand))
        if value.ndim != rank or axis == 0:
            w.refuse("must not concatenate constants along the batch")
        numbers.append(
            w.constant(value[:1].reshape(stored(value[:1].shape)[1:]))
        )
    return _joined(w, numbers, w.axis(axis))


def _channel_slice(w: Writer, x: int) -> int:
    return _slice(w, x, w.layer.start, w.layer.stop, len(w.shape()) - 1)


def _slice(
    w: Writer, x: int, start: int, stop: int, axis: int, part: str = ""
) -> int:
    """A range of places on one axis."""
    if start >= stop:
        w.refuse("must not make an empty tensor")
    rank = len(w.input_shape())
    if axis == rank - 1:
        return w.add("ChannelSlice", x, part=part, start=start, stop=stop)
    key: list[list[int | None]] = [[None, None, None]] * rank
    key[axis] = [int(start), int(stop), 1]
    return w.add("Slice", x, part=part, key=key[1:])


def _get_item(w: Writer, x: int) -> int:
    (shape,) = [tuple(x.shape) for x in w.call.inputs]
    _, key = [*w.call.args, *w.call.kwargs.values()]
    key = list(key) if isinstance(key, (tuple, list)) else [key]
    if not all(
        k is None or isinstance(k, (int, slice)) or k is ... for k in key
    ):
        w.refuse("must have a key of numbers, slices, None and ...")
    if Ellipsis in key:
        at = key.index(Ellipsis)
        missing = len(shape) - sum(k is not None for k in key) + 1
        key[at : at + 1] = [_WHOLE] * missing
    key = [k for k in key if k is not None]
    key += [_WHOLE] * (len(shape) - len(key))
    if key[0] != _WHOLE:
        w.refuse("must leave the batch axis alone")
    taken: list[list[int | None]] = []
    for k, size in zip(key[1:], shape[1:], strict=True):
        if k == _WHOLE:
            taken.append([None, None, None])
        elif isinstance(k, slice):
            start, stop, step = k.indices(size)
            if not len(range(start, stop, step)):
                w.refuse("must not make an empty tensor")
            # A stop before the first place has no number.
            taken.append([start, None if stop < 0 else stop, step])
        else:
            start = operator.index(k) % size
            taken.append([start, start + 1, 1])
    if len(shape) == 3:
        taken.insert(0, [None, None, None])
    sizes = w.input_shape()[1:]
    sliced = (None, *map(_length, taken, sizes))
    if any(map(_changes, taken, sizes)):
        x = _sliced(w, x, taken)
    return x if sliced[1:] == w.shape()[1:] else w.reshape(x, w.shape())


def _length(key: list, size: int) -> int:
    return len(range(size)[slice(*key)])


def _changes(key: list, size: int) -> bool:
    return range(size)[slice(*key)] != range(size)


def _sliced(w: Writer, x: int, taken: list) -> int:
    *others, (start, stop, step) = taken
    channels = all(k == [None, None, None] for k in others) and step == 1
    if channels and len(taken) in (1, 3):
        return w.add("ChannelSlice", x, start=start, stop=stop)
    return w.add("Slice", x, key=taken)


def _flip(w: Writer, x: int) -> int:
    axes = w.axes(w.layer.axis)
    key = [
        [None, None, -1 if k in axes else None]
        for k in range(1, len(w.shape()))
    ]
    return w.add("Slice", x, key=key)


def _split(w: Writer, x: int) -> list[int]:
    axis = w.axis(w.layer.axis)
    numbers, start = [], 0
    for k in range(len(w.call.outputs)):
        stop = start + w.shape(k)[axis]
        numbers.append(_slice(w, x, start, stop, axis, part=f"{k}"))
        start = stop
    return numbers


def _unstack(w: Writer, x: int) -> list[int]:
    axis = w.axis(w.layer.axis)
    parts = [
        _slice(w, x, k, k + 1, axis, part=f"{k}")
        for k in range(len(w.call.outputs))
    ]
    return [w.reshape(part, w.shape(k)) for k, part in enumerate(parts)]


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


def _depth_to_space(w: Writer, x: int) -> int:
    _, height, width, channels = w.input_shape()
    block = w.layer.block_size
    kept = channels // block**2
    x = w.reshape(x, (None, height, width, block, block * kept))
    x = w.permute(x, (0, 1, 3, 2, 4))
    return w.reshape(x, w.shape())


def _space_to_depth(w: Writer, x: int) -> int:
    _, height, width, channels = w.input_shape()
    block = w.layer.block_size
    apart = (None, height // block, block, width // block, block * channels)
    x = w.permute(w.reshape(x, apart), (0, 1, 3, 2, 4))
    return w.reshape(x, w.shape())


# Borders.


def _border(kind: str, name: str) -> Callable[..., int]:
    """Padding or cropping of images or sequences."""

    def write(w: Writer, x: int) -> int:
        value = getattr(w.layer, name)
        if len(w.call.inputs[0].shape) == 3:
            value = ((0, 0), tuple(value))
        return w.add(kind, x, **{name: value})

    return write


def _center_crop(w: Writer, x: int) -> int:
    _, height, width, _ = w.input_shape()
    cropping = []
    for size, wanted in ((height, w.layer.height), (width, w.layer.width)):
        if size < wanted:
            w.refuse("must not crop to more pixels than there are")
        before = (size - wanted) // 2
        cropping.append((before, size - wanted - before))
    return w.add("Cropping2D", x, cropping=tuple(cropping))


def _pad(w: Writer, x: int) -> int:
    rank = len(w.call.inputs[0].shape)
    widths = [[int(n) for n in pair] for pair in w.layer.pad_width]
    if len(widths) == 1:
        widths = widths * rank
    if any(widths[0]):
        w.refuse("must leave the batch axis alone")
    if rank == 3:
        widths.insert(0, [0, 0])
    value = w.argument("constant_values", 1)
    if value is not None:
        value = w.single(value, "constant_values")
    mode = w.layer.mode
    if mode not in ("constant", "reflect", "symmetric"):
        w.refuse(
            "must have mode 'constant', 'reflect' or 'symmetric'. "
            f"Found: {mode!r}"
        )
    if mode == "constant" and value is not None and not value > _LOWEST:
        if not _is_for_max_pooling(w):
            w.refuse(
                "must pad with a number that has a scale, but before a max "
                "pooling, without padding, of at least twice the width. "
                f"Found: {value}"
            )
        mode = "symmetric"
    if mode != "constant":
        return w.add("Pad", x, widths=widths, mode=mode)
    if value:
        return w.add("PadWith", x, widths=widths, value=value)
    if len(widths) == 4 and not any(widths[3]):
        return w.add("ZeroPadding2D", x, padding=tuple(map(tuple, widths[1:3])))
    return w.add("Pad", x, widths=widths, mode=mode)


def _is_for_max_pooling(w: Writer) -> bool:
    """Whether a padding is never the greatest value of any window.

    Then mirrored values, each of which is in its window anyway, do as well.
    """
    widest = max(max(pair) for pair in w.layer.pad_width)
    (padded,) = w.call.outputs
    readers = [
        call.operation
        for call in w.graph.calls
        if any(x is padded for x in call.inputs)
    ]
    return bool(readers) and all(
        kind_of(x) in ("MaxPooling1D", "MaxPooling2D", "op MaxPool")
        and x.padding == "valid"
        and 2 * widest <= np.min(x.pool_size)
        and not any(
            w.layer.pad_width[1 if x.data_format == "channels_first" else -1]
        )
        for x in readers
    )


# Pooling.


def _pool(w: Writer, x: int) -> int:
    kind = kind_of(w.layer).replace("1D", "2D")
    size, strides = [
        (1, *v) if len(v) == 1 else tuple(v)
        for v in (w.layer.pool_size, w.layer.strides)
    ]
    return _pooled(w, x, kind, size, strides, w.layer.padding)


def _pool_function(kind: str) -> Callable[..., int]:
    def write(w: Writer, x: int) -> int:
        rank = len(w.call.inputs[0].shape) - 2
        if rank not in (1, 2):
            w.refuse("must be over sequences or images")
        given = w.layer.pool_size, w.layer.strides or w.layer.pool_size
        size, strides = [
            (v,) * rank if isinstance(v, int) else tuple(v) for v in given
        ]
        if rank == 1:
            size, strides = (1, *size), (1, *strides)
        return _pooled(w, x, kind, size, strides, w.layer.padding)

    return write


def _pooled(
    w: Writer,
    x: int,
    kind: str,
    size: Sequence[int],
    strides: Sequence[int],
    padding: str,
) -> int:
    return w.add(kind, x, pool_size=size, strides=strides, padding=padding)


def _adaptive(kind: str) -> Callable[..., int]:
    def write(w: Writer, x: int) -> int:
        before, after = w.input_shape()[1:3], w.shape()[1:3]
        if any(a % b for a, b in zip(before, after, strict=True)):
            w.refuse(
                "must have an output size that divides that of its input. "
                f"Found sizes {before} and {after}"
            )
        size = tuple(a // b for a, b in zip(before, after, strict=True))
        return _pooled(w, x, kind, size, size, "valid")

    return write


def _flat_pool(w: Writer, x: int) -> int:
    kind = kind_of(w.layer)
    return w.add(kind, x, keepdims=w.layer.keepdims)


def _gray(w: Writer, x: int) -> int:
    weights = np.array([0.2989, 0.5870, 0.1140], np.float32)
    kernel = weights.reshape(1, 1, 3, 1)
    return w.add(
        "Conv2D",
        x,
        weights=[kernel],
        trainable=False,
        kernel_size=(1, 1),
        strides=(1, 1),
        padding="valid",
        dilation_rate=(1, 1),
        filters=1,
        groups=1,
    )


RULES: Rules = {
    **dict.fromkeys(IDLE, _pass),
    "op Cast": _cast,
    "AdaptiveAveragePooling1D": _adaptive("AveragePooling2D"),
    "AdaptiveAveragePooling2D": _adaptive("AveragePooling2D"),
    "AdaptiveMaxPooling1D": _adaptive("MaxPooling2D"),
    "AdaptiveMaxPooling2D": _adaptive("MaxPooling2D"),
    "AveragePooling1D": _pool,
    "AveragePooling2D": _pool,
    "CenterCrop": _center_crop,
    "ChannelGather": _channel_gather,
    "ChannelShuffle": _channel_shuffle,
    "ChannelSlice": _channel_slice,
    "Concatenate": _concatenate,
    "Cropping1D": _border("Cropping2D", "cropping"),
    "Cropping2D": _border("Cropping2D", "cropping"),
    "Dropout": _dropout,
    "Flatten": _reshape,
    "GlobalAveragePooling2D": _flat_pool,
    "GlobalMaxPooling2D": _flat_pool,
    "MaxPooling1D": _pool,
    "MaxPooling2D": _pool,
    "Permute": _permuted(lambda w, rank: (0, *w.layer.dims)),
    "RepeatVector": _repeat_vector,
    "Reshape": _reshape,
    "SpatialDropout1D": _dropout,
    "SpatialDropout2D": _dropout,
    "ZeroPadding1D": _border("ZeroPadding2D", "padding"),
    "ZeroPadding2D": _border("ZeroPadding2D", "padding"),
    "op AveragePool": _pool_function("AveragePooling2D"),
    "op Concatenate": _concatenate_constants,
    "op DepthToSpace": _depth_to_space,
    "op ExpandDims": _reshape,
    "op Flip": _flip,
    "op GetItem": _get_item,
    "op MaxPool": _pool_function("MaxPooling2D"),
    "op Moveaxis": _permuted(_moved),
    "op Pad": _pad,
    "op RGBToGrayscale": _gray,
    "op Repeat": _repeat,
    "op Reshape": _reshape,
    "op Roll": _roll,
    "op SpaceToDepth": _space_to_depth,
    "op Split": _split,
    "op Squeeze": _reshape,
    "op Stack": _stack,
    "op Swapaxes": _permuted(_swapped),
    "op Take": _take,
    "op Tile": _tile,
    "op Transpose": _permuted(_transposed),
    "op Unstack": _unstack,
}
