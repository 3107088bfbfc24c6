"""Average precision of Pascal VOC and of COCO."""

from typing import NamedTuple

import keras
import numpy as np
import pytest

from keras_muffnet.detection.evaluation import MeanAveragePrecision
from keras_muffnet.detection.evaluation import find_objects
from keras_muffnet.detection.evaluation import predict
from keras_muffnet.detection.metrics import COCO_FIGURES
from keras_muffnet.detection.metrics import Found
from keras_muffnet.detection.metrics import coco_figures
from keras_muffnet.detection.metrics import voc_average_precision
from tests import detection_references as reference
from tests.test_detection import random_boxes
from tests.test_detection import small_ssd

CLASSES = 3


class Truth(NamedTuple):
    size: tuple[int, int]
    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    area: np.ndarray


def truth(boxes, classes, difficult=None, crowd=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    none = np.zeros(len(boxes), bool)
    return Truth(
        (200, 300),
        boxes,
        np.asarray(classes, np.int64),
        none if difficult is None else np.asarray(difficult, bool),
        none if crowd is None else np.asarray(crowd, bool),
        (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
    )


def found(boxes, scores, classes):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Found(boxes, np.asarray(scores, float), np.asarray(classes, int))


def scenes(seed, difficult=0.0, images=12):
    """Random objects, and answers that are near some of them."""
    rng = np.random.default_rng(seed)
    truths, answers = [], []
    for k in range(images):
        count = 0 if k == 3 else int(rng.integers(1, 9))
        boxes = random_boxes(rng, count, least=8, size=(200, 300))
        classes = rng.integers(0, CLASSES, count)
        truths.append(truth(boxes, classes, rng.random(count) < difficult))
        near = np.repeat(boxes, 2, axis=0)
        near = near + rng.normal(0, 2.5, near.shape).astype("float32")
        boxes = np.concatenate([near, random_boxes(rng, 4, size=(200, 300))])
        kinds = np.concatenate(
            [np.repeat(classes, 2), rng.integers(0, CLASSES, 4)]
        )
        kept = rng.random(len(boxes)) < 0.8
        scores = rng.random(len(boxes))
        answers.append(found(boxes[kept], scores[kept], kinds[kept]))
    return truths, answers


def listed(truths, answers):
    return (
        [
            list(zip(t.classes, t.boxes, t.difficult | t.crowd, strict=True))
            for t in truths
        ],
        [list(zip(a.scores, a.classes, a.boxes, strict=True)) for a in answers],
    )


@pytest.mark.parametrize("eleven_points", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 0.75])
@pytest.mark.parametrize("difficult", [0.0, 0.3])
def test_voc_is_that_of_the_formula(difficult, threshold, eleven_points):
    truths, answers = scenes(5, difficult)
    got = voc_average_precision(
        truths, answers, CLASSES, threshold, eleven_points
    )
    for kind in range(CLASSES):
        wanted = reference.average_precision(
            *listed(truths, answers), kind, threshold, eleven_points
        )
        assert 0.05 < wanted < 0.95
        assert got[kind] == pytest.approx(wanted, abs=1e-9)


def test_voc_by_hand():
    box, other = (0, 0, 10, 10), (50, 50, 60, 60)
    truths = [truth([box, other], [0, 0])]
    # True, false (found before), true: precisions 1, 1/2, 2/3.
    answers = [found([box, box, other], [0.9, 0.8, 0.7], [0, 0, 0])]
    area, eleven = (
        voc_average_precision(truths, answers, 2, eleven_points=points)
        for points in (False, True)
    )
    assert area[0] == pytest.approx((1 + 2 / 3) / 2)
    assert eleven[0] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert np.isnan(area[1])


def test_difficult_objects_and_crowds_count_neither_way():
    box, other = (0, 0, 10, 10), (50, 50, 90, 90)
    for flag in ("difficult", "crowd"):
        truths = [truth([box, other], [0, 0], **{flag: [False, True]})]
        for boxes in ([box], [other, box], [other, other, box]):
            scores = np.linspace(0.9, 0.1, len(boxes))
            answers = [found(boxes, scores, [0] * len(boxes))]
            assert voc_average_precision(truths, answers, 1) == [1.0]
            assert coco_figures(truths, answers, 1)["AP"] == pytest.approx(1)


def test_coco_is_that_of_the_formula():
    truths, answers = scenes(6)
    figures = coco_figures(truths, answers, CLASSES)
    assert tuple(figures) == COCO_FIGURES
    table = np.array(
        [
            [
                reference.coco_average_precision(
                    *listed(truths, answers), kind, threshold
                )
                for kind in range(CLASSES)
            ]
            for threshold in np.linspace(0.5, 0.95, 10)
        ]
    )
    assert figures["AP"] == pytest.approx(table.mean(), abs=1e-6)
    assert figures["AP50"] == pytest.approx(table[0].mean(), abs=1e-6)
    assert figures["AP75"] == pytest.approx(table[5].mean(), abs=1e-6)
    assert 0.1 < figures["AP"] < figures["AP50"] < 0.9
    # No side here is above 50 pixels, none of these objects large.
    assert np.isnan(figures["AP_large"])
    assert figures["AP_medium"] > 0
    assert figures["AR1"] < figures["AR10"] <= figures["AR100"]


def test_voc_and_coco_agree_where_they_must():
    truths, answers = scenes(7, images=30)
    area = voc_average_precision(truths, answers, CLASSES)
    # 101 recalls instead of all; a second choice of the object.
    figures = coco_figures(truths, answers, CLASSES)
    assert figures["AP50"] == pytest.approx(area.mean(), abs=0.02)


@pytest.mark.parametrize("objects", [0, 200])
def test_nothing_found_or_nothing_there(objects):
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, objects, size=(200, 300))
    there = truth(boxes, [0] * objects)
    nothing = found([], [], [])
    something = found([(0, 0, 9, 9)], [0.5], [0])
    for answer in (nothing, something):
        precisions = voc_average_precision([there], [answer], 1)
        figures = coco_figures([there], [answer], 1)
        if objects:
            assert precisions[0] < 0.01
            assert figures["AP"] < 0.01
        else:
            assert np.isnan(precisions[0])
            assert np.isnan(figures["AP"])
    whole = found(boxes, np.linspace(1, 0.1, objects), [0] * objects)
    if objects:
        assert voc_average_precision([there], [whole], 1) == [1.0]
        # COCO takes the best 100 of an image.
        assert coco_figures([there], [whole], 1)["AR100"] == 0.5


