"""Several devices and processes train as one does."""

import functools
import json
import os
import signal
import socket
import sys
import time

import keras
import numpy as np
import pytest

from keras_muffnet.training import devices
from keras_muffnet.training import use_devices

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
KERAS = {
    "KERAS_DISTRIBUTION_JOB_ADDRESSES": "a:1,b:1",
    "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
    "KERAS_DISTRIBUTION_PROCESS_ID": "0",
}


@pytest.mark.parametrize(
    ("environment", "flags", "found"),
    [
        ({}, (None, None, None), None),
        ({}, (None, 1, None), None),
        (SLURM, (None, 1, None), None),
        ({}, ("a:1", 3, 2), (3, 2, "a:1", ())),
        (KERAS, (None, None, None), (2, 0, "a:1", ())),
        (KERAS, ("c:2", None, 1), (2, 1, "c:2", ())),
        (SLURM, (None, None, None), (2, 1, None, ())),
        (SLURM, ("c:2", None, None), (2, 1, "c:2", ())),
        # A script that sbatch started, not srun.
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, (None, None, None), None),
        # Two tasks of one host see the same GPUs, or each its own.
        (
            {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1"},
            (None, None, None),
            (2, 1, None, (1,)),
        ),
        (
            {
                **SLURM,
                "SLURM_STEP_TASKS_PER_NODE": "2",
                "SLURM_LOCALID": "1",
                "CUDA_VISIBLE_DEVICES": "1",
            },
            (None, None, None),
            (2, 1, None, ()),
        ),
    ],
)
def test_processes_are_found(environment, flags, found):
    expected = found and devices.Processes(*found)
    assert devices.find_processes(environment, *flags) == expected


@pytest.mark.parametrize(
    ("environment", "flags", "error"),
    [
        ({}, ("a:1", None, 0), "`processes` must be 1 or more"),
        ({}, ("a:1", 2, None), "`process_index` 0 or more"),
        ({}, ("a:1", 2, 2), "processes=2, process_index=2"),
        ({}, ("a:1", 0, 0), "processes=0, process_index=0"),
        ({}, (None, 2, 0), "`coordinator` must be given"),
        ({}, ("a", 2, 0), "HOST:PORT. Received: coordinator='a'"),
        (
            {**KERAS, "KERAS_DISTRIBUTION_PROCESS_ID": "x"},
            (None, None, None),
            "KERAS_DISTRIBUTION_PROCESS_ID='x'",
        ),
    ],
)
def test_what_is_lacking_is_named(environment, flags, error):
    with pytest.raises(ValueError, match=error):
        devices.find_processes(environment, *flags)


def test_what_a_backend_cannot_do_is_refused(run_forked):
    processes = devices.Processes(2, 0, "a:1")
    with pytest.raises(ValueError, match="but on the backend jax"):
        use_devices(8, processes)
    with pytest.raises(ValueError, match="at most 1 on the backend tensorflow"):
        use_devices(8, count=2)
    assert use_devices(7) == 1
    code = (
        "from keras_muffnet.training import use_devices, devices\n"
        "assert use_devices(7) == 1 and devices.device_count() == 1\n"
        "try: use_devices(8, count=2)\n"
        "except ValueError as error: print(error)"
    )
    assert run_forked("-c", code, KERAS_BACKEND="torch") == (
        "`devices` must be at least 1 and at most 1 on the backend torch: "
        "Keras trains on one device there. Received: devices=2\n"
    )


@pytest.fixture
def start(forks):
    return functools.partial(start_on, forks)


def start_on(forks, backend, *args, **environment):
    code = (
        "import sys, runpy\n"
        f"if {backend!r} == 'jax': sys.modules['tensorflow'] = None\n"
        "runpy.run_module('tests.devices_run', run_name='__main__',"
        " alter_sys=True)"
    )
    return forks(backend).start("-c", code, *args, **environment)


def ended(process, status=0):
    done = process.wait()
    assert done.returncode == status, done.stderr
    out = done.stdout
    return json.loads(out.splitlines()[-1]) if status == 0 else out


