"""MobileNetV2."""

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
from keras_muffnet.blocks import conv_bn
from keras_muffnet.blocks import depthwise_bn

STEM_FILTERS = 32
HEAD_FILTERS = 1280
ROWS = (
    # expansion, output channels, units, reduction (table 2)
    (1, 16, 1, None),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 3),
    (6, 96, 3, None),
    (6, 160, 3, 4),
    (6, 320, 1, None),
)
VARIANTS = ("paper", "gluon")


def MobileNetV2(
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
    variant: str = "paper",
) -> keras.Model:
    """Builds MobileNetV2.

    Reference: "MobileNetV2: Inverted Residuals and Linear Bottlenecks"
    (Sandler et al., 2018), table 2.

    With stem "imagenet" and variant "paper" it has the structure of
    `keras.applications.MobileNetV2`, but an epsilon of 1e-5 in batch
    normalization where Keras has 1e-3. Feature maps with stem "imagenet":

    | stride | layer                        | channels at alpha 1 |
    |--------|------------------------------|---------------------|
    | 2      | `row1_unit1_project_bn`      | 16                  |
    | 4      | `row2_unit2_add`             | 24                  |
    | 8      | `row3_unit3_add`             | 32                  |
    | 16     | `row5_unit3_add`             | 96                  |
    | 16     | `row6_unit1_expand_relu`     | 576                 |
    | 32     | `row7_unit1_project_bn`      | 320                 |
    | 32     | `head_relu`                  | 1280                |

    Args:
        input_shape: as for `keras_muffnet.MuffNet`, like all arguments that
            this list leaves out. There are no published weights.
        alpha: width multiplier; any positive number. The head grows with it
            above 1 only.
        stem: "imagenet" (strides up to 32), "tiny_imagenet" (the first two
            reductions left out: up to 8) or "cifar" (the first three: up to
            4); "auto" as for `MuffNet`.
        variant: "paper" rounds widths to multiples of 8. "gluon" is what
            GluonCV had before May 2019 and tables 5 and 6 count: widths
            rounded down and a 1x1 convolution in the first block too.

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
    if variant not in VARIANTS:
        raise ValueError(
            f"`variant` must be one of {', '.join(VARIANTS)}. "
            f"Received: variant={variant!r}"
        )
    return assemble(
        arguments,
        lambda x: mobilenet_v2_features(x, alpha, stem, variant),
        name or f"mobilenet_v2_{alpha:g}",
    )


def mobilenet_v2_features(
    x: KerasTensor, alpha: float, stem: str, variant: str
) -> KerasTensor:
    """The network without its classifier.

    Args:
        x: a batch of images.
        alpha: width multiplier.
        stem: a key of `presets.STEMS`.
        variant: one of `VARIANTS`.
    """
    rounded = _multiple_of_8 if variant == "paper" else _truncated
    strides = STRIDES[stem]
    filters = rounded(alpha * STEM_FILTERS)
    x = conv_bn(x, filters, 3, "stem", strides[0], relu=False)
    x = relu6(x, name="stem")
    for row, (expansion, width, units, reduction) in enumerate(ROWS, start=1):
        stride = 1 if reduction is None else strides[reduction]
        for unit in range(1, units + 1):
            x = inverted_residual(
                x,
                rounded(alpha * width),
                expansion,
                stride if unit == 1 else 1,
                expand=expansion > 1 or variant == "gluon",
                name=f"row{row}_unit{unit}",
            )
    filters = rounded(max(alpha, 1) * HEAD_FILTERS)
    x = conv_bn(x, filters, 1, "head", relu=False)
    return relu6(x, name="head")


def inverted_residual(
    x: KerasTensor,
    filters: int,
    expansion: int,
    strides: int,
    expand: bool,
    name: str,
) -> KerasTensor:
    """Figure 4(d): wide inside, narrow and linear at its ends."""
    shortcut, channels = x, x.shape[channel_axis()]
    if expand:
        middle = expansion * channels
        x = conv_bn(x, middle, 1, f"{name}_expand", relu=False)
        x = relu6(x, name=f"{name}_expand")
    x = depthwise_bn(x, 3, f"{name}_depthwise", strides)
    x = relu6(x, name=f"{name}_depthwise")
    x = conv_bn(x, filters, 1, f"{name}_project", relu=False)
    if strides == 1 and channels == filters:
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    return x


def relu6(x: KerasTensor, name: str) -> KerasTensor:
    """ReLU cut off at 6."""
    return layers.ReLU(6.0, name=f"{name}_relu")(x)


def _multiple_of_8(width: float) -> int:
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def _truncated(width: float) -> int:
    return max(1, int(width))
