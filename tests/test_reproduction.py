import csv
import dataclasses
import math
import pathlib
import runpy
import sys

import keras
import pytest
from scipy import ndimage

from keras_muffnet import SharingMatrix
from keras_muffnet import StageSpec
from keras_muffnet import stages_from_notation
from keras_muffnet.baselines import PEERS
from keras_muffnet.presets import closed_form_counts
from keras_muffnet.reproduction import accuracy
from keras_muffnet.reproduction import diagrams
from keras_muffnet.reproduction import figures
from keras_muffnet.reproduction import report
from keras_muffnet.reproduction import tables
from keras_muffnet.reproduction import theory
from keras_muffnet.reproduction.figures import Point
from keras_muffnet.reproduction.spectrum import constant_matrix
from keras_muffnet.training import load_recipe
from tests.conftest import ROOT

image = pytest.importorskip("matplotlib.image")


@pytest.fixture
def reproduce(monkeypatch, tmp_path):
    """Runs the command in this process and returns its exit status."""
    module = runpy.run_path(str(ROOT / "tools" / "reproduce.py"))

    def run(*args):
        output = ["--output", str(tmp_path), "--runs", str(tmp_path / "runs")]
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *args, *output])
        return module["main"]()

    return run


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_rows_of_the_paper_are_there():
    lengths = [len(tables.rows(number)) for number in tables.TITLES]
    assert lengths == [5, 5, 5, 10, 18, 22, 4]
    labels = {(r.table, r.label) for n in (5, 6) for r in tables.rows(n)}
    assert {(peer.table, peer.label) for peer in PEERS} < labels
    with pytest.raises(ValueError, match="`table` must be one of"):
        tables.rows(8)


@pytest.mark.parametrize(
    "row",
    [row for number in range(1, 5) for row in tables.rows(number)],
    ids=lambda row: f"{row.table}-{row.label}",
)
def test_patterns_cost_what_tables_1_to_4_print(row):
    assert "+".join(stage.sharing for stage in row.stages) == row.label
    counts = closed_form_counts(row.stages, 224, "imagenet")
    assert abs(counts.parameters - 1.38e6) <= 0.02e6
    assert abs(counts.macs - 42e6) <= 0.5e6
    # A channel of the low-level stage is up to 5% of it.
    assert abs(tables.stage_difference(row.stages)) <= 0.025


@pytest.mark.parametrize(
    "label", ["none+none+dense", "none+dense+none", "linear+average+none"]
)
def test_built_networks_agree_with_the_formulas(label):
    (row,) = ({r.label: r for n in (2, 3, 4) for r in tables.rows(n)}[label],)
    assert tables.count(row).problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("number", tables.TITLES)
def test_every_row_is_within_its_tolerance(number):
    for row in tables.rows(number):
        assert tables.count(row).problems == (), row.label


def test_command_writes_what_it_is_asked_for(
    reproduce, monkeypatch, capsys, tmp_path
):
    first = tables.rows(7)[:1]
    monkeypatch.setattr(tables, "rows", lambda number: first)
    cheap = ["--only", "section4", "--only", "figure4"]
    assert reproduce("--only", "table7", *cheap) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "figure4.png",
        "figure4.svg",
        "section4.csv",
        "table7.csv",
    ]
    (line,) = read(tmp_path / "table7.csv")
    assert (line["row"], line["within"]) == ("MuffNet", "yes")
    assert line["params printed (M)"] == "3.4"
    assert line["params ours"] == "3412632"
    assert line["FLOPs difference (M)"] == "-0.180"
    # Without the classifier, all grows with the area.
    assert line["backbone params"] == str(3_412_632 - 1025 * 1000)
    growth = (512 / 224) ** 2
    expected = (int(line["FLOPs ours"]) - 1024 * 1000) * growth
    assert int(line["backbone MACs at 512"]) == pytest.approx(expected)
    # Nothing was trained.
    assert not any("measured" in column for column in line)
    printed = capsys.readouterr().out
    assert "3,412,632" in printed and "7866" in printed
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert reproduce(*cheap) == 0
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_a_count_out_of_tolerance_fails_the_command(
    reproduce, monkeypatch, capsys, tmp_path
):
    row = tables.rows(5)[0]
    for change, word in (
        ({"printed_macs": 40.0}, "FLOPs 40,696,448, printed 40 M"),
        ({"printed_parameters": 0.5}, "parameters 365,891, printed 0.5 M"),
        ({"stages": stages_from_notation("none+none+none", 0.5)}, "closed"),
    ):
        wrong = row._replace(**change)
        monkeypatch.setattr(tables, "rows", lambda _, wrong=wrong: (wrong,))
        assert reproduce("--only", "table5") == 1
        (line,) = read(tmp_path / "table5.csv")
        assert line["within"] == "NO" and word in line["note"]
        assert "out of its tolerance" in capsys.readouterr().out


