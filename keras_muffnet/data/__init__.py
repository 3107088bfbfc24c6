"""Images for training: sources, augmentation and feeds for `model.fit`.

The names below load on first use, so that importing this starts no Keras
backend, and what needs TensorFlow imports it on use.
"""

from typing import TYPE_CHECKING

from keras_muffnet._lazy import lazy_names

if TYPE_CHECKING:
    from keras_muffnet.data.augmentation import CIFAR as CIFAR
    from keras_muffnet.data.augmentation import IMAGENET as IMAGENET
    from keras_muffnet.data.augmentation import PLAIN as PLAIN
    from keras_muffnet.data.augmentation import Augmentation as Augmentation
    from keras_muffnet.data.detection.annotations import (
        DetectionSource as DetectionSource,
    )
    from keras_muffnet.data.detection.augmentation import (
        SSDAugmentation as SSDAugmentation,
    )
    from keras_muffnet.data.detection.feed import DetectionFeed as DetectionFeed
    from keras_muffnet.data.detection.feed import (
        make_detection_feed as make_detection_feed,
    )
    from keras_muffnet.data.detection.sources import (
        open_detection_source as open_detection_source,
    )
    from keras_muffnet.data.digits import load_digits as load_digits
    from keras_muffnet.data.examples import Source as Source
    from keras_muffnet.data.examples import (
        balanced_class_weights as balanced_class_weights,
    )
    from keras_muffnet.data.feed import Feed as Feed
    from keras_muffnet.data.feed import make_feed as make_feed
    from keras_muffnet.data.images import ImageSet as ImageSet
    from keras_muffnet.data.images import load_images as load_images
    from keras_muffnet.data.images import make_dataset as make_dataset
    from keras_muffnet.data.records import write_records as write_records
    from keras_muffnet.data.sources import open_source as open_source

_HOMES = {
    "Augmentation": "augmentation",
    "CIFAR": "augmentation",
    "DetectionFeed": "detection.feed",
    "DetectionSource": "detection.annotations",
    "Feed": "feed",
    "IMAGENET": "augmentation",
    "ImageSet": "images",
    "PLAIN": "augmentation",
    "SSDAugmentation": "detection.augmentation",
    "Source": "examples",
    "balanced_class_weights": "examples",
    "load_digits": "digits",
    "load_images": "images",
    "make_dataset": "images",
    "make_detection_feed": "detection.feed",
    "make_feed": "feed",
    "open_detection_source": "detection.sources",
    "open_source": "sources",
    "write_records": "records",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
