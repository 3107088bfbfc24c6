"""MkDocs hooks: tables and a picture made of CSV files, other pictures.

In a page, a line

    <!-- table: results/transfer.csv data weights accuracy=accuracy:.1% -->

becomes a Markdown table of the CSV file. `heading=column:format` renames and
formats a column, with underscores for spaces in the heading. Without columns
the table has all of them. `by=a,b` makes one row of all rows that agree in the
columns a and b; other columns then are `mean(c)`, `median(c)`, `stdev(c)` or
`count(c)`, and `where=a:value` keeps the rows that have this value.

Pictures of `results/` appear in `pictures/`, and `pictures/latency.png` is
drawn of `results/quantization_latency_x86_vnni_2cores.csv`.
"""

import csv
import io
import pathlib
import re
import statistics
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from keras_muffnet.plots import new_figure

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Folders outside of `docs/` whose pictures pages show, and where they appear.
PICTURES = {"results/paper": "pictures/paper", "results": "pictures"}

_TABLE = re.compile(r"^<!-- table: (\S+)(.*?) -->$", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pictures of `PICTURES` to the site."""
    for source, target in PICTURES.items():
        for path in sorted((ROOT / source).glob("*.png")):
            files.append(
                File.generated(
                    config, f"{target}/{path.name}", abs_src_path=str(path)
                )
            )
    latency = draw_latency(
        ROOT / "results" / "quantization_latency_x86_vnni_2cores.csv"
    )
    files.append(
        File.generated(config, "pictures/latency.png", content=latency)
    )
    return files


def draw_latency(path: pathlib.Path) -> bytes:
    """Draws the latency of networks as float and int8 files, as a PNG file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))[::-1]
    figure, axes = new_figure(6.4, 0.45 * len(rows) + 0.8)
    for offset, column, label, color in (
        (0.2, "float_ms", "float32", "tab:gray"),
        (-0.2, "int8_ms", "int8", "tab:red"),
    ):
        bars = axes.barh(
            [k + offset for k in range(len(rows))],
            [float(row[column]) for row in rows],
            height=0.38,
            color=color,
            label=label,
        )
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_yticks(
        range(len(rows)),
        [row["model"].replace("average+geometric+none ", "") for row in rows],
    )
    axes.set_xscale("log")
    axes.set_xlim(right=2 * max(float(row["float_ms"]) for row in rows))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("milliseconds an image, one thread")
    axes.legend(loc="upper right", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces the comments that ask for a table."""

    def table(match: re.Match[str]) -> str:
        try:
            return csv_table(ROOT / match[1], match[2].split())
        except (OSError, KeyError, ValueError) as error:
            raise PluginError(
                f"{page.file.src_uri}: {match[0]}: {error!r}"
            ) from error

    return _TABLE.sub(table, markdown)


def csv_table(path: pathlib.Path, words: list[str]) -> str:
    """Writes a CSV file as a Markdown table.

    Args:
        path: the CSV file; its first line has the names of the columns.
        words: columns, `by=` and `where=`; see the module's docstring.

    Raises:
        KeyError: if there is no such column.
        ValueError: if a format does not fit a value, or no row is left.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = []
    groups: list[list[dict[str, str]]] | None = None
    for word in words:
        if word.startswith("where="):
            name, _, value = word.removeprefix("where=").partition(":")
            rows = [row for row in rows if row[name] == value]
        elif word.startswith("by="):
            groups = grouped(rows, word.removeprefix("by=").split(","))
        else:
            columns.append(word)
    if not rows:
        raise ValueError(f"{path} has no such rows")
    headings, cells = [], []
    for column in columns or list(rows[0]):
        heading, _, source = column.rpartition("=")
        source, _, style = source.partition(":")
        headings.append((heading or source).replace("_", " "))
        cells.append(
            [
                formatted(summarized(group, source), style)
                for group in groups or [[row] for row in rows]
            ]
        )
    lines = [headings, ["---"] * len(headings), *zip(*cells, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def grouped(
    rows: list[dict[str, str]], names: list[str]
) -> list[list[dict[str, str]]]:
    """Puts the rows that agree in some columns together, in their order."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.values())


def summarized(group: list[dict[str, str]], source: str) -> str:
    """The value of a column or of a statistic of it, such as `mean(error)`."""
    match = re.fullmatch(r"(mean|median|stdev|count)\((\w+)\)", source)
    if match is None:
        return group[0][source]
    values = [row[match[2]] for row in group]
    if match[1] == "count":
        return str(len(set(values)))
    return str(getattr(statistics, match[1])(map(float, values)))


def formatted(value: str, style: str) -> str:
    """Formats a value of a CSV file; an empty one stays empty."""
    return format(float(value), style) if style and value else value
