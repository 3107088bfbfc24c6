"""Weights and ranges of models that an engine built."""

import sys
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_muffnet.folding import norm_line
from keras_muffnet.graph import fits
from keras_muffnet.quantization._modules import load_module
from keras_muffnet.quantization.custom import clone_layer
from keras_muffnet.quantization.folding import home_of_bias
from keras_muffnet.quantization.lowering import lower
from keras_muffnet.quantization.rules.convolutions import kernels_of
from keras_muffnet.quantization.steps import FOREIGN
from keras_muffnet.quantization.steps import KERNELS
from keras_muffnet.quantization.steps import Step

Range = tuple[float, float]


def read_ranges(model: Any) -> dict[str, Range]:
    """The limits of a fake-quantized model's outputs.

    Args:
        model: a model of either engine, or any other.

    Returns:
        The ranges by name of the step, none if the model is not quantized.
    """
    engine = engine_of(model)
    ranges = {}
    for layer in getattr(model, "layers", []):
        limits = engine.output_range(layer)
        if limits is not None:
            ranges[engine.bare(layer).name] = tuple(limits)
    return ranges


def finish(
    quantized_model: Any, model: keras.Model
) -> tuple[keras.Model, dict[str, Range]]:
    """Does what `keras_muffnet.quantization.finish` says."""
    engine = engine_of(quantized_model)
    ranges = read_ranges(quantized_model)
    if isinstance(quantized_model, keras.Model) and not ranges:
        raise ValueError(
            "`quantized_model` must be what `quantize_aware`, `prune` or "
            f"`cluster` returned. Received: {quantized_model!r}"
        )
    trained = {
        engine.bare(layer).name: layer
        for layer in quantized_model.layers
        if layer.weights
    }
    copy = keras.models.clone_model(model, clone_function=clone_layer)
    copy.set_weights(model.get_weights())
    # Whatever was left in float has its weights in layers named so.
    kept = [
        name.removesuffix("_kept") for name in trained if name.endswith("_kept")
    ]
    shapes = [tuple(x.shape[1:]) for x in quantized_model.inputs]
    own = [tuple(x.shape[1:]) for x in model.inputs]
    if not fits(shapes, own):
        raise ValueError(
            "`quantized_model` must be made of `model`, whose inputs have "
            f"shapes {own}. Received: a model of inputs of shapes {shapes}"
        )
    lowered, copied = [
        lower(either, shapes, kept, keeps_unknown=True)
        for either in (model, copy)
    ]
    layers = dict(zip(lowered.layers, copied.layers.values(), strict=True))
    for name, layer in layers.items():
        # Layers without a name inside a layer were given others in the copy.
        layer.name = lowered.layers[name].name
    done = set()
    for step in lowered.steps:
        if step.kind == FOREIGN and f"{step.sources[0]}_kept" in trained:
            trained_layer = trained[f"{step.sources[0]}_kept"]
            layers[step.sources[0]].set_weights(trained_layer.get_weights())
        if step.kind in KERNELS and step.layer_name in ranges:
            # All calls of a layer have one range.
            ranges[step.name] = ranges[step.layer_name]
        if not step.weights or not step.trainable or step.layer_name in done:
            continue
        done.add(step.layer_name)
        weights: list[np.ndarray] = []
        if step.layer_name in trained:
            weights = engine.read_weights(trained[step.layer_name])
        if [w.shape for w in weights] != [w.shape for w in step.weights]:
            raise ValueError(
                "`quantized_model` must be made of `model`, whose layer "
                f"{step.layer_name!r} has no counterpart in it"
            )
        _bring_back(step, weights, layers)
    return copy, ranges


def engine_of(model: Any) -> Any:
    """The engine that can read a model; for any other object, too."""
    is_keras_3 = isinstance(model, keras.Model) or "tf_keras" not in sys.modules
    return load_module("keras_engine" if is_keras_3 else "tfmot_engine")


def _bring_back(
    step: Step, weights: list[np.ndarray], layers: Mapping[str, Any]
) -> None:
    """Undoes what was multiplied into a kernel, and sets the Keras layer's."""
    layer = layers[step.sources[0]]
    kernel = _kernel_variable(layer, step)
    old = keras.ops.convert_to_numpy(kernel)
    # One column for each output channel, whatever the kind of kernel. A
    # channel that is multiplied by zero learns nothing.
    dead = np.asarray(step.scale) == 0
    divisor = _divisor(step.scale)
    if step.kind == "Conv2DTranspose":  # (..., out, in)
        divisor, dead = np.expand_dims(divisor, -1), np.expand_dims(dead, -1)
        kept = old.reshape(weights[0].shape)
        new = np.where(dead, kept, weights[0] / divisor)
        kernel.assign(new.reshape(old.shape))
        divisor = divisor[..., 0]
    else:
        columns = weights[0].reshape(-1, *divisor.shape) / divisor
        columns = np.where(dead, old.reshape(columns.shape), columns)
        kernel.assign(columns.reshape(old.shape))
    if len(weights) == 1:
        return
    change = weights[1] - step.weights[1]
    norm = home_of_bias(step, layers)
    if norm is layer:
        if layer.bias is None:
            raise ValueError(
                f"`model` must have a bias in layer {layer.name!r} for the "
                "one that was trained: a constant is added behind it"
            )
        change = np.reshape(change / divisor, layer.bias.shape)
        layer.bias.assign(layer.bias + change)
        return
    change = change / _divisor(step.scale_behind)
    if norm.center:
        norm.beta.assign(norm.beta + change)
    else:
        change = change / _divisor(norm_line(norm)[0])
        norm.moving_mean.assign(norm.moving_mean - change)


def _divisor(scale: Any) -> np.ndarray:
    return np.where(np.asarray(scale) == 0, 1, scale)


def _kernel_variable(layer: keras.layers.Layer, step: Step) -> Any:
    kernels = kernels_of(layer)
    return kernels[0 if step.kind == "DepthwiseConv2D" else -1]
