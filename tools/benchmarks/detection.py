r"""Compares SSD on four backbones: size, work, average precision, latency.

    python -m tools.benchmarks.detection --data VOC/ --epochs 12 \
        --output results/detection.csv

MuffNet, ShuffleNetV2, MobileNet and MobileNetV2, of the narrowest rows of table
5, are trained by the recipe `ssd300_fast` from random weights, with the same
seed and order of the images. Then all are LiteRT files, float32 and
int8, with suppression inside, and take turns in finding objects on one image:
the median time counts, on all cores. Interrupted, the same command resumes. On
two CPU cores an epoch of 292 images takes some 15 seconds for each network.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np

from keras_muffnet._files import write_csv
from keras_muffnet.cli.common import run as report_failures
from keras_muffnet.training import DetectionRecipe
from keras_muffnet.training import load_recipe
from tools.benchmarks import common

# With the width multipliers of the first rows of table 5.
BACKBONES = {
    "muffnet": 0.5,
    "ShuffleNetV2": 0.5,
    "MobileNet": 0.25,
    "MobileNetV2": 0.35,
}
ROUNDS = 50
WARM_UP = 5


def main() -> int:
    """Runs the command; returns its exit status."""
    args = parse_args()
    return report_failures(lambda: benchmark(args), "benchmarks/detection")


def benchmark(args: argparse.Namespace) -> None:
    """Measures, writes and prints."""
    rows = run(args)
    write_csv(args.output, rows, list(rows[0]))
    for name in rows[0]:
        print(f"{name:<16}" + "".join(f"{row[name]!s:>18}" for row in rows))


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        required=True,
        help="images: see `keras_muffnet.data.open_detection_source`",
    )
    parser.add_argument(
        "--on-bad",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with bad images and objects (default: raise)",
    )
    parser.add_argument("--epochs", type=int, help="(default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--runs",
        type=pathlib.Path,
        default=pathlib.Path("runs/detection"),
        help="folder of the runs (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("results/detection.csv"),
        help="(default: %(default)s)",
    )
    return parser.parse_args()


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains what is not trained yet; returns a row a backbone."""
    import keras

    from keras_muffnet.complexity import count_complexity

    recipe = load_recipe("ssd300_fast", DetectionRecipe)
    epochs = args.epochs or recipe.epochs
    rows = []
    models = []
    for backbone, alpha in BACKBONES.items():
        output = args.runs / backbone
        result = common.train_or_resume(
            dataclasses.replace(
                recipe,
                data=args.data,
                backbone=backbone,
                alpha=alpha,
                epochs=epochs,
                warm_up_epochs=epochs / 10,
                on_bad=args.on_bad,
                seed=args.seed,
            ),
            output,
        )
        model = keras.saving.load_model(output / "last.keras", compile=False)
        counted = count_complexity(model)
        models.append(model)
        rows.append(
            {
                "backbone": backbone,
                "alpha": alpha,
                "parameters": counted.parameters,
                "macs": counted.macs,
                "epochs": epochs,
                "seed": args.seed,
                "ap50": round(result["last"]["ap50"], 4),
            }
        )
    for row, latencies in zip(rows, measure(models), strict=True):
        row.update(latencies)
    return rows


def measure(models: list[Any]) -> list[dict[str, float]]:
    """Returns milliseconds for an image, of float32 and int8, of each model."""
    from keras_muffnet.detection import two_outputs
    from keras_muffnet.evaluation import load_detector
    from keras_muffnet.export import export_litert
    from keras_muffnet.quantization import quantize_aware

    detectors = {}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number, model in enumerate(models):
            images = rng.uniform(-1, 1, (4, *model.input_shape[1:]))
            quantized = quantize_aware(
                two_outputs(model), images.astype(np.float32), engine="keras"
            )
            for kind, network in (("float", None), ("int8", quantized)):
                path = pathlib.Path(folder) / f"{number}_{kind}.tflite"
                export_litert(model, path, quantized=network)
                detectors[number, kind] = load_detector(path)
    times: dict[Any, list[float]] = {key: [] for key in detectors}
    for _ in range(WARM_UP + ROUNDS):
        for key, detector in detectors.items():
            pixels = np.zeros((1, *detector.size, 3), np.float32)
            start = time.perf_counter()
            detector.detect(pixels)
            times[key].append(time.perf_counter() - start)
    return [
        {
            f"{kind}_ms": round(
                1000 * statistics.median(times[number, kind][WARM_UP:]), 2
            )
            for kind in ("float", "int8")
        }
        for number in range(len(models))
    ]


if __name__ == "__main__":
    sys.exit(main())
