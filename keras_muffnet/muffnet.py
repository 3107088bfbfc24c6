"""MuffNet (section 3.3, figure 3(d)), built as `keras.applications` builds."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import KerasTensor
from keras import layers

from keras_muffnet._arguments import positive_integer
from keras_muffnet.assembly import CommonArguments
from keras_muffnet.assembly import assemble
from keras_muffnet.assembly import check_arguments
from keras_muffnet.assembly import choose_stem
from keras_muffnet.blocks import channel_axis
from keras_muffnet.blocks import conv_bn
from keras_muffnet.blocks import federated_stage
from keras_muffnet.blocks import reduction_block
from keras_muffnet.presets import HEAD_FILTERS
from keras_muffnet.presets import PAPER_NOTATION
from keras_muffnet.presets import STEM_FILTERS
from keras_muffnet.presets import STEMS
from keras_muffnet.presets import StageSpec
from keras_muffnet.presets import stages_from_notation
from keras_muffnet.published import published_weights
from keras_muffnet.published import weights_file


def MuffNet(
    input_shape: Sequence[int | None] | None = None,
    alpha: float = 1.0,
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = None,
    input_tensor: KerasTensor | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    name: str | None = None,
    stages: Sequence[StageSpec] | None = None,
    stem: str = "auto",
) -> keras.Model:
    """Builds MuffNet, the multi-layer feature federation network.

    Reference: "MuffNet: Multi-Layer Feature Federation for Mobile Deep
    Learning" (Chen et al., 2019).

    Images are float batches of shape `(batch, height, width, channels)`, or
    channels first, as `keras.config.image_data_format()` says, with pixels
    scaled by `preprocess_input`.

    Feature maps for detection and transfer learning, from
    `model.get_layer(name).output`, with stem "imagenet":

    | stride | layer           | channels at alpha 0.5, 1.0, 1.5 |
    |--------|-----------------|---------------------------------|
    | 2      | `stem_relu`     | 24, 24, 24                      |
    | 4      | `stem_pool`     | 24, 24, 24                      |
    | 8      | `stage1_output` | 40, 108, 176                    |
    | 16     | `stage2_output` | 56, 132, 206                    |
    | 32     | `stage3_output` | 140, 300, 408                   |
    | 32     | `head_relu`     | 1024, 1024, 1024                |

    With stem "cifar" the three stages have strides 1, 2 and 4, with
    "tiny_imagenet" 2, 4 and 8; there is no `stem_pool` in either.

    ```python
    from keras_muffnet import MuffNet

    model = MuffNet(weights="cifar10", alpha=0.5, classes=10)
    body = MuffNet(include_top=False, pooling="avg")  # images of any size
    ```

    Args:
        input_shape: shape of an image without the batch axis. Defaults to
            224x224x3 with the classifier, or to the size that published
            weights were trained at, and to images of any size with 3 channels
            without it. With the classifier it must be static.
        alpha: width multiplier. The paper's networks are 0.5, 1.0 and 1.5;
            any other positive number gives a network between or beyond them.
            Must be left out where `stages` is given.
        include_top: whether to end in a classifier. Without it the output is
            the last feature map, `(batch, height, width, 1024)`.
        weights: None for random ones; the path of an existing file
            (`.weights.h5`, `.h5` or `.keras`) of a model of the same structure;
            or the name of weights that ship with the package, a key of
            `keras_muffnet.published_weights()`. "cifar10" and "tiny_imagenet"
            fit `alpha=0.5`, with their classifiers `classes=10` and
            `classes=200` and their own stems, without it any stem.
        input_tensor: Keras tensor to use as the image input. What lies
            upstream of it stays in the model.
        pooling: without the classifier, None for the feature map, "avg" or
            "max" for its global pooling, of shape `(batch, 1024)`.
        classes: number of classes of the classifier.
        classifier_activation: activation of the layer `predictions`; None
            gives logits.
        name: name of the model.
        stages: `StageSpec`s, low-level stage first. Defaults to the paper's
            "average+geometric+none" at width `alpha`;
            `keras_muffnet.stages_from_notation` makes others.
        stem: "imagenet" (downsampling by 4 before the first stage),
            "tiny_imagenet" (64x64: none) or "cifar" (32x32: none, and stage 1
            keeps the size). "auto" takes the stem that published weights were
            trained with, at any size: their filters know edges at that scale.
            Without published weights it takes "cifar" for static inputs
            smaller than 56x56 and "imagenet" for all others, as section 3.3
            says. On large images a stem that keeps the size is expensive:
            name a coarser one to save time.

    Returns:
        A Functional `keras.Model`.

    Raises:
        ValueError: if an argument is not one of the above, if `input_shape`
            and `input_tensor` disagree, if `pooling` is given together with
            the classifier, or if `weights` do not fit the network.
        OSError: if the file `weights` is damaged.
    """
    # All arguments are checked before the first layer is made.
    published = (
        published_weights().get(weights) if isinstance(weights, str) else None
    )
    arguments = check_arguments(
        input_shape,
        include_top,
        weights,
        input_tensor,
        pooling,
        classes,
        classifier_activation,
        default_size=published.size if published else 224,
        published=published_weights(),
    )
    if stages is None:
        stages = stages_from_notation(PAPER_NOTATION, alpha)
        default_name = f"muffnet_{alpha:g}"
    else:
        stages = _check_stages(stages)
        if alpha != 1.0:
            raise ValueError(
                "`alpha` must be left out where `stages` is given, which says "
                f"how wide the network is. Received: alpha={alpha!r}"
            )
        if published is not None:
            raise ValueError(
                "`weights` must be None or a file where `stages` is given. "
                f"Received: weights={arguments.weights!r}"
            )
        default_name = "muffnet"
    if published is not None and stem == "auto":
        stem = published.stem
    stem = choose_stem(stem, arguments.shape)
    if published is not None:
        path = _published_file(arguments, alpha, stem)
        arguments = arguments._replace(weights=str(path))
    return assemble(
        arguments,
        lambda x: muffnet_features(x, stages, stem),
        name or default_name,
    )


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


def decode_predictions(
    preds: Any, top: int = 5, weights: str | None = None
) -> list[list[tuple[str, str, float]]]:
    """Names the best classes of each prediction, as `keras.applications` does.

    ```python
    import numpy as np
    from keras_muffnet import decode_predictions

    scores = np.eye(1, 10, 3)
    decode_predictions(scores, weights="cifar10")[0][0][1]  # 'cat'
    ```

    Args:
        preds: array or tensor of shape `(batch, classes)`.
        top: how many classes to give for each image; of fewer classes all.
        weights: the name of published weights, whose classes the scores are
            of. None for the 1,000 classes of ImageNet, of which Keras
            downloads the list on first use.

    Returns:
        For each image a list of `(class name, description, score)`, best
        first. Of ImageNet the class name is the WordNet id. Published weights
        have no descriptions: the class name stands there again.

    Raises:
        ValueError: if `weights` are not published, `preds` is not of the shape
            that they give, or `top` is not a positive integer.
    """
    top = positive_integer("top", top)
    preds = keras.ops.convert_to_numpy(preds)
    if weights is None:
        classes = 1000
    elif isinstance(weights, str) and weights in published_weights():
        names = published_weights()[weights].class_names
        classes = len(names)
    else:
        raise ValueError(
            "`weights` must be None, for ImageNet, or one of "
            f"{', '.join(published_weights())}. Received: weights={weights!r}"
        )
    if preds.ndim != 2 or preds.shape[1] != classes:
        raise ValueError(
            f"`preds` must be of shape (batch, {classes}) for "
            f"weights={weights!r}. Received an array of shape {preds.shape}"
        )
    if weights is None:
        return keras.applications.imagenet_utils.decode_predictions(
            preds, top=top
        )
    return [
        [(names[k], names[k], row[k]) for k in np.argsort(-row)[:top]]
        for row in preds
    ]


def _published_file(
    arguments: CommonArguments, alpha: float, stem: str
) -> pathlib.Path:
    """Finds the file of published weights; they must fit the arguments."""
    name = str(arguments.weights)
    published = published_weights()[name]
    channels = arguments.shape[channel_axis() - 1]
    if channels != 3:
        raise ValueError(
            f"`input_shape` must have 3 channels for weights={name!r}. "
            f"Received: input_shape={arguments.shape}"
        )
    classes = len(published.class_names)
    if arguments.include_top and arguments.classes != classes:
        raise ValueError(
            f"`classes` must be {classes} for weights={name!r} where "
            f"`include_top` is True. Received: classes={arguments.classes}"
        )
    if arguments.include_top and stem != published.stem:
        raise ValueError(
            f"`stem` must be {published.stem!r} for weights={name!r} where "
            f"`include_top` is True. Received: stem={stem!r}"
        )
    return weights_file(name, alpha)


def _check_stages(stages: Any) -> tuple[StageSpec, ...]:
    if (
        isinstance(stages, str)
        or not isinstance(stages, Sequence)
        or not stages
        or not all(isinstance(stage, StageSpec) for stage in stages)
    ):
        raise ValueError(
            "`stages` must be a sequence of `keras_muffnet.StageSpec`; "
            "`keras_muffnet.stages_from_notation` makes one from the paper's "
            f"notation. Received: stages={stages!r}"
        )
    return tuple(stages)
