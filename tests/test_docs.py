"""The documentation: its site builds, its commands and blocks are valid."""

import argparse
import csv
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys

import pytest

from keras_muffnet import MuffNet
from keras_muffnet import count_complexity
from keras_muffnet.cli.main import load_command
from tests.conftest import ROOT
from tools.check_docs import find_blocks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/guides").glob("*.md"))]
MODULES = (
    "keras_muffnet",
    *(
        f"keras_muffnet.{name}"
        for name in (
            *("baselines", "data", "detection", "evaluation", "export"),
            *("litert", "model_server", "quantization", "training"),
        )
    ),
)


def public_names(module):
    """Names that a package lists, or else those that it imports "as" public."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    source = inspect.getsource(module)
    return set(re.findall(r"\bimport \(?\s*(\w+) as \1\b", source))


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name):
    module = importlib.import_module(name)
    page = ROOT / "docs" / "api" / f"{name.rpartition('.')[2]}.md"
    listed = set(re.findall(rf"^::: {name}\.(\w+)$", page.read_text(), re.M))
    assert listed == public_names(module)
    for public in listed:
        value = getattr(module, public)
        if callable(value):
            assert inspect.getdoc(value), f"{name}.{public} has no docstring"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_valid(page):
    for block in find_blocks(page.read_text()):
        place = f"{page.name}:{block.line}"
        if block.language == "python":
            compile(block.code, place, "exec")
            continue
        done = subprocess.run(
            ["bash", "-n"], input=block.code, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{place}: {done.stderr}"
        if block.how.startswith("skip"):
            continue  # its values stand for the reader's
        for command in muffnet_commands(block.code):
            if command[0] != "serve":
                parser = argparse.ArgumentParser(allow_abbrev=False)
                load_command(command[0]).add_arguments(parser)
                parser.parse_args(command[1:])


def muffnet_commands(code):
    """The arguments of each `muffnet` command of a block."""
    for line in code.replace("\\\n", " ").splitlines():
        if re.match(r"(\w+=\S+ )*muffnet ", line):
            words = shlex.split(line, comments=True)
            yield words[words.index("muffnet") + 1 :]


def test_the_table_of_models_is_what_was_measured():
    rows = re.findall(
        r"^\| (MuffNet [\d.]+|SSD300 [^|]*) \|(.*)$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    cells = {name: [c.strip() for c in row.split("|")] for name, row in rows}
    with (
        ROOT / "results" / "quantization_latency_x86_vnni_2cores.csv"
    ).open() as file:
        measured = {row["model"]: row for row in csv.DictReader(file)}
    for alpha in (0.5, 1.0, 1.5):
        row = measured[f"MuffNet average+geometric+none {alpha}"]
        files, times = cells[f"MuffNet {alpha}"][3:5]
        assert files == ", ".join(
            f"{int(row[name]) / 1e6:.1f} MB"
            for name in ("float_bytes", "int8_bytes")
        )
        assert times == ", ".join(
            f"{float(row[name]):.1f} ms" for name in ("float_ms", "int8_ms")
        )
        model = MuffNet(
            input_shape=(224, 224, 3), alpha=alpha, classes=10, weights=None
        )
        complexity = count_complexity(model)
        assert cells[f"MuffNet {alpha}"][:2] == [
            f"{float(f'{complexity.parameters / 1e6:.2g}')} M",
            f"{complexity.macs / 1e6:.0f} M",
        ]
    # The cards are written by the command that publishes weights.
    for name, row in (
        ("cifar10_0.5", "MuffNet 0.5"),
        ("tiny_imagenet_0.5", "MuffNet 0.5"),
        ("bccd", "SSD300 on MuffNet 0.5"),
    ):
        card = ROOT / "keras_muffnet" / "weights" / f"{name}.md"
        score = re.search(
            r"^\| (?:top 1|AP50)[^|]*\| ([\d.]+%)", card.read_text(), re.M
        )[1]
        assert score in cells[row][2]


def test_the_layout_names_files_that_there_are():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    layout = text.partition("## Layout")[2].partition("## Import rules")[0]
    there = {
        path.name
        for folder in ("keras_muffnet", "tools")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert not set(re.findall(r"\w+\.py", layout)) - there
    packages = re.findall(r"^      (\w+)/", layout, re.MULTILINE)
    assert all((ROOT / "keras_muffnet" / name).is_dir() for name in packages)


def test_every_result_has_a_table():
    text = "".join(
        path.read_text()
        for path in (
            ROOT / "docs" / "benchmarks.md",
            ROOT / "docs" / "guides" / "quantization.md",
        )
    )
    for path in (ROOT / "results").glob("*.csv"):
        assert f"<!-- table: results/{path.name} " in text


def test_the_site_builds(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-s", "-d", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "index.html").is_file()
    for page in tmp_path.rglob("*.html"):
        outside = re.findall(
            r'(?:src|href)="(https?://[^"]+)"', page.read_text()
        )
        assert not [url for url in outside if re.search(r"\.(js|css)$", url)]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page, run_python):
    run_python(str(ROOT / "tools" / "check_docs.py"), str(page), timeout=3600)
