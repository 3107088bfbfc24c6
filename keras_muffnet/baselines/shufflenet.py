"""ShuffleNet, the first version, with three groups."""

import os
from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor
from keras import layers

from keras_muffnet._arguments import positive_number
from keras_muffnet.assembly import assemble
from keras_muffnet.assembly import check_arguments
from keras_muffnet.assembly import choose_stem
from keras_muffnet.baselines.stems import STRIDES
from keras_muffnet.blocks import channel_axis
from keras_muffnet.blocks import concatenate
from keras_muffnet.blocks import conv_bn
from keras_muffnet.blocks import depthwise_bn
from keras_muffnet.layers import ChannelShuffle

GROUPS = 3
STAGE_FILTERS = (240, 480, 960)
UNITS = (4, 8, 4)
STEM_FILTERS = 24


def ShuffleNet(
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
) -> keras.Model:
    """Builds ShuffleNet with three groups.

    Reference: "ShuffleNet: An Extremely Efficient Convolutional Neural
    Network for Mobile Devices" (Zhang et al., 2018), table 1.

    Feature maps with stem "imagenet":

    | stride | layer               | channels at alpha 0.5, 1.0, 1.5 |
    |--------|---------------------|---------------------------------|
    | 2      | `stem_relu`         | 12, 24, 24                      |
    | 4      | `stem_pool`         | 12, 24, 24                      |
    | 8      | `stage1_unit4_relu` | 120, 240, 360                   |
    | 16     | `stage2_unit8_relu` | 240, 480, 720                   |
    | 32     | `stage3_unit4_relu` | 480, 960, 1440                  |

    Args:
        input_shape: as for `keras_muffnet.MuffNet`, like all arguments that
            this list leaves out. There are no published weights.
        alpha: width multiplier; published are 0.5, 1.0 and 1.5. Widths are
            rounded to multiples of 12, which the groups divide.
        stem: "imagenet" (strides up to 32), "tiny_imagenet" (the first two
            reductions left out: up to 8) or "cifar" (the first three: up to
            4); "auto" as for `MuffNet`.

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
    return assemble(
        arguments,
        lambda x: shufflenet_features(x, alpha, stem),
        name or f"shufflenet_{alpha:g}",
    )


def shufflenet_features(x: KerasTensor, alpha: float, stem: str) -> KerasTensor:
    """The network without its classifier.

    Args:
        x: a batch of images.
        alpha: width multiplier. Only one below 1 changes the stem.
        stem: a key of `presets.STEMS`.
    """
    strides = STRIDES[stem]
    filters = _rounded(min(alpha, 1) * STEM_FILTERS, GROUPS)
    x = conv_bn(x, filters, 3, strides=strides[0], name="stem")
    if strides[1] > 1:
        x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    first = _rounded(alpha * STAGE_FILTERS[0], 4 * GROUPS)
    for stage, units in enumerate(UNITS, start=1):
        filters = first * STAGE_FILTERS[stage - 1] // STAGE_FILTERS[0]
        # The stem's few channels are not grouped.
        groups = 1 if stage == 1 else GROUPS
        name = f"stage{stage}_unit1"
        x = reduction_unit(x, filters, strides[stage + 1], groups, name=name)
        for unit in range(2, units + 1):
            x = basic_unit(x, name=f"stage{stage}_unit{unit}")
    return x


def basic_unit(x: KerasTensor, name: str) -> KerasTensor:
    """Residual unit, figure 2(b)."""
    shortcut, filters = x, x.shape[channel_axis()]
    x = _branch(x, filters // 4, filters, 1, GROUPS, name)
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_relu")(x)


def reduction_unit(
    x: KerasTensor, filters: int, strides: int, groups: int, name: str
) -> KerasTensor:
    """Unit that concatenates its pooled input, figure 2(c)."""
    pooled = layers.AveragePooling2D(
        3, strides, padding="same", name=f"{name}_pool"
    )(x)
    added = filters - x.shape[channel_axis()]
    x = _branch(x, filters // 4, added, strides, groups, name)
    x = concatenate([pooled, x], name=f"{name}_concat")
    return layers.ReLU(name=f"{name}_relu")(x)


def _branch(
    x: KerasTensor,
    middle: int,
    filters: int,
    strides: int,
    groups: int,
    name: str,
) -> KerasTensor:
    x = conv_bn(x, middle, 1, name=f"{name}_pointwise1", groups=groups)
    x = ChannelShuffle(GROUPS, name=f"{name}_shuffle")(x)
    x = depthwise_bn(x, 3, name=f"{name}_depthwise", strides=strides)
    return conv_bn(
        x, filters, 1, name=f"{name}_pointwise2", relu=False, groups=GROUPS
    )


def _rounded(width: float, multiple: int) -> int:
    return max(multiple, multiple * round(width / multiple))
