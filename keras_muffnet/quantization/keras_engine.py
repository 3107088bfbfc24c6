"""Fake-quantized models in Keras 3, on any of its backends."""

import contextlib
import functools
import math
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_muffnet.layers import ChannelSlice
from keras_muffnet.quantization.custom import clone_layer
from keras_muffnet.quantization.keras_operations import OPERATIONS
from keras_muffnet.quantization.keras_operations import Operation
from keras_muffnet.quantization.plan import Plan
from keras_muffnet.quantization.plan import Range
from keras_muffnet.quantization.plan import assemble
from keras_muffnet.quantization.plan import ends_to_add
from keras_muffnet.quantization.plan import layer_settings
from keras_muffnet.quantization.ranges import LEAST_TO_BIAS
from keras_muffnet.quantization.ranges import LEAST_WEIGHT
from keras_muffnet.quantization.steps import FOREIGN
from keras_muffnet.quantization.steps import INPUT_RANGE
from keras_muffnet.quantization.steps import KERNELS
from keras_muffnet.quantization.steps import Slot
from keras_muffnet.quantization.steps import Step

_PACKAGE = "keras_muffnet"
# The converter rounds no kernel of much more weights where it is told how.
_MOST_FOLDED = 2**24
# The least number of values of which the greatest may be an exception.
_MANY = 10_000


@keras.saving.register_keras_serializable(_PACKAGE)
class FakeQuantized(layers.Wrapper):
    """A layer whose kernel and output are rounded as integers would be.

    The kernel's ranges are read off the kernel at each call. Weights that are
    zero stay zero in training, so that a pruned model stays as sparse.

    Args:
        layer: the layer, with weights of its own or none.
        weight_bits: bits of the kernel, 4 or 8; 0 leaves it in float.
        output_range: limits of the output; None leaves it unquantized.
        per_channel: whether each output channel of the kernel has a range of
            its own. That of a dense layer has one range if it has 4 bits.
        trains_bias: whether the layer's bias is trained.
    """

    def __init__(
        self,
        layer: layers.Layer,
        weight_bits: int = 8,
        output_range: Sequence[float] | None = None,
        per_channel: bool = True,
        trains_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.trains_bias = trains_bias
        self.weight_bits = weight_bits
        self.per_channel = per_channel
        # See `kernels_in_float`.
        self.kernel_in_float = False
        self.output_range = output_range and tuple(output_range)

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        self._hold_bias()

    @property
    def trainable(self) -> bool:
        return layers.Wrapper.trainable.fget(self)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        layers.Wrapper.trainable.fset(self, value)
        self._hold_bias()

    def _hold_bias(self) -> None:
        if not getattr(self, "trains_bias", True) and self.layer.built:
            self.layer.bias.trainable = False

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if self.weight_bits:
            kernel, *bias = self.layer.weights
            weights = {
                id(kernel): self._rounded(kernel, bias, bool(training)),
                **{id(b): ops.convert_to_tensor(b) for b in bias},
            }
            trained, others = [
                [weights[id(v)] for v in variables]
                for variables in (
                    self.layer.trainable_variables,
                    self.layer.non_trainable_variables,
                )
            ]
            outputs, _ = self.layer.stateless_call(trained, others, inputs)
        else:
            outputs = self.layer(inputs)
        if self.output_range is None:
            return outputs
        return keras.quantizers.fake_quant_with_min_max_vars(
            outputs, *self.output_range
        )

    def _rounded(self, kernel: Any, bias: Sequence[Any], training: bool) -> Any:
        kernel = ops.convert_to_tensor(kernel)
        if self.kernel_in_float:
            return kernel
        if training:  # let no gradient reach what was pruned
            kept = ops.cast(ops.not_equal(kernel, 0), kernel.dtype)
            kernel = kernel * ops.stop_gradient(kept)
        per_channel = self.per_channel and not self._is_small_dense()
        shape = kernel.shape
        if isinstance(self.layer, layers.Conv2DTranspose):
            return _rounded_by_hand(kernel, bias, self.weight_bits, per_channel)
        if isinstance(self.layer, layers.DepthwiseConv2D):
            # The channels must be on one axis, the last.
            kernel = ops.reshape(kernel, (*shape[:2], 1, -1))
        limit = self._limit(kernel, bias, per_channel)
        kernel = keras.quantizers.fake_quant_with_min_max_vars(
            kernel,
            -limit,
            limit,
            num_bits=self.weight_bits,
            narrow_range=True,
            axis=len(shape) - 1 if per_channel else None,
        )
        return ops.reshape(kernel, shape)

    def _limit(
        self, kernel: Any, bias: Sequence[Any], per_channel: bool
    ) -> Any:
        """The greatest weight that can be written, of each channel or all."""
        axes = tuple(range(len(kernel.shape) - 1)) if per_channel else None
        limit = ops.max(ops.abs(kernel), axis=axes)
        for b in bias:
            least = ops.abs(b) * LEAST_TO_BIAS
            limit = ops.maximum(limit, least if per_channel else ops.max(least))
        return ops.stop_gradient(ops.maximum(limit, LEAST_WEIGHT))

    def _is_small_dense(self) -> bool:
        # No converter writes a dense kernel of 4 bits with several scales.
        return isinstance(self.layer, layers.Dense) and self.weight_bits == 4

    def converter_rounds_kernel(self) -> bool:
        """Whether the converter alone finds the scales found here.

        It does where no channel's is above that of its greatest weight.
        """
        if self.weight_bits != 8 or not self.per_channel:
            return False
        kernel, *bias = map(ops.convert_to_tensor, self.layer.weights)
        axes = tuple(range(len(kernel.shape) - 1))
        greatest = ops.max(ops.abs(kernel), axis=axes)
        limit = self._limit(kernel, bias, per_channel=True)
        return bool(ops.all(limit <= greatest))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "weight_bits": self.weight_bits,
            "output_range": self.output_range,
            "per_channel": self.per_channel,
            "trains_bias": self.trains_bias,
        }


