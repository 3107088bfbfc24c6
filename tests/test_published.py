"""Weights that ship with the package, and how they are made of a run."""

import csv
import dataclasses
import hashlib
import json
import re
import shutil
import tarfile

import keras
import numpy as np
import pytest

from keras_muffnet import MuffNet
from keras_muffnet import published
from keras_muffnet import published_detectors
from keras_muffnet import published_weights
from keras_muffnet.detection import pretrained_ssd
from keras_muffnet.evaluation import load_detector
from keras_muffnet.training import DetectionRecipe
from keras_muffnet.training import build_detector
from keras_muffnet.training import load_recipe
from keras_muffnet.training import network
from tests.conftest import ROOT
from tools import publish_weights

CIFAR = ROOT.parent / "shared/data/cifar10.tar.xz"
BCCD = ROOT.parent / "shared/data/bccd.tar.xz"
SHIPPED = published_weights()
SETTINGS = {
    **{"alpha": 0.1, "size": 32, "stem": "auto", "epochs": 1, "seed": 0},
    **{"batch_size": 250, "learning_rate": 0.1, "ema": None},
}
MEASURED = {"accuracy": 0.125, "top5_accuracy": 0.625}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, of a small network on the digits."""
    folder = tmp_path_factory.mktemp("run")
    keras.utils.set_random_seed(0)
    model = MuffNet(input_shape=(32, 32, 3), alpha=0.1, classes=10)
    model.save(folder / "best.keras")
    digits = [str(digit) for digit in range(10)]
    configuration = {
        "settings": SETTINGS,
        "network": model.name,
        "parameters": model.count_params(),
        "classes": digits,
        "train_images": 1437,
        "test_images": 360,
        "versions": {"keras": keras.__version__},
    }
    figures = {"epoch": 1, "accuracy": 0.1, "top5_accuracy": 0.5}
    result = {"best": figures, "last": figures | {"accuracy": 0.0625}}
    (folder / "configuration.json").write_text(json.dumps(configuration))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "log.csv").write_text(
        "epoch,accuracy,val_accuracy,loss,val_loss\n1,0.25,0.125,2,2.5\n"
    )
    (folder / "card.md").write_text("About the digits.\n")
    return folder, model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in place of the package's."""
    (tmp_path / "weights").mkdir()
    return replace_folder(tmp_path / "weights", monkeypatch)


def replace_folder(folder, monkeypatch):
    for module in (published, publish_weights):
        monkeypatch.setattr(module, "FOLDER", folder)
    return folder


@pytest.fixture(scope="module")
def published_once(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as monkeypatch:
        replace_folder(folder, monkeypatch)
        publish(run[0], monkeypatch)
    return folder


@pytest.fixture
def published_folder(published_once, tmp_path, monkeypatch):
    """The folder in place of the package's, with the run's weights."""
    shutil.copytree(published_once, tmp_path / "weights")
    return replace_folder(tmp_path / "weights", monkeypatch)


def publish(run, monkeypatch, *before, data="digits"):
    flags = {
        "--name": "digits",
        "--data": data,
        "--card": run / "card.md",
        "--command": "muffnet train",
    }
    given = [part for pair in flags.items() for part in pair]
    given += ["--run", *before, run]
    monkeypatch.setattr("sys.argv", ["publish_weights.py", *map(str, given)])
    return publish_weights.main()


def test_a_run_is_published(run, published_folder):
    folder, (_, model) = published_folder, run
    names = {path.name for path in folder.iterdir()}
    parts = ("weights.h5", "md", "csv", "png")
    assert names == {"catalog.json", *(f"digits_0.1.{p}" for p in parts)}
    [(name, entry)] = published_weights().items()
    assert name == "digits"
    assert entry.class_names == tuple("0123456789")
    assert entry.stem == "cifar"
    content = (folder / "digits_0.1.weights.h5").read_bytes()
    assert entry.sha256 == {0.1: hashlib.sha256(content).hexdigest()}
    card = (folder / "digits_0.1.md").read_text()
    scores = re.search(r"top 1, top 5 \| (\S+)%, (\S+)% on 360 test im", card)
    # Of the weights that ship, not the log's.
    again = publish_weights.accuracies(model, "digits", SETTINGS)
    assert scores is not None
    assert [float(x) for x in scores.groups()] == pytest.approx(
        [100 * again["accuracy"], 100 * again["top5_accuracy"]],
        abs=100 / 360,
    )
    # Not the log's 12.5%, which may be of validation images.
    assert "6.25% top 1 on the test images, 25.00% on augmented" in card
    assert "stem 'cifar' at 32x32" in card
    assert "About the digits." in card

    loaded = MuffNet((32, 32, 3), alpha=0.1, weights="digits", classes=10)
    for ours, theirs in zip(loaded.weights, model.weights, strict=True):
        assert ours.dtype == "float32"
        expected = np.float16(keras.ops.convert_to_numpy(theirs))
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(ours), expected
        )


