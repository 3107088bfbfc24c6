"""Batching across threads, with functions of NumPy in place of models."""

import gc
import os
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keras_muffnet.model_server.batching import Batcher
from keras_muffnet.model_server.batching import BatchingParameters
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError

LONG = 60  # seconds, for what must happen; nothing waits for it to pass
FOREVER = 10**12  # microseconds


class WatchedBatcher(Batcher):
    """Tells when calls have joined a queue."""

    def __init__(self, *args, **kwargs):
        self.queued = threading.Semaphore(0)
        super().__init__(*args, **kwargs)

    def _enqueue(self, queue, tasks):
        super()._enqueue(queue, tasks)
        self.queued.release()

    def await_queued(self, count):
        for _ in range(count):
            assert self.queued.acquire(timeout=LONG)


class Model:
    """Adds 1, remembers what it ran on, and runs only while it is let."""

    def __init__(self, change=lambda x: x + 1):
        self.change = change
        self.batches = []
        self.running = threading.Semaphore(0)
        self.free = threading.Event()
        self.free.set()

    def __call__(self, *inputs):
        self.batches.append(inputs)
        self.running.release()
        assert self.free.wait(LONG)
        return [self.change(x) for x in inputs]

    @property
    def sizes(self):
        return [len(inputs[0]) for inputs in self.batches]


def rows(*values, width=2, dtype="float32"):
    return np.repeat(np.array(values, dtype)[:, None], width, axis=1)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(80) as executor:
        yield executor


@pytest.fixture
def make_batcher(pool):
    # After the pool, so that what still waits is failed before it is joined.
    batchers = []

    def make(metrics=None, **parameters):
        parameters = {"num_batch_threads": 1} | parameters
        batcher = WatchedBatcher(BatchingParameters(**parameters), metrics)
        batchers.append(batcher)
        return batcher

    yield make
    for batcher in batchers:
        batcher.close()


@pytest.fixture
def hold(pool):
    """Returns a function that holds a batcher's only thread with a call."""
    models = []

    def start(batcher):
        model = Model()
        model.free.clear()
        models.append(model)
        future = pool.submit(batcher.wrap(model), rows(0))
        assert model.running.acquire(timeout=LONG)
        return model.free.set, future

    yield start
    for model in models:
        model.free.set()


def submit(pool, batcher, call, *inputs):
    """Submits a call and returns when it waits in its queue."""
    future = pool.submit(call, *inputs)
    batcher.await_queued(1)
    return future


def result(future):
    return future.result(LONG)


def error_of(future):
    error = future.exception(LONG)
    assert isinstance(error, ServingError), error
    return error.code, str(error)


def test_defaults_are_those_of_tensorflow_serving():
    parameters = BatchingParameters()
    assert parameters.max_batch_size == parameters.row_limit == 1000
    assert parameters.batch_timeout_micros == 0
    assert parameters.max_enqueued_batches == 10
    assert parameters.num_batch_threads == os.cpu_count()
    assert parameters.allowed_batch_sizes == ()
    assert parameters.thread_pool_name == "batch_threads"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_batch_size": 0}, r"`max_batch_size`.*max_batch_size=0"),
        ({"max_enqueued_batches": 0}, "`max_enqueued_batches` must be a pos"),
        ({"num_batch_threads": -1}, "`num_batch_threads` must be a positive"),
        ({"max_execution_batch_size": 0}, "`max_execution_batch_size` must"),
        (
            {"batch_timeout_micros": -1},
            r"`batch_timeout_micros` must not be negative.*=-1",
        ),
        (
            {"allowed_batch_sizes": (4, 2, 8), "max_batch_size": 8},
            r"`allowed_batch_sizes` must be positive and increase.*\(4, 2, 8\)",
        ),
        (
            {"allowed_batch_sizes": (4, 4), "max_batch_size": 4},
            "must be positive and increase",
        ),
        (
            {"allowed_batch_sizes": (0, 4), "max_batch_size": 4},
            "must be positive and increase",
        ),
        (
            {"allowed_batch_sizes": (2, 4), "max_batch_size": 8},
            r"Last entry in `allowed_batch_sizes` must match max_batch_size=8",
        ),
        (
            {
                "allowed_batch_sizes": (2, 8),
                "max_batch_size": 8,
                "max_execution_batch_size": 4,
                "enable_large_batch_splitting": True,
            },
            r"must match max_execution_batch_size=4. .*\(2, 8\)",
        ),
        (
            {
                "max_batch_size": 8,
                "max_execution_batch_size": 16,
                "enable_large_batch_splitting": True,
            },
            r"`max_execution_batch_size` must be at most max_batch_size=8",
        ),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        BatchingParameters(**parameters)


