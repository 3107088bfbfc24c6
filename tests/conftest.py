"""Shared by all tests."""

import os
import pathlib
import subprocess
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = pathlib.Path(__file__).resolve().parent.parent


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
