"""Stages for a budget: from multiply-adds and parameters to widths."""

import itertools
import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_muffnet._arguments import positive_integer
from keras_muffnet.federation import PATTERNS
from keras_muffnet.presets import PAPER_LAYERS
from keras_muffnet.presets import PAPER_NOTATION
from keras_muffnet.presets import PRESETS
from keras_muffnet.presets import Counts
from keras_muffnet.presets import StageSpec
from keras_muffnet.presets import closed_form_counts
from keras_muffnet.presets import closed_form_parts
from keras_muffnet.presets import stem_for_size
from keras_muffnet.presets import unrounded_widths

# How far from a budget the counts of its stages may be.
TOLERANCE = 0.01
# Widths tried around those of a continuous solution, on either side: of all
# stages at once if they are as few as this, and else of two at a time.
_RADIUS = 3
_AT_ONCE = 3
# Counts as near as this are as good as equal: the shape then decides.
_NEAR = 0.001
# How many times wider the last stage may become, relative to the first.
_TILT = 1e4

Widths = tuple[int, ...]
Limits = tuple[float, float]


def stages_for_budget(
    sharing: str | Sequence[str] = PAPER_NOTATION,
    macs: float | None = None,
    parameters: float | None = None,
    size: int = 224,
    stem: str = "auto",
    channels: int = 3,
    classes: int = 1000,
    layers: Sequence[int] = PAPER_LAYERS,
) -> tuple[StageSpec, ...]:
    """Finds the widths at which a network has the cost that is asked for.

    The widths are in proportion as those of the paper's networks. Where both
    counts are given, later stages become wider than that for more parameters,
    and narrower for fewer: a channel costs more multiply-adds in large feature
    maps, and as many parameters in all.

    ```python
    from keras_muffnet import MuffNet, stages_for_budget

    stages = stages_for_budget("linear+geometric+none", macs=60e6)
    model = MuffNet(stages=stages)
    ```

    Args:
        sharing: sharing patterns, low-level stage first: joined by "+" as in
            the paper's tables 1-4, or a sequence of them.
        macs: multiply-adds an image, such as 42e6; None for any number.
        parameters: trainable parameters; None for any number.
        size: height and width of the input image in pixels.
        stem: as `MuffNet` takes it.
        channels: channels of the input image.
        classes: units of the classifier.
        layers: L of each stage, section 3.1.

    Returns:
        A `StageSpec` for each pattern. The counts of the network, classifier
        included, are within 1% of those asked for.

    Raises:
        ValueError: if an argument is not as above, or no network is within 1%
            of the budget; it then says what is reachable.
    """
    patterns = _check_patterns(sharing)
    layers = _check_layers(layers, len(patterns))
    targets = _check_targets(macs, parameters)
    size = positive_integer("size", size)
    stem = stem_for_size(stem, size)
    channels = positive_integer("channels", channels)
    classes = positive_integer("classes", classes)

    def stages(widths: Widths) -> tuple[StageSpec, ...]:
        specs = zip(patterns, layers, widths, strict=True)
        return tuple(StageSpec(*spec) for spec in specs)

    def counts(widths: Widths) -> Counts:
        return closed_form_counts(stages(widths), size, stem, channels, classes)

    _check_least(targets, counts(layers))
    if len(targets) == 1:
        shape = _scaled(counts, targets, layers, tilt=1.0)
    else:
        shape = _tilted(counts, targets, layers)
    return stages(_nearest(counts, targets, layers, shape))


