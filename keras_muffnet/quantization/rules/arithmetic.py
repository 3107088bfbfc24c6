"""Sums, differences and products."""

from collections.abc import Callable

import keras
import numpy as np

from keras_muffnet.quantization.rules.scaling import affine
from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Writer


def _arithmetic(kind: str) -> Callable[..., int]:
    """Two tensors, or a tensor and a constant on either side."""

    def write(w: Writer, *inputs: int) -> int:
        if len(inputs) == 2:
            if kind not in ("Add", "Multiply", "Subtract"):
                w.refuse("must have a constant as one of its operands")
            return w.add(kind, *inputs)
        operands = [*w.call.args, *w.call.kwargs.values()]
        if len(operands) != 2:
            w.refuse(f"must have two operands, but has {len(operands)}")
        if tuple(w.call.inputs[0].shape) != w.shape():
            w.refuse("must not make more channels or pixels of a tensor")
        first = isinstance(operands[0], keras.KerasTensor)
        constant = operands[1] if first else operands[0]
        constant = np.asarray(keras.ops.convert_to_numpy(constant), float)
        if kind == "Divide" and not first:
            w.refuse("must divide by a constant, not the other way round")
        if kind == "Divide":
            constant = 1 / constant
        scale, offset = {
            "Add": (1.0, constant),
            "Subtract": (1.0, -constant) if first else (-1.0, constant),
            "Multiply": (constant, 0.0),
            "Divide": (constant, 0.0),
        }[kind]
        return affine(w, inputs[0], scale, offset)

    return write


def _merge(kind: str) -> Callable[..., int]:
    """Keras's merging layers, which take two tensors or more."""

    def write(w: Writer, x: int, *others: int) -> int:
        for k, other in enumerate(others):
            x = w.add(kind, x, other, part=f"{k}" if k else "")
        return x

    return write


RULES: Rules = {
    "Add": _merge("Add"),
    "Multiply": _merge("Multiply"),
    "Subtract": _merge("Subtract"),
    "op Add": _arithmetic("Add"),
    "op Divide": _arithmetic("Divide"),
    "op Multiply": _arithmetic("Multiply"),
    "op Subtract": _arithmetic("Subtract"),
    "op TrueDivide": _arithmetic("Divide"),
}
