"""The load test, with toy models and servers that fail or stall."""

import argparse
import csv
import http.server
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from unittest import mock

import keras
import pytest

from keras_muffnet.export import export_saved_model
from serving.loadtest import formats
from serving.loadtest import run
from tests.conftest import ROOT

PLAN = run.Plan(
    rounds=1,
    seconds=0.5,
    batches=(1, 2),
    clients=(1, 4),
    shares=(0.5,),
    switch_seconds=3,
)


class Fake:
    """A server that answers by a function of the request's number."""

    def __init__(self, answer, base_path=None):
        numbers = itertools.count()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self._write(answer(next(numbers)))

            def do_GET(self):
                names = [path.name for path in base_path.iterdir()]
                newest = max(name for name in names if name.isdecimal())
                status = {"version": newest, "state": "AVAILABLE"}
                self._write(200, {"model_version_status": [status]})

            def _write(self, status, value=None):
                body = json.dumps(value or {"error": "full"}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 128  # clients that connect at a time

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/models/m"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever).start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def generator():
    with run.Worker("generator.py") as worker:
        yield worker


@pytest.fixture
def body(tmp_path):
    path = tmp_path / "body.json"
    path.write_text("{}")
    return str(path)


def result(throughput, latencies, failures=None, cpu=0.1, memory=100.0):
    failures = failures or {}
    return {
        "requests": len(latencies) + sum(failures.values()),
        "failures": failures,
        "latencies": latencies,
        "throughput": throughput,
        "generator_cpu": cpu,
        "server_mb": memory,
    }


def test_arithmetic_of_the_table():
    bare = {"cpu": None, "memory": None}
    closed = [
        result(30.0, [30.0, 10.0], {"503 full": 2, "timeout": 1}, 0.1, 100.0),
        result(20.0, [20.0], cpu=0.3, memory=150.4),
        result(60.0, [40.0, 50.0], cpu=0.2, memory=120.0),
    ]
    results = {
        ("JPEG", "closed", 32): closed,
        ("JPEG", "bare", 16): [result(40.0, [1.0], **bare)] * 3,
        ("JPEG", "bare", 2): [
            result(throughput, [2.0, 4.0], **bare)
            for throughput in (90.0, 10.0, 20.0)
        ],
        ("JPEG", "closed", 1): [result(5.0, [], {"503 full": 4})],
        ("float", "open", 9): [result(9.0, list(range(101)))],
    }
    rows = run.make_rows(results)
    assert [tuple(row) for row in rows] == [run.FIELDS] * 5
    assert [tuple(row.values()) for row in rows] == [
        ("JPEG", "closed", 1, 4, 4, 5.0, 0.125, None, None, None, 0.1, 100),
        ("JPEG", "closed", 32, 8, 3, 30.0, 0.75, 30.0, 46.0, 49.6, 0.2, 150),
        ("JPEG", "bare", 2, 6, 0, 20.0, 0.5, 3.0, 4.0, 4.0, None, None),
        ("JPEG", "bare", 16, 3, 0, 40.0, 1.0, 1.0, 1.0, 1.0, None, None),
        ("float", "open", 9, 101, 0, 9.0, None, 50.0, 90.0, 99.0, 0.1, 100),
    ]


def test_failures_are_counted(generator, body):
    def answer(number):
        return 503 if number % 5 == 0 else 200

    with Fake(answer) as fake:
        found = generator.ask(
            url=fake.url, bodies=[body], clients=4, requests=100
        )
    assert found["requests"] == 100
    assert found["failures"] == {'503 {"error": "full"}': 20}
    assert len(found["latencies"]) == 80
    assert found["throughput"] > 0
    assert found["generator_cpu"] > 0


def test_a_server_that_is_not_there(generator, body):
    with Fake(None) as fake:
        url = fake.url
    found = generator.ask(url=url, bodies=[body], clients=2, requests=6)
    assert sum(found["failures"].values()) == found["requests"] == 6
    assert found["latencies"] == []
    assert found["throughput"] == 0


def test_an_open_loop_counts_the_wait_for_a_stalled_server(generator, body):
    lock = threading.Lock()

    def answer(number):
        with lock:
            if number == 0:
                time.sleep(1.0)
        return 200

    with Fake(answer) as fake:
        found = generator.ask(url=fake.url, bodies=[body], rate=50, seconds=1.6)
    # Due from 0.4 s on, at the latest until 0.9 s behind the stalled one.
    assert found["requests"] == len(found["latencies"]) == 80
    assert sum(latency >= 100 for latency in found["latencies"]) >= 20


def test_closed_clients_wait_for_their_answers(generator, body):
    lock = threading.Lock()
    running = 0
    most = 0

    def answer(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return 200

    with Fake(answer) as fake:
        found = generator.ask(
            url=fake.url, bodies=[body], clients=3, seconds=0.8
        )
    assert most == 3
    assert found["failures"] == {}
    assert min(found["latencies"]) >= 20


@pytest.mark.parametrize("failing", [False, True])
def test_switch(generator, body, tmp_path, failing):
    old = tmp_path / "models" / "1"
    old.mkdir(parents=True)
    (old / "saved_model.pb").write_bytes(b"model")

    def answer(number):
        return 503 if failing and (old.parent / "2").exists() else 200

    with Fake(answer, old.parent) as fake:
        server = run.Server(fake.url)
        bodies = {"serving_bytes": [body]}
        results, verdict = run.switch(PLAN, generator, server, bodies, old)
    assert (old.parent / "2" / "saved_model.pb").read_bytes() == b"model"
    (row,) = run.make_rows(results)
    assert (row["loop"], row["level"]) == ("switch", 32)
    assert row["requests"] > row["failures"]
    assert bool(row["failures"]) == failing
    assert ("Requests failed in the switch: {'503" in verdict) == failing
    assert bool(verdict) == failing


def test_switch_that_does_not_come(generator, body, tmp_path):
    old = tmp_path / "models" / "1"
    old.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "1").mkdir(parents=True)
    plan = PLAN._replace(switch_seconds=0.6)
    with Fake(lambda number: 200, elsewhere) as fake:
        server = run.Server(fake.url)
        bodies = {"serving_bytes": [body]}
        _, verdict = run.switch(plan, generator, server, bodies, old)
    assert verdict == "Version 2 did not replace the other under load"


def test_memory_that_grows(monkeypatch, generator, body):
    bodies = {"serving_bytes": [body], "serving_default": [body]}
    for last, failing in ((104.9, False), (105.1, True)):
        weights = iter([100.0, *[90.0] * 8, last])
        monkeypatch.setattr(run.Server, "memory", lambda _, w=weights: next(w))
        with Fake(lambda number: 200) as fake:
            server = run.Server(fake.url)
            results, verdict = run.watch_memory(100, generator, server, bodies)
        rows = run.make_rows(results)
        assert [row["level"] for row in rows] == list(range(10, 101, 10))
        assert [row["requests"] for row in rows] == [10] * 10
        assert [row["server_mb"] for row in rows][-2:] == [90, round(last)]
        assert ("Memory grew from 100.0 to 105.1 MB" in verdict) == failing


def test_the_table_of_formats(generator, body):
    args = argparse.Namespace(rounds=2, seconds=0.1)
    with (
        Fake(lambda number: 200) as quick,
        Fake(lambda number: 500) as broken,
    ):
        servers = {
            name: mock.Mock(url=fake.url, pid=os.getpid())
            for name, fake in (("layers", quick), ("folded", broken))
        }
        for server in servers.values():
            server.memory.return_value = 123.4
        rows = formats.measure(args, generator, servers, "JPEG", [body], 2)
    assert [tuple(row) for row in rows] == [formats.FIELDS] * 2
    layers, folded = rows
    assert (layers["format"], folded["format"]) == ("layers", "folded")
    assert layers["of_layers"] == 1 and layers["images_per_second"] > 0
    assert 0 < layers["p50_ms"] <= layers["p99_ms"]
    assert (layers["failures"], layers["server_mb"]) == (0, 123)
    assert folded["images_per_second"] == folded["of_layers"] == 0
    assert folded["failures"] == folded["requests"] > 0


def command(*flags, expected=0):
    done = subprocess.run(
        [sys.executable, "serving/loadtest/run.py", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done


def test_sweep_of_the_embedded_server(tmp_path):
    layers = [keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    export_saved_model(model, tmp_path / "models")
    table = tmp_path / "load.csv"
    picture = tmp_path / "load.png"
    done = command(
        "--quick",
        f"--model_base_path={tmp_path / 'models'}",
        f"--output={table}",
        f"--picture={picture}",
    )
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == run.FIELDS
    plan = run.QUICK
    count = len(plan.batches) + len(plan.clients) + len(plan.shares)
    assert len(rows) == 2 * count
    for row in rows:
        assert row["failures"] == "0"
        assert int(row["requests"]) > 0
        assert (
            float(row["p50_ms"]) <= float(row["p90_ms"]) <= float(row["p99_ms"])
        )
        assert (row["server_mb"] == "") == (row["loop"] == "bare")
    for form in ("JPEG", "float"):
        found = {
            (row["loop"], row["level"]): row["of_bare"]
            for row in rows
            if row["form"] == form
        }
        assert "1.0" in (found["bare", "1"], found["bare", "32"])
        ratio = found["closed", "32"]
        assert f"\n{form}: 32 clients get {ratio} of the best" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| JPEG | closed | 32 |" in done.stdout
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--switch", "--url=http://host"), "needs --model_base_path"),
        (("--requests=9",), "--requests must be at least 10"),
        (("--requests=10", "--url=http://host"), "no --url"),
        (("--switch", "--requests=10"), "not allowed with argument"),
        (("--switch", "--picture=a.png"), "--picture is of the sweep"),
    ],
)
def test_flags_that_do_not_go_together(flags, text):
    done = command("--output=none.csv", *flags, expected=2)
    assert text in done.stderr
    assert not pathlib.Path(ROOT, "none.csv").exists()
