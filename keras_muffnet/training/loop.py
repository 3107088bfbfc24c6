"""A training run: epochs, checkpoints, log, best weights, closing figures."""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from keras_muffnet._files import locked
from keras_muffnet._files import written_aside
from keras_muffnet.training import checkpoints
from keras_muffnet.training import devices
from keras_muffnet.training.checkpoints import Checkpoint
from keras_muffnet.training.checkpoints import Checkpoints
from keras_muffnet.training.checkpoints import assign_variables
from keras_muffnet.training.checkpoints import collect_variables
from keras_muffnet.training.fast import accelerate
from keras_muffnet.training.log import Log
from keras_muffnet.training.network import deployable
from keras_muffnet.training.optimizer import SGD
from keras_muffnet.training.optimizer import make_optimizer
from keras_muffnet.training.recipe import Recipe
from keras_muffnet.training.recipe import RunRecipe
from keras_muffnet.training.schedules import make_schedule
from keras_muffnet.training.tasks import Classification
from keras_muffnet.training.tasks import Feed
from keras_muffnet.training.tasks import Phase
from keras_muffnet.training.tasks import Row
from keras_muffnet.training.tasks import Task

CONFIGURATION = "configuration.json"
RESULT = "result.json"
BEST = "best.keras"
LAST = "last.keras"
# Where no images are left to compare epochs on alone; and are these "val".
_CHOSEN_ON = {
    False: "There are no validation images beside the training and test "
    "images: the best epoch is chosen on the test images",
    True: "There are no test images: the best epoch is chosen on the "
    "validation images, and the closing figures are of them",
}
# What may change when a run resumes, since no weight depends on it.
_HANDLING = ("checkpoint_steps", "checkpoints_kept", "devices", "data_check")


class DivergedError(RuntimeError):
    """The loss became NaN or infinite, or many times that of guessing."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a run, and its checkpoint is written."""


def fit(
    model: keras.Model,
    recipe: RunRecipe,
    feed: Feed,
    output: str | os.PathLike[str],
    verbose: int | str = "auto",
    task: Task | None = None,
) -> dict[str, Any]:
    """Trains a model, or resumes one that was interrupted.

    Called again with the same arguments after a kill at any moment, it resumes
    after the last checkpoint. Where Keras was made deterministic (see
    `configure_keras`), the weights are in the end the same to the last bit as
    those of a run that was never killed, and so are all figures. Only the
    times in TensorBoard's events differ; and the means over an epoch that was
    cut in two, `loss` and `accuracy` in `log.csv`, may differ in their last
    digits, being joined of two means.

    In the folder lie, during the run: `configuration.json`; `checkpoints/`;
    `log.csv`, TensorBoard's events and `curves.png`; `best.keras`, of the
    epoch of the highest validation accuracy, or what the task has in its
    place. Epochs are compared on the feed's validation images, which are the
    test images where there are no others. After it: `last.keras`, and
    `result.json` with the figures of both on the test images. Both models are
    float32, classifiers give probabilities, and both know how images are made
    ready for them. With a moving average of the weights, it is the average
    that is evaluated and saved.

    The first Ctrl-C or SIGTERM ends the run at the next step, with a
    checkpoint.

    Where `use_devices` was called before, batches are shared out among the
    devices; `feed` must give this process its rows, and filled test batches.
    Of several processes all call this, and the first one alone uses `output`.

    ```python
    import dataclasses
    from keras_muffnet import training

    recipe = dataclasses.replace(
        training.load_recipe("quick"),
        data="photos",
        size=32,
        alpha=0.25,
        batch_size=16,
        epochs=1,
        warm_up_epochs=0.5,
    )
    training.configure_keras(recipe)
    feed = training.open_feed(recipe)
    model = training.build_network(recipe, classes=3)
    training.fit(model, recipe, feed, "runs/photos")
    ```

    Args:
        model: a functional Keras model, built and not compiled; a classifier
            ends in a layer of logits or of probabilities. It is trained in
            place, and has the last weights in the end.
        recipe: the settings; those of data and network are taken as done.
        feed: the images.
        output: folder of the run; it may not exist yet.
        verbose: 1 for a progress bar, 2 for a line an epoch, 0 for nothing;
            "auto" is 1 on a terminal and 2 elsewhere.
        task: what is trained for: loss, figures, layers. By default
            classification.

    Returns:
        What `result.json` holds: for "best" and "last" the `epoch`, and the
        task's figures of the test images. Those of classification are `loss`
        (cross-entropy, without smoothing), `accuracy` and `top5_accuracy`.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, once the checkpoint is written.
        DivergedError: naming step and learning rate.
        ValueError: if the folder holds a run of another configuration, naming
            what differs, or none of its checkpoints is whole; or if XLA is to
            compile for several devices of TensorFlow.
        RuntimeError: if another process trains in the folder.
        OSError: if a file cannot be written. The checkpoints before stay.
    """
    if task is None:
        if not isinstance(recipe, Recipe):
            raise ValueError(
                "`task` must be given for a recipe that is not of a "
                f"classifier. Received: task=None, recipe={recipe!r}"
            )
        task = Classification(recipe, feed)
    with _alone(pathlib.Path(output)):
        run = _Run(model, recipe, feed, pathlib.Path(output), verbose, task)
        with run.signals:
            run.train()
            result = run.close()
    if run.signals.received:
        raise Interrupted("after the last epoch")
    return result


