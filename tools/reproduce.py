r"""Regenerates the paper's tables and figures and holds them to the print.

    python tools/reproduce.py                       # counts and pictures
    python tools/reproduce.py --only table6 --only figure6
    python tools/reproduce.py --only theory         # trains, five minutes
    python tools/reproduce.py --only table5 --accuracy quick --seeds 3 \
        --row MuffNet_0.5 --row ShuffleNetV2_0.5
    python tools/reproduce.py --only table4 --accuracy ranking \
        --data tiny_imagenet/
    python tools/reproduce.py --only table6 --accuracy full \
        --data tfds:imagenet2012

The folder gets a CSV file for each table, `README.md` with all of them, and
the figures as PNG and SVG. The exit status is 1 if a count is out of its
tolerance. Without training it takes two minutes.

Accuracies are never copied from the paper into our columns: what was not
trained stays empty. `quick` trains by the recipe "quick", by default on the
digits, `ranking`, for tables 1 to 4, by "ranking", `full` by the paper's: 20
minutes to days a network and seed on a CPU, with PyTorch where it is the
fastest and KERAS_BACKEND is not set. Trained networks are kept in a CSV file,
one a line; interrupted, the same command resumes with the next.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any

from keras_muffnet.cli.common import run as report_failures
from keras_muffnet.cli.train import choose_backend
from keras_muffnet.training.recipe import load_recipe

if TYPE_CHECKING:
    from keras_muffnet.reproduction.figures import Point
    from keras_muffnet.reproduction.report import Line
    from keras_muffnet.reproduction.tables import Row

# What `--only` takes, and what it is.
TABLES = {f"table{number}": number for number in range(1, 8)}
OTHERS = {
    "section4": "FLOPs, matched width, crossing frequency",
    "theory": "sines learned by a federated and a plain network",
    "figure1": "the network",
    "figure2": "a stage, computed step by step",
    "figure4": "spectra of section 4",
    "figure5": "the sharing matrix",
    "figure6": "accuracy against FLOPs",
}
ALPHA = 0.5  # of the network in figures 1, 2 and 5
# Section 4's example: M[i, j] = a, L feature maps of s0 x s0 pixels.
A, LAYERS, SIZE = 32, 4, 1

THEORY = "Check of section 4: sines learned at equal cost"
RANKING = "Measured accuracies, compared with the first of each table"

ABOUT = """\
# The paper's tables

Made by `python tools/reproduce.py`. FLOPs are multiply-adds; "+R" counts an
operation for each output of a ReLU too, "+P" one for each input of an average
pooling, as the paper that a row is quoted from does. Parameters are the
trainable ones. Differences are ours less the printed value, in millions;
"within" says whether they are within tolerance: half a unit of the last
printed digit (tables 1-4: 0.02 and 0.5 million), or what the note explains.
Accuracies headed "paper" are the paper's; "measured" are ours, with the mean
and standard deviation over the seeds. In tables 1-4 the widths are solved for,
so that each stage has the FLOPs of MuffNet 0.5's, to the nearest channel.
Table 7 prints the counts of the classifiers at 224x224; the backbone is the
network without its classifier, at the detector's 512x512.

