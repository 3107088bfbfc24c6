"""Regularizers and constraints, for weights that others were folded into."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_muffnet.quantization.steps import KERNELS
from keras_muffnet.quantization.steps import Step

_PACKAGE = "keras_muffnet"
# They look at each weight by itself, whatever the kernel's shape.
_BY_WEIGHT = (
    keras.regularizers.L1,
    keras.regularizers.L1L2,
    keras.regularizers.L2,
    keras.constraints.NonNeg,
)
_PARTS = (
    "kernel",
    "depthwise",
    "pointwise",
    "bias",
    "beta",
    "gamma",
    "alpha",
    "activity",
)


@keras.saving.register_keras_serializable(_PACKAGE)
class UnscaledRegularizer(keras.regularizers.Regularizer):
    """A regularizer of a kernel before it was multiplied.

    Args:
        inner: the regularizer.
        scale: what the kernel was multiplied by; it broadcasts to it.
    """

    def __init__(self, inner: Any, scale: Any) -> None:
        self.inner = keras.regularizers.get(inner)
        self.scale = np.asarray(scale, np.float32)

    def __call__(self, x: Any) -> Any:
        """The loss of a kernel."""
        return self.inner(x / self.scale)

    def get_config(self) -> dict[str, Any]:
        """What it is made of again."""
        return _config(self.inner, self.scale)


@keras.saving.register_keras_serializable(_PACKAGE)
class UnscaledConstraint(keras.constraints.Constraint):
    """The same of a constraint."""

    def __init__(self, inner: Any, scale: Any) -> None:
        self.inner = keras.constraints.get(inner)
        self.scale = np.asarray(scale, np.float32)

    def __call__(self, x: Any) -> Any:
        """The kernel as it may be."""
        return self.inner(x / self.scale) * self.scale

    def get_config(self) -> dict[str, Any]:
        """What it is made of again."""
        return _config(self.inner, self.scale)


def _config(inner: Any, scale: np.ndarray) -> dict[str, Any]:
    return {
        "inner": keras.saving.serialize_keras_object(inner),
        "scale": scale.tolist(),
    }


def add_penalties(
    steps: Sequence[Step], layers: Mapping[str, Any]
) -> tuple[list[Step], list[str]]:
    """Gives steps the regularizers and constraints of their layers.

    Args:
        steps: a plan's steps.
        layers: the model's layers by their names in the steps.

    Returns:
        The steps; and what no step can have, such as "norm.gamma_regularizer".
    """
    given = {
        (name, f"{part}_{kind}"): penalty
        for name, layer in layers.items()
        if getattr(layer, "trainable", False)
        for part in _PARTS
        for kind in ("regularizer", "constraint")
        for penalty in [getattr(layer, f"{part}_{kind}", None)]
        if penalty is not None
    }
    new = []
    for step in steps:
        carried = {}
        if step.kind in KERNELS and step.trainable and step.sources:
            for name in [n for n in given if n[0] == step.sources[0]]:
                found = _carried(step, layers[name[0]], name[1], given[name])
                carried.update(found)
                if found:
                    given[name] = None
        new.append(step._replace(penalties=carried))
    lost = [
        ".".join(name) for name, penalty in given.items() if penalty is not None
    ]
    return new, lost


def _carried(step: Step, layer: Any, name: str, penalty: Any) -> dict[str, Any]:
    """A layer's penalty as an argument of the step's layer, if it can be."""
    part, kind = name.split("_")
    folded = np.any(np.asarray(step.scale) != 1) or len(step.sources) > 1
    if part == "bias":
        return {} if folded or len(step.weights) < 2 else {name: penalty}
    separable = hasattr(layer, "pointwise_kernel")
    if separable:
        wanted = "depthwise" if step.kind == "DepthwiseConv2D" else "pointwise"
    else:
        wanted = "depthwise" if hasattr(layer, "depth_multiplier") else "kernel"
    if part != wanted:
        return {}
    kernel = step.weights[0]
    shapes = [tuple(w.shape) for w in layer.weights]
    if kernel.shape not in shapes and not isinstance(penalty, _BY_WEIGHT):
        return {}
    if np.any(np.asarray(step.scale) != 1):
        scale = np.asarray(step.scale, np.float32)
        scale = np.where(scale == 0, 1, scale)
        if step.kind == "Conv2DTranspose" and scale.ndim:
            scale = scale[:, None]
        elif step.kind == "DepthwiseConv2D" and scale.ndim:
            scale = scale.reshape(kernel.shape[2:])
        wrapper = (
            UnscaledRegularizer if kind == "regularizer" else UnscaledConstraint
        )
        penalty = wrapper(penalty, scale)
    own = "depthwise" if step.kind == "DepthwiseConv2D" else "kernel"
    return {f"{own}_{kind}": penalty}