def _rounded_by_hand(
    kernel: Any, bias: Sequence[Any], bits: int, per_channel: bool
) -> Any:
    """Rounds a transposed convolution's kernel, `(h, w, out, in)`.

    The converter knows no fake quantization of it by channel. It finds the
    scales itself in what is rounded already.
    """
    axes = (0, 1, 3) if per_channel else None
    limit = ops.max(ops.abs(kernel), axis=axes, keepdims=True)
    for b in bias:
        least = ops.abs(ops.convert_to_tensor(b)) * LEAST_TO_BIAS
        least = least[:, None] if per_channel else ops.max(least)
        limit = ops.maximum(limit, least)
    scale = ops.maximum(limit, LEAST_WEIGHT) / (2 ** (bits - 1) - 1)
    rounded = ops.round(kernel / scale) * scale
    return kernel + ops.stop_gradient(rounded - kernel)


@contextlib.contextmanager
def kernels_in_float(model: keras.Model) -> Iterator[None]:
    """Meanwhile leaves the rounding of some kernels to the converter.

    It fails on a dense kernel that is rounded with a scale for each channel,
    and on a huge one of a convolution, but rounds one in float that way itself.
    Where it would find other scales, a dense kernel is rounded here, with one
    scale.
    """
    changed = [
        (layer, layer.per_channel)
        for layer in model.layers
        if isinstance(layer, FakeQuantized)
        and (
            isinstance(layer.layer, layers.Dense)
            or (
                isinstance(layer.layer, layers.Conv2D)
                and layer.layer.count_params() > _MOST_FOLDED
            )
        )
    ]
    for layer, per_channel in changed:
        layer.kernel_in_float = layer.converter_rounds_kernel()
        if isinstance(layer.layer, layers.Dense):
            layer.per_channel = per_channel and layer.kernel_in_float
    try:
        yield
    finally:
        for layer, per_channel in changed:
            layer.kernel_in_float = False
            layer.per_channel = per_channel