@contextlib.contextmanager
def _alone(output: pathlib.Path) -> Iterator[None]:
    """Keeps other runs from the folder of a run."""
    if not devices.is_first():
        yield
        return
    output.mkdir(parents=True, exist_ok=True)
    refusal = RuntimeError(
        "`output` must be a folder that no other process trains in. "
        f"Received: {str(output)!r}"
    )
    with locked(output, refusal):
        yield


class _Run:
    def __init__(
        self,
        model: keras.Model,
        recipe: RunRecipe,
        feed: Feed,
        output: pathlib.Path,
        verbose: int | str,
        task: Task,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.feed = feed
        self.task = task
        self.output = output
        self.first = devices.is_first()
        if verbose == "auto":
            verbose = 1 if sys.stdout.isatty() else 2
        self.verbose = verbose if self.first else 0
        self.checkpoints = Checkpoints(
            output / "checkpoints", recipe.checkpoints_kept
        )
        self.log = Log(output, task.score)
        self._jit_compile = devices.jit_compile(recipe.jit_compile)
        self.rows: list[Row] = []
        # Now, since Keras would copy what the model is compiled with.
        self.deployed = deployable(model, task.preprocessing)
        # What is saved is what is evaluated. The same weights in a model of
        # their own: with a compiled one its loss would be saved too.
        self.tested = keras.Model(self.deployed.input, self.deployed.output)
        self.signals = _Signals()
        self.computed_by = accelerate(model)
        accelerate(self.tested)
        devices.synchronize_norms(model)
        # Means over the steps before `start`, where an epoch was cut in two.
        self.before: Row = {}

    def train(self) -> None:
        """Trains all epochs that are not done yet."""
        self._say(f"Computed by {self.computed_by}")
        self.tested.compile(
            optimizer=None,
            **self.task.objectives(self.tested, training=False),
            jit_compile=self._jit_compile,
        )
        saved = self._load()
        epoch, step = (saved.epoch, saved.step) if saved else (0, 0)
        if not self.feed.validation_size:
            self._say(_CHOSEN_ON[self.feed.test_split == "val"])
        phases = self.task.phases()
        for phase in phases:
            # Now, not after hours: it raises where a layer is unknown.
            phase.choose_layers(self.model)
        for phase in phases:
            if (phase.end, 0) < (epoch, step):
                continue
            schedule = self._compile(phase)
            if saved is not None:
                assign_variables(self.model, saved.arrays)
                saved = None
                if step == 0:
                    # A kill may have come between checkpoint and model.
                    self._save_if_best()
            while epoch < phase.end:
                self._train_epoch(epoch, step, phase, schedule)
                epoch, step = epoch + 1, 0

    def close(self) -> dict[str, Any]:
        """Evaluates the best and the last weights, and saves the last."""
        _optimizer(self.model).swap_averages()
        self._save_model(LAST)
        best = max(self.rows, key=self._score)
        result = {}
        for name, file, row in (
            ("best", BEST, best),
            ("last", LAST, self.rows[-1]),
        ):
            with devices.file_from_first(self.output / file) as path:
                self.deployed.load_weights(path)
            tested = self.task.evaluate(self.tested, final=True)
            result[name] = {"epoch": row["epoch"], **tested}
        if self.first:
            _write_json(self.output / RESULT, result)
        return result

    def _save_if_best(self) -> None:
        """Saves the model if the epoch just done is the best.

        After its checkpoint: an epoch that is lost and done again may end with
        other weights.
        """
        best = max(self.rows, key=self._score)
        if best is self.rows[-1]:
            with _averaged(self.model):
                self._save_model(BEST)

    def _save_model(self, name: str) -> None:
        self._deploy()
        if not self.first:
            return
        with written_aside(self.output / name) as aside:
            self.deployed.save(aside)

    def _deploy(self) -> None:
        self.deployed.set_weights(self.model.get_weights())

    def _load(self) -> Checkpoint | None:
        """Checks the configuration and reads the last checkpoint."""
        content = devices.from_first(self._read() if self.first else None)
        if content is None:
            return None
        saved = checkpoints.decode(content)
        self.rows = saved.progress["rows"]
        self.before = saved.progress["before"]
        if self.rows and self.first:
            # A kill may have come between the two.
            self.log.rewrite(self.rows)
        within = f", step {saved.step} of the next" if saved.step else ""
        self._say(
            f"Going on after epoch {saved.epoch} of {self.recipe.epochs}"
            + within
        )
        return saved

    def _read(self) -> bytes | None:
        configuration = self._configuration()
        path = self.output / CONFIGURATION
        if self.checkpoints.any():
            _refuse_other(json.loads(path.read_text()), configuration, path)
        else:
            _write_json(path, configuration)
        saved = self.checkpoints.load_last(self._say)
        return None if saved is None else checkpoints.encode(saved)

    def _configuration(self) -> dict[str, Any]:
        return {
            "settings": dataclasses.asdict(self.recipe),
            "network": self.model.name,
            "parameters": self.model.count_params(),
            "classes": list(self.feed.class_names),
            "train_images": self.feed.train_size,
            "validation_images": self.feed.validation_size,
            "test_images": self.feed.test_size,
            "images": self._fingerprint(),
            "backend": keras.backend.backend(),
            "devices": devices.device_count(),
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("keras", "numpy", keras.backend.backend())
            },
        }

    def _fingerprint(self) -> str | None:
        how = self.recipe.data_check
        if how == "none":
            return None
        return f"{how}: {self.feed.fingerprint(how == 'contents')}"

    def _compile(self, phase: Phase) -> LearningRateSchedule:
        phase.choose_layers(self.model)
        recipe, steps = self.recipe, self.feed.steps_per_epoch
        schedule = make_schedule(
            recipe.schedule,
            phase.learning_rate,
            (phase.end - phase.begin) * steps,
            # Freezing comes without: a classifier alone does no harm.
            min(
                round(recipe.warm_up_epochs * steps),
                (phase.end - phase.begin) * steps - 1,
            )
            if phase.end == recipe.epochs
            else 0,
        )
        self.model.compile(
            optimizer=make_optimizer(recipe, schedule),
            **self.task.objectives(self.model, training=True),
            jit_compile=self._jit_compile,
            steps_per_execution=recipe.steps_per_execution,
        )
        self.model.optimizer.build(self.model.trainable_variables)
        return schedule

    def _train_epoch(
        self,
        epoch: int,
        start: int,
        phase: Phase,
        schedule: LearningRateSchedule,
    ) -> None:
        steps = self.feed.steps_per_epoch
        first = epoch * steps + start
        history = self.model.fit(
            self.feed.epoch(epoch, start),
            shuffle=False,  # the feed has its order
            initial_epoch=epoch,
            epochs=self.recipe.epochs,
            verbose=self.verbose,
            callbacks=[
                _Guard(
                    lambda batch: first + batch + 1,
                    lambda batch: float(
                        schedule(first + batch - phase.begin * steps)
                    ),
                    self.task.diverged,
                ),
                _Saver(self, epoch, start),
                _StopAfterEpoch(),
            ],
        ).history
        means = {name: values[-1] for name, values in history.items()}
        row: Row = {
            "epoch": epoch + 1,
            "learning_rate": float(
                schedule((epoch + 1 - phase.begin) * steps - 1)
            ),
            **self._joined(means, start, steps),
        }
        self.before = {}
        with _averaged(self.model):
            self._deploy()
        tested = self.task.evaluate(self.tested)
        row |= {f"val_{name}": value for name, value in tested.items()}
        if not math.isfinite(row["val_loss"]):
            raise DivergedError(
                f"`val_loss` is {row['val_loss']} after epoch "
                f"{epoch + 1}, at learning rate {row['learning_rate']:.4g}"
            )
        self.rows.append(row)
        if self.first:
            self.log.write(self.rows)
        self.save(epoch + 1, 0)
        self._save_if_best()
        compared = self.feed.validation_size or self.feed.test_split == "val"
        self._say(
            f"{'Validation' if compared else 'Test'}: "
            f"{self.task.summary(tested)} "
            f"(best so far {max(map(self._score, self.rows)):.2%})"
        )
        if self.signals.received:
            raise Interrupted(f"after epoch {epoch + 1}")

    def save_within(self, epoch: int, start: int, step: int) -> None:
        """Saves the state after a step of an epoch that began at `start`."""
        means = {
            k: float(v) for k, v in self.model.get_metrics_result().items()
        }
        # `self.before` itself is of the steps before `start`, to the end.
        self.save(epoch, step, self._joined(means, start, step))

    def save(self, epoch: int, step: int, before: Row | None = None) -> None:
        """Saves the state after so many epochs, and steps of the next."""
        arrays = collect_variables(self.model)
        if not all(np.isfinite(value).all() for value in arrays.values()):
            raise DivergedError(
                "The weights are no longer finite after epoch "
                f"{epoch}, step {step} of the next. The checkpoint before stays"
            )
        progress = {"rows": self.rows, "before": before or {}}
        if self.first:
            self.checkpoints.save(Checkpoint(epoch, step, progress, arrays))

    def _joined(self, means: Row, start: int, end: int) -> Row:
        """Means over an epoch's steps to `end`, of those from `start` on."""
        if not start:
            return means
        return {
            name: (start * self.before[name] + (end - start) * mean) / end
            for name, mean in means.items()
        }

    def _score(self, row: Row) -> float:
        return row[f"val_{self.task.score}"]

    def _say(self, text: str) -> None:
        if self.verbose:
            print(text, flush=True)


