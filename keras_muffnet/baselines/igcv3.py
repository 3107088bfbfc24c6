"""IGCV3-D: MobileNetV2 with its 1x1 convolutions in two groups."""

import os
from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor
from keras import layers

from keras_muffnet._arguments import boolean
from keras_muffnet._arguments import positive_number
from keras_muffnet.assembly import assemble
from keras_muffnet.assembly import check_arguments
from keras_muffnet.assembly import choose_stem
from keras_muffnet.baselines.mobilenet_v2 import HEAD_FILTERS
from keras_muffnet.baselines.mobilenet_v2 import ROWS
from keras_muffnet.baselines.mobilenet_v2 import STEM_FILTERS
from keras_muffnet.baselines.mobilenet_v2 import relu6
from keras_muffnet.baselines.stems import STRIDES
from keras_muffnet.blocks import channel_axis
from keras_muffnet.blocks import conv_bn
from keras_muffnet.blocks import depthwise_bn
from keras_muffnet.layers import ChannelShuffle

GROUPS = 2
# "D": more units a row than MobileNetV2 has.
UNITS = (1, 4, 6, 8, 6, 6, 1)


def IGCV3(
    input_shape: Sequence[int | None] | None = None,
    alpha: float = 1.0,
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = None,
    input_tensor: KerasTensor | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    name: str | None = None,
    stem: str = "auto",
    expand_first: bool = True,
) -> keras.Model:
    """Builds IGCV3-D.

    Reference: "IGCV3: Interleaved Low-Rank Group Convolutions for Efficient
    Deep Neural Networks" (Sun et al., 2018).

    Feature maps with stem "imagenet":

    | stride | layer                   | channels at alpha 1 |
    |--------|-------------------------|---------------------|
    | 2      | `row1_unit1_project_bn` | 16                  |
    | 4      | `row2_unit4_add`        | 24                  |
    | 8      | `row3_unit6_add`        | 32                  |
    | 16     | `row5_unit6_add`        | 96                  |
    | 32     | `row7_unit1_project_bn` | 320                 |
    | 32     | `head_relu`             | 1280                |

    Args:
        input_shape: as for `keras_muffnet.MuffNet`, like all arguments that
            this list leaves out. There are no published weights.
        alpha: width multiplier; any positive number. Widths are rounded down,
            odd ones then up to even ones. The head keeps its 1280 channels.
        stem: "imagenet" (strides up to 32), "tiny_imagenet" (the first two
            reductions left out: up to 8) or "cifar" (the first three: up to
            4); "auto" as for `MuffNet`.
        expand_first: whether the first block has a 1x1 convolution before its
            depthwise one. The paper's "0.7" is a ratio of parameters; alpha
            0.8 without that convolution has its printed counts.

    Returns:
        A Functional `keras.Model`.

    Raises:
        ValueError: if an argument is wrong, as for `keras_muffnet.MuffNet`.
        OSError: if the file `weights` is damaged.
    """
    arguments = check_arguments(
        input_shape,
        include_top,
        weights,
        input_tensor,
        pooling,
        classes,
        classifier_activation,
    )
    positive_number("alpha", alpha)
    stem = choose_stem(stem, arguments.shape)
    expand_first = boolean("expand_first", expand_first)
    return assemble(
        arguments,
        lambda x: igcv3_features(x, alpha, stem, expand_first),
        name or f"igcv3_{alpha:g}",
    )


def igcv3_features(
    x: KerasTensor, alpha: float, stem: str, expand_first: bool
) -> KerasTensor:
    """The network without its classifier.

    Args:
        x: a batch of images.
        alpha: width multiplier.
        stem: a key of `presets.STEMS`.
        expand_first: whether row 1 has a 1x1 convolution at its start.
    """
    strides = STRIDES[stem]
    filters = _even(alpha * STEM_FILTERS)
    x = conv_bn(x, filters, 3, "stem", strides[0], relu=False)
    x = relu6(x, name="stem")
    for row, (expansion, width, _, reduction) in enumerate(ROWS, start=1):
        stride = 1 if reduction is None else strides[reduction]
        for unit in range(1, UNITS[row - 1] + 1):
            x = interleaved_unit(
                x,
                _even(alpha * width),
                expansion,
                stride if unit == 1 else 1,
                expand=row > 1 or expand_first,
                residual=unit > 1,
                name=f"row{row}_unit{unit}",
            )
    x = conv_bn(x, HEAD_FILTERS, 1, "head", relu=False)
    return relu6(x, name="head")


def interleaved_unit(
    x: KerasTensor,
    filters: int,
    expansion: int,
    strides: int,
    expand: bool,
    residual: bool,
    name: str,
) -> KerasTensor:
    """Two grouped 1x1 convolutions around a shuffle and a depthwise one."""
    shortcut = x
    if expand:
        middle = expansion * x.shape[channel_axis()]
        x = conv_bn(x, middle, 1, f"{name}_expand", relu=False, groups=GROUPS)
        x = ChannelShuffle(GROUPS, name=f"{name}_shuffle")(x)
    x = depthwise_bn(x, 3, f"{name}_depthwise", strides)
    x = relu6(x, name=f"{name}_depthwise")
    x = conv_bn(x, filters, 1, f"{name}_project", relu=False, groups=GROUPS)
    if residual:
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    return x


def _even(width: float) -> int:
    return max(2, int(width) + int(width) % 2)
