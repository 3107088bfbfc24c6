"""The peers' rows of tables 5 and 6: how to build each, what is printed."""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple

if TYPE_CHECKING:
    import keras

# Height and width of an image, and the classes, of a table.
TABLES = {5: (32, 10), 6: (224, 1000)}


class PeerRow(NamedTuple):
    """A row of table 5 (CIFAR-10) or table 6 (ImageNet).

    Attributes:
        table: 5 or 6.
        label: the row's name as the paper prints it.
        network: name of a function of `keras_muffnet.baselines`.
        arguments: its arguments, input shape and classes left out.
        printed_parameters: in millions; None where the paper prints none.
        printed_macs: in millions: the column "FLOPs".
        rule: a key of `keras_muffnet.complexity.COUNTING_RULES`: what the
            printed value counts beside multiply-adds.
        parameters_tolerance: in millions, how far our parameters may be from
            the printed ones: half a unit of the last digit, or what `note`
            gives the reason for.
        macs_tolerance: the same for the operations counted by `rule`.
        note: why a printed value cannot be met to its last digit.
    """

    table: int
    label: str
    network: str
    arguments: Mapping[str, Any]
    printed_parameters: float | None
    printed_macs: float
    rule: str = "macs"
    parameters_tolerance: float = 0.05
    macs_tolerance: float = 0.5
    note: str = ""

    def build(self, **arguments: Any) -> "keras.Model":
        """Builds the network, with random weights.

        Args:
            **arguments: of the function, beside the row's own. Input shape and
                classes are the table's where they are left out.
        """
        from keras_muffnet.blocks import image_shape

        size, classes = TABLES[self.table]
        baselines = importlib.import_module("keras_muffnet.baselines")
        build = getattr(baselines, self.network)
        defaults = {"input_shape": image_shape(size), "classes": classes}
        return build(**(defaults | arguments), **self.arguments)


_GLUON = (
    "Widths truncated and the first block's 1x1 kept, as GluonCV had it before "
    "May 2019: the only form that gives the row of table 5 too."
)
_NEAREST_TEN = f"{_GLUON} Printed to the nearest ten."
_IGCV2 = "A reconstruction: no definition of the network is public."

