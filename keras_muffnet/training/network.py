"""The network of a recipe, what of it is trained, and what is saved of it."""

import difflib
import os
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras

from keras_muffnet.assembly import choose_stem
from keras_muffnet.blocks import image_shape
from keras_muffnet.muffnet import MuffNet
from keras_muffnet.preprocessing import Preprocessing
from keras_muffnet.preprocessing import image_input
from keras_muffnet.published import published_weights
from keras_muffnet.training.recipe import Recipe
from keras_muffnet.training.recipe import RunRecipe

CLASSIFIER = "predictions"


def configure_keras(recipe: RunRecipe) -> None:
    """Sets Keras to a recipe's seed, data format, precision, determinism.

    These are settings of the whole process, to be made before the network is
    built. Determinism holds on one machine, with the same versions.

    Args:
        recipe: the recipe.
    """
    keras.utils.set_random_seed(recipe.seed)
    keras.config.set_image_data_format(recipe.data_format)
    keras.config.set_dtype_policy(recipe.precision)
    if not recipe.deterministic:
        return
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
        # The graph optimizer turns sums of three tensors and more, of which
        # the gradients of this network are full, into additions to a buffer
        # in the order in which the tensors are ready: another one each time.
        tf.config.optimizer.set_experimental_options(
            {"disable_meta_optimizer": True}
        )
    elif keras.backend.backend() == "torch":
        import torch

        # cuBLAS is deterministic with a work space of its own alone; read
        # when it first computes.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        # Read when JAX first uses a GPU; on the CPU it is deterministic.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"


def build_network(recipe: Recipe, classes: int) -> keras.Model:
    """Builds the network that a recipe trains, with its first weights.

    It gives logits, of float32 whatever the precision: `deployable` makes the
    classifier of it.

    Args:
        recipe: the recipe.
        classes: number of classes.

    Raises:
        ValueError: if a setting of the network is wrong, or the weights do
            not fit it.
        OSError: if the file of the weights is damaged.
    """
    model = MuffNet(
        input_shape=image_shape(recipe.size),
        alpha=recipe.alpha,
        stem=stem_of(recipe),
        classes=classes,
        classifier_activation=None,
    )
    # Two digits of a probability are not enough to learn from.
    model.get_layer(CLASSIFIER).dtype_policy = keras.DTypePolicy("float32")
    if recipe.weights is not None:
        load_weights(model, recipe)
    return model


def stem_of(recipe: Recipe) -> str:
    """The stem of a recipe's network, where "auto" is chosen as `MuffNet` does.

    Args:
        recipe: the recipe.
    """
    if recipe.stem == "auto" and recipe.weights is not None:
        published = published_weights().get(recipe.weights)
        if published is not None:
            return published.stem
    return choose_stem(recipe.stem, image_shape(recipe.size))


def load_weights(model: keras.Model, recipe: Recipe) -> None:
    """Loads the weights that a recipe names into its network.

    Raises:
        ValueError: if they do not fit. Only the classifier of a `.keras` file
            may have another number of classes; it is then left out.
        OSError: if the file is damaged.
    """
    path = recipe.weights
    assert path is not None
    if path in published_weights():
        source = MuffNet(
            alpha=recipe.alpha,
            stem=recipe.stem,
            include_top=False,
            weights=path,
        )
    elif not os.path.isfile(path):
        raise ValueError(
            "`weights` must be an existing file or the name of published "
            f"weights: {', '.join(published_weights())}. "
            f"Received: weights={path!r}"
        )
    elif path.endswith(".keras"):
        source = keras.saving.load_model(path, compile=False)
    else:
        model.load_weights(path)
        return
    copy_weights(source, model, path, lambda name: name == CLASSIFIER)


