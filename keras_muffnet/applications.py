"""`MuffNet`, made and used the way `keras.applications` makes its networks."""

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import KerasTensor
from keras import layers

from keras_muffnet.blocks import channel_axis
from keras_muffnet.federation import positive_integer
from keras_muffnet.graph import trace
from keras_muffnet.layers import standardize_data_format
from keras_muffnet.muffnet import muffnet_features
from keras_muffnet.presets import PAPER_NOTATION
from keras_muffnet.presets import SMALL_INPUT
from keras_muffnet.presets import STEMS
from keras_muffnet.presets import StageSpec
from keras_muffnet.presets import stages_from_notation

# Published weights, by name: none yet.
WEIGHTS: dict[str, str] = {}

_WEIGHTS_SUFFIXES = (".weights.h5", ".h5", ".keras")


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

    Args:
        input_shape: shape of an image without the batch axis. Defaults to
            224x224x3 with the classifier and to images of any size with 3
            channels without it. With the classifier it must be static.
        alpha: width multiplier. The paper's networks are 0.5, 1.0 and 1.5;
            any other positive number gives a network between or beyond them.
            Must be left out where `stages` is given.
        include_top: whether to end in a classifier. Without it the output is
            the last feature map, `(batch, height, width, 1024)`.
        weights: None for random ones, or the path of an existing file
            (`.weights.h5`, `.h5` or `.keras`) of a model of the same structure.
            There are no published weights yet.
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
            keeps the size). "auto" takes "cifar" for static inputs smaller
            than 56x56 and "imagenet" for all others, as section 3.3 says.

    Returns:
        A Functional `keras.Model`.

    Raises:
        ValueError: if an argument is not one of the above, if `input_shape`
            and `input_tensor` disagree, if `pooling` is given together with
            the classifier, or if `weights` do not fit the network.
        OSError: if the file `weights` is damaged.
    """
    # All arguments are checked before the first layer is made.
    weights = _check_weights(weights)
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
        default_name = "muffnet"
    if pooling not in (None, "avg", "max"):
        raise ValueError(
            "`pooling` must be None, 'avg' or 'max'. "
            f"Received: pooling={pooling!r}"
        )
    if include_top and pooling is not None:
        raise ValueError(
            "`pooling` must be None where `include_top` is True: the "
            "classifier has its own average pooling. "
            f"Received: pooling={pooling!r}"
        )
    classes = positive_integer("classes", classes)
    try:
        classifier_activation = keras.activations.get(classifier_activation)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`classifier_activation` must be None, the name of a Keras "
            "activation or a function. "
            f"Received: classifier_activation={classifier_activation!r}"
        ) from error
    if input_tensor is not None:
        shape = _check_input_tensor(input_tensor, input_shape)
    else:
        shape = _check_input_shape(input_shape, include_top)
    if include_top and None in shape:
        raise ValueError(
            "`input_shape` must be static where `include_top` is True. "
            f"Received: input_shape={shape}"
        )
    stem = _choose_stem(stem, shape)

    x = keras.Input(shape) if input_tensor is None else input_tensor
    inputs = keras.utils.get_source_inputs(x)
    x = muffnet_features(x, stages, stem)
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(
            classes, activation=classifier_activation, name="predictions"
        )(x)
    elif pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    if len(inputs) == 1:
        inputs = inputs[0]
    model = keras.Model(inputs, x, name=name or default_name)
    if weights is not None:
        model.load_weights(weights)
    return model


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Scales pixels from [0, 255] to [-1, 127/128]: `(x - 128) / 128`.

    With these numbers a quantized model's int8 input is the pixel minus 128,
    exactly.

    Args:
        x: array or tensor of images, pixels in [0, 255], of any shape.
        data_format: None, "channels_last" or "channels_first". The scaling is
            the same for each channel, so either gives the same.

    Returns:
        An array, if `x` is one, or a tensor, of Keras's float type and the
        shape of `x`. `x` itself is left as it is.

    Raises:
        ValueError: if `data_format` is none of the above.
    """
    standardize_data_format(data_format)
    if isinstance(x, (np.ndarray, np.generic, list, tuple)):
        return (np.asarray(x, dtype=keras.config.floatx()) - 128) / 128
    return (keras.ops.cast(x, keras.config.floatx()) - 128) / 128


