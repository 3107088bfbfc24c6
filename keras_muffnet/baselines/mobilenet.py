"""MobileNet, the first version."""

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

STEM_FILTERS = 32
# Output channels of the 13 blocks, and which reduction each makes, if any.
BLOCKS = (
    (64, None),
    (128, 1),
    (128, None),
    (256, 2),
    (256, None),
    (512, 3),
    (512, None),
    (512, None),
    (512, None),
    (512, None),
    (512, None),
    (1024, 4),
    (1024, None),
)


def MobileNet(
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
    """Builds MobileNet.

    Reference: "MobileNets: Efficient Convolutional Neural Networks for Mobile
    Vision Applications" (Howard et al., 2017), table 1.

    With stem "imagenet" it has the structure of
    `keras.applications.MobileNet`, of which the small stems are not part, but
    ReLU as in the paper where Keras has ReLU6, and an epsilon of 1e-5 in batch
    normalization where Keras has 1e-3. Feature maps:

    | stride | layer                    | channels at alpha 1 |
    |--------|--------------------------|---------------------|
    | 2      | `block1_pointwise_relu`  | 64                  |
    | 4      | `block3_pointwise_relu`  | 128                 |
    | 8      | `block5_pointwise_relu`  | 256                 |
    | 16     | `block11_pointwise_relu` | 512                 |
    | 32     | `block13_pointwise_relu` | 1024                |

    Args:
        input_shape: as for `keras_muffnet.MuffNet`, like all arguments that
            this list leaves out. There are no published weights.
        alpha: width multiplier; any positive number. Widths are rounded down.
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
        lambda x: mobilenet_features(x, alpha, stem),
        name or f"mobilenet_{alpha:g}",
    )


def mobilenet_features(x: KerasTensor, alpha: float, stem: str) -> KerasTensor:
    """The network without its classifier.

    Args:
        x: a batch of images.
        alpha: width multiplier.
        stem: a key of `presets.STEMS`.
    """
    strides = STRIDES[stem]
    filters = max(1, int(alpha * STEM_FILTERS))
    x = conv_bn(x, filters, 3, strides=strides[0], name="stem")
    for number, (width, reduction) in enumerate(BLOCKS, start=1):
        name = f"block{number}"
        stride = 1 if reduction is None else strides[reduction]
        x = depthwise_bn(x, 3, name=f"{name}_depthwise", strides=stride)
        x = layers.ReLU(name=f"{name}_depthwise_relu")(x)
        filters = max(1, int(alpha * width))
        x = conv_bn(x, filters, 1, name=f"{name}_pointwise")
    return x
