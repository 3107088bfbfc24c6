"""CondenseNet, and how it is condensed."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import KerasTensor
from keras import layers

from keras_muffnet._arguments import boolean
from keras_muffnet._arguments import positive_integer
from keras_muffnet.assembly import assemble
from keras_muffnet.assembly import check_arguments
from keras_muffnet.assembly import choose_stem
from keras_muffnet.baselines.densenet import bn_relu
from keras_muffnet.baselines.densenet import convolution
from keras_muffnet.baselines.stems import STRIDES
from keras_muffnet.blocks import channel_axis
from keras_muffnet.blocks import concatenate
from keras_muffnet.graph import trace
from keras_muffnet.layers import ChannelGather
from keras_muffnet.layers import ChannelShuffle
from keras_muffnet.layers import LearnedGroupConv2D
from keras_muffnet.layers import PrunedDense

GROUPS = 8
CONDENSATION = 8
CLASSIFIER_CONDENSATION = 2
STEM_FILTERS = 16
# Layers of the five blocks, and the channels that each of them adds.
LAYERS = (4, 6, 8, 10, 8)
GROWTH_RATES = (8, 16, 32, 64, 128)
GROUP_LASSO = 1e-5


def CondenseNet(
    input_shape: Sequence[int | None] | None = None,
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = None,
    input_tensor: KerasTensor | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    name: str | None = None,
    stem: str = "auto",
    depths: Sequence[int] = LAYERS,
    growth_rates: Sequence[int] = GROWTH_RATES,
    condensed: bool = False,
) -> keras.Model:
    """Builds CondenseNet with G = C = 8.

    Reference: "CondenseNet: An Efficient DenseNet using Learned Group
    Convolutions" (Huang et al., 2018).

    It is trained in a form whose 1x1 convolutions learn, under
    `CondensationSchedule`, which eighth of their inputs each of 8 groups
    needs; `condense` then makes the form for inference, of equal outputs. The
    group-lasso loss is one of the model's own losses.

    ```python
    from keras_muffnet.baselines import CondensationSchedule
    from keras_muffnet.baselines import CondenseNet
    from keras_muffnet.baselines import condense

    model = CondenseNet(
        input_shape=(32, 32, 3),
        classes=3,
        depths=(1, 1, 1, 1, 1),
        growth_rates=(8, 8, 8, 16, 16),
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    schedule = CondensationSchedule(epochs=2)
    model.fit(images, labels, epochs=2, callbacks=[schedule])
    condensed = condense(model)
    ```

    The counts that the papers print are those of the form for inference, which
    `condensed=True` builds. Feature maps with stem "imagenet":

    | stride | layer                   | channels |
    |--------|-------------------------|----------|
    | 2      | `block1_layer4_concat`  | 48       |
    | 4      | `block2_layer6_concat`  | 144      |
    | 8      | `block3_layer8_concat`  | 400      |
    | 16     | `block4_layer10_concat` | 1040     |
    | 32     | `block5_layer8_concat`  | 2064     |
    | 32     | `head_relu`             | 2064     |

    Args:
        input_shape: as for `keras_muffnet.MuffNet`, like all arguments that
            this list leaves out. There are no published weights.
        stem: "imagenet" (strides up to 32), "tiny_imagenet" (the first two
            reductions left out: up to 8) or "cifar" (the first three: up to
            4); "auto" as for `MuffNet`.
        depths: number of layers of each of the five blocks.
        growth_rates: channels that each layer adds, block by block; multiples
            of 8.
        condensed: builds the form for inference, with random weights and
            inputs dealt out to the groups in turn.

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
    stem = choose_stem(stem, arguments.shape)
    depths = _five("depths", depths, 1)
    growth_rates = _five("growth_rates", growth_rates, GROUPS)
    condensed = boolean("condensed", condensed)
    return assemble(
        arguments,
        lambda x: condensenet_features(
            x, depths, growth_rates, stem, condensed
        ),
        name or "condensenet",
        _condensed_classifier
        if condensed
        else functools.partial(
            PrunedDense, condensation=CLASSIFIER_CONDENSATION
        ),
    )


def condensenet_features(
    x: KerasTensor,
    depths: Sequence[int],
    growth_rates: Sequence[int],
    stem: str,
    condensed: bool,
) -> KerasTensor:
    """The network without its classifier.

    Args:
        x: a batch of images.
        depths: number of layers of each block.
        growth_rates: channels that each layer adds.
        stem: a key of `presets.STEMS`.
        condensed: whether it is the form for inference.
    """
    strides = STRIDES[stem]
    x = convolution(x, STEM_FILTERS, 3, name="stem", strides=strides[0])
    for block, (depth, growth_rate) in enumerate(
        zip(depths, growth_rates, strict=True), start=1
    ):
        if block > 1 and strides[block - 1] > 1:
            x = layers.AveragePooling2D(2, name=f"block{block}_pool")(x)
        for layer in range(1, depth + 1):
            name = f"block{block}_layer{layer}"
            x = condensed_layer(x, growth_rate, condensed, name=name)
    return bn_relu(x, name="head")


def condensed_layer(
    x: KerasTensor, growth_rate: int, condensed: bool, name: str
) -> KerasTensor:
    """Concatenates to its input what it computes of it, figure 1."""
    pointwise, filters = f"{name}_pointwise", 4 * growth_rate
    new = bn_relu(x, name=pointwise)
    if condensed:
        taken = new.shape[channel_axis()] // CONDENSATION * GROUPS
        new = ChannelGather(taken, name=f"{pointwise}_conv_inputs")(new)
        new = convolution(new, filters, 1, name=pointwise, groups=GROUPS)
    else:
        new = LearnedGroupConv2D(
            filters,
            GROUPS,
            CONDENSATION,
            group_lasso=GROUP_LASSO,
            name=f"{pointwise}_conv",
        )(new)
    new = ChannelShuffle(GROUPS, name=f"{name}_shuffle")(new)
    new = bn_relu(new, name=f"{name}_spatial")
    new = convolution(
        new, growth_rate, 3, name=f"{name}_spatial", groups=GROUPS
    )
    return concatenate([x, new], name=f"{name}_concat")


