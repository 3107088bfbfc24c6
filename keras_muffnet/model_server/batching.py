"""Runs the requests of many threads together, as TensorFlow Serving does.

TensorFlow Serving fails a whole batch for one bad request, and requests whose
inner shapes differ. Here such requests do not meet: a batch holds inputs of
one shape, and the members of a batch that fails run again one by one.
"""

import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from keras_muffnet._arguments import positive_integer
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument

if TYPE_CHECKING:
    from keras_muffnet.model_server.metrics import Metrics

Run = Callable[..., list[np.ndarray]]


@dataclass(frozen=True)
class BatchingParameters:
    """TensorFlow Serving's message of that name, with its defaults.

    Attributes:
        max_batch_size: Rows that a batch may hold.
        batch_timeout_micros: How long a request waits for company, in
            microseconds, though a thread is free.
        max_enqueued_batches: Batches of one shape that may wait in a queue.
        num_batch_threads: Batches that run at a time; the CPUs by default.
        allowed_batch_sizes: Numbers of rows that batches are padded to, in
            increasing order; none to run them as they are.
        pad_variable_length_inputs: Lets inputs meet that differ in inner
            shape, each padded with its first element.
        enable_large_batch_splitting: Runs a larger request in parts.
        max_execution_batch_size: Where requests are split, the rows that a
            batch may hold; `max_batch_size` by default.
        thread_pool_name: The beginning of the threads' names.

    Raises:
        ValueError: A number is out of range, or `allowed_batch_sizes` does not
            increase up to the rows that a batch may hold.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int | None = None
    thread_pool_name: str = "batch_threads"

    def __post_init__(self) -> None:
        for name in (
            "max_batch_size",
            "max_enqueued_batches",
            "num_batch_threads",
        ):
            positive_integer(name, getattr(self, name))
        if self.max_execution_batch_size is not None:
            positive_integer(
                "max_execution_batch_size", self.max_execution_batch_size
            )
        if self.batch_timeout_micros < 0:
            raise ValueError(
                "`batch_timeout_micros` must not be negative. Received: "
                f"batch_timeout_micros={self.batch_timeout_micros}"
            )
        if self.row_limit > self.max_batch_size:
            raise ValueError(
                "`max_execution_batch_size` must be at most max_batch_size="
                f"{self.max_batch_size}. Received: max_execution_batch_size="
                f"{self.max_execution_batch_size}"
            )
        self._check_allowed_batch_sizes()

    def _check_allowed_batch_sizes(self) -> None:
        sizes = self.allowed_batch_sizes
        if not sizes:
            return
        if list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
            raise ValueError(
                "`allowed_batch_sizes` must be positive and increase. "
                f"Received: allowed_batch_sizes={sizes}"
            )
        if sizes[-1] != self.row_limit:
            name = (
                "max_execution_batch_size"
                if self.enable_large_batch_splitting
                else "max_batch_size"
            )
            raise ValueError(
                f"Last entry in `allowed_batch_sizes` must match {name}="
                f"{self.row_limit}. Received: allowed_batch_sizes={sizes}"
            )

    @property
    def row_limit(self) -> int:
        """Rows that a batch may hold."""
        if not self.enable_large_batch_splitting:
            return self.max_batch_size
        return self.max_execution_batch_size or self.max_batch_size


class Batcher:
    """Batches calls of functions, in threads that the functions share.

    A call that finds a thread's place free runs at once, in the thread it is
    made from. Calls that find all places taken wait together, and the next
    place that falls free runs them as one. With a `batch_timeout_micros` every
    call waits for that long or until its batch is full.

    Args:
        parameters: How to batch.
        metrics: What counts the batches.

    Attributes:
        parameters: How to batch.
    """

    def __init__(
        self, parameters: BatchingParameters, metrics: "Metrics | None" = None
    ):
        self.parameters = parameters
        self._metrics = metrics
        # Guards everything below, and what is in the queues.
        self._changed = threading.Condition(threading.Lock())
        self._turns: deque[_Queue] = deque()  # what holds batches, next first
        self._running = 0
        self._watched = False  # a thread waits for the next batch's time
        self._closed = False
        for number in range(parameters.num_batch_threads):
            threading.Thread(
                target=self._work,
                name=f"{parameters.thread_pool_name}_{number}",
                daemon=True,
            ).start()

    def wrap(self, run: Run) -> Run:
        """Gives `run` a queue of its own.

        Args:
            run: Takes arrays of shape `[batch, ...]`, returns a list of arrays
                of shape `[batch, ...]`, and may be called by many threads.

        Returns:
            A function of the same form, which blocks until it has the caller's
            rows. Beside what `run` raises, it raises a `ServingError`:
            `INVALID_ARGUMENT` where inputs have no common number of rows or
            too many, `FAILED_PRECONDITION` where an output has another number
            than the inputs, `UNAVAILABLE` where the queue is full or the
            batcher closed.
        """
        return functools.partial(self._call, _Queue(run))

    def close(self) -> None:
        """Fails the calls that wait, and ends the threads.

        Does not wait: what runs comes to its end, and its callers get their
        rows.
        """
        with self._changed:
            self._closed = True
            batches = [
                batch for queue in self._turns for batch in queue.batches
            ]
            for queue in self._turns:
                queue.batches.clear()
            self._turns.clear()
            self._changed.notify_all()
        for batch in batches:
            for task in batch.tasks:
                task.fail(_closed())

    # In the caller's thread.

    def _call(self, queue: "_Queue", *inputs: np.ndarray) -> list[np.ndarray]:
        rows = _count_rows(inputs)
        if rows == 0:
            # Nothing to batch, and no row to pad with.
            return _checked(queue.run(*inputs), 0)
        limit = self.parameters.row_limit
        if rows <= limit:
            return self._call_whole(queue, inputs, rows)
        if not self.parameters.enable_large_batch_splitting:
            raise invalid_argument(
                f"Task size {rows} is larger than maximum input batch size "
                f"{limit}"
            )
        return self._call_in_parts(queue, inputs, rows)

    def _call_whole(
        self, queue: "_Queue", inputs: Sequence[np.ndarray], rows: int
    ) -> list[np.ndarray]:
        with self._changed:
            if self._closed:
                raise _closed()
            task = None
            if self._may_run_at_once():
                self._running += 1
            else:
                task = _Task(inputs, rows)
                self._enqueue(queue, [task])
        if task is not None:
            return task.result()
        try:
            self._record([rows], [0.0])
            return self._execute(queue, [inputs], [rows])[0]
        finally:
            with self._changed:
                self._running -= 1
                if self._turns:
                    self._changed.notify()

    def _may_run_at_once(self) -> bool:
        if self.parameters.batch_timeout_micros or self._turns:
            return False
        return self._has_place()

    def _call_in_parts(
        self, queue: "_Queue", inputs: Sequence[np.ndarray], rows: int
    ) -> list[np.ndarray]:
        limit = self.parameters.row_limit
        tasks = []
        for start in range(0, rows, limit):
            part = [array[start : start + limit] for array in inputs]
            tasks.append(_Task(part, len(part[0])))
        with self._changed:
            if self._closed:
                raise _closed()
            self._enqueue(queue, tasks)
        results = [task.result() for task in tasks]
        return [np.concatenate(arrays) for arrays in zip(*results, strict=True)]

    def _enqueue(self, queue: "_Queue", tasks: "Sequence[_Task]") -> None:
        """Puts tasks of one shape into the queue, or none where it is full.

        The lock is held.
        """
        parameters = self.parameters
        key = self._key(tasks[0].inputs)
        alike = [batch for batch in queue.batches if batch.key == key]
        batch = alike[-1] if alike else None
        limit = parameters.row_limit
        # Where the first part of a large request finds room the others do too:
        # a request that can never be run would be of no use to anyone.
        if (
            batch is not None
            and batch.rows + tasks[0].rows > limit
            and len(alike) >= parameters.max_enqueued_batches
        ):
            raise ServingError(
                Code.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted "
                f"is full; currently {len(alike)} batches enqueued and "
                f"max_enqueued_batches is {parameters.max_enqueued_batches}",
            )
        if not queue.batches:
            self._turns.append(queue)
        for task in tasks:
            if batch is None or batch.rows + task.rows > limit:
                if batch is not None:
                    self._hasten(batch)
                due = task.start + parameters.batch_timeout_micros / 1e6
                batch = _Batch(queue, key, due)
                queue.batches.append(batch)
            batch.tasks.append(task)
            batch.rows += task.rows
            if batch.rows == limit:
                self._hasten(batch)
        if self._has_place() and not self._watched:
            self._changed.notify()

    def _hasten(self, batch: "_Batch") -> None:
        """Makes a batch due that nothing can join any more."""
        batch.due = 0.0
        if self._has_place():
            self._changed.notify()

    def _key(self, inputs: Sequence[np.ndarray]) -> Hashable:
        """Returns what inputs have in common that can share a batch."""
        if not self.parameters.pad_variable_length_inputs:
            return tuple((array.dtype, array.shape[1:]) for array in inputs)
        # An empty row has no element to pad it with.
        return tuple(
            (array.dtype, array.ndim if array.size else array.shape[1:])
            for array in inputs
        )

    # In the batch threads.

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            self._run(batch)
            del batch  # an idle thread shall hold no arrays
            with self._changed:
                self._running -= 1

    def _take(self) -> "_Batch | None":
        """Waits for a batch whose time has come; None when closed."""
        with self._changed:
            while not self._closed:
                if not self._turns or not self._has_place():
                    self._changed.wait()
                    continue
                now = time.monotonic()
                batch = self._pop_due(now)
                if batch is not None:
                    self._running += 1
                    if self._turns:
                        self._changed.notify()
                    return batch
                self._wait_until_due(now)
            return None

    def _pop_due(self, now: float) -> "_Batch | None":
        for queue in self._turns:
            for batch in queue.batches:
                if batch.due <= now:
                    queue.batches.remove(batch)
                    # Behind the others, so that none starves.
                    self._turns.remove(queue)
                    if queue.batches:
                        self._turns.append(queue)
                    return batch
        return None

    def _wait_until_due(self, now: float) -> None:
        if self._watched:
            # One thread that wakes up at that time is enough.
            self._changed.wait()
            return
        self._watched = True
        due = min(batch.due for queue in self._turns for batch in queue.batches)
        self._changed.wait(due - now)
        self._watched = False

    def _run(self, batch: "_Batch") -> None:
        tasks = batch.tasks
        now = time.monotonic()
        rows = [task.rows for task in tasks]
        try:
            self._record(rows, [now - task.start for task in tasks])
            results: list[list[np.ndarray]] | None = self._execute(
                batch.queue, [task.inputs for task in tasks], rows
            )
        except BaseException as error:  # callers must not wait for ever
            if len(tasks) == 1:
                tasks[0].fail(error)
                return
            results = None
        if results is None:
            for task in tasks:
                self._run_alone(batch.queue, task)
            return
        for task, outputs in zip(tasks, results, strict=True):
            task.succeed(outputs)

    def _run_alone(self, queue: "_Queue", task: "_Task") -> None:
        try:
            outputs = self._execute(queue, [task.inputs], [task.rows])[0]
        except BaseException as error:
            task.fail(error)
        else:
            task.succeed(outputs)

    # In either.

    def _has_place(self) -> bool:
        return self._running < self.parameters.num_batch_threads

    def _execute(
        self,
        queue: "_Queue",
        members: Sequence[Sequence[np.ndarray]],
        rows: Sequence[int],
    ) -> list[list[np.ndarray]]:
        """Runs the members' inputs as one batch; returns each one's outputs."""
        total = sum(rows)
        size = self._allowed_size(total)
        merged = [
            _merge(arrays, size - total)
            for arrays in zip(*members, strict=True)
        ]
        outputs = _checked(queue.run(*merged), size)
        results = []
        start = 0
        for count in rows:
            end = start + count
            results.append([output[start:end] for output in outputs])
            start = end
        return results

    def _allowed_size(self, rows: int) -> int:
        sizes = self.parameters.allowed_batch_sizes
        return next((size for size in sizes if size >= rows), rows)

    def _record(self, rows: Sequence[int], waits: Sequence[float]) -> None:
        if self._metrics is not None:
            executed = self._allowed_size(sum(rows))
            self._metrics.observe_batch(rows, waits, executed)


class _Queue:
    """The batches that wait for one function, oldest first."""

    def __init__(self, run: Run):
        self.run = run
        self.batches: deque[_Batch] = deque()


class _Batch:
    """Tasks that shall run together, and when they are due.

    `due` is a time of `time.monotonic`.
    """

    __slots__ = ("due", "key", "queue", "rows", "tasks")

    def __init__(self, queue: _Queue, key: Hashable, due: float):
        self.queue = queue
        self.key = key
        self.due = due
        self.rows = 0
        self.tasks: list[_Task] = []


class _Task:
    """A call, or a part of one, and what becomes of it."""

    __slots__ = ("_done", "_error", "_outputs", "inputs", "rows", "start")

    def __init__(self, inputs: Sequence[np.ndarray], rows: int):
        self.inputs = inputs
        self.rows = rows
        self.start = time.monotonic()
        self._outputs: list[np.ndarray] = []
        self._error: BaseException | None = None
        # Released once. An Event does the same at several times the cost.
        self._done = threading.Lock()
        self._done.acquire()

    def succeed(self, outputs: list[np.ndarray]) -> None:
        self._outputs = outputs
        self._done.release()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._done.release()

    def result(self) -> list[np.ndarray]:
        """Waits; returns the outputs or raises the error."""
        self._done.acquire()
        if self._error is None:
            return self._outputs
        try:
            raise self._error
        finally:
            # Its traceback leads here: a circle that would keep the arrays.
            self._error = None


def _closed() -> ServingError:
    return ServingError(Code.UNAVAILABLE, "The batching queue is closed")


def _count_rows(inputs: Sequence[np.ndarray]) -> int:
    if not inputs:
        raise invalid_argument(
            "Batching Run() must have at least one input tensor"
        )
    if any(array.ndim == 0 for array in inputs):
        raise invalid_argument(
            "Batching Run() input tensors must have at least one dimension"
        )
    rows = len(inputs[0])
    if any(len(array) != rows for array in inputs):
        raise invalid_argument(
            "Batching Run() input tensors must have equal 0th-dimension size"
        )
    return rows


def _checked(outputs: list[np.ndarray], rows: int) -> list[np.ndarray]:
    for output in outputs:
        # A scalar may come as it is, not as an array.
        if np.ndim(output) == 0:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                "Batched output tensor has 0 dimensions",
            )
        if len(output) != rows:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum "
                "of the 0th dimension sizes of the input tensors",
            )
    return outputs


def _merge(arrays: Sequence[np.ndarray], padding: int) -> np.ndarray:
    """Joins arrays, and `padding` more rows like the first, into one."""
    if len(arrays) == 1 and not padding:
        return arrays[0]
    first = arrays[0].shape[1:]
    if any(array.shape[1:] != first for array in arrays):
        arrays = _pad_rows(arrays)
    if padding:
        arrays = [*arrays, np.repeat(arrays[0][:1], padding, axis=0)]
    return np.concatenate(arrays)


def _pad_rows(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pads every row to the largest, each array with its first element."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    padded = []
    for array in arrays:
        room = np.empty((len(array), *shape), array.dtype)
        # The element as an array, because NumPy would make a string of bytes
        # and strip its trailing zeros.
        room[...] = array[(slice(1),) * array.ndim]
        room[tuple(map(slice, array.shape))] = array
        padded.append(room)
    return padded
