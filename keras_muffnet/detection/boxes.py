"""Boxes: intersection over union, the box code of SSD, clipping.

A box is `(x_min, y_min, x_max, y_max)` in pixels, in continuous coordinates: an
image of width W spans 0 to W, so that a box of one pixel has a side of 1.
Everything here takes tensors or arrays and gives tensors of Keras's backend.
"""

from typing import Any

from keras import ops

# Standard deviations of the code, of center and size: "variances" of the
# authors' SSD.
CENTER_SCALE = 0.1
SIZE_SCALE = 0.2
# The code of a size is cut off here, where e^x still is a number of float16.
_LARGEST = 10.0
_LEAST = 1e-6


def areas(boxes: Any) -> Any:
    """Areas of boxes `(..., 4)`: float `(...)`, zero for those inside out."""
    sides = ops.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def iou(first: Any, second: Any) -> Any:
    """Intersection over union of each box with each.

    Args:
        first: float `(..., n, 4)`.
        second: float `(..., m, 4)`.

    Returns:
        Float `(..., n, m)` in [0, 1]; 0 for boxes without an area.
    """
    a, b = first[..., :, None, :], second[..., None, :, :]
    # Side by side, not as one tensor with an axis of two: half the memory.
    width, height = (
        ops.maximum(
            ops.minimum(a[..., k + 2], b[..., k + 2])
            - ops.maximum(a[..., k], b[..., k]),
            0.0,
        )
        for k in (0, 1)
    )
    both = width * height
    either = areas(first)[..., :, None] + areas(second)[..., None, :] - both
    return both / ops.maximum(either, _LEAST)


def encode(boxes: Any, anchors: Any) -> Any:
    """Writes boxes relative to anchors (SSD, equation 2, scaled).

    With centers `c` and sides `s`, for x and y alike:
    `((c - c_anchor) / s_anchor / 0.1, log(s / s_anchor) / 0.2)`.

    Args:
        boxes: float `(..., 4)`. Of sides of zero the least is taken that has a
            logarithm.
        anchors: float `(..., 4)`, one for each box, with an area.

    Returns:
        Float `(..., 4)`: code of center x, center y, width, height.
    """
    center, size = _center_and_size(boxes)
    anchor_center, anchor_size = _center_and_size(anchors)
    return ops.concatenate(
        [
            (center - anchor_center) / anchor_size / CENTER_SCALE,
            ops.log(ops.maximum(size, _LEAST) / anchor_size) / SIZE_SCALE,
        ],
        axis=-1,
    )


def decode(codes: Any, anchors: Any) -> Any:
    """Reads what `encode` wrote.

    Args:
        codes: float `(..., 4)`.
        anchors: float `(..., 4)`, one for each code.

    Returns:
        Float boxes `(..., 4)`, not clipped.
    """
    # PyTorch does not take arrays and tensors together.
    codes, anchors = map(ops.convert_to_tensor, (codes, anchors))
    anchor_center, anchor_size = _center_and_size(anchors)
    center = codes[..., :2] * CENTER_SCALE * anchor_size + anchor_center
    logarithm = ops.minimum(codes[..., 2:] * SIZE_SCALE, _LARGEST)
    half = ops.exp(logarithm) * anchor_size / 2.0
    return ops.concatenate([center - half, center + half], axis=-1)


def clip(boxes: Any, size: tuple[int, int]) -> Any:
    """Cuts boxes off at the borders of an image.

    Args:
        boxes: float `(..., 4)`.
        size: height and width of the image in pixels.
    """
    height, width = size
    limits = ops.convert_to_tensor([width, height] * 2, boxes.dtype)
    return ops.minimum(ops.maximum(boxes, 0.0), limits)


def _center_and_size(boxes: Any) -> tuple[Any, Any]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2.0, high - low
