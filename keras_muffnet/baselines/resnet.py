"""ResNet for CIFAR."""

import os
from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor
from keras import layers

from keras_muffnet._arguments import positive_integer
from keras_muffnet.assembly import assemble
from keras_muffnet.assembly import check_arguments
from keras_muffnet.blocks import channel_axis
from keras_muffnet.blocks import conv_bn

STAGE_FILTERS = (16, 32, 64)


def ResNet(
    input_shape: Sequence[int | None] | None = None,
    depth: int = 20,
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = None,
    input_tensor: KerasTensor | None = None,
    pooling: str | None = None,
    classes: int = 10,
    classifier_activation: Any = "softmax",
    name: str | None = None,
) -> keras.Model:
    """Builds ResNet for CIFAR.

    Reference: "Deep Residual Learning for Image Recognition" (He et al.,
    2016), section 4.2, with projections as shortcuts (option B).

    There is one form, for small images. Feature maps of a network with n
    blocks a stage, `depth = 6n + 2`:

    | stride | layer                | channels |
    |--------|----------------------|----------|
    | 1      | `stage1_block{n}_relu` | 16     |
    | 2      | `stage2_block{n}_relu` | 32     |
    | 4      | `stage3_block{n}_relu` | 64     |

    Args:
        input_shape: as for `keras_muffnet.MuffNet`, like all arguments that
            this list leaves out. There are no published weights.
            With the classifier it defaults to 32x32x3.
        depth: number of layers with weights, 6n + 2; published are 20, 32,
            44, 56 and 110.
        classes: number of classes, those of CIFAR-10 by default.

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
        default_size=32,
    )
    depth = positive_integer("depth", depth)
    if depth < 8 or depth % 6 != 2:
        raise ValueError(
            "`depth` must be 8, 14, 20, ..., that is 6n + 2. "
            f"Received: depth={depth}"
        )
    return assemble(
        arguments,
        lambda x: resnet_features(x, (depth - 2) // 6),
        name or f"resnet{depth}",
    )


def resnet_features(x: KerasTensor, blocks: int) -> KerasTensor:
    """The network without its classifier.

    Args:
        x: a batch of images.
        blocks: number of blocks a stage.
    """
    x = conv_bn(x, STAGE_FILTERS[0], 3, name="stem")
    for stage, filters in enumerate(STAGE_FILTERS, start=1):
        for block in range(1, blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            name = f"stage{stage}_block{block}"
            x = residual_block(x, filters, strides, name=name)
    return x


def residual_block(
    x: KerasTensor, filters: int, strides: int, name: str
) -> KerasTensor:
    """Two 3x3 convolutions and a shortcut, figure 2."""
    shortcut = x
    if strides > 1 or x.shape[channel_axis()] != filters:
        shortcut = conv_bn(
            x, filters, 1, f"{name}_shortcut", strides, relu=False
        )
    x = conv_bn(x, filters, 3, f"{name}_a", strides)
    x = conv_bn(x, filters, 3, f"{name}_b", relu=False)
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_relu")(x)