def test_lists_must_be_as_long():
    with pytest.raises(ValueError, match="`found` must have an entry"):
        voc_average_precision([], [found([], [], [])], 1)


class Feed:
    """One batch of two images, whose originals are twice as high."""

    class_names = ("a", "b")

    def __init__(self):
        rng = np.random.default_rng(0)
        self.images = rng.normal(size=(2, 64, 64, 3)).astype("float32")
        self.targets = np.full((2, 1, 5), [0, 10, 10, 40, 40], "float32")

    def evaluation(self):
        return [(self.images, self.targets)]

    def ground_truth(self):
        return [
            truth([(10, 20, 40, 80)], [0])._replace(size=(128, 64))
            for _ in range(2)
        ]


def test_the_callback_writes_what_the_boxes_of_the_originals_say(monkeypatch):
    keras.utils.set_random_seed(1)
    model, feed = small_ssd(), Feed()
    size = (64, 64)
    inside = predict(model, feed.images)
    answers = find_objects(
        lambda batch: predict(model, batch[0]),
        feed.evaluation(),
        feed.ground_truth(),
        size,
    )
    count = int(inside.count[1])
    assert count == len(answers[1].scores) > 0
    np.testing.assert_allclose(
        answers[1].boxes,
        np.asarray(inside.boxes)[1, :count] * [1, 2, 1, 2],
        rtol=1e-6,
    )

    def right(batch_model, images):
        boxes = np.tile(np.float32([10, 10, 40, 40]), (2, 1, 1))
        ones = np.ones((2, 1), np.float32)
        return type(inside)(
            boxes, ones, np.zeros((2, 1), int), np.array([1, 1])
        )

    monkeypatch.setattr("keras_muffnet.detection.evaluation.predict", right)
    callback = MeanAveragePrecision(feed, every=2)
    callback.set_model(model)
    logs = {}
    callback.on_epoch_end(0, logs)
    assert logs == {}
    callback.on_epoch_end(1, logs)
    assert logs == {"val_ap50": 1.0}