def test_execution_size_limits_batches_only_where_requests_are_split():
    sizes = {"max_batch_size": 8, "max_execution_batch_size": 4}
    assert BatchingParameters(**sizes).row_limit == 8
    split = BatchingParameters(**sizes, enable_large_batch_splitting=True)
    assert split.row_limit == 4


def test_a_lone_call_runs_in_its_own_thread_without_a_copy(make_batcher):
    threads = []
    model = Model(lambda x: threads.append(threading.get_ident()) or x)
    x = rows(1, 2, 3)
    (y,) = make_batcher().wrap(model)(x)
    assert threads == [threading.get_ident()]
    assert model.batches[0][0] is x
    assert np.shares_memory(x, y)
    np.testing.assert_array_equal(y, x)


def test_calls_that_wait_for_a_thread_run_together(make_batcher, pool, hold):
    batcher = make_batcher()
    free, held = hold(batcher)
    model = Model()
    call = batcher.wrap(model)
    futures = [
        submit(pool, batcher, call, rows(*values), rows(*values, width=3))
        for values in [(1,), (2, 3), (4,)]
    ]
    free()
    assert result(held)[0].tolist() == [[1, 1]]
    assert [
        [output[:, 0].tolist() for output in result(future)]
        for future in futures
    ] == [[[2], [2]], [[3, 4], [3, 4]], [[5], [5]]]
    assert model.sizes == [4]
    assert model.batches[0][1].shape == (4, 3)


def test_as_many_batches_run_at_a_time_as_there_are_threads(make_batcher, pool):
    batcher = make_batcher(num_batch_threads=3)
    together = threading.Barrier(3)
    call = batcher.wrap(lambda x: [together.wait(LONG) * 0 + x])
    futures = [pool.submit(call, rows(value)) for value in range(3)]
    assert [result(future)[0][0, 0] for future in futures] == [0, 1, 2]


def test_a_batch_holds_no_more_than_max_batch_size(make_batcher, pool, hold):
    batcher = make_batcher(max_batch_size=5)
    free, _ = hold(batcher)
    model = Model()
    call = batcher.wrap(model)
    futures = [
        submit(pool, batcher, call, rows(*values))
        for values in [(1, 2, 3), (4, 5, 6), (7, 8)]
    ]
    free()
    # As in TensorFlow Serving, only the last batch can be joined.
    assert [result(future)[0][0, 0] for future in futures] == [2, 5, 8]
    assert model.sizes == [3, 5]


def test_a_full_batch_does_not_wait_for_the_timeout(make_batcher, pool):
    batcher = make_batcher(max_batch_size=3, batch_timeout_micros=FOREVER)
    model = Model()
    call = batcher.wrap(model)
    futures = [submit(pool, batcher, call, rows(value)) for value in range(3)]
    assert [result(future)[0][0, 0] for future in futures] == [1, 2, 3]
    assert model.sizes == [3]