PEERS = (
    PeerRow(
        5,
        "ShuffleNetV2_0.5",
        "ShuffleNetV2",
        {"alpha": 0.5},
        None,
        40.0,
    ),
    PeerRow(5, "MobileNet_0.25", "MobileNet", {"alpha": 0.25}, None, 41.0),
    PeerRow(
        5,
        "MobileNetV2_0.35",
        "MobileNetV2",
        {"alpha": 0.35, "variant": "gluon"},
        None,
        45.0,
    ),
    PeerRow(5, "ResNet20", "ResNet", {"depth": 20}, None, 41.0),
    PeerRow(5, "ShuffleNetV2_1.0", "ShuffleNetV2", {"alpha": 1.0}, None, 174.0),
    PeerRow(5, "MobileNet_0.5", "MobileNet", {"alpha": 0.5}, None, 156.0),
    PeerRow(
        5,
        "MobileNetV2_0.75",
        "MobileNetV2",
        {"alpha": 0.75, "variant": "gluon"},
        None,
        175.0,
    ),
    PeerRow(5, "ResNet56", "ResNet", {"depth": 56}, None, 126.0),
    PeerRow(5, "ResNet110", "ResNet", {"depth": 110}, None, 253.0),
    PeerRow(
        5,
        "DenseNet40",
        "DenseNet",
        {"depth": 40},
        None,
        206.0,
    ),
    PeerRow(
        5,
        "ShuffleNetV2_1.5",
        "ShuffleNetV2",
        {"alpha": 1.5},
        None,
        370.0,
        macs_tolerance=2.0,
        note=(
            "368.5M in the form that meets the other two rows; none was found "
            "that meets all three."
        ),
    ),
    PeerRow(
        5,
        "MobileNet_0.75",
        "MobileNet",
        {"alpha": 0.75},
        None,
        345.0,
        macs_tolerance=2.0,
        note=(
            "345 cannot stand beside 156 and 612: those two rows put any "
            "network of widths in proportion to alpha between 345.9 and 347.1."
        ),
    ),
    PeerRow(5, "MobileNet_1.0", "MobileNet", {"alpha": 1.0}, None, 612.0),
    PeerRow(
        5,
        "MobileNetV2_1.0",
        "MobileNetV2",
        {"alpha": 1.0, "variant": "gluon"},
        None,
        298.0,
    ),
    PeerRow(
        5,
        "DenseNet_BC_100",
        "DenseNet",
        {"depth": 100, "bottleneck": True},
        None,
        288.0,
    ),
    PeerRow(
        6,
        "ShuffleNetV2_0.5",
        "ShuffleNetV2",
        {"alpha": 0.5},
        1.4,
        41.0,
        macs_tolerance=0.6,
        note="40.48M; the ShuffleNetV2 paper prints 41 for this network too.",
    ),
    PeerRow(
        6,
        "ShuffleNet_0.5 (G=3)",
        "ShuffleNet",
        {"alpha": 0.5},
        None,
        38.0,
    ),
    PeerRow(6, "MobileNet_0.25", "MobileNet", {"alpha": 0.25}, 0.5, 41.0),
    PeerRow(
        6,
        "MobileNetV2_0.35",
        "MobileNetV2",
        {"alpha": 0.35, "variant": "gluon"},
        None,
        50.0,
        macs_tolerance=5.0,
        note=_NEAREST_TEN,
    ),
    PeerRow(
        6,
        "IGCV2_0.25",
        "IGCV2",
        {"alpha": 0.25},
        0.5,
        46.0,
        parameters_tolerance=0.03,
        macs_tolerance=0.69,
        note=_IGCV2,
    ),
    PeerRow(6, "ShuffleNetV2_1.0", "ShuffleNetV2", {"alpha": 1.0}, 2.3, 146.0),
    PeerRow(
        6,
        "ShuffleNet_1.0(G=3)",
        "ShuffleNet",
        {"alpha": 1.0},
        None,
        140.0,
        macs_tolerance=3.0,
        note=(
            "137.46M, as in ShuffleNet's own table of complexities; 140 is the "
            "class of networks that it is compared in."
        ),
    ),
    PeerRow(6, "MobileNet_0.5", "MobileNet", {"alpha": 0.5}, 1.3, 149.0),
    PeerRow(
        6,
        "MobileNetV2_0.75",
        "MobileNetV2",
        {"alpha": 0.75, "variant": "gluon"},
        2.7,
        190.0,
        parameters_tolerance=0.1,
        macs_tolerance=5.0,
        note=(
            f"{_NEAREST_TEN} 2.7M is 2.63M trainable parameters and the moving "
            "statistics."
        ),
    ),
    PeerRow(
        6,
        "IGCV2_0.5",
        "IGCV2",
        {"alpha": 0.5},
        1.3,
        156.0,
        parameters_tolerance=0.078,
        macs_tolerance=2.34,
        note=_IGCV2,
    ),
    PeerRow(
        6,
        "IGCV3-D(0.7)",
        "IGCV3",
        {"alpha": 0.8, "expand_first": False},
        2.8,
        210.0,
    ),
    PeerRow(
        6,
        "ShuffleNetV2_1.5",
        "ShuffleNetV2",
        {"alpha": 1.5},
        3.5,
        299.0,
    ),
    PeerRow(
        6,
        "ShuffleNet_1.5(G=3)",
        "ShuffleNet",
        {"alpha": 1.5},
        3.4,
        292.0,
    ),
    PeerRow(6, "MobileNet_0.75", "MobileNet", {"alpha": 0.75}, 2.6, 325.0),
    PeerRow(6, "MobileNet_1.0", "MobileNet", {"alpha": 1.0}, 4.2, 569.0),
    PeerRow(
        6,
        "MobileNetV2_1.0",
        "MobileNetV2",
        {"alpha": 1.0},
        3.4,
        300.0,
        parameters_tolerance=0.11,
        macs_tolerance=1.0,
        note=(
            "Quoted from the MobileNetV2 paper, which prints 3.4 and 300 for "
            "3.50M (3.47M without batch normalization) and 300.8M."
        ),
    ),
    PeerRow(
        6,
        "CondenseNet(G=C=8)",
        "CondenseNet",
        {"condensed": True},
        2.9,
        274.0,
        rule="+R+P",
    ),
    PeerRow(
        6,
        "IGCV2-1.0",
        "IGCV2",
        {"alpha": 1.0},
        4.1,
        564.0,
        parameters_tolerance=0.246,
        macs_tolerance=8.46,
        note=_IGCV2,
    ),
    PeerRow(6, "IGCV3-D", "IGCV3", {"alpha": 1.0}, 3.5, 318.0, rule="+R"),
)
