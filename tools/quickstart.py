"""From stage spec to a served model and an int8 file, on real images.

Trains MuffNet on scikit-learn's handwritten digits, exports it for TF Serving,
quantizes it for LiteRT, serves it and asks the server for predictions. Leaves
the artifacts, `metrics.json` and three pictures in the output folder.
"""

import argparse
import base64
import csv
import importlib.metadata
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent

ALPHA = 0.5
CLASSES = [str(digit) for digit in range(10)]
SEED = 0
EPOCHS = 3
BATCH_SIZE = 16
LEARNING_RATE = 0.05
# Half of the training split: calibration alone comes close to the float model.
QAT_IMAGES = 720

# What the full run must reach.
LEAST_ACCURACY = 0.97
MOST_INT8_LOSS = 0.005
SERVING_TOLERANCE = 1e-5


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help="folder of the results (default: runs/quickstart)",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="a few images, one epoch, two layers a stage and no bar for "
        "accuracy: tries that all steps work (default folder: runs/smoke)",
    )
    flags = parser.parse_args()
    output = flags.output or ROOT / "runs" / (
        "smoke" if flags.smoke else "quickstart"
    )
    # What TensorFlow says of itself would bury the progress.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        metrics = run(output, flags.smoke)
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again.")
        if (output / "backup").exists():
            print("Training resumes after its last whole epoch.")
        return 130
    except (
        ImportError,
        OSError,
        RuntimeError,
        ValueError,
        subprocess.CalledProcessError,
    ) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    failures = [] if flags.smoke else missed_bars(metrics)
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def run(output: pathlib.Path, smoke: bool) -> dict[str, Any]:
    """Does all steps and returns the metrics.

    Args:
        output: folder for the results; it may not exist yet.
        smoke: whether to use a few images, one epoch and two layers a stage
            only.
    """
    start = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)

    banner("1/6  data: scikit-learn's handwritten digits")
    train, test = load_data(smoke)
    print(f"{len(train[0])} training and {len(test[0])} test images, 32x32x3")

    banner(f"2/6  training: MuffNet(alpha={ALPHA})")
    model, history = train_model(train, test, output, smoke)
    scores, metrics = evaluate(model, test)

    banner("3/6  export: SavedModel and float LiteRT")
    export(model, output)

    banner("4/6  quantization-aware fine-tuning, int8 LiteRT")
    metrics.update(quantize(train, test, output))

    banner("5/6  serving over REST")
    metrics.update(serve(test, scores, output))

    banner("6/6  results")
    metrics.update(measure(model, output))
    draw(history, test, scores, output)
    metrics["seconds"] = round(time.perf_counter() - start, 1)
    write_json(output / "metrics.json", metrics)
    print(table(metrics))
    print(f"\nArtifacts, metrics.json and pictures: {output}")
    return metrics


def banner(text: str) -> None:
    """Prints the name of a step."""
    print(f"\n== {text}", flush=True)


def load_data(smoke: bool) -> tuple[Any, Any]:
    """Returns (images, labels) of the training and of the test split."""
    from keras_muffnet.data import load_digits

    train, test = load_digits()
    if smoke:
        train, test = ((x[:96], y[:96]) for x, y in (train, test))
    return train, test