def test_list_names_all_rows(reproduce, capsys):
    assert reproduce("--list") == 0
    printed = capsys.readouterr().out
    for word in ("table1", "dense+none+none", "IGCV3-D", "figure6", "theory"):
        assert word in printed


def small(input_shape, classes, include_top=True, classifier_activation=None):
    """A network that trains in no time."""
    x = inputs = keras.Input(input_shape)
    x = keras.layers.AveragePooling2D(4)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(
        classes, activation=classifier_activation, name="predictions"
    )(x)
    return keras.Model(inputs, x, name="small")


def test_accuracy_run_resumes_and_reports_mean_and_spread(
    reproduce, monkeypatch, tmp_path, capsys
):
    pytest.importorskip("sklearn")
    all_rows = tables.rows
    real = all_rows(5)
    rows = tuple(
        row._replace(build=small, stages=None, printed_macs=0.01)
        for row in (real[0], real[2])
    )
    monkeypatch.setattr(
        tables, "rows", lambda n: rows if n == 5 else all_rows(n)
    )
    fit, trained = accuracy.fit, []

    def counted(model, recipe, feed, folder):
        if len(trained) == stop:
            raise KeyboardInterrupt
        trained.append((folder.parts[-5], recipe.seed))
        return fit(model, recipe, feed, folder, verbose=0)

    monkeypatch.setattr(accuracy, "fit", counted)
    command = ["--only", "table5", "--accuracy", "quick", "--seeds", "2"]
    command += ["--epochs", "2"]
    stop = 3
    assert reproduce(*command) == 130
    assert "resumes with what is missing" in capsys.readouterr().err
    assert len(read(tmp_path / "accuracy.csv")) == 3
    stop = None
    assert reproduce(*command) == 0
    assert trained == [
        ("MuffNet_0.5", 0),
        ("MuffNet_0.5", 1),
        ("MobileNet_0.25", 0),
        ("MobileNet_0.25", 1),
    ]
    found = read(tmp_path / "accuracy.csv")
    values = [
        100 * float(f["accuracy"]) for f in found if f["row"] == "MuffNet_0.5"
    ]
    lines = read(tmp_path / "table5.csv")
    column = "digits, measured (%), quick, 2 epochs"
    mean = sum(values) / 2
    spread = abs(values[0] - values[1]) / 2**0.5
    assert lines[0][column] == f"{mean:.2f} +- {spread:.2f} (2 seeds)"
    # The rows are compared, the better first.
    ranking = read(tmp_path / "ranking.csv")
    assert len(ranking) == 2
    assert float(ranking[0]["accuracy"]) >= float(ranking[1]["accuracy"])
    # The paper's value stands apart.
    assert lines[0]["CIFAR-10, paper (%)"] == "93.44"
    # What was trained stays in later tables, and in figure 6.
    assert reproduce("--only", "table5", "--only", "figure6") == 0
    assert read(tmp_path / "table5.csv")[0][column] == lines[0][column]
    wide = image.imread(tmp_path / "figure6.png").shape
    assert wide[1] > 2 * wide[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--row", "MuffNet_9"], "`--row` must name rows"),
        (["--data", "nowhere/"], "nowhere"),
    ],
)
def test_accuracy_errors_are_told_in_a_line(reproduce, args, words, capsys):
    assert reproduce("--only", "table5", "--accuracy", "quick", *args) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--only", "table5", "--accuracy", "ranking"], "is for tables 1 to 4"),
        (["--accuracy", "ranking"], "is for tables 1 to 4"),
        (["--only", "figure6", "--accuracy", "quick"], "`--only` must name"),
        (["--only", "table7", "--accuracy", "quick"], "`--only` must name"),
        (["--only", "table4", "--accuracy", "ranking"], "`data`"),
        (["--only", "table5", "--data", "photos/"], "--data needs --accuracy"),
        (["--only", "table5", "--row", "MuffNet_0.5"], "--row needs"),
    ],
)
def test_what_accuracy_asks_in_vain(reproduce, args, words, capsys, tmp_path):
    try:
        status = reproduce(*args)
    except SystemExit as refused:
        status = refused.code
    assert status in (1, 2)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "accuracy.csv").exists()


