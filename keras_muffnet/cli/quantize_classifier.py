"""`muffnet quantize` for a classifier."""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_muffnet.cli import common

FILES = {
    "float32": "float32.tflite",
    "int8_post_training": "int8_post_training.tflite",
    "int8": "int8.tflite",
}
# The model being fine-tuned, and the command it belongs to.
CHECKPOINT = "fine_tuning.keras"
SETTINGS = "settings.json"
# What is compared there besides the command line.
DIGESTS = "digests"


def quantize(model: Any, args: argparse.Namespace) -> None:
    """Calibrates, fine-tunes, converts, and measures each on the test split.

    Args:
        model: a Keras model.
        args: the command line, its defaults filled in.
    """
    from keras_muffnet import data
    from keras_muffnet import quantization
    from keras_muffnet._files import written_aside
    from keras_muffnet.evaluation import check_classes
    from keras_muffnet.evaluation.models import class_names_of
    from keras_muffnet.litert.metadata import c_header
    from keras_muffnet.preprocessing import preprocessing_of

    check_outputs(model)
    known = preprocessing_of(model)
    train, test, names = load_data(model, args, known.crop)
    settings = check_settings(
        args,
        (args.output / CHECKPOINT).exists(),
        {"model": model_digest(model), "images": array_digest(train)},
    )
    if names is None:
        check_labels(train[1], test[1], model.output_shape[-1])
    else:
        check_classes(
            names, class_names_of(model, args.model), model.output_shape[-1]
        )
    mean, std = args.normalization or (known.mean, known.std)
    files = {kind: args.output / name for kind, name in FILES.items()}

    print("Writing float32.tflite")
    common.write_litert(
        model,
        dataclasses.replace(
            known, mean=mean, std=std, class_names=tuple(names or ())
        ),
        files["float32"],
    )

    print("Calibrating")
    some = np.random.default_rng(args.seed).permutation(len(train[0]))
    some_images = train[0][some[: args.calibration_images]]
    quantized = quantization.quantize_aware(
        model,
        (some_images.astype(np.float32) - mean) / std,
        engine=args.engine,
        float_layers=(
            "unknown" if args.float_layers == ["unknown"] else args.float_layers
        ),
    )
    print("Writing int8_post_training.tflite")
    options: dict[str, Any] = {
        "io_dtype": args.io_dtype,
        "labels": names,
        "normalization": (mean, std),
        "crop": known.crop,
    }
    quantization.convert(quantized, files["int8_post_training"], **options)

    quantized = fine_tune(quantized, train, (mean, std), args, settings)
    print("Writing int8.tflite")
    quantization.convert(quantized, files["int8"], **options)
    if args.emit_header:
        header = c_header(files["int8"].read_bytes(), args.emit_header)
        with written_aside(args.output / f"{args.emit_header}.h") as aside:
            aside.write_text(header)

    print("Evaluating on the test split")
    images, labels = test
    batches = data.make_dataset(
        images, labels, args.batch_size, mean=mean, std=std
    )
    answers = {
        "float": model.predict(batches).argmax(axis=-1),
        "fake_quant": quantized.predict(batches).argmax(axis=-1),
    }
    metrics = compare(answers, files, test, (mean, std))
    with written_aside(args.output / "metrics.json") as aside:
        aside.write_text(json.dumps(metrics, indent=2) + "\n")
    if args.report:
        finished, _ = quantization.finish(quantized, model)
        report = quantization.report(
            finished,
            files["int8"],
            (test[0][:200].astype(np.float32) - mean) / std,
            picture=args.output / "report.png",
        )
        with written_aside(args.output / "report.txt") as aside:
            aside.write_text(f"{report}\n")
    print_table(metrics)
    print(f"Files: {args.output}")


def check_outputs(model: Any) -> None:
    """Raises for a model that does not choose among classes."""
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] < 2:
        raise ValueError(
            "--model must have one output, of at least 2 classes. "
            f"Received: outputs of shape {shape}"
        )


def check_labels(train: np.ndarray, test: np.ndarray, classes: int) -> None:
    """Raises for labels of an .npz file that are none of the classes."""
    for name, labels in (("train_labels", train), ("test_labels", test)):
        if not ((labels >= 0) & (labels < classes)).all():
            raise ValueError(
                f"`{name}` in --data must be classes of --model, 0 to "
                f"{classes - 1}. Received: {labels.min()} to {labels.max()}"
            )


