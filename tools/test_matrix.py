"""Runs a subset of the tests on older supported versions.

Each environment is a virtual environment below `.matrix/`, which is made when
it is missing. The table of the last run is `docs/test_matrix.md`.

    python tools/test_matrix.py                # all environments
    python tools/test_matrix.py --only py311   # one of them
"""

import argparse
import datetime
import pathlib
import shutil
import subprocess
import xml.etree.ElementTree
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "test_matrix.md"


# What the subset covers: the networks, data, evaluation, export, quantization,
# LiteRT's metadata and the server. The whole suite needs `make test`.
TESTS = (
    "tests/test_muffnet.py",
    "tests/test_layers.py",
    "tests/test_complexity.py",
    "tests/test_data.py",
    "tests/test_evaluation.py",
    "tests/test_export.py::test_formats",
    "tests/test_export.py::test_every_format_is_served",
    "tests/test_quantization_ends.py",
    "tests/test_litert_metadata.py",
    "tests/test_model_server.py",
    "tests/test_model_server_grpc.py",
)


class Environment(NamedTuple):
    """One combination of versions.

    Attributes:
        python: version of the interpreter, `python{version}` on the path.
        tensorflow: its release; tf_keras and tensorflow-serving-api follow.
        keras: its release.
    """

    python: str
    tensorflow: str
    keras: str

    @property
    def name(self) -> str:
        """Name of the folder, such as "py311"."""
        return f"py{self.python.replace('.', '')}"


ENVIRONMENTS = (
    Environment("3.11", "2.18.1", "3.10.0"),
    Environment("3.12", "2.19.1", "3.12.4"),
    Environment("3.13", "2.20.0", "3.13.2"),
)


def main() -> None:
    """Runs the command; exits with status 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", choices=[e.name for e in ENVIRONMENTS], help="one of them"
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=TABLE,
        help="where the table goes (default: %(default)s)",
    )
    arguments = parser.parse_args()
    rows, failed = [], False
    for environment in ENVIRONMENTS:
        if arguments.only not in (None, environment.name):
            continue
        counts = run(environment)
        failed |= counts is None or bool(counts["failed"])
        rows.append((environment, counts))
    arguments.output.write_text(table(rows))
    print(arguments.output.read_text())
    raise SystemExit(int(failed))


def run(environment: Environment) -> dict[str, int] | None:
    """Tests one environment; None where its interpreter is missing."""
    interpreter = shutil.which(f"python{environment.python}")
    if interpreter is None:
        return None
    folder = ROOT / ".matrix" / environment.name
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        command = [str(python), "-m", "pip", "install", "-q", "-e"]
        versions = [
            f"tensorflow=={environment.tensorflow}",
            f"keras=={environment.keras}",
            *("pytest>=9,<10", "pytest-xdist>=3.8,<4", "hypothesis>=6,<7"),
            *("httpx>=0.28,<1", "prometheus-client>=0.22,<1", "tenacity>=9"),
        ]
        if environment.tensorflow < "2.20":
            # Later ones need a protobuf that this TensorFlow refuses.
            versions.append("tensorflow-metadata<1.18")
        subprocess.run([*command, f"{ROOT}[all]", *versions], check=True)
        (folder / "done").touch()
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    # 1: tests failed.
    done = subprocess.run(
        [
            *(str(python), "-m", "pytest", "-q", "-n", "2"),
            *("--dist", "loadfile", "-m", "not slow"),
            *(f"--junitxml={report}", *TESTS),
        ],
        cwd=ROOT,
        check=False,
    )
    if done.returncode not in (0, 1):
        done.check_returncode()
    suite = xml.etree.ElementTree.parse(report).getroot()[0]
    counts = {
        name: int(suite.get(name, 0))
        for name in ("tests", "failures", "errors", "skipped")
    }
    bad = counts["failures"] + counts["errors"]
    return {
        "passed": counts["tests"] - bad - counts["skipped"],
        "failed": bad,
        "skipped": counts["skipped"],
    }


def table(rows: list[tuple[Environment, dict[str, int] | None]]) -> str:
    """Writes the rows as a Markdown page."""
    lines = [
        "# Test matrix",
        "",
        "Made by `python tools/test_matrix.py` on "
        f"{datetime.date.today():%Y-%m-%d}: a subset of the tests, on "
        "TensorFlow.\n`make test` runs all of them, on the newest versions and "
        "on all backends.",
        "",
        "| Python | TensorFlow | Keras | passed | failed | skipped |",
        "|---|---|---|---|---|---|",
    ]
    for environment, counts in rows:
        cells = (
            [str(counts[name]) for name in ("passed", "failed", "skipped")]
            if counts
            else ["no such Python here", "", ""]
        )
        lines.append("| " + " | ".join([*environment, *cells]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
