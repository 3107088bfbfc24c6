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
    return common.tabulate(parse_args(), run, print_columns, "detection")


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = common.make_parser(__doc__, "detection")
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
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    return parser.parse_args()


def print_columns(rows: common.Rows) -> None:
    """Prints a column a network."""
    for name in rows[0]:
        print(f"{name:<16}" + "".join(f"{row[name]!s:>18}" for row in rows))


def run(args: argparse.Namespace) -> common.Rows:
    """Trains what is not trained yet; returns a row a backbone."""
    import keras

    from keras_muffnet.complexity import count_complexity
    from keras_muffnet.training import open_detection_feed

    recipe = load_recipe("ssd300_fast", DetectionRecipe)
    epochs = args.epochs or recipe.epochs
    recipe = dataclasses.replace(
        recipe,
        data=args.data,
        epochs=epochs,
        warm_up_epochs=epochs / 10,
        on_bad=args.on_bad,
        seed=args.seed,
    )
    rows = []
    models = []
    for backbone, alpha in BACKBONES.items():
        output = args.runs / backbone
        result = common.train_or_resume(
            dataclasses.replace(recipe, backbone=backbone, alpha=alpha),
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
    images, _ = open_detection_feed(recipe).evaluation()[0]
    for row, latencies in zip(rows, measure(models, images), strict=True):
        row.update(latencies)
    return rows


def measure(models: list[Any], images: np.ndarray) -> list[dict[str, float]]:
    """Returns milliseconds for an image, of float32 and int8, of each model.

    Args:
        models: trained detectors.
        images: such as they were trained on, from which the int8 files have
            their ranges. Noise may be so far from them that no range holds
            what a network makes of it.
    """
    from keras_muffnet.detection import two_outputs
    from keras_muffnet.evaluation import load_detector
    from keras_muffnet.export import export_litert
    from keras_muffnet.quantization import quantize_aware

    detectors = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, model in enumerate(models):
            quantized = quantize_aware(
                two_outputs(model), images, engine="keras"
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
