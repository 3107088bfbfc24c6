"""What a recipe says, and how the command line overrides it."""

import dataclasses
import importlib
import numbers
import pkgutil
import types
import typing
from typing import Any

SCHEDULES = ("cosine", "one_cycle", "steps")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
AUGMENTATIONS = ("plain", "cifar", "imagenet")
ON_BAD = ("raise", "skip")
DATA_CHECKS = ("times", "contents", "none")
DATA_FORMATS = ("channels_last", "channels_first")

AnyRecipe = typing.TypeVar("AnyRecipe", bound="RunRecipe")


def _setting(description: str, default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"help": description})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """Settings of any training run: what the recipes of all tasks share.

    Each setting has its description. `dataclasses.replace` makes a recipe
    with other settings.

    Raises:
        ValueError: if a setting is not as described.
    """

    data: str | None = _setting(
        "images: see `keras_muffnet.data.open_source`, and for detectors "
        "`open_detection_source`",
        None,
    )
    validation_split: float | None = _setting(
        "part of the training images on which epochs are compared, where the "
        "data have no validation images",
        None,
    )
    on_bad: str = _setting(
        "what to do with bad images and annotations: one of "
        + ", ".join(ON_BAD),
        "raise",
    )
    data_check: str = _setting(
        "how a run that resumes finds out that images changed: one of "
        + ", ".join(DATA_CHECKS)
        + "; by the files' sizes and times, by reading them all, or not",
        "times",
    )
    size: int = _setting("height and width of an image in pixels")
    alpha: float = _setting("width multiplier of the network", 1.0)
    weights: str | None = _setting(
        "weights to start from: a .keras file, whose last layers are left out "
        "if they are of other classes; a .weights.h5 file of the same "
        "network; or the name of published ones",
        None,
    )
    batch_size: int = _setting("images in a step")
    epochs: int = _setting("passes over the training images")
    learning_rate: float = _setting("the highest that the schedule reaches")
    schedule: str = _setting(
        "'cosine' falls to zero as half a cosine, 'one_cycle' in a straight "
        "line; 'steps' falls to a tenth after 2/3 of the steps, and again "
        "after 5/6",
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
        "decay biases and batch normalization too, not kernels alone", False
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
            kind, optional = setting_type(type(self), field.name)
            if value is None and optional:
                continue
            _check_type(field.name, value, kind)
            if field.name in _LIMITS:
                _check_limits(field.name, value)
            choices = _CHOICES.get(field.name)
            if choices is not None and value not in choices:
                raise ValueError(
                    f"`{field.name}` must be one of {', '.join(choices)}. "
                    f"Received: {field.name}={value!r}"
                )
        if 0 < self.schedule_epochs <= self.warm_up_epochs:
            raise ValueError(
                "`warm_up_epochs` must be less than the epochs of the "
                f"schedule, {self.schedule_epochs}. "
                f"Received: warm_up_epochs={self.warm_up_epochs}"
            )

    @property
    def schedule_epochs(self) -> int:
        """Epochs in which the learning rate follows the schedule."""
        return self.epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(RunRecipe):
    """All settings of a classifier's training run but its folder.

    `muffnet train --help` prints them.

    Raises:
        ValueError: if a setting is not as described.
    """

    nested: str | None = _setting(
        "what folders in the folder of a class are: 'top' for more of its "
        "images, 'path' for classes of their own",
        None,
    )
    class_weight: str | None = _setting(
        "'balanced' lets classes of few images count as much as others", None
    )
    stem: str = _setting("first layers: see MuffNet", "auto")
    freeze_epochs: float = _setting(
        "epochs in which only the classifier is trained; below 1, that share "
        "of all epochs",
        0.0,
    )
    freeze_norms: bool = _setting(
        "keep batch normalization of the weights to start from as it is, its "
        "statistics too",
        False,
    )
    unfreeze_from: str | None = _setting(
        "after those epochs, train from the first layer on whose name starts "
        "so, for instance 'stage3'; none trains all layers",
        None,
    )
    unfrozen_learning_rate: float | None = _setting(
        "the highest learning rate after freeze_epochs; none keeps "
        "learning_rate",
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
    label_smoothing: float = _setting(
        "share of the label that is spread over all classes", 0.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze_epochs > 0 and self.weights is None:
            raise ValueError(
                "`weights` must be given where `freeze_epochs` is not 0: "
                "random layers would be frozen. Received: weights=None, "
                f"freeze_epochs={self.freeze_epochs}"
            )
        if self.freeze_norms and self.weights is None:
            raise ValueError(
                "`weights` must be given where `freeze_norms` is True. "
                "Received: weights=None, freeze_norms=True"
            )
        if self.unfreeze_from is not None and self.weights is None:
            raise ValueError(
                "`weights` must be given where `unfreeze_from` is: random "
                "layers would be frozen. Received: weights=None, "
                f"unfreeze_from={self.unfreeze_from!r}"
            )
        if self.freeze_epochs % 1 and self.freeze_epochs > 1:
            raise ValueError(
                "`freeze_epochs` must be a whole number, or a share below 1. "
                f"Received: freeze_epochs={self.freeze_epochs}"
            )
        if self.frozen_epochs >= self.epochs:
            raise ValueError(
                "`freeze_epochs` must be less than `epochs`, "
                f"{self.epochs}. Received: freeze_epochs={self.freeze_epochs}"
            )

    @property
    def schedule_epochs(self) -> int:
        """Epochs after those in which only the classifier is trained."""
        return self.epochs - self.frozen_epochs

    @property
    def frozen_epochs(self) -> int:
        """Epochs in which only the classifier is trained."""
        if self.freeze_epochs < 1:
            return round(self.freeze_epochs * self.epochs)
        return int(self.freeze_epochs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionRecipe(RunRecipe):
    """All settings of a detector's training run but its folder.

    `muffnet train --help` prints them.

    Raises:
        ValueError: if a setting is not as described.
    """

    backbone: str = _setting(
        "'muffnet'; 'MobileNet', 'MobileNetV2' or 'ShuffleNetV2' of "
        "keras_muffnet.baselines; or the name of a network of "
        "keras.applications",
        "muffnet",
    )
    extra_width: float = _setting(
        "width multiplier of the levels behind the backbone", 1.0
    )
    anchor_scale: float = _setting(
        "what the sides of all anchors are multiplied by", 1.0
    )
    hue: float = _setting(
        "the most that hues of training images turn, in half turns; GluonCV's "
        "18 makes all hues alike",
        18.0,
    )
    expansion: float = _setting(
        "the most that half of the training images shrink by, on a canvas", 4.0
    )
    train_split: str | None = _setting(
        "split that is trained on; none: 'trainval' where there is one beside "
        "the test split, else 'train'",
        "train",
    )
    test_split: str = _setting("split that is evaluated on", "test")
    max_objects: int | None = _setting(
        "objects of an image at most; none takes as many as there are", None
    )


# Least and most value of a setting, both allowed.
_INFINITE = float("inf")
_LIMITS = {
    "size": (1, _INFINITE),
    "freeze_epochs": (0, _INFINITE),
    "max_objects": (1, _INFINITE),
    "hue": (0, _INFINITE),
    "expansion": (1, _INFINITE),
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
    "class_weight": ("balanced",),
    "nested": ("top", "path"),
    "data_check": DATA_CHECKS,
    "on_bad": ON_BAD,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "data_format": DATA_FORMATS,
}


def setting_type(kind: type[RunRecipe], name: str) -> tuple[type, bool]:
    """Returns the type of a recipe's setting, and whether it may be None."""
    hint = typing.get_type_hints(kind)[name]
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


def recipe_names(kind: type[RunRecipe] = Recipe) -> list[str]:
    """Names of the recipes: files in `keras_muffnet/training/recipes`.

    ```python
    from keras_muffnet import training

    training.recipe_names(training.DetectionRecipe)  # ['ssd300_fast', 'ssd512']
    ```

    Args:
        kind: which recipes, those of classifiers or those of detectors.
    """
    package = importlib.import_module("keras_muffnet.training.recipes")
    names = sorted(
        entry.name for entry in pkgutil.iter_modules(package.__path__)
    )
    return [name for name in names if isinstance(_module(name).RECIPE, kind)]


@typing.overload
def load_recipe(name: str) -> Recipe: ...


@typing.overload
def load_recipe(name: str, kind: type[AnyRecipe]) -> AnyRecipe: ...


def load_recipe(name: str, kind: type[RunRecipe] = Recipe) -> RunRecipe:
    """Returns a recipe by its name.

    ```python
    import dataclasses
    from keras_muffnet import training

    recipe = training.load_recipe("transfer")
    recipe = dataclasses.replace(recipe, data="photos", epochs=10)
    ```

    Raises:
        ValueError: if there is none of that name and kind.
    """
    _check_name(name, kind)
    return _module(name).RECIPE


def describe_recipe(name: str, kind: type[RunRecipe] = Recipe) -> str:
    """Returns what a recipe's file says of its command, cost and result.

    Raises:
        ValueError: if there is none of that name and kind.
    """
    _check_name(name, kind)
    return (_module(name).__doc__ or "").strip()


def _check_name(name: str, kind: type[RunRecipe]) -> None:
    names = recipe_names(kind)
    if name not in names:
        raise ValueError(
            f"`name` must be one of {', '.join(names)}. Received: name={name!r}"
        )


def _module(name: str) -> types.ModuleType:
    return importlib.import_module(f"keras_muffnet.training.recipes.{name}")
