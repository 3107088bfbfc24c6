"""The networks that the paper compares MuffNet with, in Keras 3.

Each is made the way `keras_muffnet.MuffNet` is. `PEERS` has the rows of
tables 5 and 6 that they stand for. The functions load on first use, so that
importing this package starts no Keras backend.
"""

from typing import TYPE_CHECKING

from keras_muffnet._lazy import lazy_names
from keras_muffnet.baselines.rows import PEERS as PEERS
from keras_muffnet.baselines.rows import PeerRow as PeerRow

if TYPE_CHECKING:
    from keras_muffnet.baselines.condensenet import (
        CondensationSchedule as CondensationSchedule,
    )
    from keras_muffnet.baselines.condensenet import CondenseNet as CondenseNet
    from keras_muffnet.baselines.condensenet import condense as condense
    from keras_muffnet.baselines.densenet import DenseNet as DenseNet
    from keras_muffnet.baselines.igcv2 import IGCV2 as IGCV2
    from keras_muffnet.baselines.igcv3 import IGCV3 as IGCV3
    from keras_muffnet.baselines.mobilenet import MobileNet as MobileNet
    from keras_muffnet.baselines.mobilenet_v2 import MobileNetV2 as MobileNetV2
    from keras_muffnet.baselines.resnet import ResNet as ResNet
    from keras_muffnet.baselines.shufflenet import ShuffleNet as ShuffleNet
    from keras_muffnet.baselines.shufflenet_v2 import (
        ShuffleNetV2 as ShuffleNetV2,
    )

_HOMES = {
    "CondensationSchedule": "condensenet",
    "CondenseNet": "condensenet",
    "DenseNet": "densenet",
    "IGCV2": "igcv2",
    "IGCV3": "igcv3",
    "MobileNet": "mobilenet",
    "MobileNetV2": "mobilenet_v2",
    "ResNet": "resnet",
    "ShuffleNet": "shufflenet",
    "ShuffleNetV2": "shufflenet_v2",
    "condense": "condensenet",
}

__all__ = ["PEERS", "PeerRow", *_HOMES]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