def test_full_accuracy_is_the_paper_s_recipe():
    name, ablation = accuracy.recipe_for("full", 3, "photos/", None)
    assert (name, ablation.learning_rate, ablation.data) == (
        "imagenet",
        0.4,
        "photos",
    )
    assert accuracy.recipe_for("full", 6, None, None)[1].learning_rate == 0.5
    assert accuracy.recipe_for("full", 5, None, 7)[1].epochs == 7
    with pytest.raises(ValueError, match="`mode` must be"):
        accuracy.recipe_for("none", 5, None, None)


@pytest.mark.parametrize(("mode", "last"), [("quick", 6), ("ranking", 4)])
def test_other_accuracy_is_one_recipe_for_its_tables(mode, last):
    for table in range(1, 7):
        if table > last:
            with pytest.raises(ValueError, match="is for tables 1 to 4"):
                accuracy.recipe_for(mode, table, None, 7)
            continue
        expected = dataclasses.replace(load_recipe(mode), epochs=7)
        assert accuracy.recipe_for(mode, table, None, 7) == (mode, expected)


def test_rows_of_another_process_stay(monkeypatch, tmp_path):
    path = tmp_path / "accuracy.csv"

    def measured(row, seed):
        return accuracy.Measurement(
            5, row.label, "x", "quick", 3, seed, 1, 1, 0.5
        )

    def train(row, recipe, name, folder):
        # Meanwhile another process trains the next seed.
        assert recipe.seed % 2 == 0
        accuracy.add(path, measured(row, recipe.seed + 1))
        # Even this one.
        accuracy.add(path, measured(row, recipe.seed))
        return measured(row, recipe.seed)

    monkeypatch.setattr(accuracy, "_train", train)
    rows = tables.rows(5)[:2]
    # A folder has one name, however it is written.
    found = accuracy.measure(rows, "quick", "x/", 3, 4, path, tmp_path)
    expected = [measured(row, seed) for row in rows for seed in range(4)]
    assert sorted(found) == sorted(expected)


