"""Folds batch normalization away: the network as it runs for inference.

Inference normalizes each channel by constants. They are multiplied into the
kernel of the layer before, where it is read by nothing else, and become a
scale and an offset elsewhere.
"""

import collections
import inspect
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_muffnet.graph import Call
from keras_muffnet.graph import Graph
from keras_muffnet.graph import trace
from keras_muffnet.layers import LearnedGroupConv2D

# Layers whose output is linear in one kernel, and that kernel's attribute. By
# exact type: a subclass may do anything with its kernel.
_KERNELS: dict[type, str] = {
    layers.Conv1D: "kernel",
    layers.Conv2D: "kernel",
    layers.Conv3D: "kernel",
    layers.Conv1DTranspose: "kernel",
    layers.Conv2DTranspose: "kernel",
    layers.Conv3DTranspose: "kernel",
    layers.Dense: "kernel",
    layers.DepthwiseConv1D: "kernel",
    layers.DepthwiseConv2D: "kernel",
    layers.SeparableConv1D: "pointwise_kernel",
    layers.SeparableConv2D: "pointwise_kernel",
    LearnedGroupConv2D: "kernel",
}


def norm_line(
    layer: layers.BatchNormalization,
) -> tuple[np.ndarray, np.ndarray]:
    """What a batch normalization does in inference: x * scale + offset.

    Args:
        layer: a built layer.

    Returns:
        Scale and offset, float32 arrays with a number for each channel.
    """

    def as_array(weight: Any) -> np.ndarray:
        return ops.convert_to_numpy(weight).astype(np.float64)

    scale = 1 / np.sqrt(as_array(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale = scale * as_array(layer.gamma)
    offset = -as_array(layer.moving_mean) * scale
    if layer.center:
        offset = offset + as_array(layer.beta)
    return scale.astype(np.float32), offset.astype(np.float32)


def scale_kernel(
    kind: str, kernel: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Multiplies the output channels of a kernel.

    Args:
        kind: name of its layer's class, such as "DepthwiseConv2D".
        kernel: the kernel.
        scale: a number for each output channel.
    """
    if kind.startswith("Depthwise"):
        return kernel * scale.reshape(kernel.shape[-2:])
    if kind.endswith("Transpose"):
        return kernel * scale[:, np.newaxis]
    return kernel * scale


class FoldedModel:
    """A functional model that runs without batch normalization.

    It is for inference alone and holds constants: the weights that the model
    had when this was made, each once. The model itself is not changed.

    Args:
        model: a functional or a built sequential model with one input and one
            output.

    Attributes:
        folded: names of the normalizations that are part of a kernel now.
        lines: names of those that became a scale and an offset.
        left: names of those that run as they were: subclasses, and those that
            compute in half precision.
        nbytes: size of the constants.

    Raises:
        ValueError: if the graph of the model, or of one inside it, is not
            known; see `keras_muffnet.graph.trace`.
    """

    def __init__(self, model: keras.Model) -> None:
        self._graph = trace(model)
        self._steps: list[tuple[Call, _Run]] = []
        homes = _homes(self._graph)
        values: dict[int, np.ndarray] = {}
        folded, lines, left = [], [], []
        for call in self._graph.calls:
            layer = call.operation
            if not _is_foldable(layer):
                if isinstance(layer, layers.BatchNormalization):
                    left.append(layer.name)
                self._steps.append((call, _as_it_is(layer)))
                continue
            scale, offset = norm_line(layer)
            home = homes.get(id(call))
            if home is None:
                lines.append(layer.name)
                self._steps.append((call, _line(layer.axis, offset, scale)))
                continue
            folded.append(layer.name)
            kernel = _kernel(home)
            values[id(kernel)] = scale_kernel(
                type(home).__name__, ops.convert_to_numpy(kernel), scale
            )
            if home.use_bias:
                bias = ops.convert_to_numpy(home.bias)
                values[id(home.bias)] = bias * scale + offset
                self._steps.append((call, _pass))
            else:
                self._steps.append((call, _line(layer.axis, offset)))
        self._constants = [
            (
                weight,
                values[id(weight)]
                if id(weight) in values
                else ops.convert_to_numpy(weight),
            )
            for weight in _weights(self._graph.calls)
        ]
        self.folded, self.lines, self.left = (
            tuple(dict.fromkeys(names)) for names in (folded, lines, left)
        )
        self.nbytes = sum(value.nbytes for _, value in self._constants)

    def __call__(self, images: Any) -> Any:
        """Runs the network on a batch, as its constants and operations."""
        values = {id(self._graph.inputs[0]): images}

        def fill_in(x: Any) -> Any:
            return values[id(x)] if isinstance(x, keras.KerasTensor) else x

        with keras.StatelessScope(state_mapping=self._constants):
            for call, run in self._steps:
                args = keras.tree.map_structure(fill_in, list(call.args))
                kwargs = keras.tree.map_structure(fill_in, dict(call.kwargs))
                outputs = keras.tree.flatten(run(*args, **kwargs))
                for x, value in zip(call.outputs, outputs, strict=True):
                    values[id(x)] = value
        return values[id(self._graph.outputs[0])]


# Takes what the layer takes.
_Run = Callable[..., Any]


def _as_it_is(operation: Any) -> _Run:
    if isinstance(operation, layers.Layer):
        parameters = inspect.signature(operation.call).parameters
        if "training" in parameters:
            return lambda *args, **kwargs: operation(
                *args, **{**kwargs, "training": False}
            )
    return operation


def _pass(inputs: Any, *_: Any, **__: Any) -> Any:
    return inputs


def _line(
    axis: int, offset: np.ndarray, scale: np.ndarray | None = None
) -> _Run:
    def run(inputs: Any, *_: Any, **__: Any) -> Any:
        shape = [1] * len(inputs.shape)
        shape[axis] = -1
        if scale is not None:
            inputs = ops.multiply(inputs, scale.reshape(shape))
        return ops.add(inputs, offset.reshape(shape))

    return run


def _weights(calls: Sequence[Call]) -> list[keras.Variable]:
    """The weights that are still read, each once."""
    found = {}
    for call in calls:
        if not _is_foldable(call.operation):
            for weight in getattr(call.operation, "variables", ()):
                found[id(weight)] = weight
    return list(found.values())


def _homes(graph: Graph) -> dict[int, layers.Layer]:
    """The layer that each call of a normalization can become a part of.

    A layer that is called several times must be followed by the same
    normalization each time: it has one kernel.
    """
    readers = collections.Counter(id(x) for x in graph.outputs)
    readers.update(id(x) for call in graph.calls for x in call.inputs)
    norms = {
        id(call.inputs[0]): call
        for call in graph.calls
        if _is_foldable(call.operation)
    }
    behind: dict[int, set[int]] = collections.defaultdict(set)
    homes = {}
    for call in graph.calls:
        if type(call.operation) not in _KERNELS:
            continue
        (x,) = call.outputs
        norm = norms.get(id(x))
        if (
            norm is not None
            and readers[id(x)] == 1
            and _takes(call.operation, norm.operation, len(x.shape))
        ):
            homes[id(norm)] = call.operation
            behind[id(call.operation)].add(id(norm.operation))
        else:
            behind[id(call.operation)].add(0)
    return {
        norm: layer
        for norm, layer in homes.items()
        if len(behind[id(layer)]) == 1
    }


def _is_foldable(layer: Any) -> bool:
    return (
        type(layer) is layers.BatchNormalization
        and layer.compute_dtype == "float32"
    )


def _takes(layer: Any, norm: layers.BatchNormalization, rank: int) -> bool:
    """Whether a layer's kernel can be multiplied by a normalization."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return (
        layer.compute_dtype == "float32"
        and layer.activation is keras.activations.linear
        and norm.axis % rank == (1 if first else rank - 1)
        # What is quantized or adapted computes its kernel of other weights.
        and isinstance(_kernel(layer), keras.Variable)
        and not getattr(layer, "quantization_mode", None)
    )


def _kernel(layer: Any) -> Any:
    return getattr(layer, _KERNELS[type(layer)])
