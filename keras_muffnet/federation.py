"""Multi-layer feature federation: the sharing matrix of section 3.1.

A stage has L feature maps, here called layers. Layer 1 enters the stage, and
block i makes layer i for i = 2..L. The channels of every layer are split into
groups, and every group is sent once:

    M[i, i]            from layer i straight to block i + 1
    M[i, j], i < j < L  from layer i to block j + 1
    M[i, L]            from layer i to the output of the stage

so that block j + 1 reads column j of the upper-triangular matrix M, and row i
is what layer i has to give:

    input channels of block j + 1 = sum of column j
    channels of layer i           = sum of row i

Each pair of layers is connected, yet no channel is used twice: the stage costs
as much as a plain chain of the same widths. Python counts layers from 0; error
messages and layer names count from 1, as the paper does.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np

from keras_muffnet._arguments import positive_integer

# Section 3.3: the share of a layer's channels that goes `distance` layers on.
_DECAY: dict[str, Callable[[int], float]] = {
    "average": lambda distance: 1.0,
    "linear": lambda distance: 1.0 / (distance + 1),
    "geometric": lambda distance: 0.5 ** (distance + 1),
}

PATTERNS = (*_DECAY, "none", "dense")


@dataclasses.dataclass(frozen=True)
class SharingMatrix:
    """The matrix M that says which channels go where (section 3.1).

    Build it with `SharingMatrix.from_pattern` or `SharingMatrix.from_rows`.

    ```python
    from keras_muffnet import SharingMatrix

    matrix = SharingMatrix.from_pattern("geometric", layers=3, width=14)
    matrix.rows  # ((8, 4, 2), (0, 8, 4), (0, 0, 8))
    ```

    Attributes:
        rows: L rows of L channel counts; zero below the diagonal.
        reused: False for a federation, where each channel is used once. True
            for the "dense" pattern, which imitates DenseNet: every later block
            reads all channels of a layer, so that M[i, j] is the same for all
            j >= i and the groups of a row are one and the same group.
    """

    rows: tuple[tuple[int, ...], ...]
    reused: bool = False

    @classmethod
    def from_pattern(
        cls, pattern: str, layers: int | None, width: int | None
    ) -> "SharingMatrix":
        """Makes the matrix of one of the paper's patterns (section 3.3).

        Args:
            pattern: "average", "linear" and "geometric" share a layer's
                channels evenly, in proportion to 1 / (d + 1), or in proportion
                to 1 / 2^(d + 1), where d = j - i; "none" is a plain chain, and
                "dense" is DenseNet's concatenation.
            layers: L, the number of feature maps of the stage.
            width: number of channels of the stage's output.

        Returns:
            A `SharingMatrix`. Every pair of layers is connected (but for
            "none"), and its first layer and its output have `width` channels
            (for "dense" only the output has).

        Raises:
            ValueError: if the pattern is unknown, or `layers` or `width` is
                not a positive integer, or `width` leaves a group empty.
        """
        if pattern not in PATTERNS:
            raise ValueError(
                f"`pattern` must be one of {', '.join(PATTERNS)}. "
                f"Received: pattern={pattern!r}"
            )
        layers = positive_integer("layers", layers)
        width = positive_integer("width", width)
        if pattern == "none":
            return cls(_tuples(np.eye(layers, dtype=int) * width))
        if width < layers:
            raise ValueError(
                f"`width` must be at least `layers` for {pattern!r} sharing, "
                "so that every pair of layers shares a channel. "
                f"Received: width={width}, layers={layers}"
            )
        if pattern == "dense":
            growth = apportion(width, [1.0] * layers)
            return cls(
                _tuples(np.triu(np.tile(growth, (layers, 1)).T)), reused=True
            )
        decay = _DECAY[pattern]
        groups = apportion(width, [decay(d) for d in range(layers)])
        matrix = np.zeros((layers, layers), dtype=int)
        for i in range(layers):
            matrix[i, i:] = groups[: layers - i]
        return cls(_tuples(matrix))

    @classmethod
    def from_rows(cls, rows: Iterable[Iterable[int]]) -> "SharingMatrix":
        """Makes an explicit matrix, given as nested sequences or an array.

        Args:
            rows: L x L non-negative integers, upper-triangular.

        Raises:
            ValueError: naming the row or column at fault, if the matrix is not
                square or not upper-triangular, if an entry is not a
                non-negative integer, if a layer has no channels or a block
                no input.
        """
        matrix = _checked_array(rows)
        for i, row in enumerate(matrix):
            if not row.sum():
                raise ValueError(
                    f"The sharing matrix gives layer {i + 1} no channels: row "
                    f"{i + 1} must not be all zero. Received row: "
                    f"{row.tolist()}"
                )
        for j, column in enumerate(matrix.T):
            if not column.sum():
                reader = (
                    f"block {j + 2}" if j + 1 < len(matrix) else "the output"
                )
                raise ValueError(
                    f"The sharing matrix gives {reader} no channels: column "
                    f"{j + 1} must not be all zero. Received column: "
                    f"{column.tolist()}"
                )
        return cls(_tuples(matrix))

    @property
    def layers(self) -> int:
        """L, the number of feature maps."""
        return len(self.rows)

    @property
    def output_channels(self) -> tuple[int, ...]:
        """Channels of each layer: the row sums (the diagonal if reused)."""
        if self.reused:
            return tuple(row[i] for i, row in enumerate(self.rows))
        return tuple(sum(row) for row in self.rows)

    @property
    def input_channels(self) -> tuple[int, ...]:
        """Column sums: what blocks 2..L read, then the stage's output."""
        return tuple(sum(column) for column in zip(*self.rows, strict=True))

    @property
    def block_channels(self) -> tuple[tuple[int, int], ...]:
        """(input, output) channels of blocks 2..L, in order."""
        return tuple(
            zip(self.input_channels[:-1], self.output_channels[1:], strict=True)
        )

    def group(self, i: int, j: int) -> tuple[int, int]:
        """Where group M[i, j] lies in layer i: channels [start, stop)."""
        start = 0 if self.reused else sum(self.rows[i][i:j])
        return start, start + self.rows[i][j]

    def macs(self, size: int) -> int:
        """FLOP(M) of section 3.2: multiply-adds of blocks 2..L.

        Args:
            size: height and width of the stage's feature maps in pixels.
        """
        return sum(block_macs(*pair, size) for pair in self.block_channels)

    def parameters(self) -> int:
        """Trainable parameters of blocks 2..L, batch normalization's too."""
        return sum(block_parameters(*pair) for pair in self.block_channels)


