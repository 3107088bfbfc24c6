"""Sends load by locust: a load per line of input, as JSON, a result per line.

It is a process of its own, which run.py starts, because locust replaces
Python's sockets and because its CPU time is one of the results.
"""

# ruff: noqa: I001 - locust first, since it patches what the others import
import locust
from locust.env import Environment

import collections
import itertools
import json
import logging
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import gevent

_OPEN_USERS = 256  # requests that an open loop can have in flight
_TIMEOUT = 60.0  # seconds
_WARM_UP = 0.25  # of the measured time, before it


def main() -> None:
    """Sends loads until the input ends."""
    logging.disable(logging.WARNING)  # that all clients start at once
    for line in sys.stdin:
        print(json.dumps(send(**json.loads(line))), flush=True)


def send(
    url: str,
    bodies: list[str],
    *,
    clients: int | None = None,
    rate: float | None = None,
    seconds: float | None = None,
    requests: int | None = None,
) -> dict[str, Any]:
    """Sends one load and waits for all answers.

    With `clients` the loop is closed: each client sends its next request when
    the last is answered. With `rate` it is open: requests are due at constant
    intervals, whatever the server does, and latencies count from when they were
    due. So a server that stalls cannot hide the requests that it held up
    (coordinated omission).

    Args:
        url: where to POST.
        bodies: files with the bodies, which take turns.
        clients: how many clients a closed loop has.
        rate: requests per second of an open loop.
        seconds: how long requests are sent, after a quarter of that to warm up;
            in a closed loop it may be left out in favor of `requests`.
        requests: how many requests are sent.

    Returns:
        `requests`, how many were measured; `failures`, how many answers, those
        of the warm-up included, were not 200, by kind; `latencies`, of the
        others, in milliseconds; `throughput`, of the others, per second;
        `generator_cpu`, the CPU time used here, by elapsed time.
    """
    contents: Iterator[Any] = itertools.cycle(
        [pathlib.Path(b).read_bytes() for b in bodies]
    )
    begin = time.perf_counter()
    measured_from = begin + (_WARM_UP * seconds if seconds else 0)
    end = measured_from + seconds if seconds else float("inf")
    starts = _open(begin, rate) if rate else _closed()
    due = itertools.takewhile(
        lambda start: start < end, itertools.islice(starts, requests)
    )
    spans: list[tuple[float, float]] = []
    failures: collections.Counter[str] = collections.Counter()

    class Client(locust.FastHttpUser):
        host = url
        network_timeout = connection_timeout = _TIMEOUT

        @locust.task
        def ask(self) -> None:
            start = next(due, None)
            if start is None:
                raise locust.exception.StopUser
            gevent.sleep(max(0, start - time.perf_counter()))
            answer = self.client.request("POST", url, data=next(contents))
            if answer.status_code == 200:
                spans.append((start, time.perf_counter()))
            else:
                failures[_describe(answer)] += 1

    cpu = time.process_time()
    _run(Client, clients or _OPEN_USERS)
    cpu = time.process_time() - cpu
    elapsed = max([stop for _, stop in spans] or [time.perf_counter()]) - begin
    ended = [stop for _, stop in spans if measured_from <= stop < end]
    latencies = [
        round(1000 * (stop - start), 3)
        for start, stop in spans
        if start >= measured_from
    ]
    return {
        "requests": len(latencies) + failures.total(),
        "failures": failures,
        "latencies": latencies,
        "throughput": len(ended) / (seconds or elapsed),
        "generator_cpu": cpu / elapsed,
    }


def _closed() -> Iterator[float]:
    while True:
        yield time.perf_counter()


def _open(begin: float, rate: float) -> Iterator[float]:
    return (begin + number / rate for number in itertools.count())


def _run(user: type[locust.FastHttpUser], count: int) -> None:
    runner = Environment(user_classes=[user]).create_local_runner()
    runner.start(count, spawn_rate=count, wait=True)
    spawning: Any = runner.spawning_greenlet
    spawning.join()  # until all users have stopped
    runner.quit()


def _describe(answer: Any) -> str:
    if answer.status_code:
        return f"{answer.status_code} {(answer.text or '')[:200]}"
    return repr(answer.error)


if __name__ == "__main__":
    main()
