"""Reads calibration data, and finds within what limits inputs lie."""

import itertools
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_muffnet.preprocessing import MEAN
from keras_muffnet.preprocessing import STD
from keras_muffnet.preprocessing import first_operation
from keras_muffnet.preprocessing import is_pixel_scaling

Range = tuple[float, float]

# How images are scaled that no range is given for: the first of these that the
# calibration data fit in and nearly fill, with the mean and the standard
# deviation in pixels. All but the last put each pixel exactly on a level; the
# second is that of `keras_muffnet.preprocess_input`.
NORMALIZATIONS = {
    (0.0, 1.0): (0.0, 255.0),
    (-1.0, 127 / 128): (MEAN, STD),
    (0.0, 255.0): (0.0, 1.0),
    (-1.0, 1.0): (127.5, 127.5),
}
# Share of such a range that the data must span. The rest costs no more than
# 1.9 dB.
_NEARLY_FULL = 0.8

# What is read of a generator or a data set, which may have no end.
_MOST = 1000


def read_data(
    data: Any,
    model: Any,
    argument: str = "calibration_data",
    shapes: Sequence[Sequence[int | None]] | None = None,
) -> list[np.ndarray]:
    """Reads what `predict` takes as arrays.

    Args:
        data: an array, or several in a list, or in a dict by the names of the
            model's inputs; or batches of them, with labels or not: a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, a data loader of
            PyTorch or a generator. Of batches the first 1,000 examples.
        model: the model that takes them.
        argument: what error messages call the data.
        shapes: sizes of the inputs, without the batch axis, in place of the
            model's own.

    Returns:
        For each of the model's inputs a float32 array `(n, ...)`.

    Raises:
        ValueError: if the data do not fit the inputs, are none, or are not
            finite.
    """
    from keras_muffnet.graph import input_structure

    names = [x.name for x in model.inputs]
    structure = input_structure(model)
    if isinstance(structure, dict):
        names = sorted(structure)  # as Keras does
    if shapes is None:
        shapes = [tuple(x.shape[1:]) for x in model.inputs]
    if _is_structure(data):
        batches = [_arranged(data, names, argument)]
    else:
        batches, count = [], 0
        for batch in _batches(data, argument):
            arranged = _arranged(batch, names, argument)
            _check_shapes(arranged, shapes, argument)
            batches.append(arranged)
            count += len(arranged[0])
            if count >= _MOST:
                break
        if not batches:
            raise ValueError(
                f"`{argument}` must hold at least 1 batch. Received: {data!r}, "
                "which gave none"
            )
    arrays = [np.concatenate(x) for x in zip(*batches, strict=True)]
    if not _is_structure(data):
        arrays = [x[:_MOST] for x in arrays]
    _check_shapes(arrays, shapes, argument)
    for x in arrays:
        if not np.isfinite(x).all():
            raise ValueError(
                f"`{argument}` must be finite. Received: values in "
                f"[{x.min()}, {x.max()}]"
            )
    return arrays


def _is_structure(data: Any) -> bool:
    """Whether data are arrays, not batches of them."""
    if isinstance(data, (Mapping, list, tuple)):
        return True
    # Data sets have no shape, arrays and tensors of all backends have one.
    return hasattr(data, "shape") and hasattr(data, "dtype")


def _batches(data: Any, argument: str) -> Iterator[Any]:
    """The inputs of a data set, batch by batch."""
    import keras

    if isinstance(data, keras.utils.PyDataset):
        numbers = (
            itertools.count()
            if data.num_batches is None
            else range(data.num_batches)
        )
        data = map(data.__getitem__, numbers)
    try:
        batches = iter(data)
    except TypeError as error:
        raise ValueError(
            f"`{argument}` must be arrays, a data set or a generator. "
            f"Received: {type(data).__name__}"
        ) from error
    for batch in batches:
        # PyTorch's loaders give lists of examples and labels.
        yield batch[0] if isinstance(batch, (tuple, list)) else batch


