"""Where a model's activations are quantized, and which share one range.

A convolution and its ReLU become one integer operation, and so do an addition
and its ReLU. Such a unit's output is quantized once, at its end: a fake
quantization inside it would keep the converter from folding it.

Slicing, concatenating and max-pooling move integers without changing them, so
all they join must have the same scale. Those tensors form a group with one
range, and every unit that feeds the group quantizes its output with it.
Otherwise the converter has to insert a requantization at each such place. One
is left where a sigmoid, or another output of a prescribed range, is joined with
what has a range of its own.
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

from keras_muffnet.quantization.ends import Ends
from keras_muffnet.quantization.ends import read_ends
from keras_muffnet.quantization.folding import home_of_bias
from keras_muffnet.quantization.lowering import UNKNOWN
from keras_muffnet.quantization.lowering import lower
from keras_muffnet.quantization.penalties import add_penalties
from keras_muffnet.quantization.steps import FOREIGN
from keras_muffnet.quantization.steps import KERNELS
from keras_muffnet.quantization.steps import Rewriting
from keras_muffnet.quantization.steps import Step
from keras_muffnet.quantization.steps import count_readers

Range = tuple[float, float]

# Their outputs are input values, moved, or between those: of the same scale.
_MOVING = (
    "AveragePooling2D",
    "ChannelGather",
    "ChannelSlice",
    "Concatenate",
    "Cropping2D",
    "Dropout",
    "Gather",
    "GlobalMaxPooling2D",
    "MaxPooling2D",
    "Pad",
    "Permute",
    "Reshape",
    "Resize",
    "Slice",
    "Tile",
    "UpSampling2D",
    "ZeroPadding2D",
)
# Those of the same scale whose outputs may lie beyond their inputs' range.
_WIDENING = ("Bound", "Maximum", "Minimum", "PadWith")
_WIDENING_FUNCTIONS = ("hard_shrink", "threshold")

# The kinds that have a data format.
_OF_IMAGES = (
    "AveragePooling2D",
    "Conv2D",
    "Conv2DTranspose",
    "Cropping2D",
    "DepthwiseConv2D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "MaxPooling2D",
    "UpSampling2D",
    "ZeroPadding2D",
)

_RELU_FOLDS_INTO = (*KERNELS, "Add", "Multiply", "Subtract")

# Stands for none of the model.
FLOAT_BARRIER = "FloatBarrier"


class Plan(NamedTuple):
    """How a model is quantized.

    Attributes:
        input_shapes: of the inputs, without the batch axis.
        steps: the model in an order in which it can run. The first steps stand
            for the inputs; those of kind "FloatBarrier" pass their input on and
            keep what follows in float.
        outputs: numbers of the tensors that the model gives.
        ranges: for each range the names of the steps whose outputs share it.
            The first range is the input's.
        fixed: for each range its limits, where they are known beforehand.
        ends: names of the model's inputs and outputs, and the latter's order.
        lost: the regularizers and constraints that no step has.
        constant: paths of the model's weights that are trained there and are
            constants here.
    """

    input_shapes: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    ranges: tuple[tuple[str, ...], ...]
    fixed: tuple[Range | None, ...]
    ends: Ends
    lost: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the first input, without the batch axis."""
        return self.input_shapes[0]