def stages_of_equal_cost(
    sharing: str | Sequence[str],
    reference: Sequence[StageSpec],
    size: int = 224,
    stem: str = "imagenet",
    macs: Limits = (0, math.inf),
    parameters: Limits = (0, math.inf),
) -> tuple[StageSpec, ...]:
    """Gives other sharing patterns, stage by stage at a reference's cost.

    So the paper compares patterns (section 5.2): the multiply-adds of each
    stage stay the same: to within about half a channel's worth of its width.
    The 1x1 convolution behind the last stage counts as part of that stage,
    whose size it has. It depends on that stage's width, and only so do the
    networks in tables 1-4 have the same cost as a whole.

    Args:
        sharing: sharing patterns, as in `stages_for_budget`.
        reference: the stages whose cost and numbers of layers are to be met.
        size: height and width of the input image in pixels.
        stem: a key of `presets.STEMS`.
        macs: least and most multiply-adds of the whole network, for 3 channels
            and 1,000 classes.
        parameters: least and most parameters of it.

    Returns:
        A `StageSpec` for each of the reference: of those within the limits the
        ones that differ least by stage, in the sum of squared relative
        differences.

    Raises:
        ValueError: if the patterns are unknown or not as many as the stages of
            `reference`, or if no such widths are within the limits.
    """
    patterns = _check_patterns(sharing)
    layers = _check_layers(
        [stage.matrix.layers for stage in reference], len(patterns)
    )
    wanted = stage_macs(reference, size, stem)

    def candidates(
        before: tuple[StageSpec, ...],
    ) -> Iterator[tuple[StageSpec, ...]]:
        number = len(before)
        if number == len(wanted):
            yield before
            return

        def extended(width: int) -> tuple[StageSpec, ...]:
            spec = StageSpec(patterns[number], layers[number], width)
            return (*before, spec)

        def enough(width: int) -> bool:
            spent = _stage_macs(extended(width), size, stem, len(wanted))
            return spent[number] >= wanted[number]

        width = _first(enough, layers[number])
        for near in range(max(layers[number], width - 2), width + 2):
            yield from candidates(extended(near))

    def differences(stages: Sequence[StageSpec]) -> list[float]:
        spent = stage_macs(stages, size, stem)
        return [s / w - 1 for s, w in zip(spent, wanted, strict=True)]

    within = []
    for stages in candidates(()):
        total = closed_form_counts(stages, size, stem)
        if (
            macs[0] <= total.macs <= macs[1]
            and parameters[0] <= total.parameters <= parameters[1]
        ):
            within.append(stages)
    if not within:
        raise ValueError(
            "`macs` and `parameters` must be limits that stages at the "
            f"reference's cost can meet. Received: sharing={sharing!r}, "
            f"macs={macs}, parameters={parameters}"
        )
    return min(within, key=lambda s: sum(d * d for d in differences(s)))


def stage_macs(
    stages: Sequence[StageSpec], size: int = 224, stem: str = "imagenet"
) -> list[int]:
    """Multiply-adds of each stage; those of the head are the last one's.

    Args:
        stages: the network's stages.
        size: height and width of the input image in pixels.
        stem: a key of `presets.STEMS`.
    """
    return _stage_macs(stages, size, stem, len(stages))


def _stage_macs(
    stages: Sequence[StageSpec], size: int, stem: str, total: int
) -> list[int]:
    """The same of the first stages of a network that has `total`."""
    _, *parts, head, _ = closed_form_parts(stages, size, stem)
    spent = [part.macs for part in parts]
    if len(stages) == total:
        spent[-1] += head.macs
    return spent


def _first(enough: Callable[[int], bool], start: int) -> int:
    """The first integer from `start` on, by doubling and bisection."""
    low, high = start - 1, start
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _widths(scale: float, tilt: float, layers: Widths) -> Widths:
    # The paper's three widths, at as many places as there are stages.
    at = np.linspace(0, 1, len(layers))
    published = {alpha: preset.widths for alpha, preset in PRESETS.items()}
    three = unrounded_widths(scale, published)
    shape = np.interp(2 * at, range(3), three) * tilt**at
    return tuple(
        max(least, round(float(width)))
        for least, width in zip(layers, shape, strict=True)
    )


def _scaled(
    counts: Callable[[Widths], Counts],
    targets: dict[str, float],
    layers: Widths,
    tilt: float,
) -> Widths:
    """Least widths of a shape that reach the first target, or nearly."""
    name, target = next(iter(targets.items()))

    def enough(scale: float) -> bool:
        return getattr(counts(_widths(scale, tilt, layers)), name) >= target

    low, high = 1e-8, 1e-2
    while not enough(high):
        high *= 2
    return _widths(_bisected(enough, low, high), tilt, layers)


