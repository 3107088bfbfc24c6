"""Checks calibration data, and finds within what limits images lie."""

from typing import Any

import numpy as np

from keras_muffnet.preprocessing import MEAN
from keras_muffnet.preprocessing import STD
from keras_muffnet.preprocessing import scales_pixels

Range = tuple[float, float]

# How images are scaled that no range is given for: the first of these that the
# calibration data fits in, with the mean and the standard deviation in pixels.
# All but the last put each pixel exactly on a level; the second is that of
# `keras_muffnet.preprocess_input`.
NORMALIZATIONS = {
    (0.0, 1.0): (0.0, 255.0),
    (-1.0, 127 / 128): (MEAN, STD),
    (0.0, 255.0): (0.0, 1.0),
    (-1.0, 1.0): (127.5, 127.5),
}


def checked_input_range(
    data: Any, plan: Any, model: Any, limits: Range | None
) -> Range:
    """Checks the calibration data and says within what limits images lie."""
    check_images(data, plan.input_shape)
    low, high = float(data.min()), float(data.max())
    if limits is not None:
        if not limits[0] <= low <= high <= limits[1]:
            raise ValueError(
                "`calibration_data` must lie within `input_range`, "
                f"{tuple(limits)}. Received: values in [{low}, {high}]"
            )
        return float(limits[0]), float(limits[1])
    _check_scale(low, high, model)
    for limits in NORMALIZATIONS:
        if limits[0] <= low and high <= limits[1]:
            return limits
    return low, high


def check_images(data: Any, shape: tuple[int, ...]) -> None:
    """Raises if the data are no finite float images of the shape."""
    if not isinstance(data, np.ndarray) or data.dtype.kind != "f":
        found = getattr(data, "dtype", type(data).__name__)
        raise ValueError(
            "`calibration_data` must be a float array, scaled as the model "
            f"wants its images. Received: {found}"
        )
    if data.ndim != 4 or data.shape[1:] != shape or not len(data):
        raise ValueError(
            "`calibration_data` must have shape (n, "
            f"{', '.join(map(str, shape))}), with n at least 1. "
            f"Received: an array of shape {data.shape}"
        )
    low, high = data.min(), data.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(
            "`calibration_data` must be finite. Received: values in "
            f"[{low}, {high}]"
        )


def _check_scale(low: float, high: float, model: Any) -> None:
    """Raises if pixels seem to be scaled twice or not at all."""
    from keras_muffnet.graph import trace

    first = trace(model).calls[0].operation
    scales = scales_pixels(model)
    if low >= 0 and high > 2 and not scales:
        raise ValueError(
            "`calibration_data` must be scaled as in training: it holds pixels "
            f"in [{low}, {high}], and the model starts without a Rescaling "
            "layer. Scale them, with `keras_muffnet.preprocess_input` for "
            "instance, or give `input_range=(0, 255)` if it was trained on "
            "such pixels"
        )
    if scales and low >= -2 and high <= 2:
        raise ValueError(
            "`calibration_data` must be scaled as in training: it holds values "
            f"in [{low}, {high}], and the model starts with layer "
            f"{first.name!r}, which scales pixels of 0 to 255 itself. Give "
            "`input_range` if it was trained on such values"
        )
