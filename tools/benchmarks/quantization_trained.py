r"""Compares ways of post-training quantization on networks trained in earnest.

    python -m tools.benchmarks.quantization_trained \
        --cifar10 cifar10/ --tiny-imagenet tiny_imagenet/ \
        --photos imagenet_samples.tar.xz --limit 1000 \
        --output results/quantization_trained.csv

The networks: MuffNet 0.5 with each of its published weights, on the test or
validation images of their data, and EfficientNet-Lite0 with ImageNet weights
(see `efficientnet_lite.py`), on photos, one of each of 800 classes. All are
calibrated on 200 images: of the training split, and photos of the other 200
classes. The ways: all that `quantize_post_training` does by default, without
the corrected biases, with other range estimators, and TensorFlow's converter
alone. All networks end in logits, and so do all files. "ms" is processor time
of one image on one thread, the median of 60 interleaved runs.

Interrupted, the same command resumes with the next network.
"""

import argparse
import csv
import functools
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from tools.benchmarks.quantization import convert_with_converter
from tools.benchmarks.quantization import count_requantizations

CALIBRATION = 200
WAYS: dict[str, dict[str, Any] | None] = {
    "default": {},
    "no bias correction": {"bias_correction": False},
    "percentile": {"range_estimator": "percentile"},
    "min-max": {"bias_correction": False, "range_estimator": "min-max"},
    "converter": None,
}


def main() -> None:
    """Measures each network and writes a row for each way."""
    from keras_muffnet._files import write_csv

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cifar10", help="folder with train/ and test/")
    parser.add_argument("--tiny-imagenet", help="folder with train/ and val/")
    parser.add_argument("--photos", type=pathlib.Path, help="archive of photos")
    parser.add_argument("--limit", type=int, help="images to evaluate on")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.output.exists():
        with args.output.open(newline="") as file:
            rows += csv.DictReader(file)
    cifar10 = functools.partial(load_muffnet, "cifar10")
    tiny = functools.partial(load_muffnet, "tiny_imagenet")
    for name, load, source in (
        ("MuffNet 0.5, CIFAR-10 (JPEG)", cifar10, args.cifar10),
        ("MuffNet 0.5, Tiny ImageNet", tiny, args.tiny_imagenet),
        ("EfficientNet-Lite0, photos", load_lite, args.photos),
    ):
        if source and name not in {row["model"] for row in rows}:
            model, some, images, labels = load(source)
            rows += measure(
                name, model, some, *spread(images, labels, args.limit)
            )
            write_csv(args.output, rows, list(rows[0]))


def spread(images: Any, labels: Any, limit: int | None) -> Any:
    """At most as many images as asked for, of all classes."""
    count = min(limit or len(images), len(images))
    chosen = np.linspace(0, len(images) - 1, count).astype(int)
    return images[chosen], labels[chosen]


def load_muffnet(weights: str, folder: str) -> Any:
    """The network, images to calibrate with, and those to measure on."""
    from keras_muffnet import MuffNet
    from keras_muffnet import data
    from keras_muffnet import published_weights

    entry = published_weights()[weights]
    model = MuffNet(
        alpha=0.5,
        classes=len(entry.class_names),
        classifier_activation=None,
        weights=weights,
    )
    size = (entry.size, entry.size)
    train = data.load_images(folder, "train", size, limit=CALIBRATION)
    test = data.load_images(folder, "test", size)
    return model, train.images, test.images, test.labels


def load_lite(archive: pathlib.Path) -> Any:
    """The same for EfficientNet-Lite0."""
    from tools.benchmarks import efficientnet_lite

    model = efficientnet_lite.efficientnet_lite0()
    efficientnet_lite.load_weights(model)
    images, labels = efficientnet_lite.load_photos(archive)
    numbers = np.arange(len(images))
    some = numbers % (len(images) // CALIBRATION) == 0
    return model, images[some], images[~some], labels[~some]


def measure(
    name: str, model: Any, some: Any, images: Any, labels: Any
) -> list[dict[str, Any]]:
    """Writes a file in each way and runs all images through it."""
    from keras_muffnet import preprocess_input
    from keras_muffnet import quantization
    from keras_muffnet.export import export_litert
    from keras_muffnet.litert import LiteRTModel
    from keras_muffnet.litert.model import median_latencies

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "float.tflite")
        files = {"float": export_litert(model, path)}
        for way, options in WAYS.items():
            files[way] = pathlib.Path(folder, f"{way}.tflite")
            if options is None:
                convert_with_converter(
                    model, preprocess_input(some), files[way]
                )
            else:
                quantization.quantize_post_training(
                    model, preprocess_input(some), files[way], **options
                )
        opened = {way: LiteRTModel(file) for way, file in files.items()}
        latencies = median_latencies(
            [*opened.values()], clock=time.process_time
        )
        answers = {
            way: np.concatenate(
                [
                    file.predict(preprocess_input(images[k : k + 100]))
                    for k in range(0, len(images), 100)
                ]
            )
            for way, file in opened.items()
        }
        rows = []
        for (way, answer), latency in zip(
            answers.items(), latencies, strict=True
        ):
            wanted = answers["float"]
            rows.append(
                {
                    "model": name,
                    "way": way,
                    "images": len(images),
                    "accuracy": round(share(answer, labels), 4),
                    "agreement": round(share(answer, wanted.argmax(-1)), 4),
                    "sqnr": round(decibels(wanted, answer), 2),
                    "requantizations": count_requantizations(files[way]),
                    "ms": round(latency, 3),
                }
            )
            print(*rows[-1].values(), sep=" | ", flush=True)
        return rows


def share(answer: np.ndarray, classes: np.ndarray) -> float:
    """Share of answers whose top class is the one wanted."""
    return float((answer.argmax(axis=-1) == classes).mean())


def decibels(wanted: np.ndarray, given: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio of logits."""
    noise = float(np.square(wanted - given).sum())
    if not noise:
        return float("inf")
    return float(10 * np.log10(np.square(wanted).sum() / noise))


if __name__ == "__main__":
    main()
