"""What calibration data say: limits of activations, and errors of biases."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

import keras
import numpy as np

from keras_muffnet.quantization import keras_engine
from keras_muffnet.quantization.plan import Plan
from keras_muffnet.quantization.plan import Range
from keras_muffnet.quantization.ranges import LEAST_TO_BIAS
from keras_muffnet.quantization.ranges import LEAST_WEIGHT
from keras_muffnet.quantization.ranges import range_read
from keras_muffnet.quantization.steps import INPUT_RANGE
from keras_muffnet.quantization.steps import KERNELS
from keras_muffnet.quantization.steps import Step

Estimator = Literal["min-max", "percentile", "mse"]

_BINS = 2048
# Of each tensor and example; more change no limit.
_SAMPLED = 20_000
_BATCH = 8
# The limits tried, as shares of the greatest that was found.
_SHARES = np.linspace(0.3, 1.0, 71)
# The share of values that "percentile" cuts off at either end.
_CUT_OFF = 1e-5


class Observed(NamedTuple):
    """What the float model does on the calibration data.

    Attributes:
        limits: for each step with a range what its output needs, each batch of
            about 100 examples alone, in the mean.
        histograms: for each of them how often its output lies in each of equal
            parts between its lowest and its highest value, and these two; then
            the same of each maximum or minimum among its values.
        means: for each step with a kernel the mean of its inputs over the
            examples, as one example.
    """

    limits: dict[str, Range]
    histograms: dict[str, list[tuple[np.ndarray, float, float]]]
    means: dict[str, np.ndarray]


def observe(plan: Plan, arrays: Sequence[np.ndarray]) -> Observed:
    """Runs the float model of a plan twice.

    First for the lowest and highest values, then for what lies between them.

    Args:
        plan: the plan.
        arrays: for each input the examples.
    """
    ranged = {
        k: step.name
        for k, step in enumerate(plan.steps, start=1)
        if step.range is not None and step.name != INPUT_RANGE
    }
    counted = ranged | _chosen(plan)
    kernels = {
        step.name: step.inputs[0] for step in plan.steps if step.kind in KERNELS
    }
    watched = tuple(dict.fromkeys((*counted, *kernels.values())))
    if not watched:
        return Observed({}, {}, {})
    model = keras_engine.build(plan._replace(outputs=watched))
    found: dict[int, list[np.ndarray]] = {k: [] for k in counted}
    sizes = {}
    sums: dict[int, Any] = dict.fromkeys(kernels.values(), 0.0)
    total = len(arrays[0])
    for values in _batches(model, watched, arrays):
        for k, x in values.items():
            if k in sums:
                sums[k] = sums[k] + x.sum(axis=0, keepdims=True) / total
            if k in found:
                flat = x.reshape(len(x), -1)
                found[k].append(np.stack([flat.min(1), flat.max(1)], axis=-1))
                sizes[k] = flat.shape[1]
    extremes = {k: np.concatenate(x) for k, x in found.items()}
    limits = keras_engine.mean_limits(
        {
            name: keras_engine.Extremes(extremes[k], sizes[k])
            for k, name in ranged.items()
        }
    )
    bounded = {
        k: (float(x[:, 0].min()), float(x[:, 1].max()))
        for k, x in extremes.items()
    }
    counts = {k: np.zeros(_BINS) for k in bounded}
    for values in _batches(model, watched, arrays):
        for k, (low, high) in bounded.items():
            x = values[k]
            # An odd stride, so that all channels have their turn.
            stride = max(1, x.size // (len(x) * _SAMPLED)) | 1
            if low < high < np.inf:
                # In float32 numpy finds no bins of a narrow range.
                sampled = x.reshape(-1)[::stride].astype(np.float64)
                counts[k] += np.histogram(sampled, _BINS, (low, high))[0]
    histograms: dict[str, list[tuple[np.ndarray, float, float]]] = {}
    for k, name in counted.items():
        histograms.setdefault(name, []).append((counts[k], *bounded[k]))
    return Observed(
        limits, histograms, {name: sums[k] for name, k in kernels.items()}
    )


def _chosen(plan: Plan) -> dict[int, str]:
    """Maxima and minima by number, with a step that has the same range.

    Values that are rare among all, and cut off at little cost, may be all that
    these give.
    """
    chosen = {}
    for k, step in enumerate(plan.steps, start=1):
        if step.bits and (
            step.kind in ("GlobalMaxPooling2D", "MaxPooling2D")
            or step.settings.get("function") in ("max", "min")
        ):
            number = range_read(plan, step)
            names = plan.ranges[number] if number is not None else ()
            if names and INPUT_RANGE not in names:
                chosen[k] = names[0]
    return chosen


def _batches(
    model: keras.Model, watched: Sequence[int], arrays: Sequence[np.ndarray]
) -> Iterator[dict[int, np.ndarray]]:
    """A model's outputs by number, some examples at a time."""
    for start in range(0, len(arrays[0]), _BATCH):
        batch = [x[start : start + _BATCH] for x in arrays]
        values = model.predict_on_batch(batch if len(batch) > 1 else batch[0])
        several = isinstance(values, (list, tuple))
        yield dict(zip(watched, values if several else [values], strict=True))