class _Guard(keras.callbacks.Callback):
    """Stops where the loss shows that nothing is learned any more."""

    # It only reads, so that Keras need not wait for it after each step.
    async_safe = True

    def __init__(
        self,
        number: Callable[[int], int],
        learning_rate: Callable[[int], float],
        limit: float,
    ) -> None:
        super().__init__()
        self.number = number
        self.learning_rate = learning_rate
        self.limit = limit

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        loss = float((logs or {})["loss"])
        # Not the other way round: NaN is below nothing.
        if not loss < self.limit:
            raise DivergedError(
                f"The mean loss of the epoch is {loss:.4g} at step "
                f"{self.number(batch)}, at learning rate "
                f"{self.learning_rate(batch):.4g}. A lower learning rate or a "
                "longer warm-up may help"
            )


class _Saver(keras.callbacks.Callback):
    """Saves within an epoch: where the recipe asks for it, or to stop."""

    def __init__(self, run: _Run, epoch: int, start: int) -> None:
        super().__init__()
        self.run = run
        self.epoch = epoch
        self.start = self.saved = start

    # Before a step, not after one: then Keras may run ahead of the callbacks.
    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        every = self.run.recipe.checkpoint_steps
        step = self.start + batch
        stops = self.run.signals.received
        if step > self.saved and (
            stops or (every is not None and step - self.saved >= every)
        ):
            _ = self.model  # JAX's state is brought into the model by this
            self.run.save_within(self.epoch, self.start, step)
            self.saved = step
        if stops:
            raise Interrupted(
                f"after epoch {self.epoch}, step {step} of the next"
            )