def test_a_batch_that_cannot_grow_does_not_wait_either(make_batcher, pool):
    batcher = make_batcher(max_batch_size=3, batch_timeout_micros=FOREVER)
    model = Model()
    call = batcher.wrap(model)
    first = submit(pool, batcher, call, rows(1, 2))
    second = submit(pool, batcher, call, rows(3, 4))
    assert result(first)[0][:, 0].tolist() == [2, 3]
    batcher.close()
    assert error_of(second)[0] == Code.UNAVAILABLE
    assert model.sizes == [2]


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_run_when_their_timeout_has_passed(make_batcher, pool, threads):
    batcher = make_batcher(batch_timeout_micros=500, num_batch_threads=threads)
    calls = [batcher.wrap(Model()) for _ in range(4)]
    for _ in range(5):
        futures = [
            pool.submit(call, rows(value))
            for value, call in enumerate(calls * 4)
        ]
        outputs = [result(future)[0][0, 0] for future in futures]
        assert outputs == list(range(1, 17))


def test_a_batch_that_runs_holds_up_no_other(make_batcher, pool):
    batcher = make_batcher(batch_timeout_micros=50_000, num_batch_threads=2)
    done = threading.Event()
    slow = batcher.wrap(lambda x: [x * done.wait(LONG)])
    quick = batcher.wrap(lambda x: [x])
    # One thread waits for the time of both.
    first = submit(pool, batcher, slow, rows(1))
    second = submit(pool, batcher, quick, rows(2))
    assert result(second)[0].tolist() == [[2, 2]]
    done.set()
    assert result(first)[0].tolist() == [[1, 1]]


def test_a_request_larger_than_a_batch_is_refused(make_batcher):
    call = make_batcher(max_batch_size=16).wrap(Model())
    with pytest.raises(ServingError) as raised:
        call(rows(*range(17)))
    assert raised.value.code == Code.INVALID_ARGUMENT
    assert str(raised.value) == (
        "Task size 17 is larger than maximum input batch size 16"
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_a_large_request_is_split(make_batcher, threads):
    batcher = make_batcher(
        max_batch_size=16,
        max_execution_batch_size=4,
        # Fewer than its parts: no part of it is refused.
        max_enqueued_batches=1,
        enable_large_batch_splitting=True,
        num_batch_threads=threads,
    )
    model = Model()
    (y,) = batcher.wrap(model)(rows(*range(18)))
    np.testing.assert_array_equal(y, rows(*range(1, 19)))
    assert sorted(model.sizes) == [2, 4, 4, 4, 4]


def test_one_bad_part_fails_a_split_request(make_batcher):
    def run(x):
        if 6 in x:
            raise ServingError(Code.OUT_OF_RANGE, "six")
        return [x]

    batcher = make_batcher(max_batch_size=4, enable_large_batch_splitting=True)
    call = batcher.wrap(run)
    with pytest.raises(ServingError, match="six"):
        call(rows(*range(10)))
    assert call(rows(1, 2, 3, 4, 5))[0][:, 0].tolist() == [1, 2, 3, 4, 5]


def test_a_full_queue_refuses(make_batcher, pool, hold):
    batcher = make_batcher(max_batch_size=2, max_enqueued_batches=2)
    free, _ = hold(batcher)
    call = batcher.wrap(Model())
    futures = [
        submit(pool, batcher, call, rows(*values))
        for values in [(1, 2), (3,), (4,)]
    ]
    with pytest.raises(ServingError) as raised:
        call(rows(5))
    assert raised.value.code == Code.UNAVAILABLE
    assert str(raised.value) == (
        "The batch scheduling queue to which this task was submitted is full; "
        "currently 2 batches enqueued and max_enqueued_batches is 2"
    )
    # Inputs of another shape, and other functions, have room of their own.
    futures.append(submit(pool, batcher, call, rows(5, width=3)))
    futures.append(submit(pool, batcher, batcher.wrap(Model()), rows(6)))
    free()
    assert [result(future)[0][0, 0] for future in futures] == [2, 4, 5, 6, 7]
    assert call(rows(5))[0].tolist() == [[6, 6]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "must have at least one input tensor"),
        ([np.array(1.0)], "input tensors must have at least one dimension"),
        ([rows(1), np.array(1.0)], "must have at least one dimension"),
        ([rows(1), rows(1, 2)], "must have equal 0th-dimension size"),
    ],
)
def test_inputs_need_a_common_batch_dimension(make_batcher, inputs, message):
    model = Model()
    with pytest.raises(ServingError, match=message) as raised:
        make_batcher().wrap(model)(*inputs)
    assert raised.value.code == Code.INVALID_ARGUMENT
    assert model.batches == []