def test_runs_in_a_row_have_one_log(run, folder, monkeypatch):
    source, _ = run
    monkeypatch.setattr(publish_weights, "accuracies", lambda *_: MEASURED)
    publish(source, monkeypatch, source)
    with open(folder / "digits_0.1.csv", newline="") as file:
        epochs = [row["epoch"] for row in csv.DictReader(file)]
    assert epochs == ["1", "2"]
    card = (folder / "digits_0.1.md").read_text()
    assert "| epochs | 2; the weights are of epoch 2 |" in card


@pytest.fixture(scope="module")
def detector_run(tmp_path_factory):
    """A run's folder of a small detector, with images and boxes."""
    keras.utils.set_random_seed(0)
    recipe = DetectionRecipe(
        size=64,
        alpha=0.1,
        extra_width=0.05,
        anchor_scale=0.7,
        batch_size=2,
        epochs=1,
        learning_rate=0.1,
        train_split="trainval",
    )
    model = build_detector(recipe, 2)
    folder = tmp_path_factory.mktemp("detector_run")
    model.save(folder / "last.keras")
    configuration = {
        "settings": dataclasses.asdict(recipe),
        "network": model.name,
        "parameters": model.count_params(),
        "classes": ["cat", "dog"],
        "train_images": 4,
        "test_images": 2,
        "versions": {"keras": keras.__version__},
    }
    result = {"last": {"epoch": 1, "ap50": 0.1, "loss": 1.0}}
    (folder / "configuration.json").write_text(json.dumps(configuration))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "log.csv").write_text("epoch,loss,val_loss,val_ap50\n1,9,8,0.1\n")
    (folder / "card.md").write_text("About the animals.\n")
    return folder, model


def test_a_detector_is_published(detector_run, folder, monkeypatch):
    source, model = detector_run
    monkeypatch.setattr(
        publish_weights, "average_precision", lambda *_: {"ap50": 0.125}
    )
    (folder / "catalog.json").write_text("{}")
    publish(source, monkeypatch, data="voc/")
    assert set(published_detectors()) == {"digits"}
    entry = published_detectors()["digits"]
    assert entry.class_names == ("cat", "dog")
    card = (folder / "digits.md").read_text()
    assert "| AP50 | 12.50% on 2 test images |" in card
    assert "muffnet evaluate --model digits --data voc/" in card
    loaded = pretrained_ssd("digits")
    assert loaded.layers[-1].get_config() == model.layers[-1].get_config()
    for ours, theirs in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(ours),
            np.float16(keras.ops.convert_to_numpy(theirs)),
        )
    assert load_detector("digits").size == (64, 64)
    assert load_detector("digits").class_names == ("cat", "dog")
    again = dataclasses.replace(
        DetectionRecipe(
            **json.loads((source / "configuration.json").read_text())[
                "settings"
            ]
        ),
        weights="digits",
    )
    started = build_detector(again, 2)
    for ours, theirs in zip(started.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    path = folder / "digits.weights.h5"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"digits.weights.h5.*damaged"):
        pretrained_ssd("digits")


