"""Training runs: resuming, damage, full disks, divergence, what is written."""

import csv
import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from tensorflow.core.util.event_pb2 import Event

from keras_muffnet import plots
from keras_muffnet.training import DivergedError
from keras_muffnet.training import checkpoints
from keras_muffnet.training import fit
from keras_muffnet.training import loop
from keras_muffnet.training import network
from keras_muffnet.training import open_feed
from keras_muffnet.training.loop import Interrupted
from keras_muffnet.training.tasks import Classification
from tests.conftest import ROOT
from tests.training_run import Batches
from tests.training_run import SmallFeed
from tests.training_run import digest
from tests.training_run import run
from tests.training_run import small_model
from tests.training_run import small_recipe

pytestmark = pytest.mark.usefixtures("no_curves")

# Of a run, in the slow tests.
KILLS = int(os.environ.get("MUFFNET_TEST_KILLS", "2"))


@pytest.fixture(autouse=True)
def keras_as_before():
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


def program(backend, settings, folder, end):
    """Arguments of Python for a run of `training_run`."""
    code = (
        "import sys, runpy\n"
        # Half of the time would go into its import.
        f"if {backend!r} != 'tensorflow': sys.modules['tensorflow'] = None\n"
        "runpy.run_module('tests.training_run', run_name='__main__',"
        " alter_sys=True)"
    )
    return "-c", code, json.dumps(settings), folder, end


@pytest.mark.parametrize(
    ("backend", "kill", "settings", "resumed"),
    [
        (
            "tensorflow",
            "step:11",
            {"ema": 0.9, "checkpoint_steps": 2},
            "Going on after epoch 1 of 3, step 2 of the next",
        ),
        (
            "torch",
            "writing:2",
            {"momentum": 0.0, "data_format": "channels_first"},
            "Going on after epoch 1 of 3",
        ),
        (
            "jax",
            "logged:3",
            {"ema": 0.9, "schedule": "one_cycle", "jit_compile": True},
            "Going on after epoch 2 of 3",
        ),
    ],
)
def test_a_killed_run_ends_with_the_weights_of_a_whole_one(
    backend, kill, settings, resumed, forks, tmp_path
):
    folder = str(tmp_path / "run")

    def start(end):
        return forks(backend).run(*program(backend, settings, folder, end))

    killed = start(kill)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "weights" not in killed.stdout
    done = start("compare")
    assert done.returncode == 0, done.stderr
    assert resumed in done.stdout.splitlines()
    first, second = (
        line for line in done.stdout.splitlines() if line.startswith("weights")
    )
    assert first == second
    # Nor does the log tell of it, but for the rounding of a mean.
    logs = [read_log(f"{folder}{end}") for end in ("", "-whole")]
    assert [row["epoch"] for row in logs[0]] == ["1", "2", "3"]
    for name in logs[0][0]:
        np.testing.assert_allclose(
            *([float(row[name]) for row in log] for log in logs), rtol=1e-6
        )
    left = os.listdir(tmp_path / "run" / "checkpoints")
    assert sorted(left)[-1] == "00003-0000000.checkpoint"
    assert len(left) == 2


def read_log(folder):
    with open(os.path.join(folder, "log.csv"), newline="") as file:
        return list(csv.DictReader(file))


class StopError(Exception):
    pass