def test_rows_have_the_recipe_s_stem(monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    built = []

    def fit(model, *_):
        built.append(model)
        return {"last": {"accuracy": 0.5}}

    monkeypatch.setattr(accuracy, "fit", fit)
    for name in ("ranking", "quick"):
        recipe = dataclasses.replace(load_recipe(name), data="digits")
        accuracy._train(tables.rows(5)[0], recipe, name, tmp_path)
    # The first stage: 16x16, and 32x32 with the stem "auto".
    sides = [m.get_layer("stage1_output").output.shape[1] for m in built]
    assert sides == [16, 32]


def test_theory_resumes_and_compares_equal_costs(monkeypatch, tmp_path):
    monkeypatch.setattr(theory, "FREQUENCIES", (1,))
    path = tmp_path / "theory.csv"
    first = theory.run(path, seeds=1, steps=200)
    assert [cell[:3] for cell in first] == [
        ("federated", 1, 0),
        ("plain", 1, 0),
    ]
    federated, plain = (cell.macs for cell in first)
    # 32 * 4 to and from the stage, and 1 * 3 + 2 * 2 + 3 * 1 blocks' groups.
    assert federated == 2 * 128 + 10 * 32**2
    assert abs(plain / federated - 1) <= 0.01
    # Something was learned: the sine's own size is 1.
    assert all(cell.error < 0.8 for cell in first)
    train, trained = theory.train, []

    def counted(*args):
        trained.append(args)
        return train(*args)

    monkeypatch.setattr(theory, "train", counted)
    second = theory.run(path, seeds=2, steps=200)
    assert [args[:3] for args in trained] == [
        ("federated", 1, 1),
        ("plain", 1, 1),
    ]
    assert set(first) < set(second) == set(theory.read(path))
    other = tmp_path / "other.csv"
    other.write_text("network,frequency\nplain,1\n")
    with pytest.raises(ValueError, match=r"other\.csv' must be a table of"):
        theory.run(other, seeds=1)
    (line,) = theory.summarize(second)
    errors = sorted(c.error for c in second if c.network == "plain")
    assert line["plain, median error"] == f"{sum(errors) / 2:.4f}"
    assert line["federated nearer"].endswith("of 2 seeds")
    # The same again, to the last digit.
    assert theory.train("plain", 1, 0, 200) in first
    figures.plot_theory(second, tmp_path / "theory.png")
    assert image.imread(tmp_path / "theory.png").std() > 0.05


STAGES = (
    StageSpec("dense", 3, 9),
    StageSpec([[2, 1], [0, 3]]),
    StageSpec("none", 1, 4),
)


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: diagrams.plot_network(STAGES, path),
        lambda path: diagrams.plot_network(STAGES[1:2], path, stem="cifar"),
        lambda path: diagrams.plot_inference(STAGES[1].matrix, path),
        lambda path: diagrams.plot_inference(
            SharingMatrix.from_pattern("geometric", 8, 56), path
        ),
        lambda path: figures.plot_spectrum(constant_matrix(2, 3), 3, 2, path),
        lambda path: figures.plot_spectrum([[5]], 1, 1, path),
        lambda path: figures.plot_accuracy(
            {"a": [Point("MuffNet_0.5", 42, 60.0), Point("X", 50, 50.0)]}, path
        ),
    ],
)
def test_figures_have_the_same_bytes_each_time(draw, tmp_path):
    for name in ("figure.png", "figure.svg"):
        draw(tmp_path / name)
        draw(tmp_path / f"again-{name}")
        first = (tmp_path / name).read_bytes()
        assert first == (tmp_path / f"again-{name}").read_bytes()
    assert image.imread(tmp_path / "figure.png").std() > 0.02
    assert b"<svg" in first and b"<dc:date>" not in first


