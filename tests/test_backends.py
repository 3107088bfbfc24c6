"""The core on each Keras backend, without TensorFlow on the other two."""

import numpy as np
import pytest

ROUND_TRIP = """
import sys
backend, data_format, size = sys.argv[1:]
if backend != "tensorflow":
    sys.modules["tensorflow"] = None  # makes any import of it fail
import keras, numpy as np, tempfile, os
import keras_muffnet
from keras_muffnet import MuffNet, StageSpec, count_complexity, preprocess_input
from keras_muffnet import stages_from_notation
from keras_muffnet.presets import closed_form_counts
assert keras.backend.backend() == backend
keras.config.set_image_data_format(data_format)
shape = (32, 32, 3) if data_format == "channels_last" else (3, 32, 32)
keras.utils.set_random_seed(0)
stages = stages_from_notation("average+geometric+none", alpha=0.5)
if size == "small":
    stages = [StageSpec(stage.sharing, 2, 6) for stage in stages]
model = MuffNet(input_shape=shape, classes=5, stages=stages)
pixels = np.random.default_rng(0).integers(0, 256, (8, *shape))
images = preprocess_input(pixels.astype("uint8"))
model.compile("sgd", "sparse_categorical_crossentropy")
before = [np.array(w) for w in model.get_weights()]
loss = model.fit(images, np.arange(8) % 5, batch_size=4, verbose=0)
assert np.isfinite(loss.history["loss"]).all()
moved = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights())]
assert all(moved), [w.path for w, m in zip(model.weights, moved) if not m]
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "m.keras")
    model.save(path)
    loaded = keras.saving.load_model(path)
first, second = (m.predict(images, verbose=0) for m in (model, loaded))
np.testing.assert_array_equal(first, second)
counted = count_complexity(model)
# Every backend counts the same network.
formula = closed_form_counts(stages, 32, "cifar", classes=5)
assert (counted.parameters, counted.macs) == formula
print("done", first.shape)
if backend != "tensorflow":
    assert not any(name.startswith("tensorflow.") for name in sys.modules)
"""

COMBINATIONS = [
    ("tensorflow", "channels_last"),
    ("jax", "channels_last"),
    ("jax", "channels_first"),
    ("torch", "channels_last"),
    ("torch", "channels_first"),
    # TensorFlow has no channels-first convolutions on the CPU.
]


@pytest.mark.parametrize(("backend", "data_format"), COMBINATIONS)
def test_builds_trains_saves_and_reloads(run_forked, backend, data_format):
    printed = run_forked(
        "-c", ROUND_TRIP, backend, data_format, "small", KERAS_BACKEND=backend
    )
    assert printed.splitlines()[-1] == "done (8, 5)"


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "data_format"), COMBINATIONS)
def test_the_paper_s_network_does_too(run_forked, backend, data_format):
    printed = run_forked(
        "-c", ROUND_TRIP, backend, data_format, "full", KERAS_BACKEND=backend
    )
    assert printed.splitlines()[-1] == "done (8, 5)"


SAME_WEIGHTS = """
import sys, keras, numpy as np
from keras_muffnet import MuffNet, StageSpec
first, path = sys.argv[1] == "save", sys.argv[2]
stages = [StageSpec("geometric", 3, 6), StageSpec("none", 2, 6)]
model = MuffNet(input_shape=(32, 32, 3), stages=stages, classes=5)
if first:
    model.save_weights(path + ".weights.h5")
else:
    model.load_weights(path + ".weights.h5")
images = np.random.default_rng(0).normal(size=(4, 32, 32, 3))
np.save(path + sys.argv[1], model.predict(images.astype("float32"), verbose=0))
"""


def test_weights_move_between_backends(run_forked, tmp_path):
    path = str(tmp_path / "model")
    run_forked("-c", SAME_WEIGHTS, "save", path, KERAS_BACKEND="tensorflow")
    run_forked("-c", SAME_WEIGHTS, "jax", path, KERAS_BACKEND="jax")
    run_forked("-c", SAME_WEIGHTS, "torch", path, KERAS_BACKEND="torch")
    expected = np.load(path + "save.npy")
    for backend in ("jax", "torch"):
        np.testing.assert_allclose(
            np.load(f"{path}{backend}.npy"), expected, rtol=1e-4, atol=1e-6
        )


def test_channels_first_builds_on_tensorflow(run_forked):
    code = (
        "import keras; keras.config.set_image_data_format('channels_first');"
        "from keras_muffnet import MuffNet;"
        "m = MuffNet(alpha=0.5, include_top=False);"
        "print(m.input_shape, m.get_layer('stage1_output').output.shape)"
    )
    printed = run_forked("-c", code, KERAS_BACKEND="tensorflow")
    assert printed.split("\n")[0] == (
        "(None, 3, None, None) (None, 40, None, None)"
    )


DETECTION = """
import sys
backend, data_format = sys.argv[1:]
sys.modules["tensorflow"] = None
import keras, numpy as np
from keras_muffnet import MuffNet, StageSpec
from keras_muffnet.detection import SSD, SSDLoss, detector
from keras_muffnet.detection.ssd import RATIOS, SCALES
keras.config.set_image_data_format(data_format)
shape = (64, 64, 3) if data_format == "channels_last" else (3, 64, 64)
keras.utils.set_random_seed(0)
stages = [StageSpec("geometric", 2, 6), *[StageSpec("none", 1, 6)] * 2]
backbone = MuffNet(input_shape=shape, stages=stages, include_top=False)
model = SSD(backbone, 2, None, None, (8,), SCALES[:4], RATIOS[:3])
model.compile("sgd", SSDLoss(model.layers[-1].anchors))
images = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
targets = np.full((4, 3, 5), [1, 10, 10, 40, 40], "float32")
targets[:, 1:] = [-1, 0, 0, 0, 0]
loss = model.fit(images, targets, batch_size=2, epochs=2, verbose=0)
first, second = loss.history["loss"]
assert np.isfinite(second) and second < first, loss.history
detect = detector(model, least_score=0.0)
if backend == "jax":  # else each operation would be compiled alone
    import jax
    detect = jax.jit(detect)
found = detect(images)
boxes = keras.ops.convert_to_numpy(found.boxes)
assert boxes.shape == (4, 100, 4) and boxes.max() <= 64 and boxes.min() >= 0
print("done", int(found.count[0]) > 0)
"""


@pytest.mark.parametrize(
    ("backend", "data_format"),
    [c for c in COMBINATIONS if c[0] != "tensorflow"],
)
def test_detectors_train_and_find(run_forked, backend, data_format):
    printed = run_forked(
        "-c", DETECTION, backend, data_format, KERAS_BACKEND=backend
    )
    assert printed == "done True\n"


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_detection_is_the_same_on_other_backends(run_forked, backend):
    chosen = "matching or loss or suppression or iou or box_code"
    printed = run_forked(
        *("-m", "pytest", "-q", "tests/test_detection.py", "-k", chosen),
        KERAS_BACKEND=backend,
    )
    assert " passed" in printed
