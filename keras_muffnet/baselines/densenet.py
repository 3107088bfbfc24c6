"""DenseNet for CIFAR."""

import os
from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor
from keras import layers

from keras_muffnet._arguments import boolean
from keras_muffnet._arguments import positive_integer
from keras_muffnet.assembly import assemble
from keras_muffnet.assembly import check_arguments
from keras_muffnet.blocks import batch_norm
from keras_muffnet.blocks import channel_axis
from keras_muffnet.blocks import concatenate

BLOCKS = 3
COMPRESSION = 0.5


def DenseNet(
    input_shape: Sequence[int | None] | None = None,
    depth: int = 40,
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = None,
    input_tensor: KerasTensor | None = None,
    pooling: str | None = None,
    classes: int = 10,
    classifier_activation: Any = "softmax",
    name: str | None = None,
    growth_rate: int = 12,
    bottleneck: bool = False,
) -> keras.Model:
    """Builds DenseNet for CIFAR.

    Reference: "Densely Connected Convolutional Networks" (Huang et al.,
    2017), section 4.1, with compression 0.5 between its three blocks.

    There is one form, for small images. Feature maps, with n layers a block,
    `depth = 3n + 4` or, with bottlenecks, `6n + 4`:

    | stride | layer                   | depth 40 | depth 100, bottlenecks |
    |--------|-------------------------|----------|------------------------|
    | 1      | `block1_layer{n}_concat`| 168      | 216                    |
    | 2      | `block2_layer{n}_concat`| 228      | 300                    |
    | 4      | `block3_layer{n}_concat`| 258      | 342                    |
    | 4      | `head_relu`             | 258      | 342                    |

    Args:
        input_shape: as for `keras_muffnet.MuffNet`, like all arguments that
            this list leaves out. There are no published weights.
            With the classifier it defaults to 32x32x3.
        depth: number of layers with weights.
        classes: number of classes, those of CIFAR-10 by default.
        growth_rate: channels that each layer adds; the stem has twice as many.
        bottleneck: puts a 1x1 convolution to 4 times the growth rate before
            each 3x3 one (DenseNet-BC).

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
    growth_rate = positive_integer("growth_rate", growth_rate)
    bottleneck = boolean("bottleneck", bottleneck)
    convolutions = 2 * BLOCKS if bottleneck else BLOCKS
    if depth <= 4 or (depth - 4) % convolutions:
        raise ValueError(
            f"`depth` must be {convolutions}n + 4. Received: depth={depth}"
        )
    per_block = (depth - 4) // convolutions
    kind = "_bc" if bottleneck else ""
    return assemble(
        arguments,
        lambda x: densenet_features(x, per_block, growth_rate, bottleneck),
        name or f"densenet{kind}_{depth}",
    )


def densenet_features(
    x: KerasTensor, per_block: int, growth_rate: int, bottleneck: bool
) -> KerasTensor:
    """The network without its classifier.

    Args:
        x: a batch of images.
        per_block: number of layers a block.
        growth_rate: channels that each layer adds.
        bottleneck: whether layers start with a 1x1 convolution.
    """
    x = convolution(x, 2 * growth_rate, 3, name="stem")
    for block in range(1, BLOCKS + 1):
        for layer in range(1, per_block + 1):
            name = f"block{block}_layer{layer}"
            x = dense_layer(x, growth_rate, bottleneck, name=name)
        if block < BLOCKS:
            x = transition(x, name=f"transition{block}")
    return bn_relu(x, name="head")


def dense_layer(
    x: KerasTensor, growth_rate: int, bottleneck: bool, name: str
) -> KerasTensor:
    """Concatenates to its input what it computes of it."""
    new = x
    if bottleneck:
        new = bn_relu(new, name=f"{name}_pointwise")
        new = convolution(new, 4 * growth_rate, 1, name=f"{name}_pointwise")
    new = bn_relu(new, name=f"{name}_spatial")
    new = convolution(new, growth_rate, 3, name=f"{name}_spatial")
    return concatenate([x, new], name=f"{name}_concat")


def transition(x: KerasTensor, name: str) -> KerasTensor:
    """Fewer channels on maps of half the size."""
    filters = int(COMPRESSION * x.shape[channel_axis()])
    x = convolution(bn_relu(x, name=name), filters, 1, name=name)
    return layers.AveragePooling2D(2, name=f"{name}_pool")(x)


def bn_relu(x: KerasTensor, name: str) -> KerasTensor:
    """What stands before a convolution here."""
    return layers.ReLU(name=f"{name}_relu")(batch_norm(x, name))


def convolution(
    x: KerasTensor, filters: int, kernel_size: int, name: str, **others: Any
) -> KerasTensor:
    """Convolution without bias that keeps the size, unless asked otherwise."""
    return layers.Conv2D(
        filters,
        kernel_size,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
        **others,
    )(x)
