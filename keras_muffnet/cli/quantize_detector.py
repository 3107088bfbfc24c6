"""`muffnet quantize` for a detector."""

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from keras_muffnet.cli import common
from keras_muffnet.cli.quantize_classifier import SETTINGS
from keras_muffnet.cli.quantize_classifier import check_settings
from keras_muffnet.cli.quantize_classifier import model_digest

FILES = ("float32", "int8_post_training", "int8")
# Of the fine-tuning, beside the settings of the command that began it.
CHECKPOINTS = "checkpoints"


def quantize(model: Any, args: argparse.Namespace) -> None:
    """Calibrates, fine-tunes, converts, and measures each on the test split.

    Args:
        model: a detector that `keras_muffnet.detection.SSD` built.
        args: the command line, its defaults filled in.
    """
    from keras_muffnet._files import written_aside
    from keras_muffnet.data.batches import check_count
    from keras_muffnet.detection import two_outputs
    from keras_muffnet.detection.ssd import predictions_layer
    from keras_muffnet.evaluation import check_classes
    from keras_muffnet.evaluation.models import class_names_of
    from keras_muffnet.export import export_litert
    from keras_muffnet.quantization import quantize_aware
    from keras_muffnet.training.detection import find_train_split

    size = predictions_layer(model).image_size
    source = common.open_boxes(args)
    args.train_split = args.train_split or find_train_split(
        source, args.test_split
    )
    # Now, not after calibration: fine-tuning drops what fills no batch.
    check_count(args.batch_size, len(source.split(args.train_split)))
    check_classes(
        source.class_names,
        class_names_of(model, args.model),
        model.output_shape[-1] - 5,
    )
    feed, settings = open_training(model, args, source)
    files = {name: args.output / f"{name}.tflite" for name in FILES}

    print("Writing float32.tflite")
    export_litert(model, files["float32"])
    print("Calibrating")
    images = calibration_images(args, source, size)
    quantized = quantize_aware(two_outputs(model), images, engine="keras")
    print("Writing int8_post_training.tflite")
    export_litert(model, files["int8_post_training"], quantized=quantized)
    fine_tune(quantized, model, args, feed, settings)
    print("Writing int8.tflite")
    export_litert(model, files["int8"], quantized=quantized)

    print("Evaluating on the test split")
    metrics = compare(files, args, source, size)
    with written_aside(args.output / "metrics.json") as aside:
        aside.write_text(json.dumps(metrics, indent=2) + "\n")
    print_table(metrics)
    print(f"Files: {args.output}")


def open_training(
    model: Any, args: argparse.Namespace, source: Any
) -> tuple[Any, dict[str, Any]]:
    """Opens the images to fine-tune on, varied mildly.

    Returns:
        The batches, and the settings for `settings.json`.

    Raises:
        ValueError: if `--output` holds a run of other ones, or of another
            model or images.
    """
    from keras_muffnet.data import SSDAugmentation
    from keras_muffnet.detection.ssd import predictions_layer

    # Ranges are those of images as they are: colors and sizes stay.
    same = (1.0, 1.0)
    mild = SSDAugmentation(
        brightness=0, contrast=same, saturation=same, hue=0, expansion=1
    )
    size = predictions_layer(model).image_size
    feed = make_feed(args, source, size, augment=mild)
    digests = {"model": model_digest(model), "images": feed.fingerprint()}
    begun = any((args.output / CHECKPOINTS).glob("*"))
    return feed, check_settings(args, begun, digests)


def make_feed(
    args: argparse.Namespace,
    source: Any,
    size: tuple[int, int],
    **settings: Any,
) -> Any:
    """Makes batches; see `keras_muffnet.data.make_detection_feed`."""
    from keras_muffnet.data import make_detection_feed

    return make_detection_feed(
        source,
        size=size,
        seed=args.seed,
        on_bad_annotation=args.on_bad,
        **{
            "batch_size": args.batch_size,
            "train_split": args.train_split,
            "test_split": args.test_split,
            **settings,
        },
    )


def calibration_images(
    args: argparse.Namespace, source: Any, size: tuple[int, int]
) -> np.ndarray:
    """Returns training images as they are, scaled."""
    feed = make_feed(
        args,
        source,
        size,
        batch_size=1,  # however few there are
        train_split=None,
        test_split=args.train_split,
        cache=False,
    )
    batches = feed.evaluation()
    images: list[np.ndarray] = []
    for index in range(len(batches)):
        images.extend(batches[index][0])
        if len(images) >= args.calibration_images:
            break
    return np.stack(images[: args.calibration_images])