def estimate(observed: Observed, estimator: Estimator) -> dict[str, Range]:
    """What each step's output needs, by one of three rules.

    Args:
        observed: what the float model does.
        estimator: "min-max" covers nearly all values; "percentile" leaves out
            the 1e-5 lowest and highest; "mse" has the least mean squared error
            of all values, of those cut off and those rounded. The latter two
            take the wider limits of an output and of the maxima among it.
    """
    if estimator == "min-max":
        return observed.limits
    rule = _percentile if estimator == "percentile" else _least_error
    found = {}
    for name, histograms in observed.histograms.items():
        lows, highs = zip(*(rule(*x) for x in histograms), strict=True)
        found[name] = min(lows), max(highs)
    return found


def _percentile(counts: np.ndarray, low: float, high: float) -> Range:
    total = counts.sum()
    if not (np.isfinite([low, high]).all() and total):
        return low, high
    below = np.cumsum(counts) / total
    first = int(np.searchsorted(below, _CUT_OFF))
    last = int(np.searchsorted(below, 1 - _CUT_OFF)) + 1
    edges = np.linspace(low, high, _BINS + 1)
    return float(min(edges[first], 0.0)), float(max(edges[last], 0.0))


def _least_error(counts: np.ndarray, low: float, high: float) -> Range:
    if not (np.isfinite([low, high]).all() and low < high and counts.any()):
        return min(low, 0.0), max(high, 0.0)
    centers = low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS
    low, high = min(low, 0.0), max(high, 0.0)
    lows, highs = low * _SHARES[:, None], high * _SHARES[:, None]
    scale = (highs - lows) / 255
    cut = np.clip(centers, lows, highs)
    rounded = lows + np.round((cut - lows) / scale) * scale
    errors = (np.square(rounded - centers) * counts).sum(axis=1)
    share = _SHARES[int(errors.argmin())]
    return float(low * share), float(high * share)


def correct_biases(plan: Plan, means: Mapping[str, np.ndarray]) -> Plan:
    """Takes out of the biases what rounded kernels add to them.

    A rounded kernel differs from the kernel by little, but for inputs whose
    mean is not zero the sum of these differences is a shift of the output.

    Args:
        plan: the plan.
        means: see `Observed`.

    Returns:
        The plan with other biases; steps without one have one then.
    """
    shifts: dict[str, list[np.ndarray]] = {}
    for step in plan.steps:
        if step.kind in KERNELS and step.bits:
            shift = _shift(step, means[step.name])
            shifts.setdefault(step.layer_name, []).append(shift)
    steps = []
    for step in plan.steps:
        if step.kind in KERNELS and step.layer_name in shifts:
            kernel, *bias = step.weights
            shift = np.mean(shifts[step.layer_name], axis=0)
            corrected = (bias[0] if bias else 0.0) - shift
            step = step._replace(weights=(kernel, corrected.astype(np.float32)))
        steps.append(step)
    return plan._replace(steps=tuple(steps))


def _shift(step: Step, mean: np.ndarray) -> np.ndarray:
    """The mean of what the rounding of a kernel adds to each channel."""
    kernel, *bias = step.weights
    error = _rounded(step, kernel, bias) - kernel
    bare = step._replace(weights=(error,), layer_name="shift")
    layer = keras_engine.make_float_layer(bare)
    layer.build(mean.shape)
    layer.set_weights([error])
    shift = keras.ops.convert_to_numpy(layer(mean))
    return shift.reshape(-1, shift.shape[-1]).mean(axis=0)


def _rounded(
    step: Step, kernel: np.ndarray, bias: Sequence[np.ndarray]
) -> np.ndarray:
    """A kernel as `keras_engine.FakeQuantized` rounds it."""
    axes: tuple[int, ...] = tuple(range(kernel.ndim - 1))
    if step.kind == "DepthwiseConv2D":
        axes = (0, 1)
    elif step.kind == "Conv2DTranspose":
        axes = (0, 1, 3)
    limit = np.abs(kernel).max(axis=axes, keepdims=True)
    for b in bias:
        limit = np.maximum(
            limit, np.abs(b).reshape(limit.shape) * LEAST_TO_BIAS
        )
    limit = np.maximum(limit, LEAST_WEIGHT)
    if not step.per_channel or (step.kind == "Dense" and step.bits == 4):
        limit = limit.max()
    scale = limit / (2 ** (step.bits - 1) - 1)
    return np.round(kernel / scale) * scale
