"""Shared by all tests."""

import os
import pathlib
import socket
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from keras_muffnet.cli.main import main

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = pathlib.Path(__file__).resolve().parent.parent


def free_port():
    """Returns a TCP port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def run_python():
    """Runs Python code in a fresh process and returns what it printed."""

    def run(*args, cwd=ROOT, **environment):
        done = subprocess.run(
            [sys.executable, *args],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )
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
