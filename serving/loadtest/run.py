"""Load-tests a model server against the bare calls of the same model.

    python serving/loadtest/run.py --output results/serving_load.csv \
        --picture docs/serving_load.png

exports a MuffNet (alpha 0.5 at 224x224), serves it by the embedded server, and
measures, in turns, so that each sees the machine in the same state:

* bare: a process calls the SavedModel with batches of 1 to 32 images;
* closed: 1 to 64 clients, each of which waits for its answer;
* open: requests at a constant rate, a share of what the closed loop reached.

Requests hold one image, as JPEG in base64 (`serving_bytes`) or as float tensor
(`serving_default`). About ten minutes; --quick, for a look, about one.

With --switch it publishes another version while 32 clients ask, and with
--requests N it sends that many to a tiny model and watches the server's memory.
Both exit with status 1 if a request failed or memory grew.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

HERE = pathlib.Path(__file__).parent
MODEL = "muffnet"
FORMS = {"serving_bytes": "JPEG", "serving_default": "float"}
TARGET_CLIENTS = 32
BATCHING = """\
max_batch_size { value: 32 }
batch_timeout_micros { value: 1000 }
num_batch_threads { value: 2 }
"""
_WITHOUT_SIMDJSON = """\
import runpy, sys
sys.modules["simdjson"] = None
runpy.run_module("keras_muffnet.model_server", run_name="__main__")
"""
MEMORY_GROWTH = 1.05  # from the first tenth of the requests to the last
FIELDS = (
    "form",
    "loop",
    "level",
    "requests",
    "failures",
    "images_per_second",
    "of_bare",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "generator_cpu",
    "server_mb",
)


class Plan(NamedTuple):
    """What to measure, and how long each."""

    rounds: int
    seconds: float
    batches: Sequence[int]
    clients: Sequence[int]
    shares: Sequence[float]  # of the closed loop's best throughput
    switch_seconds: float


FULL = Plan(
    rounds=3,
    seconds=3,
    batches=(1, 2, 4, 8, 16, 32),
    clients=(1, 2, 4, 8, 16, 32, 64),
    shares=(0.25, 0.5, 0.75, 0.9),
    switch_seconds=30,
)
QUICK = Plan(
    rounds=1,
    seconds=0.8,
    batches=(1, 32),
    clients=(1, 8, 32),
    shares=(0.5,),
    switch_seconds=12,
)

# Results of one load, or of one series of bare calls, by form, loop and level:
# the batch size, the number of clients, or the rate.
Key = tuple[str, str, float]
Results = dict[Key, list[dict[str, Any]]]


class Worker:
    """A process that answers lines of JSON by lines of JSON."""

    def __init__(self, script: str):
        self._script = script
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, **values: Any) -> None:
        """Sends a command."""
        print(json.dumps(values), file=self._process.stdin, flush=True)

    def receive(self) -> Any:
        """Waits for the answer to a command."""
        output: Any = self._process.stdout
        line = output.readline()
        if not line:
            raise SystemExit(f"{self._script} ended: see above")
        return json.loads(line)

    def ask(self, **values: Any) -> Any:
        """Sends a command and waits for its answer."""
        self.send(**values)
        return self.receive()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()


class Server(NamedTuple):
    """A server under test: its model's URL, and its process where known."""

    url: str
    pid: int | None = None

    def memory(self) -> float | None:
        """Returns the resident memory in MB."""
        import psutil

        if self.pid is None:
            return None
        return psutil.Process(self.pid).memory_info().rss / 2**20

    def versions(self) -> set[int]:
        """Returns the versions that are available."""
        with urllib.request.urlopen(self.url, timeout=60) as answer:
            states = json.load(answer)["model_version_status"]
        return {
            int(state["version"])
            for state in states
            if state["state"] == "AVAILABLE"
        }


