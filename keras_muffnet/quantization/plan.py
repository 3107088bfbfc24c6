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

from keras_muffnet.graph import trace
from keras_muffnet.quantization.ends import Ends
from keras_muffnet.quantization.ends import read_ends
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
        ends: names of the model's inputs and outputs, and the latter's order.
    """

    input_shape: tuple[int, int, int]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    ranges: tuple[tuple[str, ...], ...]
    fixed: tuple[Range | None, ...]
    ends: Ends


def plan_quantization(
    model: keras.Model,
    *,
    float_layers: Iterable[str] = (),
    weight_bits: Mapping[str, int] | None = None,
    per_channel: bool | Mapping[str, bool] = True,
    share_ranges: bool = True,
) -> Plan:
    """Plans the quantization of a model.

    Args:
        model: a functional or built sequential model with one input, a batch
            of channels-last images of known size.
        float_layers: names of layers to leave in float.
        weight_bits: bits of the kernels of the layers named, 4 or 8.
        per_channel: whether a kernel has a range for each output channel; or
            that of the layers named, where it is not so.
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
    if isinstance(per_channel, bool):
        default, per_channel = per_channel, {}
    else:
        default = True
    weight_bits = weight_bits or {}
    _check_names(lowered.steps, tuple(float_layers), weight_bits, per_channel)
    untrained = _untrained_layers(model)
    steps = [
        _with_settings(
            step, set(float_layers), weight_bits, per_channel, default
        )._replace(
            trainable=step.trainable and not untrained & set(step.sources[:1])
        )
        for step in lowered.steps
    ]
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
        read_ends(model),
    )


def ends_to_add(plan: Plan) -> set[str]:
    """Names of the outputs that a layer behind the last step has to bear.

    There is one for a softmax, and one where an output would otherwise not
    have the name that it has in the model.
    """
    ends = plan.ends
    made = []
    for number in plan.outputs:
        step = plan.steps[number - 1]
        made.append(step.layer_name if step.kind in KERNELS else step.name)
    return {
        name
        for name, maker, axis in zip(
            ends.output_names, made, ends.softmax, strict=True
        )
        if axis is not None or maker != name
    }


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


def _check_names(
    steps: Sequence[Step],
    float_layers: Sequence[str],
    weight_bits: Mapping[str, int],
    per_channel: Mapping[str, bool],
) -> None:
    """Raises for names of no layers and settings that there are not."""
    for name in (*float_layers, *weight_bits, *per_channel):
        kinds = {s.kind for s in steps if name in s.sources}
        if not kinds:
            known = sorted({n for step in steps for n in step.sources})
            close = difflib.get_close_matches(str(name), known)
            raise ValueError(
                "`float_layers`, `weight_bits` and `per_channel` must name "
                f"layers of the model. Received: {name!r}"
                + (f"; close to it: {', '.join(close)}" if close else "")
            )
        for argument, names in (
            ("weight_bits", weight_bits),
            ("per_channel", per_channel),
        ):
            if name in names and not kinds & set(KERNELS):
                raise ValueError(
                    f"`{argument}` must name layers with a kernel. "
                    f"Received: {name!r}"
                )
    for name, bits in weight_bits.items():
        if bits not in (4, 8):
            raise ValueError(
                f"`weight_bits` must be 4 or 8. Received: {bits} for {name!r}"
            )
    for name, wanted in per_channel.items():
        if not isinstance(wanted, bool):
            raise ValueError(
                "`per_channel` must be True or False. "
                f"Received: {wanted!r} for {name!r}"
            )


def _with_settings(
    step: Step,
    float_layers: set[str],
    weight_bits: Mapping[str, int],
    per_channel: Mapping[str, bool],
    default: bool,
) -> Step:
    """A step with what is asked for of its layers, above all of the first."""
    if step.kind not in KERNELS:
        return step._replace(
            bits=0 if float_layers.intersection(step.sources) else 8
        )
    bits = [weight_bits[name] for name in step.sources if name in weight_bits]
    wanted = [per_channel[name] for name in step.sources if name in per_channel]
    is_float = float_layers.intersection(step.sources)
    return step._replace(
        bits=0 if is_float else (*bits, 8)[0],
        per_channel=(*wanted, default)[0],
    )


def _untrained_layers(model: keras.Model) -> set[str]:
    """Names of the layers, in nested models too, that are not trained."""
    return {
        call.operation.name
        for call in trace(model).calls
        if not getattr(call.operation, "trainable", True)
    }


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
