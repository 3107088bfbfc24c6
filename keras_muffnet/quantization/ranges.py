"""Limits of a plan's ranges, from what was found for its single outputs."""

import math
import warnings
from collections.abc import Mapping

import numpy as np

from keras_muffnet.quantization.plan import Plan
from keras_muffnet.quantization.plan import Range
from keras_muffnet.quantization.plan import joins
from keras_muffnet.quantization.steps import INPUT_RANGE
from keras_muffnet.quantization.steps import KERNELS
from keras_muffnet.quantization.steps import Step
from keras_muffnet.quantization.steps import count_readers

# The least limit of a channel's weights: a scale must not be zero, nor so small
# that the bias, in steps of this scale times the input's, exceeds 32 bits.
LEAST_WEIGHT = 1e-6
LEAST_TO_BIAS = 1e-3

# The greatest bias in such steps. That of 32 bits is 2^31; training may double
# a bias.
_GREATEST_BIAS = 2.0**30

# Settings of steps that are numbers in their output's scale.
_CONSTANTS = {"Bound": ("low", "high"), "PadWith": ("value",)}

# Where an output is closer to zero than this, it is taken for zero: float32
# holds no product of such a scale and a weight's.
_LEAST_WIDTH = 1e-20

# What is this much narrower than a range it shares has 2 of its 256 levels.
# Networks of random weights have outputs 50 times narrower than others.
_MUCH_NARROWER = 128


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
        interpreter would not run. A range too narrow for the bias of the
        layer behind it is widened, and so is one in which a constant would be
        rounded that many values are compared with. A warning names layers to
        which a range that they share leaves few levels.

    Raises:
        ValueError: naming the first step, if an output was not finite.
    """
    for name, limits in found.items():
        if not np.isfinite(limits).all():
            raise ValueError(
                "`model` must give finite numbers on the calibration data. "
                f"Layer {name!r} gives values in {limits}"
            )
    found = _cut_off(plan, {**found, INPUT_RANGE: input_range})
    _warn_of_unlike(plan, found)
    ranges = []
    for names, fixed in zip(plan.ranges, plan.fixed, strict=True):
        needed = [found[name] for name in names]
        low = min([0.0, *(low for low, _ in needed)])
        high = max([0.0, *(high for _, high in needed)])
        if high - low < _LEAST_WIDTH:
            low, high = 0.0, 1.0
        ranges.append(fixed or (low, high))
    return _without_overflow(plan, _with_constants(plan, ranges))


def _warn_of_unlike(plan: Plan, found: Mapping[str, Range]) -> None:
    """Names what is joined with values so great that little is left of it."""
    steps = {step.name: step for step in plan.steps}
    labels = {
        step.name: f"input {plan.ends.input_names[step.settings['index']]!r}"
        for step in plan.steps
        if step.kind == "Input"
    }
    said = []
    for names in plan.ranges:
        widths = {
            labels.get(name, repr(name)): max(high, 0.0) - min(low, 0.0)
            for name in names
            for low, high in [found[name]]
            if not joins(steps[name], ())
        }
        if not widths:
            continue
        widest = max(widths, key=lambda name: widths[name])
        for name, width in widths.items():
            if _LEAST_WIDTH < width < widths[widest] / _MUCH_NARROWER:
                share = widths[widest] / width
                said.append(f"{name} ({share:.0f} times less than {widest})")
    if said:
        warnings.warn(
            "These layers are joined with others of much greater values, so "
            "that their integers have hardly any levels: "
            f"{', '.join(said)}. Scale the model's inputs, or the layers, so "
            "that they are alike",
            stacklevel=5,
        )


def _cut_off(plan: Plan, found: Mapping[str, Range]) -> dict[str, Range]:
    """Leaves out of ranges what only a minimum or a maximum reads."""
    needed = dict(found)
    readers = count_readers(plan.steps, plan.outputs)
    for step in plan.steps:
        number = step.inputs[0]
        before = plan.steps[number - 1]
        if step.kind != "Bound" or readers[number] > 1:
            continue
        if before.range is None or before.kind == "Input":
            continue
        lowest, highest = step.settings["low"], step.settings["high"]
        low, high = needed[before.name]
        if lowest is not None:
            low, high = max(low, lowest), max(high, lowest)
        if highest is not None:
            low, high = min(low, highest), min(high, highest)
        needed[before.name] = low, high
    return needed


def _with_constants(plan: Plan, ranges: list[Range]) -> list[Range]:
    """Widens ranges until a constant lies where it does no harm.

    All values that a maximum replaces by a constant have the same error if the
    constant is not on a level. Where a function jumps, values near the jump
    would be rounded across it, unless it is halfway between two levels.
    """
    widened = list(ranges)
    for number, names in enumerate(plan.ranges):
        if plan.fixed[number] is not None or INPUT_RANGE in names:
            continue
        jumps = [
            (abs(s.settings["threshold"]), 0.5)
            for s in plan.steps
            if "threshold" in s.settings and range_read(plan, s) == number
        ]
        constants = [
            (abs(s.settings[key]), 0.0)
            for s in plan.steps
            if s.range == number
            for key in _CONSTANTS.get(s.kind, ())
            if s.settings[key]
        ]
        for constant, place in [*jumps, *constants][:1]:
            widened[number] = _widened(ranges[number], constant, place)
    return widened


def _widened(limits: Range, constant: float, place: float) -> Range:
    """The next wider range in which a constant is as far above a level.

    Args:
        limits: a range that holds zero.
        constant: a positive number.
        place: how far it is to be above a level, as a share of the scale.
    """
    low, high = limits
    scale = (high - low) / 255
    # What was widened before is not to be widened again.
    levels = math.floor(constant / scale - place + 1e-3) + place
    if not 0 < levels < 255:
        return limits
    scale = max(scale, constant / levels)
    low = round(low / scale) * scale
    return low, low + 255 * scale


def _without_overflow(plan: Plan, ranges: list[Range]) -> list[Range]:
    """Widens ranges until the biases of what reads them fit in 32 bits.

    A bias is written in steps of the input's scale times the kernel's. What
    such an input adds to a bias that does not fit is below the output's
    precision, so that nothing is lost by the greater scale.
    """
    widened = list(ranges)
    for step in plan.steps:
        if step.kind not in KERNELS or len(step.weights) < 2 or not step.bits:
            continue
        number = range_read(plan, step)
        if number is None or plan.fixed[number] is not None:
            continue
        low, high = widened[number]
        least = _least_scale(step) * 255
        if high - low < least:
            factor = least / (high - low)
            widened[number] = (low * factor, high * factor)
    return widened


def range_read(plan: Plan, step: Step) -> int | None:
    """Number of the range of a step's input, however it was moved since."""
    number = step.inputs[0]
    while number:
        before = plan.steps[number - 1]
        if before.range is not None:
            return before.range
        number = before.inputs[0]
    return None


def _least_scale(step: Step) -> float:
    """The least scale of a step's input with which its bias can be written."""
    kernel, bias = (np.abs(w).astype(np.float64) for w in step.weights)
    if not bias.any():
        return 0.0
    limit = np.full(len(bias), kernel.max())
    if step.per_channel and step.kind != "Conv2DTranspose":
        limit = kernel.reshape(-1, len(bias)).max(axis=0)
    limit = np.maximum(limit, np.maximum(bias * LEAST_TO_BIAS, LEAST_WEIGHT))
    if not step.per_channel:
        limit[:] = limit.max()
    levels = 2 ** (step.bits - 1) - 1
    return float((bias / (limit / levels)).max() / _GREATEST_BIAS)
