"""Shared by all tests."""

import contextlib
import functools
import gc
import os
import pathlib
import socket
import subprocess
import sys
from unittest import mock

import hypothesis
import numpy as np
import pytest
from PIL import Image

from keras_muffnet.cli.main import main
from tests.forks import Forks

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The tests' networks are too small to be shared out to threads, and the other
# cores have tests of their own.
for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# XLA takes longer to optimize them than they take to run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Tests assert no times: another process may have the core.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ROOT = pathlib.Path(__file__).resolve().parent.parent


def free_port():
    """Returns a TCP port of this machine that nobody listens on."""
    return free_ports(1)[0]


def free_ports(count):
    """Returns different ones: all are held while they are drawn."""
    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            for _ in range(count)
        ]
        return [listener.getsockname()[1] for listener in listeners]


@pytest.fixture
def run_python():
    """Runs Python code in a fresh process and returns what it printed."""

    def run(*args, cwd=ROOT, timeout=600, **environment):
        done = subprocess.run(
            [sys.executable, *args],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def forks():
    """Returns the process of a backend that starts programs at once."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def of(backend):
            process = Forks(backend)
            stack.callback(process.close)
            return process

        yield of


@pytest.fixture
def run_forked(forks):
    """As `run_python`, in a process that has Keras imported already.

    The same process, its output and its exit are checked, but not what Python
    and Keras do when they start.
    """

    def run(*args, KERAS_BACKEND="tensorflow", **environment):  # noqa: N803
        done = forks(KERAS_BACKEND).run(*args, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def muffnet(capfd):
    """Runs the command `muffnet` in this process.

    Returns what it printed; of one that fails, its one line of error.
    """

    def run(*args, status=0):
        capfd.readouterr()
        with mock.patch.dict(os.environ):
            got = main(list(map(str, args)))
        out, err = capfd.readouterr()
        assert got == status, err
        if not status:
            return out
        assert "Traceback" not in err
        said = [k for k in err.splitlines() if k.startswith("muffnet")]
        [line] = [k for k in said if ": warning: " not in k]
        assert line.startswith(f"muffnet {args[0]}: ")
        return line

    return run


@pytest.fixture
def no_curves(monkeypatch):
    """Leaves `curves.png` of runs empty: drawing takes half of their time.

    A fixture of a wider scope comes before it, and draws.
    """
    monkeypatch.setattr(
        "keras_muffnet.training.log.plot_curves",
        lambda history, path, score: pathlib.Path(path).touch(),
    )


def write_photos(folder, names, train, test):
    """Writes a folder of classes told apart by their color, of two sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for channel, name in enumerate(names):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                size = 32 + 8 * (i % 2)
                pixels = rng.integers(0, 200, (size, size, 3), "uint8")
                pixels[..., channel] += 55
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


# What takes longest comes first, so that no process is left alone at the end.
SLOWEST_FIRST = (
    "test_quantization_engines.py",
    "test_quantization_coverage.py",
    "test_quantization.py",
    "test_reproduction.py",
    "test_quantization_ends.py",
    "test_quickstart.py",
    "test_cli_quantize.py",
    "test_training_devices.py",
    "test_training.py",
    "test_export.py",
    "test_export_detection.py",
    "test_detection.py",
    "test_training_detection.py",
    "test_quantization_report.py",
    "test_backends.py",
    "test_baselines.py",
    "test_cli.py",
    "test_training_recipes.py",
    "test_training_fast.py",
    "test_docs.py",
    "test_model_server_fuzz.py",
    "test_model_server_operation.py",
    "test_model_server_page.py",
    "test_model_server_flags.py",
    "test_model_server.py",
    "test_model_server_litert.py",
    "test_model_server_grpc.py",
)


def pytest_collection_finish():
    """Spares the collector the packages, and most of its passes.

    A traced network is millions of objects; looking for garbage among them, and
    among all that TensorFlow consists of, takes a tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_collection_modifyitems(items):
    """Sorts by file; `--no-loadscope-reorder` keeps xdist from its order."""
    rank = {name: place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
