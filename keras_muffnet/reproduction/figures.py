"""Figure 4, figure 6 and the picture of the theory's check."""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_muffnet.plots import Path
from keras_muffnet.plots import new_figure
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

Point = tuple[str, float, float]  # row, millions of FLOPs, accuracy in percent


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

    Args:
        panels: by title, the rows' names, FLOPs in millions and accuracies in
            percent.
        path: picture to write; its suffix gives the format.
    """
    figure, grid = new_figure(6.4 * len(panels), 4.6, columns=len(panels))
    columns = list(getattr(grid, "flat", [grid]))
    for axes, (title, points) in zip(columns, panels.items(), strict=True):
        families: dict[str, list[Point]] = {}
        for point in points:
            families.setdefault(_family(point[0]), []).append(point)
        for number, (family, members) in enumerate(sorted(families.items())):
            first = family == "MuffNet"
            axes.plot(
                [flops for _, flops, _ in members],
                [accuracy for _, _, accuracy in members],
                marker="*" if first else "osD^vP"[number % 6],
                markersize=11 if first else 6,
                color="tab:red" if first else _COLORS[number % 6],
                zorder=3 if first else 2,
                label=family,
            )
        axes.set_xscale("log")
        # Room for two labels, where all rows have about the same FLOPs.
        flops = [flops for _, flops, _ in points]
        axes.set_xlim(0.7 * min(flops), 1.4 * max(flops))
        axes.set_xlabel("FLOPs (millions)")
        axes.set_ylabel("top-1 accuracy (%)")
        axes.set_title(title, fontsize=10)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(
            lambda value, _: f"{value:g}" if f"{value:g}"[0] in "235" else ""
        )
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    save_figure(figure, path)


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
