"""Several devices: those of one host, and those of processes on many.

A batch is shared out among all of them, and so they train as one would on the
whole batch: gradients, and the statistics of batch normalization, are those of
the whole. All processes do the same steps; the first one alone writes files.
"""

import contextlib
import dataclasses
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Processes:
    """What a process of several must know to find the others.

    Attributes:
        count: how many there are.
        index: which this one is, from 0.
        coordinator: HOST:PORT where the first one listens; None for what JAX
            makes of SLURM's variables.
        local_devices: numbers of the GPUs that this process uses, of those
            that it sees; none for all.
    """

    count: int
    index: int
    coordinator: str | None
    local_devices: tuple[int, ...] = ()


# What Keras reads too, and what `srun` sets.
_COORDINATOR = "KERAS_DISTRIBUTION_JOB_ADDRESSES"
_COUNTS = ("KERAS_DISTRIBUTION_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS")
_INDICES = ("KERAS_DISTRIBUTION_PROCESS_ID", "SLURM_PROCID")


def find_processes(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
) -> Processes | None:
    """Finds out whether this is one of several processes, and which.

    What is None is looked for in the environment: in
    `KERAS_DISTRIBUTION_JOB_ADDRESSES` (the first counts),
    `KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`, or
    else in what SLURM's `srun` sets.

    Args:
        environment: `os.environ`.
        coordinator: HOST:PORT where the first process listens.
        count: how many processes; 1 asks for no others.
        index: which of them this is, from 0.

    Returns:
        None for a single process.

    Raises:
        ValueError: if something is lacking, or is not as described.
    """
    if coordinator is None and (given := environment.get(_COORDINATOR)):
        coordinator = given.split(",")[0]
    if count is None:
        count = _number(environment, _COUNTS)
    if count is None and coordinator is None and index is None:
        return None
    if count == 1:
        return None
    if index is None:
        index = _number(environment, _INDICES)
    if count is None or index is None or not 0 <= index < count:
        raise ValueError(
            "`processes` must be 1 or more, and `process_index` 0 or more and "
            f"less. Received: processes={count}, process_index={index}"
        )
    if coordinator is None and "SLURM_STEP_NODELIST" not in environment:
        raise ValueError(
            "`coordinator` must be given for several processes, but for those "
            f"that srun starts. Received: coordinator=None, processes={count}"
        )
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(
            "`coordinator` must be HOST:PORT. Received: "
            f"coordinator={coordinator!r}"
        )
    return Processes(count, index, coordinator, _local_devices(environment))


def _number(environment: Mapping[str, str], names: Sequence[str]) -> int | None:
    for name in names:
        if name in environment:
            if not environment[name].isdecimal():
                raise ValueError(
                    f"`{name}` in the environment must be a number. Received: "
                    f"{name}={environment[name]!r}"
                )
            return int(environment[name])
    return None


def _local_devices(environment: Mapping[str, str]) -> tuple[int, ...]:
    """One each where SLURM has several tasks on a host, which see all GPUs."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    visible = environment.get("CUDA_VISIBLE_DEVICES", ",")
    if re.fullmatch(r"1(\(x\d+\))?", tasks) or "," not in visible:
        return ()
    return (int(environment.get("SLURM_LOCALID", "0")),)


def use_devices(
    batch_size: int,
    processes: Processes | None = None,
    count: int | None = None,
) -> int:
    """Makes all training in this process share batches among devices.

    To be called before a network is built and, for several processes, before
    anything else uses JAX. JAX gets a `keras.distribution.DataParallel`,
    TensorFlow a `tf.distribute.MirroredStrategy`. One device is used as Keras
    does anyhow.

    Args:
        batch_size: images a batch, of all devices together.
        processes: of `find_processes`; only JAX runs several.
        count: devices of this process to use; None for all that Keras's
            backend sees, of which PyTorch uses one. Several processes use all.

    Returns:
        The number of devices, of all processes.

    Raises:
        ValueError: if the backend cannot do it, there are not so many devices,
            or their number does not divide the batch size.
        RuntimeError: if the other processes are not found.
    """
    backend = keras.backend.backend()
    if processes is not None:
        if backend != "jax":
            raise ValueError(
                "`processes` must be 1 but on the backend jax: no other one "
                f"trains on several hosts. Received: "
                f"processes={processes.count} on {backend}"
            )
        if count is not None:
            raise ValueError(
                "`devices` must be None for several processes, which use all "
                f"that they see. Received: devices={count}"
            )
        import jax

        jax.distributed.initialize(
            processes.coordinator,
            processes.count,
            processes.index,
            processes.local_devices,
        )
    names = _device_names()
    if count is not None:
        if not 1 <= count <= len(names):
            more = ": Keras trains on one device there" * (backend == "torch")
            raise ValueError(
                f"`devices` must be at least 1 and at most {len(names)} on "
                f"the backend {backend}{more}. Received: devices={count}"
            )
        names = names[:count]
    if batch_size % len(names):
        raise ValueError(
            f"`batch_size` must be a multiple of the {len(names)} devices. "
            f"Received: batch_size={batch_size}"
        )
    if len(names) > 1:
        _share_among(names)
    return len(names)


def _device_names() -> list[str]:
    """The devices that the backend can share a batch among."""
    if keras.backend.backend() == "jax":
        return keras.distribution.list_devices()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        for kind in ("GPU", "CPU"):
            found = tf.config.list_logical_devices(kind)
            if found:
                return [device.name for device in found]
    return ["the default"]


def _share_among(names: list[str]) -> None:
    if keras.backend.backend() == "jax":
        keras.distribution.set_distribution(
            # Feeds give each process its rows.
            keras.distribution.DataParallel(
                devices=names, auto_shard_dataset=False
            )
        )
        return
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(names)
    tf.distribute.experimental_set_strategy(strategy)


def device_count() -> int:
    """Among how many devices a batch is shared out."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_strategy().num_replicas_in_sync
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_model_replicas


