"""Pictures: sharing matrix, curves, predictions, boxes, confusion, noise.

All need matplotlib; without it they raise an ImportError that names the
command to install it.
"""

import os
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_muffnet._arguments import positive_integer
from keras_muffnet._files import written_aside
from keras_muffnet._optional import load_optional
from keras_muffnet.presets import StageSpec

Path = str | os.PathLike[str]


def plot_sharing_matrix(stages: Sequence[StageSpec], path: Path) -> None:
    """Draws the sharing matrix of a whole network (figure 5).

    A cell is a group of channels: its row is the layer that makes them, its
    column j the layer whose channels it stands beside as input of the block
    behind layer j, its number their count.

    ```python
    from keras_muffnet import plots, stages_from_notation

    stages = stages_from_notation("average+geometric+none", alpha=0.5)
    plots.plot_sharing_matrix(stages, "matrix.png")
    ```

    Args:
        stages: the network's stages.
        path: picture to write; its suffix gives the format.
    """
    layers = sum(stage.matrix.layers for stage in stages)
    groups = np.zeros((layers, layers))
    start = 0
    outlines = []
    for stage in stages:
        rows = np.array(stage.matrix.rows)
        end = start + len(rows)
        groups[start:end, start:end] = rows
        outlines.append((start, len(rows), stage))
        start = end

    figure, axes = new_figure(0.55 * layers + 1.5, 0.55 * layers + 1.2)
    # Shaded by the share of its layer's channels, so that stages of different
    # widths look alike; cells without channels stay white.
    share = groups / groups.sum(axis=1, keepdims=True)
    shade = np.ma.masked_equal(0.25 + 0.75 * share, 0.25)
    axes.imshow(shade, cmap="Blues", vmin=0, vmax=1.2)
    for i, j in zip(*np.nonzero(groups), strict=True):
        dark = shade[i, j] > 0.65
        axes.text(
            j,
            i,
            f"{int(groups[i, j])}",
            ha="center",
            va="center",
            color="white" if dark else "black",
            fontsize=9,
        )
    for number, (first, size, stage) in enumerate(outlines, start=1):
        corner = (first - 0.5, first - 0.5)
        axes.add_patch(_outline(corner, (size, size)))
        sharing = stage.sharing if isinstance(stage.sharing, str) else "given"
        axes.text(
            first - 0.35,
            first + size - 0.6,
            f"stage {number}\n{sharing}",
            ha="left",
            va="bottom",
            fontsize=9,
        )
    axes.set_xticks(range(layers))
    axes.set_yticks(range(layers))
    axes.set_xlabel("target layer: takes the group as input")
    axes.set_ylabel("source layer: its channels are split")
    axes.set_title("Channels of each group M[i, j]")
    save_figure(figure, path)


