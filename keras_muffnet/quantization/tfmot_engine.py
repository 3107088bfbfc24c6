"""Fake-quantized models in tf_keras, by way of tfmot."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.clustering import keras as clustering
from tensorflow_model_optimization.quantization.keras import QuantizeConfig
from tensorflow_model_optimization.quantization.keras import QuantizeWrapperV2
from tensorflow_model_optimization.quantization.keras import quantizers
from tensorflow_model_optimization.sparsity import keras as sparsity

from keras_muffnet.quantization.plan import Plan
from keras_muffnet.quantization.plan import Range
from keras_muffnet.quantization.plan import assemble
from keras_muffnet.quantization.plan import ends_to_add
from keras_muffnet.quantization.plan import layer_settings
from keras_muffnet.quantization.ranges import LEAST_TO_BIAS
from keras_muffnet.quantization.ranges import LEAST_WEIGHT
from keras_muffnet.quantization.steps import KERNELS
from keras_muffnet.quantization.steps import Step
from keras_muffnet.quantization.tfmot_operations import OPERATIONS
from keras_muffnet.quantization.tfmot_operations import Operation

_PACKAGE = "keras_muffnet"


@tf_keras.saving.register_keras_serializable(_PACKAGE)
class ChannelSlice(tf_keras.layers.Layer):
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


@tf_keras.saving.register_keras_serializable(_PACKAGE)
class ChannelGather(tf_keras.layers.Layer):
    """`keras_muffnet.layers.ChannelGather`, channels last, with constants."""

    def __init__(self, indices: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.indices = list(indices)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.gather(inputs, self.indices, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "indices": self.indices}


@tf_keras.saving.register_keras_serializable(_PACKAGE)
class FloatBarrier(tf_keras.layers.Layer):
    """See `keras_engine.FloatBarrier`."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs + tf.floor(tf.sigmoid(inputs[..., :1]) / 2)


@tf_keras.saving.register_keras_serializable(_PACKAGE)
class KernelQuantizer(quantizers.Quantizer):
    """Symmetric fake quantization of a kernel.

    The range is read off the kernel each time, so that it always is the one
    of the present weights. tfmot's own quantizers remember the range from
    before the last update. Weights that are zero stay zero in training.

    Args:
        kind: kind of the layer.
        bits: 4 or 8.
        per_channel: whether each output channel has a range of its own. That
            of a dense layer has one range if it has 4 bits.
        bias: the layer's, if it has one.
    """

    def __init__(
        self, kind: str, bits: int, per_channel: bool, bias: Any = None
    ) -> None:
        self.kind = kind
        self.bits = bits
        self.per_channel = per_channel
        self._bias = bias
        # See `kernels_in_float`.
        self.kernel_in_float = False

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict:
        return {}

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: dict, **kwargs: Any
    ) -> tf.Tensor:
        if self.kernel_in_float:
            # Of a variable the wrapped layer would become an owner, too.
            return tf.identity(inputs)
        kernel, shape = inputs, inputs.shape
        if training:  # let no gradient reach what was pruned
            kept = tf.cast(tf.not_equal(kernel, 0), kernel.dtype)
            kernel = kernel * tf.stop_gradient(kept)
        if self.kind == "Conv2DTranspose":
            return self._rounded_by_hand(kernel)
        quantize = tf.quantization.fake_quant_with_min_max_vars_per_channel
        small_dense = self.kind == "Dense" and self.bits == 4
        per_channel = self.per_channel and not small_dense
        if not per_channel:
            quantize = tf.quantization.fake_quant_with_min_max_vars
        if self.kind == "DepthwiseConv2D":
            # The channels must be on one axis, the last.
            kernel = tf.reshape(kernel, (*shape[:2], 1, -1))
        limit = self._limit(kernel, per_channel)
        kernel = quantize(
            kernel, -limit, limit, num_bits=self.bits, narrow_range=True
        )
        return tf.reshape(kernel, shape)

    def _limit(self, kernel: tf.Tensor, per_channel: bool) -> tf.Tensor:
        axes = list(range(len(kernel.shape) - 1)) if per_channel else None
        limit = tf.reduce_max(tf.abs(kernel), axis=axes)
        if self._bias is not None:
            least = tf.abs(self._bias) * LEAST_TO_BIAS
            least = least if per_channel else tf.reduce_max(least)
            limit = tf.maximum(limit, least)
        return tf.stop_gradient(tf.maximum(limit, LEAST_WEIGHT))

    def converter_rounds(self, kernel: tf.Tensor) -> bool:
        """See `keras_engine.FakeQuantized.converter_rounds_kernel`."""
        if self.kind != "Dense" or self.bits == 4 or not self.per_channel:
            return False
        greatest = tf.reduce_max(tf.abs(kernel), axis=0)
        return bool(tf.reduce_all(self._limit(kernel, True) <= greatest))

    def _rounded_by_hand(self, kernel: tf.Tensor) -> tf.Tensor:
        """See `keras_engine`."""
        axes = (0, 1, 3) if self.per_channel else None
        limit = tf.reduce_max(tf.abs(kernel), axis=axes, keepdims=True)
        if self._bias is not None:
            least = tf.abs(self._bias) * LEAST_TO_BIAS
            least = least[:, None] if axes else tf.reduce_max(least)
            limit = tf.maximum(limit, least)
        scale = tf.maximum(limit, LEAST_WEIGHT) / (2 ** (self.bits - 1) - 1)
        rounded = tf.round(kernel / scale) * scale
        return kernel + tf.stop_gradient(rounded - kernel)

    def get_config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "bits": self.bits,
            "per_channel": self.per_channel,
        }


