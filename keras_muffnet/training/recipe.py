"""What a recipe says, and how the command line overrides it."""

import dataclasses
import importlib
import numbers
import pkgutil
import types
import typing
from typing import Any

SCHEDULES = ("cosine", "one_cycle")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
AUGMENTATIONS = ("plain", "cifar", "imagenet")
ON_BAD_IMAGE = ("raise", "skip")
DATA_FORMATS = ("channels_last", "channels_first")


def _setting(told: str, default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"help": told})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training run but its folder.

    Each setting is told where it stands; `python tools/train.py --help` prints
    the same. `dataclasses.replace` makes a recipe with other settings.

    Raises:
        ValueError: if a setting is not as told.
    """

    data: str | None = _setting(
        "images: see `keras_muffnet.data.open_source`",
        None,
    )
    size: int = _setting("height and width of an image in pixels")
    alpha: float = _setting("width multiplier of MuffNet", 1.0)
    stem: str = _setting("first layers: see MuffNet", "auto")
    weights: str | None = _setting(
        "weights to start from: a .keras file, whose classifier is left out "
        "if it has other classes; a .weights.h5 file of the same network; or "
        "the name of published ones",
        None,
    )
    freeze_epochs: int = _setting(
        "epochs in which only the classifier is trained", 0
    )
    unfreeze_from: str | None = _setting(
        "after those epochs, train from the first layer on whose name starts "
        "so, for instance 'stage3'; none trains all layers",
        None,
    )
    augmentation: str = _setting(
        "how training images are varied: one of " + ", ".join(AUGMENTATIONS),
        "plain",
    )
    rand_augment: float | None = _setting(
        "strength in [0, 1] of two random operations of RandAugment", None
    )
    erasing: float = _setting("chance that a rectangle is erased", 0.0)
    mixup: float = _setting("alpha of mixup; 0: none", 0.0)
    cutmix: float = _setting("alpha of cutmix; 0: none", 0.0)
    on_bad_image: str = _setting(
        "what to do with files that are no whole images: one of "
        + ", ".join(ON_BAD_IMAGE),
        "raise",
    )
    batch_size: int = _setting("images in a step")
    epochs: int = _setting("passes over the training images")
    learning_rate: float = _setting("the highest that the schedule reaches")
    unfrozen_learning_rate: float | None = _setting(
        "the same after freeze_epochs; none keeps learning_rate", None
    )
    schedule: str = _setting(
        "'cosine' falls to zero as half a cosine, 'one_cycle' in a straight "
        "line",
        "cosine",
    )
    warm_up_epochs: float = _setting(
        "epochs in which the learning rate rises from zero, in a straight line",
        0.0,
    )
    momentum: float = _setting("of stochastic gradient descent", 0.9)
    nesterov: bool = _setting("whether the momentum is Nesterov's", False)
    weight_decay: float = _setting("factor of the weights in the gradient", 0.0)
    decay_all: bool = _setting(
        "decay biases and batch normalisation too, not kernels alone", False
    )
    label_smoothing: float = _setting(
        "share of the label that is spread over all classes", 0.0
    )
    ema: float | None = _setting(
        "what a moving average of the weights keeps of itself in a step, such "
        "as 0.999; the averages are then evaluated and saved",
        None,
    )
    precision: str = _setting("one of " + ", ".join(PRECISIONS), "float32")
    data_format: str = _setting(
        "one of " + ", ".join(DATA_FORMATS), "channels_last"
    )
    jit_compile: bool | None = _setting(
        "whether XLA compiles the step; none lets Keras choose", None
    )
    steps_per_execution: int = _setting("steps that run as one call", 1)
    seed: int = _setting("of the weights and of the order of the data", 0)
    deterministic: bool = _setting(
        "the same weights to the last bit at each run, more slowly", False
    )
    checkpoint_steps: int | None = _setting(
        "steps between checkpoints within an epoch; none: at its end only", None
    )
    checkpoints_kept: int = _setting("how many of the last are kept", 2)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind, optional = setting_type(field.name)
            if value is None and optional:
                continue
            _check_type(field.name, value, kind)
            if field.name in _LIMITS:
                _check_limits(field.name, value)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(choices)}. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        if self.freeze_epochs > 0 and self.weights is None:
            raise ValueError(
                "`weights` must be given where `freeze_epochs` is not 0: "
                "random layers would be frozen. Received: weights=None, "
                f"freeze_epochs={self.freeze_epochs}"
            )
        if self.freeze_epochs >= self.epochs:
            raise ValueError(
                "`freeze_epochs` must be less than `epochs`, "
                f"{self.epochs}. Received: freeze_epochs={self.freeze_epochs}"
            )
        if self.warm_up_epochs >= self.epochs - self.freeze_epochs:
            raise ValueError(
                "`warm_up_epochs` must be less than the epochs of the "
                f"schedule, {self.epochs - self.freeze_epochs}. "
                f"Received: warm_up_epochs={self.warm_up_epochs}"
            )


# Least and most value of a setting, both allowed.
_INFINITE = float("inf")
_LIMITS = {
    "size": (1, _INFINITE),
    "freeze_epochs": (0, _INFINITE),
    "rand_augment": (0, 1),
    "erasing": (0, 1),
    "mixup": (0, _INFINITE),
    "cutmix": (0, _INFINITE),
    "batch_size": (1, _INFINITE),
    "epochs": (1, _INFINITE),
    "learning_rate": (0, _INFINITE),
    "unfrozen_learning_rate": (0, _INFINITE),
    "warm_up_epochs": (0, _INFINITE),
    "momentum": (0, 1),
    "weight_decay": (0, _INFINITE),
    "label_smoothing": (0, 1),
    "ema": (0, 1),
    "steps_per_execution": (1, _INFINITE),
    "seed": (0, 2**32 - 1),
    "checkpoint_steps": (1, _INFINITE),
    "checkpoints_kept": (1, _INFINITE),
}
_CHOICES = {
    "augmentation": AUGMENTATIONS,
    "on_bad_image": ON_BAD_IMAGE,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "data_format": DATA_FORMATS,
}


def setting_type(name: str) -> tuple[type, bool]:
    """Returns the type of a recipe's setting, and whether it may be None."""
    hint = typing.get_type_hints(Recipe)[name]
    if isinstance(hint, types.UnionType):
        return typing.get_args(hint)[0], True
    return hint, False


