r"""Load-tests the formats that the model server runs, side by side.

    python serving/loadtest/formats.py --output results/serving_formats.csv

A MuffNet (alpha 0.5 at 224x224) is exported in each format, and a server of its
own runs each: the SavedModel with its layers as they are, by a server that
reads JSON without simdjson; the SavedModel folded; a version that holds both
that and a float LiteRT file, which LiteRT runs; and an int8 LiteRT file. 1, 8
and 32 clients ask each in turn, so that all see the machine in the same state,
with an image as JPEG in base64 or as a float tensor. SavedModels are served
with batching. `of_layers` is the rate next to that of the first format.
`processor_ms` is the processor time of the server for an image, which others on
the machine disturb less than the rate. Five minutes on two cores.
"""

import argparse
import contextlib
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import run

FORMATS = ("layers", "folded", "litert_float", "litert_int8")
CLIENTS = (1, 8, 32)
FIELDS = (
    "form",
    "clients",
    "format",
    "images_per_second",
    "of_layers",
    "processor_ms",
    "p50_ms",
    "p99_ms",
    "requests",
    "failures",
    "server_mb",
)


def main() -> None:
    """Runs the command."""
    from keras_muffnet._files import write_csv

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=2, help="of each load (default: 2)"
    )
    parser.add_argument(
        "--models",
        type=pathlib.Path,
        help="folder of the exported models, which is made where it is not",
    )
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        models = args.models or pathlib.Path(folder)
        bases = {name: models / name for name in FORMATS}
        with run.Worker("bare.py") as bare:
            print("Exports the models ...", flush=True)
            for name, base in bases.items():
                if not base.exists():
                    bare.ask(
                        command="export",
                        base_path=str(base),
                        tiny=False,
                        form=name,
                    )
            bodies = bare.ask(
                command="write_bodies",
                path=str(bases["folded"] / "1"),
                folder=folder,
            )
        generator = stack.enter_context(run.Worker("generator.py"))
        servers = {
            name: stack.enter_context(
                run.serve(base, folder, None, simdjson=name != "layers")
            )
            for name, base in bases.items()
        }
        rows = []
        for form, files in bodies.items():
            for clients in CLIENTS:
                rows += measure(
                    args, generator, servers, run.FORMS[form], files, clients
                )
                write_csv(args.output, rows, FIELDS)


def measure(
    args: argparse.Namespace,
    generator: run.Worker,
    servers: dict[str, run.Server],
    form: str,
    files: list[str],
    clients: int,
) -> list[dict[str, Any]]:
    """Loads the servers in turns; returns a row for each."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    for _ in range(args.rounds):
        for name, server in servers.items():
            process = psutil.Process(server.pid)
            before = sum(process.cpu_times()[:2])
            result = generator.ask(
                url=f"{server.url}:predict",
                bodies=files,
                seconds=args.seconds,
                clients=clients,
            )
            result["processor"] = sum(process.cpu_times()[:2]) - before
            results[name].append(result)
    rates = {
        name: statistics.median(result["throughput"] for result in found)
        for name, found in results.items()
    }
    rows = []
    for name, found in results.items():
        latencies = [x for result in found for x in result["latencies"]]
        failures = [result["failures"] for result in found]
        requests = sum(result["requests"] for result in found)
        # A quarter more are sent before the measured ones.
        used = sum(result["processor"] for result in found) / 1.25
        rows.append(
            {
                "form": form,
                "clients": clients,
                "format": name,
                "images_per_second": round(rates[name], 1),
                "of_layers": round(rates[name] / max(rates["layers"], 0.1), 2),
                "processor_ms": round(1000 * used / max(requests, 1), 1),
                "p50_ms": round(float(np.percentile(latencies or [0], 50)), 1),
                "p99_ms": round(float(np.percentile(latencies or [0], 99)), 1),
                "requests": requests,
                "failures": sum(sum(each.values()) for each in failures),
                "server_mb": round(servers[name].memory() or 0),
            }
        )
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
