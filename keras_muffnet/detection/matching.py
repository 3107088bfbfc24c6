"""Which anchor has to find which object (section 2.2 of the SSD paper)."""

from typing import Any

from keras import ops

from keras_muffnet.detection.boxes import iou

# An anchor whose IoU with an object is at least this finds it, too.
THRESHOLD = 0.5


def match(anchors: Any, boxes: Any, valid: Any) -> Any:
    """Gives anchors the objects that they are to find.

    First each object gets an anchor of its own: of all pairs of anchors and
    objects that are free the one of the largest IoU is taken, again and again.
    Then each anchor that is free gets the object of the largest IoU, if that is
    at least 0.5. An object that touches no free anchor gets none.

    The shapes are fixed, so that it can be compiled. On a tie the earlier
    object and the earlier anchor come first.

    Args:
        anchors: float `(n, 4)`.
        boxes: float `(batch, m, 4)`.
        valid: bool `(batch, m)`, False for padding.

    Returns:
        int32 `(batch, n)`: the number of the object, or -1.
    """
    boxes = ops.convert_to_tensor(boxes)
    overlap = iou(boxes, ops.convert_to_tensor(anchors, boxes.dtype)[None])
    overlap = ops.where(valid[..., None], overlap, 0.0)
    own = _own_anchors(overlap)
    best = ops.argmax(overlap, axis=1)
    enough = ops.max(overlap, axis=1) >= THRESHOLD
    found = ops.where(enough, ops.cast(best, "int32"), -1)
    return ops.where(own >= 0, own, found)


def _own_anchors(overlap: Any) -> Any:
    """The number of the object whose own each anchor is, or -1.

    A pair that is the best of its object and the best of its anchor is one that
    taking the largest of all again and again would come to. So all such pairs
    are taken at a time, which takes few rounds instead of one for each object.
    """
    objects, anchors = overlap.shape[1], overlap.shape[2]
    object_numbers = ops.arange(objects, dtype="int32")
    anchor_numbers = ops.arange(anchors, dtype="int32")

    def some_left(left: Any, own: Any) -> Any:
        return ops.any(left > 0)

    def take(left: Any, own: Any) -> tuple[Any, Any]:
        of_object = ops.cast(ops.argmax(left, axis=2), "int32")
        of_anchor = ops.cast(ops.argmax(left, axis=1), "int32")
        free = ops.max(left, axis=2) > 0
        back = ops.take_along_axis(of_anchor, of_object, axis=1)
        taken = free & (back == object_numbers)
        pairs = taken[..., None] & (of_object[..., None] == anchor_numbers)
        anchor_taken = ops.any(pairs, axis=1)
        own = ops.where(anchor_taken, of_anchor, own)
        gone = taken[..., None] | anchor_taken[:, None, :]
        return ops.where(gone, 0.0, left), own

    none = ops.cast(ops.zeros_like(overlap[:, 0]), "int32") - 1
    _, own = ops.while_loop(some_left, take, (overlap, none))
    return own
