"""Makes scales and offsets part of the kernels before them."""

import collections
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_muffnet.folding import scale_kernel
from keras_muffnet.quantization.steps import KERNELS
from keras_muffnet.quantization.steps import Rewriting
from keras_muffnet.quantization.steps import Step
from keras_muffnet.quantization.steps import count_readers


def fold_affine(
    steps: Sequence[Step], outputs: tuple[int, ...]
) -> tuple[list[Step], tuple[int, ...]]:
    """Multiplies scales and offsets into the kernels before them."""
    readers = count_readers(steps, outputs)
    homes: dict[str, set[str]] = collections.defaultdict(set)
    for step in steps:
        number = step.inputs[0]
        home = steps[number - 1].layer_name if number else ""
        homes[step.layer_name].add(home)
    new = Rewriting()
    for step in steps:
        moved = step._replace(inputs=tuple(new.number[x] for x in step.inputs))
        x, before = step.inputs[0], moved.inputs[0]
        if step.kind != "Affine":
            new.number.append(new.add(moved))
        elif (
            before > 0
            and readers[x] == 1
            and _takes(new.steps[before - 1], step, homes)
        ):
            new.steps[before - 1] = _scaled(new.steps[before - 1], step)
            new.number.append(before)
        else:
            new.number.append(new.add(moved))
    return new.steps, tuple(new.number[x] for x in outputs)


def _takes(step: Step, affine: Step, homes: dict[str, set[str]]) -> bool:
    """Whether a step can become one with the scale and offset behind it.

    What a kernel's bias has learned must find a place in the Keras model: in
    its layer's own bias, or in a batch normalization of no other layer.

    Args:
        step: the step.
        affine: the scale and offset.
        homes: for each layer those that it is called on.
    """
    if step.kind not in KERNELS:
        return step.kind == "Affine"
    if affine.settings["is_norm"]:
        return len(homes[affine.layer_name]) == 1
    return len(step.weights) == 2 or not affine.weights[1].any()


def _scaled(step: Step, affine: Step) -> Step:
    is_norm = affine.settings["is_norm"]
    scale, offset = affine.weights
    kernel, *bias = step.weights
    weights = [scale_kernel(step.kind, kernel, scale)]
    if bias:
        weights.append(bias[0] * scale + offset)
    elif is_norm:
        weights.append(offset)
    return step._replace(
        weights=tuple(weights),
        scale=step.scale * scale,
        scale_behind=1.0 if is_norm else step.scale_behind * scale,
        sources=(*step.sources, *affine.sources),
    )


def home_of_bias(step: Step, layers: Mapping[str, Any]) -> Any:
    """The layer of the Keras model that what a step's bias learns belongs to.

    That is the last batch normalization behind the kernel; or the kernel's own
    layer, if there is none, or one that is not trained and a bias beside it.

    Args:
        step: a step with a kernel.
        layers: the model's layers by their names in the steps.
    """
    layer = layers[step.sources[0]]
    norms = [
        layers[name]
        for name in step.sources[1:]
        if isinstance(layers.get(name), keras.layers.BatchNormalization)
    ]
    if norms and (norms[-1].trainable or getattr(layer, "bias", None) is None):
        return norms[-1]
    return layer


def affine_to_depthwise(
    steps: Sequence[Step], outputs: tuple[int, ...]
) -> tuple[list[Step], tuple[int, ...]]:
    """Makes convolutions of the scales and offsets that are left."""
    new = Rewriting()
    for step in steps:
        inputs = tuple(new.number[x] for x in step.inputs)
        moved = step._replace(inputs=inputs)
        if step.kind != "Affine":
            new.number.append(new.add(moved))
        elif step.settings["rank"] == 4:
            new.number.append(new.add(_depthwise(moved)))
        else:
            count = len(step.weights[0])
            map_, vector = [
                Step(
                    f"{step.name}_{name}",
                    f"{step.layer_name}_{name}",
                    "Reshape",
                    inputs,
                    {"target_shape": shape},
                    sources=step.sources,
                )
                for name, shape in (
                    ("to_map", (1, 1, count)),
                    ("to_vector", (count,)),
                )
            ]
            x = new.add(map_)
            x = new.add(_depthwise(moved._replace(inputs=(x,))))
            new.number.append(new.add(vector._replace(inputs=(x,))))
    return new.steps, tuple(new.number[x] for x in outputs)


def _depthwise(affine: Step) -> Step:
    scale, offset = affine.weights
    return affine._replace(
        kind="DepthwiseConv2D",
        settings={
            "kernel_size": (1, 1),
            "strides": (1, 1),
            "padding": "valid",
            "dilation_rate": (1, 1),
            "depth_multiplier": 1,
        },
        weights=(scale.reshape(1, 1, -1, 1), offset),
        trainable=False,
    )


def with_uneven_bias(step: Step) -> Step:
    """Makes one channel's bias differ in its last bit, if all are the same.

    The converter would store the bias as one number, and quantize that with
    the first channel's scale for all of them.
    """
    if len(step.weights) != 2:
        return step
    kernel, bias = step.weights
    if len(bias) > 1 and bias[0] != 0 and (bias == bias[0]).all():
        bias = bias.copy()
        bias[0] = np.nextafter(bias[0], np.float32(0))
    return step._replace(weights=(kernel, bias))
