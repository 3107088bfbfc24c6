r"""Fine-tunes a trained model for int8 and writes it as a LiteRT file.

    python tools/quantize.py --model m.keras --data data.npz \
        --output m_int8.tflite

The data file holds uint8 images `train_images` and `test_images`,
`(n, height, width, 3)`, and integer labels `train_labels` and `test_labels`.
On two CPU cores and the 1,437 training digits MuffNet 0.5 at 32x32 takes a
minute and a half. Prints the test accuracy at each step from float to int8.
"""

import argparse
import json
import math
import os
import pathlib
import zipfile
from typing import Any

import numpy as np


def main() -> None:
    """Runs the command."""
    args = parse_args()
    try:
        quantize(args)
    except (
        EOFError,
        ImportError,
        OSError,
        RuntimeError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        raise SystemExit(f"quantize: error: {error}") from error


def quantize(args: argparse.Namespace) -> None:
    """Calibrates, fine-tunes, converts, and measures each on the test split."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    import keras_muffnet
    from keras_muffnet import quantization
    from keras_muffnet.files import written_aside
    from keras_muffnet.litert import LiteRTModel

    keras.utils.set_random_seed(args.seed)
    model = keras.saving.load_model(args.model, compile=False)
    data = load_data(args.data)
    x_train = keras_muffnet.preprocess_input(data["train_images"])
    x_test = keras_muffnet.preprocess_input(data["test_images"])
    y_train, y_test = data["train_labels"], data["test_labels"]

    print("Calibrating and rebuilding the model with fake quantization")
    some = np.random.default_rng(args.seed).permutation(len(x_train))
    twin = quantization.quantize_aware(
        model, x_train[some[: args.calibration_images]]
    )
    steps = args.epochs * math.ceil(len(x_train) / args.batch_size)
    compile_for_fine_tuning(twin, args.learning_rate, steps)
    calibrated = twin.predict(x_test)

    print("Fine-tuning")
    twin.fit(x_train, y_train, batch_size=args.batch_size, epochs=args.epochs)

    print("Converting")
    quantization.convert(twin, args.output)
    lite = LiteRTModel(args.output, threads=os.cpu_count() or 1)

    print("Evaluating on the test split: float, fake quantization, int8")
    predictions = {
        "float": model.predict(x_test),
        "calibrated": calibrated,
        "fake_quant": twin.predict(x_test),
        "int8": lite.predict(x_test, verbose=1),
    }
    metrics = compare(predictions, y_test)
    metrics["int8_bytes"] = args.output.stat().st_size
    print_table(metrics)
    if args.metrics:
        with written_aside(args.metrics) as aside:
            aside.write_text(json.dumps(metrics, indent=2) + "\n")


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help=".keras file")
    parser.add_argument("--data", required=True, help=".npz file")
    parser.add_argument(
        "--output", required=True, type=pathlib.Path, help=".tflite file"
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--calibration-images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--metrics", type=pathlib.Path, help="JSON file for the figures"
    )
    return parser.parse_args()


def load_data(path: str) -> dict[str, np.ndarray]:
    """Reads the four arrays."""
    names = ("train_images", "train_labels", "test_images", "test_labels")
    with np.load(path) as data:
        missing = [name for name in names if name not in data]
        if missing:
            raise SystemExit(
                f"--data must hold the arrays {', '.join(names)}. "
                f"Missing in {path}: {', '.join(missing)}"
            )
        return {name: data[name] for name in names}


def compile_for_fine_tuning(
    twin: Any, learning_rate: float, steps: int
) -> None:
    """Sets SGD, on a cosine from the learning rate down to nothing."""
    import tf_keras

    schedule = tf_keras.optimizers.schedules.CosineDecay(
        learning_rate, decay_steps=steps
    )
    twin.compile(
        tf_keras.optimizers.SGD(schedule, momentum=0.9),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def compare(
    predictions: dict[str, np.ndarray], labels: np.ndarray
) -> dict[str, float]:
    """Accuracies, and how often the int8 model's answer is the same."""
    answers = {name: p.argmax(axis=-1) for name, p in predictions.items()}
    metrics = {
        f"{name}_accuracy": float(np.mean(answer == labels))
        for name, answer in answers.items()
    }
    for name in ("float", "fake_quant"):
        metrics[f"agreement_with_{name}"] = float(
            np.mean(answers["int8"] == answers[name])
        )
    metrics["test_images"] = len(labels)
    return metrics


def print_table(metrics: dict[str, float]) -> None:
    """Prints the figures, those that are shares as percentages."""
    rows = {
        "float": metrics["float_accuracy"],
        "calibrated, fake quantization": metrics["calibrated_accuracy"],
        "fine-tuned, fake quantization": metrics["fake_quant_accuracy"],
        "fine-tuned, int8": metrics["int8_accuracy"],
    }
    print(f"\n{'test accuracy':<32}{'%':>7}")
    for name, value in rows.items():
        print(f"{name:<32}{100 * value:>7.2f}")
    print(
        f"The int8 file ({metrics['int8_bytes'] / 1e6:.2f} MB) gives the float "
        f"model's answer for {100 * metrics['agreement_with_float']:.2f}% of "
        f"{metrics['test_images']} images."
    )


if __name__ == "__main__":
    main()