def scales_pixels(model: keras.Model) -> bool:
    """Tells whether a model takes pixels as they are, in [0, 255].

    So it is taken to be if the first thing that it does is a
    `keras.layers.Rescaling` or a `keras.layers.Normalization`. All others are
    taken to want pixels scaled by `preprocess_input`.

    Args:
        model: a functional or sequential model.
    """
    first = trace(model).calls[0].operation
    scaling = (keras.layers.Normalization, keras.layers.Rescaling)
    return isinstance(first, scaling)


def decode_predictions(
    preds: Any, top: int = 5
) -> list[list[tuple[str, str, float]]]:
    """Names the best ImageNet classes of each prediction.

    Keras's own function; it downloads the list of classes on first use.

    Args:
        preds: array or tensor of shape `(batch, 1000)`.
        top: how many classes to give for each image.

    Returns:
        For each image a list of `(WordNet id, class name, score)`.

    Raises:
        ValueError: if `preds` is not of that shape.
    """
    return keras.applications.imagenet_utils.decode_predictions(
        keras.ops.convert_to_numpy(preds), top=top
    )


def _check_weights(weights: Any) -> str | None:
    if weights is None:
        return None
    if not isinstance(weights, (str, os.PathLike)):
        raise ValueError(
            "`weights` must be None, the name of published weights or the path "
            f"of an existing file. Received: weights={weights!r}"
        )
    path = os.fspath(weights)
    if path in WEIGHTS:
        return WEIGHTS[path]
    if not os.path.isfile(path):
        raise ValueError(
            "`weights` must be None, the name of published weights or the path "
            "of an existing file. Published weights: "
            f"{', '.join(WEIGHTS) or 'none yet'}. Received: weights={path!r}"
        )
    if not path.endswith(_WEIGHTS_SUFFIXES):
        raise ValueError(
            "`weights` must be a file whose name ends in "
            f"{', '.join(_WEIGHTS_SUFFIXES)}. Received: weights={path!r}"
        )
    return path


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


def _check_input_shape(
    input_shape: Any, include_top: bool
) -> tuple[int | None, ...]:
    axis = channel_axis() - 1
    if input_shape is None:
        size = 224 if include_top else None
        shape: list[int | None] = [size, size]
        shape.insert(axis, 3)
        return tuple(shape)
    if (
        not isinstance(input_shape, Sequence)
        or isinstance(input_shape, str)
        or len(input_shape) != 3
        or not all(
            size is None
            or (
                isinstance(size, (int, np.integer))
                and not isinstance(size, bool)
                and size > 0
            )
            for size in input_shape
        )
    ):
        raise ValueError(
            "`input_shape` must be three positive integers, height and width "
            f"or None for any size. Received: input_shape={input_shape!r}"
        )
    if input_shape[axis] is None:
        raise ValueError(
            "`input_shape` must say how many channels an image has, on axis "
            f"{axis}. Received: input_shape={input_shape!r}"
        )
    return tuple(input_shape)


def _check_input_tensor(
    input_tensor: Any, input_shape: Any
) -> tuple[int | None, ...]:
    if not keras.utils.is_keras_tensor(input_tensor):
        raise ValueError(
            "`input_tensor` must be a Keras tensor, as `keras.Input` returns. "
            f"Received: input_tensor={input_tensor!r}"
        )
    shape = tuple(input_tensor.shape[1:])
    if len(shape) != 3 or shape[channel_axis() - 1] is None:
        raise ValueError(
            "`input_tensor` must be a batch of images with a known number of "
            f"channels. Received a tensor of shape {tuple(input_tensor.shape)}"
        )
    if input_shape is not None:
        wanted = _check_input_shape(input_shape, include_top=False)
        if any(
            w is not None and w != s for w, s in zip(wanted, shape, strict=True)
        ):
            raise ValueError(
                "`input_shape` must agree with `input_tensor`, which has shape "
                f"{tuple(input_tensor.shape)}. Received: {input_shape=}"
            )
    return shape


def _choose_stem(stem: Any, shape: tuple[int | None, ...]) -> str:
    if stem == "auto":
        axis = channel_axis() - 1
        sizes = [size for k, size in enumerate(shape) if k != axis]
        small = any(s is not None and s < SMALL_INPUT for s in sizes)
        return "cifar" if small else "imagenet"
    if not isinstance(stem, str) or stem not in STEMS:
        raise ValueError(
            f"`stem` must be 'auto' or one of {', '.join(STEMS)}. "
            f"Received: stem={stem!r}"
        )
    return stem
