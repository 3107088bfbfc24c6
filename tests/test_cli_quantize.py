"""`muffnet quantize`, of classifiers."""

import io
import json
import os
import re
import shutil
import zipfile
from unittest import mock

import h5py
import keras
import numpy as np
import pytest

from keras_muffnet import MuffNet
from keras_muffnet import data
from keras_muffnet import quantization
from keras_muffnet.cli import common
from keras_muffnet.cli import quantize
from keras_muffnet.cli import quantize_classifier
from keras_muffnet.cli.main import main
from keras_muffnet.data import load_digits
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.litert.metadata import read_metadata
from tests.conftest import write_photos


def small_model(size, classes):
    """A classifier with what quantization folds: batch normalization."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((size, size, 3)),
            layers.Conv2D(8, 3, strides=2, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes, activation="softmax"),
        ]
    )


@pytest.fixture(scope="module")
def to_quantize(tmp_path_factory):
    """Arguments for a tiny model and 60 images."""
    folder = tmp_path_factory.mktemp("to_quantize")
    small_model(16, 10).save(folder / "m.keras")
    (train, y_train), (test, y_test) = load_digits(16)
    np.savez(
        folder / "d.npz",
        train_images=train[:60],
        train_labels=y_train[:60],
        test_images=test[:30],
        test_labels=y_test[:30],
    )
    return [
        "quantize",
        f"--model={folder / 'm.keras'}",
        f"--data={folder / 'd.npz'}",
        "--epochs=2",
        "--batch-size=20",
    ]


@pytest.fixture(scope="module")
def quantized(to_quantize, tmp_path_factory):
    """Folder of an unbroken run."""
    output = tmp_path_factory.mktemp("quantized") / "out"
    flags = [f"--output={output}", "--report", "--emit-header=digits"]
    with mock.patch.dict(os.environ):
        assert main([*to_quantize, *flags]) == 0
    return output


def test_three_files_are_written_and_compared(quantized, capsys):
    metrics = json.loads((quantized / "metrics.json").read_text())
    quantize_classifier.print_table(metrics)
    printed = capsys.readouterr().out
    for name in ("float32", "int8_post_training", "int8"):
        path = quantized / f"{name}.tflite"
        assert metrics[f"{name}_bytes"] == path.stat().st_size
        assert metrics[f"{name}_ms"] > 0
        assert f"{100 * metrics[f'{name}_accuracy']:.2f}%" in printed
        assert read_metadata(path.read_bytes()).mean == (128.0,) * 3
    assert metrics["test_images"] == 30
    assert metrics["float32_agreement"] == 1
    assert metrics["int8_post_training_agreement"] >= 0.9
    assert "in float: none" in (quantized / "report.txt").read_text()
    assert (quantized / "report.png").stat().st_size > 0
    header = (quantized / "digits.h").read_text()
    size = (quantized / "int8.tflite").stat().st_size
    assert f"digits_len = {size}" in header


def test_it_resumes_after_the_last_whole_epoch(
    quantized, to_quantize, tmp_path, monkeypatch, muffnet
):
    make, calls = data.make_dataset, []

    def make_dataset(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(*args, **kwargs)

    command = [*to_quantize, f"--output={tmp_path}"]
    with monkeypatch.context() as patched:
        # The second epoch's data is what interrupts the first run.
        patched.setattr(data, "make_dataset", make_dataset)
        assert "interrupted" in muffnet(*command, status=130)
    assert not (tmp_path / "int8.tflite").exists()
    assert "1 of 2 epochs were done before" in muffnet(*command)
    weights = []
    for folder in (quantized, tmp_path):
        with zipfile.ZipFile(folder / "fine_tuning.keras") as file:
            content = io.BytesIO(file.read("model.weights.h5"))
        found = []
        with h5py.File(content) as h5:
            h5.visititems(
                lambda _, x, found=found: (
                    found.append(x[()]) if isinstance(x, h5py.Dataset) else None
                )
            )
        weights.append(found)
    assert len(weights[0]) > 10
    for unbroken, resumed in zip(*weights, strict=True):
        np.testing.assert_allclose(resumed, unbroken, rtol=1e-4, atol=1e-6)
    other = muffnet(*command, "--learning-rate=1e-3", status=1)
    assert "learning_rate=0.0005" in other


def test_what_was_changed_since_is_not_resumed(
    quantized, to_quantize, tmp_path, muffnet, monkeypatch, capfd
):
    model, arrays = (x.partition("=")[2] for x in to_quantize[1:3])
    paths = tmp_path / "m.keras", tmp_path / "d.npz"
    shutil.copy(model, paths[0])
    shutil.copy(arrays, paths[1])
    output = shutil.copytree(quantized, tmp_path / "out")
    settings = json.loads((output / "settings.json").read_text())
    settings |= {"model": str(paths[0]), "data": str(paths[1])}
    (output / "settings.json").write_text(json.dumps(settings))
    command = ["quantize", f"--model={paths[0]}", f"--data={paths[1]}"]
    command += [*to_quantize[3:], f"--output={output}"]

    def stop(*_):
        raise ValueError("so far")

    monkeypatch.setattr(common, "write_litert", stop)
    assert "so far" in muffnet(*command, status=1)
    network = keras.saving.load_model(model)
    weights = network.get_weights()
    network.set_weights([weights[0] + 1, *weights[1:]])
    network.save(paths[0])
    assert "whose model changed since" in muffnet(*command, status=1)
    shutil.copy(model, paths[0])
    with np.load(arrays) as file:
        np.savez(
            paths[1], **{**file, "train_images": file["train_images"] // 2}
        )
    assert "whose images changed since" in muffnet(*command, status=1)
    # An earlier version wrote none.
    del settings["digests"]
    (output / "settings.json").write_text(json.dumps(settings))
    capfd.readouterr()
    assert main(command) == 1
    printed = capfd.readouterr().err
    assert "does not say of which model" in printed and "so far" in printed


def test_models_of_the_same_layers_and_weights_have_one_digest():
    models = [small_model(16, 3) for _ in range(2)]
    assert models[0].layers[0].name != models[1].layers[0].name
    one, other = map(quantize_classifier.model_digest, models)
    assert one == other
    models[1].layers[2].max_value = 6.0
    assert quantize_classifier.model_digest(models[1]) != one


def test_layers_without_a_rule_are_left_in_float(
    to_quantize, tmp_path, muffnet, monkeypatch
):
    asked = []

    def stop(*_, float_layers, **__):
        asked.append(float_layers)
        raise ValueError("so far")

    monkeypatch.setattr(quantization, "quantize_aware", stop)
    monkeypatch.setattr(common, "write_litert", lambda *_: None)
    for flags in (["unknown"], ["a", "b"]):
        muffnet(
            *(*to_quantize, f"--output={tmp_path}", "--float-layers", *flags),
            status=1,
        )
    assert asked == ["unknown", ["a", "b"]]


@pytest.mark.parametrize(
    ("classes", "changes", "message"),
    [
        (1, {}, r"at least 2 classes. Received: outputs of shape \(None, 1\)"),
        (10, {"train_images": np.float32}, "`train_images`.*float32"),
        (10, {"test_labels": np.float32}, "`test_labels`.*integers.*float32"),
        (3, {}, "`train_labels`.*--model, 0 to 2. Received: 0 to 9"),
    ],
)
def test_what_is_no_classifier_s_is_refused_before_anything_is_written(
    to_quantize, tmp_path, muffnet, classes, changes, message
):
    small_model(16, classes).save(tmp_path / "m.keras")
    with np.load(to_quantize[2].partition("=")[2]) as file:
        arrays = {k: v.astype(changes.get(k, v.dtype)) for k, v in file.items()}
    np.savez(tmp_path / "d.npz", **arrays)
    error = muffnet(
        *("quantize", f"--model={tmp_path / 'm.keras'}"),
        *(f"--data={tmp_path / 'd.npz'}", f"--output={tmp_path / 'out'}"),
        status=1,
    )
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    return write_photos(folder, ("amber", "blue", "cyan"), 8, 3)


def test_a_folder_of_images(photos, muffnet, tmp_path):
    small_model(32, 3).save(tmp_path / "m.keras")
    printed = muffnet(
        *("quantize", f"--model={tmp_path / 'm.keras'}", f"--data={photos}"),
        *("--engine=keras", "--epochs=1", "--batch-size=8"),
        *("--train-images=18", "--normalization", "0", "255"),
        *("--io-dtype=uint8", f"--output={tmp_path / 'out'}"),
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["test_images"] == 9
    assert "9 test images" in printed
    assert metrics["float32_agreement"] == 1
    for name, dtype in (("float32", "float32"), ("int8", "uint8")):
        path = tmp_path / "out" / f"{name}.tflite"
        metadata = read_metadata(path.read_bytes())
        assert metadata.labels == ("amber", "blue", "cyan")
        assert (metadata.mean, metadata.std) == ((0.0,) * 3, (255.0,) * 3)
        assert LiteRTModel(path).input_dtype == dtype


def test_weights_of_a_muffnet_have_the_classes_of_the_images(
    photos, muffnet, tmp_path, monkeypatch
):
    keras.utils.set_random_seed(0)
    network = MuffNet(input_shape=(32, 32, 3), alpha=0.1, classes=3)
    path = tmp_path / "w.weights.h5"
    network.save_weights(path)
    loaded, filled = [], []

    def keep(model, args):
        loaded.append(model)
        filled.append((args.test_split, args.on_bad))

    monkeypatch.setattr(quantize_classifier, "quantize", keep)
    command = ["quantize", f"--model={path}", f"--output={tmp_path / 'out'}"]
    images = f"--data={photos}"
    muffnet(*command, images, "--alpha=0.1", "--size=32")
    arrays = ("--data=d.npz", "--classes=3")
    muffnet(*command, *arrays, "--alpha=0.1", "--size=32")
    for model in loaded:
        for wanted, found in zip(
            network.get_weights(), model.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(found, wanted)
    assert filled == [("test", "raise")] * 2
    for flags, missing in (
        ([images, "--size=32"], "--alpha"),
        ([images, "--alpha=0.1"], "--size"),
        (["--data=d.npz", "--alpha=0.1", "--size=32"], "--classes"),
    ):
        error = muffnet(*command, *flags, status=1)
        assert f"{missing} must be given for a .weights.h5 file" in error


@pytest.mark.parametrize(
    "flag",
    [
        "--train-split=train",
        "--test-split=test",
        "--validation-split=0.1",
        "--nested=top",
        "--on-bad=raise",
        "--size=16",
    ],
)
def test_flags_of_images_are_refused_for_arrays(
    to_quantize, muffnet, tmp_path, flag
):
    error = muffnet(*to_quantize, f"--output={tmp_path}", flag, status=1)
    name, _, value = flag.partition("=")
    assert error.endswith(
        f"{name} must be left out for an .npz file. Received: {value}"
    )


def given(**kwargs):
    """Arguments as the command line gives them, the defaults filled in."""
    flags = {"size": None, "train_images": None, "seed": 0, "on_bad": "raise"}
    flags |= {"train_split": "train", "test_split": "test"}
    flags |= {"validation_split": None, "nested": None}
    return mock.Mock(**flags | kwargs)


def test_as_many_channels_are_loaded_as_the_model_takes(photos):
    model = keras.Sequential([keras.Input((8, 6, 1)), keras.layers.Flatten()])
    train, test, names = quantize_classifier.load_data(
        model, given(data=str(photos))
    )
    assert train[0].shape == (24, 8, 6, 1) and test[0].shape == (9, 8, 6, 1)
    assert names == ["amber", "blue", "cyan"]


def test_arrays_are_sampled_as_a_folder_is(tmp_path):
    path = str(tmp_path / "d.npz")
    numbers = np.arange(100)
    np.savez(
        path,
        train_images=np.tile(numbers[:, None, None, None], (2, 2, 3)).astype(
            np.uint8
        ),
        train_labels=numbers,
        test_images=np.zeros((5, 2, 2, 3), np.uint8),
        test_labels=numbers[:5],
    )
    load, draws = quantize_classifier.load_data, []
    for seed in (0, 0, 1):
        (images, labels), test, _ = load(
            None, given(data=path, train_images=20, seed=seed)
        )
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
        assert len(set(labels)) == 20 and len(test[0]) == 5
        draws.append(labels.tolist())
    # Not the first, which may be all of one class.
    assert draws[0] == draws[1] != draws[2]
    assert max(draws[0]) > 40
    (images, _), _, _ = load(None, given(data=path))
    assert len(images) == 100


def test_what_the_data_lack_is_named(to_quantize, tmp_path, muffnet):
    np.savez(tmp_path / "d.npz", train_images=np.zeros((1, 8, 8, 3)))
    error = muffnet(
        *("quantize", to_quantize[1], f"--data={tmp_path / 'd.npz'}"),
        f"--output={tmp_path / 'out'}",
        status=1,
    )
    for name in ("train_labels", "test_images", "test_labels"):
        assert name in error
    assert not list((tmp_path / "out").glob("*.tflite"))


def test_flags_of_a_classifier_are_refused_for_a_detector(
    tmp_path, muffnet, monkeypatch
):
    monkeypatch.setattr(
        "keras_muffnet.detection.ssd.is_detector", lambda model: True
    )
    small_model(16, 2).save(tmp_path / "m.keras")
    command = ["quantize", f"--model={tmp_path / 'm.keras'}", "--data=x"]
    error = muffnet(*command, "--output=y", "--report", status=1)
    assert "--report must be left out for a detector" in error


def test_defaults_are_those_of_the_kind():
    flags = dict.fromkeys(quantize.DEFAULTS)
    for kind, engine, size in ((0, "keras", 32), (1, None, 8)):
        args = quantize.with_defaults(mock.Mock(spec=[], **flags), kind)
        assert (args.engine, args.batch_size) == (engine, size)
        given_args = mock.Mock(spec=[], **flags | {"batch_size": 3})
        assert quantize.with_defaults(given_args, kind).batch_size == 3
