"""Counts what the server does, in TensorFlow Serving's Prometheus metrics.

The page is written here, because prometheus_client renames counters to
`.._total`, and its own lines are not those that TensorFlow Serving prints.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterator
from collections.abc import Sequence

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Metrics:
    """The metrics that dashboards for TensorFlow Serving read.

    All methods may be called by many threads at a time.
    """

    def __init__(self) -> None:
        self._models: set[str] = set()
        self._request_count = _Counter(
            "serving:request_count", "model_name", "status"
        )
        microseconds = _exponential(10, 1.8, 33)  # to 20 minutes
        self._request_latency = _Histogram(
            "serving:request_latency",
            "model_name",
            "API",
            "entrypoint",
            limits=microseconds,
        )
        self._graph_runs = _Counter("core:graph_runs")
        self._graph_run_time = _Counter("core:graph_run_time_usecs")
        self._load_attempts = _Counter(
            "cc:saved_model:load_attempt_count", "model_path", "status"
        )
        self._load_latency = _Counter(
            "cc:saved_model:load_latency", "model_path"
        )
        self._queuing_latency = _Histogram(
            "serving:batching_session:queuing_latency",
            "thread_pool_name",
            limits=_exponential(100, 1.2, 52),  # to 1 second
        )
        rows = _exponential(1, 2, 14)
        self._input_batch_size = _Histogram(
            "serving:batching_session:input_batch_size", limits=rows
        )
        self._processed_batch_size = _Histogram(
            "serving:batching_session:processed_batch_size", limits=rows
        )

    def observe(
        self, model: str, api: str, entrypoint: str, status: str, seconds: float
    ) -> None:
        """Counts a request that has been answered.

        Clients may ask for any name, so only the names that `observe_load`
        has seen are counted apart. All others share the empty name.

        Args:
            model: The name that the request asked for.
            api: What it asked for, such as `"predict"`.
            entrypoint: `"REST"` or `"GRPC"`.
            status: The canonical code's name; `"OK"` where it was answered.
            seconds: How long it took. Only requests that are `"OK"` enter the
                latency.
        """
        if model not in self._models:
            model = ""
        self._request_count.add((model, status))
        if status == "OK":
            self._request_latency.add((model, api, entrypoint), seconds * 1e6)

    def observe_graph_run(self, seconds: float) -> None:
        """Counts a run of any model's graph, and how long it took."""
        self._graph_runs.add(())
        self._graph_run_time.add((), round(seconds * 1e6))

    def observe_load(
        self, model: str, path: str, succeeded: bool, seconds: float
    ) -> None:
        """Counts an attempt to load a version.

        Args:
            model: The model's name.
            path: The version's folder.
            succeeded: Whether it can be served.
            seconds: How long it took.
        """
        self._models.add(model)
        status = "success" if succeeded else "fail"
        self._load_attempts.add((path, status))
        self._load_latency.add((path,), round(seconds * 1e6))

    def observe_batch(
        self, rows: Sequence[int], waits: Sequence[float], executed: int
    ) -> None:
        """Counts a batch.

        Args:
            rows: How many rows each member brings.
            waits: The seconds that each member waited.
            executed: The rows that are run, with the padding.
        """
        for wait in waits:
            # TensorFlow Serving leaves the name of the threads empty.
            self._queuing_latency.add(("",), wait * 1e6)
        for count in rows:
            self._input_batch_size.add((), count)
        self._processed_batch_size.add((), executed)

    def render(self) -> bytes:
        """Returns the page, which is `text/plain` in UTF-8."""
        metrics = sorted(
            (
                value
                for value in vars(self).values()
                if isinstance(value, _Metric)
            ),
            key=lambda metric: metric.name,
        )
        lines = [line for metric in metrics for line in metric.lines()]
        # A name that is not text, such as one of raw bytes, must not cost the
        # whole page.
        return ("\n".join(lines) + "\n").encode(errors="replace")


class _Metric:
    """One name, with a value for each combination of labels."""

    kind: str

    def __init__(self, name: str, *labels: str):
        self.name = f":tensorflow:{name}"
        self._labels = labels
        self._lock = threading.Lock()

    def lines(self) -> Iterator[str]:
        yield f"# TYPE {self.name} {self.kind}"
        yield from self._samples()

    def _samples(self) -> Iterator[str]:
        raise NotImplementedError

    def _pairs(self, values: tuple[str, ...]) -> list[str]:
        return [
            f'{label}="{value.translate(_ESCAPES)}"'
            for label, value in zip(self._labels, values, strict=True)
        ]


class _Counter(_Metric):
    kind = "counter"

    def __init__(self, name: str, *labels: str):
        super().__init__(name, *labels)
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, values: tuple[str, ...], amount: int = 1) -> None:
        with self._lock:
            self._counts[values] = self._counts.get(values, 0) + amount

    def _samples(self) -> Iterator[str]:
        with self._lock:
            counts = sorted(self._counts.items())
        for values, count in counts:
            yield f"{self.name}{{{','.join(self._pairs(values))}}} {count}"


class _Histogram(_Metric):
    kind = "histogram"

    def __init__(self, name: str, *labels: str, limits: Sequence[float]):
        super().__init__(name, *labels)
        self._limits = limits
        self._names = [*(f"{limit:g}" for limit in limits), "+Inf"]
        # The counts of the buckets, each by itself, and then the sum.
        self._cells: dict[tuple[str, ...], list[float]] = {}

    def add(self, values: tuple[str, ...], amount: float) -> None:
        bucket = bisect_left(self._limits, amount)
        with self._lock:
            cell = self._cells.get(values)
            if cell is None:
                cell = self._cells[values] = [0] * (len(self._names) + 1)
            cell[bucket] += 1
            cell[-1] += amount

    def _samples(self) -> Iterator[str]:
        with self._lock:
            cells = sorted(
                (values, cell.copy()) for values, cell in self._cells.items()
            )
        for values, (*counts, total) in cells:
            pairs = self._pairs(values)
            below = 0
            for limit, count in zip(self._names, counts, strict=True):
                below += int(count)
                labels = ",".join([*pairs, f'le="{limit}"'])
                yield f"{self.name}_bucket{{{labels}}} {below}"
            labels = ",".join(pairs)
            yield f"{self.name}_sum{{{labels}}} {total}"
            yield f"{self.name}_count{{{labels}}} {below}"


def _exponential(first: float, growth: float, count: int) -> list[float]:
    return [first * growth**power for power in range(count)]
