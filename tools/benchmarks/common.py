"""What the measuring programs share: runs that resume, rows by process, CSV."""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from keras_muffnet._files import write_csv
from keras_muffnet.cli.common import run as report_failures

Rows = list[dict[str, Any]]


def make_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Makes the command line of a program that trains networks.

    Args:
        description: the program's docstring.
        name: of its folder in `runs/` and of its table in `results/`.

    Returns:
        A parser with `--epochs`, `--runs` and `--output`.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, help="(default: the recipe's)")
    parser.add_argument(
        "--runs",
        type=pathlib.Path,
        default=pathlib.Path("runs", name),
        help="folder of the runs (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("results", f"{name}.csv"),
        help="(default: %(default)s)",
    )
    return parser


def tabulate(
    args: argparse.Namespace,
    measure: Callable[[argparse.Namespace], Rows],
    show: Callable[[Rows], None],
    name: str,
) -> int:
    """Measures, writes the table and prints it.

    Args:
        args: of the program; `output` is the CSV file.
        measure: returns the rows, of the same columns.
        show: prints them.
        name: of the program, for its errors.

    Returns:
        The exit status.
    """

    def work() -> None:
        rows = measure(args)
        write_csv(args.output, rows, list(rows[0]))
        show(rows)

    return report_failures(work, f"benchmarks/{name}")


def train_or_resume(recipe: Any, output: pathlib.Path) -> dict[str, Any]:
    """Trains what is left of a run; returns its closing figures.

    Args:
        recipe: `keras_muffnet.training.Recipe` or `DetectionRecipe`.
        output: folder of the run. One that is finished is not trained again.
    """
    import keras

    from keras_muffnet import training

    print(f"\n{output}", flush=True)
    keras.utils.clear_session()
    training.configure_keras(recipe)
    if isinstance(recipe, training.DetectionRecipe):
        boxes = training.open_detection_feed(recipe)
        model = training.build_detector(recipe, len(boxes.class_names))
        task = training.Detection(recipe, boxes)
        return training.fit(model, recipe, boxes, output, task=task)
    feed = training.open_feed(recipe)
    model = training.build_network(recipe, len(feed.class_names))
    return training.fit(model, recipe, feed, output)


def measure_elsewhere(
    program: str,
    name: str,
    flags: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Runs a program in a process of its own and returns what it measured.

    Args:
        program: the module, which writes JSON to the file after `--output`.
        name: of what is measured, for the error.
        flags: of the program.
        environment: variables that the process has besides.

    Raises:
        RuntimeError: with the end of what the process printed, if it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder, "row.json")
        done = subprocess.run(
            [sys.executable, "-m", program, *flags, "--output", str(result)],
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stderr[-4000:]}")
        return json.loads(result.read_text())


def read_rows(path: pathlib.Path, key: str) -> dict[str, dict[str, Any]]:
    """Reads the rows of a CSV file, by the value of a column."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def shortened(error: Exception) -> str:
    """The error's end, where TensorFlow says what is wrong."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[-300:]}"