def test_no_rows_are_run_as_they_are(make_batcher):
    model = Model()
    call = make_batcher(allowed_batch_sizes=(4,), max_batch_size=4).wrap(model)
    assert call(rows(1)[:0])[0].shape == (0, 2)
    assert model.sizes == [0]


def test_batches_are_padded_to_an_allowed_size(make_batcher, pool, hold):
    batcher = make_batcher(max_batch_size=8, allowed_batch_sizes=(1, 4, 8))
    model = Model()
    call = batcher.wrap(model)
    assert call(rows(5, 6))[0][:, 0].tolist() == [6, 7]
    assert model.batches[0][0][:, 0].tolist() == [5, 6, 5, 5]
    text = np.array([b"a\0", b"b"], object)
    call = batcher.wrap(Model(lambda x: x))
    assert call(text)[0].tolist() == [b"a\0", b"b"]

    free, _ = hold(batcher)
    model = Model()
    call = batcher.wrap(model)
    futures = [
        submit(pool, batcher, call, rows(*values))
        for values in [(1, 2), (3, 4, 5)]
    ]
    free()
    assert [result(future)[0][:, 0].tolist() for future in futures] == [
        [2, 3],
        [4, 5, 6],
    ]
    assert model.batches[0][0][:, 0].tolist() == [1, 2, 3, 4, 5, 1, 1, 1]


def test_only_equal_shapes_and_dtypes_share_a_batch(make_batcher, pool, hold):
    batcher = make_batcher()
    free, _ = hold(batcher)
    model = Model(lambda x: x)
    call = batcher.wrap(model)
    inputs = [
        rows(1),
        rows(2, width=3),
        rows(3, dtype="int32"),
        np.array([[b"a", b"b\0"]], object),
    ]
    futures = [submit(pool, batcher, call, x) for x in [*inputs, *inputs]]
    free()
    for x, future in zip([*inputs, *inputs], futures, strict=True):
        (y,) = result(future)
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, x)
    assert model.sizes == [2, 2, 2, 2]


def test_variable_lengths_are_padded_with_the_first_element(
    make_batcher, pool, hold
):
    batcher = make_batcher(
        pad_variable_length_inputs=True,
        max_batch_size=4,
        allowed_batch_sizes=(4,),
    )
    free, _ = hold(batcher)
    model = Model(lambda x: x)
    call = batcher.wrap(model)
    futures = [
        submit(pool, batcher, call, *inputs)
        for inputs in [
            (rows(1, 2), np.array([[b"a\0"], [b"b"]], object)),
            (rows(3, width=3), np.array([[b"c", b"d"]], object)),
        ]
    ]
    # Nothing to pad it with: it does not join them.
    empty = submit(
        pool, batcher, call, rows(1, width=0), np.array([[b""]], object)
    )
    free()
    numbers, texts = result(futures[0])
    assert numbers.tolist() == [[1, 1, 1], [2, 2, 1]]
    assert texts.tolist() == [[b"a\0", b"a\0"], [b"b", b"a\0"]]
    numbers, texts = result(futures[1])
    assert numbers.tolist() == [[3, 3, 3]]
    assert texts.tolist() == [[b"c", b"d"]]
    assert result(empty)[0].shape == (1, 0)
    assert model.sizes == [4, 4]


def test_only_the_bad_member_of_a_batch_fails(make_batcher, pool, hold):
    def run(x):
        if (x < 0).any():
            raise ServingError(Code.INVALID_ARGUMENT, f"negative: {x.min()}")
        return [x]

    batcher = make_batcher()
    free, _ = hold(batcher)
    call = batcher.wrap(run)
    futures = [
        submit(pool, batcher, call, rows(value)) for value in (1, -2, 3, -4)
    ]
    free()
    assert result(futures[0])[0].tolist() == [[1, 1]]
    assert result(futures[2])[0].tolist() == [[3, 3]]
    assert error_of(futures[1]) == (Code.INVALID_ARGUMENT, "negative: -2.0")
    assert error_of(futures[3]) == (Code.INVALID_ARGUMENT, "negative: -4.0")
    # Nor does it know of the batch that it was in.
    assert futures[1].exception().__context__ is None