class CondensationSchedule(keras.callbacks.Callback):
    """Drops inputs stage by stage during the first half of training.

    With condensation 8 there are 7 stages of equal length, and at the end of
    each every group of a learned group convolution drops 1/8 of its inputs.
    With the last stage the classifier drops half of its own.

    What is to be dropped follows from the epoch and what was dropped from the
    model's weights, so training can be resumed.

    Args:
        epochs: number of epochs of the training.

    Raises:
        ValueError: if `epochs` is not a positive integer, or, when training
            starts, if the model has no layers that drop inputs.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = positive_integer("epochs", epochs)

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks that there is something to condense."""
        if not _learned(self.model):
            raise ValueError(
                "`model` must have layers that drop inputs, as CondenseNet's "
                f"training form has. Received: {self.model.name!r}"
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Drops what is due before an epoch, counted from 0."""
        self._drop_until(epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """After the last epoch drops what is due by then."""
        if epoch + 1 >= self.epochs:
            self._drop_until(self.epochs)

    def _drop_until(self, epoch: int) -> None:
        found = _learned(self.model)
        stages = max(layer.stages for layer in found)
        due = min(stages, 2 * stages * epoch // self.epochs)
        for layer in found:
            while layer.stage < due - (stages - layer.stages):
                layer.drop()


def condense(model: keras.Model) -> keras.Model:
    """Makes the form for inference of a trained CondenseNet.

    Learned group convolutions become a choice of channels and a grouped
    convolution; the classifier becomes a choice of features and a dense
    layer. All else stays, names included.

    Args:
        model: a functional model in the training form whose layers have
            dropped all inputs that they are to drop.

    Returns:
        A new functional model with the outputs of `model`.

    Raises:
        ValueError: if a layer has inputs left to drop, or none drops any.
    """
    found = {layer.name: layer for layer in _learned(model)}
    unfinished = [x.name for x in found.values() if x.stage < x.stages]
    own = {layer.name for layer in model.layers}
    if not found or unfinished or not set(found) <= own:
        raise ValueError(
            "`model` must be a CondenseNet after its last stage of "
            "condensation, not inside another model. Layers that have inputs "
            f"left to drop: {', '.join(unfinished) or 'none'}. "
            f"Received: {model.name!r} with {len(found)} layers that drop any"
        )

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name not in found:
            return type(layer).from_config(layer.get_config())
        if isinstance(layer, PrunedDense):
            config = layer.get_config()
            del config["condensation"]
            return layers.Dense.from_config(config)
        return layers.Conv2D(
            layer.filters,
            1,
            padding="same",
            groups=layer.learned_groups,
            use_bias=False,
            kernel_initializer="he_normal",
            data_format=layer.data_format,
            name=layer.name,
        )

    def call(
        layer: keras.layers.Layer, x: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if layer.name in found:
            taken = len(_kept(found[layer.name]).reshape(-1))
            x = ChannelGather(taken, name=f"{layer.name}_inputs")(x)
        return layer(x, *args, **kwargs)

    condensed = keras.models.clone_model(
        model, clone_function=clone, call_function=call
    )
    for layer in model.layers:
        if not layer.weights:
            continue
        target = condensed.get_layer(layer.name)
        if layer.name not in found:
            target.set_weights(layer.get_weights())
            continue
        kept = _kept(layer)
        gather = condensed.get_layer(f"{layer.name}_inputs")
        gather.indices.assign(kept.reshape(-1))
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        if isinstance(layer, PrunedDense):
            bias = [layer.bias] if layer.use_bias else []
            target.set_weights([kernel[kept[0]], *bias])
        else:
            by_group = np.split(kernel[0, 0], len(kept), axis=-1)
            parts = [k[i] for k, i in zip(by_group, kept, strict=True)]
            target.set_weights([np.concatenate(parts, axis=-1)[None, None]])
    return condensed


def _learned(model: keras.Model) -> list[Any]:
    kinds = (LearnedGroupConv2D, PrunedDense)
    found = {id(c.operation): c.operation for c in trace(model).calls}
    return [layer for layer in found.values() if isinstance(layer, kinds)]


def _kept(layer: Any) -> np.ndarray:
    """Inputs that each group has left, of shape `(groups, inputs)`."""
    mask = keras.ops.convert_to_numpy(layer.mask)
    return np.stack([np.flatnonzero(column) for column in mask.T])


def _condensed_classifier(units: int, activation: Any, name: str) -> Any:
    def classify(x: KerasTensor) -> KerasTensor:
        taken = x.shape[-1] // CLASSIFIER_CONDENSATION
        x = ChannelGather(taken, name=f"{name}_inputs")(x)
        return layers.Dense(units, activation=activation, name=name)(x)

    return classify


def _five(name: str, values: Any, multiple: int) -> tuple[int, ...]:
    if (
        isinstance(values, str)
        or not isinstance(values, Sequence)
        or len(values) != len(LAYERS)
        or any(
            isinstance(v, bool)
            or not isinstance(v, (int, np.integer))
            or v < 1
            or v % multiple
            for v in values
        )
    ):
        raise ValueError(
            f"`{name}` must be {len(LAYERS)} positive multiples of {multiple}. "
            f"Received: {name}={values!r}"
        )
    return tuple(map(int, values))
