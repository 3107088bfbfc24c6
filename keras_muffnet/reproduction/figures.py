"""Figure 4, figure 6 and the picture of the theory's check."""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from keras_muffnet.plots import Path
from keras_muffnet.plots import new_figure
from keras_muffnet.plots import new_sheet
from keras_muffnet.plots import save_figure
from keras_muffnet.reproduction.spectrum import Matrix
from keras_muffnet.reproduction.spectrum import log_crossing
from keras_muffnet.reproduction.spectrum import log_federated_bound
from keras_muffnet.reproduction.spectrum import log_federated_flops
from keras_muffnet.reproduction.spectrum import log_matched_width
from keras_muffnet.reproduction.spectrum import log_plain_bound

# Of MuffNet's peers; its own is red.
_COLORS = (
    "tab:blue",
    "tab:orange",
    "tab:green",
    "tab:purple",
    "tab:brown",
    "tab:gray",
)

# Least height of an axis of accuracies, in percent: what differs by less than
# a tenth of it looks alike.
_SPAN = 10


class Point(NamedTuple):
    """An accuracy of figure 6.

    Attributes:
        row: the network, such as "MuffNet_0.5".
        flops: in millions.
        accuracy: in percent; the mean over the seeds.
        spread: standard deviation over the seeds, in percent; NaN for one.
        error: standard error of the accuracy, in percent. What the paper
            prints counts as exact.
    """

    row: str
    flops: float
    accuracy: float
    spread: float = math.nan
    error: float = 0.0


def plot_spectrum(matrix: Matrix, layers: int, size: int, path: Path) -> None:
    """Draws the bounds of section 4 (figure 4).

    Args:
        matrix: sharing matrix of the federated stage.
        layers: L.
        size: s0.
        path: picture to write; its suffix gives the format.
    """
    flops = log_federated_flops(matrix, size)
    log_width = log_matched_width(flops, layers, size)
    crossing = log_crossing(matrix, size)
    far = 1.6 * crossing if 0 < crossing < math.inf else math.log(1e6)
    frequencies = np.linspace(0, far, 400)
    figure, axes = new_figure(6.5, 4.2)
    decimal = math.log(10)
    for label, color, bound in (
        (
            "federated",
            "tab:red",
            log_federated_bound(matrix, size, frequencies),
        ),
        (
            f"plain, m = {math.exp(log_width):.1f}",
            "tab:blue",
            log_plain_bound(log_width, layers, size, frequencies),
        ),
    ):
        axes.plot(
            frequencies / decimal, bound / decimal, color=color, label=label
        )
    if 0 < crossing < far:
        axes.axvline(
            crossing / decimal, color="gray", linestyle=":", linewidth=1
        )
        axes.annotate(
            f"equal at $\\omega$ = {math.exp(crossing):,.0f}",
            (crossing / decimal, 0.93),
            xycoords=("data", "axes fraction"),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=9,
        )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"$10^{{{value:.0f}}}$")
        axis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("frequency $\\omega$")
    axes.set_ylabel("upper bound of $|\\hat f(\\omega)|$")
    axes.set_title("Upper bounds of the spectrum at equal FLOPs")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    save_figure(figure, path)


