r"""Compares ways of post-training quantization on networks trained in earnest.

    python -m tools.benchmarks.quantization_trained \
        --cifar10 cifar10/ --photos imagenet_samples.tar.xz \
        --output results/quantization_trained.csv

The networks: MuffNet 0.5 with its published CIFAR-10 weights, on a folder of
CIFAR-10's images, and EfficientNet-Lite0 with ImageNet weights (see
`efficientnet_lite.py`), on 1,000 photos, one of each class. Both are calibrated
on 200 images: of the training split, and every fifth of the photos. The ways:
all that `quantize_post_training` does by default, without the corrected biases,
with the ranges of "min-max" too, and TensorFlow's converter alone.
"""

import argparse
import pathlib
import tempfile
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
    parser.add_argument("--photos", type=pathlib.Path, help="archive of photos")
    parser.add_argument("--limit", type=int, help="images to evaluate on")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args()
    rows = []
    for name, load, source in (
        ("MuffNet 0.5, CIFAR-10 (JPEG)", load_muffnet, args.cifar10),
        ("EfficientNet-Lite0, 1,000 photos", load_lite, args.photos),
    ):
        if source:
            model, some, images, labels = load(source)
            rows += measure(name, model, some, *spread(images, labels, args))
            write_csv(args.output, rows, list(rows[0]))


def spread(images: Any, labels: Any, args: argparse.Namespace) -> Any:
    """As many images as asked for, of all classes."""
    order = np.linspace(0, len(images) - 1, args.limit or len(images))
    chosen = order.astype(int)
    return images[chosen], labels[chosen]


def load_muffnet(folder: str) -> Any:
    """The network, images to calibrate with, and the test split."""
    from keras_muffnet import MuffNet
    from keras_muffnet import data

    model = MuffNet(
        input_shape=(32, 32, 3), alpha=0.5, classes=10, weights="cifar10"
    )
    train = data.load_images(folder, "train", (32, 32), limit=CALIBRATION)
    test = data.load_images(folder, "test", (32, 32))
    return model, train.images, test.images, test.labels


def load_lite(archive: pathlib.Path) -> Any:
    """The same for EfficientNet-Lite0."""
    import efficientnet_lite

    model = efficientnet_lite.efficientnet_lite0()
    efficientnet_lite.load_weights(model)
    images, labels = efficientnet_lite.load_photos(archive)
    return model, images[:: len(images) // CALIBRATION], images, labels


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
        latencies = median_latencies([*opened.values()])
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
    """Signal to noise of the logarithms of the probabilities, or of logits.

    A file ends in logits where its model ends in probabilities; both then are
    compared without the constant that a softmax takes out.
    """
    if (wanted >= 0).all() and np.allclose(wanted.sum(axis=-1), 1, atol=1e-2):
        # In int8 a probability is a multiple of 1/256.
        ends_alike = (given >= 0).all()
        least = 1 / 512 if ends_alike else 1e-9
        wanted = np.log(np.maximum(wanted, least))
        given = np.log(np.maximum(given, least)) if ends_alike else given
    wanted = wanted - wanted.mean(axis=-1, keepdims=True)
    given = given - given.mean(axis=-1, keepdims=True)
    noise = float(np.square(wanted - given).sum())
    if not noise:
        return float("inf")
    return float(10 * np.log10(np.square(wanted).sum() / noise))


if __name__ == "__main__":
    main()
