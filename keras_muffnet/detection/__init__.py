"""Object detection with SSD, on any backbone and any backend of Keras.

The names below load on first use, so that importing this starts no Keras
backend.
"""

from typing import TYPE_CHECKING

from keras_muffnet._lazy import lazy_names

if TYPE_CHECKING:
    from keras_muffnet.detection.evaluation import (
        MeanAveragePrecision as MeanAveragePrecision,
    )
    from keras_muffnet.detection.losses import SSDLoss as SSDLoss
    from keras_muffnet.detection.postprocess import Detections as Detections
    from keras_muffnet.detection.ssd import SSD as SSD
    from keras_muffnet.detection.ssd import SSDPredictions as SSDPredictions
    from keras_muffnet.detection.ssd import detector as detector
    from keras_muffnet.detection.ssd import find_levels as find_levels
    from keras_muffnet.detection.ssd import pretrained_ssd as pretrained_ssd
    from keras_muffnet.detection.ssd import two_outputs as two_outputs

_HOMES = {
    "SSD": "ssd",
    "Detections": "postprocess",
    "MeanAveragePrecision": "evaluation",
    "SSDLoss": "losses",
    "SSDPredictions": "ssd",
    "detector": "ssd",
    "find_levels": "ssd",
    "pretrained_ssd": "ssd",
    "two_outputs": "ssd",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
