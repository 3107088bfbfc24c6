import numpy as np
import pytest

from keras_muffnet import plots
from keras_muffnet import stages_from_notation

image = pytest.importorskip("matplotlib.image")


def test_sharing_matrix_shades_the_groups_and_nothing_else(tmp_path):
    path = tmp_path / "matrix.png"
    stages = stages_from_notation("average+geometric+none", alpha=0.5)
    plots.plot_sharing_matrix(stages, path)
    picture = image.imread(path)[..., :3]
    blue = (picture[..., 2] - picture[..., 0] > 0.1).mean()
    # 10 + 36 + 4 groups of 16 x 16 cells, on most of the picture.
    assert 0.6 * 50 / 256 < blue < 50 / 256


def test_curves_and_predictions_are_pictures(tmp_path):
    values = [0.5, 0.7, 0.9]
    history = {
        name: values
        for name in ("loss", "accuracy", "val_loss", "val_accuracy")
    }
    plots.plot_curves(history, tmp_path / "curves.png")
    rng = np.random.default_rng(0)
    plots.plot_predictions(
        rng.integers(0, 256, (5, 8, 8, 3)).astype("uint8"),
        np.array([0, 1, 2, 0, 1]),
        rng.dirichlet([1, 1, 1], 5),
        ["a", "b", "c"],
        tmp_path / "predictions.png",
        columns=3,
    )
    for name in ("curves.png", "predictions.png"):
        picture = image.imread(tmp_path / name)
        assert picture.shape[0] > 200 and picture.std() > 0.05


@pytest.mark.parametrize(
    "missing", [("val_loss", "val_accuracy"), ("accuracy",), ("val_loss",)]
)
def test_curves_of_what_the_history_has(missing, tmp_path):
    history = {
        name: [0.5, 0.7]
        for name in ("loss", "accuracy", "val_loss", "val_accuracy")
        if name not in missing
    }
    plots.plot_curves(history, tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    assert drawn.count("<!-- training -->") == 2 - ("accuracy" in missing)
    held_out = sum(name.startswith("val_") for name in history)
    assert drawn.count("<!-- held out -->") == held_out


def test_a_history_without_the_score_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`history` must have 'accuracy' or"):
        plots.plot_curves({"loss": [1.0], "top": [1.0]}, tmp_path / "c.png")


def test_sheets_of_one_image_and_of_none(tmp_path):
    path = tmp_path / "sheet.png"
    one = np.zeros((1, 8, 8, 3), "uint8")
    scores = np.array([[0.9, 0.1]])
    names = ["a", "b"]
    plots.plot_predictions(one, [0], scores, names, path, columns=1)
    assert image.imread(path).shape[1] < 200
    with pytest.raises(ValueError, match="`images` must be one image or more"):
        plots.plot_predictions(one[:0], [], scores[:0], names, path)
    with pytest.raises(ValueError, match="`images` must be one image or more"):
        plots.plot_boxes([], [], [], None, names, path)
    with pytest.raises(ValueError, match="`columns` must be a positive"):
        plots.plot_predictions(one, [0], scores, names, path, columns=0)


def test_names_with_dollars_are_text(tmp_path):
    names = ["US$5", "US$10_$"]
    images = np.zeros((2, 8, 8, 3), np.uint8)
    scores = np.eye(2)
    path = tmp_path / "p.png"
    plots.plot_predictions(images, [0, 1], scores, names, path)
    plots.plot_confusion(np.eye(2, dtype=int), names, path)
    assert path.stat().st_size > 0


def test_pictures_do_not_touch_the_caller_s_matplotlib(run_python, tmp_path):
    code = (
        "import sys; from keras_muffnet import plots;"
        f"plots.plot_curves({{'loss': [1], 'accuracy': [1], 'val_loss': [1],"
        f"'val_accuracy': [1]}}, {str(tmp_path / 'c.svg')!r});"
        "print('matplotlib.pyplot' in sys.modules, 'keras' in sys.modules)"
    )
    assert run_python("-c", code) == "False False\n"
    assert "<svg" in (tmp_path / "c.svg").read_text()


def test_layers_are_bars_of_which_the_worst_are_red(tmp_path):
    heights, shares = [], []
    for count, worst in ((60, ["layer 7"]), (60, []), (200, ["layer 7"])):
        names = [f"layer {k}" for k in range(count)]
        # One layer is exact and one was not found.
        sqnr = [30.0] * (count - 2) + [np.inf, np.nan]
        path = tmp_path / f"{count}{worst}.png"
        plots.plot_layer_noise(names, sqnr, sqnr, worst, path)
        picture = image.imread(path)[..., :3]
        red = (picture[..., 0] > 0.6) & (picture[..., 2] < 0.2)
        shares.append(red.mean() * count)
        heights.append(len(picture))
        blue = (picture[..., 2] - picture[..., 0] > 0.3).mean()
        assert 0.2 < blue < 0.6
    # About as much of the picture as half of a bar's row.
    assert 0.2 < shares[0] < 0.6 and shares[1] == 0 < shares[2]
    # A row is high enough for its name.
    assert (heights[2] - heights[0]) / 140 > 15


@pytest.mark.parametrize("scored", [True, False])
def test_boxes_are_drawn_in_the_colors_of_their_classes(tmp_path, scored):
    images = [np.full(shape, 255, "uint8") for shape in [(30, 40, 3)] * 4]
    images.append(np.full((60, 20, 3), 255, "uint8"))
    boxes = [np.array([[4, 5, 30, 25], [0, 0, 0, 0]], float)] * 3
    boxes += [np.zeros((0, 4)), np.array([[2, 2, 18, 50]])]
    # A row of padding is no object.
    classes = [np.array([0, -1.0])] * 3 + [np.zeros(0), np.array([2])]
    scores = [np.array([0.5, 0])] * 3 + [np.zeros(0), np.array([0.9])]
    path = tmp_path / "boxes.png"
    names = ["a", "b", "c"]
    plots.plot_boxes(
        images, boxes, classes, scores if scored else None, names, path
    )
    picture = image.imread(path)[..., :3]
    reds, greens, blues = np.moveaxis(picture, -1, 0)
    blue = (blues > reds + 0.3) & (blues > greens + 0.2)  # class 0
    green = (greens > reds + 0.3) & (greens > blues + 0.2)  # class 2
    orange = (reds > greens + 0.3) & (greens > blues + 0.2)  # class 1
    assert blue.sum() > 3 * green.sum() / 2 > 0 and not orange.any()
    # One image alone is a sheet too.
    plots.plot_boxes(images[:1], boxes, classes, None, names, path)
    assert image.imread(path).shape[0] < picture.shape[0]
