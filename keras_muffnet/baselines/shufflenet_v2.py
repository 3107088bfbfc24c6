"""ShuffleNetV2."""

import os
from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor
from keras import layers

from keras_muffnet.assembly import assemble
from keras_muffnet.assembly import check_arguments
from keras_muffnet.assembly import choose_stem
from keras_muffnet.baselines.stems import STRIDES
from keras_muffnet.blocks import channel_axis
from keras_muffnet.blocks import concatenate
from keras_muffnet.blocks import conv_bn
from keras_muffnet.blocks import depthwise_bn
from keras_muffnet.layers import ChannelShuffle
from keras_muffnet.layers import ChannelSlice
from keras_muffnet.presets import interpolate_widths

# Channels of stage 1 by width multiplier; each stage has twice those of the
# one before.
WIDTHS = {0.5: (48,), 1.0: (116,), 1.5: (176,)}
UNITS = (4, 8, 4)
STEM_FILTERS = 24
HEAD_FILTERS = 1024


def ShuffleNetV2(
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
    """Builds ShuffleNetV2.

    Reference: "ShuffleNet V2: Practical Guidelines for Efficient CNN
    Architecture Design" (Ma et al., 2018), tables 5 and 8.

    Feature maps with stem "imagenet":

    | stride | layer                  | channels at alpha 0.5, 1.0, 1.5 |
    |--------|------------------------|---------------------------------|
    | 2      | `stem_relu`            | 24, 24, 24                      |
    | 4      | `stem_pool`            | 24, 24, 24                      |
    | 8      | `stage1_unit4_shuffle` | 48, 116, 176                    |
    | 16     | `stage2_unit8_shuffle` | 96, 232, 352                    |
    | 32     | `stage3_unit4_shuffle` | 192, 464, 704                   |
    | 32     | `head_relu`            | 1024, 1024, 1024                |

    With stem "cifar" both branches of a unit that reduces give half of its
    output, which alone meets the counts of table 5. With the others the left
    one keeps its input's channels, as in its authors' code.

    Args:
        input_shape: as for `keras_muffnet.MuffNet`, like all arguments that
            this list leaves out. There are no published weights.
        alpha: width multiplier; published are 0.5, 1.0 and 1.5.
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
    (width,) = interpolate_widths(alpha, WIDTHS, least=(STEM_FILTERS + 2,))
    stem = choose_stem(stem, arguments.shape)
    return assemble(
        arguments,
        lambda x: shufflenet_v2_features(x, width, stem),
        name or f"shufflenet_v2_{alpha:g}",
    )


def shufflenet_v2_features(
    x: KerasTensor, width: int, stem: str
) -> KerasTensor:
    """The network without its classifier.

    Args:
        x: a batch of images.
        width: channels of stage 1.
        stem: a key of `presets.STEMS`.
    """
    strides = STRIDES[stem]
    x = conv_bn(x, STEM_FILTERS, 3, strides=strides[0], name="stem")
    if strides[1] > 1:
        x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for stage, units in enumerate(UNITS, start=1):
        filters = width * 2 ** (stage - 1)
        left = filters // 2 if stem == "cifar" else x.shape[channel_axis()]
        name = f"stage{stage}_unit1"
        x = reduction_unit(x, filters, left, strides[stage + 1], name=name)
        for unit in range(2, units + 1):
            x = basic_unit(x, name=f"stage{stage}_unit{unit}")
    return conv_bn(x, HEAD_FILTERS, 1, name="head")


def basic_unit(x: KerasTensor, name: str) -> KerasTensor:
    """Half of the channels pass, half are convolved; then a shuffle."""
    channels = x.shape[channel_axis()]
    half = channels // 2
    left = ChannelSlice(0, half, name=f"{name}_left")(x)
    right = ChannelSlice(half, channels, name=f"{name}_right")(x)
    right = _branch(right, half, half, 1, name)
    return _join(left, right, name)


def reduction_unit(
    x: KerasTensor, filters: int, left_filters: int, strides: int, name: str
) -> KerasTensor:
    """Two branches with a depthwise convolution of stride `strides` each."""
    left = depthwise_bn(x, 3, name=f"{name}_left_depthwise", strides=strides)
    left = conv_bn(left, left_filters, 1, name=f"{name}_left_pointwise")
    right = _branch(x, filters // 2, filters - left_filters, strides, name)
    return _join(left, right, name)


def _branch(
    x: KerasTensor, middle: int, filters: int, strides: int, name: str
) -> KerasTensor:
    x = conv_bn(x, middle, 1, name=f"{name}_pointwise1")
    x = depthwise_bn(x, 3, name=f"{name}_depthwise", strides=strides)
    return conv_bn(x, filters, 1, name=f"{name}_pointwise2")


def _join(left: KerasTensor, right: KerasTensor, name: str) -> KerasTensor:
    x = concatenate([left, right], name=f"{name}_concat")
    return ChannelShuffle(2, name=f"{name}_shuffle")(x)
