"""The command-line programs, run as a user runs them."""

import io
import json
import pathlib
import runpy
import subprocess
import sys
import types
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_muffnet import MuffNet
from keras_muffnet import preprocess_input
from keras_muffnet.data import load_digits
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.litert.metadata import read_metadata
from tests.conftest import ROOT

QUICKSTART = str(ROOT / "tools" / "quickstart.py")

ARTEFACTS = (
    "curves.png",
    "metrics.json",
    "muffnet.keras",
    "muffnet/1/saved_model.pb",
    "muffnet_float32.tflite",
    "muffnet_int8.tflite",
    "predictions.png",
    "sharing_matrix.png",
)


def check_artefacts(output):
    for name in ARTEFACTS:
        assert (output / name).stat().st_size > 0, name
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["parameters"] == 365_891
    assert metrics["macs"] == 40_696_448
    assert metrics["served_float_difference"] <= 1e-5
    assert metrics["served_bytes_difference"] <= 1e-5
    assert 0 < metrics["int8_bytes"] < metrics["float32_bytes"] / 2
    assert metrics["int8_latency_ms"] > 0
    return metrics


def test_quickstart_at_reduced_size(tmp_path):
    output = tmp_path / "out"
    done = subprocess.run(
        [
            "make",
            "--old-file=.venv/all.done",  # the environment is the running one
            "quickstart",
            f"BIN={pathlib.Path(sys.executable).parent}",
            f"ARGS=--smoke --output {output}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = check_artefacts(output)
    assert metrics["test_images"] == 96
    assert metrics["float_accuracy"] == accuracy_of(output)
    for step in range(1, 7):
        assert f"== {step}/6" in done.stdout
    closing = done.stdout[done.stdout.index("== 6/6") :]
    for word in ("test accuracy", "LiteRT file", "latency", "MACs"):
        assert word in closing


def accuracy_of(output):
    """The saved model's own accuracy on the test images that were used."""
    (_, _), (images, labels) = load_digits()
    model = keras.saving.load_model(output / "muffnet.keras")
    scores = model.predict(preprocess_input(images[:96]), verbose=0)
    return (scores.argmax(axis=1) == labels[:96]).mean()


@pytest.mark.slow
def test_quickstart_keeps_its_promises(run_python, tmp_path):
    run_python(QUICKSTART, "--output", str(tmp_path))
    metrics = check_artefacts(tmp_path)
    assert metrics["test_images"] == 360
    assert metrics["float_accuracy"] >= 0.97
    assert metrics["int8_accuracy"] >= metrics["float_accuracy"] - 0.005


def test_quickstart_tells_what_it_missed(run_python):
    code = f"""
import runpy
module = runpy.run_path({QUICKSTART!r})
good = dict(float_accuracy=0.98, int8_accuracy=0.978,
            served_float_difference=1e-6, served_bytes_difference=0.0)
print(module["missed_bars"](good))
for change in (dict(float_accuracy=0.969), dict(int8_accuracy=0.97),
               dict(served_float_difference=2e-5),
               dict(served_bytes_difference=float("nan"))):
    [missed] = module["missed_bars"](good | change)
    print(missed)
"""
    lines = run_python("-c", code).splitlines()
    assert lines[0] == "[]"
    for line, word in zip(
        lines[1:], ("96.90%", "97.00%", "2e-05", "nan"), strict=True
    ):
        assert word in line


def test_count_prints_the_published_counts(run_python):
    lines = run_python(str(ROOT / "tools" / "count.py")).splitlines()
    assert len(lines) == 1 + 9
    assert not any("DIFFERS" in line for line in lines)
    assert lines[1].split() == ["0.5", "parameters", *["1,380,641"] * 2, "1.4M"]
    assert lines[9].split()[-1] == "373M"


def test_count_of_one_network_by_layer(run_python):
    printed = run_python(
        str(ROOT / "tools" / "count.py"),
        *("--alpha", "0.5", "--size", "32", "--classes", "10"),
    )
    lines = printed.splitlines()
    assert lines[-1].split() == ["total", "365,891", "40,696,448"]


def refused(*command):
    """Runs a program that must end in one line of error."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_count_refuses_a_bad_notation():
    error = refused(
        ROOT / "tools" / "count.py", "--alpha=1", "--sharing=average"
    )
    assert "`notation` must name three" in error


def test_a_failing_step_ends_the_quickstart_in_one_line(tmp_path):
    code = (
        "import runpy, sys;"
        f"module = runpy.run_path({QUICKSTART!r});"
        f"sys.argv = ['quickstart.py', '--smoke', '--output={tmp_path}'];"
        "module['main'].__globals__['train_model'] ="
        " lambda *_: open('/no/such/file');"
        "sys.exit(module['main']())"
    )
    error = refused("-c", code)
    assert error.splitlines()[-1].startswith("FAILED: [Errno 2]")


def test_training_log_keeps_one_row_an_epoch(run_python, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("epoch,loss\n0,3\n1,2\n1,1.5\n2,1\n")
    code = (
        f"import pathlib, runpy; module = runpy.run_path({QUICKSTART!r});"
        f"print(module['read_columns'](pathlib.Path({str(log)!r})))"
    )
    printed = run_python("-c", code)
    assert printed == "{'epoch': [0.0, 1.0, 2.0], 'loss': [3.0, 1.5, 1.0]}\n"


QUANTIZE = ROOT / "tools" / "quantize.py"


@pytest.fixture(scope="module")
def to_quantize(tmp_path_factory):
    """Arguments of tools/quantize.py for a tiny model and 60 images."""
    folder = tmp_path_factory.mktemp("to_quantize")
    keras.utils.set_random_seed(0)
    MuffNet(input_shape=(16, 16, 3), alpha=0.1, classes=10).save(
        folder / "m.keras"
    )
    (train, y_train), (test, y_test) = load_digits(16)
    np.savez(
        folder / "d.npz",
        train_images=train[:60],
        train_labels=y_train[:60],
        test_images=test[:30],
        test_labels=y_test[:30],
    )
    return [
        f"--model={folder / 'm.keras'}",
        f"--data={folder / 'd.npz'}",
        "--epochs=2",
        "--batch-size=20",
    ]


@pytest.fixture(scope="module")
def quantized(to_quantize, tmp_path_factory):
    output = tmp_path_factory.mktemp("quantized") / "out"
    done = subprocess.run(
        [
            sys.executable,
            QUANTIZE,
            *to_quantize,
            f"--output={output}",
            "--report",
            "--emit-header=digits",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return output, done.stdout


def test_quantize_writes_three_files_and_compares_them(quantized):
    output, printed = quantized
    metrics = json.loads((output / "metrics.json").read_text())
    for name in ("float32", "int8_post_training", "int8"):
        path = output / f"{name}.tflite"
        assert metrics[f"{name}_bytes"] == path.stat().st_size
        assert metrics[f"{name}_ms"] > 0
        assert f"{100 * metrics[f'{name}_accuracy']:.2f}%" in printed
        assert read_metadata(path.read_bytes()).mean == (128.0,) * 3
    assert metrics["test_images"] == 30
    assert metrics["float32_agreement"] == 1
    assert metrics["int8_post_training_agreement"] >= 0.9
    assert metrics["int8_bytes"] < metrics["float32_bytes"]
    assert "in float: none" in (output / "report.txt").read_text()
    assert (output / "report.png").stat().st_size > 0
    header = (output / "digits.h").read_text()
    size = (output / "int8.tflite").stat().st_size
    assert f"digits_len = {size}" in header


def test_quantize_goes_on_after_the_last_whole_epoch(
    quantized, to_quantize, tmp_path
):
    # The second epoch's data is what interrupts the first run.
    code = f"""
import runpy, sys
from keras_muffnet import data
make, calls = data.make_dataset, []
def make_dataset(*args, **kwargs):
    calls.append(1)
    if len(calls) == 2:
        raise KeyboardInterrupt
    return make(*args, **kwargs)
data.make_dataset = make_dataset
sys.argv = ["quantize.py", *{to_quantize!r}, "--output={tmp_path}"]
runpy.run_path({str(QUANTIZE)!r}, run_name="__main__")
"""
    stopped = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert b"KeyboardInterrupt" in stopped.stderr
    assert not (tmp_path / "int8.tflite").exists()
    command = [sys.executable, QUANTIZE, *to_quantize, f"--output={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 2 epochs were done before" in done.stdout
    weights = []
    for folder in (quantized[0], tmp_path):
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
    assert len(weights[0]) > 50
    for unbroken, resumed in zip(*weights, strict=True):
        np.testing.assert_allclose(resumed, unbroken, rtol=1e-4, atol=1e-6)
    other = refused(*command[1:], "--learning-rate=1e-3")
    assert "learning_rate=0.0005" in other


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of three classes, told apart by their colour, of sizes mixed."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for channel, name in enumerate(("amber", "blue", "cyan")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                size = 32 + 8 * (i % 2)
                pixels = rng.integers(0, 200, (size, size, 3), "uint8")
                pixels[..., channel] += 55
                path = folder / split / name / f"{i}.png"
                path.write_bytes(tf.io.encode_png(pixels).numpy())
    return folder


def test_quantize_takes_a_folder_of_images(photos, run_python, tmp_path):
    keras.utils.set_random_seed(0)
    keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    ).save(tmp_path / "m.keras")
    printed = run_python(
        str(QUANTIZE),
        *(f"--model={tmp_path / 'm.keras'}", f"--data={photos}"),
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
        told = read_metadata(path.read_bytes())
        assert told.labels == ("amber", "blue", "cyan")
        assert (told.mean, told.std) == ((0.0,) * 3, (255.0,) * 3)
        assert LiteRTModel(path).input_dtype == dtype


@pytest.fixture(scope="module")
def quantize_program():
    return runpy.run_path(str(QUANTIZE))


def test_quantize_takes_weights_of_a_muffnet(quantize_program, tmp_path):
    keras.utils.set_random_seed(0)
    network = MuffNet(input_shape=(32, 32, 3), alpha=0.25, classes=3)
    path = str(tmp_path / "w.weights.h5")
    network.save_weights(path)
    load, names = quantize_program["load_model"], ["a", "b", "c"]
    loaded = load(given(weights=path, alpha=0.25), (32, 32), names)
    for wanted, found in zip(
        network.get_weights(), loaded.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    for alpha, known in ((None, names), (0.25, None)):
        with pytest.raises(ValueError, match=r"needs --alpha, and --data"):
            load(given(weights=path, alpha=alpha), (32, 32), known)
    with pytest.raises(ValueError, match="--size must be given"):
        quantize_program["load_data"](given(data="digits"))


def given(**kwargs):
    """Arguments as the command line gives them."""
    defaults = {"model": None, "size": None, "train_images": None, "seed": 0}
    return types.SimpleNamespace(**defaults | kwargs)


def test_quantize_loads_as_many_channels_as_the_model_takes(
    photos, quantize_program, tmp_path
):
    path = str(tmp_path / "grey.keras")
    keras.Sequential([keras.Input((8, 6, 1)), keras.layers.Flatten()]).save(
        path
    )
    args = given(model=path, data=str(photos))
    train, test, names = quantize_program["load_data"](args)
    assert train[0].shape == (24, 8, 6, 1) and test[0].shape == (9, 8, 6, 1)
    assert names == ["amber", "blue", "cyan"]


def test_quantize_draws_from_arrays_as_from_a_folder(
    quantize_program, tmp_path
):
    path = str(tmp_path / "d.npz")
    numbers = np.arange(100)
    np.savez(
        path,
        train_images=np.tile(numbers[:, None, None, None], (2, 2, 3)),
        train_labels=numbers,
        test_images=np.zeros((5, 2, 2, 3)),
        test_labels=numbers[:5],
    )
    draws = []
    for seed in (0, 0, 1):
        (images, labels), test, _ = quantize_program["load_data"](
            given(data=path, train_images=20, seed=seed)
        )
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
        assert len(set(labels)) == 20 and len(test[0]) == 5
        draws.append(labels.tolist())
    # Not the first, which may be all of one class.
    assert draws[0] == draws[1] != draws[2]
    assert max(draws[0]) > 40
    (images, _), _, _ = quantize_program["load_data"](given(data=path))
    assert len(images) == 100


@pytest.mark.parametrize(
    ("first", "scaling"),
    [
        (keras.layers.ReLU, (128.0, 128.0)),
        (lambda: keras.layers.Rescaling(1 / 255), (0.0, 1.0)),
        (lambda: keras.layers.Normalization(mean=9, variance=4), (0.0, 1.0)),
        (
            lambda: keras.Sequential([keras.layers.Rescaling(1 / 255)]),
            (0.0, 1.0),
        ),
    ],
    ids=["none", "rescaling", "normalization", "nested"],
)
def test_quantize_knows_models_that_scale(first, scaling, quantize_program):
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, keras.layers.ReLU()(first()(image)))
    assert quantize_program["default_normalization"](model) == scaling


def test_quantize_names_what_the_data_lack(to_quantize, tmp_path):
    np.savez(tmp_path / "d.npz", train_images=np.zeros((1, 8, 8, 3)))
    error = refused(
        QUANTIZE,
        to_quantize[0],
        f"--data={tmp_path / 'd.npz'}",
        f"--output={tmp_path / 'out'}",
    )
    for name in ("train_labels", "test_images", "test_labels"):
        assert name in error
    assert not list((tmp_path / "out").glob("*.tflite"))


EXPORT = ROOT / "tools" / "export.py"


def run_export(monkeypatch, *args):
    """Runs tools/export.py here, where TensorFlow has been started."""
    monkeypatch.setattr(sys, "argv", [str(EXPORT), *map(str, args)])
    runpy.run_path(str(EXPORT), run_name="__main__")


@pytest.fixture
def to_export(tmp_path):
    """A model that wants pixels as they are, and its labels."""
    x = keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(x))
    model = keras.Model(x, keras.layers.Dense(2, "softmax")(flat))
    model.save(tmp_path / "m.keras")
    (tmp_path / "labels.txt").write_text("hill\nflower\n")
    return model


def test_export_writes_versions_that_can_be_served(
    to_export, tmp_path, monkeypatch, capsys
):
    command = (
        f"--model={tmp_path / 'm.keras'}",
        f"--labels={tmp_path / 'labels.txt'}",
        f"--output={tmp_path / 'garden'}",
    )
    run_export(monkeypatch, *command)
    run_export(monkeypatch, *command, "--normalization", "0", "2")
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'garden' / '2' / 'saved_model.pb'}  " in printed
    assert "/v1/models/garden:predict" in printed
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3))
    png = tf.io.encode_png(images[0].astype(np.uint8)).numpy()
    for version, scale in (("1", 1), ("2", 2)):
        loaded = tf.saved_model.load(tmp_path / "garden" / version)
        got = loaded.signatures["serving_bytes"](image_bytes=tf.constant([png]))
        expected = to_export.predict(images / scale, verbose=0)
        np.testing.assert_allclose(got["predictions"], expected, rtol=1e-5)
        best = [b"hill", b"flower"][expected.argmax()]
        assert got["classes"].numpy()[0, 0] == best


def test_export_of_litert_files(to_export, tmp_path, monkeypatch):
    base = tmp_path / "garden"
    run_export(
        monkeypatch,
        *("--model", tmp_path / "m.keras", "--format", "litert"),
        *("--labels", tmp_path / "labels.txt", "--output", base),
    )
    path = base / "1" / "model.tflite"
    metadata = read_metadata(path.read_bytes())
    assert metadata.labels == ("hill", "flower")
    assert (metadata.mean, metadata.std) == ((0.0,) * 3, (1.0,) * 3)
    again = ("--model", path, "--output", base)
    run_export(monkeypatch, *again, "--format", "litert")
    copy = base / "2" / "model.tflite"
    assert copy.read_bytes() == path.read_bytes()
    with pytest.raises(SystemExit, match=r"must be a .keras file"):
        run_export(monkeypatch, *again)
    assert len(list(base.iterdir())) == 2


def test_export_from_weights(tmp_path, monkeypatch):
    model = MuffNet(input_shape=(32, 32, 3), alpha=0.1, classes=3)
    model.save_weights(tmp_path / "w.weights.h5")
    command = [
        f"--weights={tmp_path / 'w.weights.h5'}",
        f"--output={tmp_path / 'm'}",
        *("--format=litert", "--alpha=0.1", "--size=32"),
    ]
    with pytest.raises(SystemExit, match="--weights needs --classes"):
        run_export(monkeypatch, *command)
    assert not (tmp_path / "m").exists()
    monkeypatch.setattr(sys, "argv", ["export.py", *command, "--classes=3"])
    program = runpy.run_path(str(EXPORT))
    built = program["load_model"](program["parse_args"]())
    for mine, theirs in zip(built.weights, model.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