def process() -> tuple[int, int]:
    """Which of how many processes this is."""
    if device_count() == 1 or keras.backend.backend() != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Whether this process writes the files."""
    return process()[0] == 0


def from_first(content: bytes | None) -> bytes | None:
    """Gives all processes what the first one has; the others give None."""
    if process()[1] == 1:
        return content
    from jax.experimental.multihost_utils import broadcast_one_to_all

    length = -1 if content is None else len(content)
    length = int(broadcast_one_to_all(np.array(length, np.int32)))
    if length < 0:
        return None
    sent = np.zeros(length, np.uint8)
    if content is not None:
        sent[:] = np.frombuffer(content, np.uint8)
    return np.asarray(broadcast_one_to_all(sent)).tobytes()


@contextlib.contextmanager
def file_from_first(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives all processes a file that the first one has."""
    if process()[1] == 1:
        yield path
        return
    content = from_first(path.read_bytes() if is_first() else None)
    assert content is not None
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, path.name)
        copy.write_bytes(content)
        yield copy


def synchronize_norms(model: keras.Model) -> None:
    """Has batch normalization see whole batches, as it does under JAX.

    Under TensorFlow's strategy each device would have statistics of its own.
    """
    if keras.backend.backend() != "tensorflow" or device_count() == 1:
        return
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


def jit_compile(wanted: bool | None) -> bool | str:
    """What Keras is to do about XLA; None lets it choose.

    Raises:
        ValueError: if it is wanted on several devices of TensorFlow, whose
            XLA cannot reach the variables of another device.
    """
    if keras.backend.backend() == "tensorflow" and device_count() > 1:
        if wanted:
            raise ValueError(
                "`jit_compile` must not be True for several devices of "
                f"TensorFlow. Received: jit_compile={wanted}"
            )
        return False
    return "auto" if wanted is None else wanted


def run_here(command: Sequence[str], count: int) -> int:
    """Runs a command in several processes of this host, and waits for them.

    Ctrl-C or SIGTERM is passed on, once, to the first, which ends in its own
    time, and the others after it. A second Ctrl-C kills all. To be called in
    the main thread.

    Args:
        command: gets `--coordinator`, `--processes` and `--process-index`.
        count: how many.

    Returns:
        The first exit status that is not 0; the others are then ended.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once all have ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(count)]
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # of nohup
        numbers.append(signal.SIGHUP)
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda got, frame: received.append(got))
        for number in numbers
    }
    running: list[subprocess.Popen] = []
    try:
        for index in range(count):
            running.append(
                subprocess.Popen(
                    [*command, *flags, "--process-index", str(index)],
                    # A terminal's Ctrl-C reaches this process alone.
                    start_new_session=True,
                )
            )
        status = _wait_for(running, received)
    finally:
        for number, handler in before.items():
            # None: it was not set from Python.
            signal.signal(number, handler or signal.SIG_DFL)
        try:
            for one in running:
                one.terminate()
            for one in running:
                one.wait()
        finally:
            for one in running:
                one.kill()
    if received:
        raise KeyboardInterrupt
    return status


def _wait_for(
    running: Sequence[subprocess.Popen], received: Sequence[int]
) -> int:
    """Waits until one fails or all end; after a signal, until the first does.

    If another one ended before it, the first could not do the step after which
    it writes its checkpoint.
    """
    passed_on = False
    while True:
        if received and not passed_on:
            passed_on = True
            # Not SIGTERM, which JAX ignores until a run takes note of it.
            running[0].send_signal(signal.SIGINT)
        if signal.SIGINT in received[1:]:
            for one in running:
                one.kill()
        ended = [status for p in running if (status := p.poll()) is not None]
        failed = next((status for status in ended if status), 0)
        done = running[0].poll() is not None if received else failed
        if done or len(ended) == len(running):
            return failed
        time.sleep(0.1)