def train_model(
    train: Any, test: Any, output: pathlib.Path, smoke: bool
) -> tuple[Any, dict[str, list[float]]]:
    """Trains from the spec; resumes where an interrupted run stopped."""
    import keras

    from keras_muffnet import MuffNet
    from keras_muffnet import StageSpec
    from keras_muffnet import stages_from_notation
    from keras_muffnet._files import written_aside
    from keras_muffnet.data import make_dataset
    from keras_muffnet.presets import PAPER_NOTATION

    keras.utils.set_random_seed(SEED)
    size: dict[str, Any] = {"alpha": ALPHA}
    if smoke:
        stages = stages_from_notation(PAPER_NOTATION, ALPHA)
        size = {"stages": [StageSpec(s.sharing, 2, s.width) for s in stages]}
    model = MuffNet(input_shape=(32, 32, 3), classes=len(CLASSES), **size)
    epochs = 1 if smoke else EPOCHS
    steps = -(-len(train[0]) // BATCH_SIZE)
    schedule = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE, decay_steps=epochs * steps
    )
    model.compile(
        optimizer=keras.optimizers.SGD(schedule, momentum=0.9),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    backup = output / "backup"
    log = output / "training.csv"
    model.fit(
        make_dataset(train[0], train[1], BATCH_SIZE, shuffle_seed=SEED),
        validation_data=make_dataset(test[0], test[1], BATCH_SIZE),
        epochs=epochs,
        shuffle=False,  # the data set shuffles itself
        callbacks=[
            # The log first: an epoch that is backed up has been logged.
            keras.callbacks.CSVLogger(log, append=backup.exists()),
            keras.callbacks.BackupAndRestore(backup),
        ],
    )
    with written_aside(output / "muffnet.keras") as aside:
        model.save(aside)
    return model, read_columns(log)


def read_columns(path: pathlib.Path) -> dict[str, list[float]]:
    """Reads the training log by column, a row an epoch."""
    with open(path, newline="") as file:
        # An epoch that was interrupted may have been logged twice.
        rows = {row["epoch"]: row for row in csv.DictReader(file)}.values()
    return {
        name: [float(row[name]) for row in rows] for name in next(iter(rows))
    }


def evaluate(model: Any, test: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the test split's scores, and the float model's metrics."""
    from keras_muffnet import count_complexity
    from keras_muffnet import preprocess_input

    images, labels = test
    scores = model.predict(preprocess_input(images))
    counted = count_complexity(model)
    return scores, {
        "command": " ".join(["python", *sys.argv]),
        "data_set": "scikit-learn's digits, 32x32x3",
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("keras", "tensorflow", "numpy")
        },
        "seed": SEED,
        "alpha": ALPHA,
        "test_images": len(labels),
        "float_accuracy": float((scores.argmax(axis=1) == labels).mean()),
        "parameters": counted.parameters,
        "macs": counted.macs,
    }


def export(model: Any, output: pathlib.Path) -> None:
    """Writes the SavedModel `muffnet/1` and `muffnet_float32.tflite`."""
    from keras_muffnet.export import export_litert
    from keras_muffnet.export import export_saved_model

    shutil.rmtree(output / "muffnet", ignore_errors=True)
    print(export_saved_model(model, output / "muffnet"))
    print(export_litert(model, output / "muffnet_float32.tflite"))


def quantize(train: Any, test: Any, output: pathlib.Path) -> dict[str, Any]:
    """Runs `muffnet quantize`, by its default engine.

    That is Keras: it needs no second Keras, agrees with tfmot to the last
    level, and trains on JAX and PyTorch too.
    """
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "digits.npz"
        quantized = pathlib.Path(folder) / "quantized"
        np.savez(
            data,
            train_images=train[0][:QAT_IMAGES],
            train_labels=train[1][:QAT_IMAGES],
            test_images=test[0],
            test_labels=test[1],
        )
        subprocess.run(
            [
                sys.executable,
                *("-m", "keras_muffnet", "quantize"),
                f"--model={output / 'muffnet.keras'}",
                f"--data={data}",
                f"--output={quantized}",
                "--epochs=1",
                f"--seed={SEED}",
            ],
            check=True,
        )
        shutil.copy(quantized / "int8.tflite", output / "muffnet_int8.tflite")
        metrics = json.loads((quantized / "metrics.json").read_text())
    names = ("int8_accuracy", "int8_agreement", "int8_post_training_accuracy")
    return {name: metrics[name] for name in names}


def serve(test: Any, scores: Any, output: pathlib.Path) -> dict[str, Any]:
    """Asks the embedded server in both forms; compares with `scores`."""
    import numpy as np

    from keras_muffnet import preprocess_input
    from keras_muffnet.model_server import ModelServer

    images = test[0][:4]
    rows = {"instances": preprocess_input(images).tolist()}
    encoded = {
        "signature_name": "serving_bytes",
        "instances": [{"b64": encode_png(image)} for image in images],
    }
    differences = {}
    with ModelServer(
        (output / "muffnet").resolve(), model_name="muffnet", port=0
    ) as server:
        url = f"{server.url}/v1/models/muffnet:predict"
        print(f"POST {url}")
        for form, request in (("float", rows), ("bytes", encoded)):
            answer = np.array(post(url, request)["predictions"])
            difference = float(np.abs(answer - scores[: len(images)]).max())
            print(f"{form}: differs from model.predict by {difference:.1e}")
            differences[f"served_{form}_difference"] = difference
    return differences


def encode_png(image: Any) -> str:
    """Returns a uint8 image as base64 text of a PNG."""
    import tensorflow as tf

    return base64.b64encode(tf.io.encode_png(image).numpy()).decode()


def post(url: str, request: dict[str, Any]) -> dict[str, Any]:
    """Sends JSON and reads JSON."""
    body = json.dumps(request).encode()
    with urllib.request.urlopen(url, data=body, timeout=60) as response:
        return json.load(response)


def measure(model: Any, output: pathlib.Path) -> dict[str, Any]:
    """Measures file sizes, and latencies of the LiteRT files."""
    from keras_muffnet.litert import LiteRTModel
    from keras_muffnet.litert.model import median_latencies

    files = {
        name: output / f"muffnet_{name}.tflite" for name in ("float32", "int8")
    }
    latencies = median_latencies([LiteRTModel(f) for f in files.values()])
    saved_model = (output / "muffnet" / "1").rglob("*")
    return {
        "keras_bytes": (output / "muffnet.keras").stat().st_size,
        "saved_model_bytes": sum(f.stat().st_size for f in saved_model),
        **{f"{name}_bytes": f.stat().st_size for name, f in files.items()},
        **{
            f"{name}_latency_ms": round(latency, 3)
            for name, latency in zip(files, latencies, strict=True)
        },
    }


def draw(
    history: dict[str, list[float]],
    test: Any,
    scores: Any,
    output: pathlib.Path,
) -> None:
    """Draws the three pictures."""
    import numpy as np

    from keras_muffnet import plots
    from keras_muffnet.presets import PAPER_NOTATION
    from keras_muffnet.presets import stages_from_notation

    images, labels = test
    plots.plot_curves(history, output / "curves.png")
    plots.plot_sharing_matrix(
        stages_from_notation(PAPER_NOTATION, ALPHA),
        output / "sharing_matrix.png",
    )
    # What went wrong comes first, then the first images of the split.
    wrong = scores.argmax(axis=1) != labels
    shown = np.argsort(~wrong, kind="stable")[:32]
    plots.plot_predictions(
        images[shown],
        labels[shown],
        scores[shown],
        CLASSES,
        output / "predictions.png",
    )


def write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    from keras_muffnet._files import written_aside

    with written_aside(path) as aside:
        aside.write_text(json.dumps(values, indent=2) + "\n")


def table(metrics: dict[str, Any]) -> str:
    """Returns the closing table."""
    m = metrics
    megabyte = 1e6
    return "\n".join(
        [
            f"{'':<24}{'float32':>12}{'int8':>12}",
            f"{'test accuracy':<24}{m['float_accuracy']:>12.2%}"
            f"{m['int8_accuracy']:>12.2%}",
            f"{'LiteRT file, MB':<24}{m['float32_bytes'] / megabyte:>12.2f}"
            f"{m['int8_bytes'] / megabyte:>12.2f}",
            f"{'latency, 1 thread, ms':<24}{m['float32_latency_ms']:>12.2f}"
            f"{m['int8_latency_ms']:>12.2f}",
            f"{'parameters':<24}{m['parameters']:>12,}",
            f"{'MACs':<24}{m['macs']:>12,}",
            f"{'SavedModel, MB':<24}{m['saved_model_bytes'] / megabyte:>12.2f}",
            f"{'seconds in all':<24}{m['seconds']:>12.0f}",
        ]
    )


def missed_bars(metrics: dict[str, Any]) -> list[str]:
    """Returns what the full run promises and this one did not keep."""
    m = metrics
    missed = []
    if m["float_accuracy"] < LEAST_ACCURACY:
        missed.append(
            f"test accuracy must be at least {LEAST_ACCURACY:.1%}. "
            f"Measured: {m['float_accuracy']:.2%}"
        )
    if m["float_accuracy"] - m["int8_accuracy"] > MOST_INT8_LOSS:
        missed.append(
            f"int8 may be at most {MOST_INT8_LOSS:.1%} less accurate than "
            f"float, {m['float_accuracy']:.2%}. "
            f"Measured: {m['int8_accuracy']:.2%}"
        )
    for form in ("float", "bytes"):
        difference = m[f"served_{form}_difference"]
        if not difference <= SERVING_TOLERANCE:
            missed.append(
                f"the server's {form} answer must be within "
                f"{SERVING_TOLERANCE} of model.predict. "
                f"Measured: {difference}"
            )
    return missed


if __name__ == "__main__":
    sys.exit(main())
