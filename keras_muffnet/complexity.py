"""Trainable parameters and multiply-adds of any Keras functional model."""

import math
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
from keras import KerasTensor
from keras import layers

from keras_muffnet.graph import Call
from keras_muffnet.graph import trace
from keras_muffnet.layers import ChannelGather
from keras_muffnet.layers import ChannelShuffle
from keras_muffnet.layers import ChannelSlice

# Layers without multiply-adds in the convention of section 3.2, where only
# convolutions and dense layers count.
_FREE = (
    ChannelGather,
    ChannelShuffle,
    ChannelSlice,
    layers.Activation,
    layers.Add,
    layers.AlphaDropout,
    layers.Average,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.BatchNormalization,
    layers.Concatenate,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.Dropout,
    layers.ELU,
    layers.Flatten,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.GroupNormalization,
    layers.Identity,
    layers.InputLayer,
    layers.LayerNormalization,
    layers.LeakyReLU,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.Maximum,
    layers.Minimum,
    layers.Multiply,
    layers.Normalization,
    layers.Permute,
    layers.PReLU,
    layers.ReLU,
    layers.RepeatVector,
    layers.Rescaling,
    layers.Reshape,
    layers.Resizing,
    layers.Softmax,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.Subtract,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
)

# Operations that are not layers, such as `x[..., :3]` or `a + b`; by name, as
# Keras does not export their classes.
_FREE_OPERATIONS = {
    "Absolute",
    "Add",
    "Cast",
    "Clip",
    "Concatenate",
    "Divide",
    "ExpandDims",
    "GetItem",
    "Max",
    "Maximum",
    "Mean",
    "Minimum",
    "Multiply",
    "Negative",
    "Pad",
    "Relu",
    "Relu6",
    "Reshape",
    "Sigmoid",
    "Silu",
    "Softmax",
    "Split",
    "Squeeze",
    "Stack",
    "Subtract",
    "Sum",
    "Transpose",
    "TrueDivide",
}

_CONVOLUTIONS = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
)
_TRANSPOSED = (
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
)
_AVERAGES = (layers.AveragePooling2D, layers.GlobalAveragePooling2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)

# What papers count beside multiply-adds: one operation for each output of a
# ReLU, one for each input of an average pooling.
COUNTING_RULES = {
    "macs": (),
    "+R": ("relu",),
    "+R+P": ("relu", "average"),
}


class LayerComplexity(NamedTuple):
    """Cost of one layer.

    Attributes:
        name: the layer's name.
        kind: its class.
        output_shape: shape of its first output, batch axis included.
        parameters: number of its trainable parameters.
        macs: multiply-adds an image, summed over all calls of the layer; None
            where the layer is of a kind that cannot be counted.
    """

    name: str
    kind: str
    output_shape: tuple[int | None, ...]
    parameters: int
    macs: int | None