def copy_weights(
    source: keras.Model,
    model: keras.Model,
    path: str,
    may_differ: Callable[[str], bool],
) -> None:
    """Copies weights between layers of the same name.

    Args:
        source: the model that has them.
        model: the model that is to have them.
        path: where the source is from, for errors.
        may_differ: says of a layer's name whether the layer may be missing
            from either model, or be of another shape; it is then left as it is.

    Raises:
        ValueError: naming the layer, if another one is missing or of another
            shape.
    """
    theirs = {layer.name: layer for layer in source.layers if layer.weights}
    for layer in model.layers:
        if not layer.weights:
            continue
        found = theirs.pop(layer.name, None)
        shapes = [tuple(w.shape) for w in layer.weights]
        other = [tuple(w.shape) for w in found.weights] if found else None
        if shapes == other:
            layer.set_weights(found.get_weights())
        elif not may_differ(layer.name):
            raise ValueError(
                "`weights` must be of the recipe's network. Layer "
                f"{layer.name!r} has weights of {shapes}; in {path!r} "
                f"{other or 'there is none of that name'}"
            )
    left = sorted(name for name in theirs if not may_differ(name))
    if left:
        raise ValueError(
            "`weights` must be of the recipe's network, which has no layers "
            f"{', '.join(left[:5])}. Received: weights={path!r}"
        )


def train_classifier_only(model: keras.Model) -> None:
    """Freezes all layers but the last.

    Frozen batch normalization uses its averages and leaves them alone.
    """
    for layer in model.layers:
        layer.trainable = layer is model.layers[-1]


def train_from(
    model: keras.Model, level: str | None, freeze_norms: bool = False
) -> None:
    """Freezes the layers before a level, and none of the others.

    A frozen `BatchNormalization` works with its averages and leaves them
    alone: `trainable = False` does that, whereas calling a nested model with
    `training=False` does not in Keras 3, whose `fit` trains what is nested
    too.

    Args:
        model: a functional model.
        level: what the name of the level's first layer starts with; None
            freezes none.
        freeze_norms: freezes all batch normalization, also of nested models.

    Raises:
        ValueError: if no layer's name starts so, naming near ones.
    """
    names = [layer.name for layer in model.layers]
    starts = [k for k, name in enumerate(names) if name.startswith(level or "")]
    if not starts:
        levels = dict.fromkeys(name.partition("_")[0] for name in names)
        near = difflib.get_close_matches(level or "", names)
        raise ValueError(
            "`unfreeze_from` must be what a layer's name starts with, such as "
            f"{', '.join(map(repr, levels))}"
            + (f" (near it: {', '.join(map(repr, near))})" if near else "")
            + f". Received: unfreeze_from={level!r}"
        )
    for number, layer in enumerate(model.layers):
        layer.trainable = number >= starts[0]
        for norm in _norms(layer) if freeze_norms else ():
            norm.trainable = False


def _norms(layer: Any) -> Iterator[keras.layers.Layer]:
    """All batch normalization of a layer, which may be a model."""
    if isinstance(layer, keras.layers.BatchNormalization):
        yield layer
    for part in getattr(layer, "layers", ()):
        yield from _norms(part)


def gives_logits(model: keras.Model) -> bool:
    """Whether the last layer has no activation."""
    activation = getattr(model.layers[-1], "activation", None)
    return activation is keras.activations.linear


def deployable(model: keras.Model, preprocessing: Preprocessing) -> keras.Model:
    """Copies a model as float32, with probabilities as its output.

    Args:
        model: a functional model that gives logits or probabilities, not
            compiled.
        preprocessing: how images are made ready for it, which the copy knows.

    Returns:
        The copy. It has random weights, for `set_weights`.
    """
    last = model.layers[-1].name

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = {**layer.get_config(), "dtype": "float32", "trainable": True}
        if layer.name == last and gives_logits(model):
            config["activation"] = "softmax"
        return type(layer).from_config(config)

    return keras.models.clone_model(
        model,
        input_tensors=image_input(model, preprocessing),
        clone_function=copied,
    )