@tf_keras.saving.register_keras_serializable(_PACKAGE)
class StepConfig(QuantizeConfig):
    """What of a layer is quantized.

    Args:
        kind: kind of the layer.
        weight_bits: bits of the kernel, where the layer has one; 0 leaves it
            in float.
        output_range: limits of the output; None leaves it unquantized.
        per_channel: see `KernelQuantizer`.
    """

    def __init__(
        self,
        kind: str,
        weight_bits: int,
        output_range: Sequence[float] | None,
        per_channel: bool = True,
    ) -> None:
        self.per_channel = per_channel
        self.kernel_quantizer: KernelQuantizer | None = None
        self.kind = kind
        self.weight_bits = weight_bits
        self.output_range = output_range and tuple(output_range)
        self._kernel = {
            "Conv2D": "kernel",
            "Conv2DTranspose": "kernel",
            "Dense": "kernel",
            "DepthwiseConv2D": "depthwise_kernel",
        }.get(kind if weight_bits else "")

    def get_weights_and_quantizers(self, layer: Any) -> list:
        if self._kernel is None:
            return []
        if self.kernel_quantizer is None:
            self.kernel_quantizer = KernelQuantizer(
                self.kind, self.weight_bits, self.per_channel, layer.bias
            )
        return [(getattr(layer, self._kernel), self.kernel_quantizer)]

    def set_quantize_weights(self, layer: Any, quantize_weights: list) -> None:
        if self._kernel is not None:
            setattr(layer, self._kernel, quantize_weights[0])

    def get_activations_and_quantizers(self, layer: Any) -> list:
        return []

    def set_quantize_activations(
        self, layer: Any, quantize_activations: list
    ) -> None:
        # Activations are layers of their own.
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
            "kind": self.kind,
            "weight_bits": self.weight_bits,
            "output_range": self.output_range,
            "per_channel": self.per_channel,
        }


@tf_keras.saving.register_keras_serializable(_PACKAGE)
class FakeQuantized(QuantizeWrapperV2):
    """tfmot's wrapper, made to survive tf_keras's `.keras` files.

    It lists a kernel twice before it is saved and once after, so that the
    variables, which are saved by number, do not fit.
    """

    @property
    def trainable_weights(self) -> list:
        # tfmot's would train the kernel of a layer that is not to be trained.
        return super().trainable_weights if self.trainable else []

    @property
    def non_trainable_weights(self) -> list:
        weights = super().non_trainable_weights
        if self.trainable:
            return weights
        return self._dedup_weights(super().trainable_weights + weights)

    def save_own_variables(self, store: Any) -> None:
        for variable in self.weights:
            store[variable.name.rpartition("/")[2]] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        for variable in self.weights:
            variable.assign(store[variable.name.rpartition("/")[2]])