def model_digest(model: Any) -> str:
    """Returns a text that a model of other layers or weights has not."""
    import keras

    digest = hashlib.sha256()
    for layer in model.layers:
        config = keras.saving.serialize_keras_object(layer)["config"]
        # Those that Keras gives are others in the next process.
        config.pop("name", None)
        digest.update(json.dumps(config, sort_keys=True).encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def array_digest(arrays: Any) -> str:
    """Returns a text that other arrays have not."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_settings(
    args: argparse.Namespace, begun: bool, digests: Mapping[str, str]
) -> dict[str, Any]:
    """Sees to it that fine-tuning resumes by the command that began it.

    Args:
        args: the command line.
        begun: whether the output folder holds a checkpoint.
        digests: of the "model" and of the training "images".

    Returns:
        The settings that matter, for `settings.json`.

    Raises:
        ValueError: naming the settings that are others.
    """
    ignored = ("output", "emit_header", "report", "io_dtype")
    settings = {k: v for k, v in vars(args).items() if k not in ignored}
    if begun:
        before = json.loads((args.output / SETTINGS).read_text())
        changed = [k for k in settings if before.get(k) != settings[k]]
        if changed:
            raise ValueError(
                "--output holds a run with other settings: "
                f"{', '.join(f'{k}={before.get(k)!r}' for k in changed)}. "
                "Give another folder, or the same settings"
            )
        _check_digests(before.get(DIGESTS), digests)
    return {**settings, DIGESTS: dict(digests)}


def _check_digests(before: Any, digests: Mapping[str, str]) -> None:
    if before is None:
        warnings.warn(
            f"--output holds a run of an earlier version, whose {SETTINGS} "
            f"does not say of which {' and '.join(digests)} it is. If they "
            "changed since, give another folder",
            stacklevel=3,
        )
        return
    changed = [k for k in digests if before.get(k) != digests[k]]
    if changed:
        raise ValueError(
            f"--output holds a run whose {' and '.join(changed)} changed "
            "since. Give another folder, or remove this one"
        )


def load_data(
    model: Any, args: argparse.Namespace, crop: float | None = None
) -> tuple[Any, Any, list[str] | None]:
    """Returns (images, labels) of both splits, and the classes if known.

    Args:
        model: the model, whose images have a size.
        args: the command line.
        crop: how images get that size; see `Preprocessing`.
    """
    from keras_muffnet import data

    if args.data.endswith(".npz"):
        return *load_npz(args.data, args.train_images, args.seed), None
    *sides, channels = model.input_shape[1:]
    size = common.image_size(args, (sides[0], sides[1]))
    settings: dict[str, Any] = {
        "channels": channels,
        "crop": crop,
        "on_bad_image": args.on_bad,
    }
    source = common.open_images(args)
    train = data.load_images(
        source,
        args.train_split,
        size,
        limit=args.train_images,
        seed=args.seed,
        **settings,
    )
    test = data.load_images(source, args.test_split, size, **settings)
    return train[:2], test[:2], list(train.class_names)


def load_npz(path: str, limit: int | None, seed: int) -> tuple[Any, Any]:
    """Reads the four arrays, of the training split a sample.

    Raises:
        ValueError: if one is missing, or of another kind.
    """
    names = ("train_images", "train_labels", "test_images", "test_labels")
    with np.load(path) as data:
        missing = [name for name in names if name not in data]
        if missing:
            raise ValueError(
                f"--data must hold the arrays {', '.join(names)}. "
                f"Missing in {path}: {', '.join(missing)}"
            )
        arrays = [data[name] for name in names]
    for name, array in zip(names, arrays, strict=True):
        _check_array(name, array)
    some = np.random.default_rng(seed).permutation(len(arrays[0]))[:limit]
    return [array[np.sort(some)] for array in arrays[:2]], arrays[2:]


def _check_array(name: str, array: np.ndarray) -> None:
    """Raises for an array that the help of `muffnet quantize` rules out."""
    if name.endswith("images"):
        wanted, fits = (
            "uint8 pixels, (n, height, width, channels)",
            (array.dtype == np.uint8 and array.ndim == 4),
        )
    else:
        wanted, fits = (
            "integers, (n,)",
            (np.issubdtype(array.dtype, np.integer) and array.ndim == 1),
        )
    if not fits:
        raise ValueError(
            f"`{name}` in --data must be {wanted}. "
            f"Received: {array.dtype} of shape {array.shape}"
        )


def fine_tune(
    quantized: Any,
    train: tuple[np.ndarray, np.ndarray],
    normalization: tuple[float, float],
    args: argparse.Namespace,
    settings: dict[str, Any],
) -> Any:
    """Trains epoch by epoch, from the last whole one on, and returns it."""
    from keras_muffnet import data
    from keras_muffnet import quantization
    from keras_muffnet._files import written_aside

    checkpoint = args.output / CHECKPOINT
    steps = math.ceil(len(train[0]) / args.batch_size)
    if checkpoint.exists():
        quantized = quantization.load(checkpoint)
    else:
        compile_for_fine_tuning(
            quantized, args.engine, args.learning_rate, args.epochs * steps
        )
        with written_aside(args.output / SETTINGS) as aside:
            aside.write_text(json.dumps(settings, indent=2) + "\n")
    done = int(quantized.optimizer.iterations) // steps
    if done:
        print(f"{done} of {args.epochs} epochs were done before")
    for epoch in range(done, args.epochs):
        order = np.random.default_rng([args.seed, epoch]).permutation(
            len(train[0])
        )
        mean, std = normalization
        quantized.fit(
            data.make_dataset(
                train[0][order],
                train[1][order],
                args.batch_size,
                mean=mean,
                std=std,
            ),
            initial_epoch=epoch,
            epochs=epoch + 1,
        )
        with written_aside(checkpoint) as aside:
            quantized.save(aside)
    return quantized


def compile_for_fine_tuning(
    quantized: Any, engine: str, learning_rate: float, steps: int
) -> None:
    """Sets SGD, on a cosine from the learning rate down to nothing."""
    if engine == "tfmot":
        import tf_keras as kit
    else:
        import keras as kit
    schedule = kit.optimizers.schedules.CosineDecay(
        learning_rate, decay_steps=max(1, steps)
    )
    has_softmax = isinstance(quantized.layers[-1], kit.layers.Softmax)
    quantized.compile(
        kit.optimizers.SGD(schedule, momentum=0.9),
        kit.losses.SparseCategoricalCrossentropy(from_logits=not has_softmax),
        metrics=["accuracy"],
    )


def compare(
    answers: dict[str, np.ndarray],
    files: dict[str, pathlib.Path],
    test: tuple[np.ndarray, np.ndarray],
    normalization: tuple[float, float],
) -> dict[str, float]:
    """Accuracy, agreement with float, size and latency of each file."""
    from keras_muffnet.litert import LiteRTModel
    from keras_muffnet.litert.model import median_latencies

    images, labels = test
    mean, std = normalization
    metrics: dict[str, float] = {"test_images": len(labels)}
    for name, answer in answers.items():
        metrics[f"{name}_accuracy"] = float(np.mean(answer == labels))
    latencies = median_latencies([LiteRTModel(path) for path in files.values()])
    for (name, path), latency in zip(files.items(), latencies, strict=True):
        lite = LiteRTModel(path, threads=os.cpu_count() or 1)
        answer = np.concatenate(
            [
                lite.predict((part.astype(np.float32) - mean) / std, verbose=1)
                for part in np.array_split(images, -(-len(images) // 2000))
            ]
        ).argmax(axis=-1)
        metrics[f"{name}_accuracy"] = float(np.mean(answer == labels))
        metrics[f"{name}_agreement"] = float(
            np.mean(answer == answers["float"])
        )
        metrics[f"{name}_bytes"] = path.stat().st_size
        metrics[f"{name}_ms"] = round(latency, 3)
    return metrics


def print_table(metrics: dict[str, float]) -> None:
    """Prints a row for each file."""
    print(
        f"\n{'file':<28}{'accuracy':>10}{'as float':>10}{'MB':>8}{'ms':>8}"
        "   (one image, one thread)"
    )
    for name, file in FILES.items():
        print(
            f"{file:<28}"
            f"{100 * metrics[f'{name}_accuracy']:>9.2f}%"
            f"{100 * metrics[f'{name}_agreement']:>9.2f}%"
            f"{metrics[f'{name}_bytes'] / 1e6:>8.2f}"
            f"{metrics[f'{name}_ms']:>8.2f}"
        )
    print(f"{metrics['test_images']} test images")
