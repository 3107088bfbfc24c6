"""A small training run on several devices, in a process of its own.

    python -m tests.devices_run FOLDER DEVICES STOP [COORDINATOR COUNT INDEX]

Trains on the digits for two epochs; the process ends before epoch STOP, counted
from 0, if there is one. Prints as JSON the weights' sums, the result, how many
images were read in an epoch, and how many devices there were.
"""

import json
import os
import pathlib
import sys

import keras
import numpy as np

from keras_muffnet import data
from keras_muffnet.training import configure_keras
from keras_muffnet.training import devices
from keras_muffnet.training import fit
from keras_muffnet.training import use_devices
from tests.training_run import small_recipe

BATCH = 48


class StoppingFeed:
    """Ends the process before an epoch, and counts the images read."""

    def __init__(self, feed, stop):
        self.feed = feed
        self.stop = stop
        self.read = 0

    def __getattr__(self, name):
        return getattr(self.feed, name)

    def epoch(self, epoch, start_step=0):
        if epoch == self.stop:
            print("stopped", flush=True)
            os._exit(3)
        batches = self.feed.epoch(epoch, start_step)
        if keras.backend.backend() == "jax":
            self.read = sum(len(x) for x, _ in self.feed.epoch(epoch))
        return batches


def small_model():
    """As `training_run` has it, of the digits' ten classes."""
    layers = keras.layers
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False)(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(10, name="predictions")(x)
    return keras.Model(inputs, x, name="small")


def main():
    folder, count, stop, *rest = sys.argv[1:]
    recipe = small_recipe(batch_size=BATCH, epochs=2, ema=0.9, jit_compile=None)
    configure_keras(recipe)
    processes = None
    if rest:
        processes = devices.find_processes(
            {}, rest[0], int(rest[1]), int(rest[2])
        )
    if keras.backend.backend() == "tensorflow" and int(count) > 1:
        import tensorflow as tf

        [cpu] = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * int(count)
        )
    found = use_devices(BATCH, processes)
    feed = data.make_feed(
        data.open_source("digits"),
        data.PLAIN,
        size=(8, 8),
        batch_size=BATCH,
        shard=devices.process(),
        fill=devices.device_count() > 1,
    )
    feed.steps_per_epoch = 6
    feed = StoppingFeed(feed, int(stop))
    model = small_model()
    result = fit(model, recipe, feed, folder, verbose=0)
    weights = [np.asarray(w).ravel().tolist() for w in model.get_weights()]
    print(
        json.dumps(
            {
                "weights": weights,
                "result": result,
                "read": feed.read,
                "devices": found,
                "files": sorted(p.name for p in pathlib.Path(folder).glob("*"))
                if pathlib.Path(folder).exists()
                else None,
            }
        )
    )


if __name__ == "__main__":
    main()