def block_macs(m_in: int, m_out: int, size: int) -> int:
    """Multiply-adds of a normal or residual block: FLOP_i of section 3.2."""
    return size**2 * (m_in**2 + 9 * m_in + m_in * m_out)


def block_parameters(m_in: int, m_out: int) -> int:
    """Trainable parameters of a normal or residual block.

    The kernels are the formula above at a single pixel; each of the three
    batch normalizations adds a scale and an offset a channel.
    """
    return block_macs(m_in, m_out, size=1) + 2 * (m_in + m_in + m_out)


def reduction_macs(m_in: int, m_out: int, size_in: int, size_out: int) -> int:
    """Multiply-adds of a reduction block (section 3.2).

    The paper prints m_i^2 and m_i m_j where a depthwise convolution has m_i
    and m_j. Read as depthwise, and with h = (m_i + m_j) / 2, it is

        s_i^2 m_i h  +  s_j^2 (25 (m_i + h) + m_j (m_i + h))

    Args:
        m_in: channels of the input, m_i.
        m_out: channels of the output, m_j.
        size_in: height and width of the input, s_i.
        size_out: height and width of the output, s_j.
    """
    middle = reduction_middle(m_in, m_out)
    return size_in**2 * m_in * middle + size_out**2 * (
        25 * (m_in + middle) + m_out * (m_in + middle)
    )


def reduction_parameters(m_in: int, m_out: int) -> int:
    """Trainable parameters of a reduction block, batch normalization's too."""
    middle = reduction_middle(m_in, m_out)
    kernels = reduction_macs(m_in, m_out, size_in=1, size_out=1)
    return kernels + 2 * (m_in + m_out + middle + middle + m_out)


def reduction_middle(m_in: int, m_out: int) -> int:
    """Channels between the convolutions of a reduction's second branch."""
    return (m_in + m_out) // 2


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Divides `total` into whole parts, in proportion and each at least one.

    Parts whose proportional share is below one get one; the rest is divided
    over the other parts by largest remainder, earlier parts first on a tie.
    This is the rule that gives the published geometric groups, for instance
    56 = 27 + 14 + 7 + 3 + 2 + 1 + 1 + 1.

    Args:
        total: at least `len(weights)`.
        weights: positive and non-increasing.
    """
    free = len(weights)
    while True:
        rest = total - (len(weights) - free)
        scale = rest / sum(weights[:free])
        if weights[free - 1] * scale >= 1.0 or free == 1:
            break
        free -= 1
    shares = [weight * scale for weight in weights[:free]]
    parts = [int(share) for share in shares]
    by_remainder = sorted(
        range(free), key=lambda k: shares[k] - parts[k], reverse=True
    )
    for k in by_remainder[: rest - sum(parts)]:
        parts[k] += 1
    return parts + [1] * (len(weights) - free)


def _checked_array(rows: Iterable[Iterable[int]]) -> np.ndarray:
    try:
        listed = [list(row) for row in rows]
    except TypeError:
        raise ValueError(
            f"The sharing matrix must be rows of integers. Received: {rows!r}"
        ) from None
    if not listed:
        raise ValueError(
            "The sharing matrix must have at least one row. Received: []"
        )
    for i, row in enumerate(listed):
        if len(row) != len(listed):
            raise ValueError(
                "The sharing matrix must be square. Received: "
                f"{len(listed)} rows, but row {i + 1} has {len(row)} entries"
            )
        for j, entry in enumerate(row):
            where = f"row {i + 1}, column {j + 1}"
            if (
                isinstance(entry, (bool, np.bool_))
                or not isinstance(entry, (int, np.integer))
                or entry < 0
            ):
                raise ValueError(
                    "The sharing matrix must hold non-negative integers. "
                    f"Received: {entry!r} at {where}"
                )
            if j < i and entry:
                raise ValueError(
                    "The sharing matrix must be upper-triangular: a layer "
                    "cannot send channels to an earlier one. "
                    f" Received: {entry} at {where}"
                )
    return np.array(listed, dtype=int)


def _tuples(matrix: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())
