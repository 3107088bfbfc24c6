"""Training of detectors: runs that resume, first weights, recipes."""

import csv
import dataclasses
import json

import keras
import numpy as np
import pytest

from keras_muffnet import MuffNet
from keras_muffnet.data.detection.feed import GroundTruth
from keras_muffnet.detection.ssd import is_detector
from keras_muffnet.preprocessing import Preprocessing
from keras_muffnet.training import Detection
from keras_muffnet.training import DetectionRecipe
from keras_muffnet.training import build_detector
from keras_muffnet.training import configure_keras
from keras_muffnet.training import fit
from keras_muffnet.training import load_recipe
from keras_muffnet.training import open_detection_feed
from keras_muffnet.training import recipe_names
from keras_muffnet.training.schedules import make_schedule
from tests.test_data_detection import VOC
from tests.test_data_detection import write_coco
from tests.test_data_detection import write_voc
from tests.test_detection import padded
from tests.test_detection import small_ssd
from tests.test_training import read_log
from tests.training_run import Batches
from tests.training_run import digest
from tools.benchmarks import detection as benchmark_detection

pytestmark = pytest.mark.usefixtures("no_curves")


class SmallFeed:
    """Eight images with a square each; the last has none."""

    class_names = ("a", "b")
    preprocessing = Preprocessing(class_names=class_names)
    train_size = test_size = 8
    test_split = "test"
    validation_size = 0
    steps_per_epoch = 2

    def __init__(self, stop=None):
        self.stop = stop
        rng = np.random.default_rng(0)
        images = rng.normal(0, 0.1, (8, 64, 64, 3))
        self.objects = []
        for k, image in enumerate(images[:-1]):
            x, y = rng.integers(0, 40, 2)
            image[y : y + 24, x : x + 24, k % 2] += 2
            self.objects.append([(k % 2, (x, y, x + 24, y + 24))])
        self.objects.append([])
        self.images = images.astype("float32")
        self.targets = padded(self.objects, 2)

    def epoch(self, epoch, start_step=0):
        if epoch == self.stop:
            raise InterruptedError
        order = np.random.default_rng(epoch).permutation(8).reshape(2, 4)
        return Batches(
            [(self.images[r], self.targets[r]) for r in order[start_step:]]
        )

    def evaluation(self):
        return Batches([(self.images, self.targets)])

    def validation(self):
        return self.evaluation()

    def fingerprint(self, contents=False):
        return ""

    def ground_truth(self):
        truths = []
        for k, listed in enumerate(self.objects):
            boxes = np.float32([box for _, box in listed]).reshape(-1, 4)
            none = np.zeros(len(boxes), bool)
            kinds = np.array([kind for kind, _ in listed], int)
            area = np.full(len(boxes), 24.0**2)
            truths.append(
                GroundTruth(k, (64, 64), boxes, kinds, none, none, area)
            )
        return truths

    def report(self):
        return "8 images"


def small_recipe(**settings):
    return DetectionRecipe(
        **{
            "size": 64,
            "batch_size": 4,
            "epochs": 3,
            "learning_rate": 0.01,
            "ema": 0.5,
            "checkpoint_steps": 1,
            "deterministic": True,
            "jit_compile": False,
            **settings,
        }
    )


def run(folder, feed=None):
    recipe = small_recipe()
    configure_keras(recipe)
    model, feed = small_ssd(), feed or SmallFeed()
    task = Detection(recipe, feed)
    return model, fit(model, recipe, feed, folder, verbose=0, task=task)


def test_a_stopped_run_ends_with_the_weights_of_a_whole_one(tmp_path):
    model, result = run(tmp_path / "whole")
    stopped = tmp_path / "stopped"
    with pytest.raises(InterruptedError):
        run(stopped, SmallFeed(stop=2))
    again, same = run(stopped)
    assert digest(again) == digest(model)
    assert same == result
    assert json.loads((stopped / "result.json").read_text()) == result
    log = read_log(stopped)
    assert [row["epoch"] for row in log] == ["1", "2", "3"]
    assert set(log[0]) == {
        *("epoch", "learning_rate", "loss", "val_loss", "val_ap50"),
    }
    best = max(log, key=lambda row: float(row["val_ap50"]))
    assert result["best"]["ap50"] == pytest.approx(float(best["val_ap50"]))
    saved = keras.saving.load_model(stopped / "last.keras", compile=False)
    assert is_detector(saved)
    np.testing.assert_allclose(
        saved.predict(SmallFeed().images, verbose=0),
        model.predict(SmallFeed().images, verbose=0),
        atol=1e-5,
    )