def _check_type(name: str, value: Any, kind: type) -> None:
    wanted: Any = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    if not isinstance(value, wanted) or (
        isinstance(value, bool) and kind is not bool
    ):
        raise ValueError(
            f"`{name}` must be of type {kind.__name__}. "
            f"Received: {name}={value!r}"
        )


def _check_limits(name: str, value: float) -> None:
    least, most = _LIMITS[name]
    # Not the other way round: NaN is within no limits.
    if not least <= value <= most or value == _INFINITE:
        upper = "" if most == _INFINITE else f" and at most {most}"
        raise ValueError(
            f"`{name}` must be at least {least}{upper}. "
            f"Received: {name}={value!r}"
        )


def recipe_names() -> list[str]:
    """Names of the recipes: the files in `keras_muffnet/training/recipes`."""
    package = importlib.import_module("keras_muffnet.training.recipes")
    return sorted(
        entry.name for entry in pkgutil.iter_modules(package.__path__)
    )


def load_recipe(name: str) -> Recipe:
    """Returns a recipe by its name.

    Raises:
        ValueError: if there is none of that name.
    """
    return _module(name).RECIPE


def describe_recipe(name: str) -> str:
    """Returns what a recipe's file says of its command, cost and result.

    Raises:
        ValueError: if there is none of that name.
    """
    return (_module(name).__doc__ or "").strip()


def _module(name: str) -> types.ModuleType:
    if name not in recipe_names():
        raise ValueError(
            f"`name` must be one of {', '.join(recipe_names())}. "
            f"Received: name={name!r}"
        )
    return importlib.import_module(f"keras_muffnet.training.recipes.{name}")
