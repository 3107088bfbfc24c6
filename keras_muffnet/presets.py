"""What a MuffNet is made of: stage specs, stems and the published networks."""

import dataclasses
import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from keras_muffnet._arguments import boolean
from keras_muffnet._arguments import positive_number
from keras_muffnet.federation import PATTERNS
from keras_muffnet.federation import SharingMatrix
from keras_muffnet.federation import reduction_macs
from keras_muffnet.federation import reduction_parameters

STEM_FILTERS = 24
HEAD_FILTERS = 1024
# Inputs smaller than this start without downsampling (section 3.3).
SMALL_INPUT = 56


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """One stage: a reduction block, then `layers - 1` normal blocks.

    ```python
    from keras_muffnet import MuffNet, StageSpec

    stages = [
        StageSpec("average", layers=4, width=40),
        StageSpec([[8, 4, 2], [0, 8, 4], [0, 0, 8]]),  # the matrix itself
        StageSpec("none", layers=3, width=96),
    ]
    model = MuffNet(stages=stages)
    ```

    Attributes:
        sharing: "average", "linear", "geometric", "none" or "dense"; or an
            explicit sharing matrix, as L rows of L integers (section 3.1).
        layers: L, the number of feature maps, the reduction's output counted
            in. May be left out for an explicit matrix.
        width: channels of the stage's output. May be left out for an explicit
            matrix.
        residual: adds each block's input to its output. By default only a
            plain chain ("none") does.
        matrix: the `SharingMatrix` that follows from the above.

    Raises:
        ValueError: if a value is out of range, if `layers` or `width` differ
            from an explicit matrix, or if `residual` is asked for where a
            block's input and output differ in width.
    """

    sharing: str | Sequence[Sequence[int]] | np.ndarray
    layers: int | None = None
    width: int | None = None
    residual: bool | None = None
    matrix: SharingMatrix = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        matrix = self._make_matrix()
        if self.residual is None:
            residual = isinstance(self.sharing, str) and self.sharing == "none"
        else:
            residual = boolean("residual", self.residual)
        if residual:
            _check_residual(matrix)
        # A frozen dataclass fills its derived fields this way.
        if not isinstance(self.sharing, str):
            object.__setattr__(self, "sharing", matrix.rows)
        object.__setattr__(self, "layers", matrix.layers)
        object.__setattr__(self, "width", matrix.input_channels[-1])
        object.__setattr__(self, "residual", residual)
        object.__setattr__(self, "matrix", matrix)

    def _make_matrix(self) -> SharingMatrix:
        sharing: Any = self.sharing
        if isinstance(sharing, str) and sharing in PATTERNS:
            return SharingMatrix.from_pattern(sharing, self.layers, self.width)
        if isinstance(sharing, str) or not isinstance(
            sharing, (Sequence, np.ndarray)
        ):
            raise ValueError(
                f"`sharing` must be one of {', '.join(PATTERNS)}, or a sharing "
                f"matrix as rows of integers. Received: sharing={sharing!r}"
            )
        matrix = SharingMatrix.from_rows(sharing)
        for name, given, found in (
            ("layers", self.layers, matrix.layers),
            ("width", self.width, matrix.input_channels[-1]),
        ):
            if given is not None and given != found:
                raise ValueError(
                    f"`{name}` must be left out or agree with the explicit "
                    f"sharing matrix, which has {found}. "
                    f"Received: {name}={given!r}"
                )
        return matrix


def _check_residual(matrix: SharingMatrix) -> None:
    for layer, (m_in, m_out) in enumerate(matrix.block_channels, start=2):
        if m_in != m_out:
            raise ValueError(
                "`residual` needs blocks with as many output as input "
                f"channels. Received: residual=True, but block {layer} has "
                f"{m_in} input and {m_out} output channels"
            )


class Stem(NamedTuple):
    """How the network starts (section 3.3): downsampling before stage 1."""

    strides: int  # of the 3x3 convolution
    pool: bool  # 3x3 max-pooling of stride 2 behind it
    first_reduction: int  # strides of stage 1's reduction block


STEMS = {
    # name                 strides  pool  first reduction
    "imagenet": Stem(2, True, 2),  # 224 -> 112 -> 56 -> stage 1 at 28
    "tiny_imagenet": Stem(1, False, 2),  # 64 -> 64 -> stage 1 at 32
    "cifar": Stem(1, False, 1),  # 32 -> 32 -> stage 1 at 32
}


def stem_for_size(stem: Any, size: int | None) -> str:
    """Returns the stem that is meant: a key of `STEMS`.

    Args:
        stem: one of them, or "auto" for the one that suits the size.
        size: the shorter side of an image in pixels; None for any.

    Raises:
        ValueError: if `stem` is none of these.
    """
    if stem == "auto":
        small = size is not None and size < SMALL_INPUT
        return "cifar" if small else "imagenet"
    if not isinstance(stem, str) or stem not in STEMS:
        raise ValueError(
            f"`stem` must be 'auto' or one of {', '.join(STEMS)}. "
            f"Received: stem={stem!r}"
        )
    return stem


class Counts(NamedTuple):
    """Cost of a network: trainable parameters and multiply-adds an image."""

    parameters: int
    macs: int


class Preset(NamedTuple):
    """Widths of a published network, and the counts that the paper prints."""

    widths: tuple[int, int, int]  # low, mid and high stage
    paper_parameters: float  # 1,000 classes, in millions (table 6)
    paper_macs_224: float  # in millions (table 6)
    paper_macs_32: float  # in millions (table 5)


