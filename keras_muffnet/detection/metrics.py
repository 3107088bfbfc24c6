"""Average precision, as Pascal VOC and as COCO have it."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import Protocol

import numpy as np

from keras_muffnet._optional import load_optional

# COCO's twelve figures, in the order in which pycocotools gives them.
COCO_FIGURES = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)


class Truth(Protocol):
    """The objects of an image, such as `data.detection.feed.GroundTruth`."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""

    @property
    def boxes(self) -> np.ndarray:
        """Float `(n, 4)`, `(x_min, y_min, x_max, y_max)` in pixels."""

    @property
    def classes(self) -> np.ndarray:
        """Integers `(n,)`."""

    @property
    def difficult(self) -> np.ndarray:
        """Bool `(n,)`: count neither as found nor as missed."""

    @property
    def crowd(self) -> np.ndarray:
        """Bool `(n,)`: groups, of which any number may be found."""

    @property
    def area(self) -> np.ndarray:
        """Float `(n,)`: of the objects in pixels."""


class Found(NamedTuple):
    """What was found in an image.

    Attributes:
        boxes: float `(n, 4)`, in pixels of the same image as the truth's.
        scores: float `(n,)`.
        classes: integers `(n,)`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def voc_average_precision(
    truths: Sequence[Truth],
    found: Sequence[Found],
    classes: int,
    iou_threshold: float = 0.5,
    eleven_points: bool = False,
) -> np.ndarray:
    """Average precision of each class, as Pascal VOC has it.

    From the best score on, what was found is true if its IoU with an object of
    its class is at least the threshold and that object was not found before;
    only the object of the largest IoU is looked at. If that is difficult or a
    crowd, it counts neither way.

    Args:
        truths: the objects of each image.
        found: what was found in each.
        classes: number of classes.
        iou_threshold: at or above it an object is found.
        eleven_points: the mean of the best precisions at recalls of 0, 0.1 to
            1, as VOC had it until 2009; otherwise the area below the best
            precision at each recall or a higher one.

    Returns:
        float64 `(classes,)`; NaN for a class without objects.
    """
    _check_pairs(truths, found)
    return np.array(
        [
            _average_precision(
                truths, found, kind, iou_threshold, eleven_points
            )
            for kind in range(classes)
        ]
    )


def _average_precision(
    truths: Sequence[Truth],
    found: Sequence[Found],
    kind: int,
    iou_threshold: float,
    eleven_points: bool,
) -> float:
    total = 0
    scores: list[float] = []
    hits: list[bool] = []
    for truth, answer in zip(truths, found, strict=True):
        there = truth.classes == kind
        boxes = truth.boxes[there]
        ignored = (truth.difficult | truth.crowd)[there]
        total += int((~ignored).sum())
        mine = answer.classes == kind
        order = np.argsort(-answer.scores[mine], kind="stable")
        table = _iou(answer.boxes[mine][order], boxes)
        taken = np.zeros(len(boxes), bool)
        for row, score in zip(table, answer.scores[mine][order], strict=True):
            best = int(row.argmax()) if len(row) else -1
            hit = best >= 0 and row[best] >= iou_threshold
            if hit and ignored[best]:
                continue
            scores.append(float(score))
            hits.append(bool(hit and not taken[best]))
            if hit:
                taken[best] = True
    if not total:
        return float("nan")
    order = np.argsort(-np.array(scores), kind="stable")
    true = np.cumsum(np.array(hits, float)[order])
    recall = true / total
    precision = true / np.arange(1, len(true) + 1)
    # The best precision at a recall or a higher one.
    best_from = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven_points:
        # As 0.1, 0.2, ... are not binary numbers.
        reached = [recall >= k / 10 - 1e-12 for k in range(11)]
        return float(
            np.mean([best_from[r].max() if r.any() else 0.0 for r in reached])
        )
    return float((np.diff(recall, prepend=0.0) * best_from).sum())


def coco_figures(
    truths: Sequence[Truth], found: Sequence[Found], classes: int
) -> dict[str, float]:
    """COCO's twelve figures, by pycocotools.

    Difficult objects are taken for crowds, which count neither as found nor as
    missed.

    Args:
        truths: the objects of each image.
        found: what was found in each; the best 100 of each image count.
        classes: number of classes.

    Returns:
        By the names of `COCO_FIGURES`; NaN where there is nothing to be found,
        such as large objects.

    Raises:
        ImportError: if pycocotools is not installed.
    """
    _check_pairs(truths, found)
    coco = load_optional("pycocotools.coco", "detection").COCO
    coco_eval = load_optional("pycocotools.cocoeval", "detection").COCOeval
    # They print what they do.
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco()
        known.dataset = {
            "info": {},
            "images": [
                {"id": k, "height": t.size[0], "width": t.size[1]}
                for k, t in enumerate(truths, start=1)
            ],
            "categories": [{"id": k, "name": str(k)} for k in range(classes)],
            "annotations": _annotations(truths),
        }
        known.createIndex()
        listed = _results(found)
        answers = known.loadRes(listed) if listed else coco()
        evaluation = coco_eval(known, answers, "bbox")
        if not listed:
            evaluation.params.imgIds = sorted(known.getImgIds())
            evaluation.params.catIds = sorted(known.getCatIds())
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = np.where(evaluation.stats < 0, np.nan, evaluation.stats)
    return dict(zip(COCO_FIGURES, map(float, figures), strict=True))


def _annotations(truths: Sequence[Truth]) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for image, truth in enumerate(truths, start=1):
        for k, box in enumerate(truth.boxes):
            annotations.append(
                {
                    # From 1, since 0 means "not matched".
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(truth.classes[k]),
                    "bbox": _corner_and_sides(box),
                    "area": float(truth.area[k]),
                    "iscrowd": int(truth.crowd[k] or truth.difficult[k]),
                }
            )
    return annotations


def _results(found: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image,
            "category_id": int(kind),
            "bbox": _corner_and_sides(box),
            "score": float(score),
        }
        for image, answer in enumerate(found, start=1)
        for box, score, kind in zip(*answer, strict=True)
    ]


def _corner_and_sides(box: np.ndarray) -> list[float]:
    x_min, y_min, x_max, y_max = map(float, box)
    return [x_min, y_min, x_max - x_min, y_max - y_min]


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of each with each: `(n, m)`, in numpy."""
    a, b = first[:, None].astype(float), second[None].astype(float)
    sides = np.minimum(a[..., 2:], b[..., 2:])
    sides = np.maximum(sides - np.maximum(a[..., :2], b[..., :2]), 0)
    both = sides.prod(axis=-1)
    either = (a[..., 2:] - a[..., :2]).prod(axis=-1) - both
    either = either + (b[..., 2:] - b[..., :2]).prod(axis=-1)
    return both / np.maximum(either, 1e-12)


def _check_pairs(truths: Sequence[Truth], found: Sequence[Found]) -> None:
    if len(truths) != len(found):
        raise ValueError(
            "`found` must have an entry for each of `truths`. Received: "
            f"{len(found)} for {len(truths)}"
        )
