"""Which layers and functions have the channels of images before the pixels."""

from typing import Any

import keras

from keras_muffnet.graph import Call

# What does the same to all values, or goes by `axis`.
_ALIKE = {
    *("Activation", "Add", "ActivityRegularization", "AlphaDropout"),
    *("Average", "Concatenate", "Dropout", "ELU", "GaussianDropout"),
    *("GaussianNoise", "Identity", "LeakyReLU", "Maximum", "Minimum"),
    *("Multiply", "PReLU", "ReLU", "Rescaling", "Softmax", "Subtract"),
    "UnitNormalization",
    *("op Absolute", "op Add", "op Cast", "op Celu", "op Clip"),
    *("op Concatenate", "op ConvertToTensor", "op Copy", "op Divide"),
    *("op Elu", "op Exp", "op Gelu", "op Glu", "op HardShrink"),
    *("op HardSigmoid", "op HardSilu", "op HardTanh", "op LeakyRelu"),
    *("op Log", "op LogSigmoid", "op LogSoftmax", "op Maximum"),
    *("op Minimum", "op Multiply", "op Negative", "op Power", "op Relu"),
    *("op Relu6", "op Rsqrt", "op Selu", "op Sigmoid", "op Silu"),
    *("op SoftShrink", "op Softmax", "op Softplus", "op Softsign"),
    *("op SparsePlus", "op SparseSigmoid", "op Split", "op Sqrt"),
    *("op Square", "op Squareplus", "op StopGradient", "op Subtract"),
    *("op Tanh", "op TanhShrink", "op Threshold", "op TrueDivide"),
}
_OVER_CHANNELS = {"BatchNormalization", "GroupNormalization", "Normalization"}
_OVER_AXES = {"LayerNormalization", "RMSNormalization"}
_REDUCTIONS = {
    *("op Amax", "op Amin", "op Max", "op Mean", "op Min", "op Sum"),
}


# What a subclass may define and still compute as its base does.
_HARMLESS = {
    *("__annotations__", "__dict__", "__doc__", "__firstlineno__", "__init__"),
    *("__module__", "__qualname__", "__static_attributes__", "__weakref__"),
    *("build", "compute_output_shape", "from_config", "get_config"),
}
LIBRARIES = ("keras.", "keras_muffnet.")


def kind_of(operation: Any) -> str:
    """What the rule for a layer or operation is listed under.

    That of a user's subclass is its base's, if it changes nothing of what that
    computes.
    """
    kind, changed = type(operation), set[str]()
    for base in kind.__mro__:
        if base.__module__.startswith(LIBRARIES):
            if not any(hasattr(base, name) for name in changed):
                kind = base
            break
        properties = [x for x in vars(base).values() if isinstance(x, property)]
        if properties:  # of what instances of the base have
            break
        changed |= vars(base).keys() - _HARMLESS
    name = kind.__name__
    if not kind.__module__.startswith(LIBRARIES):  # no rule is listed so
        name = f"{kind.__module__}.{name}"
    if isinstance(operation, keras.layers.Layer):
        return name
    # Functions of keras.ops, recorded when they are called on Keras's tensors.
    return f"op {name}"


def has_channels_first(call: Call, moved: bool) -> bool:
    """Whether a call is written with the channels last that it has first.

    Args:
        call: the call.
        moved: whether one of its inputs is.
    """
    layer = call.operation
    data_format = getattr(layer, "data_format", None)
    if data_format is not None:
        return data_format == "channels_first"
    kind = kind_of(layer)
    ranks = {len(x.shape) for x in call.inputs}
    if kind in _OVER_CHANNELS:
        return layer.axis in (1, [1], (1,)) and min(ranks) > 2
    if not moved or len(ranks) > 1:
        return False
    (rank,) = ranks
    if kind in _OVER_AXES:
        return len(_numbers(layer.axis, rank)) == 1
    if kind in _REDUCTIONS:
        axes = _numbers(layer.axis, rank)
        return layer.keepdims or axes in ({1}, {*range(2, rank)})
    if kind == "op Concatenate":  # of constants, too
        operands = [*call.args, *call.kwargs.values()]
        return all(isinstance(x, keras.KerasTensor) for x in operands[0])
    return kind in _ALIKE


def _numbers(axis: Any, rank: int) -> set[int]:
    axes = axis if isinstance(axis, (list, tuple)) else [axis]
    return {a % rank for a in axes if a is not None}
