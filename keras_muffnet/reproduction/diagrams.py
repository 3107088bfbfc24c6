"""Diagrams of a network's structure, drawn from its spec: figures 1 and 2.

Both need matplotlib; without it they raise an ImportError that names the
command to install it.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from keras_muffnet._optional import load_optional
from keras_muffnet.federation import SharingMatrix
from keras_muffnet.plots import Path
from keras_muffnet.plots import new_figure
from keras_muffnet.plots import new_sheet
from keras_muffnet.plots import save_figure
from keras_muffnet.presets import HEAD_FILTERS
from keras_muffnet.presets import STEM_FILTERS
from keras_muffnet.presets import STEMS
from keras_muffnet.presets import StageSpec

# Of layers, by their place in the stage.
_COLORS = (
    "tab:blue",
    "tab:orange",
    "tab:green",
    "tab:red",
    "tab:purple",
    "tab:brown",
    "tab:pink",
    "tab:olive",
    "tab:cyan",
    "tab:gray",
)
_BAR = 0.2  # width; layers are 1 apart
_RISE = 0.3  # of a line for each layer that it passes


def plot_network(
    stages: Sequence[StageSpec], path: Path, stem: str = "imagenet"
) -> None:
    """Draws a network: layers, their groups, and where each goes (figure 1).

    A colored bar is a layer, split into its groups. A line leads from a group
    to the block that reads it, a gray box, or to the stage's output, and is as
    thick as the group has a share in its stage's output. Blocks and outputs
    show in the layers' colors what they read.

    Args:
        stages: the network's stages, each drawn in a row.
        path: picture to write; its suffix gives the format.
        stem: a key of `presets.STEMS`.
    """
    most = max(stage.matrix.layers for stage in stages)
    heights = [_height(stage.matrix) for stage in stages]
    figure, axes = new_figure(1.2 * most + 3.2, 1.15 * sum(heights))
    strides, pool, reduction = STEMS[stem]
    before = f"image\n3x3 conv,\nstride {strides}: {STEM_FILTERS}"
    if pool:
        before += "\n3x3 max-pool,\nstride 2"
    bottom = 0.0
    for number, (stage, height) in enumerate(zip(stages, heights, strict=True)):
        bottom -= height
        _draw_stage(axes, stage.matrix, bottom)
        sharing = stage.sharing if isinstance(stage.sharing, str) else "given"
        if sharing == "none":
            sharing = "no"
        axes.text(
            -1.9,
            bottom + height - 0.75,
            f"stage {number + 1}: {sharing} sharing, "
            f"{stage.matrix.layers - 1} "
            f"{'residual' if stage.residual else 'normal'} blocks",
            fontsize=11,
        )
        _write(axes, -1.35, bottom + 0.5, before, "center")
        _write(axes, -0.5, bottom - 0.1, f"reduction\nstride {reduction}")
        before, reduction = f"from\nstage {number + 1}", 2
    _write(
        axes,
        stages[-1].matrix.layers + 0.65,
        bottom + 0.5,
        f"1x1 conv: {HEAD_FILTERS}\naverage pool\nclassifier",
        "center",
    )
    axes.set_xlim(-1.95, most + 0.3)
    axes.set_ylim(bottom - 0.5, -0.4)
    axes.axis("off")
    save_figure(figure, path)


def _height(matrix: SharingMatrix) -> float:
    """Room for the bars, the lines above them and the text."""
    groups = [
        j - i
        for j in range(matrix.layers)
        for i in range(j + 1)
        if matrix.rows[i][j]
    ]
    return 1.9 + 0.75 * _RISE * max(groups)


def _draw_stage(axes: Any, matrix: SharingMatrix, bottom: float) -> None:
    layers = matrix.layers
    axes.add_patch(_box(-0.62, bottom, 0.24, 1, "lightgray"))
    for j, width in enumerate(matrix.input_channels):
        # What reads column j: a block, or the output.
        output = j == layers - 1
        x = j + (1 if output else 0.5) - _BAR / 2
        filled = bottom
        # The nearest layer lowest, so that the lines cross little.
        for i in range(j, -1, -1):
            start, stop = matrix.group(i, j)
            if start == stop:
                continue
            made = matrix.output_channels[i]
            color = _COLORS[i % len(_COLORS)]
            share = (stop - start) / width
            axes.add_patch(_box(x, filled, _BAR, share, color))
            axes.add_patch(
                _line(
                    (i + _BAR / 2, bottom + (start + stop) / 2 / made),
                    (x, filled + share / 2),
                    _RISE * (j - i),
                    color,
                    0.6 + 5 * (stop - start) / matrix.input_channels[-1],
                )
            )
            filled += share
        if output:
            _write(axes, x + _BAR / 2, bottom - 0.1, f"output\n{width}")
        else:
            axes.add_patch(_box(x + _BAR, bottom, 0.12, 1, "lightgray"))
            _write(axes, x + 0.16, bottom - 0.1, f"block {j + 2}")
    for i, made in enumerate(matrix.output_channels):
        edges = {0, made}
        for j in range(i, layers):
            edges |= set(matrix.group(i, j))
        for low, high in itertools.pairwise(sorted(edges)):
            axes.add_patch(
                _box(
                    i - _BAR / 2,
                    bottom + low / made,
                    _BAR,
                    (high - low) / made,
                    _COLORS[i % len(_COLORS)],
                )
            )
        _write(axes, i, bottom - 0.1, f"layer {i + 1}\n{made}")


def _write(axes: Any, x: float, y: float, text: str, va: str = "top") -> None:
    axes.text(x, y, text, ha="center", va=va, fontsize=8)


def plot_inference(matrix: SharingMatrix, path: Path) -> None:
    """Draws step by step how a federated stage is computed (figure 2).

    Each panel is the sharing matrix after one block more: a row has what a
    layer makes, a column what the block behind it reads. What a block reads is
    outlined in red, what it makes is filled in blue.

    Args:
        matrix: any sharing matrix.
        path: picture to write; its suffix gives the format.
    """
    layers = matrix.layers
    panels = layers + 1
    columns = min(panels, 5 if layers <= 5 else 3)
    side = 0.52 * layers + 1.0
    rows = math.ceil(panels / columns)
    figure, sheet = new_sheet(
        side * columns, (side + 0.8) * rows, columns, rows
    )
    for axes in sheet:
        axes.axis("off")
    for step, axes in enumerate(sheet[:panels]):
        letter = chr(ord("a") + step)
        if step == 0:
            title = "layer 1 enters the stage,\nsplit into groups"
        elif step < layers:
            title = (
                f"block {step + 1} reads column {step}\n"
                f"and makes layer {step + 1}"
            )
        else:
            title = f"column {layers} is the\nstage's output"
        axes.set_title(f"({letter}) {title}", fontsize=9)
        _draw_step(axes, matrix, step)
    save_figure(figure, path)


def _draw_step(axes: Any, matrix: SharingMatrix, step: int) -> None:
    layers = matrix.layers
    for i in range(layers):
        axes.text(-0.7, i, f"{i + 1}", ha="center", va="center", fontsize=8)
        axes.text(i, -0.7, f"{i + 1}", ha="center", va="center", fontsize=8)
        for j in range(i, layers):
            channels = matrix.rows[i][j]
            if not channels:
                continue
            there = i <= step
            color = "white"
            if there:
                # Read by an earlier block: gone.
                color = "whitesmoke" if j < step - 1 else "lightsteelblue"
            if i == step:
                color = "tab:blue"
            axes.add_patch(
                _box(
                    j - 0.42,
                    i - 0.42,
                    0.84,
                    0.84,
                    color,
                    edge="black" if there else "lightgray",
                )
            )
            if there:
                gone = j < step - 1
                axes.text(
                    j,
                    i,
                    f"{channels}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white"
                    if i == step
                    else ("gray" if gone else "black"),
                )
    if step:
        column = step - 1
        axes.add_patch(
            _box(
                column - 0.5,
                -0.5,
                1,
                column + 1,
                "none",
                edge="tab:red",
                linewidth=2,
            )
        )
    axes.set_xlim(-1.1, layers - 0.3)
    axes.set_ylim(layers - 0.3, -1.3)
    axes.set_aspect("equal")


def _box(
    x: float,
    y: float,
    width: float,
    height: float,
    color: str,
    edge: str = "black",
    linewidth: float = 0.6,
) -> Any:
    patches = load_optional("matplotlib.patches", "examples")
    return patches.Rectangle(
        (x, y),
        width,
        height,
        facecolor=color,
        edgecolor=edge,
        linewidth=linewidth,
        zorder=3 if color == "none" else 2,
    )


def _line(
    start: tuple[float, float],
    end: tuple[float, float],
    rise: float,
    color: str,
    width: float,
) -> Any:
    patches = load_optional("matplotlib.patches", "examples")
    paths = load_optional("matplotlib.path", "examples")
    reach = 0.4 * (end[0] - start[0])
    points = [
        start,
        (start[0] + reach, start[1] + rise),
        (end[0] - reach, end[1] + rise),
        end,
    ]
    curve = paths.Path(points, [1, 4, 4, 4])
    return patches.PathPatch(
        curve,
        facecolor="none",
        edgecolor=color,
        linewidth=width,
        alpha=0.55,
        capstyle="butt",
        zorder=1,
    )
