"""The built network: counts, wiring, and that any valid spec builds."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_muffnet import MuffNet
from keras_muffnet import StageSpec
from keras_muffnet import count_complexity
from keras_muffnet import stages_from_notation
from keras_muffnet.federation import PATTERNS
from keras_muffnet.graph import trace
from keras_muffnet.layers import ChannelSlice
from keras_muffnet.presets import PAPER_NOTATION
from keras_muffnet.presets import PRESETS
from keras_muffnet.presets import STEMS
from keras_muffnet.presets import closed_form_counts
from tests.test_federation import explicit_rows

# Building takes about a second: few examples.
BUILDS = settings(max_examples=8)


@st.composite
def stage_specs(draw):
    sharing = draw(st.sampled_from((*PATTERNS, "explicit")))
    if sharing == "explicit":
        return StageSpec(draw(explicit_rows(most_layers=4)))
    layers = draw(st.integers(1, 4))
    return StageSpec(sharing, layers, layers + draw(st.integers(0, 30)))


@pytest.mark.parametrize("alpha", PRESETS)
def test_nine_published_counts(alpha):
    preset = PRESETS[alpha]
    stages = stages_from_notation(PAPER_NOTATION, alpha)
    large = count_complexity(MuffNet(alpha=alpha))
    assert large.uncounted == ()
    assert round(large.parameters / 1e6, 1) == preset.paper_parameters
    assert round(large.macs / 1e6) == preset.paper_macs_224
    formula = closed_form_counts(stages, 224, "imagenet")
    assert (large.parameters, large.macs) == formula

    small = count_complexity(
        MuffNet(input_shape=(32, 32, 3), alpha=alpha, classes=10)
    )
    assert round(small.macs / 1e6) == preset.paper_macs_32
    formula = closed_form_counts(stages, 32, "cifar", classes=10)
    assert (small.parameters, small.macs) == formula


def test_network_has_53_layers():
    """Convolutions in a row, pools and classifier, as section 3.3 counts."""
    model = MuffNet(alpha=0.5)
    names = [layer.name for layer in model.layers]
    reductions = [n for n in names if n.endswith("_b_depthwise_conv")]
    blocks = [
        n
        for n in names
        if n.endswith("_depthwise_conv") and "_a_" not in n and "_b_" not in n
    ]
    assert (len(reductions), len(blocks)) == (3, 3 + 7 + 3)
    # stem, max-pool, three a block, head, global pool, classifier
    assert 2 + 3 * (len(reductions) + len(blocks)) + 3 == 53


@BUILDS
@given(
    st.lists(stage_specs(), min_size=1, max_size=3),
    st.sampled_from(sorted(STEMS)),
    st.integers(1, 40),
    st.sampled_from((1, 3, 4)),
)
def test_any_spec_builds_and_counts_as_the_formula(stages, stem, size, depth):
    model = MuffNet(
        input_shape=(size, size, depth), stages=stages, stem=stem, classes=7
    )
    counted = count_complexity(model)
    formula = closed_form_counts(stages, size, stem, depth, classes=7)
    assert (counted.parameters, counted.macs) == formula
    assert counted.uncounted == ()
    for number, stage in enumerate(stages, start=1):
        output = model.get_layer(f"stage{number}_output").output
        assert output.shape[-1] == stage.width


@BUILDS
@given(st.floats(0.1, 3.0))
def test_any_alpha_builds(alpha):
    model = MuffNet(input_shape=(32, 32, 3), alpha=alpha, classes=10)
    stages = stages_from_notation(PAPER_NOTATION, alpha)
    counted = count_complexity(model)
    formula = closed_form_counts(stages, 32, "cifar", classes=10)
    assert (counted.parameters, counted.macs) == formula


def uses_of_layers(model, stage):
    """How often each channel of each layer of a stage is read by blocks."""
    calls = trace(model).calls
    made_by = {id(c.outputs[0]): c for c in calls}
    uses = {}
    for call in calls:
        name = call.operation.name
        if (
            not (name.startswith(f"{stage}_layer") and name.endswith("_input"))
            and name != f"{stage}_output"
        ):
            continue
        for tensor in call.inputs:
            made = made_by[id(tensor)]
            start, stop = 0, tensor.shape[-1]
            if isinstance(made.operation, ChannelSlice):
                start, stop = made.operation.start, made.operation.stop
                tensor = made.inputs[0]
                made = made_by[id(tensor)]
            used = uses.setdefault(
                made.operation.name, np.zeros(tensor.shape[-1], dtype=int)
            )
            used[start:stop] += 1
    return uses


@BUILDS
@given(explicit_rows())
def test_every_output_channel_is_used_exactly_once_in_the_graph(rows):
    model = MuffNet(
        input_shape=(8, 8, 3), stages=[StageSpec(rows)], include_top=False
    )
    uses = uses_of_layers(model, "stage1")
    assert set(uses) == {f"stage1_layer{k + 1}_relu" for k in range(len(rows))}
    for name, used in uses.items():
        assert (used == 1).all(), name


def test_dense_channels_are_used_by_every_later_layer():
    stages = [StageSpec("dense", 4, 12)]
    model = MuffNet(input_shape=(8, 8, 3), stages=stages, include_top=False)
    uses = uses_of_layers(model, "stage1")
    for layer in range(1, 5):
        assert set(uses[f"stage1_layer{layer}_relu"]) == {5 - layer}


def test_blocks_read_their_groups_in_the_order_of_the_layers():
    """The values, not only the shapes, that reach block 4 and the output."""
    rows = [[2, 1, 1], [0, 2, 3], [0, 0, 4]]
    model = MuffNet(
        input_shape=(8, 8, 3), stages=[StageSpec(rows)], include_top=False
    )
    wanted = [f"stage1_layer{k}_relu" for k in (1, 2, 3)]
    wanted += ["stage1_layer3_input", "stage1_output"]
    tap = keras.Model(model.input, [model.get_layer(n).output for n in wanted])
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    one, two, three, block_input, output = tap.predict(
        images.astype("float32"), verbose=0
    )
    np.testing.assert_array_equal(
        block_input, np.concatenate([one[..., 2:3], two[..., :2]], axis=-1)
    )
    np.testing.assert_array_equal(
        output, np.concatenate([one[..., 3:], two[..., 2:], three], axis=-1)
    )


def test_residual_block_adds_its_input_before_the_relu():
    model = MuffNet(
        input_shape=(8, 8, 3),
        stages=[StageSpec("none", 2, 6)],
        include_top=False,
    )
    wanted = (
        "stage1_layer1_relu",
        "stage1_layer2_pointwise2_bn",
        "stage1_layer2_relu",
    )
    tap = keras.Model(model.input, [model.get_layer(n).output for n in wanted])
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 3))
    before, branch, after = tap.predict(images.astype("float32"), verbose=0)
    np.testing.assert_allclose(after, np.maximum(before + branch, 0), 1e-6)
    assert (branch < 0).any()


@pytest.mark.parametrize(
    ("stem", "sizes"),
    [
        ("imagenet", (28, 14, 7)),
        ("tiny_imagenet", (112, 56, 28)),
        ("cifar", (224, 112, 56)),
    ],
)
def test_sizes_of_the_stages(stem, sizes):
    model = MuffNet(
        input_shape=(224, 224, 3), alpha=0.1, stem=stem, include_top=False
    )
    found = tuple(
        model.get_layer(f"stage{k}_output").output.shape[1] for k in (1, 2, 3)
    )
    assert found == sizes
