r"""Quantizes MuffNets and keras.applications' networks and compares them.

    python -m tools.benchmarks.quantization --output results/quantization.csv
    python -m tools.benchmarks.quantization --latency \
        --output results/quantization_latency_MACHINE.csv

Each network is trained on scikit-learn's digits (1,437 images, 360 for the
test), quantized after training with shared ranges, with a range for each layer,
and by LiteRT's own converter, and fine-tuned under fake quantization. Latency
is measured at 224x224 with random weights, which do not matter there. Each runs
in a process of its own. A row is written when it is complete: interrupted, the
same command resumes with the next. On two CPU cores a row takes 2 to 6 minutes,
with --latency one or two.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
from typing import Any

from keras_muffnet.cli.common import run as report_failures
from tools.benchmarks import common

PROGRAM = "tools.benchmarks.quantization"
SEED = 0
EPOCHS = 2
BATCH_SIZE = 16
LATENCY_SIZE = 224
QAT_STEPS = 20

# A MuffNet by its sharing patterns and alpha, another by its name; with the
# least input that its strides allow for, from 32 on.
MODELS = {
    "MuffNet average+geometric+none 0.5": 32,
    "MuffNet average+geometric+none 1.0": 32,
    "MuffNet average+geometric+none 1.5": 32,
    "MuffNet average+average+average 0.25": 32,
    "MuffNet linear+linear+linear 0.25": 32,
    "MuffNet geometric+geometric+geometric 0.25": 32,
    "MuffNet none+none+none 0.25": 32,
    "MuffNet dense+dense+dense 0.25": 32,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "MobileNetV3Large": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ResNet50": 32,
    "DenseNet121": 32,
    "NASNetMobile": 32,
    "Xception": 71,
    "InceptionV3": 75,
    "VGG16": 32,
}


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="+", choices=MODELS, metavar="MODEL")
    parser.add_argument(
        "--latency", action="store_true", help="measure that, and nothing else"
    )
    parser.add_argument("--row", choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    return report_failures(lambda: benchmark(args), "benchmarks/quantization")


def benchmark(args: argparse.Namespace) -> None:
    """Measures a row, or all in processes of their own."""
    if args.row:
        row = (measure_latency if args.latency else measure)(args.row)
        args.output.write_text(json.dumps(row))
        return
    rows = common.read_rows(args.output, "model")
    for name in args.only or MODELS:
        if name in rows:
            print(f"{name}: there already")
            continue
        print(f"{name} ...", flush=True)
        flags = ["--row", name, *["--latency"] * args.latency]
        rows[name] = common.measure_elsewhere(PROGRAM, name, flags)
        write_rows(rows, args.output)
    print_table(rows)


def write_rows(rows: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
    """Writes all rows, in the order of the models."""
    from keras_muffnet._files import write_csv

    known = [rows[name] for name in MODELS if name in rows]
    write_csv(path, known, list(known[0]))


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """Prints the rows without the columns that are the same in all."""
    columns = [
        column
        for column in next(iter(rows.values()))
        if column != "model" and not column.endswith(("_images", "seed"))
    ]
    print("\nmodel", *columns, sep=" | ")
    for name, row in rows.items():
        print(name, *(row[column] for column in columns), sep=" | ")


def measure(name: str) -> dict[str, Any]:
    """Trains, quantizes and times one model."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    from keras_muffnet import quantization
    from keras_muffnet.litert import LiteRTModel

    keras.utils.set_random_seed(SEED)
    model = make_model(name, MODELS[name])
    train, test = load_digits(model)
    images, labels = train
    norms = (
        isinstance(layer, keras.layers.BatchNormalization)
        for layer in model.layers
    )
    # VGG16, which has none, learns nothing at a higher rate.
    rate = 1e-3 if any(norms) else 1e-4
    fit(model, images, labels, epochs=EPOCHS, learning_rate=rate)
    row: dict[str, Any] = {
        "model": name,
        "input": MODELS[name],
        "parameters": model.count_params(),
        "train_images": len(images),
        "test_images": len(test[0]),
        "seed": SEED,
    }
    some = images[::3]
    quantized = quantization.quantize_aware(model, some, engine="keras")
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            kind: pathlib.Path(folder, f"{kind}.tflite")
            for kind in ("int8", "own_ranges", "converter", "qat")
        }
        quantization.convert(quantized, paths["int8"])
        convert_with_own_ranges(model, some, paths["own_ranges"])
        convert_with_converter(model, some, paths["converter"])
        fit(
            quantized,
            images[: QAT_STEPS * BATCH_SIZE],
            labels[: QAT_STEPS * BATCH_SIZE],
            epochs=1,
            learning_rate=2e-4,
        )
        quantization.convert(quantized, paths["qat"])
        answers = {
            "float": model.predict(test[0], verbose=0),
            **{
                kind: LiteRTModel(path, threads=os.cpu_count() or 1).predict(
                    test[0]
                )
                for kind, path in paths.items()
            },
        }
        answer = {kind: a.argmax(axis=-1) for kind, a in answers.items()}
        for kind, found in answer.items():
            row[f"{kind}_accuracy"] = round(float((found == test[1]).mean()), 4)
        for kind in paths:
            agreement = (answer[kind] == answer["float"]).mean()
            row[f"{kind}_agreement"] = round(float(agreement), 4)
        for kind, path in paths.items():
            row[f"{kind}_requantizations"] = count_requantizations(path)
        row["int8_bytes"] = paths["int8"].stat().st_size
    return row