def test_a_task_is_needed(tmp_path):
    with pytest.raises(ValueError, match="`task` must be given"):
        fit(small_ssd(), small_recipe(), SmallFeed(), tmp_path)


def test_a_detector_starts_from_a_classifier_and_from_a_detector(tmp_path):
    classifier = MuffNet(input_shape=(32, 32, 3), alpha=0.1, classes=4)
    path = str(tmp_path / "classifier.keras")
    classifier.save(path)
    settings = {"alpha": 0.1, "extra_width": 0.05}
    model = build_detector(small_recipe(weights=path, **settings), 3)
    for layer in classifier.layers:
        if layer.weights and layer.name != "predictions":
            for mine, theirs in zip(
                model.get_layer(layer.name).weights, layer.weights, strict=True
            ):
                np.testing.assert_array_equal(mine, theirs)
    detector_path = str(tmp_path / "detector.keras")
    model.save(detector_path)
    other = build_detector(small_recipe(weights=detector_path, **settings), 2)
    for name in ("extra1_pointwise_conv", "level2_boxes_conv"):
        np.testing.assert_array_equal(
            other.get_layer(name).kernel, model.get_layer(name).kernel
        )
    assert other.output_shape[-1] == 2 + 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "none.keras"}, "`weights` of a detector must be"),
        ({"backbone": "Nothing"}, "`backbone` must be 'muffnet', one of"),
        (
            {"backbone": "EfficientNetB0", "alpha": 0.5},
            "`alpha` must be 1 for backbones",
        ),
    ],
)
def test_wrong_settings_of_the_network_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        build_detector(small_recipe(**settings), 2)


def test_weights_of_another_alpha_are_refused(tmp_path):
    path = str(tmp_path / "other.keras")
    MuffNet(input_shape=(32, 32, 3), alpha=0.2, classes=4).save(path)
    with pytest.raises(ValueError, match="`weights` must be of the recipe's"):
        build_detector(small_recipe(alpha=0.1, weights=path), 2)


def test_the_recipe_of_ssd512_is_gluoncvs():
    recipe = load_recipe("ssd512", DetectionRecipe)
    assert (recipe.size, recipe.batch_size, recipe.epochs) == (512, 32, 240)
    assert (recipe.momentum, recipe.weight_decay) == (0.9, 5e-4)
    rate = make_schedule(recipe.schedule, recipe.learning_rate, 240, 0)
    rates = [float(rate(epoch)) for epoch in (0, 159, 160, 199, 200, 239)]
    np.testing.assert_allclose(
        rates, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-5
    )
    warmed = make_schedule("steps", 1.0, 100, 10)
    assert float(warmed(5)) == pytest.approx(0.5)
    assert type(warmed).from_config(warmed.get_config())(70) == warmed(70)


def test_recipes_of_both_kinds_are_told_apart():
    detectors = recipe_names(DetectionRecipe)
    assert detectors == ["ssd300_fast", "ssd512"]
    assert not set(detectors) & set(recipe_names())
    with pytest.raises(ValueError, match="`name` must be one of"):
        load_recipe("ssd512")