class _Signals:
    """Takes note of Ctrl-C and SIGTERM, for a run to end in its own time.

    A second Ctrl-C ends it at once. Signals reach the main thread alone: in
    others nothing is changed.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None: it was not set from Python.
            signal.signal(number, handler or signal.SIG_DFL)
        self._before = {}


class _StopAfterEpoch(keras.callbacks.Callback):
    """Ends `model.fit` after one epoch, which it shows as one of all."""

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self.model.stop_training = True


def _optimizer(model: keras.Model) -> SGD:
    # float16 puts an optimizer that scales the loss around ours.
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


@contextlib.contextmanager
def _averaged(model: keras.Model) -> Iterator[None]:
    """Has the moving averages in the model's weights, where there are any."""
    _optimizer(model).swap_averages()
    try:
        yield
    finally:
        _optimizer(model).swap_averages()


def _refuse_other(
    before: dict[str, Any], now: dict[str, Any], path: pathlib.Path
) -> None:
    old, new = _compared(before), _compared(now)
    was, are = old.pop("images", None), new.pop("images", None)
    different = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if different:
        raise ValueError(
            "`output` must be a new folder, or hold a run of the same "
            f"configuration. In {str(path)!r}: {'; '.join(different)}"
        )
    how = (are or "").partition(":")[0]
    # Recorded in another way than now, there is nothing to compare.
    if are and was and was.startswith(how) and was != are:
        raise ValueError(
            "`data` must be the images that the run began with. Received: "
            f"changed ones, by their {how}; `data_check` (--data-check none) "
            "resumes all the same"
        )


def _compared(configuration: dict[str, Any]) -> dict[str, Any]:
    flat = {**configuration, **configuration["settings"]}
    return {
        name: value
        for name, value in flat.items()
        if name not in ("settings", "versions", *_HANDLING)
    }


def _write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    with written_aside(path) as aside:
        aside.write_text(json.dumps(values, indent=2) + "\n")
