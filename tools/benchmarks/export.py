r"""Measures exported SavedModels, folded and with their layers as they are.

    python tools/benchmarks/export.py \
        --output results/export_folding_MACHINE.csv

For MuffNet and two peers, at 224x224 and 1,000 classes with random weights:
the time of a batch in a TensorFlow session, as TF Serving runs it, by the clock
and by the processor; the rounds of both exports are interleaved, and medians
are taken. `difference` is the largest one of an answer, as a share of the
largest answer, before the softmax. Three to five minutes on two cores.
"""

import argparse
import functools
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_muffnet._files import write_csv

NETWORKS = (
    ("MuffNet", 0.5),
    ("MuffNet", 1.0),
    ("MuffNet", 1.5),
    ("ShuffleNetV2", 1.0),
    ("MobileNetV2", 1.0),
)
# Batch size: rounds.
ROUNDS = {1: 40, 32: 9}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    rows: list[dict[str, Any]] = []
    for name, alpha in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, alpha, pathlib.Path(folder))
        print(rows[-1], flush=True)
    write_csv(args.output, rows, list(rows[0]))


def measure(
    name: str, alpha: float, folder: pathlib.Path
) -> list[dict[str, Any]]:
    """Exports a network both ways; a row for each batch size."""
    import keras

    from keras_muffnet import MuffNet
    from keras_muffnet import baselines
    from keras_muffnet.export import export_saved_model

    keras.utils.set_random_seed(0)
    build = MuffNet if name == "MuffNet" else getattr(baselines, name)
    model = build(alpha=alpha, classifier_activation=None)
    give_statistics(model)
    runs = {}
    for kind, fold in (("layers", False), ("folded", True)):
        path = export_saved_model(model, folder / kind, fold=fold)
        runs[kind] = load(path)
    keras.backend.clear_session()
    rows = []
    for batch, rounds in ROUNDS.items():
        rng = np.random.default_rng(0)
        shape = (batch, *model.input_shape[1:])
        images = rng.normal(0, 0.5, shape).astype("float32")
        answers = [run(images) for run in runs.values()]
        wall, processor = interleave(
            [functools.partial(run, images) for run in runs.values()], rounds
        )
        rows.append(
            {
                "network": name,
                "alpha": alpha,
                "batch": batch,
                "layers_ms": round(wall[0], 2),
                "folded_ms": round(wall[1], 2),
                "ratio": round(wall[0] / wall[1], 2),
                "layers_processor_ms": round(processor[0], 2),
                "folded_processor_ms": round(processor[1], 2),
                "processor_ratio": round(processor[0] / processor[1], 2),
                "difference": f"{difference(*answers):.1e}",
            }
        )
    return rows


def give_statistics(model: Any) -> None:
    """Gives each normalization other numbers than those it starts with."""
    import keras

    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.gamma.assign(rng.uniform(0.5, 1.5, shape))
            layer.beta.assign(rng.normal(0, 0.1, shape))
            layer.moving_mean.assign(rng.normal(0, 0.1, shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, shape))


def load(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Loads a version as the model server does."""
    from keras_muffnet.model_server.loader import load as load_version

    servable = load_version(path, "m", 1)
    signature = servable.signature("serving_default")
    return lambda images: servable.run(signature, {"images": images})[
        "predictions"
    ]


def interleave(
    calls: list[Callable[[], Any]], rounds: int
) -> tuple[list[float], list[float]]:
    """Medians of each call's time in ms, by the clock and the processor."""
    wall: list[list[float]] = [[] for _ in calls]
    processor: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for number, call in enumerate(calls):
            start, used = time.perf_counter(), time.process_time()
            call()
            wall[number].append(1000 * (time.perf_counter() - start))
            processor[number].append(1000 * (time.process_time() - used))
    return (
        [statistics.median(times) for times in wall],
        [statistics.median(times) for times in processor],
    )


def difference(expected: np.ndarray, got: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
