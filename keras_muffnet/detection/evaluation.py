"""A detector on test images: what it finds, and mAP while it trains."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_muffnet.detection.metrics import Found
from keras_muffnet.detection.metrics import Truth
from keras_muffnet.detection.metrics import voc_average_precision
from keras_muffnet.detection.postprocess import Detections
from keras_muffnet.detection.postprocess import detections
from keras_muffnet.detection.ssd import predictions_layer


def find_objects(
    detect: Callable[[Any], Detections],
    batches: Any,
    truths: Sequence[Truth],
    size: tuple[int, int],
) -> list[Found]:
    """Runs a detector on test images.

    Args:
        detect: from a batch to `Detections`, in pixels of the network's input.
        batches: what `detect` takes: an iterable, or a
            `keras.utils.PyDataset`.
        truths: one for each image, in order; only their sizes are looked at.
        size: height and width of the network's input.

    Returns:
        What was found in each image, in pixels of the original.
    """
    found: list[Found] = []
    for batch in _batches(batches):
        answer = Detections(*map(ops.convert_to_numpy, detect(batch)))
        for k in range(len(answer.count)):
            found.append(_one(answer, k, truths[len(found)], size))
    return found


def predict(model: keras.Model, images: Any) -> Detections:
    """Like `ssd.detector`, by the model's own compiled function."""
    layer = predictions_layer(model)
    answer = model.predict_on_batch(images)
    return detections(
        answer[..., :-4], answer[..., -4:], layer.anchors, layer.image_size
    )


class MeanAveragePrecision(keras.callbacks.Callback):
    """Adds `val_ap50` to the logs of `model.fit`, after each epoch.

    That is Pascal VOC's average precision, of the whole area, at an IoU of 0.5,
    as the mean of the classes that have objects. Callbacks after it can
    monitor it.

    ```python
    from keras_muffnet import data
    from keras_muffnet.detection import SSD, MeanAveragePrecision, SSDLoss

    feed = data.make_detection_feed(
        data.open_detection_source("cells"),
        size=(96, 96),
        batch_size=2,
        train_split="trainval",
    )
    model = SSD(classes=len(feed.class_names), input_shape=(96, 96, 3))
    model.compile("sgd", SSDLoss(model.layers[-1].anchors))
    model.fit(
        feed.epoch(0), shuffle=False, callbacks=[MeanAveragePrecision(feed)]
    )
    ```

    Args:
        feed: `keras_muffnet.data.detection.feed.DetectionFeed`, or what has its
            `class_names`, `evaluation` and `ground_truth`. With a
            `validation_size` above 0, its `validation` images are taken.
        every: epochs between evaluations.
    """

    def __init__(self, feed: Any, every: int = 1) -> None:
        super().__init__()
        self.feed = feed
        self.every = every

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Evaluates and writes to the logs."""
        if logs is None or (epoch + 1) % self.every:
            return
        logs["val_ap50"] = measure_ap50(
            lambda batch: predict(self.model, batch[0]),
            self.feed,
            predictions_layer(self.model).image_size,
            validation=bool(getattr(self.feed, "validation_size", 0)),
        )


def measure_ap50(
    detect: Callable[[Any], Detections],
    feed: Any,
    size: tuple[int, int],
    validation: bool = False,
) -> float:
    """Returns a detector's AP50 on the test images of a feed; see `ap50`.

    Args:
        detect: from a batch of the feed to `Detections`, in pixels of the
            network's input.
        feed: `keras_muffnet.data.DetectionFeed`, or what has its
            `class_names`, `evaluation` and `ground_truth`.
        size: height and width of the network's input.
        validation: takes the images that epochs are compared on instead.
    """
    if validation:
        truths, batches = feed.ground_truth(validation), feed.validation()
    else:
        truths, batches = feed.ground_truth(), feed.evaluation()
    found = find_objects(detect, batches, truths, size)
    return ap50(truths, found, len(feed.class_names))


def ap50(
    truths: Sequence[Truth], found: Sequence[Found], classes: int
) -> float:
    """Returns Pascal VOC's average precision, of the whole area, at IoU 0.5.

    The mean of the classes that have objects; 0 if none has.

    Args:
        truths: what is in each image.
        found: what was found in it.
        classes: number of classes.
    """
    return mean_precision(voc_average_precision(truths, found, classes))


def mean_precision(precisions: np.ndarray) -> float:
    """The mean of the classes that have objects; 0 if none has."""
    known = precisions[~np.isnan(precisions)]
    return float(known.mean()) if len(known) else 0.0


def _batches(batches: Any) -> Iterator[Any]:
    if isinstance(batches, keras.utils.PyDataset):
        return map(batches.__getitem__, range(len(batches)))
    return iter(batches)


def _one(
    answer: Detections, k: int, truth: Truth, size: tuple[int, int]
) -> Found:
    count = int(answer.count[k])
    scale = np.divide(truth.size, size)[[1, 0, 1, 0]]
    return Found(
        answer.boxes[k, :count] * scale,
        answer.scores[k, :count],
        answer.classes[k, :count],
    )
