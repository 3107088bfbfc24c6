"""What `MuffNet` and its peers share: arguments checked, networks finished."""

import os
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import KerasTensor
from keras import layers

from keras_muffnet._arguments import boolean
from keras_muffnet._arguments import positive_integer
from keras_muffnet.blocks import channel_axis
from keras_muffnet.presets import stem_for_size

_WEIGHTS_SUFFIXES = (".weights.h5", ".h5", ".keras")


class CommonArguments(NamedTuple):
    """The arguments that all networks have, checked.

    Attributes:
        shape: shape of an image without the batch axis.
        include_top: whether the network ends in a classifier.
        weights: path of a file, or name of published weights; None for random
            ones.
        input_tensor: Keras tensor to start from; None for a new input.
        pooling: None, "avg" or "max".
        classes: units of the classifier.
        classifier_activation: its activation, a function.
    """

    shape: tuple[int | None, ...]
    include_top: bool
    weights: str | None
    input_tensor: KerasTensor | None
    pooling: str | None
    classes: int
    classifier_activation: Any


def check_arguments(
    input_shape: Sequence[int | None] | None,
    include_top: bool,
    weights: str | os.PathLike[str] | None,
    input_tensor: KerasTensor | None,
    pooling: str | None,
    classes: int,
    classifier_activation: Any,
    default_size: int = 224,
    published: Collection[str] = (),
) -> CommonArguments:
    """Checks the arguments that all networks have, as `MuffNet` describes them.

    Args:
        input_shape: see `keras_muffnet.MuffNet`, as for all that follow.
        include_top: see there.
        weights: see there.
        input_tensor: see there.
        pooling: see there.
        classes: see there.
        classifier_activation: see there.
        default_size: height and width of an image where the network has a
            classifier and neither shape nor tensor is given.
        published: names of published weights.

    Raises:
        ValueError: naming the argument, if one is wrong.
    """
    path = _check_weights(weights, published)
    include_top = boolean("include_top", include_top)
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
        shape = _check_input_shape(
            input_shape, default_size if include_top else None
        )
    if include_top and None in shape:
        raise ValueError(
            "`input_shape` must be static where `include_top` is True. "
            f"Received: input_shape={shape}"
        )
    return CommonArguments(
        shape,
        include_top,
        path,
        input_tensor,
        pooling,
        classes,
        classifier_activation,
    )


def choose_stem(stem: Any, shape: tuple[int | None, ...]) -> str:
    """Returns the stem that is meant: a key of `presets.STEMS`.

    Args:
        stem: one of them, or "auto" for the one that suits the size.
        shape: shape of an image without the batch axis.

    Raises:
        ValueError: if `stem` is none of these.
    """
    axis = channel_axis() - 1
    sides = [side for k, side in enumerate(shape) if k != axis]
    known = [side for side in sides if side is not None]
    return stem_for_size(stem, min(known, default=None))


def assemble(
    arguments: CommonArguments,
    features: Callable[[KerasTensor], KerasTensor],
    name: str,
    classifier: Callable[..., Callable[[Any], Any]] = layers.Dense,
) -> keras.Model:
    """Makes the model: input, feature maps, and what ends the network.

    Args:
        arguments: the checked arguments.
        features: makes the last feature map of a batch of images.
        name: name of the model.
        classifier: makes the layer `predictions`, called with the number of
            classes, `activation` and `name`.

    Returns:
        A Functional `keras.Model`, its weights loaded where a file is given.
    """
    x = arguments.input_tensor
    if x is None:
        x = keras.Input(arguments.shape)
    inputs = keras.utils.get_source_inputs(x)
    start = x
    x = features(x)
    if arguments.include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = classifier(
            arguments.classes,
            activation=arguments.classifier_activation,
            name="predictions",
        )(x)
    elif arguments.pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif arguments.pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    if len(inputs) == 1:
        inputs = inputs[0]
    model = keras.Model(inputs, x, name=name)
    if arguments.weights is not None:
        # What lies upstream of an input tensor has no weights in the file.
        keras.Model(start, x).load_weights(arguments.weights)
    return model


def _check_weights(weights: Any, published: Collection[str]) -> str | None:
    if weights is None:
        return None
    if not isinstance(weights, (str, os.PathLike)):
        raise ValueError(
            "`weights` must be None, the name of published weights or the path "
            f"of an existing file. Received: weights={weights!r}"
        )
    path = os.fspath(weights)
    if path in published:
        return path
    if not os.path.isfile(path):
        raise ValueError(
            "`weights` must be None, the name of published weights or the path "
            "of an existing file. Published weights: "
            f"{', '.join(published) or 'none'}. Received: weights={path!r}"
        )
    if not path.endswith(_WEIGHTS_SUFFIXES):
        raise ValueError(
            "`weights` must be a file whose name ends in "
            f"{', '.join(_WEIGHTS_SUFFIXES)}. Received: weights={path!r}"
        )
    return path


def _check_input_shape(
    input_shape: Any, default_size: int | None
) -> tuple[int | None, ...]:
    axis = channel_axis() - 1
    if input_shape is None:
        shape: list[int | None] = [default_size, default_size]
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
        wanted = _check_input_shape(input_shape, default_size=None)
        if any(
            w is not None and w != s for w, s in zip(wanted, shape, strict=True)
        ):
            raise ValueError(
                "`input_shape` must agree with `input_tensor`, which has shape "
                f"{tuple(input_tensor.shape)}. Received: {input_shape=}"
            )
    return shape
