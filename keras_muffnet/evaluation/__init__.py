"""Evaluation of classifiers and detectors, of every format.

The names below load on first use, so that importing this starts no Keras
backend.
"""

from typing import TYPE_CHECKING

from keras_muffnet._lazy import lazy_names

if TYPE_CHECKING:
    from keras_muffnet.evaluation.classification import Evaluation as Evaluation
    from keras_muffnet.evaluation.classification import evaluate as evaluate
    from keras_muffnet.evaluation.detection import (
        DetectionEvaluation as DetectionEvaluation,
    )
    from keras_muffnet.evaluation.detection import (
        evaluate_detector as evaluate_detector,
    )
    from keras_muffnet.evaluation.models import check_classes as check_classes
    from keras_muffnet.evaluation.models import load_detector as load_detector
    from keras_muffnet.evaluation.models import (
        load_keras_model as load_keras_model,
    )
    from keras_muffnet.evaluation.models import load_model as load_model
    from keras_muffnet.evaluation.models import load_predictor as load_predictor

_HOMES = {
    "DetectionEvaluation": "detection",
    "Evaluation": "classification",
    "check_classes": "models",
    "evaluate": "classification",
    "evaluate_detector": "detection",
    "load_detector": "models",
    "load_keras_model": "models",
    "load_model": "models",
    "load_predictor": "models",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
