"""Tables 1-7: their rows, the networks behind them, and their counts."""

import functools
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import keras

from keras_muffnet.baselines import PEERS
from keras_muffnet.baselines.rows import TABLES
from keras_muffnet.blocks import image_shape
from keras_muffnet.budget import stage_macs
from keras_muffnet.budget import stages_of_equal_cost
from keras_muffnet.complexity import count_complexity
from keras_muffnet.complexity import count_operations
from keras_muffnet.muffnet import MuffNet
from keras_muffnet.presets import PAPER_NOTATION
from keras_muffnet.presets import PRESETS
from keras_muffnet.presets import StageSpec
from keras_muffnet.presets import closed_form_counts
from keras_muffnet.presets import stages_from_notation

TITLES = {
    1: "Sharing patterns of the low-level stage (ImageNet)",
    2: "Sharing patterns of the mid-level stage (ImageNet)",
    3: "Sharing patterns of the high-level stage (ImageNet)",
    4: "Combinations of sharing patterns (ImageNet)",
    5: "CIFAR-10 and CIFAR-100",
    6: "ImageNet",
    7: "MS COCO, SSD512",
}
DETECTION_SIZE = 512

# The cost that tables 1-4 print for all of their networks, in millions.
ABLATION_PARAMETERS, ABLATION_PARAMETERS_TOLERANCE = 1.38, 0.02
ABLATION_MACS, ABLATION_MACS_TOLERANCE = 42.0, 0.5

Build = Callable[..., keras.Model]


class Row(NamedTuple):
    """A row of a table: what the paper prints, and how to build the network.

    Attributes:
        table: 1 to 7.
        label: the row's name, as printed.
        build: from keyword arguments `input_shape`, `classes`, `include_top`
            and `classifier_activation`, as `MuffNet` takes them, to a model.
        printed_parameters: in millions; None where none are printed.
        printed_macs: in millions: the column "FLOPs".
        accuracies: printed accuracies in percent, by data set.
        rule: a key of `complexity.COUNTING_RULES`: what the printed value
            counts beside multiply-adds.
        parameters_tolerance: in millions, how far our parameters may be from
            the printed ones.
        macs_tolerance: the same for the operations counted by `rule`.
        note: why a printed value cannot be met to its last digit.
        stages: of a MuffNet; None for a peer.
    """

    table: int
    label: str
    build: Build
    printed_parameters: float | None
    printed_macs: float
    accuracies: Mapping[str, float]
    rule: str = "macs"
    parameters_tolerance: float = 0.05
    macs_tolerance: float = 0.5
    note: str = ""
    stages: tuple[StageSpec, ...] | None = None