class StoppingFeed(SmallFeed):
    """Stops the run before an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.stop = epoch

    def epoch(self, epoch, start_step=0):
        if epoch == self.stop:
            raise StopError
        return super().epoch(epoch, start_step)


def stopped_run(folder, epoch, **settings):
    with pytest.raises(StopError):
        run(small_recipe(**settings), folder, feed=StoppingFeed(epoch))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not interrupted: its folder, model and result."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(small_recipe(), folder)


def test_a_run_writes_what_it_promises(whole):
    folder, model, result = whole
    assert sorted(os.listdir(folder)) == [
        "best.keras",
        "checkpoints",
        "configuration.json",
        "curves.png",
        next(n for n in os.listdir(folder) if n.startswith("events.out.")),
        "last.keras",
        "log.csv",
        "result.json",
    ]
    assert (folder / "curves.png").stat().st_size > 0
    assert json.loads((folder / "result.json").read_text()) == result
    log = read_log(folder)
    best = max(log, key=lambda row: float(row["val_accuracy"]))
    assert result["best"]["epoch"] == int(best["epoch"])
    assert result["best"]["accuracy"] == float(best["val_accuracy"])
    assert result["last"]["epoch"] == 3
    assert result["last"]["accuracy"] == float(log[-1]["val_accuracy"])
    saved = json.loads((folder / "configuration.json").read_text())
    assert saved["settings"] == dataclasses.asdict(small_recipe())
    assert saved["classes"] == ["a", "b", "c"]
    # The saved model gives probabilities, of the logits that were trained.
    images = SmallFeed().images[:5]
    last = keras.saving.load_model(folder / "last.keras")
    logits = model.predict(images, verbose=0)
    np.testing.assert_allclose(
        last.predict(images, verbose=0), tf.nn.softmax(logits), atol=1e-6
    )


def test_tensorboard_reads_the_events(whole):
    folder, _, _ = whole
    [path] = folder.glob("events.out.tfevents.*")
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    header, *events = [Event.FromString(record) for record in records]
    assert header.file_version == "brain.Event:2"
    values = {
        (event.step, event.summary.value[0].tag): (
            event.summary.value[0].simple_value
        )
        for event in events
    }
    for row in read_log(folder):
        for name, value in row.items():
            if name != "epoch":
                got = values.pop((int(row["epoch"]), name))
                assert got == np.float32(value)
    assert not values


def test_a_finished_run_is_only_evaluated_again(whole, tmp_path):
    folder, model, result = whole
    again, same = run(small_recipe(), folder)
    assert same == result
    assert digest(again) == digest(model)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    damage, whole, tmp_path, capsys
):
    stopped_run(tmp_path, 2)
    last = tmp_path / "checkpoints" / "00002-0000000.checkpoint"
    content = bytearray(last.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content.clear()
    last.write_bytes(content)
    model, _ = run(small_recipe(), tmp_path, verbose=2)
    printed = capsys.readouterr().out
    assert f"Damaged checkpoint passed over: {last}" in printed
    assert "Going on after epoch 1 of 3" in printed
    assert digest(model) == digest(whole[1])
    assert last.with_suffix(".damaged").exists()


def test_where_all_checkpoints_are_damaged_none_is_overwritten(tmp_path):
    stopped_run(tmp_path, 2)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(ValueError, match="whose 2 are all damaged"):
            run(small_recipe(), tmp_path)


def test_a_full_disk_fails_the_run_and_leaves_the_checkpoints(
    whole, tmp_path, monkeypatch
):
    class Full:
        """`os`, on a disk that has no room for the second checkpoint."""

        written = 0

        def __getattr__(self, name):
            return getattr(os, name)

        def fsync(self, file):
            self.written += 1
            if self.written == 2:
                raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "os", Full())
        with pytest.raises(OSError, match="No space left on device"):
            run(small_recipe(), tmp_path)
    assert os.listdir(tmp_path / "checkpoints") == ["00001-0000000.checkpoint"]
    model, _ = run(small_recipe(), tmp_path)
    assert digest(model) == digest(whole[1])


@pytest.mark.parametrize("place", ["checkpoint", "best"])
def test_the_best_weights_are_of_an_epoch_that_counts(
    place, whole, tmp_path, monkeypatch
):
    def stop(*args):
        raise StopError

    with monkeypatch.context() as patch:
        if place == "checkpoint":
            patch.setattr(checkpoints.Checkpoints, "save", stop)
        else:
            patch.setattr(loop._Run, "_save_if_best", stop)
        with pytest.raises(StopError):
            run(small_recipe(), tmp_path)
    # The epoch that has no checkpoint may go otherwise when it is done again.
    assert not (tmp_path / "best.keras").exists()
    # With one that has, the run goes on, and saves the model late.
    stopped_run(tmp_path, 1)
    assert (tmp_path / "best.keras").exists()
    assert run(small_recipe(), tmp_path)[1] == whole[2]


def test_the_last_checkpoints_are_kept(tmp_path):
    kept = checkpoints.Checkpoints(tmp_path, keep=3)
    for epoch in range(5):
        arrays = {"x": np.full(3, epoch)}
        kept.save(checkpoints.Checkpoint(epoch, 7, {"rows": []}, arrays))
    names = [f"0000{epoch}-0000007.checkpoint" for epoch in (2, 3, 4)]
    assert sorted(os.listdir(tmp_path)) == names
    (tmp_path / ".writing-abc").mkdir()
    again = checkpoints.Checkpoints(tmp_path, keep=3)
    assert sorted(os.listdir(tmp_path)) == names
    last = again.load_last(print)
    assert (last.epoch, last.step, last.progress) == (4, 7, {"rows": []})
    np.testing.assert_array_equal(last.arrays["x"], [4, 4, 4])


def test_another_configuration_is_refused_by_name(tmp_path):
    stopped_run(tmp_path, 1)
    with pytest.raises(ValueError, match="`output` must be") as refused:
        run(small_recipe(learning_rate=0.2, epochs=4), tmp_path)
    assert str(refused.value).endswith(
        ": epochs was 3 and is 4; learning_rate was 0.1 and is 0.2"
    )
    # No weight depends on these.
    run(small_recipe(checkpoints_kept=1), tmp_path)
    assert len(os.listdir(tmp_path / "checkpoints")) == 1


class NotANumberFeed(SmallFeed):
    """Has a NaN in the third batch of the second epoch."""

    def epoch(self, epoch, start_step=0):
        batches = super().epoch(epoch, start_step)
        if epoch == 1:
            images, _ = batches.batches[2]
            images[0] = np.nan
        return batches


def test_nan_stops_the_run_at_its_step(tmp_path):
    recipe = small_recipe(schedule="one_cycle")
    with pytest.raises(DivergedError) as stopped:
        run(recipe, tmp_path, feed=NotANumberFeed())
    # Step 9 is number 8 from 0 of 18.
    assert str(stopped.value).startswith(
        "The mean loss of the epoch is nan at step 9, at learning rate "
        f"{0.1 * 10 / 18:.4g}."
    )
    assert os.listdir(tmp_path / "checkpoints") == ["00001-0000000.checkpoint"]


def test_a_diverging_loss_stops_the_run(tmp_path):
    with pytest.raises(
        DivergedError, match=r"step \d, at learning rate 9\.\d+e\+05"
    ):
        run(small_recipe(learning_rate=1e6), tmp_path)


def test_moving_averages_are_what_is_evaluated_and_saved(tmp_path):
    recipe = small_recipe(ema=0.8, epochs=1, weight_decay=0.0)
    model, result = run(recipe, tmp_path)
    # By hand: the same steps, and the averages of the weights after each.
    other = tmp_path / "other"
    plain = small_recipe(epochs=1, weight_decay=0.0)
    kernels = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernels.append(self.model.trainable_variables[0].numpy())

    fit_with_callback(plain, other, Watch())
    average = kernels[0]
    for kernel in kernels[1:]:
        average = 0.8 * average + 0.2 * kernel
    np.testing.assert_allclose(
        model.trainable_variables[0].numpy(), average, rtol=1e-5, atol=1e-7
    )
    tested = float(read_log(tmp_path)[0]["val_loss"])
    assert result["last"]["loss"] == pytest.approx(tested, rel=1e-5)


def fit_with_callback(recipe, folder, callback):
    from tests.training_run import configure_keras

    configure_keras(recipe)
    model = small_model()
    original = model.fit

    def with_callback(*args, callbacks, **kwargs):
        return original(*args, callbacks=[*callbacks, callback], **kwargs)

    model.fit = with_callback
    fit(model, recipe, SmallFeed(), folder, verbose=0)


def test_layers_are_frozen_then_trained_from_a_level_on(tmp_path):
    recipe = small_recipe(
        epochs=3,
        freeze_epochs=1,
        unfreeze_from="high",
        unfrozen_learning_rate=0.01,
        weights="not used here",
    )
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append([w.numpy() for w in self.model.weights])

    fit_with_callback(recipe, tmp_path, Watch())
    keras.utils.set_random_seed(recipe.seed)
    first = small_model()
    paths = [w.path for w in first.weights]
    before = [w.numpy() for w in first.weights]
    changed = [
        {
            path.split("/")[0]
            for path, a, b in zip(paths, first, second, strict=True)
            if not np.array_equal(a, b)
        }
        for first, second in itertools.pairwise([before, *seen])
    ]
    assert changed[0] - {"low_bn"} == {"predictions"}
    assert changed[1:] == [{"high_conv", "predictions"}] * 2
    rates = [float(row["learning_rate"]) for row in read_log(tmp_path)]
    assert 0 < rates[0] < 0.1
    assert 0.005 < rates[1] < 0.01
    # Stopped where the phases meet, it goes on all the same.
    settings = {**dataclasses.asdict(recipe)}
    other = tmp_path / "other"
    for epoch in (1, 2):
        stopped_run(other, epoch, **settings)
    resumed, _ = run(small_recipe(**settings), other)
    for a, b in zip(resumed.get_weights(), seen[-1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_saves_float32(precision, tmp_path):
    recipe = small_recipe(precision=precision, ema=0.5, steps_per_execution=4)
    stopped_run(tmp_path, 1, **dataclasses.asdict(recipe))
    model, result = run(recipe, tmp_path)
    assert model.layers[1].compute_dtype == precision.removeprefix("mixed_")
    keras.config.set_dtype_policy("float32")
    saved = keras.saving.load_model(tmp_path / "last.keras")
    assert {layer.compute_dtype for layer in saved.layers} == {"float32"}
    assert 0 <= result["last"]["accuracy"] <= 1


def test_a_machine_without_matplotlib_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "keras_muffnet.training.log.plot_curves", plots.plot_curves
    )
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run(small_recipe(epochs=2), tmp_path)
    assert capsys.readouterr().out.count("No picture of the curves") == 1
    assert not (tmp_path / "curves.png").exists()
    assert len(read_log(tmp_path)) == 2


def with_callback(monkeypatch, callback):
    """Has all models be trained with one more callback."""
    original = keras.Model.fit

    def fit_too(self, *args, callbacks=(), **kwargs):
        return original(self, *args, callbacks=[*callbacks, callback], **kwargs)

    monkeypatch.setattr(keras.Model, "fit", fit_too)


class Signal(keras.callbacks.Callback):
    """Sends this process a signal after a step."""

    def __init__(self, number, step):
        super().__init__()
        self.number = number
        self.step = step
        self.seen = 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "step", "message"),
    [
        (signal.SIGTERM, 8, "after epoch 1, step 2 of the next"),
        (signal.SIGINT, 6, "after epoch 1"),
    ],
)
def test_a_signal_ends_the_run_with_a_checkpoint(
    number, step, message, whole, tmp_path, monkeypatch
):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        with_callback(patch, Signal(number, step))
        with pytest.raises(Interrupted, match=f"{message}$"):
            run(small_recipe(), tmp_path)
    assert signal.getsignal(number) is before
    model, result = run(small_recipe(), tmp_path)
    assert digest(model) == digest(whole[1])
    assert result == whole[2]


class ValidatedFeed(SmallFeed):
    """Some images of its own to compare epochs on, with wrong labels."""

    validation_size = 8

    def validation(self):
        rows = slice(20, 28)
        return Batches([(self.images[rows], 2 - self.labels[rows])])


def test_the_best_epoch_is_that_of_the_validation_images(tmp_path):
    feed = ValidatedFeed()
    recipe = small_recipe(label_smoothing=0.2)
    _, result = run(recipe, tmp_path, feed=feed)
    log = read_log(tmp_path)
    scores = [float(row["val_accuracy"]) for row in log]
    assert result["best"]["epoch"] == 1 + scores.index(max(scores))
    model = keras.saving.load_model(tmp_path / "last.keras")
    for batches, figure in (
        (feed.validation(), float(log[-1]["val_loss"])),
        (feed.evaluation(), result["last"]["loss"]),
    ):
        # Without the smoothing that training has.
        losses = [
            keras.losses.sparse_categorical_crossentropy(
                y, model.predict_on_batch(x)
            )
            for x, y in batches.batches
        ]
        loss = np.mean(np.concatenate([np.asarray(part) for part in losses]))
        assert figure == pytest.approx(loss, rel=1e-5)
    assert float(log[-1]["val_loss"]) != result["last"]["loss"]


def test_norms_stay_frozen_and_averages_start_anew(tmp_path):
    """Where freezing ends, with batch normalization kept as it is."""
    settings = {
        "ema": 0.9,
        "freeze_epochs": 0.34,  # one of three
        "freeze_norms": True,
        "weights": "not used here",
    }
    recipe = small_recipe(**settings)
    assert recipe.frozen_epochs == 1
    kept = {}

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept[epoch] = {
                weight.path: weight.numpy() for weight in self.model.weights
            }

    fit_with_callback(recipe, tmp_path / "watched", Watch())
    for path in kept[0]:
        same = np.array_equal(kept[0][path], kept[2][path])
        assert same == path.startswith("low_bn"), path
    # Stopped where the phases meet, and within the second one.
    for epoch in (1, 2):
        stopped_run(tmp_path / "stopped", epoch, **settings)
    model, result = run(recipe, tmp_path / "stopped")
    again, same = run(recipe, tmp_path / "whole")
    assert digest(model) == digest(again)
    assert result == same


def test_norms_of_nested_models_stay_frozen():
    nested = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization()]
    )
    model = keras.Sequential(
        [keras.Input((4,)), nested, keras.layers.Dense(2, name="predictions")]
    )
    network.train_from(model, None, freeze_norms=True)
    trained = [w.path.split("/")[-2:] for w in model.trainable_weights]
    assert trained == [["predictions", "kernel"], ["predictions", "bias"]]


def test_without_frozen_epochs_the_later_rate_holds(tmp_path):
    recipe = small_recipe(
        epochs=1,
        freeze_epochs=0.25,
        unfrozen_learning_rate=0.01,
        weights="not used here",
    )
    assert recipe.frozen_epochs == 0
    [phase] = Classification(recipe, SmallFeed()).phases()
    assert phase.learning_rate == 0.01


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "steps"])
def test_a_warm_up_may_round_to_all_steps(schedule, tmp_path):
    # 5.7 of 6 steps.
    recipe = small_recipe(epochs=1, warm_up_epochs=0.95, schedule=schedule)
    run(recipe, tmp_path)
    [row] = read_log(tmp_path)
    assert float(row["learning_rate"]) > 0


def test_a_folder_that_is_trained_in_is_refused(tmp_path):
    class Feed(SmallFeed):
        def epoch(self, epoch, start_step=0):
            before = sorted(tmp_path.rglob("*"))
            with pytest.raises(RuntimeError, match="`output` must be a folder"):
                run(small_recipe(epochs=9), tmp_path)
            assert sorted(tmp_path.rglob("*")) == before
            return super().epoch(epoch, start_step)

    run(small_recipe(epochs=1), tmp_path, feed=Feed())


def test_an_unknown_layer_to_unfreeze_is_refused_before_the_first_epoch(
    tmp_path,
):
    recipe = small_recipe(
        freeze_epochs=1, unfreeze_from="hihg_conv", weights="not used here"
    )
    with pytest.raises(ValueError, match="near it: 'high_conv'"):
        run(recipe, tmp_path, feed=StoppingFeed(0))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "torch", "jax"])
def test_a_network_of_many_threads_is_deterministic(backend, tmp_path):
    """Killed at any moments, a run ends to the bit as one left alone."""
    settings = {
        "size": 32,
        "batch_size": 64,
        "epochs": 2,
        "learning_rate": 0.05,
        "checkpoint_steps": 1,
    }
    folder = str(tmp_path / "run")
    # As many threads as there are cores, which the tests do without.
    environment = {**os.environ, "KERAS_BACKEND": backend}
    for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
        environment.pop(name, None)

    def start(end):
        return subprocess.run(
            [sys.executable, *program(backend, settings, folder, end)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    moments = np.random.default_rng().integers(1, 4000, KILLS)
    for moment in moments:
        killed = start(f"after:{moment}")
        # A run that was done before its moment came is one, too.
        assert killed.returncode in (-signal.SIGKILL, 0), killed.stderr
    done = start("compare")
    assert done.returncode == 0, done.stderr
    first, second = (
        line for line in done.stdout.splitlines() if line.startswith("weights")
    )
    assert first == second, moments


def test_images_that_changed_are_noticed(tmp_path):
    stopped_run(tmp_path, 1)
    changed = StoppingFeed(2)
    changed.seed = 1
    with pytest.raises(ValueError, match=r"by their times.*--data-check none"):
        run(small_recipe(), tmp_path, feed=changed)
    # In the way in which it was not written down, nothing is known of it.
    for how in ("contents", "none"):
        with pytest.raises(StopError):
            run(small_recipe(data_check=how), tmp_path, feed=changed)


def test_a_folders_splits_and_changes(tmp_path):
    """Where there is a val/, epochs are compared on it, and not on test/."""
    rng = np.random.default_rng(0)
    counts = {"train": 6, "val": 3, "test": 4}
    for split, count in counts.items():
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f"{k}.png")
    recipe = small_recipe(data=str(tmp_path), batch_size=4)
    feed = open_feed(recipe)
    sizes = (feed.train_size, feed.validation_size, feed.test_size)
    assert sizes == (12, 6, 8)
    given = [
        sum(len(y) for _, y in batches.as_numpy_iterator())
        for batches in (feed.validation(), feed.evaluation())
    ]
    assert given == [6, 8]
    before = [feed.fingerprint(contents) for contents in (False, True)]
    assert before == [feed.fingerprint(c) for c in (False, True)]
    # Other pixels under the same name, of the same size in bytes or not.
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "val" / "b" / "1.png")
    after = [feed.fingerprint(contents) for contents in (False, True)]
    assert before[0] != after[0] and before[1] != after[1]

    shutil.rmtree(tmp_path / "val")
    assert open_feed(recipe).validation_size == 0
    held = dataclasses.replace(recipe, validation_split=0.3)
    feed = open_feed(held)
    assert 0 < feed.validation_size < 12
    assert feed.train_size + feed.validation_size == 12
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(ValueError, match="`validation_split` must be given"):
        open_feed(recipe)
    feed = open_feed(held)  # what is held out is all that there is
    assert feed.validation_size == 0 and feed.test_size > 0
    assert feed.test_split == "val" and "validation images;" in feed.report()
