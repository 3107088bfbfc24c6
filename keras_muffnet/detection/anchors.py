"""Anchors: the boxes that SSD's predictions are relative to (numpy only)."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

# Sides of the square anchors as shares of the image's side: that of level k and
# the next give the two squares of level k. 51.2, 102.4, 189.4, 276.5, 363.5,
# 450.6 and 491.5 pixels at 512.
SCALES = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 0.96)

_THREE = (1.0, 2.0, 1 / 2)
_FIVE = (*_THREE, 3.0, 1 / 3)
# Width to height of each level's anchors.
RATIOS = (_THREE, _FIVE, _FIVE, _FIVE, _THREE, _THREE)


def anchor_boxes(
    size: tuple[int, int],
    maps: Sequence[tuple[int, int]],
    scales: Sequence[float] = SCALES,
    ratios: Sequence[Sequence[float]] = RATIOS,
) -> np.ndarray:
    """Lays out the anchors of all levels.

    A cell of a map has, in this order, a square of side s, one of side
    sqrt(s s'), s' being the next level's s, and for each ratio r but the first
    a box of width s sqrt(r) and height s / sqrt(r). All have their center in
    the middle of the cell. They are not clipped to the image.

    Args:
        size: height and width of the image in pixels.
        maps: rows and columns of each level's map.
        scales: sides as shares of the image's side, one more than there are
            levels. The side of an image that is not a square is the geometric
            mean of height and width.
        ratios: for each level the ratios, the first of which is 1.

    Returns:
        float32 boxes `(anchors, 4)`, `(x_min, y_min, x_max, y_max)` in pixels:
        level by level, row by row, column by column.

    Raises:
        ValueError: if scales or ratios are not as above.
    """
    check_anchors(len(maps), scales, ratios)
    height, width = size
    side = math.sqrt(height * width)
    levels = []
    for k, (rows, columns) in enumerate(maps):
        least, next_one = scales[k] * side, scales[k + 1] * side
        middle = math.sqrt(least * next_one)
        sides = [(least, least), (middle, middle)] + [
            (least * math.sqrt(r), least / math.sqrt(r)) for r in ratios[k][1:]
        ]
        # Of the map's cells, not of the stride: maps are rounded up.
        x = (np.arange(columns) + 0.5) * width / columns
        y = (np.arange(rows) + 0.5) * height / rows
        centers = np.stack(np.meshgrid(x, y), axis=-1)[:, :, None]
        halves = np.array(sides) / 2
        corners = np.concatenate([centers - halves, centers + halves], axis=-1)
        levels.append(corners.reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


def check_anchors(levels: int, scales: Any, ratios: Any) -> None:
    """Checks what `anchor_boxes` is given.

    Raises:
        ValueError: naming what is wrong.
    """
    if len(scales) != levels + 1 or not all(map(_is_positive, scales)):
        raise ValueError(
            f"`scales` must be {levels + 1} positive numbers, one more than "
            f"there are levels. Received: scales={scales!r}"
        )
    if len(ratios) != levels or not all(
        len(row) and row[0] == 1 and all(map(_is_positive, row))
        for row in ratios
    ):
        raise ValueError(
            f"`ratios` must be {levels} rows of positive numbers, one a level, "
            f"each starting with 1. Received: ratios={ratios!r}"
        )


def _is_positive(value: Any) -> bool:
    return (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and 0 < float(value) < math.inf
    )
