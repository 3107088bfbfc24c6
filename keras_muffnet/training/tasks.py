"""What a run trains for: objectives, figures, and which layers when."""

import math
from collections.abc import Callable
from typing import Any
from typing import NamedTuple
from typing import Protocol

import keras

from keras_muffnet.preprocessing import Preprocessing
from keras_muffnet.training.network import gives_logits
from keras_muffnet.training.network import train_classifier_only
from keras_muffnet.training.network import train_from
from keras_muffnet.training.objectives import accuracies
from keras_muffnet.training.objectives import cross_entropy
from keras_muffnet.training.recipe import Recipe

# A run is stopped at so many times the loss of a network that gives each class
# the same probability.
DIVERGED = 10

Row = dict[str, float]


class Feed(Protocol):
    """Images and labels; see `keras_muffnet.data.make_feed`.

    Attributes:
        class_names: a name for each class.
        train_size: number of training images.
        validation_size: number of validation images; 0 where `validation`
            gives the test images.
        test_size: number of test images.
        test_split: name of their split: "val" where there are no others.
        steps_per_epoch: batches of an epoch.
        preprocessing: how test images are made ready.
    """

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    train_size: int
    validation_size: int
    test_size: int
    test_split: str
    steps_per_epoch: int

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        """Batches of an epoch from a step on, as `model.fit` takes them."""

    def fingerprint(self, contents: bool = False) -> str:
        """A text that changes if the images are others or changed."""

    def report(self) -> str:
        """How many images there are, and were skipped, in a line."""

    def validation(self) -> Any:
        """Batches of all images that epochs are compared on, likewise."""

    def evaluation(self) -> Any:
        """Batches of all test images, once, as `model.evaluate` takes them."""


class Phase(NamedTuple):
    """Epochs with one optimizer, which trains one set of layers.

    Attributes:
        begin: number of the first epoch, from 0.
        end: number of the epoch after the last one.
        learning_rate: the highest that the schedule reaches.
        choose_layers: makes the layers of a model trainable, or not.
    """

    begin: int
    end: int
    learning_rate: float
    choose_layers: Callable[[keras.Model], None]


class Task(Protocol):
    """What a run trains for.

    Attributes:
        score: the figure, of those of `evaluate`, that is the higher the better
            and says which epoch is the best; at least 0.
        diverged: mean loss of an epoch's steps at which the run is stopped.
        preprocessing: how test images are made ready; saved with the model.
    """

    score: str
    diverged: float
    preprocessing: Preprocessing

    def phases(self) -> list[Phase]:
        """Returns the phases of a run, in their order."""

    def objectives(self, model: keras.Model, training: bool) -> dict[str, Any]:
        """Returns what `model.compile` takes as loss and metrics."""

    def evaluate(self, model: keras.Model, final: bool = False) -> Row:
        """Returns a compiled model's figures of the validation images.

        The "loss" is one of them.

        Args:
            model: compiled with `objectives`.
            final: takes the test images instead, at the end of the run.
        """

    def summary(self, figures: Row) -> str:
        """Returns such figures in a few words."""


class Classification:
    """Training of a classifier.

    Args:
        recipe: the settings.
        feed: the images.
    """

    score = "accuracy"

    def __init__(self, recipe: Recipe, feed: Feed) -> None:
        self.recipe = recipe
        self.feed = feed
        self.diverged = DIVERGED * math.log(max(2, len(feed.class_names)))
        self.preprocessing = feed.preprocessing

    def phases(self) -> list[Phase]:
        """Returns the phase of the classifier alone and that of the rest."""
        recipe, phases = self.recipe, []
        frozen, rate = recipe.frozen_epochs, recipe.learning_rate
        if frozen:
            phases.append(Phase(0, frozen, rate, train_classifier_only))
        if recipe.unfrozen_learning_rate is not None:
            rate = recipe.unfrozen_learning_rate
        phases.append(
            Phase(
                frozen,
                recipe.epochs,
                rate,
                lambda model: train_from(
                    model, recipe.unfreeze_from, recipe.freeze_norms
                ),
            )
        )
        return phases

    def objectives(self, model: keras.Model, training: bool) -> dict[str, Any]:
        """Returns cross-entropy, smoothed in training, and accuracies."""
        smoothing = self.recipe.label_smoothing if training else 0.0
        return {
            "loss": cross_entropy(smoothing, gives_logits(model)),
            # Images that fill a batch up have no weight.
            "weighted_metrics": accuracies(len(self.feed.class_names)),
        }

    def evaluate(self, model: keras.Model, final: bool = False) -> Row:
        """Returns `loss`, `accuracy` and `top5_accuracy`."""
        feed = self.feed
        batches = feed.evaluation() if final else feed.validation()
        # Keras would show the progress of each epoch's evaluation.
        return model.evaluate(batches, return_dict=True, verbose=0)

    def summary(self, figures: Row) -> str:
        """Returns both accuracies in words."""
        return (
            f"accuracy {figures['accuracy']:.2%}, "
            f"top 5 {figures['top5_accuracy']:.2%}"
        )
