"""Training: recipes, runs that survive being killed, evaluation.

The names below load on first use, so that reading a recipe starts no Keras
backend.
"""

from typing import TYPE_CHECKING

from keras_muffnet._lazy import lazy_names
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
    from keras_muffnet.training.devices import use_devices as use_devices
    from keras_muffnet.training.fast import accelerate as accelerate
    from keras_muffnet.training.feeds import open_feed as open_feed
    from keras_muffnet.training.loop import DivergedError as DivergedError
    from keras_muffnet.training.loop import fit as fit
    from keras_muffnet.training.network import build_network as build_network
    from keras_muffnet.training.network import (
        configure_keras as configure_keras,
    )

_HOMES = {
    "Detection": "detection",
    "DivergedError": "loop",
    "accelerate": "fast",
    "build_detector": "detection",
    "build_network": "network",
    "configure_keras": "network",
    "fit": "loop",
    "open_detection_feed": "detection",
    "open_feed": "feeds",
    "use_devices": "devices",
}

__all__ = ["DetectionRecipe", "Recipe", "load_recipe", "recipe_names", *_HOMES]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