def main() -> None:
    """Runs the command."""
    from keras_muffnet._files import write_csv

    args = parse_args()
    plan = QUICK if args.quick else FULL
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        bare = stack.enter_context(Worker("bare.py"))
        generator = stack.enter_context(Worker("generator.py"))
        base_path = args.model_base_path
        if base_path is None:
            base_path = pathlib.Path(folder, MODEL)
            print("Exports the model ...", flush=True)
            tiny = bool(args.requests)
            bare.ask(command="export", base_path=str(base_path), tiny=tiny)
        path = latest_version(base_path)
        if args.url:
            server = Server(f"{args.url}/v1/models/{args.model_name}")
        else:
            parameters = args.batching_parameters_file
            server = stack.enter_context(serve(base_path, folder, parameters))
        bodies = bare.ask(command="write_bodies", path=str(path), folder=folder)
        if args.switch:
            results, verdict = switch(plan, generator, server, bodies, path)
        elif args.requests:
            results, verdict = watch_memory(
                args.requests, generator, server, bodies
            )
        else:
            results = sweep(plan, bare, generator, server, bodies, path)
            verdict = ""
    rows = make_rows(results)
    write_csv(args.output, rows, FIELDS)
    print_table(rows)
    if args.picture:
        draw(rows, args.picture)
    if verdict:
        sys.exit(verdict)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    path = pathlib.Path
    parser.add_argument("--output", type=path, required=True, help="CSV file")
    parser.add_argument("--picture", type=path, help="picture of the sweep")
    parser.add_argument("--quick", action="store_true", help="for a look")
    parser.add_argument(
        "--url", help="http://HOST:PORT of a running server to test instead"
    )
    parser.add_argument(
        "--model_name", default=MODEL, help="the model's name at --url"
    )
    parser.add_argument(
        "--model_base_path",
        type=path,
        help="versions of an exported model to test instead; with --url, of "
        "the model served there",
    )
    parser.add_argument(
        "--batching_parameters_file",
        type=path,
        help="for the embedded server, instead of batches of up to 32",
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--switch",
        action="store_true",
        help="publish a copy of the latest version under load",
    )
    kinds.add_argument(
        "--requests", type=int, metavar="N", help="watch memory over N requests"
    )
    args = parser.parse_args()
    if args.switch and args.url and not args.model_base_path:
        parser.error("--switch with --url needs --model_base_path")
    if args.requests is not None and args.requests < 10:
        parser.error("--requests must be at least 10")
    if args.requests and args.url:
        parser.error("--requests starts a server of its own: no --url")
    if args.picture and (args.switch or args.requests):
        parser.error("--picture is of the sweep, not of --switch or --requests")
    return args


def sweep(
    plan: Plan,
    bare: Worker,
    generator: Worker,
    server: Server,
    bodies: Mapping[str, list[str]],
    path: pathlib.Path,
) -> Results:
    """Measures bare calls, closed loops and open loops in turns."""
    results: Results = {}

    def note(form: str, loop: str, level: float, result: Any) -> None:
        result["server_mb"] = server.memory() if loop != "bare" else None
        results.setdefault((FORMS[form], loop, level), []).append(result)
        report(FORMS[form], loop, level, result)

    load: dict[str, Any]
    rates: dict[str, list[int]] = {}
    for number in range(plan.rounds):
        print(f"Round {number + 1} of {plan.rounds}", flush=True)
        for form, files in bodies.items():
            load = {
                "url": f"{server.url}:predict",
                "bodies": files,
                "seconds": plan.seconds,
            }
            best = 1.0
            for batch, clients in itertools.zip_longest(
                plan.batches, plan.clients
            ):
                if batch:
                    result = bare.ask(
                        command="call",
                        path=str(path),
                        signature=form,
                        batch=batch,
                        seconds=plan.seconds,
                    )
                    note(form, "bare", batch, result)
                if clients:
                    result = generator.ask(**load, clients=clients)
                    note(form, "closed", clients, result)
                    best = max(best, result["throughput"])
            # The same in all rounds, whose results are joined.
            found = [max(1, round(share * best)) for share in plan.shares]
            for rate in rates.setdefault(form, found):
                result = generator.ask(**load, rate=rate)
                note(form, "open", rate, result)
    return results


