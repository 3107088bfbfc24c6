"""What an exported detector answers: boxes, inside the graph."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_muffnet.detection.postprocess import detections
from keras_muffnet.detection.ssd import predictions_layer

Tensors = dict[str, tf.Tensor]
Serve = Callable[[tf.Tensor], Tensors]


def finding(
    model: keras.Model, run: Callable[[Any], Any], network: Any = None
) -> Serve:
    """Returns a function from images to objects, for a signature.

    Args:
        model: a detector, as `keras_muffnet.detection.SSD` builds it.
        run: gives the model's output for images.
        network: quantized, gives class logits and box codes in the model's
            place.

    Returns:
        A function of TensorFlow's tensors. What it gives is described in
        `export_saved_model`.
    """
    layer = predictions_layer(model)
    anchors = layer.anchors
    height, width = layer.image_size

    def find(images: tf.Tensor) -> Tensors:
        if network is None:
            answer = run(images)
            logits, codes = answer[..., :-4], answer[..., -4:]
        else:
            logits, codes = network(images, training=False)
        found = detections(logits, codes, anchors, layer.image_size)
        x_min, y_min, x_max, y_max = tf.unstack(found.boxes, axis=-1)
        boxes = tf.stack(
            [y_min / height, x_min / width, y_max / height, x_max / width],
            axis=-1,
        )
        return {
            "boxes": boxes,
            "classes": found.classes,
            "num_detections": found.count,
            "scores": found.scores,
        }

    return find


def naming_found(serve: Serve, table: tf.lookup.StaticHashTable) -> Serve:
    """Adds the names of the classes to what `serve` answers."""

    def name(images: tf.Tensor) -> Tensors:
        answer = serve(images)
        names = table.lookup(tf.cast(answer["classes"], tf.int64))
        return {**answer, "labels": names}

    return name
