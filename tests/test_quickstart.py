"""The quickstart, run as a user runs it."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_muffnet import MuffNet
from keras_muffnet import count_complexity
from keras_muffnet import preprocess_input
from keras_muffnet.data import load_digits
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

# Of the network that the full run trains.
PARAMETERS = 365_891
MACS = 40_696_448


def test_the_network_has_the_size_that_is_promised():
    counted = count_complexity(MuffNet((32, 32, 3), alpha=0.5, classes=10))
    assert (counted.parameters, counted.macs) == (PARAMETERS, MACS)


def check_artifacts(output):
    for name in ARTEFACTS:
        assert (output / name).stat().st_size > 0, name
    metrics = json.loads((output / "metrics.json").read_text())
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
    metrics = check_artifacts(output)
    assert metrics["test_images"] == 96
    assert metrics["parameters"] < PARAMETERS
    assert metrics["macs"] < MACS
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
    scores = np.asarray(model(preprocess_input(images[:96])))
    return (scores.argmax(axis=1) == labels[:96]).mean()


@pytest.mark.slow
def test_quickstart_keeps_its_promises(run_python, tmp_path):
    run_python(QUICKSTART, "--output", str(tmp_path))
    metrics = check_artifacts(tmp_path)
    assert metrics["test_images"] == 360
    assert metrics["parameters"] == PARAMETERS
    assert metrics["macs"] == MACS
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


def refused(*command):
    """Runs a program that must end in one line of error."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


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
