"""Computes a Keras model by fewer, faster operations of PyTorch.

The layers, their variables and what is saved of them stay Keras's own. Only
`model.call` is replaced: it runs a plan, made once from the graph, in which

- batch normalization, the addition and the ReLU behind it, also ReLU6, are one
  operation;
- channels are split once for all groups, and their gradients put together once;
- all tensors keep the channels last, and depthwise kernels of 5x5 have a faster
  gradient.

A layer that is none of these is called as it is.
"""

import ctypes
import math
import mmap
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from keras_muffnet.graph import Call
from keras_muffnet.graph import trace
from keras_muffnet.layers import ChannelSlice

Values = dict[int, Any]
# One operation: takes its inputs from the values, and adds its outputs.
Step = Callable[[Values, bool], None]


def accelerate(model: keras.Model) -> str:
    """Makes a model compute on the CPU as fast as the backend can.

    The results are those of Keras's own layers to the rounding of float32, in
    training, evaluation and prediction. The model's variables, configuration
    and files are untouched. Without effect, and without harm, where there is
    no faster way: on another backend, or a GPU, with another precision than
    float32, channels first, without a C compiler, or where a part of the model
    is no graph of layers.

    The C library of the process is set to keep the memory that it frees, in
    huge pages, and to use it again: PyTorch would get new pages for every
    tensor.

    Args:
        model: a functional model, built. It is changed in place.

    Returns:
        Which way is taken, and if it is the slow one, why, in a few words.
    """
    reason = _obstacle(model)
    if reason is not None:
        return f"Keras's own layers ({reason})"
    import torch

    keep_memory()
    own = model.call
    try:
        plan = _Plan(model)
    except ValueError:
        return "Keras's own layers (not a functional model throughout)"

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        x = inputs[0] if isinstance(inputs, list) else inputs
        if (
            not isinstance(x, torch.Tensor)
            or x.device.type != "cpu"
            or x.dtype != torch.float32
            or x.ndim != 4
            or mask is not None
        ):
            return own(inputs, training=training, mask=mask)
        return plan(x, bool(training))

    model.call = call
    return "fused operations of PyTorch on the CPU"


def _obstacle(model: keras.Model) -> str | None:
    """Why the fast way cannot be taken."""
    if keras.backend.backend() != "torch":
        return f"backend {keras.backend.backend()}"
    import torch

    from keras_muffnet.training.fast import operations

    if torch.cuda.is_available() or torch.get_default_device().type != "cpu":
        return "not on a CPU"
    if keras.config.image_data_format() != "channels_last":
        return "channels first"
    if any(layer.compute_dtype != "float32" for layer in model.layers):
        return "not in float32"
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return "several inputs or outputs"
    try:
        operations.kernels()
    except OSError as error:
        return str(error)
    return None


