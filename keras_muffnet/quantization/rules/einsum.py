"""Sums of products along axes that have letters, and attention."""

import math
import string
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_muffnet.quantization.rules.activations import activate
from keras_muffnet.quantization.rules.convolutions import dense
from keras_muffnet.quantization.rules.scaling import affine
from keras_muffnet.quantization.writer import Rules
from keras_muffnet.quantization.writer import Writer
from keras_muffnet.quantization.writer import stored

# The size of each axis; the batch's has none.
Sizes = Mapping[str, Any]


def _letters(
    w: Writer, equation: str, ranks: Sequence[int]
) -> tuple[list[str], str]:
    """The axes of the operands and of the output, without "..."."""
    given, arrow, output = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    counts = {
        rank - len(term) + 3
        for term, rank in zip(terms, ranks, strict=True)
        if "..." in term
    }
    unused = "".join(sorted({*string.ascii_letters} - {*equation}))
    if not arrow or len(counts) > 1:
        w.refuse(f"must name all its axes. Found: {equation!r}")
    for count in counts:
        terms = [term.replace("...", unused[:count]) for term in terms]
        output = output.replace("...", unused[:count])
    if any(len({*term}) < len(term) for term in (*terms, output)):
        w.refuse(f"must name an axis once in a tensor. Found: {equation!r}")
    return terms, output


def _turned(w: Writer, x: int, axes: str, wanted: str) -> int:
    """A tensor with its axes in another order."""
    order = [axes.index(a) for a in wanted]
    if len(order) == 3:
        order = [0, 1, *(k + 1 for k in order[1:])]
    return w.permute(x, order, part="turned")


def _product_with_constant(
    w: Writer,
    x: int,
    axes: str,
    kernel_axes: str,
    output: str,
    weights: Sequence[np.ndarray],
    trainable: bool,
) -> int:
    """A sum over the first axes of a kernel, which has its own axes last."""
    kernel, *bias = weights
    summed = "".join(a for a in kernel_axes if a in axes)
    own = "".join(a for a in kernel_axes if a not in axes)
    kept = "".join(a for a in axes if a not in summed)
    if (
        kernel_axes != summed + own
        or {*output} != {*kept, *own}
        or axes[0] != output[0]
    ):
        w.refuse(
            "must sum over the kernel's first axes, and over these alone. "
            f"Found: {axes},{kernel_axes}->{output}"
        )
    sizes: Sizes = {
        **dict(zip(axes, w.call.inputs[0].shape, strict=True)),
        **dict(zip(kernel_axes, kernel.shape, strict=True)),
    }
    x = _turned(w, x, axes, kept + summed)
    shape = stored([sizes[a] for a in kept + summed])
    count = math.prod(sizes[a] for a in summed)
    flat: tuple[int | None, ...]
    if len(kept) == 1:
        flat = (None, count)
    elif len(shape) == 4 and shape[3] == count:
        flat = shape
    else:
        flat = (None, 1, math.prod(sizes[a] for a in kept[1:]), count)
    if flat != shape:
        x = w.reshape(x, flat)
    matrix = kernel.reshape(count, -1)
    arrays = [matrix, *(b.reshape(-1) for b in bias)]
    x = dense(w, x, arrays, len(flat), trainable)
    shape = stored([sizes[a] for a in kept + own])
    if (*flat[:-1], matrix.shape[1]) != shape:
        x = w.reshape(x, shape)
    return _turned(w, x, kept + own, output)