Where rows were trained alike, on two seeds or more, a table compares them:
accuracies and their standard deviations in percent, differences in points
beside twice their standard error (of the seeds and of the test images), and
whether they are larger. From two or three seeds the error is a rough estimate.
Images are named by the folder that was given: `cifar10` is CIFAR-10 (JPEG),
images saved again as JPEG.
"""


def main() -> int:
    """Runs the command; returns its exit status."""
    args = parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    resumes = "with what is missing"
    return report_failures(lambda: reproduce(args), "reproduce", resumes)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--list", action="store_true", help="lists what there is, and ends"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=(*TABLES, *OTHERS),
        metavar="TABLE",
        help="a table, figure or check, as --list names it; repeatable",
    )
    parser.add_argument(
        "--row",
        action="append",
        help="label of a row to train; repeatable (default: all)",
    )
    parser.add_argument(
        "--accuracy",
        choices=("none", "quick", "ranking", "full"),
        default="none",
        help="recipe to train rows by (default: none, which trains none)",
    )
    parser.add_argument(
        "--data",
        help="images to train on: folder, archive, tfds:NAME or digits "
        "(default: the recipe's)",
    )
    parser.add_argument("--epochs", type=int, help="in place of the recipe's")
    parser.add_argument(
        "--seeds", type=int, default=3, help="trainings a row (default: 3)"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("results/paper")
    )
    parser.add_argument(
        "--runs",
        type=pathlib.Path,
        default=pathlib.Path("runs/reproduce"),
        help="folder of the trainings (default: runs/reproduce)",
    )
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error("--seeds must be at least 1")
    for name in ("row", "data", "epochs"):
        if args.accuracy == "none" and getattr(args, name) is not None:
            parser.error(f"--{name} needs --accuracy")
    return args


def reproduce(args: argparse.Namespace) -> int:
    """Does what the command line asks for; returns the exit status."""
    if args.accuracy != "none":
        name = "cifar" if args.accuracy == "full" else args.accuracy
        choose_backend(load_recipe(name))

    from keras_muffnet.reproduction import tables

    if args.list:
        for name, number in TABLES.items():
            print(f"{name:<10}{tables.TITLES[number]}")
            for row in tables.rows(number):
                print(f"{'':<10}  {row.label}")
        for name, title in OTHERS.items():
            print(f"{name:<10}{title}")
        return 0
    wanted = args.only or [*TABLES, *OTHERS]
    numbers = [TABLES[name] for name in TABLES if name in wanted]
    if args.accuracy != "none":
        measure(numbers, args)
    agree = write_tables(numbers, args.output)
    if "section4" in wanted:
        agree = write_section4(args.output) and agree
    if "theory" in wanted:
        check_theory(args)
    for name, draw in figures(args.output).items():
        if name in wanted:
            for suffix in (".png", ".svg"):
                draw(args.output / f"{name}{suffix}")
            print(f"{name}: {args.output / name}.png, .svg")
    if not agree:
        print("\nA count is out of its tolerance: see the lines with NO.")
    return 0 if agree else 1


def measure(numbers: list[int], args: argparse.Namespace) -> None:
    """Trains the rows that are asked for."""
    from keras_muffnet.reproduction import accuracy
    from keras_muffnet.reproduction import tables

    rows: dict[Any, Row] = {}
    for number in numbers:
        if number == 7:
            print("Table 7 is of detectors, which are not trained here.")
            continue
        for row in tables.rows(number):
            if args.row is None or row.label in args.row:
                # Tables 1-4 share rows.
                rows.setdefault((max(number, 4), row.label), row)
    if not rows and args.row is None:
        raise ValueError(
            "`--only` must name tables of 1 to 6 where --accuracy is given. "
            f"Received: {args.only}"
        )
    unknown = set(args.row or ()) - {row.label for row in rows.values()}
    if unknown:
        raise ValueError(
            "`--row` must name rows of the tables that are asked for, as "
            f"--list shows them. Received: {sorted(unknown)}"
        )
    accuracy.measure(
        list(rows.values()),
        args.accuracy,
        args.data,
        args.epochs,
        args.seeds,
        args.output / "accuracy.csv",
        args.runs,
    )


def write_tables(numbers: list[int], output: pathlib.Path) -> bool:
    """Counts, prints and writes tables; returns whether all agree.

    The Markdown file is of all tables, so it is written with all of them only.
    """
    from keras_muffnet.reproduction import accuracy
    from keras_muffnet.reproduction import report
    from keras_muffnet.reproduction import tables
    from keras_muffnet.reproduction import theory

    measured = accuracy.read(output / "accuracy.csv")
    sections: dict[str, list[Line]] = {}
    agree = True
    for number in numbers:
        counted = []
        for row in tables.rows(number):
            print(f"\rtable {number}: {row.label:<30}", end="", flush=True)
            counted.append((row, tables.count(row)))
        print(f"\r{'':<40}\r", end="")
        lines = report.table_lines(counted, measured)
        heading = report.table_heading(number)
        report.print_lines(heading, lines)
        report.write_table(lines, output / f"table{number}.csv")
        sections[heading] = lines
        agree = agree and all(counts.agrees for _, counts in counted)
    ranking = report.ranking_lines(measured) if numbers else []
    if ranking:
        report.print_lines(RANKING, ranking)
        report.write_table(ranking, output / "ranking.csv")
    if len(sections) == len(TABLES):
        if ranking:
            sections[RANKING] = ranking
        cells = theory.read(output / "theory.csv")
        if cells:
            sections[THEORY] = theory.summarize(cells)
        report.write_markdown(sections, ABOUT, output / "README.md")
    return agree


def write_section4(output: pathlib.Path) -> bool:
    """Prints and writes section 4's numbers; whether they are the paper's."""
    import math

    from keras_muffnet.reproduction import report
    from keras_muffnet.reproduction import spectrum

    matrix = spectrum.constant_matrix(A, LAYERS)
    flops = spectrum.log_federated_flops(matrix, SIZE)
    width = spectrum.log_matched_width(flops, LAYERS, SIZE)
    crossing = math.exp(spectrum.log_crossing(matrix, SIZE))
    plain = spectrum.log_plain_flops(width, LAYERS, SIZE)
    lines: list[Line] = [
        {"row": "FLOPs of the federated stage", "ours": f"{math.exp(flops):g}"},
        {
            "row": "FLOPs of the plain chain",
            "ours": f"{math.exp(plain):g}",
        },
        {"row": "matched width m", "ours": f"{math.exp(width):.3f}"},
        {
            "row": "crossing frequency",
            "ours": f"{crossing:.1f}",
            "printed": "10^4, in a figure",
        },
    ]
    report.print_lines(f"Section 4, a = {A}, L = {LAYERS}, s0 = {SIZE}", lines)
    report.write_table(lines, output / "section4.csv")
    # The text gives no more than the power of ten.
    return round(math.log10(crossing)) == 4


def check_theory(args: argparse.Namespace) -> None:
    """Draws the theory's check; trains what is missing where that is asked."""
    from keras_muffnet.reproduction import theory
    from keras_muffnet.reproduction.figures import plot_theory
    from keras_muffnet.reproduction.report import print_lines

    path = args.output / "theory.csv"
    if args.only is not None:
        cells = theory.run(path, args.seeds)
    else:
        cells = theory.read(path)
    if not cells:
        print("theory: not trained; --only theory does that")
        return
    print_lines(THEORY, theory.summarize(cells))
    for suffix in (".png", ".svg"):
        plot_theory(cells, args.output / f"theory{suffix}")
    print(f"theory: {path} and {args.output / 'theory'}.png, .svg")


