"""Learning rates by step."""

from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import CosineDecay
from keras.optimizers.schedules import LearningRateSchedule


@keras.saving.register_keras_serializable("keras_muffnet")
class OneCycle(LearningRateSchedule):
    """A triangle: up to the peak in a straight line, and down to zero.

    "Super-Convergence" (Smith and Topin, 2018), without the cycle of the
    momentum.

    Args:
        peak: the highest learning rate.
        steps: steps of the whole, at whose end it is zero.
        warm_up_steps: steps up to the peak.
    """

    def __init__(self, peak: float, steps: int, warm_up_steps: int) -> None:
        self.peak = peak
        self.steps = steps
        self.warm_up_steps = warm_up_steps

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        down = (self.steps - step) / (self.steps - self.warm_up_steps)
        share = ops.clip(down, 0.0, 1.0)
        if self.warm_up_steps:
            share = ops.minimum(share, step / self.warm_up_steps)
        return self.peak * share

    def get_config(self) -> dict[str, Any]:
        """Returns what makes the same schedule."""
        return {
            "peak": self.peak,
            "steps": self.steps,
            "warm_up_steps": self.warm_up_steps,
        }


@keras.saving.register_keras_serializable("keras_muffnet")
class Steps(LearningRateSchedule):
    """A tenth after 2/3 of the steps, and a hundredth after 5/6.

    Of 240 epochs that is after 160 and 200, as GluonCV trains SSD.

    Args:
        peak: the highest learning rate.
        steps: steps of the whole.
        warm_up_steps: steps up to the peak, in a straight line.
    """

    def __init__(self, peak: float, steps: int, warm_up_steps: int) -> None:
        self.peak = peak
        self.steps = steps
        self.warm_up_steps = warm_up_steps

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        falls = sum(
            ops.cast(step >= round(self.steps * share), "float32")
            for share in (2 / 3, 5 / 6)
        )
        rate = self.peak * 0.1**falls
        if self.warm_up_steps:
            rate = rate * ops.minimum(1.0, step / self.warm_up_steps)
        return rate

    def get_config(self) -> dict[str, Any]:
        """Returns what makes the same schedule."""
        return {
            "peak": self.peak,
            "steps": self.steps,
            "warm_up_steps": self.warm_up_steps,
        }


def make_schedule(
    kind: str, peak: float, steps: int, warm_up_steps: int
) -> LearningRateSchedule:
    """Returns the learning rate by step.

    Args:
        kind: one of `recipe.SCHEDULES`: how it falls.
        peak: the highest learning rate.
        steps: steps of the whole, at whose end it is zero.
        warm_up_steps: steps in which it rises from zero, fewer than `steps`.
    """
    if kind == "one_cycle":
        return OneCycle(peak, steps, warm_up_steps)
    if kind == "steps":
        return Steps(peak, steps, warm_up_steps)
    if not warm_up_steps:
        return CosineDecay(peak, steps)
    return CosineDecay(
        0.0,
        steps - warm_up_steps,
        warmup_target=peak,
        warmup_steps=warm_up_steps,
    )