@pytest.mark.parametrize("error", [KeyError, SystemExit])
def test_no_exception_ends_a_thread(make_batcher, pool, hold, error):
    ran = []

    def run(x):
        ran.append(x[:, 0].tolist())
        raise error(f"at {x[0, 0]}")

    batcher = make_batcher()
    for values in [(1,), (2, 3)]:
        free, _ = hold(batcher)
        call = batcher.wrap(run)
        futures = [submit(pool, batcher, call, rows(value)) for value in values]
        free()
        for value, future in zip(values, futures, strict=True):
            assert f"at {value}" in str(future.exception(LONG))
            assert type(future.exception(LONG)) is error
    assert ran == [[1], [2, 3], [2], [3]]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.float32(1), "Batched output tensor has 0 dimensions"),
        (b"text", "Batched output tensor has 0 dimensions"),
        (
            rows(*range(7)),
            "Batched output tensor's 0th dimension does not equal the sum of "
            "the 0th dimension sizes of the input tensors",
        ),
    ],
)
def test_outputs_need_the_batch_dimension(
    make_batcher, pool, hold, output, message
):
    batcher = make_batcher()
    call = batcher.wrap(lambda x: [x, output])
    expected = (Code.FAILED_PRECONDITION, message)
    assert error_of(pool.submit(call, rows(1))) == expected
    free, _ = hold(batcher)
    futures = [submit(pool, batcher, call, rows(value)) for value in (1, 2)]
    free()
    assert [error_of(future) for future in futures] == [expected] * 2


def test_queues_take_turns(make_batcher, pool, hold):
    batcher = make_batcher(max_batch_size=1)
    free, _ = hold(batcher)
    order = []

    def wrap(name):
        return batcher.wrap(lambda x: order.append(name) or [x])

    busy, quiet = wrap("busy"), wrap("quiet")
    futures = [submit(pool, batcher, busy, rows(value)) for value in range(4)]
    futures += [submit(pool, batcher, quiet, rows(value)) for value in range(2)]
    free()
    for future in futures:
        result(future)
    assert order == ["busy", "quiet", "busy", "quiet", "busy", "busy"]


def test_close_fails_what_waits_and_ends_the_threads(make_batcher, pool, hold):
    batcher = make_batcher(num_batch_threads=1, thread_pool_name="to_close")
    threads = [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("to_close_")
    ]
    assert len(threads) == 1
    # The thread, not a caller, runs the second call.
    free, held = hold(batcher)
    model = Model()
    model.free.clear()
    call = batcher.wrap(model)
    running = submit(pool, batcher, call, rows(1))
    free()
    assert model.running.acquire(timeout=LONG)
    waiting = [submit(pool, batcher, call, rows(value)) for value in (2, 3)]

    batcher.close()
    batcher.close()
    closed = (Code.UNAVAILABLE, "The batching queue is closed")
    assert [error_of(future) for future in waiting] == [closed] * 2
    assert error_of(pool.submit(call, rows(4))) == closed
    model.free.set()
    assert result(running)[0].tolist() == [[2, 2]]
    assert result(held)[0].tolist() == [[1, 1]]
    threads[0].join(LONG)
    assert not threads[0].is_alive()
    assert model.sizes == [1]


@pytest.mark.parametrize("timeout", [0, FOREVER])
def test_close_ends_threads_that_wait(make_batcher, pool, timeout):
    batcher = make_batcher(
        num_batch_threads=3,
        thread_pool_name=f"idle_{timeout}",
        batch_timeout_micros=timeout,
    )
    threads = [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith(f"idle_{timeout}_")
    ]
    assert len(threads) == 3
    if timeout:
        waiting = submit(pool, batcher, batcher.wrap(Model()), rows(1))
    batcher.close()
    if timeout:
        assert error_of(waiting)[0] == Code.UNAVAILABLE
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


