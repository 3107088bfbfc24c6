"""From what SSD answers to boxes: decoding and non-maximum suppression.

Everything has a fixed shape, so that it is compiled and exported as it stands.
"""

from typing import Any
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_muffnet.detection.boxes import clip
from keras_muffnet.detection.boxes import decode
from keras_muffnet.detection.boxes import iou

LEAST_SCORE = 0.01
IOU_THRESHOLD = 0.45
# The best of all classes together that suppression sees, and that it leaves.
BEFORE_NMS = 400
AFTER_NMS = 100


class Detections(NamedTuple):
    """Objects found in a batch of images, best first.

    Attributes:
        boxes: float32 `(batch, k, 4)`, `(x_min, y_min, x_max, y_max)` in pixels
            of the network's input, within it; zero behind the last object.
        scores: float32 `(batch, k)`, zero behind the last object.
        classes: int32 `(batch, k)`, -1 behind the last object.
        count: int32 `(batch,)`: number of objects.
    """

    boxes: Any
    scores: Any
    classes: Any
    count: Any


def detections(
    logits: Any,
    codes: Any,
    anchors: np.ndarray,
    size: tuple[int, int],
    *,
    least_score: float = LEAST_SCORE,
    iou_threshold: float = IOU_THRESHOLD,
    before_nms: int = BEFORE_NMS,
    after_nms: int = AFTER_NMS,
) -> Detections:
    """Finds the objects in what SSD answers.

    Of all pairs of an anchor and a class whose softmax is above `least_score`
    the best `before_nms` are kept; then those go whose box overlaps a better
    one of the same class; then the best `after_nms` are left.

    Args:
        logits: float `(batch, anchors, classes + 1)`, background first.
        codes: float `(batch, anchors, 4)`: see `boxes.encode`.
        anchors: float32 `(anchors, 4)` in pixels.
        size: height and width of the input in pixels.
        least_score: what a score must be above.
        iou_threshold: IoU above which the worse of two boxes goes.
        before_nms: how many pairs are looked at.
        after_nms: how many objects are given at most.

    Returns:
        `Detections` with k = `after_nms`, or the number of pairs if that is
        less.
    """
    logits = ops.cast(logits, "float32")
    # Not `ops.softmax`, of which LiteRT's converter would make one of int8
    # behind a quantized network: its least step is 1/256.
    powers = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    scores = (powers / ops.sum(powers, axis=-1, keepdims=True))[..., 1:]
    classes = scores.shape[-1]
    flat = ops.reshape(scores, (-1, len(anchors) * classes))
    best, index = ops.top_k(flat, min(before_nms, len(anchors) * classes))
    index = ops.cast(index, "int32")
    which = index // classes
    kind = index - which * classes
    chosen = ops.take_along_axis(
        ops.cast(codes, "float32"), which[..., None], axis=1
    )
    boxes = decode(chosen, ops.take(anchors, which, axis=0))
    boxes = clip(boxes, size)
    same = kind[:, :, None] == kind[:, None, :]
    rivals = same & (iou(boxes, boxes) > iou_threshold)
    kept = _unsuppressed(rivals, best > least_score)
    return _compacted(boxes, best, kind, kept, min(after_nms, best.shape[1]))


def _unsuppressed(rivals: Any, valid: Any) -> Any:
    """Greedy suppression of boxes that stand best first.

    A box is kept if no better box that is kept is a rival of it. That has one
    solution, and repeating it from any start comes to it: after round k the
    first k are right. Most often a few rounds do.

    Args:
        rivals: bool `(batch, n, n)`.
        valid: bool `(batch, n)`: those that take part.

    Returns:
        bool `(batch, n)`: those that are kept.
    """
    number = np.arange(rivals.shape[-1])
    better = number[None, :] < number[:, None]
    by_better = ops.cast(rivals & better, "float32")
    valid = ops.cast(valid, "float32")

    def changes(before: Any, kept: Any) -> Any:
        return ops.any(before != kept)

    def again(before: Any, kept: Any) -> tuple[Any, Any]:
        hits = ops.matmul(by_better, kept[..., None])[..., 0]
        return kept, ops.where(hits > 0, 0.0, valid)

    _, kept = ops.while_loop(changes, again, (valid - 1.0, valid))
    return kept > 0


def _compacted(
    boxes: Any, scores: Any, classes: Any, kept: Any, count: int
) -> Detections:
    """Moves what is kept to the front, in its order."""
    scores = ops.where(kept, scores, 0.0)
    scores, index = ops.top_k(scores, count)
    index = ops.cast(index, "int32")
    there = scores > 0
    boxes = ops.take_along_axis(boxes, index[..., None], axis=1)
    classes = ops.take_along_axis(classes, index, axis=1)
    return Detections(
        ops.where(there[..., None], boxes, 0.0),
        scores,
        ops.where(there, classes, -1),
        ops.sum(ops.cast(there, "int32"), axis=-1),
    )
