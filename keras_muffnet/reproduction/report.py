"""The tables as text, CSV and Markdown: printed beside ours."""

import math
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from keras_muffnet._files import write_csv
from keras_muffnet._files import written_aside
from keras_muffnet.reproduction import tables
from keras_muffnet.reproduction.accuracy import Measurement
from keras_muffnet.reproduction.accuracy import Summary
from keras_muffnet.reproduction.accuracy import summarize
from keras_muffnet.reproduction.tables import Row
from keras_muffnet.reproduction.tables import RowCounts
from keras_muffnet.reproduction.tables import stage_difference

Line = dict[str, Any]


def table_lines(
    counted: Sequence[tuple[Row, RowCounts]],
    measurements: Sequence[Measurement],
) -> list[Line]:
    """Makes the lines of a table, columns by name.

    Args:
        counted: the table's rows and what was counted.
        measurements: accuracies of any rows. Only what is there is shown.
    """
    lines = [_line(row, counts) for row, counts in counted]
    summaries = [summarize(row, measurements) for row, _ in counted]
    columns = sorted({s[:3] for group in summaries for s in group})
    for line, group in zip(lines, summaries, strict=True):
        for column in columns:
            found = next((s for s in group if s[:3] == column), None)
            line[_measured_name(column)] = "" if found is None else _text(found)
    notes = [row.note for row, _ in counted]
    for line, note, (_, counts) in zip(lines, notes, counted, strict=True):
        line["within"] = "yes" if counts.agrees else "NO"
        line["note"] = " ".join([note, *counts.problems]).strip()
    return lines


def _line(row: Row, counts: RowCounts) -> Line:
    line: Line = {"row": row.label}
    for name, printed, found in (
        ("params", row.printed_parameters, counts.parameters),
        ("FLOPs", row.printed_macs, counts.flops),
    ):
        line[f"{name} printed (M)"] = "" if printed is None else f"{printed:g}"
        line[f"{name} ours"] = found
        line[f"{name} difference (M)"] = (
            "" if printed is None else f"{found / 1e6 - printed:+.3f}"
        )
    if row.table <= 4:
        assert row.stages is not None
        widths = (stage.width for stage in row.stages)
        line["widths"] = "+".join(map(str, widths))
        line["stage FLOPs differ by at most"] = (
            f"{stage_difference(row.stages):+.2%}"
        )
    elif row.table < 7:
        line["counted"] = "MACs" + row.rule.removeprefix("macs")
    else:
        line["backbone params"] = counts.backbone_parameters
        line["backbone MACs at 512"] = counts.backbone_macs
    for data, accuracy in row.accuracies.items():
        line[f"{data}, paper (%)"] = accuracy
    return line


def _measured_name(column: tuple[str, str, int]) -> str:
    data, recipe, epochs = column
    return f"{data}, measured (%), {recipe}, {epochs} epochs"


def _text(found: Summary) -> str:
    text = f"{100 * found.mean:.2f}"
    if not math.isnan(found.spread):
        text += f" +- {100 * found.spread:.2f}"
    return f"{text} ({found.seeds} seed{'s' if found.seeds > 1 else ''})"


def ranking_lines(measurements: Sequence[Measurement]) -> list[Line]:
    """Compares the rows that were trained alike, on two seeds or more.

    Args:
        measurements: accuracies of any rows.

    Returns:
        A line for each row, the most accurate first: its accuracy, and the
        difference from the row that is the first in the paper's table.
    """
    lines = []
    for number in tables.TITLES:
        alike: dict[tuple[str, str, int], dict[str, Summary]] = {}
        for row in tables.rows(number):
            for found in summarize(row, measurements):
                if found.seeds > 1:
                    alike.setdefault(found[:3], {})[row.label] = found
        for group in alike.values():
            if len(group) > 1:
                lines += _compared(number, group)
    return lines


def _compared(table: int, group: Mapping[str, Summary]) -> list[Line]:
    """A line for each row of a group, which was trained alike."""
    lines = []
    first = next(iter(group.values()))
    for label, found in sorted(group.items(), key=lambda x: -x[1].mean):
        line: Line = {
            "table": table,
            "images": found.data,
            "recipe": found.recipe,
            "epochs": found.epochs,
            "row": label,
            "seeds": found.seeds,
            "accuracy": f"{100 * found.mean:.2f}",
            "deviation": f"{100 * found.spread:.2f}",
        }
        if found is not first:
            difference = found.mean - first.mean
            twice = 2 * math.hypot(found.error, first.error)
            line["difference"] = f"{100 * difference:+.2f}"
            line["twice_error"] = f"{100 * twice:.2f}"
            line["larger"] = "yes" if abs(difference) > twice else "no"
        lines.append(line)
    return lines


def write_table(lines: Sequence[Line], path: pathlib.Path) -> None:
    """Writes lines as CSV, with the columns of all."""
    write_csv(path, lines, _fields(lines))


def write_markdown(
    sections: Mapping[str, Sequence[Line]], about: str, path: pathlib.Path
) -> None:
    """Writes sections of lines as Markdown.

    Args:
        sections: lines by heading.
        about: text before them.
        path: file to write.
    """
    parts = [about]
    for heading, lines in sections.items():
        # Left out where it is empty in all rows.
        fields = [
            f for f in _fields(lines) if any(line.get(f, "") for line in lines)
        ]
        rows = [fields, ["---"] * len(fields)]
        rows += [[_shown(line.get(f, "")) for f in fields] for line in lines]
        body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"## {heading}\n\n{body}\n")
    with written_aside(path) as aside:
        aside.write_text("\n".join(parts))


def print_lines(heading: str, lines: Sequence[Line]) -> None:
    """Prints lines in columns, the notes below them."""
    print(f"\n{heading}")
    fields = [
        f
        for f in _fields(lines)
        if f != "note" and any(line.get(f, "") for line in lines)
    ]
    rows = [fields]
    rows += [[_shown(line.get(f, "")) for f in fields] for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())
    for line in lines:
        if line.get("note"):
            print(f"{line['row']}: {line['note']}")


def table_heading(table: int) -> str:
    """The heading of a table."""
    return f"Table {table}: {tables.TITLES[table]}"


def _fields(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(field for line in lines for field in line))


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
