"""Rewrites a Keras model in the few operations that are quantized.

Whatever scales and shifts channels by constants (batch normalisation,
rescaling, the constants inside a hard sigmoid) becomes part of the convolution
before it, or a 1x1 depthwise convolution where there is none. Activations are
split into what LiteRT runs in integers: swish is sigmoid times x, hard sigmoid
a line cut off by a ReLU. What is left is a list of steps of some twenty kinds,
which both engines know how to build.
"""

import keras

from keras_muffnet.graph import Graph
from keras_muffnet.graph import trace
from keras_muffnet.quantization.folding import affine_to_depthwise
from keras_muffnet.quantization.folding import fold_affine
from keras_muffnet.quantization.folding import with_uneven_bias
from keras_muffnet.quantization.rules import RULES
from keras_muffnet.quantization.steps import Lowered
from keras_muffnet.quantization.writer import Writer


def lower(model: keras.Model) -> Lowered:
    """Rewrites a model in steps.

    Args:
        model: a functional or built sequential model with one input, a batch
            of channels-last images of known size.

    Raises:
        ValueError: naming the layer and the reason, if the model has a layer
            that has no counterpart in integers; or if its input is not as
            above.
    """
    graph = trace(model)
    shape = _image_shape(graph)
    steps, outputs = Writer(graph, RULES).write()
    steps, outputs = fold_affine(steps, outputs)
    steps, outputs = affine_to_depthwise(steps, outputs)
    return Lowered(shape, tuple(map(with_uneven_bias, steps)), outputs)


def _image_shape(graph: Graph) -> tuple[int, int, int]:
    if len(graph.inputs) != 1:
        raise ValueError(
            "`model` must have one input. Received a model with "
            f"{len(graph.inputs)}"
        )
    shape = tuple(graph.inputs[0].shape[1:])
    if len(shape) != 3 or None in shape:
        raise ValueError(
            "`model` must take images of one size, (height, width, channels). "
            f"Received a model with input shape {shape}"
        )
    return shape