def make_model(name: str, size: int) -> Any:
    """Builds an untrained model with ten classes."""
    import keras

    from keras_muffnet import MuffNet
    from keras_muffnet import stages_from_notation

    shape = (size, size, 3)
    if not name.startswith("MuffNet"):
        make = getattr(keras.applications, name)
        return make(input_shape=shape, weights=None, classes=10)
    _, notation, alpha = name.split()
    stages = stages_from_notation(notation, alpha=float(alpha))
    return MuffNet(input_shape=shape, stages=stages, classes=10)


def load_digits(model: Any) -> Any:
    """Loads the digits as the model wants them: scaled, or not."""
    import numpy as np

    from keras_muffnet import data
    from keras_muffnet import preprocess_input
    from keras_muffnet.preprocessing import scales_pixels

    def scaled(images: np.ndarray, labels: np.ndarray) -> tuple:
        if scales_pixels(model):
            return images.astype(np.float32), labels
        return preprocess_input(images), labels

    train, test = data.load_digits(model.input_shape[1])
    order = np.random.default_rng(SEED).permutation(len(train[0]))
    return scaled(train[0][order], train[1][order]), scaled(*test)


def fit(
    model: Any, images: Any, labels: Any, epochs: int, learning_rate: float
) -> None:
    """Trains a float model with Adam, a quantized one with SGD."""
    import keras

    from keras_muffnet.quantization.keras_engine import FakeQuantized

    steps = epochs * -(-len(images) // BATCH_SIZE)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    is_float = True
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Of a few steps a mean over a thousand would see little.
            layer.momentum = 0.9
        is_float &= not isinstance(layer, FakeQuantized)
    model.compile(
        keras.optimizers.Adam(schedule)
        if is_float
        else keras.optimizers.SGD(schedule, momentum=0.9),
        "sparse_categorical_crossentropy",
        jit_compile=False,
    )
    model.fit(images, labels, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)


def convert_with_own_ranges(
    model: Any, images: Any, path: pathlib.Path
) -> None:
    """Quantizes with a range for each layer, which the converter reconciles."""
    from keras_muffnet import quantization
    from keras_muffnet.quantization import keras_engine
    from keras_muffnet.quantization import plan
    from keras_muffnet.quantization.ranges import find_ranges

    own = plan.plan_quantization(model, share_ranges=False)
    found = keras_engine.calibrate(own, images)
    limits = (0.0, 255.0) if images.max() > 1 else (-1.0, 127 / 128)
    ranges = find_ranges(own, found, limits)
    quantization.convert(keras_engine.build(own, ranges), path)


def convert_with_converter(model: Any, images: Any, path: pathlib.Path) -> None:
    """Quantizes by TensorFlow's converter alone."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        archive = model.export(folder, verbose=False)
        del archive
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            [image[None]] for image in images[:200]
        )
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        ]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
        path.write_bytes(converter.convert())


def count_requantizations(path: pathlib.Path) -> int:
    """Operations that do nothing but change a scale."""
    from keras_muffnet.litert import read_operations

    names = [op.name for op in read_operations(path.read_bytes())]
    return sum(name in ("QUANTIZE", "DEQUANTIZE") for name in names)


def measure_latency(name: str) -> dict[str, Any]:
    """Times float and int8 side by side, on one thread, one image at a time."""
    from keras_muffnet import quantization
    from keras_muffnet.export import export_litert
    from keras_muffnet.litert import LiteRTModel
    from keras_muffnet.litert.model import median_latencies

    model = make_model(name, LATENCY_SIZE)
    train, _ = load_digits(model)
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, f"{k}.tflite") for k in ("float", "int8")]
        export_litert(model, files[0])
        quantization.quantize_post_training(model, train[0][:16], files[1])
        sizes = [path.stat().st_size for path in files]
        medians = median_latencies([LiteRTModel(path) for path in files])
    return {
        "model": name,
        "input": LATENCY_SIZE,
        "float_ms": round(medians[0], 3),
        "int8_ms": round(medians[1], 3),
        "int8_to_float": round(medians[1] / medians[0], 3),
        "float_bytes": sizes[0],
        "int8_bytes": sizes[1],
    }


if __name__ == "__main__":
    sys.exit(main())