def _product_of_two(
    w: Writer, x: int, y: int, terms: Sequence[str], output: str, sizes: Sizes
) -> int:
    """A product of tensors, summed over the axes that only they have."""
    first, second = terms
    shared = "".join(a for a in first if a in second and a in output)
    summed = "".join(a for a in first if a in second and a not in output)
    own = ["".join(a for a in t if a not in shared + summed) for t in terms]
    if (
        not summed
        or {*output} != {*shared, *own[0], *own[1]}
        or {first[0], second[0]} != {output[0]}
    ):
        w.refuse(
            "must sum over the axes that both tensors have and the output has "
            f"not, and over these alone. Found: {first},{second}->{output}"
        )
    transposed = second != shared + summed + own[1]
    wanted = [
        shared + own[0] + summed,
        shared + (own[1] + summed if transposed else summed + own[1]),
    ]
    batch, inner, *sides = [
        math.prod(sizes[a] for a in axes) for axes in (shared[1:], summed, *own)
    ]
    matrices = [
        (sides[0], inner),
        (sides[1], inner) if transposed else (inner, sides[1]),
    ]
    tensors = []
    for number, axes, order, matrix in zip(
        (x, y), terms, wanted, matrices, strict=True
    ):
        number = _turned(w, number, axes, order)
        shape = (None, batch, *matrix)
        if stored([sizes[a] for a in order]) != shape:
            number = w.reshape(number, shape)
        tensors.append(number)
    z = w.add("MatMul", *tensors, part="product", transpose_b=transposed)
    made = shared + own[0] + own[1]
    shape = stored([sizes[a] for a in made])
    if shape != (None, batch, *sides):
        z = w.reshape(z, shape)
    return _turned(w, z, made, output)


def _einsum_dense(w: Writer, x: int) -> int:
    kernel, *bias = w.layer.get_weights()
    ranks = [len(w.call.inputs[0].shape), kernel.ndim]
    (axes, kernel_axes), output = _letters(w, w.layer.equation, ranks)
    own = [a for a in kernel_axes if a not in axes]
    count = math.prod(
        size
        for a, size in zip(kernel_axes, kernel.shape, strict=True)
        if a in own
    )
    late = [b for b in bias if b.size != count]  # for some of the axes
    x = _product_with_constant(
        w,
        x,
        axes,
        kernel_axes,
        output,
        [kernel, *([] if late else bias)],
        trainable=True,
    )
    for value in late:
        x = affine(w, x, 1.0, value, part="bias")
    return activate(w, x)


def _einsum(w: Writer, *inputs: int) -> int:
    operands = list(w.call.args)
    ranks = [len(np.shape(operand)) for operand in operands]
    terms, output = _letters(w, w.layer.subscripts, ranks)
    if len(terms) != 2:
        w.refuse(f"must have two operands. Found: {w.layer.subscripts!r}")
    if len(inputs) == 2:
        sizes = {
            a: size
            for term, x in zip(terms, w.call.inputs, strict=True)
            for a, size in zip(term, x.shape, strict=True)
        }
        x, y = inputs
        return _product_of_two(w, x, y, terms, output, sizes)
    if not isinstance(operands[0], keras.KerasTensor):
        operands, terms = operands[::-1], terms[::-1]
    axes, given = terms
    order = [a for a in given if a in axes] + [
        a for a in given if a not in axes
    ]
    kernel = np.asarray(keras.ops.convert_to_numpy(operands[1]), np.float32)
    kernel = kernel.transpose([given.index(a) for a in order])
    [x] = inputs
    return _product_with_constant(
        w, x, axes, "".join(order), output, [kernel], trainable=False
    )


def _attention(w: Writer, query: int, key: int, value: int) -> int:
    layer = w.layer
    if layer.is_causal or layer.attn_logits_soft_cap is not None:
        w.refuse("must not be causal, and have no cap")
    if any(w.argument(name, k) is not None for name, k in _MASKS.items()):
        w.refuse("must have no mask and no bias")
    shapes = [x.shape for x in w.call.inputs]
    sizes = dict(zip("bsnh", shapes[1], strict=True)) | {"t": shapes[0][1]}
    scale = w.argument("scale", 5)
    if scale is None:
        scale = 1 / math.sqrt(sizes["h"])
    query = affine(w, query, scale, 0.0, part="scaled", shape=shapes[0])
    scores = _product_of_two(w, query, key, ["btnh", "bsnh"], "bnts", sizes)
    shares = w.add(
        "Function", scores, part="softmax", function="softmax", axis=3
    )
    return _product_of_two(w, shares, value, ["bnts", "bsnh"], "btnh", sizes)


_MASKS = {"bias": 3, "mask": 4}

RULES: Rules = {
    "EinsumDense": _einsum_dense,
    "op DotProductAttention": _attention,
    "op Einsum": _einsum,
}