def switch(
    plan: Plan,
    generator: Worker,
    server: Server,
    bodies: Mapping[str, list[str]],
    path: pathlib.Path,
) -> tuple[Results, str]:
    """Publishes a copy of the latest version while clients ask.

    Returns:
        The results, and what went wrong, if anything.
    """
    from keras_muffnet._files import written_aside

    new = int(path.name) + 1
    generator.send(
        url=f"{server.url}:predict",
        bodies=bodies["serving_bytes"],
        clients=TARGET_CLIENTS,
        seconds=plan.switch_seconds,
    )
    begin = time.monotonic()
    time.sleep(plan.switch_seconds / 3)
    with written_aside(path.parent / str(new)) as aside:
        shutil.copytree(path, aside)
    print(f"Published version {new}", flush=True)
    switched = False
    # Done early enough that the new version alone is asked for a while, too.
    while not switched and time.monotonic() < begin + plan.switch_seconds:
        time.sleep(0.1)
        switched = server.versions() == {new}
    print(f"Version {new} alone: {switched}", flush=True)
    result = generator.receive()
    result["server_mb"] = server.memory()
    report("JPEG", "switch", TARGET_CLIENTS, result)
    verdict = ""
    if not switched:
        verdict = f"Version {new} did not replace the other under load"
    elif result["failures"]:
        verdict = f"Requests failed in the switch: {result['failures']}"
    return {("JPEG", "switch", TARGET_CLIENTS): [result]}, verdict


