import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import keras_muffnet
from keras_muffnet import budget
from keras_muffnet import stages_for_budget
from keras_muffnet.budget import stage_macs
from keras_muffnet.budget import stages_of_equal_cost
from keras_muffnet.federation import PATTERNS
from keras_muffnet.presets import PAPER_NOTATION
from keras_muffnet.presets import PRESETS
from keras_muffnet.presets import closed_form_counts
from keras_muffnet.presets import stages_from_notation

PATTERN = st.sampled_from(PATTERNS)


@settings(max_examples=40)
@given(
    st.lists(PATTERN, min_size=1, max_size=4),
    st.floats(25e6, 1e9),
    st.sampled_from([(32, "cifar"), (64, "tiny_imagenet"), (224, "imagenet")]),
    st.data(),
)
def test_multiply_adds_are_met_to_one_percent(patterns, macs, image, data):
    size, stem = image
    layers = data.draw(
        st.lists(
            st.integers(2, 8),
            min_size=len(patterns),
            max_size=len(patterns),
        )
    )
    try:
        stages = stages_for_budget(
            patterns, macs=macs, size=size, stem=stem, layers=layers
        )
    except ValueError as error:
        # Too coarse, one channel being more than 2% of the whole, or too small
        # for so many layers: the message tells the nearest, or the least.
        assert "The nearest are" in str(error) or "at least" in str(error)
        return
    assert [s.sharing for s in stages] == patterns
    assert [s.layers for s in stages] == layers
    found = closed_form_counts(stages, size, stem).macs
    assert abs(found / macs - 1) <= 0.01


@settings(max_examples=20)
@given(PATTERN, PATTERN, PATTERN, st.floats(30e6, 4e8), st.floats(0.1, 0.9))
def test_both_counts_are_met_where_they_are_reachable(
    low, mid, high, macs, share
):
    sharing = f"{low}+{mid}+{high}"
    with pytest.raises(ValueError, match="`parameters` must lie") as error:
        stages_for_budget(sharing, macs=macs, parameters=1e9)
    words = str(error.value).replace(",", "").split()
    least, most = int(words[4]), int(words[6])
    parameters = least + share * (most - least)
    stages = stages_for_budget(sharing, macs=macs, parameters=parameters)
    found = closed_form_counts(stages, 224, "imagenet")
    assert abs(found.macs / macs - 1) <= 0.01
    assert abs(found.parameters / parameters - 1) <= 0.01


@pytest.mark.parametrize("parameters", [None, 6.5e6])
def test_many_stages_are_found_without_trying_all_widths(
    parameters, monkeypatch
):
    tried = []

    def count(stages, *arguments):
        tried.append(stages)
        return closed_form_counts(stages, *arguments)

    monkeypatch.setattr(budget, "closed_form_counts", count)
    stages = stages_for_budget(
        ["none"] * 10,
        macs=80e6,
        parameters=parameters,
        size=32,
        layers=[2] * 10,
    )
    found = closed_form_counts(stages, 32, "cifar")
    assert abs(found.macs / 80e6 - 1) <= 0.01
    if parameters is not None:
        assert abs(found.parameters / parameters - 1) <= 0.01
    assert len(tried) < 10_000


@pytest.mark.parametrize("alpha", PRESETS)
@pytest.mark.parametrize(
    "names", [("macs",), ("parameters",), ("macs", "parameters")]
)
def test_the_paper_s_budgets_give_its_networks(alpha, names):
    stages = stages_from_notation(PAPER_NOTATION, alpha)
    counts = closed_form_counts(stages, 224, "imagenet")
    targets = {name: getattr(counts, name) for name in names}
    assert stages_for_budget(**targets) == stages


