"""The metrics' page, read by the parser of Prometheus's own client."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from keras_muffnet.model_server.metrics import Metrics

PREFIX = ":tensorflow:"
LATENCY = PREFIX + "serving:request_latency"


@pytest.fixture
def metrics():
    metrics = Metrics()
    metrics.observe_load("m", "/models/m/1", True, 0.25)
    return metrics


def lines(metrics):
    return metrics.render().decode().splitlines()


def samples(metrics):
    """The page's samples as {(name, labels in order): value}."""
    # The parser ends the names of counters in `_total`; the page does not.
    return {
        (
            sample.name.removeprefix(PREFIX).removesuffix("_total"),
            *sample.labels.values(),
        ): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_the_page_of_a_fresh_server():
    assert Metrics().render() == (
        b"# TYPE :tensorflow:cc:saved_model:load_attempt_count counter\n"
        b"# TYPE :tensorflow:cc:saved_model:load_latency counter\n"
        b"# TYPE :tensorflow:core:graph_run_time_usecs counter\n"
        b"# TYPE :tensorflow:core:graph_runs counter\n"
        b"# TYPE :tensorflow:serving:batching_session:input_batch_size "
        b"histogram\n"
        b"# TYPE :tensorflow:serving:batching_session:processed_batch_size "
        b"histogram\n"
        b"# TYPE :tensorflow:serving:batching_session:queuing_latency "
        b"histogram\n"
        b"# TYPE :tensorflow:serving:request_count counter\n"
        b"# TYPE :tensorflow:serving:request_latency histogram\n"
    )


def test_requests_are_counted_by_model_and_status(metrics):
    for status in ("OK", "OK", "INVALID_ARGUMENT"):
        metrics.observe("m", "predict", "REST", status, 0.001)
    count = ":tensorflow:serving:request_count"
    assert f'{count}{{model_name="m",status="OK"}} 2' in lines(metrics)
    assert f'{count}{{model_name="m",status="INVALID_ARGUMENT"}} 1' in lines(
        metrics
    )


def test_latency_is_a_histogram_of_microseconds(metrics):
    # 10 us lies in the bucket that ends there, 10.5 in the next one.
    for microseconds in (10, 10.5, 2e9):
        metrics.observe("m", "predict", "REST", "OK", microseconds / 1e6)
    metrics.observe("m", "predict", "REST", "INTERNAL", 1)
    metrics.observe("m", "Predict", "GRPC", "OK", 1)
    labels = 'model_name="m",API="predict",entrypoint="REST"'
    start = f"{LATENCY}_bucket{{{labels},le="
    buckets = [line for line in lines(metrics) if line.startswith(start)]
    assert len(buckets) == 34
    assert [line.removeprefix(start) for line in buckets[:6]] == [
        '"10"} 1',
        '"18"} 2',
        '"32.4"} 2',
        '"58.32"} 2',
        '"104.976"} 2',
        '"188.957"} 2',
    ]
    assert [line.removeprefix(start) for line in buckets[-2:]] == [
        '"1.47476e+09"} 2',
        '"+Inf"} 3',
    ]
    assert f"{LATENCY}_count{{{labels}}} 3" in lines(metrics)
    total = samples(metrics)[
        "serving:request_latency_sum", "m", "predict", "REST"
    ]
    assert total == pytest.approx(2e9 + 20.5)
    gave = samples(metrics)
    assert gave["serving:request_latency_count", "m", "Predict", "GRPC"] == 1


def test_the_other_metrics(metrics):
    metrics.observe_load("m", "/models/m/2", False, 0.5)
    metrics.observe_load("m", "/models/m/2", True, 1)
    metrics.observe_graph_run(0.25)
    metrics.observe_graph_run(0.5)
    metrics.observe_batch([1, 3], [0.0, 0.001], 8)
    gave = samples(metrics)
    loads = "cc:saved_model:load_"
    batching = "serving:batching_session:"
    assert {
        key: value
        for key, value in gave.items()
        if not key[0].endswith("_bucket")
    } == {
        (loads + "attempt_count", "/models/m/1", "success"): 1,
        (loads + "attempt_count", "/models/m/2", "success"): 1,
        (loads + "attempt_count", "/models/m/2", "fail"): 1,
        (loads + "latency", "/models/m/1"): 250_000,
        (loads + "latency", "/models/m/2"): 1_500_000,
        ("core:graph_runs",): 2,
        ("core:graph_run_time_usecs",): 750_000,
        (batching + "queuing_latency_count", ""): 2,
        (batching + "queuing_latency_sum", ""): 1000,
        (batching + "input_batch_size_count",): 2,
        (batching + "input_batch_size_sum",): 4,
        (batching + "processed_batch_size_count",): 1,
        (batching + "processed_batch_size_sum",): 8,
    }
    assert gave[batching + "input_batch_size_bucket", "1"] == 1
    assert gave[batching + "processed_batch_size_bucket", "4"] == 0
    assert gave[batching + "processed_batch_size_bucket", "8"] == 1


def test_names_that_clients_make_up_share_one_label(metrics):
    size = None
    for number in range(100):
        metrics.observe(f"no{number}", "predict", "REST", "NOT_FOUND", 0)
        metrics.observe(f"no{number}", "predict", "REST", "OK", 0)
        size = size or len(lines(metrics))
    assert len(lines(metrics)) == size
    assert samples(metrics)["serving:request_count", "", "NOT_FOUND"] == 100
    # A failed load is no reason to lose sight of a configured model.
    metrics.observe_load("broken", "/models/broken/1", False, 1)
    metrics.observe("broken", "predict", "REST", "NOT_FOUND", 0)
    assert samples(metrics)["serving:request_count", "broken", "NOT_FOUND"] == 1


@pytest.mark.parametrize(
    "name", ['a"b', "a\\b", "a\nb", 'a\\"\n', "a{b}=,", "\u00fc\u2603"]
)
def test_names_are_escaped(metrics, name):
    metrics.observe_load(name, f"/models/{name}/1", True, 0.5)
    metrics.observe(name, "predict", "REST", "OK", 0.001)
    gave = samples(metrics)
    assert gave["serving:request_count", name, "OK"] == 1
    assert gave["cc:saved_model:load_latency", f"/models/{name}/1"] == 500_000
    assert gave["serving:request_latency_count", name, "predict", "REST"] == 1


def test_a_path_that_is_no_text_does_not_break_the_page(metrics):
    metrics.observe_load("x", "/models/\udcff/1", True, 0.5)
    assert samples(metrics)["cc:saved_model:load_latency", "/models/?/1"] == (
        500_000
    )


def test_threads_lose_no_request(metrics):
    start = threading.Barrier(9)
    stop = threading.Event()

    def count(number):
        start.wait(60)
        for _ in range(500):
            metrics.observe("m", "predict", "REST", "OK", 0.001)
            metrics.observe("m", "predict", f"REST{number}", "OK", 0.001)

    def read():
        start.wait(60)
        while not stop.is_set():
            pages.append(metrics.render())

    pages = []
    with ThreadPoolExecutor(9) as pool:
        reader = pool.submit(read)
        for future in [pool.submit(count, number) for number in range(8)]:
            future.result(60)
        stop.set()
        reader.result(60)
    assert pages
    gave = samples(metrics)
    assert gave["serving:request_count", "m", "OK"] == 8000
    for number in range(8):
        key = ("serving:request_latency_count", "m", "predict", f"REST{number}")
        assert gave[key] == 500
    key = ("serving:request_latency_count", "m", "predict", "REST")
    assert gave[key] == 4000