def plan_quantization(
    model: keras.Model,
    *,
    float_layers: Iterable[str] = (),
    weight_bits: Mapping[str, int] | None = None,
    per_channel: bool | Mapping[str, bool] = True,
    share_ranges: bool = True,
    input_shapes: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """Plans the quantization of a model.

    Args:
        model: a functional or built sequential model.
        float_layers: names of layers to leave in float, known or not; or
            "unknown", for all that no rule fits.
        weight_bits: bits of the kernels of the layers named, 4 or 8.
        per_channel: whether a kernel has a range for each output channel; or
            that of the layers named, where it is not so.
        share_ranges: False gives each unit a range of its own, even where the
            converter then has to requantize; for comparison.
        input_shapes: sizes of the inputs, without the batch axis, for a model
            that takes several.

    Raises:
        ValueError: naming the layer and the reason, if the model has a layer
            that cannot be quantized, or an argument names no layer; or if the
            model's input is not as above.
    """
    if isinstance(float_layers, str) and float_layers != UNKNOWN:
        raise ValueError(
            "`float_layers` must be several names, such as a list of one, or "
            f'"unknown". Received: {float_layers!r}'
        )
    if not isinstance(float_layers, (str, Iterable)):
        raise ValueError(
            '`float_layers` must be names of layers, or "unknown". '
            f"Received: {float_layers!r}"
        )
    if not isinstance(weight_bits, Mapping | None):
        raise ValueError(
            "`weight_bits` must be a dict of 4 or 8 by name of the layer. "
            f"Received: {weight_bits!r}"
        )
    if not isinstance(per_channel, bool | Mapping):
        raise ValueError(
            "`per_channel` must be True, False or a dict of these by name of "
            f"the layer. Received: {per_channel!r}"
        )
    if not isinstance(float_layers, str):
        float_layers = tuple(float_layers)
    lowered = lower(model, input_shapes, float_layers)
    if isinstance(float_layers, str):
        float_layers = ()
    if isinstance(per_channel, bool):
        default, per_channel = per_channel, {}
    else:
        default = True
    weight_bits = weight_bits or {}
    _check_names(lowered.steps, tuple(float_layers), weight_bits, per_channel)
    untrained = {
        name
        for name, layer in lowered.layers.items()
        if not getattr(layer, "trainable", True)
    }
    steps = [
        _with_settings(
            step, set(float_layers), weight_bits, per_channel, default
        )._replace(
            trainable=step.trainable and not untrained & set(step.sources[:1])
        )
        for step in lowered.steps
    ]
    steps = [_with_bias_of(step, lowered.layers) for step in steps]
    steps, lost = add_penalties(steps, lowered.layers)
    steps, outputs = _with_barriers(steps, lowered.outputs)
    steps = _untied(steps, outputs)
    moving = _MOVING if share_ranges else tuple({*_MOVING} - {"Concatenate"})
    steps, outputs = _with_limits(steps, outputs, moving)
    folded = _folded(steps, outputs)
    group = _groups(steps, [joins(step, moving) for step in steps])
    passing = _passing(steps, outputs, moving)
    ranges: list[list[str]] = []
    fixed: list[Range | None] = []
    number_of: dict[int, int] = {}
    planned = []
    for k, step in enumerate(steps):
        if k in folded or k in passing:
            planned.append(step)
            continue
        root = group[k + 1]
        if root not in number_of:
            number_of[root] = len(ranges)
            ranges.append([])
            fixed.append(_known_range(step))
        number = number_of[root]
        if fixed[number] != _known_range(step):
            # The converter requantizes to the joint range.
            fixed[number] = None
        ranges[number].append(step.name)
        planned.append(step._replace(range=number))
    return Plan(
        lowered.input_shapes,
        tuple(planned),
        outputs,
        tuple(map(tuple, ranges)),
        tuple(fixed),
        read_ends(
            model,
            lowered.graph,
            {
                k
                for k, number in enumerate(lowered.outputs)
                if lowered.steps[number - 1].kind == FOREIGN
            },
        ),
        tuple(lost),
        _constants(model, planned, lowered.layers),
    )


def _with_bias_of(step: Step, layers: Mapping[str, Any]) -> Step:
    """The step, which trains no bias whose home in the model is not trained."""
    if step.kind not in KERNELS or not step.trainable:
        return step
    return step._replace(trains_bias=home_of_bias(step, layers).trainable)


def _constants(
    model: keras.Model, steps: Sequence[Step], layers: Mapping[str, Any]
) -> tuple[str, ...]:
    """Paths of weights of the model that no step trains."""
    trained: set[int] = set()
    for step in steps:
        names: Sequence[str] = ()
        if step.kind == FOREIGN or (step.kind in KERNELS and step.trainable):
            names = step.sources[:1] if not step.trains_bias else step.sources
        for name in names:
            layer = layers.get(name)
            activation = getattr(layer, "activation", None)
            inner = {id(v) for v in getattr(activation, "weights", ())}
            trained.update(
                id(v)
                for v in getattr(layer, "weights", ())
                if id(v) not in inner
            )
    return tuple(
        v.path for v in model.trainable_weights if id(v) not in trained
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
    elif step.kind == "Cut" and quantized:
        settings.update(low=None, high=None)
    if step.kind in _OF_IMAGES:  # whatever is set for all of Keras
        settings["data_format"] = "channels_last"
    return settings


def assemble(
    plan: Plan, inputs: Sequence[Any], call: Callable[[Step, Any], Any]
) -> list[Any]:
    """Builds a plan with the layers of an engine.

    Args:
        plan: the plan.
        inputs: the model's inputs.
        call: makes a step's layer and calls it on a tensor or several.

    Returns:
        All tensors by their number.
    """
    # Constants read the first input, for the size of the batch.
    tensors = [inputs[0]]
    for step in plan.steps:
        read = [tensors[number] for number in step.inputs]
        if step.kind == "Input":
            read = [inputs[step.settings["index"]]]
            step = step._replace(kind="Identity", settings={})
        tensors.append(call(step, read if len(read) > 1 else read[0]))
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
    if step.kind == FOREIGN:
        return step._replace(bits=0)
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


def _with_barriers(
    steps: Sequence[Step], outputs: tuple[int, ...]
) -> tuple[list[Step], tuple[int, ...]]:
    """Puts barriers around float layers."""
    between = _between_floats(steps, outputs)
    new = Rewriting()
    for step in steps:
        inputs = []
        for k, x in enumerate(step.inputs):
            number = new.number[x]
            if not step.bits and x and x not in between:
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
        k = step.inputs[0] - 1
        if k < 0 or readers[k + 1] != 1:
            continue
        before = steps[k]
        if step.kind == "ReLU":
            # The converter fails to fold one into this without a bias.
            bare = before.kind == "Conv2DTranspose" and len(before.weights) == 1
            if before.kind in _RELU_FOLDS_INTO and not bare:
                folded.add(k)
        elif step.kind == "Cut" and before.bits:
            own = before.kind == "Input" or _known_range(before)
            if not own and not joins(before, _MOVING):
                folded.add(k)
    return folded


def joins(step: Step, moving: Sequence[str]) -> bool:
    """Whether a step's output must have the scale of its inputs.

    Args:
        step: the step.
        moving: the kinds that give values of their inputs alone.
    """
    if not step.bits:
        return False
    if step.kind == "Reduce":
        return step.settings["function"] in ("max", "min")
    if step.kind == "Function":
        return step.settings["function"] in _WIDENING_FUNCTIONS
    return step.kind in moving or step.kind in _WIDENING


def _passing(
    steps: Sequence[Step], outputs: Sequence[int], moving: Sequence[str]
) -> set[int]:
    """Indices of the steps whose outputs need no range of their own."""
    between = _between_floats(steps, outputs)
    return {
        k
        for k, step in enumerate(steps)
        if step.kind == FLOAT_BARRIER
        or k + 1 in between
        or (joins(step, moving) and step.kind not in _WIDENING)
    }


def _known_range(step: Step) -> Range | None:
    """The limits that LiteRT's operation, or its meaning, prescribes."""
    if _is_relu_1(step):
        return 0.0, 1.0
    if step.kind == "Function":
        return {
            "l2_normalize": (-1.0, 127 / 128),
            "log_softmax": (-255 / 16, 0.0),
            "softmax": (0.0, 255 / 256),
        }.get(step.settings["function"])
    activation = step.settings.get("activation")
    if activation is None:
        return None
    return (-1.0, 127 / 128) if activation == "tanh" else (0.0, 255 / 256)


def _with_limits(
    given: Sequence[Step], outputs: tuple[int, ...], moving: Sequence[str]
) -> tuple[list[Step], tuple[int, ...]]:
    """Makes operations of the limits that no range can cut off at.

    A range does where its step folds into the one before and shares it with
    none that has another.
    """
    steps = list(given)
    while True:
        folded = _folded(steps, outputs)
        passing = _passing(steps, outputs, moving)
        group = _groups(steps, [joins(step, moving) for step in steps])
        cutting: dict[int, set[Any]] = {}
        for k, step in enumerate(steps):
            if k not in folded and k not in passing:
                own = step.name if step.kind == "Cut" else _known_range(step)
                cutting.setdefault(group[k + 1], set()).add(own)
        for k, step in enumerate(steps):
            mixed = len(cutting.get(group[k + 1], ())) > 1
            alone = step.inputs[0] - 1 not in folded
            if step.kind == "Cut" and (mixed or alone):
                steps[k] = step._replace(kind="Bound")
                break
            if _is_relu_1(step) and mixed:
                steps, outputs = _with_bound(steps, outputs, k)
                break
        else:
            return steps, outputs


def _is_relu_1(step: Step) -> bool:
    return step.kind == "ReLU" and step.settings["max_value"] == 1


def _with_bound(
    steps: Sequence[Step], outputs: tuple[int, ...], k: int
) -> tuple[list[Step], tuple[int, ...]]:
    """Puts the limit of the ReLU at index k into a step of its own."""
    new = Rewriting()
    for number, step in enumerate(steps):
        inputs = tuple(new.number[x] for x in step.inputs)
        step = step._replace(inputs=inputs)
        if number != k:
            new.number.append(new.add(step))
            continue
        name = f"{step.name}_below"
        x = new.add(
            step._replace(
                name=name, layer_name=name, settings={"max_value": None}
            )
        )
        limits = {"low": None, "high": 1.0}
        bound = step._replace(kind="Bound", inputs=(x,), settings=limits)
        new.number.append(new.add(bound))
    return new.steps, tuple(new.number[x] for x in outputs)


def _groups(steps: Sequence[Step], joining: Sequence[bool]) -> list[int]:
    """For each tensor a number that those joined with it have too."""
    parent = list(range(len(steps) + 1))

    def root(tensor: int) -> int:
        while parent[tensor] != tensor:
            tensor = parent[tensor]
        return tensor

    first_call: dict[str, int] = {}
    for k, step in enumerate(steps):
        joined = list(step.inputs) if joining[k] else []
        if step.kind in KERNELS:
            joined.append(first_call.setdefault(step.layer_name, k + 1))
        for tensor in joined:
            parent[root(tensor)] = root(k + 1)
    return [root(tensor) for tensor in range(len(parent))]


def _untied(steps: Sequence[Step], outputs: Sequence[int]) -> list[Step]:
    """Gives the calls of a layer weights of their own where they differ.

    As where each has a batch normalization of its own behind it. They do not
    learn: what each learned would have one place in the Keras model.
    """
    folded = _folded(steps, outputs)
    first: dict[str, tuple[Step, bool]] = {}
    differing = set()
    for k, step in enumerate(steps):
        if step.kind not in KERNELS:
            continue
        other, was_folded = first.setdefault(
            step.layer_name, (step, k in folded)
        )
        if not (
            other.settings == step.settings
            and was_folded == (k in folded)
            and len(step.weights) == len(other.weights)
            and all(map(np.array_equal, step.weights, other.weights))
        ):
            differing.add(step.layer_name)
    return [
        step._replace(layer_name=step.name, trainable=False)
        if step.layer_name in differing and step.kind in KERNELS
        else step
        for step in steps
    ]