def pair(start, folders, stop):
    """Two processes on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        start("jax", folder, 1, stop, address, 2, index)
        for index, folder in enumerate(folders)
    ]


def assert_same(one, other):
    for a, b in zip(one["weights"], other["weights"], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    for name in ("best", "last"):
        for key, value in one["result"][name].items():
            assert other["result"][name][key] == pytest.approx(value, rel=1e-4)


@pytest.fixture(scope="module")
def alone(forks, tmp_path_factory):
    """One process with one device."""
    folder = tmp_path_factory.mktemp("alone")
    return ended(start_on(forks, "jax", folder, 1, 9))


def test_two_processes_train_as_one(alone, start, tmp_path):
    folders = tmp_path / "first", tmp_path / "second"
    # Both end before the second epoch, and go on from the first's checkpoint.
    stopped = pair(start, folders, stop=1)
    assert all("stopped" in ended(one, status=3) for one in stopped)
    runs = [ended(one) for one in pair(start, folders, stop=9)]
    for run in runs:
        assert_same(alone, run)
        assert run["devices"] == 2
        # Six batches of 48 are in an epoch.
        assert run["read"] == 6 * 24
    assert alone["read"] == 6 * 48
    assert not folders[1].exists()
    assert "best.keras" in runs[0]["files"]
    log = (folders[0] / "log.csv").read_text().splitlines()
    assert len(log) == 3


def test_two_devices_of_jax_train_as_one(alone, start, tmp_path):
    flags = "--xla_force_host_platform_device_count=2"
    run = ended(start("jax", tmp_path, 1, 9, XLA_FLAGS=flags))
    assert run["devices"] == 2
    assert_same(alone, run)


def test_two_devices_of_tensorflow_train_as_one(start, tmp_path):
    one = ended(start("tensorflow", tmp_path / "1", 1, 9))
    two = ended(start("tensorflow", tmp_path / "2", 2, 9))
    assert (one["devices"], two["devices"]) == (1, 2)
    assert_same(one, two)


def test_a_process_that_fails_ends_the_others(tmp_path):
    code = (
        "import pathlib, sys, time\n"
        "if sys.argv[-1] == '1': sys.exit(4)\n"
        "time.sleep(20)\n"
        "pathlib.Path(sys.argv[1], 'slept').touch()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert devices.run_here(command, 2) == 4
    assert not (tmp_path / "slept").exists()
    assert devices.run_here([sys.executable, "-c", "pass"], 2) == 0


# A child counts the signals that it gets within some seconds of the first, and
# says whether the first child was still there when that came.
COUNTING = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def write(name, text=""):
    (folder / (name + sys.argv[-1])).write_text(text)
seen = []
for number in signal.SIGINT, signal.SIGTERM:
    signal.signal(number, lambda *_: seen.append(number))
write("started")
end = time.monotonic() + 60
while not seen and time.monotonic() < end:
    time.sleep(0.01)
there = not (folder / "ended0").exists()
write("seen")
time.sleep(float(sys.argv[2]))
write("ended", f"{len(seen)} {there}")
sys.exit(1)
"""
# It is in a group of its own, as a terminal's commands are.
PARENT = """
import os, sys
from keras_muffnet.cli import common
from keras_muffnet.training import devices
os.setpgid(0, 0)
sys.exit(common.run(lambda: devices.run_here(sys.argv[1:], 2), "it"))
"""


@pytest.fixture
def start_counting(forks, tmp_path):
    """Starts `run_here` with children that count for so many seconds."""

    def start(seconds):
        command = (sys.executable, "-c", COUNTING, tmp_path, seconds)
        one = forks("tensorflow").start("-c", PARENT, *command)
        wait_for(tmp_path / "started0")
        wait_for(tmp_path / "started1")
        return one

    return start


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} is not there"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("send", "number"),
    [
        (os.killpg, signal.SIGINT),  # as a terminal does
        (os.kill, signal.SIGINT),
        (os.kill, signal.SIGTERM),
        (os.kill, signal.SIGHUP),
    ],
)
def test_a_signal_reaches_the_first_process_once_and_then_the_others(
    send, number, start_counting, tmp_path
):
    parent = start_counting(0.5)
    send(parent.pid, number)
    done = parent.wait()
    assert done.returncode == 130
    assert done.stderr == "\nit: interrupted\n"
    assert (tmp_path / "ended0").read_text() == "1 True"
    assert (tmp_path / "ended1").read_text() == "1 False"


def test_a_second_ctrl_c_kills(start_counting, tmp_path):
    parent = start_counting(20)
    os.kill(parent.pid, signal.SIGINT)
    wait_for(tmp_path / "seen0")
    os.kill(parent.pid, signal.SIGINT)
    assert parent.wait().returncode == 130
    assert not list(tmp_path.glob("ended*"))


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--local-processes=0"], "--local-processes must be 1 or more"),
        (["--local-processes", "-1"], "1 or more. Received: -1"),
        (
            ["--local-processes=2", "--coordinator=a:1"],
            "--coordinator must be left out with --local-processes",
        ),
        (["--local-processes=2", "--processes=2"], "--processes must be left"),
        (["--local-processes=2", "--process-index=0"], "--process-index must"),
        (["--local-processes=2", "--devices=1"], "--devices must be left out"),
    ],
)
def test_flags_of_local_processes_are_checked(
    flags, error, muffnet, monkeypatch
):
    monkeypatch.setattr(devices, "run_here", lambda command, count: 0)
    assert error in muffnet("train", "quick", *flags, status=1)


@pytest.mark.parametrize(
    "flags", [["--local-processes", "2"], ["--local-processes=2"]]
)
def test_local_processes_do_not_start_others(flags, muffnet, monkeypatch):
    started = []

    def run_here(command, count):
        started.append((command[-4:], count))
        return 7

    monkeypatch.setattr(devices, "run_here", run_here)
    command = ["train", "quick", *flags, "--epochs=9"]
    monkeypatch.setattr(sys, "argv", ["muffnet", *command])
    with pytest.raises(SystemExit, match="7"):
        muffnet(*command)
    assert started == [(["keras_muffnet", "train", "quick", "--epochs=9"], 2)]


def test_xla_does_not_compile_for_several_devices_of_tensorflow(monkeypatch):
    assert devices.jit_compile(None) == "auto"
    assert devices.jit_compile(True) is True
    monkeypatch.setattr(devices, "device_count", lambda: 2)
    assert keras.backend.backend() == "tensorflow"
    assert devices.jit_compile(None) is False
    with pytest.raises(ValueError, match="`jit_compile` must not be True"):
        devices.jit_compile(True)
