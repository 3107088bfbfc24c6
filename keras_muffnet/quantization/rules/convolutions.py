"""Layers with kernels."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_muffnet.quantization.rules.activations import activate
from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Writer

_ONE: dict[str, Any] = {
    "kernel_size": (1, 1),
    "strides": (1, 1),
    "padding": "valid",
    "dilation_rate": (1, 1),
}


def _settings(w: Writer) -> dict[str, Any]:
    """A convolution's settings; those of one over sequences made those of one
    over images of height 1.
    """
    layer = w.layer
    settings = {"padding": layer.padding}
    for name in ("kernel_size", "strides", "dilation_rate"):
        value = tuple(getattr(layer, name))
        settings[name] = (1, *value) if len(value) == 1 else value
    return settings


def _weights(w: Writer) -> list[np.ndarray]:
    """A layer's weights, with kernels that are made for images."""
    rank = len(w.layer.kernel_size)
    return [
        v[None] if rank == 1 and v.ndim == 3 else v for v in _own_weights(w)
    ]


def _own_weights(w: Writer) -> list[np.ndarray]:
    """A layer's kernels and bias, without what its activation may have."""
    layer = w.layer
    if getattr(layer, "quantization_mode", None):
        w.refuse(
            f"must be in float, but is quantized to {layer.quantization_mode!r}"
        )
    if getattr(layer, "lora_enabled", False):
        w.refuse("must have no LoRA weights beside its kernel")
    variables = [*kernels_of(layer), *([layer.bias] if layer.use_bias else [])]
    return [keras.ops.convert_to_numpy(v) for v in variables]


def kernels_of(layer: layers.Layer) -> list[Any]:
    """The kernels of a layer, two of a separable convolution."""
    if isinstance(layer, (layers.SeparableConv1D, layers.SeparableConv2D)):
        return [layer.depthwise_kernel, layer.pointwise_kernel]
    return [layer.kernel]


def _padded(w: Writer, x: int, settings: dict[str, Any]) -> int:
    """Pads the start of a sequence where its convolution is causal."""
    if settings["padding"] != "causal":
        return x
    settings["padding"] = "valid"
    reach = settings["dilation_rate"][1] * (settings["kernel_size"][1] - 1)
    padding = ((0, 0), (reach, 0))
    return w.add("ZeroPadding2D", x, part="padding", padding=padding)


def _depthwise_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """TensorFlow wants the same strides and dilations on both axes."""
    if settings["kernel_size"][0] > 1:
        return settings
    changed = {}
    for name in ("strides", "dilation_rate"):
        changed[name] = (settings[name][1],) * 2
    return {**settings, **changed}


def _convolution(w: Writer, x: int) -> int:
    layer = w.layer
    settings = _settings(w)
    x = _padded(w, x, settings)
    if isinstance(layer, (layers.DepthwiseConv2D, layers.DepthwiseConv1D)):
        kind = "DepthwiseConv2D"
        if isinstance(layer, layers.DepthwiseConv1D):
            settings = _depthwise_settings(settings)
        settings["depth_multiplier"] = layer.depth_multiplier
    else:
        kind = "Conv2D"
        settings.update(filters=layer.filters, groups=layer.groups)
    return activate(w, w.add(kind, x, weights=_weights(w), **settings))


def _transposed(w: Writer, x: int) -> int:
    settings = _settings(w)
    if max(settings["dilation_rate"]) > 1:
        w.refuse(
            "must not be dilated: LiteRT has no transposed convolution that is"
        )
    padding = w.layer.output_padding
    if isinstance(padding, int):
        padding = (padding,) * len(w.layer.kernel_size)
    if padding is not None and len(padding) == 1:
        padding = (0, *padding)
    x = w.add(
        "Conv2DTranspose",
        x,
        weights=_weights(w),
        filters=w.layer.filters,
        output_padding=padding,
        **settings,
    )
    return activate(w, x)