def plot_curves(
    history: Mapping[str, Sequence[float]],
    path: Path,
    score: str = "accuracy",
) -> None:
    """Draws loss and accuracy, or another score, over epochs.

    ```python
    from keras_muffnet import plots

    history = model.fit(images, labels, validation_split=0.5, epochs=2)
    plots.plot_curves(history.history, "curves.png")
    ```

    Args:
        history: values by epoch, as `model.fit(...).history` has them: "loss",
            the score and the same with "val_" before them. Of each either may
            be missing.
        path: picture to write; its suffix gives the format.
        score: name of what is drawn beside the loss.

    Raises:
        ValueError: if `history` has no loss or no score.
    """
    metrics = ("loss", score)
    for metric in metrics:
        if not {metric, f"val_{metric}"} & set(history):
            raise ValueError(
                f"`history` must have {metric!r} or {f'val_{metric}'!r}. "
                f"Received: history of {', '.join(history)}"
            )
    figure, panels = new_sheet(10, 4, columns=2)
    for axes, metric in zip(panels, metrics, strict=True):
        for name, label in (
            (metric, "training"),
            (f"val_{metric}", "held out"),
        ):
            if name in history:
                values = history[name]
                marker = "o" if len(values) <= 30 else ""
                epochs = range(1, len(values) + 1)
                axes.plot(epochs, values, marker=marker, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(metric)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set_yscale("log")
    save_figure(figure, path)


def plot_predictions(
    images: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str],
    path: Path,
    columns: int = 8,
) -> None:
    """Draws a sheet of images with the predicted class and its score.

    ```python
    from keras_muffnet import data, plots, preprocess_input

    photos = data.load_images("photos", "test", size=(32, 32))
    scores = model.predict(preprocess_input(photos.images))
    plots.plot_predictions(*photos[:2], scores, photos.class_names, "p.png")
    ```

    Args:
        images: uint8 `(n, height, width, 3)`.
        labels: true classes, `(n,)`.
        scores: probabilities, `(n, classes)`.
        class_names: a name for each class.
        path: picture to write; its suffix gives the format.
        columns: images in a row.

    Raises:
        ValueError: if there are no images, or `columns` is not a positive
            integer.
    """
    _check_sheet(images, columns)
    class_names = _as_text(class_names)
    rows = -(-len(images) // columns)
    figure, panels = new_sheet(1.4 * columns, 1.9 * rows, columns, rows)
    for axes in panels:
        axes.axis("off")
    for axes, image, label, score in zip(
        panels, images, labels, scores, strict=False
    ):
        axes.imshow(image)
        best = int(score.argmax())
        title = f"{class_names[best]}  {score[best]:.0%}"
        if best != label:
            title += f"\nis {class_names[label]}"
        axes.set_title(
            title, fontsize=9, color="black" if best == label else "firebrick"
        )
    save_figure(figure, path)


def plot_boxes(
    images: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    classes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] | None,
    class_names: Sequence[str],
    path: Path,
    columns: int = 4,
) -> None:
    """Draws a sheet of images with boxes on them, a color for each class.

    ```python
    import numpy as np
    from keras_muffnet import plots

    image = np.full((240, 320, 3), 200, "uint8")
    boxes, classes, scores = [[20, 30, 120, 130]], [0], [0.9]
    plots.plot_boxes(
        [image], [boxes], [classes], [scores], ["cell"], "boxes.png"
    )
    ```

    Args:
        images: uint8 `(height, width, 3)` each, of any sizes.
        boxes: `(n, 4)` for each image: `(x_min, y_min, x_max, y_max)` in its
            pixels, from 0 to its width and height.
        classes: integers `(n,)` for each; rows of negative ones are padding
            and are left out.
        scores: in [0, 1], `(n,)` for each, written above the boxes; None for
            boxes that are the truth.
        class_names: a name for each class.
        path: picture to write; its suffix gives the format.
        columns: images in a row.

    Raises:
        ValueError: if there are no images, or `columns` is not a positive
            integer.
    """
    _check_sheet(images, columns)
    class_names = _as_text(class_names)
    lines = load_optional("matplotlib.lines", "examples")
    colormaps = load_optional("matplotlib", "examples").colormaps
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    # Wide images leave no room between rows; high ones are drawn smaller.
    tallest = min(1, max(image.shape[0] / image.shape[1] for image in images))
    figure, panels = new_sheet(
        3.2 * columns, 3.2 * tallest * rows + 0.4, columns, rows
    )
    palette = colormaps["tab10" if len(class_names) <= 10 else "tab20"].colors
    colors = [palette[i % len(palette)] for i in range(len(class_names))]
    shown: set[int] = set()
    for axes in panels:
        axes.axis("off")
    for i, (axes, image) in enumerate(zip(panels, images, strict=False)):
        height, width = image.shape[:2]
        # Edges of pixels are whole numbers, as in the boxes.
        axes.imshow(image, extent=(0, width, height, 0))
        for j, (box, label) in enumerate(
            zip(boxes[i], classes[i], strict=True)
        ):
            label = int(label)
            if label < 0:
                continue
            shown.add(label)
            corner, sides = (box[0], box[1]), (box[2] - box[0], box[3] - box[1])
            axes.add_patch(_outline(corner, sides, edgecolor=colors[label]))
            if scores is not None:
                axes.text(
                    box[0],
                    box[1],
                    f"{scores[i][j]:.2f}",
                    # Inside of the box where there is no room above it.
                    va="bottom" if box[1] > 0.05 * height else "top",
                    fontsize=6,
                    color="white",
                    bbox={
                        "facecolor": colors[label],
                        "edgecolor": "none",
                        "pad": 0.6,
                    },
                    clip_on=True,
                )
    # Of many classes only those that are there.
    figure.legend(
        handles=[
            lines.Line2D([], [], color=colors[k], label=class_names[k])
            for k in sorted(shown)
        ],
        loc="outside upper center",
        ncols=8,
        frameon=False,
    )
    save_figure(figure, path)


