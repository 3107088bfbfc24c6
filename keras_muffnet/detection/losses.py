"""The loss of SSD (section 2.2 of its paper)."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_muffnet.detection.boxes import encode
from keras_muffnet.detection.matching import match

# Negatives for each positive of an image, the hardest ones.
NEGATIVES = 3


@keras.saving.register_keras_serializable("keras_muffnet")
class SSDLoss(keras.losses.Loss):
    """Cross-entropy of classes plus smooth-L1 of box codes.

    Anchors are matched with objects here, in the graph; see `matching.match`.
    Those with an object are positives. Of the others the hardest three for each
    positive of the same image count as background, those of the largest
    cross-entropy; an image without objects has none. The sum over the batch is
    divided by the batch's number of positives, at least 1, and by nothing else.

    For `model.compile` as the loss of what `SSD` builds: `y_true` is float
    `(batch, max_objects, 5)`, rows of `(class, x_min, y_min, x_max, y_max)` in
    pixels of the input, -1 for the class of a row that is padding; `y_pred`
    float `(batch, anchors, classes + 5)`.

    ```python
    from keras_muffnet.detection import SSD, SSDLoss

    model = SSD(classes=20, input_shape=(300, 300, 3))
    model.compile("sgd", SSDLoss(model.layers[-1].anchors))
    ```

    Args:
        anchors: float `(anchors, 4)` in pixels: `model.layers[-1].anchors`.
        negatives: negatives for each positive.
        **kwargs: as in Keras.
    """

    def __init__(
        self,
        anchors: Any,
        negatives: float = NEGATIVES,
        name: str = "ssd_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.anchors = np.asarray(anchors, np.float32)
        self.negatives = negatives

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns float `(batch,)`, whose mean is the loss."""
        y_pred = ops.cast(y_pred, "float32")
        y_true = ops.cast(y_true, "float32")
        logits, codes = y_pred[..., :-4], y_pred[..., -4:]
        boxes = y_true[..., 1:]
        matched = match(self.anchors, boxes, y_true[..., 0] >= 0)
        positive = matched >= 0
        objects = ops.maximum(matched, 0)
        found = ops.take_along_axis(y_true, objects[..., None], axis=1)
        classes = ops.where(positive, ops.cast(found[..., 0], "int32") + 1, 0)

        entropy = keras.losses.sparse_categorical_crossentropy(
            classes, logits, from_logits=True
        )
        chosen = positive | _hardest(entropy, positive, self.negatives)
        class_loss = _masked_sum(entropy, chosen)

        anchors = ops.convert_to_tensor(self.anchors)
        # The anchor itself where there is no object, so that no NaN arises.
        wanted = ops.where(positive[..., None], found[..., 1:], anchors)
        error = ops.abs(codes - encode(wanted, anchors))
        smooth = ops.where(error < 1.0, 0.5 * error**2, error - 0.5)
        box_loss = _masked_sum(ops.sum(smooth, axis=-1), positive)

        positives = ops.sum(ops.cast(positive, "float32"))
        # Keras takes the mean over the batch of what is returned.
        batch = ops.cast(ops.shape(y_pred)[0], "float32")
        return (class_loss + box_loss) * batch / ops.maximum(positives, 1.0)

    def get_config(self) -> dict[str, Any]:
        """Returns what makes the same loss."""
        return {
            **super().get_config(),
            "anchors": self.anchors.tolist(),
            "negatives": self.negatives,
        }


def _hardest(entropy: Any, positive: Any, ratio: float) -> Any:
    """Marks the negatives of the largest loss, `ratio` for each positive."""
    rank_by = ops.where(positive, -1.0, ops.stop_gradient(entropy))
    rank = ops.argsort(ops.argsort(-rank_by, axis=-1), axis=-1)
    count = ratio * ops.sum(ops.cast(positive, "float32"), axis=-1)
    within = ops.cast(rank, "float32") < count[:, None]
    return within & ops.logical_not(positive)


def _masked_sum(values: Any, mask: Any) -> Any:
    # Not by multiplying: what is left out may be infinite.
    return ops.sum(ops.where(mask, values, 0.0), axis=-1)