def _separable(w: Writer, x: int) -> int:
    layer = w.layer
    depthwise, pointwise, *bias = _weights(w)
    settings = _settings(w)
    x = _padded(w, x, settings)
    if isinstance(layer, layers.SeparableConv1D):
        settings = _depthwise_settings(settings)
    x = w.add(
        "DepthwiseConv2D",
        x,
        part="depthwise",
        weights=[depthwise],
        depth_multiplier=layer.depth_multiplier,
        **settings,
    )
    x = w.add(
        "Conv2D",
        x,
        part="pointwise",
        weights=[pointwise, *bias],
        filters=layer.filters,
        groups=1,
        **_ONE,
    )
    return activate(w, x)


def dense(
    w: Writer, x: int, weights: Any, rank: int, trainable: bool = True
) -> int:
    """Writes a product with a matrix, of the last axis."""
    kernel, *bias = weights
    units = kernel.shape[1]
    if rank == 2:
        return w.add(
            "Dense", x, weights=weights, trainable=trainable, units=units
        )
    if rank != 4:
        w.refuse("must take vectors, sequences or images")
    return w.add(
        "Conv2D",
        x,
        weights=[kernel[None, None], *bias],
        trainable=trainable,
        filters=units,
        groups=1,
        **_ONE,
    )


def _convolution_of_constants(depthwise: bool) -> Callable[[Writer, int], int]:
    """Writes a convolution whose kernel is no weight of a layer."""

    def write(w: Writer, x: int) -> int:
        operation = w.layer
        kernel = w.argument("kernel", 1)
        if kernel is None or isinstance(kernel, keras.KerasTensor):
            w.refuse("must have a kernel that is constant")
        kernel = np.asarray(keras.ops.convert_to_numpy(kernel), np.float32)
        sizes = kernel.shape[:-2]
        if len(sizes) not in (1, 2):
            w.refuse("must be over sequences or images")
        settings: dict[str, Any] = {"padding": operation.padding}
        for name, value in (
            ("kernel_size", sizes),
            ("strides", operation.strides),
            ("dilation_rate", operation.dilation_rate),
        ):
            if isinstance(value, int):
                value = (value,) * len(sizes)
            settings[name] = (1, *value) if len(sizes) == 1 else tuple(value)
        kernel = kernel.reshape(*settings["kernel_size"], *kernel.shape[-2:])
        if depthwise:
            kind, count = "DepthwiseConv2D", kernel.shape[-1]
            settings = _depthwise_settings(settings)
            settings["depth_multiplier"] = count
        else:
            kind, count = "Conv2D", kernel.shape[-1]
            groups = w.input_shape()[-1] // kernel.shape[-2]
            settings.update(filters=count, groups=groups)
        return w.add(kind, x, weights=[kernel], trainable=False, **settings)

    return write


def _dense(w: Writer, x: int) -> int:
    weights = _own_weights(w)
    return activate(w, dense(w, x, weights, len(w.shape())))


def matmul_constant(w: Writer, x: int, kernel: Any) -> int:
    """Writes a product with a matrix that is not a weight of a layer."""
    kernel = np.asarray(keras.ops.convert_to_numpy(kernel), np.float32)
    if kernel.ndim != 2:
        w.refuse("must have a matrix as its constant operand")
    return dense(w, x, [kernel], len(w.shape()), trainable=False)


RULES: Rules = {
    "Conv1D": _convolution,
    "Conv1DTranspose": _transposed,
    "Conv2D": _convolution,
    "Conv2DTranspose": _transposed,
    "Dense": _dense,
    "DepthwiseConv1D": _convolution,
    "DepthwiseConv2D": _convolution,
    "SeparableConv1D": _separable,
    "SeparableConv2D": _separable,
    "op Conv": _convolution_of_constants(depthwise=False),
    "op DepthwiseConv": _convolution_of_constants(depthwise=True),
}