def test_a_detector_on_a_peer_does_not_ship(
    detector_run, folder, tmp_path, monkeypatch, capsys
):
    source = tmp_path / "run"
    shutil.copytree(detector_run[0], source)
    path = source / "configuration.json"
    configuration = json.loads(path.read_text())
    configuration["settings"]["backbone"] = "MobileNet"
    path.write_text(json.dumps(configuration))
    assert publish(source, monkeypatch, data="voc/") == 1
    assert "must be 'muffnet'" in capsys.readouterr().err
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("settings", "stem"),
    [
        ({"size": 224}, "imagenet"),
        ({"size": 64}, "imagenet"),
        ({"size": 64, "weights": "tiny_imagenet"}, "tiny_imagenet"),
        ({"size": 64, "weights": "tiny_imagenet", "stem": "cifar"}, "cifar"),
        ({"size": 64, "weights": "cifar10"}, "cifar"),
    ],
)
def test_the_catalog_has_the_stem_of_the_network(
    run, folder, monkeypatch, settings, stem
):
    _, model = run
    configuration = {
        "classes": ["a"],
        "settings": SETTINGS | settings,
    }
    (folder / "catalog.json").write_text("{}")
    monkeypatch.setattr(network, "published_weights", lambda: SHIPPED)
    publish_weights.enter("photos", configuration, model, "0")
    assert (
        json.loads((folder / "catalog.json").read_text())["photos"]["stem"]
        == stem
    )


def test_widths_of_one_name_share_their_fields(
    run, folder, monkeypatch, capsys
):
    _, model = run
    source = run[0]
    configuration = json.loads((source / "configuration.json").read_text())
    alpha = str(float(configuration["settings"]["alpha"]))
    publish_weights.enter("digits", configuration, model, "new")
    path = folder / "catalog.json"
    entry = json.loads(path.read_text())["digits"]
    assert entry["sha256"] == {alpha: "new"} and "crop" not in entry
    # An entry of the same width alone is replaced as a whole.
    older = {**entry, "size": 99, "crop": 0.875, "sha256": {alpha: "old"}}
    path.write_text(json.dumps({"digits": older}))
    publish_weights.enter("digits", configuration, model, "new")
    assert json.loads(path.read_text()) == {"digits": entry}
    # One of another width stays, and what differs from it is refused.
    wide = {**entry, "sha256": {"9.0": "wide"}}
    path.write_text(json.dumps({"digits": wide}))
    publish_weights.enter("digits", configuration, model, "new")
    found = json.loads(path.read_text())["digits"]
    assert found["sha256"] == {"9.0": "wide", alpha: "new"}
    path.write_text(json.dumps({"digits": {**wide, "crop": 0.875}}))
    before = path.read_text()
    assert publish(source, monkeypatch) == 1
    assert "whose crop at alpha" in capsys.readouterr().err
    assert [p.name for p in folder.iterdir()] == [path.name]
    assert path.read_text() == before


def test_an_unknown_detector_is_refused():
    with pytest.raises(ValueError, match="`name` must be one of"):
        pretrained_ssd("cells")


def test_without_classifier_any_size_stem_and_upstream(run, published_folder):
    _, model = run
    photos = keras.Input((96, 64, 3))
    # A convolution upstream has no weights in the file.
    x = keras.layers.Conv2D(3, 1, name="upstream")(photos)
    body = MuffNet(
        input_tensor=x,
        alpha=0.1,
        include_top=False,
        pooling="avg",
        weights="digits",
    )
    assert body.output_shape == (None, 1024)
    assert body.get_layer("stem_conv").strides == (1, 1)  # as at 32x32
    for layer in body.layers:
        if layer.weights and layer.name != "upstream":
            for ours, theirs in zip(
                layer.get_weights(),
                model.get_layer(layer.name).get_weights(),
                strict=True,
            ):
                np.testing.assert_array_equal(ours, np.float16(theirs))