def _tilted(
    counts: Callable[[Widths], Counts],
    targets: dict[str, float],
    layers: Widths,
) -> Widths:
    """Widths with the multiply-adds and, by their shape, the parameters."""

    def shape(tilt: float) -> Widths:
        return _scaled(counts, targets, layers, tilt)

    reachable = [counts(shape(t)).parameters for t in (1 / _TILT, _TILT)]
    target = targets["parameters"]
    low, high = min(reachable), max(reachable)
    if not low * (1 - TOLERANCE) <= target <= high * (1 + TOLERANCE):
        raise ValueError(
            f"`parameters` must lie between {low:,} and {high:,}, which are "
            f"reachable with {targets['macs']:,.0f} multiply-adds. "
            f"Received: parameters={target:,.0f}"
        )

    def enough(tilt: float) -> bool:
        return counts(shape(tilt)).parameters >= target

    return shape(_bisected(enough, 1 / _TILT, _TILT))


def _bisected(
    enough: Callable[[float], bool], low: float, high: float
) -> float:
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _nearest(
    counts: Callable[[Widths], Counts],
    targets: dict[str, float],
    layers: Widths,
    shape: Widths,
) -> Widths:
    """Of the widths around a shape those whose counts are nearest."""

    def error(widths: Widths) -> float:
        found = counts(widths)
        return max(abs(getattr(found, n) / t - 1) for n, t in targets.items())

    def rank(widths: Widths) -> tuple[float, int]:
        moved = sum(abs(a - b) for a, b in zip(widths, shape, strict=True))
        return max(error(widths), _NEAR), moved

    if error(shape) <= _NEAR:
        return shape
    best = min(_around(shape, layers), key=rank)
    if error(best) > TOLERANCE:
        found = counts(best)
        raise ValueError(
            f"{_names(targets)} must be within 1% of what some widths give. "
            f"The nearest are {'+'.join(map(str, best))} channels, with "
            f"{found.macs:,} multiply-adds and {found.parameters:,} "
            f"parameters. Received: {_received(targets)}"
        )
    return best


def _around(shape: Widths, layers: Widths) -> Iterator[Widths]:
    """The widths around a shape, none less than its stage's layers."""
    stages = range(len(shape))
    moving = len(shape) if len(shape) <= _AT_ONCE else 2
    near = [
        range(max(least, width - _RADIUS), width + _RADIUS + 1)
        for least, width in zip(layers, shape, strict=True)
    ]
    for moved in itertools.combinations(stages, moving):
        yield from itertools.product(
            *(near[k] if k in moved else [shape[k]] for k in stages)
        )


def _check_least(targets: dict[str, float], least: Counts) -> None:
    for name, target in targets.items():
        reachable = getattr(least, name)
        if target * (1 + TOLERANCE) < reachable:
            raise ValueError(
                f"`{name}` must be at least {reachable:,}, those of the "
                "narrowest network with such stages, input and classes. "
                f"Received: {name}={target:,.0f}"
            )


def _check_patterns(sharing: Any) -> tuple[str, ...]:
    patterns = sharing.split("+") if isinstance(sharing, str) else sharing
    if (
        not isinstance(patterns, Sequence)
        or not patterns
        or not all(isinstance(p, str) and p in PATTERNS for p in patterns)
    ):
        raise ValueError(
            "`sharing` must name a sharing pattern for each stage, joined by "
            f"'+' or as a sequence, each one of {', '.join(PATTERNS)}. "
            f"Received: sharing={sharing!r}"
        )
    return tuple(patterns)


def _check_layers(layers: Any, stages: int) -> Widths:
    if not isinstance(layers, Sequence) or len(layers) != stages:
        raise ValueError(
            f"`layers` must be a number of layers for each of {stages} "
            f"stages. Received: layers={layers!r}"
        )
    return tuple(positive_integer("layers", number) for number in layers)


def _check_targets(macs: Any, parameters: Any) -> dict[str, float]:
    given = {"macs": macs, "parameters": parameters}
    targets = {name: t for name, t in given.items() if t is not None}
    if not targets:
        raise ValueError(
            "`macs`, `parameters` or both must be given. "
            "Received: macs=None, parameters=None"
        )
    for name, target in targets.items():
        if (
            isinstance(target, bool)
            or not isinstance(target, (int, float, np.integer, np.floating))
            or not 0 < target <= 1e18
        ):
            raise ValueError(
                f"`{name}` must be a positive number, up to 1e18. "
                f"Received: {name}={target!r}"
            )
    return {name: float(target) for name, target in targets.items()}


def _names(targets: dict[str, float]) -> str:
    return " and ".join(f"`{name}`" for name in targets)


def _received(targets: dict[str, float]) -> str:
    return ", ".join(
        f"{name}={target:,.0f}" for name, target in targets.items()
    )
