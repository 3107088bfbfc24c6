"""Training of a detector: its network, its images, what it is judged by."""

import math
import os
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_muffnet.baselines import MobileNet
from keras_muffnet.baselines import MobileNetV2
from keras_muffnet.baselines import ShuffleNetV2
from keras_muffnet.blocks import image_shape
from keras_muffnet.data.detection.annotations import DetectionSource
from keras_muffnet.data.detection.augmentation import SSDAugmentation
from keras_muffnet.data.detection.feed import DetectionFeed
from keras_muffnet.data.detection.feed import make_detection_feed
from keras_muffnet.data.detection.sources import open_detection_source
from keras_muffnet.detection import SSD
from keras_muffnet.detection import SSDLoss
from keras_muffnet.detection.anchors import SCALES
from keras_muffnet.detection.evaluation import measure_ap50
from keras_muffnet.detection.postprocess import Detections
from keras_muffnet.detection.postprocess import detections
from keras_muffnet.detection.ssd import EXTRA_FILTERS
from keras_muffnet.detection.ssd import predictions_layer
from keras_muffnet.detection.ssd import pretrained_ssd
from keras_muffnet.muffnet import MuffNet
from keras_muffnet.published import published_detectors
from keras_muffnet.published import published_weights
from keras_muffnet.training.network import CLASSIFIER
from keras_muffnet.training.network import copy_weights
from keras_muffnet.training.recipe import DetectionRecipe
from keras_muffnet.training.tasks import Phase
from keras_muffnet.training.tasks import Row

# A run is stopped at so many times the loss of a network that gives each class
# the same probability. The first steps of a good run may have several times it.
DIVERGED = 100
# Backbones of `keras_muffnet.baselines`: those of section 5.4.
PEERS = {
    "MobileNet": MobileNet,
    "MobileNetV2": MobileNetV2,
    "ShuffleNetV2": ShuffleNetV2,
}


def open_detection_feed(recipe: DetectionRecipe) -> DetectionFeed:
    """Opens the images that a recipe names, augmented as SSD has it.

    Args:
        recipe: the recipe. Keras must be configured for it before.

    Raises:
        ValueError: if the recipe names no images, or they are not as
            `keras_muffnet.data.detection.feed` wants them.
        ImportError: if a package that the images need is not installed.
    """
    if recipe.data is None:
        raise ValueError(
            "`data` must name the images: a folder of Pascal VOC or COCO, or "
            "'tfds:NAME'. Received: data=None"
        )
    source = open_detection_source(
        recipe.data,
        validation_split=recipe.validation_split,
        seed=recipe.seed,
    )
    train_split = recipe.train_split or find_train_split(
        source, recipe.test_split
    )
    if recipe.validation_split is not None and train_split != "train":
        raise ValueError(
            "`train_split` must be 'train' where a part of these images is "
            "held out. Received: "
            f"validation_split={recipe.validation_split}, "
            f"train_split={train_split!r}"
        )
    # Lists of other names, such as VOC's "trainval", hold images of "val".
    apart = (
        train_split == "train"
        and recipe.test_split != "val"
        and {"val", recipe.test_split} <= set(source.splits)
    )
    return make_detection_feed(
        source,
        size=(recipe.size, recipe.size),
        batch_size=recipe.batch_size,
        max_objects=recipe.max_objects,
        seed=recipe.seed,
        augment=SSDAugmentation(hue=recipe.hue, expansion=recipe.expansion),
        train_split=train_split,
        test_split=recipe.test_split,
        val_split="val" if apart else None,
        on_bad_annotation=recipe.on_bad,
    )


def find_train_split(source: DetectionSource, test_split: str) -> str:
    """Returns "trainval" where there is one beside a test split, or "train".

    Args:
        source: images with boxes.
        test_split: name of the split that is evaluated on. "val" is a part
            of "trainval", as what stands in for a test split that is missing.
    """
    beside = test_split != "val" and test_split in source.splits
    return "trainval" if beside and "trainval" in source.splits else "train"


def build_detector(recipe: DetectionRecipe, classes: int) -> keras.Model:
    """Builds the detector that a recipe trains, with its first weights.

    Args:
        recipe: the recipe.
        classes: number of classes.

    Raises:
        ValueError: if a setting of the network is wrong, or the weights do
            not fit it.
        OSError: if the file of the weights is damaged.
    """
    model = SSD(
        _backbone(recipe, image_shape(recipe.size)),
        classes,
        extra_filters=[round(n * recipe.extra_width) for n in EXTRA_FILTERS],
        scales=[scale * recipe.anchor_scale for scale in SCALES],
    )
    if recipe.weights is not None and recipe.weights not in published_weights():
        _load_weights(model, recipe.weights)
    return model


