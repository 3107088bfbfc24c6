import numpy as np
import pytest
from hypothesis import assume
from hypothesis import given
from hypothesis import strategies as st

from keras_muffnet.federation import PATTERNS
from keras_muffnet.federation import SharingMatrix
from keras_muffnet.federation import apportion
from keras_muffnet.federation import block_macs
from keras_muffnet.federation import reduction_macs

FEDERATIONS = sorted(set(PATTERNS) - {"none", "dense"})


@st.composite
def explicit_rows(draw, most_layers=5, most_channels=6):
    """Valid explicit matrices: each row and each column has channels."""
    layers = draw(st.integers(1, most_layers))
    rows = np.triu(
        np.array(
            draw(
                st.lists(
                    st.lists(
                        st.integers(0, most_channels),
                        min_size=layers,
                        max_size=layers,
                    ),
                    min_size=layers,
                    max_size=layers,
                )
            )
        )
    )
    assume(rows.sum(axis=0).all() and rows.sum(axis=1).all())
    return rows


@pytest.mark.parametrize(
    ("width", "groups"),
    [
        (56, (27, 14, 7, 3, 2, 1, 1, 1)),
        (132, (66, 33, 17, 8, 4, 2, 1, 1)),
        (206, (103, 52, 26, 13, 6, 3, 2, 1)),
    ],
)
def test_geometric_groups_are_the_published_ones(width, groups):
    matrix = SharingMatrix.from_pattern("geometric", 8, width)
    assert matrix.rows[0] == groups


def test_average_sharing_splits_evenly():
    matrix = SharingMatrix.from_pattern("average", 4, 40)
    assert matrix.rows == (
        (10, 10, 10, 10),
        (0, 10, 10, 10),
        (0, 0, 10, 10),
        (0, 0, 0, 10),
    )
    assert matrix.output_channels == (40, 30, 20, 10)
    assert matrix.input_channels == (10, 20, 30, 40)
    assert matrix.block_channels == ((10, 30), (20, 20), (30, 10))


def test_linear_sharing_decays_with_the_distance():
    # 60 in the proportion 1 : 1/2 : 1/3 : 1/4
    matrix = SharingMatrix.from_pattern("linear", 4, 25)
    assert matrix.rows[0] == (12, 6, 4, 3)
    assert matrix.rows[1] == (0, 12, 6, 4)


def test_none_is_a_plain_chain():
    matrix = SharingMatrix.from_pattern("none", 4, 140)
    assert matrix.block_channels == ((140, 140),) * 3


def test_dense_reuses_every_channel():
    matrix = SharingMatrix.from_pattern("dense", 4, 42)
    assert matrix.reused
    assert matrix.output_channels == (11, 11, 10, 10)
    assert matrix.input_channels == (11, 22, 32, 42)
    assert [matrix.group(1, j) for j in (1, 2, 3)] == [(0, 11)] * 3


def test_figure_2_step_by_step():
    """The four-layer example that section 3.1 walks through."""
    rows = [[5, 0, 0, 0], [0, 3, 2, 4], [0, 0, 6, 1], [0, 0, 0, 7]]
    matrix = SharingMatrix.from_rows(rows)
    # ConvUnit2 reads M11 and makes M22..M24; ConvUnit3 reads M22;
    # ConvUnit4 reads M23 and M33; the output joins M24, M34 and M44.
    assert matrix.block_channels == ((5, 9), (3, 7), (8, 7))
    assert matrix.input_channels[-1] == 4 + 1 + 7
    assert [matrix.group(1, j) for j in (1, 2, 3)] == [(0, 3), (3, 5), (5, 9)]


@given(st.sampled_from(FEDERATIONS), st.integers(1, 12), st.integers(0, 300))
def test_patterns_connect_each_pair_and_keep_the_width(pattern, layers, extra):
    width = layers + extra
    matrix = SharingMatrix.from_pattern(pattern, layers, width)
    rows = np.array(matrix.rows)
    assert (rows[np.triu_indices(layers)] >= 1).all()
    assert (rows[np.tril_indices(layers, -1)] == 0).all()
    assert matrix.output_channels[0] == matrix.input_channels[-1] == width
    for i in range(layers):  # Toeplitz, and never growing with the distance
        assert matrix.rows[i][i:] == matrix.rows[0][: layers - i]
    assert list(matrix.rows[0]) == sorted(matrix.rows[0], reverse=True)