class Complexity(NamedTuple):
    """Cost of a model, as data; `str()` of it is a table.

    Attributes:
        layers: cost of each layer, in the order of the graph.
        uncounted: names of the layers whose multiply-adds are unknown and so
            are missing from `macs`.
        parameters: number of trainable parameters.
        macs: multiply-adds an image of all counted layers.
    """

    layers: tuple[LayerComplexity, ...]
    uncounted: tuple[str, ...]
    parameters: int
    macs: int

    def __str__(self) -> str:
        rows = [("layer", "output shape", "params", "MACs")]
        for layer in self.layers:
            if layer.parameters or layer.macs != 0:
                rows.append(
                    (
                        f"{layer.name} ({layer.kind})",
                        _shape_text(layer.output_shape),
                        f"{layer.parameters:,}",
                        "?" if layer.macs is None else f"{layer.macs:,}",
                    )
                )
        rows.append(("total", "", f"{self.parameters:,}", f"{self.macs:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{name:<{widths[0]}}  {shape:<{widths[1]}}  "
            f"{parameters:>{widths[2]}}  {macs:>{widths[3]}}"
            for name, shape, parameters, macs in rows
        ]
        if self.uncounted:
            lines.append(
                "MACs not counted, so missing from the total: "
                f"{', '.join(self.uncounted)}"
            )
        return "\n".join(lines)


def count_complexity(
    model: keras.Model,
    input_shape: Sequence[int | None] | None = None,
) -> Complexity:
    """Counts trainable parameters and multiply-adds.

    Multiply-adds are those of convolutions and dense layers, biases left out:
    what the paper calls FLOPs. Frozen parameters are not trainable ones and
    do not count.

    ```python
    from keras_muffnet import MuffNet, count_complexity

    complexity = count_complexity(MuffNet(alpha=0.5))
    complexity.macs  # 41601194
    complexity.parameters  # 1380641
    ```

    Args:
        model: a functional or built sequential Keras model; nested models and
            shared layers are counted as often as they are called.
        input_shape: shape of an image without the batch axis, for a model
            whose own input shape leaves sizes open.

    Returns:
        A `Complexity`; layers of a kind that is not known are named in
        `uncounted`.

    Raises:
        ValueError: if the model cannot be walked, if `input_shape` does not
            fit it, or if a size that multiply-adds depend on is not known.
    """
    graph = trace(model, _batch_shapes(model, input_shape))
    # Keyed by identity: operations of two nested models may share a name.
    by_layer: dict[int, LayerComplexity] = {}
    counted_weights: set[int] = set()
    for call in graph.calls:
        macs = _macs(call)
        key = id(call.operation)
        if key in by_layer:
            before = by_layer[key]
            if macs is not None and before.macs is not None:
                by_layer[key] = before._replace(macs=before.macs + macs)
            continue
        by_layer[key] = LayerComplexity(
            call.operation.name,
            type(call.operation).__name__,
            tuple(call.outputs[0].shape),
            _parameters(call.operation, counted_weights),
            macs,
        )
    rows = tuple(by_layer.values())
    return Complexity(
        rows,
        tuple(row.name for row in rows if row.macs is None),
        sum(row.parameters for row in rows),
        sum(row.macs for row in rows if row.macs is not None),
    )


def count_operations(
    model: keras.Model,
    rule: str = "macs",
    input_shape: Sequence[int | None] | None = None,
) -> int:
    """Counts an image's operations the way another paper does.

    Args:
        model: as for `count_complexity`.
        rule: "macs" for multiply-adds, as here; "+R" with one operation for
            each output of a ReLU layer, as the IGCV3 paper; "+R+P" also with
            one for each input of an average pooling, as the CondenseNet
            paper.
        input_shape: as for `count_complexity`.

    Raises:
        ValueError: if `rule` is none of these, and as for `count_complexity`.
    """
    if not isinstance(rule, str) or rule not in COUNTING_RULES:
        raise ValueError(
            f"`rule` must be one of {', '.join(COUNTING_RULES)}. "
            f"Received: rule={rule!r}"
        )
    total = count_complexity(model, input_shape).macs
    for call in trace(model, _batch_shapes(model, input_shape)).calls:
        layer = call.operation
        if isinstance(layer, layers.ReLU) and "relu" in COUNTING_RULES[rule]:
            total += _known(layer, call.outputs[0].shape[1:])
        if isinstance(layer, _AVERAGES) and "average" in COUNTING_RULES[rule]:
            total += _known(layer, call.inputs[0].shape[1:])
    return total


def _batch_shapes(
    model: keras.Model, input_shape: Any
) -> list[tuple[int | None, ...]] | None:
    if input_shape is None:
        return None
    own = [tuple(x.shape[1:]) for x in getattr(model, "inputs", ())]
    if not (
        isinstance(input_shape, Sequence)
        and len(own) == 1
        and len(input_shape) == len(own[0])
        and all(
            b in (None, a) for a, b in zip(input_shape, own[0], strict=True)
        )
    ):
        raise ValueError(
            "`input_shape` must fit the one input of the model. Received: "
            f"input_shape={input_shape!r}, and a model with input shapes {own}"
        )
    return [(None, *input_shape)]


def _parameters(operation: Any, counted: set[int]) -> int:
    total = 0
    for weight in getattr(operation, "trainable_weights", ()):
        if id(weight) not in counted:
            counted.add(id(weight))
            total += math.prod(weight.shape)
    return total


def _macs(call: Call) -> int | None:
    layer = call.operation
    if isinstance(layer, _SEPARABLE):
        positions = _positions(layer, call.outputs[0])
        kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
        return positions * sum(math.prod(k.shape) for k in kernels)
    if isinstance(layer, _TRANSPOSED):
        return _positions(layer, call.inputs[0]) * math.prod(layer.kernel.shape)
    if isinstance(layer, _CONVOLUTIONS):
        return _positions(layer, call.outputs[0]) * math.prod(
            layer.kernel.shape
        )
    if isinstance(layer, layers.Dense):
        leading = _known(layer, call.outputs[0].shape[1:-1])
        return leading * math.prod(layer.kernel.shape)
    if isinstance(layer, _FREE):
        return 0
    if not isinstance(layer, layers.Layer) and (
        type(layer).__name__ in _FREE_OPERATIONS
    ):
        return 0
    return None


def _positions(layer: Any, feature_map: KerasTensor) -> int:
    if layer.data_format == "channels_first":
        return _known(layer, feature_map.shape[2:])
    return _known(layer, feature_map.shape[1:-1])


def _known(layer: Any, sizes: Sequence[int | None]) -> int:
    if None in sizes:
        raise ValueError(
            "`input_shape` must be given, with every size, to count the "
            f"multiply-adds of layer {layer.name!r}: the model leaves the size "
            f"of its feature map open. Received sizes: {tuple(sizes)}"
        )
    return math.prod(sizes)  # type: ignore[arg-type]


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape[1:])