def test_a_failed_call_keeps_no_arrays(make_batcher, hold):
    def run(x):
        raise ServingError(Code.INTERNAL, "no")

    batcher = make_batcher()
    free, held = hold(batcher)
    call = batcher.wrap(run)
    kept = []

    def fail():
        x = rows(1)
        kept.append(weakref.ref(x))
        try:
            call(x)
        except ServingError as error:
            kept.append(str(error))

    gc.disable()  # a circle would have to wait for the collector
    try:
        thread = threading.Thread(target=fail)
        thread.start()
        batcher.await_queued(1)
        free()
        thread.join(LONG)
        result(held)
        # Ended, for the batch thread may be about to drop its batch.
        batcher.close()
        for other in threading.enumerate():
            if other.name.startswith("batch_threads_"):
                other.join(LONG)
        assert kept[1] == "no"
        assert kept[0]() is None
    finally:
        gc.enable()


class Recorder:
    def __init__(self):
        self.batches = []

    def observe_batch(self, rows, waits, executed):
        assert len(waits) == len(rows)
        assert all(wait >= 0 for wait in waits)
        self.batches.append((list(rows), executed))


def test_batches_are_counted(make_batcher, pool, hold):
    recorder = Recorder()
    batcher = make_batcher(
        recorder, max_batch_size=8, allowed_batch_sizes=(2, 8)
    )
    free, _ = hold(batcher)
    call = batcher.wrap(Model())
    futures = [
        submit(pool, batcher, call, rows(*values)) for values in [(1,), (2, 3)]
    ]
    free()
    for future in futures:
        result(future)
    assert recorder.batches == [([1], 2), ([1, 2], 8)]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"batch_timeout_micros": 100},
        {"allowed_batch_sizes": (3, 6)},
        {"enable_large_batch_splitting": True, "max_execution_batch_size": 2},
        {"num_batch_threads": 1},
    ],
    ids=str,
)
def test_everyone_gets_its_own_rows(make_batcher, pool, parameters):
    parameters = {
        "max_batch_size": 6,
        "max_enqueued_batches": 64,
        "num_batch_threads": 3,
    } | parameters
    batcher = make_batcher(**parameters)
    lock = threading.Lock()
    running = 0
    most = 0

    def make_run(factor):
        def run(x):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            try:
                if (x < 0).any():
                    raise ServingError(Code.OUT_OF_RANGE, f"{x.min()}")
                return [x * factor, x.sum(axis=1)]
            finally:
                with lock:
                    running -= 1

        return run

    factors = (2, 3, 5)
    calls = [batcher.wrap(make_run(factor)) for factor in factors]
    start = threading.Barrier(64)

    def client(number):
        dice = random.Random(number)
        start.wait(LONG)
        failures = 0
        for request in range(25):
            which = dice.randrange(len(calls))
            values = [
                number * 1000 + request * 10 + row
                for row in range(dice.randint(1, 6))
            ]
            bad = dice.random() < 0.1
            if bad:
                values[dice.randrange(len(values))] = -1 - number
            x = rows(
                *values,
                width=dice.randint(1, 3),
                dtype=dice.choice(["int32", "int64"]),
            )
            try:
                product, total = calls[which](x)
            except ServingError as error:
                assert bad
                assert (error.code, str(error)) == (
                    Code.OUT_OF_RANGE,
                    str(-1 - number),
                )
                failures += 1
                continue
            assert not bad
            assert product.dtype == x.dtype
            np.testing.assert_array_equal(product, x * factors[which])
            np.testing.assert_array_equal(total, x.sum(axis=1))
        return failures

    futures = [pool.submit(client, number) for number in range(64)]
    assert sum(result(future) for future in futures) > 0
    assert most <= parameters["num_batch_threads"]