def keep_memory() -> None:
    """Has the C library keep freed memory, in huge pages where Linux has them.

    glibc alone is asked. 4 GiB of addresses are set aside for huge pages; they
    take memory when they are used.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    library.mallopt(-4, 0)  # M_MMAP_MAX: no tensor has pages of its own
    library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: keep all
    size = 2**32
    library.malloc.restype = ctypes.c_void_p
    room = library.malloc(ctypes.c_size_t(size))
    if room is not None:
        page = mmap.PAGESIZE
        start = -(-room // page) * page
        library.madvise(
            ctypes.c_void_p(start),
            ctypes.c_size_t(size - page),
            mmap.MADV_HUGEPAGE,
        )
        library.free(ctypes.c_void_p(room))


class _Plan:
    """The steps of a model."""

    def __init__(self, model: keras.Model) -> None:
        self.graph = trace(model)
        self.readers: dict[int, list[Call]] = {}
        for call in self.graph.calls:
            for x in call.inputs:
                self.readers.setdefault(id(x), []).append(call)
        self.kept = {id(x) for x in self.graph.outputs}
        self.done: set[int] = set()
        self.steps: list[Step] = []
        for call in self.graph.calls:
            if id(call) not in self.done:
                self.steps.append(self._step(call))

    def __call__(self, x: Any, training: bool) -> Any:
        values: Values = {id(self.graph.inputs[0]): x}
        for step in self.steps:
            step(values, training)
        return values[id(self.graph.outputs[0])]

    def _step(self, call: Call) -> Step:
        layer = call.operation
        kind = type(layer)
        if kind is layers.BatchNormalization and _is_plain_norm(call):
            return self._norm(call)
        if kind is layers.Conv2D and _is_plain_convolution(layer):
            return _convolution(call, depthwise=False)
        if kind is layers.DepthwiseConv2D and _is_plain_depthwise(layer):
            return _convolution(call, depthwise=True)
        if kind is layers.Concatenate and _is_last_axis(call):
            return _joined(call)
        if kind is layers.Identity:
            return _same(call)
        if kind is ChannelSlice:
            return self._split(call)
        return _as_it_is(call)

    def _only_reader(self, x: Any, kind: type) -> Call | None:
        """The call that alone reads a tensor, if its layer is of a kind."""
        readers = self.readers.get(id(x), [])
        if len(readers) != 1 or id(x) in self.kept:
            return None
        return readers[0] if type(readers[0].operation) is kind else None

    def _norm(self, call: Call) -> Step:
        """Batch normalization with the addition and ReLU that follow."""
        from keras_muffnet.training.fast import operations

        layer, added = call.operation, None
        last = call
        add = self._only_reader(call.outputs[0], layers.Add)
        if add is not None and len(add.inputs) == 2:
            others = [x for x in add.inputs if x is not call.outputs[0]]
            # The other one must be known by then, and of the same shape.
            if (
                len(others) == 1
                and others[0].shape == call.outputs[0].shape
                and self._is_known(others[0], call)
            ):
                added, last = others[0], add
        relu = self._only_reader(last.outputs[0], layers.ReLU)
        if relu is not None and _is_plain_relu(relu.operation):
            last = relu
        self.done.update(map(id, (add if added is not None else call, last)))
        source, target = id(call.inputs[0]), id(last.outputs[0])
        other = None if added is None else id(added)
        limit = _limit(last.operation) if last is relu else 0.0

        def step(values: Values, training: bool) -> None:
            values[target] = _normalized(
                operations,
                layer,
                values[source],
                None if other is None else values[other],
                limit,
                training and layer.trainable,
            )

        return step

    def _is_known(self, x: Any, call: Call) -> bool:
        """Whether a tensor is made before a call."""
        if x is self.graph.inputs[0]:
            return True
        for earlier in self.graph.calls:
            if earlier is call:
                return False
            if any(x is y for y in earlier.outputs):
                return True
        return False

    def _split(self, call: Call) -> Step:
        """All groups of a tensor at once, if they are all of its channels."""
        from keras_muffnet.training.fast import operations

        x = call.inputs[0]
        groups = sorted(
            (
                reader
                for reader in self.readers[id(x)]
                if type(reader.operation) is ChannelSlice
            ),
            key=lambda reader: reader.operation.start,
        )
        begins = [group.operation.start for group in groups]
        ends = [group.operation.stop for group in groups]
        if begins != [0, *ends[:-1]] or ends[-1] != x.shape[-1]:
            return _as_it_is(call)
        self.done.update(map(id, groups))
        source = id(x)
        targets = [id(group.outputs[0]) for group in groups]
        sizes = [b - a for a, b in zip(begins, ends, strict=True)]

        def step(values: Values, training: bool) -> None:
            parts = operations.split(values[source], sizes)
            values.update(zip(targets, parts, strict=True))

        return step


def _normalized(
    operations: Any, layer: Any, x: Any, add: Any, limit: float, training: bool
) -> Any:
    import torch

    moving_mean = layer.moving_mean.value
    moving_variance = layer.moving_variance.value
    gamma = torch.ones_like(moving_mean)
    if layer.gamma is not None:
        gamma = layer.gamma.value
    beta = torch.zeros_like(moving_mean)
    if layer.beta is not None:
        beta = layer.beta.value
    if training:
        y, mean, variance = operations.batch_norm(
            x, gamma, beta, add, layer.epsilon, limit
        )
        with torch.no_grad():
            share = 1.0 - layer.momentum
            moving_mean.mul_(layer.momentum).add_(mean, alpha=share)
            moving_variance.mul_(layer.momentum).add_(variance, alpha=share)
        return y
    scale = gamma * torch.rsqrt(moving_variance + layer.epsilon)
    shift = beta - moving_mean * scale
    if not torch.is_grad_enabled():
        add = None if add is None else operations.dense(add)
        return operations.normalize(
            operations.dense(x), scale, shift, add, limit
        )
    y = torch.addcmul(shift, x, scale)
    y = y if add is None else y + add
    return torch.clamp(y, 0.0, limit) if limit else y


def _convolution(call: Call, depthwise: bool) -> Step:
    import torch

    from keras_muffnet.training.fast import operations

    layer = call.operation
    source, target = id(call.inputs[0]), id(call.outputs[0])
    stride = layer.strides[0]

    def step(values: Values, training: bool) -> None:
        x, kernel = values[source], layer.kernel.value
        pads = tuple(
            _pads(size, reach, stride, layer.padding)
            for size, reach in zip(x.shape[1:3], kernel.shape[:2], strict=True)
        )
        if not depthwise:
            y = operations.convolution(x, kernel, stride, pads, layer.groups)
        elif kernel.shape[0] >= 5 and torch.is_grad_enabled():
            y = operations.depthwise(x, kernel, stride, pads)
        else:
            y = operations.convolution(
                x, kernel.permute(0, 1, 3, 2), stride, pads, x.shape[-1]
            )
        values[target] = y if layer.bias is None else y + layer.bias.value

    return step


def _pads(size: int, reach: int, stride: int, padding: str) -> tuple[int, int]:
    """Zeros before and after; "same" as Keras has it."""
    if padding == "valid":
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def _joined(call: Call) -> Step:
    from keras_muffnet.training.fast import operations

    sources = [id(x) for x in call.inputs]
    target = id(call.outputs[0])

    def step(values: Values, training: bool) -> None:
        values[target] = operations.join([values[x] for x in sources])

    return step


def _same(call: Call) -> Step:
    source, target = id(call.inputs[0]), id(call.outputs[0])

    def step(values: Values, training: bool) -> None:
        values[target] = values[source]

    return step


def _as_it_is(call: Call) -> Step:
    """Calls the layer itself."""
    operation = call.operation
    takes_training = getattr(operation, "_call_has_training_arg", False)

    def step(values: Values, training: bool) -> None:
        args, kwargs = keras.tree.map_structure(
            lambda x: values[id(x)] if keras.utils.is_keras_tensor(x) else x,
            (call.args, call.kwargs),
        )
        if takes_training and "training" not in kwargs:
            kwargs = {**kwargs, "training": training}
        made: Sequence[Any] = keras.tree.flatten(operation(*args, **kwargs))
        values.update(zip(map(id, call.outputs), made, strict=True))

    return step


def _is_last_axis(call: Call) -> bool:
    axes = (-1, len(call.outputs[0].shape) - 1)
    return call.operation.axis in axes


def _is_plain_norm(call: Call) -> bool:
    layer = call.operation
    return (
        _is_last_axis(call)
        and not getattr(layer, "renorm", False)
        and layer.activity_regularizer is None
    )


def _is_plain_convolution(layer: Any) -> bool:
    return (
        layer.data_format == "channels_last"
        and layer.padding in ("same", "valid")
        and set(layer.dilation_rate) == {1}
        and len(set(layer.strides)) == 1
        and layer.activation is keras.activations.linear
        and layer.activity_regularizer is None
    )


def _is_plain_depthwise(layer: Any) -> bool:
    return _is_plain_convolution(layer) and layer.depth_multiplier == 1


def _is_plain_relu(layer: Any) -> bool:
    return (
        (layer.max_value is None or layer.max_value > 0)
        and not layer.negative_slope
        and not layer.threshold
    )


def _limit(relu: Any) -> float:
    return math.inf if relu.max_value is None else float(relu.max_value)