def plot_accuracy(panels: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Draws accuracy against FLOPs, a line a family of networks (figure 6).

    Bars are standard deviations over seeds. Accuracies that do not differ by
    more than chance are drawn by name, in one color: they rank no network.

    Args:
        panels: by title, the networks' accuracies.
        path: picture to write; its suffix gives the format.
    """
    figure, columns = new_sheet(6.4 * len(panels), 4.6, columns=len(panels))
    # A family looks alike in all panels. MuffNet, the last, has its own look.
    names = {_family(p.row) for points in panels.values() for p in points}
    ordered = sorted(names, key=lambda name: (name == "MuffNet", name))
    looks = {name: number for number, name in enumerate(ordered)}
    for axes, (title, points) in zip(columns, panels.items(), strict=True):
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3, which="both")
        if rank(points):
            _plot_families(axes, points, looks)
        else:
            _plot_names(axes, points)
    save_figure(figure, path)


def rank(points: Sequence[Point]) -> bool:
    """Whether the highest accuracy is above the lowest by more than chance.

    That is, by more than twice the standard error of their difference.
    """
    low = min(points, key=lambda point: point.accuracy)
    high = max(points, key=lambda point: point.accuracy)
    difference = high.accuracy - low.accuracy
    return difference > 2 * math.hypot(low.error, high.error)


def _plot_families(
    axes: Any, points: Sequence[Point], looks: Mapping[str, int]
) -> None:
    families: dict[str, list[Point]] = {}
    for point in points:
        families.setdefault(_family(point.row), []).append(point)
    for family, members in sorted(families.items()):
        number = looks[family]
        first = family == "MuffNet"
        axes.errorbar(
            [point.flops for point in members],
            [point.accuracy for point in members],
            yerr=[point.spread for point in members],
            capsize=3,
            marker="*" if first else "osD^vP"[number % 6],
            markersize=11 if first else 6,
            color="tab:red" if first else _COLORS[number % 6],
            zorder=3 if first else 2,
            label=family,
        )
    axes.set_xscale("log")
    # Room for two labels, where all rows have about the same FLOPs.
    flops = [point.flops for point in points]
    axes.set_xlim(0.7 * min(flops), 1.4 * max(flops))
    axes.set_ylim(*_span(axes.get_ylim()))
    axes.set_xlabel("FLOPs (millions)")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if f"{value:g}"[0] in "235" else ""
    )
    axes.legend(fontsize=8)


def _plot_names(axes: Any, points: Sequence[Point]) -> None:
    axes.errorbar(
        [point.accuracy for point in points],
        range(len(points)),
        xerr=[point.spread for point in points],
        capsize=3,
        fmt="o",
        color="tab:gray",
    )
    axes.set_yticks(
        range(len(points)),
        [f"{point.row}\n{point.flops:g} M FLOPs" for point in points],
    )
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set_xlim(*_span(axes.get_xlim()))
    axes.set_xlabel(
        "top-1 accuracy (%): the differences are within chance, no ranking"
    )


def _span(limits: tuple[float, float]) -> tuple[float, float]:
    """Limits of an axis of percents, widened to `_SPAN` within 0 to 100."""
    low, high = limits
    if high - low >= _SPAN:
        return low, high
    middle = (low + high) / 2
    high = min(middle + _SPAN / 2, 100 + 0.05 * _SPAN)
    return high - _SPAN, high


def _family(label: str) -> str:
    """The name before the multiplier: "MuffNet" of "MuffNet_0.5"."""
    name = label.partition("_")[0].partition("(")[0].strip()
    return name.removesuffix("-1.0")


def plot_theory(cells: Sequence[Any], path: Path) -> None:
    """Draws error against frequency, each seed and the medians.

    Args:
        cells: of `theory.run`.
        path: picture to write; its suffix gives the format.
    """
    figure, axes = new_figure(6.5, 4.2)
    seeds = len({cell.seed for cell in cells})
    for network, color, marker in (
        ("federated", "tab:red", "o"),
        ("plain", "tab:blue", "s"),
    ):
        mine = [cell for cell in cells if cell.network == network]
        axes.scatter(
            [cell.frequency for cell in mine],
            [cell.error for cell in mine],
            color=color,
            marker=marker,
            s=12,
            alpha=0.45,
        )
        frequencies = sorted({cell.frequency for cell in mine})
        medians = [
            float(np.median([c.error for c in mine if c.frequency == f]))
            for f in frequencies
        ]
        macs = max(cell.macs for cell in mine)
        axes.plot(
            frequencies,
            medians,
            color=color,
            marker=marker,
            label=f"{network}, {macs:,} MACs",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(frequencies, map(str, frequencies))
    axes.minorticks_off()
    axes.set_xlabel("periods of the sine over the input's range")
    axes.set_ylabel("error, relative to the sine's RMS")
    axes.set_title(f"Sines learned: median and all of {seeds} seeds")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