def plot_confusion(
    confusion: np.ndarray, class_names: Sequence[str], path: Path
) -> None:
    """Draws what each class was taken for, as shares of the class's images.

    Up to 20 classes have the shares written in, in percent.

    ```python
    import numpy as np
    from keras_muffnet import plots

    confusion = np.array([[9, 1], [2, 8]])
    plots.plot_confusion(confusion, ["cat", "dog"], "confusion.png")
    ```

    Args:
        confusion: numbers of images, `(classes, classes)`: of the row's class,
            taken for the column's.
        class_names: a name for each class.
        path: picture to write; its suffix gives the format.
    """
    classes = len(class_names)
    class_names = _as_text(class_names)
    side = float(np.clip(0.45 * classes + 2, 5, 16))
    figure, axes = new_figure(side, side)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.7)
    if classes <= 20:
        for i, j in zip(*np.nonzero(confusion), strict=True):
            axes.text(
                j,
                i,
                f"{100 * shares[i, j]:.0f}",
                ha="center",
                va="center",
                color="white" if shares[i, j] > 0.6 else "black",
                fontsize=8,
            )
    if classes <= 60:
        axes.set_xticks(range(classes), class_names, rotation=90, fontsize=8)
        axes.set_yticks(range(classes), class_names, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title("What each class was taken for")
    save_figure(figure, path)


def plot_layer_noise(
    names: Sequence[str],
    sqnr: Sequence[float],
    own_sqnr: Sequence[float],
    worst: Sequence[str],
    path: Path,
) -> None:
    """Draws what a quantized model's layers have left of the float signal.

    A bar is the ratio of signal to all noise up to a layer, a dot that to the
    noise which the layer makes itself. NaN leaves both out. What is above 60
    dB, more than int8 outputs have, is drawn at the right edge.

    ```python
    from keras_muffnet import plots

    plots.plot_layer_noise(
        ["conv1", "conv2"], [38.0, 27.5], [38.0, 28.0], ["conv2"], "noise.png"
    )
    ```

    Args:
        names: the layers in order, drawn from top to bottom.
        sqnr: their signal-to-quantization-noise ratios in dB.
        own_sqnr: those without the noise of their inputs.
        worst: names of the layers to highlight.
        path: picture to write; its suffix gives the format.
    """
    figure, axes = new_figure(9, 0.17 * len(names) + 1.5)
    both = np.array([sqnr, own_sqnr], float)
    finite = both[np.isfinite(both)]
    left, right = min(finite.min(initial=0), 0), 60
    bars, dots = np.clip(both, left, right)
    rows = np.arange(len(names))
    colors = ["firebrick" if n in worst else "steelblue" for n in names]
    axes.barh(rows, bars, height=0.75, color=colors, label="all noise so far")
    axes.scatter(
        dots, rows, s=14, color="black", zorder=3, label="its own noise alone"
    )
    axes.set_yticks(rows, names, fontsize=8)
    for label, color in zip(axes.get_yticklabels(), colors, strict=True):
        if color == "firebrick":
            label.set(color=color, fontweight="bold")
    for row in rows[np.isnan(both[0])]:
        axes.text(0, row, " not found", va="center", fontsize=8, color="gray")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(1.05 * left, 1.05 * right)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("signal to quantization noise (dB); red: the worst layers")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """Makes a figure and its axes.

    Args:
        width: in inches.
        height: in inches.
    """
    figure, [axes] = new_sheet(width, height, columns=1)
    return figure, axes


def new_sheet(
    width: float, height: float, columns: int, rows: int = 1
) -> tuple[Any, list[Any]]:
    """Makes a figure and a grid of axes, listed row by row.

    Args:
        width: in inches.
        height: in inches.
        columns: axes in a row.
        rows: rows of axes.
    """
    # Without pyplot, whose global state would reach the caller's own figures.
    matplotlib = load_optional("matplotlib.figure", "examples")
    figure = matplotlib.Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _as_text(names: Sequence[str]) -> list[str]:
    """Names as matplotlib draws them: between dollars it would read math."""
    return [name.replace("$", r"\$") for name in names]


def _check_sheet(
    images: Sequence[np.ndarray] | np.ndarray, columns: int
) -> None:
    positive_integer("columns", columns)
    if len(images) == 0:
        raise ValueError(
            f"`images` must be one image or more. Received: images={images!r}"
        )


def _outline(
    corner: tuple[float, float],
    sides: tuple[float, float],
    edgecolor: Any = "black",
) -> Any:
    patches = load_optional("matplotlib.patches", "examples")
    return patches.Rectangle(
        corner, *sides, fill=False, linewidth=1.2, edgecolor=edgecolor
    )


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure, with the same bytes each time.

    Args:
        figure: of matplotlib.
        path: picture to write; its suffix gives the format.
    """
    matplotlib = load_optional("matplotlib", "examples")
    suffix = os.path.splitext(path)[1].lower()
    unwanted = {
        ".png": "Software",
        ".svg": "Date",
        ".pdf": "CreationDate",
    }.get(suffix)
    with (
        written_aside(path) as aside,
        # Else the names of an SVG's parts would be random.
        matplotlib.rc_context({"svg.hashsalt": "keras_muffnet"}),
    ):
        figure.savefig(
            aside,
            dpi=120,
            facecolor="white",  # readable on dark pages, too
            metadata={unwanted: None} if unwanted else None,
        )
