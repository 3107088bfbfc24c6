"""A reconstruction of IGCV2."""

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
from keras_muffnet.blocks import conv_bn
from keras_muffnet.blocks import depthwise_bn
from keras_muffnet.layers import ChannelShuffle

GROUPS = 4
STEM_FILTERS = 64
# Output channels and blocks of the stages.
STAGES = ((64, 1), (128, 4), (256, 4), (512, 8), (1024, 4))


def IGCV2(
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
    """Builds a reconstruction of IGCV2.

    Reference: "IGCV2: Interleaved Structured Sparse Convolutional Neural
    Networks" (Xie et al., 2018).

    No definition of the network is public, so this is not the authors'. It
    is MobileNet's skeleton with structured sparse 1x1 convolutions, two
    grouped ones with a shuffle between them, of such widths and depths that
    the printed counts are met to 1.5% (multiply-adds) and 6% (parameters).
    Feature maps with stem "imagenet":

    | stride | layer                     | channels at alpha 1 |
    |--------|---------------------------|---------------------|
    | 2      | `stage1_block1_relu`      | 64                  |
    | 4      | `stage2_block4_relu`      | 128                 |
    | 8      | `stage3_block4_relu`      | 256                 |
    | 16     | `stage4_block8_relu`      | 512                 |
    | 32     | `stage5_block4_relu`      | 1024                |

    Args:
        input_shape: as for `keras_muffnet.MuffNet`, like all arguments that
            this list leaves out. There are no published weights.
        alpha: width multiplier; published are 0.25, 0.5 and 1.0. Widths are
            rounded to multiples of 4, the number of groups.
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
        lambda x: igcv2_features(x, alpha, stem),
        name or f"igcv2_{alpha:g}",
    )


def igcv2_features(x: KerasTensor, alpha: float, stem: str) -> KerasTensor:
    """The network without its classifier.

    Args:
        x: a batch of images.
        alpha: width multiplier.
        stem: a key of `presets.STEMS`.
    """
    strides = STRIDES[stem]
    filters = _rounded(alpha * STEM_FILTERS)
    x = conv_bn(x, filters, 3, strides=strides[0], name="stem")
    for stage, (width, blocks) in enumerate(STAGES, start=1):
        for block in range(1, blocks + 1):
            reduces = stage > 1 and block == 1
            x = interleaved_block(
                x,
                _rounded(alpha * width),
                strides[stage - 1] if reduces else 1,
                name=f"stage{stage}_block{block}",
            )
    return x


def interleaved_block(
    x: KerasTensor, filters: int, strides: int, name: str
) -> KerasTensor:
    """A depthwise convolution and two grouped ones, shuffled between."""
    x = depthwise_bn(x, 3, name=f"{name}_depthwise", strides=strides)
    x = layers.ReLU(name=f"{name}_depthwise_relu")(x)
    x = conv_bn(x, filters, 1, f"{name}_pointwise1", relu=False, groups=GROUPS)
    x = ChannelShuffle(GROUPS, name=f"{name}_shuffle")(x)
    x = conv_bn(x, filters, 1, f"{name}_pointwise2", relu=False, groups=GROUPS)
    return layers.ReLU(name=f"{name}_relu")(x)


def _rounded(width: float) -> int:
    return max(GROUPS, GROUPS * round(width / GROUPS))
