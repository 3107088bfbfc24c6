"""Training: recipes, runs that survive being killed, evaluation.

The names below load on first use, so that reading a recipe starts no Keras
backend.
"""

import importlib
from typing import TYPE_CHECKING
from typing import Any

from keras_muffnet.training.recipe import DetectionRecipe as DetectionRecipe
from keras_muffnet.training.recipe import Recipe as Recipe
from keras_muffnet.training.recipe import load_recipe as load_recipe
from keras_muffnet.training.recipe import recipe_names as recipe_names

if TYPE_CHECKING:
    from keras_muffnet.training.detection import Detection as Detection
    from keras_muffnet.training.detection import (
        build_detector as build_detector,
    )
    from keras_muffnet.training.detection import (
        open_detection_feed as open_detection_feed,
    )
    from keras_muffnet.training.detectors import load_detector as load_detector
    from keras_muffnet.training.devices import use_devices as use_devices
    from keras_muffnet.training.evaluation import Evaluation as Evaluation
    from keras_muffnet.training.evaluation import evaluate as evaluate
    from keras_muffnet.training.feeds import open_feed as open_feed
    from keras_muffnet.training.loop import DivergedError as DivergedError
    from keras_muffnet.training.loop import fit as fit
    from keras_muffnet.training.network import build_network as build_network
    from keras_muffnet.training.network import (
        configure_keras as configure_keras,
    )
    from keras_muffnet.training.predictors import (
        load_predictor as load_predictor,
    )

_HOMES = {
    "Detection": "detection",
    "DivergedError": "loop",
    "Evaluation": "evaluation",
    "build_detector": "detection",
    "build_network": "network",
    "configure_keras": "network",
    "evaluate": "evaluation",
    "fit": "loop",
    "load_detector": "detectors",
    "load_predictor": "predictors",
    "open_detection_feed": "detection",
    "open_feed": "feeds",
    "use_devices": "devices",
}

__all__ = ["DetectionRecipe", "Recipe", "load_recipe", "recipe_names", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
