"""Detection written anew in numpy, box by box, from the formulas."""

import math

import numpy as np


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (
        (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    )


def iou_table(boxes, others):
    return np.array([[iou(a, b) for b in others] for a in boxes]).reshape(
        len(boxes), len(others)
    )


def encode(box, anchor):
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return [
        ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / width / 0.1,
        ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / height / 0.1,
        math.log((box[2] - box[0]) / width) / 0.2,
        math.log((box[3] - box[1]) / height) / 0.2,
    ]


def decode(code, anchor):
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + 0.1 * code[0] * width
    y = (anchor[1] + anchor[3]) / 2 + 0.1 * code[1] * height
    half_width = math.exp(0.2 * code[2]) * width / 2
    half_height = math.exp(0.2 * code[3]) * height / 2
    return [x - half_width, y - half_height, x + half_width, y + half_height]


def match(anchors, boxes):
    """The object of each anchor, or -1."""
    table = iou_table(boxes, anchors)
    result = np.full(len(anchors), -1)
    left = table.copy()
    while left.size and left.max() > 0:
        box, anchor = np.unravel_index(left.argmax(), left.shape)
        result[anchor] = box
        left[box, :] = 0
        left[:, anchor] = 0
    for anchor in range(len(anchors)):
        if result[anchor] < 0 and len(boxes):
            best = table[:, anchor].argmax()
            if table[best, anchor] >= 0.5:
                result[anchor] = best
    return result


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def loss(anchors, targets, answers):
    """SSD's loss of a batch; `targets` as lists of (class, box)."""
    total, positives = 0.0, 0
    for objects, answer in zip(targets, answers, strict=True):
        matched = match(anchors, [box for _, box in objects])
        probabilities = softmax(answer[:, :-4].astype(float))
        found = np.flatnonzero(matched >= 0)
        positives += len(found)
        for k in found:
            kind, box = objects[matched[k]]
            total -= math.log(probabilities[k, kind + 1])
            for got, wanted in zip(
                answer[k, -4:], encode(box, anchors[k]), strict=True
            ):
                d = abs(got - wanted)
                total += 0.5 * d * d if d < 1 else d - 0.5
        negatives = sorted(
            (-math.log(p) for p in probabilities[matched < 0, 0]), reverse=True
        )
        total += sum(negatives[: 3 * len(found)])
    return total / max(1, positives)


def detections(answer, anchors, size, before=400, after=100):
    """Objects as (score, class, box), best first."""
    probabilities = softmax(answer[:, :-4].astype(float))[:, 1:]
    pairs = [
        (probabilities[k, c], c, k)
        for k in range(len(anchors))
        for c in range(probabilities.shape[1])
        if probabilities[k, c] > 0.01
    ]
    pairs = sorted(pairs, key=lambda pair: -pair[0])[:before]
    kept = []
    for score, kind, k in pairs:
        box = decode(answer[k, -4:].astype(float), anchors[k])
        limits = (size[1], size[0]) * 2
        box = [
            min(max(v, 0), most) for v, most in zip(box, limits, strict=True)
        ]
        if all(c != kind or iou(box, b) <= 0.45 for _, c, b in kept):
            kept.append((score, kind, box))
    return kept[:after]


def hits(truths, found, kind, threshold):
    """(score, whether true) of a class, best first, and how many there are.

    `truths` are lists of (class, box, ignored), `found` of (score, class, box).
    """
    answers = sorted(
        (
            (score, image, box)
            for image, listed in enumerate(found)
            for score, c, box in listed
            if c == kind
        ),
        key=lambda answer: -answer[0],
    )
    taken, outcome = set(), []
    for score, image, box in answers:
        mine = [
            (iou(box, other), k, ignored)
            for k, (c, other, ignored) in enumerate(truths[image])
            if c == kind
        ]
        overlap, k, ignored = max(mine, default=(0, None, False))
        if overlap < threshold:
            outcome.append((score, False))
        elif not ignored:
            outcome.append((score, (image, k) not in taken))
            taken.add((image, k))
    total = sum(
        c == kind and not ignored
        for listed in truths
        for c, _, ignored in listed
    )
    return outcome, total


def average_precision(truths, found, kind, threshold, eleven_points):
    outcome, total = hits(truths, found, kind, threshold)
    points = [
        (
            sum(true for _, true in outcome[:n]) / total,
            sum(true for _, true in outcome[:n]) / n,
        )
        for n in range(1, len(outcome) + 1)
    ]

    def best_at(recall):
        return max((p for r, p in points if r >= recall - 1e-9), default=0)

    if eleven_points:
        return sum(best_at(k / 10) for k in range(11)) / 11
    return sum(best_at(k / total) for k in range(1, total + 1)) / total


def coco_average_precision(truths, found, kind, threshold):
    """COCO's: 101 recalls; of free objects the best, not of all."""
    answers = sorted(
        (
            (score, image, box)
            for image, listed in enumerate(found)
            for score, c, box in listed
            if c == kind
        ),
        key=lambda answer: -answer[0],
    )
    taken, true, points = set(), 0, []
    total = sum(c == kind for listed in truths for c, _, _ in listed)
    for n, (_, image, box) in enumerate(answers, start=1):
        mine = [
            (iou(box, other), k)
            for k, (c, other, _) in enumerate(truths[image])
            if c == kind and (image, k) not in taken
        ]
        overlap, k = max(mine, default=(0, None))
        if overlap >= threshold:
            taken.add((image, k))
            true += 1
        points.append((true / total, true / n))
    recalls = np.linspace(0, 1, 101)
    return np.mean(
        [max((p for r, p in points if r >= t), default=0) for t in recalls]
    )
