"""MuffNet for Keras 3: multi-layer feature federation for mobile vision.

The names below load on first use, so that `import keras_muffnet` starts no
Keras backend.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from keras_muffnet._lazy import lazy_names

if TYPE_CHECKING:
    from keras_muffnet.budget import stages_for_budget as stages_for_budget
    from keras_muffnet.complexity import count_complexity as count_complexity
    from keras_muffnet.federation import SharingMatrix as SharingMatrix
    from keras_muffnet.layers import ChannelSlice as ChannelSlice
    from keras_muffnet.muffnet import MuffNet as MuffNet
    from keras_muffnet.muffnet import decode_predictions as decode_predictions
    from keras_muffnet.preprocessing import preprocess_input as preprocess_input
    from keras_muffnet.presets import StageSpec as StageSpec
    from keras_muffnet.presets import (
        stages_from_notation as stages_from_notation,
    )
    from keras_muffnet.published import (
        published_detectors as published_detectors,
    )
    from keras_muffnet.published import published_weights as published_weights

__version__ = "0.2.0"

_HOMES = {
    "ChannelSlice": "layers",
    "MuffNet": "muffnet",
    "SharingMatrix": "federation",
    "StageSpec": "presets",
    "count_complexity": "complexity",
    "decode_predictions": "muffnet",
    "preprocess_input": "preprocessing",
    "published_detectors": "published",
    "published_weights": "published",
    "stages_for_budget": "budget",
    "stages_from_notation": "presets",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)


# `load_model` needs the layers of a saved MuffNet or detector registered. With
# Keras loaded already that costs nothing.
if "keras" in sys.modules:
    for _name in ("layers", "detection.ssd", "detection.losses"):
        importlib.import_module(f"{__name__}.{_name}")
