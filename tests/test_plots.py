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


def test_pictures_do_not_touch_the_caller_s_matplotlib(run_python, tmp_path):
    code = (
        "import sys; from keras_muffnet import plots;"
        f"plots.plot_curves({{'loss': [1], 'accuracy': [1], 'val_loss': [1],"
        f"'val_accuracy': [1]}}, {str(tmp_path / 'c.svg')!r});"
        "print('matplotlib.pyplot' in sys.modules, 'keras' in sys.modules)"
    )
    assert run_python("-c", code) == "False False\n"
    assert "<svg" in (tmp_path / "c.svg").read_text()
