"""Where a model's activations are quantized, and which share one range.

A convolution and its ReLU become one integer operation, and so do an addition
and its ReLU. Such a unit's output is quantized once, at its end: a fake
quantization inside it would keep the converter from folding it.

Slicing, concatenating and max-pooling move integers without changing them, so
all they join must have the same scale. Those tensors form a group with one
range, and every unit that feeds the group quantizes its output with it.
Otherwise the converter has to insert a requantization at each such place.
"""

import difflib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
import numpy as np

from keras_muffnet.quantization.lowering import lower
from keras_muffnet.quantization.steps import KERNELS
from keras_muffnet.quantization.steps import Rewriting
from keras_muffnet.quantization.steps import Step
from keras_muffnet.quantization.steps import count_readers
from keras_muffnet.quantization.steps import refuse

Range = tuple[float, float]

# Their outputs are input values, moved, or between those: of the same scale.
_MOVING = (
    "AveragePooling2D",
    "ChannelGather",
    "ChannelSlice",
    "Concatenate",
    "Cropping2D",
    "Dropout",
    "GlobalMaxPooling2D",
    "MaxPooling2D",
    "Permute",
    "Reshape",
    "UpSampling2D",
    "ZeroPadding2D",
)

_RELU_FOLDS_INTO = (*KERNELS, "Add", "Multiply", "Subtract")

# Layers that come with the plan and stand for none of the model.
INPUT_RANGE = "input_range"
FLOAT_BARRIER = "FloatBarrier"


class Plan(NamedTuple):
    """How a model is quantized.

    Attributes:
        input_shape: `(height, width, channels)` of an image.
        steps: the model in an order in which it can run. The first step stands
            for the input; those of kind "FloatBarrier" pass their input on and
            keep what follows in float.
        outputs: numbers of the tensors that the model gives.
        ranges: for each range the names of the steps whose outputs share it.
            The first range is the input's.
        fixed: for each range its limits, where they are known beforehand.
    """

    input_shape: tuple[int, int, int]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    ranges: tuple[tuple[str, ...], ...]
    fixed: tuple[Range | None, ...]


def plan_quantization(
    model: keras.Model,
    *,
    float_layers: Iterable[str] = (),
    weight_bits: Mapping[str, int] | None = None,
    share_ranges: bool = True,
) -> Plan:
    """Plans the quantization of a model.

    Args:
        model: a functional or built sequential model with one input, a batch
            of channels-last images of known size.
        float_layers: names of layers to leave in float.
        weight_bits: bits of the kernels of the layers named, 4 or 8.
        share_ranges: False gives each unit a range of its own, even where the
            converter then has to requantize; for comparison.

    Raises:
        ValueError: naming the layer and the reason, if the model has a layer
            that cannot be quantized, or an argument names no layer; or if the
            model's input is not as above.
    """
    if isinstance(float_layers, str):
        raise ValueError(
            "`float_layers` must be several names, such as a list of one. "
            f"Received: {float_layers!r}"
        )
    lowered = lower(model)
    steps = _with_bits(lowered.steps, tuple(float_layers), weight_bits or {})
    steps, outputs = _with_barriers(steps, lowered.outputs)
    folded = _folded(steps, outputs)
    moving = _MOVING if share_ranges else tuple({*_MOVING} - {"Concatenate"})
    joins = [step.bits > 0 and step.kind in moving for step in steps]
    group = _groups(steps, joins)
    between = _between_floats(steps, outputs)
    ranges: list[list[str]] = []
    fixed: list[Range | None] = []
    number_of: dict[int, int] = {}
    planned = []
    for k, step in enumerate(steps):
        passes = step.kind == FLOAT_BARRIER or joins[k] or k + 1 in between
        if k in folded or passes:
            planned.append(step)
            continue
        root = group[k + 1]
        if root not in number_of:
            number_of[root] = len(ranges)
            ranges.append([])
            fixed.append(None)
        number = number_of[root]
        ranges[number].append(step.name)
        known = _known_range(step)
        if len(ranges[number]) == 1:
            fixed[number] = known
        elif known != fixed[number]:
            refuse(
                step.name,
                "is joined with another layer whose range is fixed: one of "
                "them is a sigmoid, a tanh or a hard sigmoid",
            )
        planned.append(step._replace(range=number))
    _check_shared(planned)
    return Plan(
        lowered.input_shape,
        tuple(planned),
        outputs,
        tuple(map(tuple, ranges)),
        tuple(fixed),
    )


def find_ranges(
    plan: Plan, found: Mapping[str, Range], input_range: Range
) -> list[Range]:
    """The limits of a plan's ranges.

    Args:
        plan: the plan.
        found: for each step with a range what its output alone would need.
        input_range: limits of the input.

    Returns:
        The values of `plan.ranges`. Zero lies within each. Where nothing else
        does, the range is (0, 1): next to a scale close to zero the
        interpreter would not run.

    Raises:
        ValueError: naming the first step, if an output was not finite.
    """
    for name, limits in found.items():
        if not np.isfinite(limits).all():
            raise ValueError(
                "`model` must give finite numbers on the calibration data. "
                f"Layer {name!r} gives values in {limits}"
            )
    ranges = []
    for names, fixed in zip(plan.ranges, plan.fixed, strict=True):
        needed = [found[n] for n in names if n != INPUT_RANGE]
        if INPUT_RANGE in names:
            needed.append(input_range)
        low = min([0.0, *(low for low, _ in needed)])
        high = max([0.0, *(high for _, high in needed)])
        ranges.append(fixed or (low, high if low < high else 1.0))
    return ranges