@pytest.mark.parametrize("shape", [(32, 32, 3), (96, 64, 3), (None, None, 3)])
def test_auto_is_the_stem_of_the_weights_at_any_size(shape):
    arguments = {"alpha": 0.5, "include_top": False, "weights": "cifar10"}
    body = MuffNet(shape, **arguments)
    assert body.output_shape[1:3] == tuple(s and s // 4 for s in shape[:2])
    coarser = MuffNet(shape, **arguments, stem="tiny_imagenet")
    assert coarser.output_shape[1:3] == tuple(s and s // 8 for s in shape[:2])


def test_published_weights_bring_their_size():
    model = MuffNet(alpha=0.5, weights="cifar10", classes=10)
    assert model.input_shape == (None, 32, 32, 3)


def test_damage_is_found(published_folder):
    path = published_folder / "digits_0.1.weights.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"digits_0.1.weights.h5.*damaged"):
        MuffNet((32, 32, 3), alpha=0.1, weights="digits", classes=10)


def test_accuracy_lost_in_float16_refuses(run, folder, monkeypatch, capsys):
    source = folder / "run"
    shutil.copytree(run[0], source)
    figures = iter([{"accuracy": 0.9}, {"accuracy": 0.8}])
    monkeypatch.setattr(publish_weights, "accuracies", lambda *_: next(figures))
    assert publish(source, monkeypatch) == 1
    assert "from 90.00% to 80.00%" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"run"}


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({"alpha": 1.0}, ["`alpha` must be one of 0.5", "alpha=1.0"]),
        ({"classes": 1000}, ["`classes` must be 10", "classes=1000"]),
        ({"stem": "imagenet"}, ["`stem` must be 'cifar'", "'imagenet'"]),
        ({"input_shape": (32, 32, 1)}, ["`input_shape`", "3 channels"]),
        ({"weights": "cifar"}, ["`weights`", "cifar10", "'cifar'"]),
    ],
)
def test_what_does_not_fit_is_refused(arguments, fragments):
    fitting = {"input_shape": (32, 32, 3), "alpha": 0.5, "classes": 10}
    with pytest.raises(ValueError) as caught:
        MuffNet(**{**fitting, "weights": "cifar10", **arguments})
    for fragment in fragments:
        assert fragment in str(caught.value)


def check_card(stem):
    card = (published.FOLDER / f"{stem}.md").read_text()
    for part in ("licen", "seed", "intended use", f"{stem}.png"):
        assert part in card.lower()
    for suffix in ("csv", "png"):
        assert (published.FOLDER / f"{stem}.{suffix}").is_file()


def test_what_ships_is_whole():
    """Each network has weights that are what the catalog says, and a card."""
    assert set(published_weights()) == {"cifar10", "tiny_imagenet"}
    for name, entry in published_weights().items():
        for alpha in entry.sha256:
            assert published.weights_file(name, alpha).is_file()
            check_card(published.file_stem(name, alpha))


def test_the_detector_that_ships_is_whole():
    assert set(published_detectors()) == {"bccd"}
    check_card("bccd")
    model = pretrained_ssd("bccd")
    assert model.name == "ssd_bccd"
    assert model.input_shape == (None, 300, 300, 3)
    assert model.output_shape[-1] == 3 + 5


@pytest.mark.skipif(
    not CIFAR.exists(), reason="CIFAR-10 (JPEG) lies beside the project only"
)
@pytest.mark.slow
def test_card_tells_the_accuracy():
    """The shipped weights have the accuracy of their card, measured anew."""
    model = MuffNet((32, 32, 3), alpha=0.5, weights="cifar10", classes=10)
    found = publish_weights.accuracies(model, str(CIFAR), SETTINGS)
    card = (published.FOLDER / "cifar10_0.5.md").read_text()
    scores = f"{found['accuracy']:.2%}, {found['top5_accuracy']:.2%}"
    assert f"| top 1, top 5 | {scores} on 10,000 test images" in card


@pytest.mark.skipif(
    not BCCD.exists(), reason="BCCD lies beside the project only"
)
@pytest.mark.slow
def test_card_tells_the_average_precision(tmp_path):
    """The shipped detector has the AP50 of its card, measured anew."""
    with tarfile.open(BCCD) as archive:
        archive.extractall(tmp_path, filter="data")
    settings = dataclasses.asdict(load_recipe("ssd300_fast", DetectionRecipe))
    found = publish_weights.average_precision(
        pretrained_ssd("bccd"),
        str(tmp_path / "bccd"),
        settings | {"on_bad": "skip"},
    )
    card = (published.FOLDER / "bccd.md").read_text()
    assert f"| AP50 | {found['ap50']:.2%} on 72 test images |" in card