def figures(
    output: pathlib.Path,
) -> dict[str, Callable[[pathlib.Path], None]]:
    """What draws each figure to a path."""
    from keras_muffnet import plots
    from keras_muffnet.presets import PAPER_NOTATION
    from keras_muffnet.presets import stages_from_notation
    from keras_muffnet.reproduction import diagrams
    from keras_muffnet.reproduction import figures
    from keras_muffnet.reproduction import spectrum

    stages = stages_from_notation(PAPER_NOTATION, ALPHA)
    matrix = spectrum.constant_matrix(A, LAYERS)
    return {
        "figure1": lambda path: diagrams.plot_network(stages, path),
        "figure2": lambda path: diagrams.plot_inference(stages[0].matrix, path),
        "figure4": lambda path: figures.plot_spectrum(
            matrix, LAYERS, SIZE, path
        ),
        "figure5": lambda path: plots.plot_sharing_matrix(stages, path),
        "figure6": lambda path: figures.plot_accuracy(
            accuracy_panels(output), path
        ),
    }


def accuracy_panels(output: pathlib.Path) -> "dict[str, list[Point]]":
    """The paper's accuracies of table 6, and ours that were measured."""
    from keras_muffnet.reproduction import accuracy
    from keras_muffnet.reproduction import tables
    from keras_muffnet.reproduction.figures import Point

    families = ("MuffNet", "ShuffleNet", "MobileNet")
    panels: dict[str, list[Point]] = {
        "ImageNet, as the paper prints it (table 6)": [
            Point(row.label, row.printed_macs, row.accuracies["ImageNet"])
            for row in tables.rows(6)
            if row.label.startswith(families)
        ]
    }
    measured = accuracy.read(output / "accuracy.csv")
    for number in (5, 6):
        for row in tables.rows(number):
            for found in accuracy.summarize(row, measured):
                title = (
                    f"{found.data}, measured: recipe {found.recipe}, "
                    f"{found.epochs} epochs, rows of table {number}"
                )
                point = Point(
                    row.label,
                    row.printed_macs,
                    100 * found.mean,
                    100 * found.spread,
                    100 * found.error,
                )
                panels.setdefault(title, []).append(point)
    return panels


if __name__ == "__main__":
    sys.exit(main())
