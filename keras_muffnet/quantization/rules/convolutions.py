"""Layers with kernels."""

from keras import layers

from keras_muffnet.quantization.rules.activations import activate
from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Writer


def _convolution(w: Writer, x: int) -> int:
    layer = w.layer
    settings = {
        name: getattr(layer, name)
        for name in ("kernel_size", "strides", "padding", "dilation_rate")
    }
    if isinstance(layer, layers.DepthwiseConv2D):
        settings["depth_multiplier"] = layer.depth_multiplier
        kind = "DepthwiseConv2D"
    else:
        settings.update(filters=layer.filters, groups=layer.groups)
        kind = "Conv2D"
    weights = layer.get_weights()
    return activate(w, w.add(kind, x, weights=weights, **settings))


def _separable(w: Writer, x: int) -> int:
    layer = w.layer
    depthwise, pointwise, *bias = layer.get_weights()
    x = w.add(
        "DepthwiseConv2D",
        x,
        part="depthwise",
        weights=[depthwise],
        kernel_size=layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        depth_multiplier=layer.depth_multiplier,
    )
    x = w.add(
        "Conv2D",
        x,
        part="pointwise",
        weights=[pointwise, *bias],
        kernel_size=(1, 1),
        strides=(1, 1),
        padding="valid",
        dilation_rate=(1, 1),
        filters=layer.filters,
        groups=1,
    )
    return activate(w, x)


def _dense(w: Writer, x: int) -> int:
    if len(w.shape()) != 2:
        w.refuse("must take vectors, of shape (batch, features)")
    weights = w.layer.get_weights()
    return activate(w, w.add("Dense", x, weights=weights, units=w.layer.units))


RULES: Rules = {
    "Conv2D": _convolution,
    "Dense": _dense,
    "DepthwiseConv2D": _convolution,
    "SeparableConv2D": _separable,
}
