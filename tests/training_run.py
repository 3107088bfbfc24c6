"""A small training run, in a process of its own that may be killed.

    python -m tests.training_run SETTINGS_OF_RECIPE_AS_JSON FOLDER KILL

KILL is "step:N", before step N of the process; "writing:N", within the writing
of checkpoint N; "logged:N", between log and checkpoint N; or "after:N", N
milliseconds after the first step began. With "compare" for
KILL, the run goes on and a second one is done in FOLDER-whole without
interruption; the SHA-256 of both weights are printed.
"""

import hashlib
import json
import os
import signal
import sys
import threading

import keras
import numpy as np

from keras_muffnet import MuffNet
from keras_muffnet import StageSpec
from keras_muffnet.preprocessing import Preprocessing
from keras_muffnet.training import Recipe
from keras_muffnet.training import checkpoints
from keras_muffnet.training import configure_keras
from keras_muffnet.training import fit
from keras_muffnet.training import loop

CLASSES = ("a", "b", "c")


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


class SmallFeed:
    """48 random images whose mean tells their class."""

    class_names = CLASSES
    preprocessing = Preprocessing(class_names=CLASSES)
    train_size = 48
    test_size = 14
    test_split = "test"
    validation_size = 0
    steps_per_epoch = 6
    side = 8

    def __init__(self, seed=0):
        rng = np.random.default_rng(0)
        self.seed = seed
        self.labels = rng.integers(0, 3, self.train_size)
        noise = rng.normal(size=(self.train_size, self.side, self.side, 3))
        shift = self.labels[:, None, None, None]
        self.images = (noise + shift).astype("float32")
        if keras.config.image_data_format() == "channels_first":
            self.images = self.images.transpose(0, 3, 1, 2).copy()

    def epoch(self, epoch, start_step=0):
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.train_size)
        order = order.reshape(self.steps_per_epoch, -1)
        return Batches(
            [
                (self.images[rows], self.labels[rows])
                for rows in order[start_step:]
            ]
        )

    def evaluation(self):
        rows = (slice(0, 8), slice(8, 14))
        return Batches([(self.images[r], self.labels[r]) for r in rows])

    def validation(self):
        return self.evaluation()

    def fingerprint(self, contents=False):
        return str(self.images.sum() if contents else self.seed)

    def report(self):
        return "48 training and 14 test images"


class LargeFeed(SmallFeed):
    """For `large_model`: work enough that threads get in each other's way."""

    train_size = 256
    steps_per_epoch = 4
    side = 32


def small_recipe(**settings):
    return Recipe(
        **{
            "size": 8,
            "batch_size": 8,
            "epochs": 3,
            "learning_rate": 0.1,
            "weight_decay": 1e-3,
            "deterministic": True,
            "jit_compile": False,  # compiling would take most of the time
            **settings,
        }
    )


def small_model():
    """All that has a state: batch normalization, and dropout's random one."""
    layers = keras.layers
    shape = (8, 8, 3)
    if keras.config.image_data_format() == "channels_first":
        shape = (3, 8, 8)
    x = inputs = keras.Input(shape)
    x = layers.Conv2D(4, 3, use_bias=False, name="low_conv")(x)
    x = layers.BatchNormalization(
        axis=1 if shape[0] == 3 else -1, name="low_bn"
    )(x)
    x = layers.ReLU(name="low_relu")(x)
    x = layers.Conv2D(6, 3, strides=2, name="high_conv")(x)
    x = layers.Dropout(0.2, seed=1, name="high_dropout")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dense(len(CLASSES), name="predictions", dtype="float32")(x)
    return keras.Model(inputs, x, name="small")


def large_model():
    """Sums of many gradients: each map of a stage is read by all later ones."""
    return MuffNet(
        (32, 32, 3),
        classes=len(CLASSES),
        classifier_activation=None,
        stages=[StageSpec("average", 5, 20), StageSpec("geometric", 5, 31)],
    )


def run(recipe, folder, verbose=0, feed=None):
    """Does the run, and returns the model and its result."""
    configure_keras(recipe)
    model = small_model() if recipe.size == 8 else large_model()
    if feed is None and recipe.size != 8:
        feed = LargeFeed()
    result = fit(model, recipe, feed or SmallFeed(), folder, verbose)
    return model, result


def digest(model):
    parts = [np.asarray(weight).tobytes() for weight in model.get_weights()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(where, number):
    """Has the process kill itself at the call number `number` of a place."""
    if where == "after":
        # Counted from the first step: compiling takes most of the time.
        owner, name = loop._Saver, "on_train_batch_begin"
        original = getattr(owner, name)

        def started(*args, **kwargs):
            setattr(owner, name, original)
            threading.Timer(number / 1000, kill).start()
            return original(*args, **kwargs)

        setattr(owner, name, started)
        return
    owner, name = {
        "step": (loop._Saver, "on_train_batch_begin"),
        "writing": (checkpoints.os, "fsync"),
        "logged": (checkpoints.Checkpoints, "save"),
    }[where]
    wrapped = getattr(owner, name)
    calls = 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            kill()
        return wrapped(*args, **kwargs)

    setattr(owner, name, counted)


def main():
    settings, folder, end = sys.argv[1:]
    recipe = small_recipe(**json.loads(settings))
    if end != "compare":
        where, number = end.split(":")
        arm(where, int(number))
    model, _ = run(recipe, folder, verbose=2)
    print("weights", digest(model))
    if end == "compare":
        model, _ = run(recipe, f"{folder}-whole")
        print("weights", digest(model))


if __name__ == "__main__":
    main()