@tf_keras.saving.register_keras_serializable(_PACKAGE)
class FinalSoftmax(tf_keras.layers.Softmax):
    """See `keras_engine.FinalSoftmax`."""


# The kinds that tf_keras does not have itself.
_KINDS = {
    "ChannelGather": ChannelGather,
    "ChannelSlice": ChannelSlice,
    "FloatBarrier": FloatBarrier,
}

# Depthwise kernels are small and the first convolution is sensitive.
_PRUNED = ("Conv2D", "Dense")

Wrap = Callable[[Step, tf_keras.layers.Layer], tf_keras.layers.Layer]


def build(plan: Plan, ranges: Sequence[Range]) -> tf_keras.Model:
    """Builds a fake-quantized plan, with weights of its own.

    Args:
        plan: the plan.
        ranges: the values of `plan.ranges`.

    Returns:
        A functional model, not compiled.
    """

    def wrap(step: Step, layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if step.kind not in KERNELS and step.range is None:
            return layer
        config = StepConfig(
            step.kind,
            step.bits,
            None if step.range is None else ranges[step.range],
            step.per_channel,
        )
        return FakeQuantized(layer, config)

    return _build(plan, wrap, quantized=True)


def build_prunable(plan: Plan, sparsity_: float, steps: int) -> tf_keras.Model:
    """Builds a float plan whose larger kernels are pruned in training.

    Args:
        plan: the plan.
        sparsity_: share of each kernel that is zero in the end.
        steps: number of training steps, the last quarter of which trains what
            is left.

    Returns:
        A functional model, not compiled.
    """
    first = _first_convolution(plan)

    def wrap(step: Step, layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if step.kind not in _PRUNED or step.layer_name == first:
            return layer
        schedule = sparsity.PolynomialDecay(
            initial_sparsity=0.0,
            final_sparsity=sparsity_,
            begin_step=0,
            end_step=max(1, 3 * steps // 4),
            frequency=max(1, steps // 100),
        )
        return sparsity.prune_low_magnitude(layer, schedule)

    return _build(plan, wrap, quantized=False)


def build_clusterable(plan: Plan, clusters: int) -> tf_keras.Model:
    """Builds a float plan whose larger kernels share a few values."""
    first = _first_convolution(plan)

    def wrap(step: Step, layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        # tfmot fails on a kernel of fewer weights.
        if (
            step.kind not in _PRUNED
            or step.layer_name == first
            or step.weights[0].size <= clusters
        ):
            return layer
        return clustering.cluster_weights(
            layer,
            clusters,
            clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
        )

    return _build(plan, wrap, quantized=False)


def bare(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
    """The layer itself, without the wrapper of tfmot or of this engine."""
    return layer.layer if hasattr(layer, "layer") else layer


def output_range(layer: tf_keras.layers.Layer) -> Range | None:
    """The limits of a layer's output, where it is quantized."""
    config = getattr(layer, "quantize_config", None)
    return getattr(config, "output_range", None)


def read_weights(layer: tf_keras.layers.Layer) -> list[np.ndarray]:
    """A layer's kernel and bias, from among the variables of its wrapper."""
    # tfmot's clustering last assigned weights to values before they were
    # trained for the last time.
    if hasattr(layer, "update_clustered_weights_associations"):
        layer.update_clustered_weights_associations()
    named = {
        variable.name.rpartition("/")[2].partition(":")[0]: np.asarray(variable)
        for variable in layer.weights
    }
    kernel = named.get("kernel", named.get("depthwise_kernel"))
    if "mask" in named:  # of tfmot's pruning, one step ahead of the kernel
        kernel = kernel * named["mask"]
    if "cluster_centroids_kernel" in named:  # of tfmot's clustering
        centroids = named["cluster_centroids_kernel"]
        kernel = centroids[named["pulling_indices_kernel"]]
    return [w for w in (kernel, named.get("bias")) if w is not None]


def _first_convolution(plan: Plan) -> str | None:
    """Its name, whatever scales or pads the images before it."""
    found = (
        step.layer_name
        for step in plan.steps
        if step.kind in ("Conv2D", "DepthwiseConv2D") and step.trainable
    )
    return next(found, None)


def _build(plan: Plan, wrap: Wrap, quantized: bool) -> tf_keras.Model:
    made: dict[str, tf_keras.layers.Layer] = {}
    taken = ends_to_add(plan)

    def call(step: Step, x: Any) -> Any:
        is_kernel = step.kind in KERNELS
        if is_kernel and step.layer_name in made:
            return made[step.layer_name](x)
        name = step.layer_name if is_kernel else step.name
        has_range = quantized and step.range is not None
        settings = layer_settings(step, has_range)
        if name in taken and not (is_kernel or has_range):
            name = f"{name}_inner"  # a wrapper would have a prefix
        layer: tf_keras.layers.Layer
        if step.kind in OPERATIONS:
            layer = Operation(step.kind, settings, name=name)
        else:
            kind = _KINDS.get(step.kind) or getattr(tf_keras.layers, step.kind)
            layer = kind(name=name, **settings)
        if is_kernel:
            layer.build(x.shape)
            layer.set_weights(step.weights)
        layer = wrap(step, layer)
        if is_kernel:
            made[step.layer_name] = layer
        return layer(x)

    inputs = [
        tf_keras.Input(shape, name=name)
        for shape, name in zip(
            plan.input_shapes, plan.ends.input_names, strict=True
        )
    ]
    tensors = assemble(plan, inputs, call)
    outputs = [tensors[number] for number in plan.outputs]
    ends = plan.ends
    made_by = [x.node.layer.name for x in outputs]
    for k, (name, axis) in enumerate(
        zip(ends.output_names, ends.softmax, strict=True)
    ):
        if axis is not None:
            outputs[k] = FinalSoftmax(axis, name=name)(outputs[k])
        elif made_by[k] != name:
            outputs[k] = tf_keras.layers.Identity(name=name)(outputs[k])
    arranged = tf.nest.map_structure(outputs.__getitem__, ends.output_structure)
    taken = tf.nest.map_structure(inputs.__getitem__, ends.input_structure)
    return tf_keras.Model(taken, arranged, name=ends.name)


@contextlib.contextmanager
def kernels_in_float(model: tf_keras.Model) -> Iterator[None]:
    """See `keras_engine.kernels_in_float`."""
    changed = []
    for layer in model.layers:
        config = getattr(layer, "quantize_config", None)
        quantizer = getattr(config, "kernel_quantizer", None)
        if quantizer is not None and quantizer.kind == "Dense":
            changed.append((quantizer, quantizer.per_channel))
            kernel, *_ = read_weights(layer)
            quantizer.kernel_in_float = quantizer.converter_rounds(kernel)
            quantizer.per_channel &= quantizer.kernel_in_float
    try:
        yield
    finally:
        for quantizer, per_channel in changed:
            quantizer.kernel_in_float = False
            quantizer.per_channel = per_channel


def final_softmax(model: tf_keras.Model) -> list[bool]:
    """For each output whether it is that of a `FinalSoftmax`."""
    ends = [model.get_layer(name) for name in model.output_names]
    return [isinstance(end, FinalSoftmax) for end in ends]


def without_softmax(model: tf_keras.Model) -> tf_keras.Model:
    """The model up to its logits."""
    ends = [model.get_layer(name) for name in model.output_names]
    outputs = [
        end.input if isinstance(end, FinalSoftmax) else x
        for end, x in zip(ends, model.outputs, strict=True)
    ]
    arranged = tf.nest.pack_sequence_as(model.output, outputs)
    return tf_keras.Model(model.inputs, arranged, name=model.name)