class RowCounts(NamedTuple):
    """What we count for a row.

    Attributes:
        parameters: trainable parameters.
        macs: multiply-adds.
        flops: what the row's rule counts.
        backbone_parameters: of table 7, without the classifier.
        backbone_macs: the same at the detector's 512x512.
        problems: counts that are out of tolerance, in words.
    """

    parameters: int
    macs: int
    flops: int
    backbone_parameters: int | None
    backbone_macs: int | None
    problems: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether all counts are within their tolerance."""
        return not self.problems


_ABLATION = {
    1: {
        "none+none+none": 59.69,
        "geometric+none+none": 59.77,
        "average+none+none": 59.79,
        "linear+none+none": 59.75,
        "dense+none+none": 59.71,
    },
    2: {
        "none+none+none": 59.69,
        "none+geometric+none": 60.34,
        "none+average+none": 59.89,
        "none+linear+none": 60.13,
        "none+dense+none": 59.76,
    },
    3: {
        "none+none+none": 59.69,
        "none+none+geometric": 58.93,
        "none+none+average": 58.95,
        "none+none+linear": 58.87,
        "none+none+dense": 58.56,
    },
    4: {
        "none+none+none": 59.69,
        "geometric+geometric+none": 60.39,
        "geometric+average+none": 60.31,
        "average+geometric+none": 60.60,
        "average+average+none": 60.30,
        "linear+linear+none": 59.94,
        "linear+geometric+none": 60.32,
        "linear+average+none": 60.10,
        "geometric+linear+none": 60.31,
        "average+linear+none": 60.52,
    },
}

# CIFAR-10 and, where it is printed, CIFAR-100. In the paper's order.
_CIFAR: dict[str, tuple[float, float | None]] = {
    "MuffNet_0.5": (93.44, 71.83),
    "ShuffleNetV2_0.5": (93.25, 71.42),
    "MobileNet_0.25": (92.78, 71.29),
    "MobileNetV2_0.35": (93.12, 71.34),
    "ResNet20": (91.25, None),
    "MuffNet_1.0": (94.82, 76.23),
    "ShuffleNetV2_1.0": (94.60, 76.05),
    "MobileNet_0.5": (93.94, 73.94),
    "MobileNetV2_0.75": (94.71, 75.88),
    "ResNet56": (93.93, None),
    "ResNet110": (93.57, None),
    "DenseNet40": (94.06, 75.58),
    "MuffNet_1.5": (95.46, 77.65),
    "ShuffleNetV2_1.5": (95.16, 77.32),
    "MobileNet_0.75": (94.55, 75.90),
    "MobileNet_1.0": (94.54, 76.47),
    "MobileNetV2_1.0": (95.21, 77.44),
    "DenseNet_BC_100": (95.49, 77.73),
}

_IMAGENET = {
    "MuffNet_0.5": 62.1,
    "ShuffleNetV2_0.5": 60.3,
    "ShuffleNet_0.5 (G=3)": 56.8,
    "MobileNet_0.25": 50.6,
    "MobileNetV2_0.35": 60.3,
    "IGCV2_0.25": 54.9,
    "MuffNet_1.0": 69.9,
    "ShuffleNetV2_1.0": 69.4,
    "ShuffleNet_1.0(G=3)": 67.4,
    "MobileNet_0.5": 63.7,
    "MobileNetV2_0.75": 69.6,
    "IGCV2_0.5": 65.5,
    "IGCV3-D(0.7)": 68.5,
    "MuffNet_1.5": 73.1,
    "ShuffleNetV2_1.5": 72.6,
    "ShuffleNet_1.5(G=3)": 71.5,
    "MobileNet_0.75": 68.4,
    "MobileNet_1.0": 70.6,
    "MobileNetV2_1.0": 72.0,
    "CondenseNet(G=C=8)": 71.0,
    "IGCV2-1.0": 70.7,
    "IGCV3-D": 72.2,
}

# mAP on COCO, and the row of table 6 that is the detector's backbone.
_DETECTION = {
    "MuffNet": (22.0, "MuffNet_1.5"),
    "ShuffleNetV2": (21.8, "ShuffleNetV2_1.5"),
    "MobileNetV2": (21.9, "MobileNetV2_1.0"),
    "MobileNet": (21.7, "MobileNet_1.0"),
}


@functools.cache
def rows(table: int) -> tuple[Row, ...]:
    """Returns the rows of a table, in the paper's order.

    Args:
        table: 1 to 7.

    Raises:
        ValueError: if there is no such table.
    """
    if table not in TITLES:
        raise ValueError(
            f"`table` must be one of {list(TITLES)}. Received: table={table!r}"
        )
    if table in _ABLATION:
        printed = _ABLATION[table].items()
        return tuple(_ablation(table, label, acc) for label, acc in printed)
    if table == 5:
        return tuple(
            _benchmark(
                5,
                label,
                {"CIFAR-10": first}
                | ({} if second is None else {"CIFAR-100": second}),
            )
            for label, (first, second) in _CIFAR.items()
        )
    if table == 6:
        return tuple(
            _benchmark(6, label, {"ImageNet": accuracy})
            for label, accuracy in _IMAGENET.items()
        )
    return tuple(
        _benchmark(6, backbone, {"COCO mAP": precision})._replace(
            table=7, label=label
        )
        for label, (precision, backbone) in _DETECTION.items()
    )


def count(row: Row) -> RowCounts:
    """Builds a row's network and holds its counts against the printed ones.

    Args:
        row: of `rows`.
    """
    # All tables but 5 are of ImageNet's networks.
    size, classes = TABLES.get(row.table, TABLES[6])
    model = row.build(input_shape=image_shape(size), classes=classes)
    built = count_complexity(model)
    flops = count_operations(model, row.rule)
    problems = []
    if built.uncounted:
        problems.append(f"not counted: {', '.join(built.uncounted)}")
    for name, found, printed, tolerance in (
        (
            "parameters",
            built.parameters,
            row.printed_parameters,
            row.parameters_tolerance,
        ),
        ("FLOPs", flops, row.printed_macs, row.macs_tolerance),
    ):
        if printed is not None and abs(found - printed * 1e6) > (
            tolerance * 1e6 + 0.5
        ):
            problems.append(f"{name} {found:,}, printed {printed:g} M")
    if row.stages is not None:
        stem = "cifar" if size == 32 else "imagenet"
        formula = closed_form_counts(row.stages, size, stem, classes=classes)
        if formula != (built.parameters, built.macs):
            problems.append(f"closed formulas give {formula}")
    backbone: tuple[int, int] | tuple[None, None] = (None, None)
    if row.table == 7:
        shape = image_shape(DETECTION_SIZE)
        features = row.build(input_shape=shape, include_top=False)
        counted = count_complexity(features)
        backbone = counted.parameters, counted.macs
    return RowCounts(
        built.parameters,
        built.macs,
        flops,
        backbone[0],
        backbone[1],
        tuple(problems),
    )


def stage_difference(stages: Sequence[StageSpec]) -> float:
    """How far a network of tables 1-4 is from the reference, at most.

    Returns:
        The relative difference in multiply-adds of the stage where it is
        largest.
    """
    spent, wanted = stage_macs(stages), stage_macs(_reference())
    differences = [s / w - 1 for s, w in zip(spent, wanted, strict=True)]
    return max(differences, key=abs)


def _reference() -> tuple[StageSpec, ...]:
    return stages_from_notation(PAPER_NOTATION, 0.5)


@functools.cache
def ablation_stages(notation: str) -> tuple[StageSpec, ...]:
    """Stages of a row of tables 1-4, each at the cost of MuffNet 0.5's.

    Args:
        notation: sharing patterns, such as "none+linear+none".
    """
    return stages_of_equal_cost(
        notation,
        _reference(),
        macs=_around(ABLATION_MACS, ABLATION_MACS_TOLERANCE),
        parameters=_around(ABLATION_PARAMETERS, ABLATION_PARAMETERS_TOLERANCE),
    )


def _around(millions: float, tolerance: float) -> tuple[float, float]:
    return (millions - tolerance) * 1e6, (millions + tolerance) * 1e6


def _ablation(table: int, label: str, accuracy: float) -> Row:
    stages = ablation_stages(label)
    return Row(
        table,
        label,
        functools.partial(MuffNet, stages=stages),
        # Table 4 leaves them out.
        None if table == 4 else ABLATION_PARAMETERS,
        ABLATION_MACS,
        {"ImageNet": accuracy},
        parameters_tolerance=ABLATION_PARAMETERS_TOLERANCE,
        macs_tolerance=ABLATION_MACS_TOLERANCE,
        stages=stages,
    )


def _benchmark(table: int, label: str, accuracies: Mapping[str, float]) -> Row:
    for alpha, preset in PRESETS.items():
        if label == f"MuffNet_{alpha}":
            return Row(
                table,
                label,
                functools.partial(MuffNet, alpha=alpha),
                preset.paper_parameters if table == 6 else None,
                preset.paper_macs_224 if table == 6 else preset.paper_macs_32,
                accuracies,
                stages=stages_from_notation(PAPER_NOTATION, alpha),
            )
    (peer,) = (p for p in PEERS if (p.table, p.label) == (table, label))
    return Row(
        table,
        label,
        peer.build,
        peer.printed_parameters,
        peer.printed_macs,
        accuracies,
        peer.rule,
        peer.parameters_tolerance,
        peer.macs_tolerance,
        peer.note,
    )