def test_figure_6_ranks_by_more_than_chance(tmp_path):
    # Of 360 images, one is 0.28%; of 10,000 a difference of 2% counts.
    def point(row, mean, spread, images, seeds=3):
        found = ("", "", 1, seeds, images, mean / 100, spread / 100)
        error = accuracy.Summary(*found).error
        return Point(row, 41, mean, spread, 100 * error)

    digits = [point("MuffNet_0.5", 99.72, 0, 360)]
    digits += [point("MobileNet_0.25", 99.44, math.nan, 360, 1)]
    cifar = [point("MuffNet_0.5", 93.4, 0.2, 10_000)]
    cifar += [point("MobileNet_0.25", 91.4, 0.3, 10_000)]
    assert not figures.rank(digits)
    assert figures.rank(cifar)
    # With a larger spread over seeds they are the same.
    assert not figures.rank(
        [point(p.row, p.accuracy, 2, 10_000) for p in cifar]
    )
    limits = {}

    def kept(figure, path):
        for axes in figure.axes:
            limits[axes.get_title()] = axes.get_xlim(), axes.get_ylim()
            assert len(axes.containers) == (2 if axes.get_legend() else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figure", kept)
        figures.plot_accuracy({"digits": digits, "cifar": cifar}, "unused")
    for low, high in (limits["digits"][0], limits["cifar"][1]):
        assert high - low >= 10


def test_ranking_says_which_differences_are_larger_than_chance():
    def measured(row, seed, value, data="cifar10/"):
        return accuracy.Measurement(
            5, row, data, "cifar", 3, seed, 50_000, 10_000, value
        )

    found = [
        measured(row, seed, value)
        for row, values in {
            "MuffNet_0.5": (0.70, 0.72, 0.71),
            "MobileNet_0.25": (0.60, 0.61, 0.62),
            "ShuffleNetV2_0.5": (0.715, 0.725, 0.72),
            "ResNet20": (0.99,),  # a single seed ranks nothing
        }.items()
        for seed, value in enumerate(values)
    ]
    # Of other images, and alone.
    found += [measured("MuffNet_0.5", seed, 0.5, "svhn/") for seed in (0, 1)]
    lines = report.ranking_lines(found)
    assert [
        (line["row"], line.get("difference"), line.get("larger"))
        for line in lines
    ] == [
        ("ShuffleNetV2_0.5", "+1.00", "no"),
        ("MuffNet_0.5", None, None),
        ("MobileNet_0.25", "-10.00", "yes"),
    ]
    # In table 1, whose rows but one are not in table 4.
    found = [
        found[0]._replace(table=1, row=row, seed=seed)
        for row in ("none+none+none", "dense+none+none")
        for seed in (0, 1)
    ]
    assert [
        (line["table"], line["row"]) for line in report.ranking_lines(found)
    ] == [(1, "none+none+none"), (1, "dense+none+none")]
    # Of the deviations 0.5 and 1 points over three seeds, and 10,000 images.
    variance = (0.5**2 + 1) / 3 + (72 * 28 + 71 * 29) / 10_000
    bound = f"{2 * variance**0.5:.2f}"
    assert lines[0]["twice_error"] == bound
    assert lines[1]["deviation"] == "1.00"


def test_inference_shows_the_groups_that_each_step_adds(tmp_path):
    counts = []
    for rows in ([[3]], [[1, 1, 1], [0, 1, 1], [0, 0, 1]]):
        path = tmp_path / "inference.png"
        diagrams.plot_inference(SharingMatrix.from_rows(rows), path)
        picture = image.imread(path)[..., :3]
        _, count = ndimage.label(picture[..., 2] - picture[..., 0] > 0.5)
        counts.append(count)
    # Each group is new once, and a patch of its own color: one, and six.
    assert counts == [1, 6]


def test_markdown_leaves_out_what_is_empty_everywhere(tmp_path):
    path = tmp_path / "README.md"
    lines = [{"row": "a", "x": 1234, "y": ""}, {"row": "b", "x": 5, "y": ""}]
    report.write_markdown({"Table": lines}, "About.\n", path)
    assert path.read_text() == (
        "About.\n\n## Table\n\n| row | x |\n| --- | --- |\n| a | 1,234 |\n"
        "| b | 5 |\n"
    )


def test_committed_results_are_the_present_tables():
    folder = pathlib.Path(ROOT, "results", "paper")
    measured = accuracy.read(folder / "accuracy.csv")
    row = tables.rows(4)[3]
    (line,) = report.table_lines([(row, tables.count(row))], measured)
    kept = {k: str(v) for k, v in line.items()}
    assert kept in [
        {k: v for k, v in found.items() if k in kept}
        for found in read(folder / "table4.csv")
    ]