def test_input_and_classes_are_part_of_the_budget():
    stages = stages_for_budget(
        "linear+dense+none",
        macs=30e6,
        parameters=4e5,
        size=32,
        channels=1,
        classes=10,
    )
    model = keras_muffnet.MuffNet(
        input_shape=(32, 32, 1), stages=stages, classes=10
    )
    built = keras_muffnet.count_complexity(model)
    assert abs(built.macs / 30e6 - 1) <= 0.01
    assert abs(built.parameters / 4e5 - 1) <= 0.01


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({}, ["`macs`, `parameters` or both"]),
        ({"macs": 5e6}, ["`macs` must be at least 11,548,122", "5,000,000"]),
        ({"parameters": 9e5}, ["`parameters` must be at least 1,035,360"]),
        (
            {"macs": 42e6, "parameters": 3e6},
            ["`parameters` must lie between", "42,000,000", "3,000,000"],
        ),
        ({"macs": -1}, ["`macs` must be a positive number", "-1"]),
        ({"macs": float("nan")}, ["`macs` must be a positive number", "nan"]),
        ({"macs": "42M"}, ["`macs` must be a positive number", "'42M'"]),
        ({"macs": True}, ["`macs` must be a positive number", "True"]),
        ({"macs": 42e6, "sharing": "even"}, ["`sharing`", "linear", "'even'"]),
        ({"macs": 42e6, "sharing": ()}, ["`sharing`", "()"]),
        ({"macs": 42e6, "layers": (4, 8)}, ["`layers`", "3 stages"]),
        ({"macs": 42e6, "layers": (4, 0, 4)}, ["`layers`", "positive"]),
        ({"macs": 42e6, "stem": "big"}, ["`stem`", "cifar", "'big'"]),
        ({"macs": 42e6, "size": 0}, ["`size`", "positive"]),
        ({"macs": 42e6, "classes": 1.5}, ["`classes`", "1.5"]),
    ],
)
def test_errors_say_what_is_expected_or_reachable(arguments, fragments):
    with pytest.raises(ValueError) as error:
        stages_for_budget(**arguments)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_a_budget_between_two_widths_names_the_nearest():
    # One stage of two layers: a channel more is more than 2%.
    below = stages_for_budget("none", parameters=1.04e6, layers=[2])
    counts = closed_form_counts(below, 224, "imagenet")
    wider = budget.StageSpec("none", 2, below[0].width + 1)
    middle = (
        counts.macs + closed_form_counts((wider,), 224, "imagenet").macs
    ) / 2
    with pytest.raises(ValueError, match="The nearest are") as error:
        stages_for_budget("none", macs=middle, layers=[2])
    assert f"{middle:,.0f}" in str(error.value)


@settings(max_examples=10)
@given(PATTERN, PATTERN, PATTERN, st.sampled_from([0.5, 1.0, 1.5]))
def test_each_stage_costs_what_the_reference_s_does(low, mid, high, alpha):
    reference = stages_from_notation(PAPER_NOTATION, alpha)
    stages = stages_of_equal_cost(f"{low}+{mid}+{high}", reference)
    assert [s.sharing for s in stages] == [low, mid, high]
    wanted, spent = stage_macs(reference), stage_macs(stages)
    for number, stage in enumerate(stages):
        assert stage.layers == reference[number].layers
        around = []
        for width in (stage.width - 1, stage.width + 1):
            other = budget.StageSpec(stage.sharing, stage.layers, width)
            changed = (*stages[:number], other, *stages[number + 1 :])
            around.append(abs(stage_macs(changed)[number] - spent[number]))
        # The steps of a pattern differ: a channel goes to one group.
        assert abs(spent[number] - wanted[number]) <= 0.75 * max(around)


def test_limits_choose_among_widths_or_are_refused():
    reference = stages_from_notation(PAPER_NOTATION, 0.5)
    free = stages_of_equal_cost("none+dense+none", reference)
    limits = {"macs": (41.5e6, 42.5e6), "parameters": (1.36e6, 1.40e6)}
    held = stages_of_equal_cost("none+dense+none", reference, **limits)
    few = closed_form_counts(free, 224, "imagenet").parameters
    enough = closed_form_counts(held, 224, "imagenet").parameters
    assert few < 1.36e6 <= enough
    with pytest.raises(ValueError, match="`macs` and `parameters` must be"):
        stages_of_equal_cost("none+dense+none", reference, macs=(0, 1e6))