def watch_memory(
    requests: int,
    generator: Worker,
    server: Server,
    bodies: Mapping[str, list[str]],
) -> tuple[Results, str]:
    """Sends many requests, of both forms, and weighs the server at each tenth.

    Returns:
        The results, whose level is the number of requests sent until then, and
        what went wrong, if anything.
    """
    results: Results = {}
    for tenth in range(1, 11):
        result = generator.ask(
            url=f"{server.url}:predict",
            bodies=[file for files in bodies.values() for file in files],
            clients=TARGET_CLIENTS,
            requests=requests // 10,
        )
        result["server_mb"] = server.memory()
        level = tenth * (requests // 10)
        results["both", "memory", level] = [result]
        report("both", "memory", level, result)
    weights = [result["server_mb"] for (result,) in results.values()]
    if any(result["failures"] for (result,) in results.values()):
        return results, "Requests failed"
    if weights[-1] > MEMORY_GROWTH * weights[0]:
        return results, f"Memory grew from {weights[0]} to {weights[-1]} MB"
    return results, ""


@contextlib.contextmanager
def serve(
    base_path: pathlib.Path,
    folder: str,
    parameters: pathlib.Path | None,
    simdjson: bool = True,
) -> Iterator[Server]:
    """Runs the embedded server, with batching if it knows of that.

    Args:
        base_path: the folder of the versions.
        folder: where to write.
        parameters: of the batching, instead of batches of up to 32.
        simdjson: whether the server may use it, where it is installed.
    """
    command = [sys.executable, "-m", "keras_muffnet.model_server"]
    if not simdjson:
        command = [sys.executable, "-c", _WITHOUT_SIMDJSON]
    known = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command += [f"--rest_api_port={port}", "--port=0"]
    command += [f"--model_name={MODEL}"]
    command += [f"--model_base_path={base_path.resolve()}"]
    if "--enable_batching" in known:
        if parameters is None:
            parameters = pathlib.Path(folder, "batching.config")
            parameters.write_text(BATCHING)
        command += ["--enable_batching"]
        command += [f"--batching_parameters_file={parameters}"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
    )
    output: Any = process.stdout
    try:
        found = None
        while found is None:
            line = output.readline()
            if not line:
                raise SystemExit("The server did not start: see above")
            found = re.search(r"http://[^/ ]+", line)
        yield Server(f"{found[0]}/v1/models/{MODEL}", process.pid)
    finally:
        process.terminate()
        process.communicate()


def latest_version(base_path: pathlib.Path) -> pathlib.Path:
    """Finds the folder of the largest number."""
    versions = [path for path in base_path.iterdir() if path.name.isdecimal()]
    if not versions:
        raise SystemExit(f"{base_path} holds no folder named by a version")
    return max(versions, key=lambda path: int(path.name))


def report(form: str, loop: str, level: float, result: Any) -> None:
    """Prints a line on one result."""
    failures = sum(result["failures"].values())
    line = f"{form} {loop} {level}: {result['throughput']:.1f} images/s"
    if failures:
        line += (
            f", {failures} failures, such as {next(iter(result['failures']))}"
        )
    print(f"  {line}", flush=True)


def make_rows(results: Results) -> list[dict[str, Any]]:
    """Joins the rounds: sums, the median throughput, all latencies together.

    A throughput is compared with the best of the bare calls of that form.
    """
    throughputs = {
        key: statistics.median(result["throughput"] for result in rounds)
        for key, rounds in results.items()
    }
    best: dict[str, float] = {}
    for (form, loop, _), throughput in throughputs.items():
        if loop == "bare":
            best[form] = max(best.get(form, 0), throughput)
    rows = []
    for key, rounds in results.items():
        form, loop, level = key
        latencies = [x for result in rounds for x in result["latencies"]]
        cpu = [result["generator_cpu"] for result in rounds]
        memory = [result["server_mb"] for result in rounds]
        row: dict[str, Any] = {
            "form": form,
            "loop": loop,
            "level": level,
            "requests": sum(result["requests"] for result in rounds),
            "failures": sum(sum(r["failures"].values()) for r in rounds),
            "images_per_second": round(throughputs[key], 1),
            "of_bare": None,
            "generator_cpu": None,
            "server_mb": None,
        }
        if form in best:
            row["of_bare"] = round(throughputs[key] / best[form], 3)
        for percent in (50, 90, 99):
            row[f"p{percent}_ms"] = (
                round(float(np.percentile(latencies, percent)), 1)
                if latencies
                else None  # which the picture leaves out
            )
        if None not in cpu:
            row["generator_cpu"] = round(statistics.median(cpu), 3)
        if None not in memory:
            row["server_mb"] = round(max(memory))
        rows.append({field: row[field] for field in FIELDS})
    order = list(dict.fromkeys((row["form"], row["loop"]) for row in rows))
    rows.sort(
        key=lambda row: (order.index((row["form"], row["loop"])), row["level"])
    )
    return rows


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the table as Markdown, and the ratio that counts."""
    print()
    print(f"| {' | '.join(FIELDS)} |")
    print("|" + " --- |" * len(FIELDS))
    for row in rows:
        cells = ["" if x is None else str(x) for x in row.values()]
        print(f"| {' | '.join(cells)} |")
    for row in rows:
        if (row["loop"], row["level"]) == ("closed", TARGET_CLIENTS):
            print(
                f"\n{row['form']}: {TARGET_CLIENTS} clients get "
                f"{row['of_bare']} of the best bare call's throughput"
            )


def draw(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draws latency by throughput, and throughput by number of clients."""
    from keras_muffnet._files import written_aside
    from keras_muffnet._optional import load_optional

    matplotlib = load_optional("matplotlib.figure", "loadtest")
    figure = matplotlib.Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, form in zip(("C0", "C1"), FORMS.values(), strict=True):
        loops: dict[str, dict[str, list[Any]]] = {}
        for row in rows:
            if row["form"] == form:
                columns = loops.setdefault(row["loop"], {})
                for field in FIELDS:
                    columns.setdefault(field, []).append(row[field])
        for loop, line in (("closed", "-"), ("open", ":")):
            for percent, marker in ((50, "o"), (99, "^")):
                left.plot(
                    loops[loop]["images_per_second"],
                    loops[loop][f"p{percent}_ms"],
                    color=color,
                    linestyle=line,
                    marker=marker,
                    label=f"{form}, {loop} loop, p{percent}",
                )
        right.plot(
            loops["closed"]["level"],
            loops["closed"]["images_per_second"],
            color=color,
            marker="o",
            label=f"{form}, server",
        )
        right.axhline(
            max(loops["bare"]["images_per_second"]),
            color=color,
            linestyle="--",
            label=f"{form}, best bare call",
        )
    left.set(xlabel="images per second", ylabel="latency, ms", yscale="log")
    right.set(xlabel="clients", ylabel="images per second", ylim=(0, None))
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        below = (0.5, -0.15)
        axes.legend(
            fontsize=8, loc="upper center", bbox_to_anchor=below, ncol=2
        )
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=120, facecolor="white")


if __name__ == "__main__":
    main()
