"""Evaluation of classifiers and detectors, of every format.

The names below load on first use, so that importing this starts no Keras
backend.
"""

from typing import TYPE_CHECKING

from keras_muffnet._lazy import lazy_names

if TYPE_CHECKING:
    from keras_muffnet.evaluation.classification import Evaluation as Evaluation
    from keras_muffnet.evaluation.classification import evaluate as evaluate
    from keras_muffnet.evaluation.classifiers import (
        load_predictor as load_predictor,
    )
    from keras_muffnet.evaluation.detectors import (
        load_detector as load_detector,
    )

_HOMES = {
    "Evaluation": "classification",
    "evaluate": "classification",
    "load_detector": "detectors",
    "load_predictor": "classifiers",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
