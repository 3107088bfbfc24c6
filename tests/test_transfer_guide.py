"""Keras's guide to transfer learning works with MuffNet."""

import pytest

from tests import transfer_guide

FRESH = """
import sys, keras, numpy as np
folder = sys.argv[1]
try:
    keras.saving.load_model(folder + "/guide.keras")
except TypeError as error:
    print("without:", error)
import keras_muffnet
from tests.transfer_guide import IMAGES
model = keras.saving.load_model(folder + "/guide.keras")
scores = model.predict(IMAGES, verbose=0)
expected = np.load(folder + "/expected.npy")
np.testing.assert_allclose(scores, expected, atol=1e-4)
print("loaded")
"""


def test_the_guide_runs(run_forked, tmp_path):
    transfer_guide.main(tmp_path)
    printed = run_forked("-c", FRESH, tmp_path)
    without, loaded = printed.strip().rsplit("\n", 1)
    assert loaded == "loaded"
    # Keras words the error, which names the module whose import helps.
    assert "'ChannelSlice'" in without and "keras_muffnet" in without


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_guide_runs_on_other_backends(run_python, tmp_path, backend):
    printed = run_python(
        *("-m", "tests.transfer_guide", tmp_path), KERAS_BACKEND=backend
    )
    assert "guide done" in printed
