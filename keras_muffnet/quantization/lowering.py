"""Rewrites a Keras model in the few operations that are quantized.

Whatever scales and shifts channels by constants (batch normalization,
rescaling, the constants inside a hard sigmoid) becomes part of the convolution
before it, or a 1x1 depthwise convolution where there is none. Activations are
split into what LiteRT runs in integers: swish is sigmoid times x, hard sigmoid
a line cut off by a ReLU. What is left is a list of steps of some twenty kinds,
which both engines know how to build.
"""

import warnings
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
from typing import Any

import keras

from keras_muffnet.graph import Call
from keras_muffnet.graph import trace
from keras_muffnet.quantization.folding import affine_to_depthwise
from keras_muffnet.quantization.folding import fold_affine
from keras_muffnet.quantization.folding import with_uneven_bias
from keras_muffnet.quantization.layouts import kind_of
from keras_muffnet.quantization.rules import RULES
from keras_muffnet.quantization.rules.activations import ACTIVATIONS
from keras_muffnet.quantization.steps import Lowered
from keras_muffnet.quantization.steps import refuse
from keras_muffnet.quantization.writer import Writer

# What takes all layers that no rule fits.
UNKNOWN = "unknown"

# Rules that were registered.
EXPRESSIONS: dict[type, Callable[..., Any]] = {}


def lower(
    model: keras.Model,
    input_shapes: Sequence[Sequence[int]] | None = None,
    float_layers: Collection[str] = (),
    keeps_unknown: bool = False,
) -> Lowered:
    """Rewrites a model in steps.

    Args:
        model: a functional or built sequential model whose inputs have known
            sizes. Layers that no rule is for, and subclassed models inside it,
            are taken as what they call.
        input_shapes: sizes of the inputs, without the batch axis, in place of
            the model's own.
        float_layers: names of layers that stay as they are, in float, if no
            rule fits them; "unknown" for all such layers, with a warning.
        keeps_unknown: whether all such layers stay so, without one.

    Raises:
        ValueError: naming all layers that have no counterpart in integers,
            and the reasons; or if the model's input is not as above.
    """
    warns = isinstance(float_layers, str) and float_layers == UNKNOWN
    named = set() if warns else {*float_layers}
    batches: list[tuple[int | None, ...]] | None = None
    if input_shapes is not None:
        batches = [(None, *shape) for shape in input_shapes]
    graph = trace(
        model,
        batches,
        opens=lambda x: is_unknown(x) and x.name not in named,
        expressions=EXPRESSIONS,
        knows=_knows,
    )
    shapes = tuple(tuple(x.shape[1:]) for x in graph.inputs)
    for shape in shapes:
        if not shape or None in shape:
            raise ValueError(
                "`model` must take inputs of one size, such as (height, width, "
                "channels), or `input_shape` give one. Received: a model with "
                f"input shape {shape}"
            )
    for call in graph.calls:
        for x in call.outputs:
            # Rules refuse what moves the batch axis.
            if x.shape[:1] == (None,) and None in x.shape[1:]:
                refuse(
                    call.name,
                    f"({type(call.operation).__name__}) must give tensors of "
                    f"one size. Found: shape {tuple(x.shape)}",
                )
    writer = Writer(graph, RULES, named, warns or keeps_unknown)
    steps, outputs = writer.write()
    if warns and writer.kept:
        warnings.warn(
            f"Left in float: {'; '.join(dict.fromkeys(writer.kept))}",
            stacklevel=2,
        )
    steps, outputs = fold_affine(steps, outputs)
    steps, outputs = affine_to_depthwise(steps, outputs)
    steps = [with_uneven_bias(step) for step in steps]
    return Lowered(shapes, tuple(steps), outputs, writer.layers, graph)


def register_rule(kind: type) -> Callable[[Any], Any]:
    """Says what a layer of one's own does, in layers and functions of Keras.

    Layers whose `call` consists of those need no rule. One is for a layer that
    Keras cannot follow, as it computes in TensorFlow or in another framework:

    ```python
    import keras
    import tensorflow as tf
    from keras_muffnet import quantization

    class Doubled(keras.layers.Layer):
        def call(self, inputs):
            return tf.math.add(inputs, inputs)

    @quantization.register_rule(Doubled)
    def doubled(layer, inputs):
        return keras.ops.multiply(inputs, 2.0)
    ```

    It may use the layer's own layers, which then are trained and brought back
    by `finish`; what it reads of the layer's weights are constants.

    Args:
        kind: the layer's class. Each class has one rule, the last registered.

    Returns:
        A decorator for the rule: a function that is given the layer and what
        the layer is called with, and returns tensors of the same shapes.

    Raises:
        ValueError: if `kind` is not a class of layers.
    """
    if not (isinstance(kind, type) and issubclass(kind, keras.layers.Layer)):
        raise ValueError(
            f"`kind` must be a class of layers. Received: {kind!r}"
        )

    def register(rule: Any) -> Any:
        EXPRESSIONS[kind] = rule
        return rule

    return register


def _knows(call: Call) -> bool:
    """Whether there is a rule for a call."""
    kind = kind_of(call.operation)
    # A layer is not opened for a convolution over three axes.
    return kind in RULES and (
        kind != "op Conv" or len(call.inputs[0].shape) < 5
    )


def is_unknown(layer: Any) -> bool:
    """Whether there is no rule for a layer, so that it has to be opened."""
    if kind_of(layer) == "Activation":
        # One of the user's own consists of functions, as layers do.
        function = layer.activation
        is_layer = isinstance(function, keras.layers.Layer)
        return not (is_layer or any(function is f for f in ACTIVATIONS))
    return type(layer) in EXPRESSIONS or kind_of(layer) not in RULES