@pytest.mark.slow
def test_backbones_are_compared(tmp_path, monkeypatch):
    objects = [("cat", (3, 3, 20, 20)), ("dog", (9, 9, 30, 28))]
    images = write_voc(
        tmp_path / "voc",
        {"trainval": "abcd", "test": "ab"},
        dict.fromkeys("abcd", objects),
    )
    recipe = small_recipe(
        batch_size=2,
        extra_width=0.05,
        train_split="trainval",
        # At more, weights explode in batches of two, and so do int8's ranges.
        learning_rate=1e-5,
    )
    monkeypatch.setattr(benchmark_detection, "ROUNDS", 2)
    backbones = {"ShuffleNetV2": 0.1}
    monkeypatch.setattr(benchmark_detection, "BACKBONES", backbones)
    monkeypatch.setattr(
        benchmark_detection, "load_recipe", lambda name, kind: recipe
    )
    output = tmp_path / "detection.csv"
    flags = ["--data", images, "--epochs", 1, "--output", output]
    flags += ["--runs", tmp_path / "runs"]
    command = ["benchmark_detection.py", *map(str, flags)]
    monkeypatch.setattr("sys.argv", command)
    assert benchmark_detection.main() == 0
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["backbone"] for row in rows] == ["ShuffleNetV2"]
    for row in rows:
        assert int(row["parameters"]) > 0
        assert 0 <= float(row["ap50"]) <= 1
        assert float(row["float_ms"]) > 0
        assert float(row["int8_ms"]) > 0


@pytest.mark.parametrize(
    ("lists", "sizes", "held_out"),
    [
        ({"trainval": "abcd", "train": "ab", "test": "tu"}, (4, 0, 2), None),
        # What is tested on stands for "test" and is a part of "trainval".
        (
            {"trainval": "abtu", "train": "ab", "val": "tu"},
            (2, 0, 2, "val"),
            None,
        ),
        ({"train": "abc", "val": "tu"}, (3, 0, 2, "val"), None),
        ({"train": "ab", "val": "d", "test": "tu"}, (2, 1, 2), None),
        ({"train": "abcd", "test": "tu"}, (3, 1, 2), 0.3),
        ({"trainval": "abcd", "test": "tu"}, (3, 1, 2), 0.3),
        ({"train": "abcd"}, (3, 0, 1, "val"), 0.3),
        (None, (3, 0, 3, "val"), None),  # COCO
    ],
)
def test_the_small_recipe_finds_the_splits(lists, sizes, held_out, tmp_path):
    if lists is None:
        write_coco(tmp_path, "train2017")
        write_coco(tmp_path, "val2017")
    else:
        write_voc(tmp_path / "voc", lists, dict.fromkeys(VOC, VOC["a"]))
    recipe = dataclasses.replace(
        load_recipe("ssd300_fast", DetectionRecipe),
        data=str(tmp_path if lists is None else tmp_path / "voc"),
        size=32,
        batch_size=2,
        validation_split=held_out,
    )
    feed = open_detection_feed(recipe)
    assert (feed.train_size, feed.validation_size, feed.test_size) == sizes[:3]
    assert feed.test_split == ("val" if sizes[3:] else "test")
    kinds = feed.report().partition(" images")[0]
    assert ("validation" in kinds) == bool(feed.validation_size or sizes[3:])
    assert len(feed.ground_truth(True)) == len(
        [row for x, _ in feed.validation() for row in x]
    )


def test_what_is_held_out_is_not_trained_on(tmp_path):
    lists = {"trainval": "abcd", "train": "ab", "test": "tu"}
    write_voc(tmp_path / "voc", lists, VOC)
    recipe = small_recipe(
        data=str(tmp_path / "voc"),
        train_split="trainval",
        validation_split=0.3,
    )
    with pytest.raises(ValueError, match="`train_split` must be 'train'"):
        open_detection_feed(recipe)


class ValidatedFeed(SmallFeed):
    """Its last image, which has no objects, is what epochs are compared on."""

    validation_size = 1

    def validation(self):
        return Batches([(self.images[-1:], self.targets[-1:])])

    def ground_truth(self, validation=False):
        truths = super().ground_truth()
        return truths[-1:] if validation else truths


def test_epochs_are_compared_on_validation_images(tmp_path):
    _, result = run(tmp_path, ValidatedFeed())
    log = read_log(tmp_path)
    assert [float(row["val_ap50"]) for row in log] == [0, 0, 0]
    assert result["last"]["loss"] != float(log[-1]["val_loss"])
    assert result["best"]["epoch"] == 1