def _backbone(recipe: DetectionRecipe, shape: tuple[int, ...]) -> keras.Model:
    published = recipe.weights in published_weights()
    if recipe.backbone == "muffnet":
        return MuffNet(
            input_shape=shape,
            alpha=recipe.alpha,
            include_top=False,
            weights=recipe.weights if published else None,
            stem="imagenet",
        )
    if published:
        raise ValueError(
            "`backbone` must be 'muffnet' for published weights. "
            f"Received: backbone={recipe.backbone!r}, "
            f"weights={recipe.weights!r}"
        )
    if recipe.backbone in PEERS:
        return PEERS[recipe.backbone](
            input_shape=shape,
            alpha=recipe.alpha,
            include_top=False,
            stem="imagenet",
        )
    build = getattr(keras.applications, recipe.backbone, None)
    if not callable(build):
        raise ValueError(
            f"`backbone` must be 'muffnet', one of {', '.join(PEERS)}, or the "
            "name of a network of keras.applications. "
            f"Received: backbone={recipe.backbone!r}"
        )
    if recipe.alpha != 1.0:
        raise ValueError(
            "`alpha` must be 1 for backbones of keras.applications. "
            f"Received: alpha={recipe.alpha}, backbone={recipe.backbone!r}"
        )
    return build(input_shape=shape, include_top=False, weights=None)


def _load_weights(model: keras.Model, path: str) -> None:
    """Loads a classifier into the backbone, or a detector into the whole."""
    if path in published_detectors():
        source = pretrained_ssd(path)
    elif os.path.isfile(path) and path.endswith(".keras"):
        source = keras.saving.load_model(path, compile=False)
    else:
        published = ", ".join([*published_weights(), *published_detectors()])
        raise ValueError(
            "`weights` of a detector must be an existing .keras file or one of "
            f"{published}. Received: weights={path!r}"
        )
    names = {layer.name for layer in source.layers}
    copy_weights(
        source,
        model,
        path,
        # What a classifier does not have, and heads of other classes.
        may_differ=lambda name: (
            name == CLASSIFIER
            or name.endswith("_classes_conv")
            or (name not in names and name.startswith(("extra", "level")))
        ),
    )


class Detection:
    """Training of a detector, as a `tasks.Task`.

    Args:
        recipe: the settings.
        feed: the images.
    """

    score = "ap50"

    def __init__(self, recipe: DetectionRecipe, feed: DetectionFeed) -> None:
        self.recipe = recipe
        self.feed = feed
        guessing = 4 * math.log(len(feed.class_names) + 1)
        self.diverged = DIVERGED * guessing
        self.preprocessing = feed.preprocessing

    def phases(self) -> list[Phase]:
        """Returns the one phase, in which all layers are trained."""
        rate = self.recipe.learning_rate
        return [Phase(0, self.recipe.epochs, rate, lambda model: None)]

    def objectives(self, model: keras.Model, training: bool) -> dict[str, Any]:
        """Returns SSD's loss."""
        return {"loss": SSDLoss(predictions_layer(model).anchors)}

    def evaluate(self, model: keras.Model, final: bool = False) -> Row:
        """Returns `loss` and `ap50`: VOC's, of the whole area at IoU 0.5."""
        layer = predictions_layer(model)
        anchors = layer.anchors
        loss = SSDLoss(anchors)
        losses: list[float] = []
        weights: list[int] = []

        def detect(batch: tuple[Any, Any]) -> Detections:
            images, targets = batch
            answer = model.predict_on_batch(images)
            losses.append(float(ops.convert_to_numpy(loss(targets, answer))))
            weights.append(len(images))
            return detections(
                answer[..., :-4], answer[..., -4:], anchors, layer.image_size
            )

        score = measure_ap50(
            detect,
            self.feed,
            layer.image_size,
            validation=bool(self.feed.validation_size) and not final,
        )
        return {
            "loss": float(np.average(losses, weights=weights)),
            "ap50": score,
        }

    def summary(self, figures: Row) -> str:
        """Returns AP50 in words."""
        return f"AP50 {figures['ap50']:.2%}"
