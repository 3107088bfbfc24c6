"""Loss and accuracies, for labels as integers or one-hot."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def cross_entropy(
    label_smoothing: float, from_logits: bool
) -> Callable[[Any, Any], Any]:
    """Returns the cross-entropy of each image, of labels in either form.

    Args:
        label_smoothing: share of a label that is spread over all classes.
        from_logits: whether the model's last layer has no activation.
    """

    def loss(labels: Any, scores: Any) -> Any:
        if not is_one_hot(labels):
            labels = ops.one_hot(integers(labels), scores.shape[-1])
        return keras.losses.categorical_crossentropy(
            labels, scores, from_logits, label_smoothing
        )

    return loss


def accuracies(classes: int) -> list["keras.metrics.Metric"]:
    """Returns the metrics "accuracy" and "top5_accuracy", of either form.

    Args:
        classes: number of classes. Where they are five or fewer, a top-5
            accuracy is always 1.
    """
    return [
        keras.metrics.MeanMetricWrapper(in_top(1), name="accuracy"),
        keras.metrics.MeanMetricWrapper(
            in_top(min(5, classes)), name="top5_accuracy"
        ),
    ]


def in_top(count: int) -> Callable[[Any, Any], Any]:
    """Returns a function: whether labels are among the best `count`."""

    def hit(labels: Any, scores: Any) -> Any:
        if is_one_hot(labels):
            labels = ops.argmax(labels, axis=-1)
        # Not `ops.in_top_k`, for which a network that gives all classes the
        # same score is always right.
        best = ops.top_k(scores, count)[1]
        hits = ops.equal(best, integers(labels)[:, None])
        return ops.cast(ops.any(hits, axis=-1), "float32")

    return hit


def is_one_hot(labels: Any) -> bool:
    """Whether labels have an axis of classes: Keras may add one of size 1."""
    return len(labels.shape) > 1 and labels.shape[-1] != 1


def integers(labels: Any) -> Any:
    """Returns `(batch,)` integers of what Keras makes of them."""
    return ops.reshape(ops.cast(labels, "int32"), (-1,))
