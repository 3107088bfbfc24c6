"""Rewrites a Keras model in the few operations that are quantized.

Whatever scales and shifts channels by constants (batch normalisation,
rescaling, the constants inside a hard sigmoid) becomes part of the convolution
before it, or a 1x1 depthwise convolution where there is none. Activations are
split into what LiteRT runs in integers: swish is sigmoid times x, hard sigmoid
a line cut off by a ReLU. What is left is a list of steps of some twenty kinds,
which both engines know how to build.
"""

from collections.abc import Sequence
from typing import Any

import keras

from keras_muffnet.graph import trace
from keras_muffnet.quantization.folding import affine_to_depthwise
from keras_muffnet.quantization.folding import fold_affine
from keras_muffnet.quantization.folding import with_uneven_bias
from keras_muffnet.quantization.rules import RULES
from keras_muffnet.quantization.steps import Lowered
from keras_muffnet.quantization.writer import Writer
from keras_muffnet.quantization.writer import kinds_of


def lower(
    model: keras.Model,
    input_shapes: Sequence[Sequence[int]] | None = None,
) -> Lowered:
    """Rewrites a model in steps.

    Args:
        model: a functional or built sequential model whose inputs have known
            sizes. Layers that no rule is for, and subclassed models inside it,
            are taken as what they call.
        input_shapes: sizes of the inputs, without the batch axis, in place of
            the model's own.

    Raises:
        ValueError: naming the layer and the reason, if the model has a layer
            that has no counterpart in integers; or if its input is not as
            above.
    """
    if input_shapes is not None:
        input_shapes = [(None, *shape) for shape in input_shapes]
    graph = trace(model, input_shapes, opens=is_unknown)
    shapes = tuple(tuple(x.shape[1:]) for x in graph.inputs)
    for shape in shapes:
        if not shape or None in shape:
            raise ValueError(
                "`model` must take inputs of one size, such as (height, width, "
                f"channels). Received: a model with input shape {shape}"
            )
    writer = Writer(graph, RULES)
    steps, outputs = writer.write()
    steps, outputs = fold_affine(steps, outputs)
    steps, outputs = affine_to_depthwise(steps, outputs)
    steps = [with_uneven_bias(step) for step in steps]
    return Lowered(shapes, tuple(steps), outputs, writer.layers)


def is_unknown(layer: Any) -> bool:
    """Whether there is no rule for a layer, so that it has to be opened."""
    return not any(kind in RULES for kind in kinds_of(layer))