def fine_tune(
    quantized: Any,
    model: Any,
    args: argparse.Namespace,
    feed: Any,
    settings: dict[str, Any],
) -> None:
    """Trains with SSD's loss, on a cosine from the learning rate to nothing.

    It resumes after the last whole epoch.
    """
    import keras

    from keras_muffnet._files import written_aside
    from keras_muffnet.detection import SSDLoss
    from keras_muffnet.detection import SSDPredictions
    from keras_muffnet.detection.ssd import predictions_layer
    from keras_muffnet.training.checkpoints import Checkpoint
    from keras_muffnet.training.checkpoints import Checkpoints
    from keras_muffnet.training.checkpoints import assign_variables
    from keras_muffnet.training.checkpoints import collect_variables

    layer = predictions_layer(model)
    joined = SSDPredictions.from_config(layer.get_config())(quantized.outputs)
    trained = keras.Model(quantized.inputs, joined)
    schedule = keras.optimizers.schedules.CosineDecay(
        args.learning_rate,
        decay_steps=max(1, args.epochs * feed.steps_per_epoch),
    )
    trained.compile(
        keras.optimizers.SGD(schedule, momentum=0.9),
        SSDLoss(layer.anchors),
        jit_compile=False,
    )
    trained.optimizer.build(trained.trainable_variables)
    checkpoints = Checkpoints(args.output / CHECKPOINTS, keep=1)
    saved = checkpoints.load_last(print)
    if saved is None:
        with written_aside(args.output / SETTINGS) as aside:
            aside.write_text(json.dumps(settings, indent=2) + "\n")
    else:
        assign_variables(trained, saved.arrays)
        print(f"{saved.epoch} of {args.epochs} epochs were done before")
    for epoch in range(saved.epoch if saved else 0, args.epochs):
        trained.fit(
            feed.epoch(epoch),
            initial_epoch=epoch,
            epochs=epoch + 1,
            shuffle=False,
        )
        arrays = collect_variables(trained)
        checkpoints.save(Checkpoint(epoch + 1, 0, {}, arrays))


def compare(
    files: dict[str, pathlib.Path],
    args: argparse.Namespace,
    source: Any,
    size: tuple[int, int],
) -> dict[str, Any]:
    """Returns AP50 of each file, its size, and how near its boxes are."""
    from keras_muffnet.detection.evaluation import ap50
    from keras_muffnet.detection.evaluation import find_objects
    from keras_muffnet.evaluation import load_detector

    feed = make_feed(
        args,
        source,
        size,
        batch_size=1,
        train_split=None,
        mean=0.0,
        std=1.0,
    )
    truths = feed.ground_truth()
    metrics = {}
    found: dict[str, Any] = {}
    for name, path in files.items():
        detect = load_detector(path).detect

        def look(batch: Any, detect: Any = detect) -> Any:
            return detect(batch[0])

        found[name] = find_objects(look, feed.evaluation(), truths, size)
        metrics[name] = {
            "bytes": path.stat().st_size,
            "ap50": ap50(truths, found[name], len(feed.class_names)),
            "iou_with_float": agreement(found["float32"], found[name]),
        }
    return metrics


def print_table(metrics: dict[str, Any]) -> None:
    """Prints a row for each file."""
    print(f"{'file':<22}{'bytes':>12}{'AP50':>9}{'IoU with float':>16}")
    for name, row in metrics.items():
        near = row["iou_with_float"]
        print(
            f"{name:<22}{row['bytes']:>12,}{row['ap50']:>9.2%}"
            f"{'-' if near is None else f'{near:.3f}':>16}"
        )


def agreement(expected: list[Any], found: list[Any]) -> float | None:
    """Mean IoU of sure float boxes with the nearest box of the same class.

    Sure are scores of 0.5 or more. None if there are none.
    """
    from keras import ops

    from keras_muffnet.detection.boxes import iou

    best: list[float] = []
    for theirs, mine in zip(expected, found, strict=True):
        sure = theirs.scores >= 0.5
        overlaps = ops.convert_to_numpy(iou(theirs.boxes[sure], mine.boxes))
        overlaps = overlaps * (
            theirs.classes[sure][:, None] == mine.classes[None]
        )
        best.extend(overlaps.max(axis=1, initial=0.0))
    return float(np.mean(best)) if best else None