# The paper's appendix with the channel numbers is lost. These widths give all
# nine printed counts, and of those that do they spread the multiply-adds most
# evenly over the layers, as section 4 asks.
PRESETS = {
    # alpha    low  mid  high   params  MACs at 224, at 32
    0.5: Preset((40, 56, 140), 1.4, 42.0, 41.0),
    1.0: Preset((108, 132, 300), 2.3, 146.0, 174.0),
    1.5: Preset((176, 206, 408), 3.4, 300.0, 373.0),
}

# The paper's network (section 5.2), in its own notation.
PAPER_NOTATION = "average+geometric+none"
PAPER_LAYERS = (4, 8, 4)


def widths_for_alpha(alpha: float) -> tuple[int, int, int]:
    """Widths of the low, mid and high stage for a width multiplier.

    The published widths at 0.5, 1.0 and 1.5; between them linear
    interpolation, outside them the nearest ones scaled; then the nearest even
    number, and never fewer channels than layers.

    Raises:
        ValueError: if `alpha` is not a positive, finite number.
    """
    low, mid, high = interpolate_widths(
        alpha, {a: p.widths for a, p in PRESETS.items()}, PAPER_LAYERS
    )
    return low, mid, high


def interpolate_widths(
    alpha: float,
    known: Mapping[float, Sequence[int]],
    least: Sequence[int],
) -> tuple[int, ...]:
    """Widths between and beyond those of published networks.

    Args:
        alpha: width multiplier.
        known: widths by width multiplier.
        least: the least that each width may be.

    Returns:
        The known widths where `alpha` is one of theirs; else even numbers.

    Raises:
        ValueError: if `alpha` is not a positive, finite number.
    """
    positive_number("alpha", alpha)
    return tuple(
        max(smallest, 2 * round(width / 2))
        for smallest, width in zip(
            least, unrounded_widths(float(alpha), known), strict=True
        )
    )


def unrounded_widths(
    alpha: float, known: Mapping[float, Sequence[int]]
) -> tuple[float, ...]:
    """The same before they are rounded, for a positive `alpha`."""
    multipliers = sorted(known)
    nearest = min(max(alpha, multipliers[0]), multipliers[-1])
    columns = zip(*(known[a] for a in multipliers), strict=True)
    return tuple(
        alpha / nearest * float(np.interp(nearest, multipliers, column))
        for column in columns
    )


def stages_from_notation(
    notation: str, alpha: float = 1.0
) -> tuple[StageSpec, ...]:
    """Turns the paper's notation into stages (section 5.2, tables 1-4).

    ```python
    from keras_muffnet import MuffNet, stages_from_notation

    stages = stages_from_notation("linear+dense+none", alpha=0.5)
    model = MuffNet(stages=stages)
    ```

    Args:
        notation: three sharing patterns joined by "+", for the low-, mid- and
            high-level stage, for instance "average+geometric+none".
        alpha: width multiplier. The widths are those of the paper's network;
            patterns of equal width differ in cost.

    Returns:
        Three `StageSpec`s of 4, 8 and 4 layers.

    Raises:
        ValueError: if the notation does not name three known patterns, or
            `alpha` is not positive.
    """
    patterns = notation.split("+") if isinstance(notation, str) else []
    if len(patterns) != len(PAPER_LAYERS) or set(patterns) - set(PATTERNS):
        raise ValueError(
            "`notation` must name three sharing patterns joined by '+', each "
            f"one of {', '.join(PATTERNS)}. Received: notation={notation!r}"
        )
    return tuple(
        StageSpec(pattern, layers, width)
        for pattern, layers, width in zip(
            patterns, PAPER_LAYERS, widths_for_alpha(alpha), strict=True
        )
    )


def closed_form_counts(
    stages: Sequence[StageSpec],
    size: int,
    stem: str,
    channels: int = 3,
    classes: int = 1000,
) -> Counts:
    """Parameters and multiply-adds by the formulas of section 3.2 alone.

    Args:
        stages: the network's stages.
        size: height and width of the input image in pixels.
        stem: a key of `STEMS`.
        channels: channels of the input image.
        classes: units of the classifier.

    Returns:
        `Counts`. Parameters are the trainable ones: kernels, the scale and
        offset of batch normalization, the classifier's bias. Multiply-adds
        are those of convolutions and classifier.
    """
    parts = closed_form_parts(stages, size, stem, channels, classes)
    return Counts(*(sum(counts) for counts in zip(*parts, strict=True)))


def closed_form_parts(
    stages: Sequence[StageSpec],
    size: int,
    stem: str,
    channels: int = 3,
    classes: int = 1000,
) -> list[Counts]:
    """The same for each part: stem, stages, head (1x1 to 1024), classifier.

    A stage is a reduction block and the blocks behind it.

    Args:
        stages: the network's stages.
        size: height and width of the input image in pixels.
        stem: a key of `STEMS`.
        channels: channels of the input image.
        classes: units of the classifier.
    """
    strides, pool, reduction_strides = STEMS[stem]
    size = math.ceil(size / strides)
    kernel = 9 * channels * STEM_FILTERS
    parts = [Counts(kernel + 2 * STEM_FILTERS, kernel * size**2)]
    if pool:
        size = math.ceil(size / 2)
    width = STEM_FILTERS
    for stage in stages:
        matrix = stage.matrix
        first = matrix.output_channels[0]
        reduced = math.ceil(size / reduction_strides)
        parts.append(
            Counts(
                reduction_parameters(width, first) + matrix.parameters(),
                reduction_macs(width, first, size, reduced)
                + matrix.macs(reduced),
            )
        )
        size, width = reduced, matrix.input_channels[-1]
        reduction_strides = 2
    kernel = width * HEAD_FILTERS
    parts.append(Counts(kernel + 2 * HEAD_FILTERS, kernel * size**2))
    parts.append(Counts((HEAD_FILTERS + 1) * classes, HEAD_FILTERS * classes))
    return parts
