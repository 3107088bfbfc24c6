"""Which part of an image is taken, and how it gets its size."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How an image gets its size.

    Attributes:
        size: height and width in pixels.
        aspect: the least and the greatest width to height of a random crop,
            where images come with one; None for whole images.
        center: the share of the shorter side that is kept, as in
            `Augmentation.test_crop`; None keeps all.
        channels: 3 for RGB, 1 for gray.
    """

    size: tuple[int, int]
    aspect: tuple[float, float] | None = None
    center: float | None = None
    channels: int = 3


def random_box(
    xp: Any, height: Any, width: Any, crop: Any, aspect: tuple[float, float]
) -> tuple[Any, Any, Any, Any]:
    """The first of a crop's tries that fits in an image, or its center.

    Args:
        xp: `numpy`, or TensorFlow's functions under NumPy's names.
        height: of the image, float64.
        width: of the image, float64.
        crop: `(CROP_TRIES, 4)`, of `Augmentation.draw_crops`.
        aspect: bounds of the crop in the center.

    Returns:
        Top, left, height and width: whole numbers, float64.
    """
    # Multiplication and square roots only: they are exact everywhere, so that
    # both ways of decoding cut the same box.
    side = xp.sqrt(crop[:, 0] * height * width)
    tall, wide = xp.rint(side / crop[:, 1]), xp.rint(side * crop[:, 1])
    fits = (tall >= 1) & (wide >= 1) & (tall <= height) & (wide <= width)
    # If none does: as much of the center as the bounds of the aspect allow.
    full_tall = xp.minimum(height, xp.rint(width / aspect[0]))
    full_wide = xp.minimum(width, xp.rint(height * aspect[1]))
    any_fits = xp.any(fits)
    first = xp.argmax(fits)
    tall = xp.where(any_fits, tall[first], full_tall)
    wide = xp.where(any_fits, wide[first], full_wide)
    top = xp.where(any_fits, crop[first, 2], 0.5) * (height - tall + 1)
    left = xp.where(any_fits, crop[first, 3], 0.5) * (width - wide + 1)
    return xp.floor(top), xp.floor(left), tall, wide