@given(explicit_rows())
def test_every_channel_of_a_layer_is_in_exactly_one_group(rows):
    matrix = SharingMatrix.from_rows(rows)
    for i, channels in enumerate(matrix.output_channels):
        used = np.zeros(channels, dtype=int)
        for j in range(i, matrix.layers):
            start, stop = matrix.group(i, j)
            used[start:stop] += 1
        assert (used == 1).all()


@given(explicit_rows(), st.integers(1, 60))
def test_flops_are_the_formula_of_section_3_2(rows, size):
    matrix = SharingMatrix.from_rows(rows)
    expected = 0
    for i in range(1, matrix.layers):
        m_in = int(rows[:, i - 1].sum())
        m_out = int(rows[i, :].sum())
        expected += size * size * (m_in**2 + 9 * m_in + m_in * m_out)
    assert matrix.macs(size) == expected


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 30))
def test_reduction_formula_as_printed_but_for_the_depthwise_terms(m, n, size):
    assume((m + n) % 2 == 0)
    s_in, s_out = 2 * size, size
    printed = s_in**2 * (m * m / 2 + m * n / 2) + s_out**2 * (
        75 / 2 * m + 25 / 2 * n + 3 / 2 * m * n + 1 / 2 * n * n
    )
    assert reduction_macs(m, n, s_in, s_out) == printed


def test_block_formula():
    assert block_macs(10, 30, 28) == 28 * 28 * (100 + 90 + 300)


@given(
    st.integers(0, 500),
    st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12),
)
def test_apportion_is_whole_and_within_one_of_the_share(extra, weights):
    weights = sorted(weights, reverse=True)
    total = len(weights) + extra
    parts = apportion(total, weights)
    assert sum(parts) == total
    assert min(parts) >= 1
    assert parts == sorted(parts, reverse=True)
    free = [w for w, part in zip(weights, parts, strict=True) if part > 1]
    if free:  # those above the least get no more than their share, rounded up
        shares = [total * w / sum(weights) for w in free]
        assert all(
            part <= np.ceil(share + 1e-9)
            for part, share in zip(parts, shares, strict=False)
        )


@pytest.mark.parametrize(
    ("rows", "fragments"),
    [
        ([], ["at least one row"]),
        (7, ["rows of integers", "7"]),
        ([[1, 2], [0]], ["square", "row 2 has 1"]),
        ([[1, 2]], ["square", "1 rows", "row 1 has 2"]),
        ([[1, 1], [3, 1]], ["upper-triangular", "3 at row 2, column 1"]),
        ([[1, -4], [0, 1]], ["non-negative", "-4 at row 1, column 2"]),
        ([[1, 1.5], [0, 1]], ["integers", "1.5 at row 1, column 2"]),
        ([[True, 1], [0, 1]], ["integers", "True at row 1, column 1"]),
        ([[1, 1], [0, 0]], ["layer 2", "row 2"]),
        ([[0, 1], [0, 1]], ["block 2", "column 1"]),
    ],
)
def test_explicit_matrix_errors_name_the_place(rows, fragments):
    with pytest.raises(ValueError, match="sharing matrix") as error:
        SharingMatrix.from_rows(rows)
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "layers", "width", "fragments"),
    [
        ("bogus", 4, 40, ["`pattern`", "geometric", "'bogus'"]),
        (None, 4, 40, ["`pattern`", "None"]),
        ("average", 0, 40, ["`layers`", "positive integer", "0"]),
        ("average", 2.0, 40, ["`layers`", "2.0"]),
        ("none", 4, -1, ["`width`", "-1"]),
        ("none", 4, True, ["`width`", "True"]),
        ("geometric", 8, 7, ["`width`", "width=7", "layers=8"]),
        ("dense", 8, 7, ["`width`", "width=7", "layers=8"]),
    ],
)
def test_pattern_errors(pattern, layers, width, fragments):
    with pytest.raises(ValueError) as error:
        SharingMatrix.from_pattern(pattern, layers, width)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_every_pattern_is_known():
    for pattern in PATTERNS:
        matrix = SharingMatrix.from_pattern(pattern, 3, 12)
        assert matrix.input_channels[-1] == 12
