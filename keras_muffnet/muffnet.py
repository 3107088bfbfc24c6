"""MuffNet, put together (section 3.3 and figure 3(d))."""

from collections.abc import Sequence

from keras import KerasTensor
from keras import layers

from keras_muffnet.blocks import conv_bn
from keras_muffnet.blocks import federated_stage
from keras_muffnet.blocks import reduction_block
from keras_muffnet.presets import HEAD_FILTERS
from keras_muffnet.presets import STEM_FILTERS
from keras_muffnet.presets import STEMS
from keras_muffnet.presets import StageSpec


def muffnet_features(
    x: KerasTensor, stages: Sequence[StageSpec], stem: str
) -> KerasTensor:
    """The network without its classifier.

    Args:
        x: a batch of images, `(batch, height, width, channels)` or channels
            first.
        stages: the stages in order.
        stem: a key of `presets.STEMS`.

    Returns:
        The last feature map, `(batch, h, w, presets.HEAD_FILTERS)`, with
        height and width divided by the stem's and the stages' strides.
    """
    strides, pool, reduction_strides = STEMS[stem]
    x = conv_bn(x, STEM_FILTERS, 3, strides=strides, name="stem")
    if pool:
        x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for number, stage in enumerate(stages, start=1):
        name = f"stage{number}"
        x = reduction_block(
            x,
            stage.matrix.output_channels[0],
            strides=reduction_strides,
            name=f"{name}_layer1",
        )
        x = federated_stage(
            x, stage.matrix, residual=bool(stage.residual), name=name
        )
        reduction_strides = 2
    return conv_bn(x, HEAD_FILTERS, 1, name="head")
