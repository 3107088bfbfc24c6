"""Finds a plan's tensors in a `.tflite` file, by the names of its layers."""

import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from keras_muffnet.litert import LiteRTModel
from keras_muffnet.litert.model import CASTS
from keras_muffnet.litert.model import Tensor
from keras_muffnet.quantization.plan import Plan
from keras_muffnet.quantization.steps import KERNELS

_KERNEL_OPERATIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

# What they make may bear the name of what they move.
_MOVING_OPERATIONS = (
    "CONCATENATION",
    "MAX_POOL_2D",
    "PAD",
    "RESHAPE",
    "SPLIT",
    "STRIDED_SLICE",
    "TRANSPOSE",
)


class _Made(NamedTuple):
    """What one of the file's operations makes.

    Attributes:
        number: of the tensor.
        tensor: its name and size.
        kind: of the operation, "kernel", "moving" or "other".
        order: what the tensors of several calls of one layer are ordered by.
    """

    number: int
    tensor: Tensor
    kind: str
    order: tuple[list[int], int]


def match(
    plan: Plan, sizes: Mapping[int, int], file: LiteRTModel
) -> tuple[dict[int, int], list[bool]]:
    """Finds tensors of a plan in a file.

    Args:
        plan: the plan.
        sizes: numbers of values of some of its tensors, among them the inputs'
            and the outputs.
        file: the file.

    Returns:
        For each tensor found its number in the file; and for each output
        whether it ends in a softmax there, which a plan has not.

    Raises:
        ValueError: if none is found, or the outputs differ in size.
    """
    tensors, nodes = file.tensors(), file.nodes()
    firsts = {
        node.inputs[0]: node.outputs[0]
        for node in nodes
        if node.operation.name == "QUANTIZE" and node.inputs[0] in file.inputs
    }
    makers = {node.outputs[0]: node for node in nodes}
    ends = {k: firsts.get(x, x) for k, x in enumerate(file.inputs, start=1)}
    has_softmax = []
    for number, last in zip(plan.outputs, file.outputs, strict=True):
        after = []
        while last in makers and (
            makers[last].operation.name in (*CASTS, "SOFTMAX")
        ):
            after.append(makers[last].operation.name)
            last = makers[last].inputs[0]
        ends[number] = last
        has_softmax.append("SOFTMAX" in after)

    made = [
        _Made(
            number,
            tensors[number],
            _kind(node.operation.name),
            (_numbers(tensors[number].name), order),
        )
        for order, (number, node) in enumerate(makers.items())
        if node.operation.name not in CASTS
    ]
    inner = {k: size for k, size in sizes.items() if k not in ends}
    # See `_scopes`.
    matched = max(
        (_match_names(plan, inner, made, reading) for reading in (False, True)),
        key=len,
    )
    wanted = [sizes[k] for k in plan.outputs]
    given = [tensors[ends[k]].size for k in plan.outputs]
    if wanted != given or (inner and not matched):
        raise ValueError(
            "`tflite` must be made of `model`: give as many numbers, "
            f"{_listed(wanted)}, and have tensors named after its layers. "
            f"Received: {file.path!r}, with {_listed(given)} numbers and "
            f"{len(matched)} such tensors"
        )
    return {**matched, **ends}, has_softmax


def _listed(sizes: Sequence[int]) -> str:
    return " and ".join(map(str, sizes))


def _match_names(
    plan: Plan,
    sizes: Mapping[int, int],
    made: Sequence[_Made],
    numbered: bool,
) -> dict[int, int]:
    names = {x.number: _scopes(x.tensor.name, numbered) for x in made}
    final = {s: step.layer_name for step in plan.steps for s in step.sources}
    matched: dict[int, int] = {}
    # From the end, so that of several calls of a layer each takes its own.
    for k in sorted(sizes, reverse=True):
        step = plan.steps[k - 1]
        before = plan.steps[step.inputs[0] - 1]
        has_kernel = step.kind in KERNELS or (
            before.kind in KERNELS and before.range is None
        )
        kind = "kernel" if has_kernel else "other"
        wanted = {step.name, step.layer_name}
        # In a file of the float model a layer is not in parts.
        wanted |= {s for s in step.sources if final[s] == step.layer_name}
        candidates = [
            (
                x.kind == kind,
                step.name in names[x.number],
                x.order,
                x.number,
            )
            for x in made
            if x.tensor.size == sizes[k]
            and x.number not in matched.values()
            and not wanted.isdisjoint(names[x.number])
        ]
        if candidates:
            matched[k] = max(candidates)[-1]
    return matched


def _kind(operation: str) -> str:
    if operation in _MOVING_OPERATIONS:
        return "moving"
    return "kernel" if operation in _KERNEL_OPERATIONS else "other"


def _scopes(name: str, numbered: bool) -> set[str]:
    """Possible names of layers in a tensor's name.

    It lists what became one operation, as `model/relu/Relu;model/conv/Conv2D`.
    TensorFlow numbers a scope that is entered again, and Keras 3 enters each
    of its own twice: there `conv` is `conv_1` and `conv_1` is `conv_1_2`. With
    tf_keras they are `quant_conv` and `quant_conv_1`. So of the two readings,
    with one number at the end of each name or without, the one holds for a
    file that finds more layers.
    """
    # What is last in a path names the operation.
    scopes = [s for path in name.split(";") for s in path.split("/")[:-1]]
    if numbered:
        scopes = [re.sub(r"_\d+$", "", scope) for scope in scopes]
        return {scope.removesuffix("_inner") for scope in scopes}
    return {*scopes, *(scope.removeprefix("quant_") for scope in scopes)}


def _numbers(name: str) -> list[int]:
    """Those that TensorFlow put in; a later call has greater ones."""
    first_part = name.partition(";")[0]
    return [int(number) for number in re.findall(r"_(\d+)", first_part)]
