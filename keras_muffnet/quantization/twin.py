"""A model's twin in tf_keras with fake quantizations, by way of tfmot."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.quantization.keras import QuantizeConfig
from tensorflow_model_optimization.quantization.keras import QuantizeWrapperV2
from tensorflow_model_optimization.quantization.keras import quantizers

from keras_muffnet.layers import ChannelSlice
from keras_muffnet.quantization.plan import INPUT_RANGE
from keras_muffnet.quantization.plan import Plan
from keras_muffnet.quantization.plan import Step

Range = tuple[float, float]

_CALIBRATION_BATCH = 100

# The least width of a range, and of a channel's weights: the scale of a
# quantization must not be zero.
_LEAST = 1e-6

# Name of a layer's kernel, and how many of its last axes are output channels
# with a range each. The converter fails on a dense kernel with several ranges.
_KERNELS = {
    "Conv2D": ("kernel", 1),
    "Dense": ("kernel", 0),
    "DepthwiseConv2D": ("depthwise_kernel", 2),
}

# What a layer is made of, besides its weights and activation.
_SETTINGS = {
    "Activation": (),
    "Add": (),
    "BatchNormalization": ("axis", "epsilon", "center", "scale"),
    "Concatenate": ("axis",),
    "Conv2D": ("filters", "kernel_size", "strides", "padding", "use_bias"),
    "Dense": ("units", "use_bias"),
    "DepthwiseConv2D": (
        "kernel_size",
        "strides",
        "padding",
        "depth_multiplier",
        "use_bias",
    ),
    "Dropout": ("rate", "noise_shape", "seed"),
    "GlobalAveragePooling2D": ("keepdims",),
    "GlobalMaxPooling2D": ("keepdims",),
    "Identity": (),
    "MaxPooling2D": ("pool_size", "strides", "padding"),
    "ReLU": ("max_value",),
}


class _ChannelSlice(tf_keras.layers.Layer):
    """`keras_muffnet.ChannelSlice` for tf_keras, channels last."""

    def __init__(self, start: int, stop: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start = start
        self.stop = stop

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs[..., self.start : self.stop]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "start": self.start,
            "stop": self.stop,
        }


class _KernelQuantizer(quantizers.Quantizer):
    """Symmetric fake quantization of a kernel.

    The range is read off the kernel each time, so that it always is the one
    of the present weights. tfmot's own quantizers remember the range from
    before the last update.

    Args:
        channel_axes: how many of the kernel's last axes tell output channels
            apart, each of which has its own range; 0 for one range in all.
    """

    def __init__(self, channel_axes: int) -> None:
        self.channel_axes = channel_axes

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict:
        return {}

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: dict, **kwargs: Any
    ) -> tf.Tensor:
        shape = inputs.shape
        kept = shape.rank - self.channel_axes
        limit = tf.reduce_max(tf.abs(inputs), axis=list(range(kept)))
        limit = tf.maximum(tf.stop_gradient(limit), _LEAST)
        if self.channel_axes == 0:
            return tf.quantization.fake_quant_with_min_max_vars(
                inputs, -limit, limit, narrow_range=True
            )
        # The operation knows channels on the last axis only, a depthwise
        # kernel (height, width, input channel, multiplier) has them on two.
        limit = tf.reshape(limit, (-1,))
        flat = tf.reshape(inputs, (*shape[:2], -1, limit.shape[0]))
        flat = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            flat, -limit, limit, narrow_range=True
        )
        return tf.reshape(flat, shape)

    def get_config(self) -> dict[str, Any]:
        return {"channel_axes": self.channel_axes}


class _LayerConfig(QuantizeConfig):
    """What of a layer is quantized.

    Args:
        output_range: range of its output; None leaves it unquantized.
        kernel: name of its attribute that is a kernel, if it has one.
        channel_axes: how `_KernelQuantizer` is to treat the kernel.
    """

    def __init__(
        self,
        output_range: Range | None,
        kernel: str | None = None,
        channel_axes: int = 0,
    ) -> None:
        self.kernel = kernel
        self.channel_axes = channel_axes
        self.output_range = output_range

    def get_weights_and_quantizers(self, layer: Any) -> list:
        if self.kernel is None:
            return []
        return [
            (getattr(layer, self.kernel), _KernelQuantizer(self.channel_axes))
        ]

    def set_quantize_weights(self, layer: Any, quantize_weights: list) -> None:
        if self.kernel is not None:
            setattr(layer, self.kernel, quantize_weights[0])

    def get_activations_and_quantizers(self, layer: Any) -> list:
        return []

    def set_quantize_activations(
        self, layer: Any, quantize_activations: list
    ) -> None:
        # The layer's output is quantized, which its activation is part of.
        pass

    def get_output_quantizers(self, layer: Any) -> list:
        if self.output_range is None:
            return []
        low, high = self.output_range
        return [
            quantizers.FixedQuantizer(
                num_bits=8, init_min=low, init_max=high, narrow_range=False
            )
        ]

    def get_config(self) -> dict[str, Any]:
        return {
            "output_range": self.output_range,
            "kernel": self.kernel,
            "channel_axes": self.channel_axes,
        }


def float_twin(plan: Plan) -> tf_keras.Model:
    """Rebuilds the planned model in tf_keras, in float.

    Returns:
        A model that gives the outputs of all steps, in order.
    """
    images, tensors = _rebuild(plan, lambda layer, step: layer)
    return tf_keras.Model(images, tensors[1:])


def quantized_twin(plan: Plan, ranges: list[Range]) -> tf_keras.Model:
    """Rebuilds the planned model in tf_keras, fake-quantized.

    Args:
        plan: what to rebuild.
        ranges: the values of `plan.ranges`.
    """

    def wrap(layer: tf_keras.layers.Layer, step: Step | None) -> Any:
        if step is None:
            return QuantizeWrapperV2(layer, _LayerConfig(ranges[0]))
        kernel = _KERNELS.get(type(step.layer).__name__)
        if kernel is None and step.range is None:
            return layer
        config = _LayerConfig(
            None if step.range is None else ranges[step.range],
            *(kernel or ()),
        )
        return QuantizeWrapperV2(layer, config)

    images, tensors = _rebuild(plan, wrap)
    return tf_keras.Model(images, tensors[-1])


def calibrate(plan: Plan, images: np.ndarray) -> list[Range]:
    """Finds the ranges of a plan by running the float model.

    A range is the mean of what single batches need; so one image out of the
    ordinary moves it by little.

    Args:
        plan: what to calibrate.
        images: float images `(n, height, width, channels)`, n > 0.

    Returns:
        The values of `plan.ranges`.
    """
    model = float_twin(plan)

    @tf.function(input_signature=[tf.TensorSpec((None, *plan.input_shape))])
    def extremes(batch: tf.Tensor) -> tf.Tensor:
        outputs = model(batch, training=False)
        return tf.stack([(tf.reduce_min(x), tf.reduce_max(x)) for x in outputs])

    count = math.ceil(len(images) / _CALIBRATION_BATCH)
    batches = np.array_split(images.astype(np.float32), count)
    found = np.mean([extremes(batch) for batch in batches], axis=0)
    ranges = [INPUT_RANGE]
    for number in range(1, len(plan.ranges)):
        members = [s.range == number for s in plan.steps]
        low = min(0.0, float(found[members, 0].min()))
        high = max(0.0, float(found[members, 1].max()))
        ranges.append((low, max(high, low + _LEAST)))
    return ranges


def _rebuild(
    plan: Plan,
    wrap: Callable[[tf_keras.layers.Layer, Step | None], tf_keras.layers.Layer],
) -> tuple[Any, list[Any]]:
    """Returns the input and, from the wrapped input on, all tensors.

    `wrap` is called on each layer and its step, and without a step on one that
    stands for the input.
    """
    images = tf_keras.Input(plan.input_shape, name="images")
    start = tf_keras.layers.Activation("linear", name="input_range")
    tensors = [wrap(start, None)(images)]
    for step in plan.steps:
        inputs = [tensors[number] for number in step.inputs]
        x = inputs if len(inputs) > 1 else inputs[0]
        layer = _make_layer(step, x)
        tensors.append(wrap(layer, step)(x))
    return images, tensors


def _make_layer(step: Step, x: Any) -> tf_keras.layers.Layer:
    source = step.layer
    if isinstance(source, ChannelSlice):
        return _ChannelSlice(source.start, source.stop, name=source.name)
    kind = type(source).__name__
    config = source.get_config()
    settings = {name: config[name] for name in _SETTINGS[kind]}
    if step.activation is not None:
        settings["activation"] = step.activation
    layer = getattr(tf_keras.layers, kind)(name=source.name, **settings)
    weights = source.get_weights()
    if weights:
        layer.build(x.shape)
        layer.set_weights(weights)
    # The statistics stay as they are: on a few images of fine-tuning they
    # would drift, and the converter folds them into the kernel.
    if isinstance(layer, tf_keras.layers.BatchNormalization):
        layer.trainable = False
    return layer