@keras.saving.register_keras_serializable(_PACKAGE)
class FixedGather(layers.Layer):
    """`keras_muffnet.layers.ChannelGather`, channels last, with constants."""

    def __init__(self, indices: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.indices = list(indices)

    def call(self, inputs: Any) -> Any:
        return ops.take(inputs, self.indices, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "indices": self.indices}


@keras.saving.register_keras_serializable(_PACKAGE)
class FloatBarrier(layers.Layer):
    """Passes its input on, in a way that the converter cannot look through.

    The converter would quantize a float layer between two quantized tensors.
    Here it meets an operation that it has no integer form of: it adds the
    integer part of a number between 0 and 1/2.
    """

    def call(self, inputs: Any) -> Any:
        some = inputs[..., :1]
        return inputs + ops.floor(ops.sigmoid(some) / 2)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@keras.saving.register_keras_serializable(_PACKAGE)
class FinalSoftmax(layers.Softmax):
    """The softmax that a model ends in: for training, and not in integers."""


# The kinds that Keras does not have itself.
_KINDS: dict[str, Callable[..., layers.Layer]] = {
    "ChannelGather": FixedGather,
    "ChannelSlice": functools.partial(
        ChannelSlice, data_format="channels_last"
    ),
    "FloatBarrier": FloatBarrier,
}


def build(plan: Plan, ranges: Sequence[Range] | None = None) -> keras.Model:
    """Builds a plan, with weights of its own.

    Args:
        plan: the plan.
        ranges: the values of `plan.ranges`, for a fake-quantized model. None
            builds the float model.

    Returns:
        A functional model, not compiled.
    """
    images, tensors = _connect(plan, ranges)
    outputs = [tensors[number] for number in plan.outputs]
    if ranges is None:
        return keras.Model(images, outputs)
    ends = plan.ends
    borne = ends_to_add(plan)
    for k, name in enumerate(ends.output_names):
        if name in borne and ends.softmax[k] is not None:
            softmax = FinalSoftmax(ends.softmax[k], name=name, dtype="float32")
            outputs[k] = softmax(outputs[k])
        elif name in borne:
            identity = layers.Identity(name=name, dtype="float32")
            outputs[k] = identity(outputs[k])
    inputs = images if isinstance(images, list) else [images]
    return keras.Model(
        keras.tree.map_structure(inputs.__getitem__, ends.input_structure),
        keras.tree.map_structure(outputs.__getitem__, ends.output_structure),
        name=ends.name,
    )


def final_softmax(model: keras.Model) -> list[bool]:
    """For each output whether it is that of a `FinalSoftmax`."""
    ends = [model.get_layer(name) for name in model.output_names]
    return [isinstance(end, FinalSoftmax) for end in ends]


def without_softmax(model: keras.Model) -> keras.Model:
    """The model up to its logits."""
    ends = [model.get_layer(name) for name in model.output_names]
    outputs = [
        end.input if isinstance(end, FinalSoftmax) else x
        for end, x in zip(ends, model.outputs, strict=True)
    ]
    arranged = keras.tree.pack_sequence_as(model.output, outputs)
    return keras.Model(model.input, arranged, name=model.name)


def bare(layer: layers.Layer) -> layers.Layer:
    """The layer itself, without the wrapper that quantizes it."""
    return layer.layer if isinstance(layer, FakeQuantized) else layer


def output_range(layer: layers.Layer) -> Range | None:
    """The limits of a layer's output, where it is quantized."""
    if not isinstance(layer, FakeQuantized) or layer.output_range is None:
        return None
    low, high = layer.output_range
    return low, high


def read_weights(layer: layers.Layer) -> list[np.ndarray]:
    """A layer's kernel and bias, as trained."""
    return [np.asarray(w) for w in bare(layer).get_weights()]


def calibrate(
    plan: Plan, images: np.ndarray, verbose: int = 0
) -> dict[str, Range]:
    """Finds what each quantized output of a plan needs, in float.

    A range is the mean of what single batches of about 100 images need; so one
    image out of the ordinary moves it by little. A batch of few values has
    more images: what is the greatest of a thousand values is no exception.

    Args:
        plan: the plan.
        images: float images `(n, height, width, channels)`, n > 0.
        verbose: 1 shows a progress bar.

    Returns:
        For each step with a range its lowest and highest value.
    """
    images_input, tensors = _connect(plan, ranges=None)
    quantized = {
        step.name: x
        for step, x in zip(plan.steps, tensors[1:], strict=True)
        if step.range is not None and step.name != INPUT_RANGE
    }
    if not quantized:  # no more than pooling
        return {}
    # For each image, so that the values themselves need not be kept.
    extremes = [
        ops.stack([ops.min(x, axis=axes), ops.max(x, axis=axes)], axis=-1)
        for x in quantized.values()
        for axes in [tuple(range(1, len(x.shape)))]
    ]
    watched = keras.Model(images_input, extremes)
    # Compiling pays on JAX alone, which would otherwise run each operation
    # by itself.
    watched.compile(jit_compile=keras.backend.backend() == "jax")
    found = watched.predict(images, batch_size=32, verbose=verbose)
    found = found if len(quantized) > 1 else [found]
    return mean_limits(
        {
            name: Extremes(np.asarray(limits), math.prod(x.shape[1:]))
            for (name, x), limits in zip(quantized.items(), found, strict=True)
        }
    )


class Extremes(NamedTuple):
    """What a step gives for some examples.

    Attributes:
        limits: the lowest and the highest value of each, `(n, 2)`.
        size: the number of values of each.
    """

    limits: np.ndarray
    size: int


def mean_limits(extremes: Mapping[str, Extremes]) -> dict[str, Range]:
    """The mean of what single batches of about 100 examples need.

    Args:
        extremes: by name of the step.
    """
    limits = {}
    for name, (found, size) in extremes.items():
        count = min(-(-len(found) // 100), len(found) * size // _MANY)
        batches = np.array_split(found, max(count, 1))
        low = np.mean([batch[:, 0].min() for batch in batches])
        high = np.mean([batch[:, 1].max() for batch in batches])
        limits[name] = float(low), float(high)
    return limits


def make_float_layer(step: Step) -> layers.Layer:
    """The layer of a step, as in the float model and without weights."""
    return _make_layer(step, None, ())


def _connect(
    plan: Plan, ranges: Sequence[Range] | None
) -> tuple[Any, list[Any]]:
    """Returns the input and all tensors of a plan, by number."""
    made: dict[str, layers.Layer] = {}
    taken = set() if ranges is None else ends_to_add(plan)

    called: dict[Any, list[Any]] = {}

    def call(step: Step, x: Any) -> Any:
        if step.kind == FOREIGN:
            key = step.settings["call"]
            if key not in called:
                name = step.sources[0]
                if name not in made:
                    made[name] = _copy(step.settings["operation"], name)
                called[key] = call_foreign(step, x, made[name])
            y = called[key][step.settings["output"]]
            if ranges is None or step.range is None:
                return y
            limits = ranges[step.range]
            inner = layers.Identity(name=step.name, dtype="float32")
            # A function has the name itself, a layer's copy another.
            operation = step.settings["operation"]
            is_free = isinstance(operation, layers.Layer)
            is_free = is_free and step.name not in taken
            outer = step.name if is_free else f"{step.name}_inner"
            return FakeQuantized(inner, 0, limits, name=outer)(y)
        if step.kind not in KERNELS:
            return _make_layer(step, ranges, taken)(x)
        if step.layer_name in made:
            return made[step.layer_name](x)
        layer = made[step.layer_name] = _make_layer(step, ranges, taken)
        x = layer(x)
        layer.set_weights(step.weights)
        return x

    inputs = [
        keras.Input(shape, name=name)
        for shape, name in zip(
            plan.input_shapes, plan.ends.input_names, strict=True
        )
    ]
    tensors = assemble(plan, inputs, call)
    return inputs if len(inputs) > 1 else inputs[0], tensors


def call_foreign(step: Step, x: Any, operation: Any) -> list[Any]:
    """Calls what stays as it is on a tensor or several."""
    tensors = x if isinstance(x, (list, tuple)) else [x]
    args, kwargs = keras.tree.map_structure(
        lambda y: tensors[y.number] if isinstance(y, Slot) else y,
        step.settings["arguments"],
    )
    return keras.tree.flatten(operation(*args, **kwargs))


def _copy(operation: Any, name: str) -> Any:
    """A layer of the same weights; a function itself."""
    if not isinstance(operation, layers.Layer):
        return operation
    copy = clone_layer(operation, f"{name}_kept")
    if operation.weights:
        copy.build_from_config(operation.get_build_config())
        copy.set_weights(operation.get_weights())
    return copy


def _make_layer(
    step: Step, ranges: Sequence[Range] | None, taken: Collection[str]
) -> layers.Layer:
    is_kernel = step.kind in KERNELS
    name = step.layer_name if is_kernel else step.name
    output_range = None
    if ranges is not None and step.range is not None:
        output_range = ranges[step.range]
    settings = layer_settings(step, quantized=output_range is not None)
    wraps = ranges is not None and (is_kernel or output_range is not None)
    outer = f"{name}_inner" if name in taken else name
    if not wraps:
        name = outer
    # Whatever the global policy: lower precisions are not converted.
    if step.kind in OPERATIONS:
        layer = Operation(step.kind, settings, name=name, dtype="float32")
    else:
        kind = _KINDS.get(step.kind) or getattr(layers, step.kind)
        penalties = {} if ranges is None else step.penalties
        layer = kind(name=name, dtype="float32", **settings, **penalties)
    if not wraps:
        return layer
    return FakeQuantized(
        layer,
        step.bits if is_kernel else 0,
        output_range,
        step.per_channel,
        step.trains_bias,
        name=outer,
        dtype="float32",
    )