def _arranged(data: Any, names: Sequence[str], argument: str) -> list[Any]:
    """One array for each of the model's inputs."""
    import keras

    if isinstance(data, Mapping):
        if set(data) != set(names):
            raise ValueError(
                f"`{argument}` must have the keys {', '.join(names)}. "
                f"Received: {', '.join(map(str, data))}"
            )
        data = [data[name] for name in names]
    elif not isinstance(data, (list, tuple)):
        data = [data]
    if len(data) != len(names):
        raise ValueError(
            f"`{argument}` must be {len(names)} arrays, one for each of the "
            f"model's inputs. Received: {len(data)}"
        )
    arrays = []
    for x in data:
        if not hasattr(x, "dtype"):
            raise ValueError(
                f"`{argument}` must be arrays. Received: {type(x).__name__}"
            )
        x = np.asarray(keras.ops.convert_to_numpy(x))
        if x.dtype.kind not in "biuf" and x.dtype.name != "bfloat16":
            raise ValueError(
                f"`{argument}` must be numbers. Received: {x.dtype}"
            )
        arrays.append(x.astype(np.float32))
    return arrays


def _check_shapes(
    arrays: Sequence[np.ndarray], shapes: Sequence[Any], argument: str
) -> None:
    for x, shape in zip(arrays, shapes, strict=True):
        fits = x.ndim == len(shape) + 1 and all(
            wanted in (None, size)
            for wanted, size in zip(shape, x.shape[1:], strict=True)
        )
        if not fits or not len(x):
            raise ValueError(
                f"`{argument}` must have shape (n, "
                f"{', '.join(map(str, shape))}), with n at least 1. "
                f"Received: an array of shape {x.shape}"
            )
    if len({len(x) for x in arrays}) > 1:
        raise ValueError(
            f"`{argument}` must have as many examples for each input. "
            f"Received: {', '.join(str(len(x)) for x in arrays)}"
        )


def input_limits(
    arrays: Sequence[np.ndarray], model: Any, given: Range | None
) -> list[Range]:
    """Says within what limits each input lies.

    Args:
        arrays: the calibration data.
        model: the model that takes them.
        given: the range that the user gives, for a model of one input.

    Raises:
        ValueError: if the data lie outside the range given, or pixels seem to
            be scaled twice or not at all.
    """
    if given is not None:
        if len(arrays) > 1:
            raise ValueError(
                "`input_range` must be None for a model of several inputs. "
                f"Received: input_range={given!r}"
            )
        low, high = float(arrays[0].min()), float(arrays[0].max())
        if not given[0] <= low <= high <= given[1]:
            raise ValueError(
                "`calibration_data` must lie within `input_range`, "
                f"{tuple(given)}. Received: values in [{low}, {high}]"
            )
        return [(float(given[0]), float(given[1]))]
    limits = []
    for x in arrays:
        low, high = float(x.min()), float(x.max())
        if len(arrays) == 1 and x.ndim == 4:
            _check_scale(low, high, model)
        limits.append(_image_range(low, high) if x.ndim == 4 else (low, high))
    return limits


def _image_range(low: float, high: float) -> Range:
    """The range of a common scaling that values nearly fill, or their own."""
    for limits in NORMALIZATIONS:
        enough = _NEARLY_FULL * (limits[1] - limits[0])
        if limits[0] <= low and high <= limits[1] and high - low >= enough:
            return limits
    return low, high


def _check_scale(low: float, high: float, model: Any) -> None:
    """Raises if pixels seem to be scaled twice or not at all.

    They seem not to be if images of 0 to 100 and more go into a kernel as they
    are: what else a model does first may be a scaling.
    """
    from keras import layers

    first = first_operation(model)
    kinds = (
        *(layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D),
        *(layers.Dense, layers.Flatten, layers.BatchNormalization),
    )
    if low >= 0 and 100 < high <= 256 and isinstance(first, kinds):
        raise ValueError(
            "`calibration_data` must be scaled as in training: it holds pixels "
            f"in [{low}, {high}], and the model starts without a Rescaling "
            f"layer, with {first.name!r}. Scale them, with "
            "`keras_muffnet.preprocess_input` for instance, or give "
            "`input_range=(0, 255)` if it was trained on such pixels"
        )
    if is_pixel_scaling(first) and low >= -2 and high <= 2:
        raise ValueError(
            "`calibration_data` must be scaled as in training: it holds values "
            f"in [{low}, {high}], and the model starts with layer "
            f"{first.name!r}, which scales pixels of 0 to 255 itself. Give "
            "`input_range` if it was trained on such values"
        )