def layer_settings(step: Step, quantized: bool) -> dict[str, Any]:
    """Arguments of a step's layer but for its name.

    Args:
        step: the step.
        quantized: whether its output is quantized with its range.
    """
    settings = dict(step.settings)
    if step.kind in KERNELS:
        settings["use_bias"] = len(step.weights) == 2
        settings["trainable"] = step.trainable
    elif step.kind == "ReLU" and quantized and step.settings["max_value"] == 1:
        # What the range cuts off needs no operation of its own.
        settings["max_value"] = None
    return settings


def assemble(
    plan: Plan, images: Any, call: Callable[[Step, Any], Any]
) -> list[Any]:
    """Builds a plan with the layers of an engine.

    Args:
        plan: the plan.
        images: the input.
        call: makes a step's layer and calls it on a tensor or several.

    Returns:
        All tensors by their number.
    """
    tensors = [images]
    for step in plan.steps:
        inputs = [tensors[number] for number in step.inputs]
        tensors.append(call(step, inputs if len(inputs) > 1 else inputs[0]))
    return tensors


def _with_bits(
    steps: Sequence[Step],
    float_layers: Sequence[str],
    weight_bits: Mapping[str, int],
) -> list[Step]:
    for name in (*float_layers, *weight_bits):
        kinds = {s.kind for s in steps if name in s.sources}
        if not kinds:
            known = sorted({n for step in steps for n in step.sources})
            close = difflib.get_close_matches(str(name), known)
            raise ValueError(
                "`float_layers` and `weight_bits` must name layers of the "
                f"model. Received: {name!r}"
                + (f"; close to it: {', '.join(close)}" if close else "")
            )
        if name in weight_bits and not kinds & set(KERNELS):
            raise ValueError(
                "`weight_bits` must name layers with a kernel. "
                f"Received: {name!r}"
            )
    for name, bits in weight_bits.items():
        if bits not in (4, 8):
            raise ValueError(
                f"`weight_bits` must be 4 or 8. Received: {bits} for {name!r}"
            )
    result = []
    for step in steps:
        bits = 0 if set(step.sources) & set(float_layers) else 8
        if bits and step.kind in KERNELS:
            bits = next(
                (weight_bits[n] for n in step.sources if n in weight_bits), 8
            )
        result.append(step._replace(bits=bits))
    return result


def _with_barriers(
    steps: Sequence[Step], outputs: tuple[int, ...]
) -> tuple[list[Step], tuple[int, ...]]:
    """Puts a step for the input first, and barriers around float layers."""
    between = _between_floats(steps, outputs)
    new = Rewriting()
    start = Step(INPUT_RANGE, INPUT_RANGE, "Identity", (0,))
    new.number = [new.add(start)]
    for step in steps:
        inputs = []
        for k, x in enumerate(step.inputs):
            number = new.number[x]
            if not step.bits and x not in between:
                name = f"{step.name}_float{k or ''}"
                number = new.add(Step(name, name, FLOAT_BARRIER, (number,)))
            inputs.append(number)
        new.number.append(new.add(step._replace(inputs=tuple(inputs))))
    return new.steps, tuple(new.number[x] for x in outputs)


def _between_floats(steps: Sequence[Step], outputs: Sequence[int]) -> set[int]:
    """Numbers of the tensors that only layers left in float make and read."""
    made = {k for k, step in enumerate(steps, start=1) if not step.bits}
    return made.difference(outputs, *(s.inputs for s in steps if s.bits))


def _folded(steps: Sequence[Step], outputs: Sequence[int]) -> set[int]:
    """Indices of the steps that the next one's operation folds into."""
    readers = count_readers(steps, outputs)
    folded = set()
    for step in steps:
        before = step.inputs[0] - 1
        if (
            step.kind == "ReLU"
            and before >= 0
            and readers[before + 1] == 1
            and steps[before].kind in _RELU_FOLDS_INTO
        ):
            folded.add(before)
    return folded


def _known_range(step: Step) -> Range | None:
    """The limits that LiteRT's operation, or its meaning, prescribes."""
    if step.kind == "ReLU" and step.settings["max_value"] == 1:
        return 0.0, 1.0
    activation = step.settings.get("activation")
    if activation is None:
        return None
    return (-1.0, 127 / 128) if activation == "tanh" else (0.0, 255 / 256)


def _groups(steps: Sequence[Step], joins: Sequence[bool]) -> list[int]:
    """For each tensor a number that those joined with it have too."""
    parent = list(range(len(steps) + 1))

    def root(tensor: int) -> int:
        while parent[tensor] != tensor:
            tensor = parent[tensor]
        return tensor

    first_call: dict[str, int] = {}
    for k, step in enumerate(steps):
        joined = list(step.inputs) if joins[k] else []
        if step.kind in KERNELS:
            joined.append(first_call.setdefault(step.layer_name, k + 1))
        for tensor in joined:
            parent[root(tensor)] = root(k + 1)
    return [root(tensor) for tensor in range(len(parent))]


def _check_shared(steps: Sequence[Step]) -> None:
    """All calls of one layer must come out the same."""
    first: dict[str, Step] = {}
    for step in steps:
        if step.kind not in KERNELS:
            continue
        other = first.setdefault(step.layer_name, step)
        same = other.settings == step.settings and other.range == step.range
        if not same or not all(
            map(np.array_equal, step.weights, other.weights)
        ):
            refuse(
                step.layer_name,
                "is called more than once with something else behind it, or "
                "shares its name with another layer",
            )
