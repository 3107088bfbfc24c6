"""Blocks of section 3.2 and the federated stage: tensor in, tensor out.

Every tensor is a batch of float feature maps, `(batch, height, width,
channels)`, or channels first, as `keras.config.image_data_format()` says. A
block of stride s gives maps of a height and width 1/s of its input's, rounded
up, with `filters` channels. `name` is the prefix of its layers' names.
"""

from collections.abc import Callable
from collections.abc import Sequence

import keras
from keras import KerasTensor
from keras import layers

from keras_muffnet.federation import SharingMatrix
from keras_muffnet.federation import reduction_middle
from keras_muffnet.layers import ChannelSlice


def channel_axis() -> int:
    """Axis of the channels in Keras's image data format."""
    return 1 if keras.config.image_data_format() == "channels_first" else 3


def image_shape(size: int, channels: int = 3) -> tuple[int, int, int]:
    """Shape of a square image in Keras's image data format."""
    if channel_axis() == 1:
        return (channels, size, size)
    return (size, size, channels)


def conv_bn(
    x: KerasTensor,
    filters: int,
    kernel_size: int,
    name: str,
    strides: int = 1,
    relu: bool = True,
    groups: int = 1,
) -> KerasTensor:
    """Convolution, batch normalization and, unless asked otherwise, ReLU."""
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        groups=groups,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    x = batch_norm(x, name)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def depthwise_bn(
    x: KerasTensor, kernel_size: int, name: str, strides: int = 1
) -> KerasTensor:
    """Depthwise convolution and batch normalization, no activation."""
    x = layers.DepthwiseConv2D(
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return batch_norm(x, name)


def batch_norm(x: KerasTensor, name: str) -> KerasTensor:
    """Batch normalization over the channels."""
    return layers.BatchNormalization(
        axis=channel_axis(), momentum=0.9, epsilon=1e-5, name=f"{name}_bn"
    )(x)


def normal_block(
    x: KerasTensor, filters: int, residual: bool, name: str
) -> KerasTensor:
    """Normal block, figure 3(a), or with `residual` residual block, 3(b)."""
    shortcut = x
    x = conv_bn(x, x.shape[channel_axis()], 1, name=f"{name}_pointwise1")
    x = depthwise_bn(x, 3, name=f"{name}_depthwise")
    x = conv_bn(x, filters, 1, name=f"{name}_pointwise2", relu=False)
    if residual:
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_relu")(x)


def reduction_block(
    x: KerasTensor, filters: int, strides: int, name: str
) -> KerasTensor:
    """Reduction block, figure 3(c): two branches that downsample, added."""
    middle = reduction_middle(x.shape[channel_axis()], filters)
    a = depthwise_bn(x, 5, name=f"{name}_a_depthwise", strides=strides)
    a = conv_bn(a, filters, 1, name=f"{name}_a_pointwise", relu=False)
    b = conv_bn(x, middle, 1, name=f"{name}_b_pointwise1")
    b = depthwise_bn(b, 5, name=f"{name}_b_depthwise", strides=strides)
    b = conv_bn(b, filters, 1, name=f"{name}_b_pointwise2", relu=False)
    x = layers.Add(name=f"{name}_add")([a, b])
    return layers.ReLU(name=f"{name}_relu")(x)


def federated_stage(
    x: KerasTensor,
    sharing: SharingMatrix,
    residual: bool,
    name: str,
    block: Callable[[KerasTensor, int, bool, str], KerasTensor] = normal_block,
) -> KerasTensor:
    """Runs the blocks of a stage, federated by a matrix (section 3.1).

    Args:
        x: layer 1, with `sharing.output_channels[0]` channels.
        sharing: the L x L sharing matrix.
        residual: whether blocks add their input to their output.
        name: prefix of the layers' names.
        block: what makes a layer of its input; with the arguments of
            `normal_block`.

    Returns:
        The stage's output, a layer named `{name}_output` with
        `sharing.input_channels[-1]` channels.
    """
    columns: list[list[KerasTensor]] = [[] for _ in range(sharing.layers)]
    for i, filters in enumerate(sharing.output_channels):
        layer_name = f"{name}_layer{i + 1}"
        if i > 0:
            x = concatenate(columns[i - 1], name=f"{layer_name}_input")
            x = block(x, filters, residual, layer_name)
        for j in range(i, sharing.layers):
            start, stop = sharing.group(i, j)
            if start == stop:
                continue
            group_name = f"{layer_name}_group{j + 1}"
            columns[j].append(channel_slice(x, start, stop, name=group_name))
    return concatenate(columns[-1], name=f"{name}_output")


def channel_slice(
    x: KerasTensor, start: int, stop: int, name: str
) -> KerasTensor:
    """Channels `start` to `stop`; the tensor itself where that is all."""
    if (start, stop) == (0, x.shape[channel_axis()]):
        return x
    return ChannelSlice(start, stop, name=name)(x)


def concatenate(groups: Sequence[KerasTensor], name: str) -> KerasTensor:
    """Joins groups of channels. One alone passes, yet has the layer's name."""
    if len(groups) == 1:
        return layers.Identity(name=name)(groups[0])
    return layers.Concatenate(axis=channel_axis(), name=name)(groups)
