r"""Evaluates a model on a split of labeled images, or of images with boxes.

    muffnet evaluate --model runs/cifar/best.keras --data cifar10/
    muffnet evaluate --model m.tflite --data tfds:cifar10
    muffnet evaluate --model w.weights.h5 --alpha 0.5 --size 32 --data cifar10/
    muffnet evaluate --model bccd --data bccd/ --on-bad skip

Of a classifier it prints top-1 and top-5 accuracy and the classes that are
hardest, and writes `evaluation.json`, `per_class.csv`, `confusion.png` and
`mistakes.png`, a sheet of the most confident mistakes. Of a detector it prints
COCO's twelve figures and Pascal VOC's average precision of each class at an IoU
of 0.5, of the whole area and at 11 points, and writes them to
`evaluation.json`, and to `boxes.png` a sheet of images with what was found, of
which the scores are drawn. The classes of the images must be the model's. The
split that was measured and how many images and objects `--on-bad skip` left out
are printed and in `evaluation.json`: without a test split, "test" means "val".
"""

import argparse
import dataclasses
import pathlib
from typing import TYPE_CHECKING
from typing import Any

from keras_muffnet.cli import common

if TYPE_CHECKING:
    from keras_muffnet import data
    from keras_muffnet.evaluation import DetectionEvaluation
    from keras_muffnet.evaluation import Evaluation
    from keras_muffnet.evaluation.classifiers import Predictor
    from keras_muffnet.evaluation.detectors import Detector

BATCH_SIZE = 128
DETECTOR_BATCH_SIZE = 16
MISTAKES = 32
PICTURES = 12
THRESHOLD = 0.4
CLASSIFIER_FLAGS = ("mistakes",)
DETECTOR_FLAGS = ("pictures", "threshold")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a parser this command's flags."""
    common.add_model_arguments(parser, evaluates=True)
    common.add_data_arguments(parser)
    parser.add_argument("--split", default="test", help="(default: test)")
    common.add_normalization_argument(parser)
    common.add_batch_size_argument(parser, BATCH_SIZE, DETECTOR_BATCH_SIZE)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help="folder (default: evaluation, beside the model)",
    )
    classifier = parser.add_argument_group("of a classifier")
    classifier.add_argument(
        "--mistakes", type=int, help=f"on the sheet (default: {MISTAKES})"
    )
    detector = parser.add_argument_group("of a detector")
    detector.add_argument(
        "--pictures", type=int, help=f"on the sheet (default: {PICTURES})"
    )
    detector.add_argument(
        "--threshold",
        type=float,
        help=f"score from which boxes are drawn (default: {THRESHOLD})",
    )


def run(args: argparse.Namespace) -> None:
    """Evaluates, prints and writes."""
    import keras

    from keras_muffnet.evaluation import evaluate
    from keras_muffnet.evaluation import evaluate_detector
    from keras_muffnet.evaluation import load_model
    from keras_muffnet.evaluation.classifiers import Predictor

    # The same for all formats; models of another one get it transposed.
    keras.config.set_image_data_format("channels_last")
    if common.is_weights(args.model):
        classes = len(common.open_images(args).class_names)
        network = common.network_arguments(args, classes)
    else:
        network = common.network_arguments(args)
    model = load_model(
        args.model,
        network=network,
        normalization=args.normalization and tuple(args.normalization),
    )
    about = {"model": args.model, "data": args.data}
    output = args.output or pathlib.Path(args.model).parent / "evaluation"
    if isinstance(model, Predictor):
        common.refuse(args, DETECTOR_FLAGS, "for a classifier")
        mistakes = number("--mistakes", args.mistakes, MISTAKES)
        feed = classifier_feed(model, args)
        print(feed.report())
        evaluation = evaluate(
            model.predict, feed.evaluation(), feed.class_names, mistakes
        )
        print_accuracies(evaluation)
        about |= {"split": feed.test_split, "skipped": len(feed.skipped)}
        evaluation.write(output, **about)
    else:
        common.refuse(args, CLASSIFIER_FLAGS, "for a detector")
        pictures = number("--pictures", args.pictures, PICTURES)
        boxes = detector_feed(model, args)
        print(boxes.report())
        found = evaluate_detector(model, boxes, pictures)
        print_precisions(found)
        about |= {
            "split": boxes.test_split,
            "skipped": len(boxes.skipped),
            "clipped": len(boxes.clipped),
        }
        threshold = THRESHOLD if args.threshold is None else args.threshold
        found.write(output, threshold, **about)
    print(f"Files: {output}")


def number(flag: str, given: int | None, default: int) -> int:
    """Returns how many pictures a sheet has: none, or more.

    Raises:
        ValueError: naming the flag, if fewer are asked for.
    """
    if given is not None and given < 0:
        raise ValueError(f"{flag} must be 0 or more. Received: {given}")
    return default if given is None else given


def classifier_feed(
    predictor: "Predictor", args: argparse.Namespace
) -> "data.Feed":
    """Opens the images of the command line for a classifier."""
    from keras_muffnet import data
    from keras_muffnet.evaluation import check_classes

    source = common.open_images(args)
    check_classes(source.class_names, predictor.class_names, predictor.classes)
    return data.make_feed(
        source,
        dataclasses.replace(data.PLAIN, test_crop=predictor.crop),
        size=common.image_size(args, predictor.size),
        **feed_settings(args, BATCH_SIZE),
        on_bad_image=args.on_bad,
    )


def detector_feed(
    detector: "Detector", args: argparse.Namespace
) -> "data.DetectionFeed":
    """Opens the images of the command line for a detector."""
    from keras_muffnet import data
    from keras_muffnet.evaluation import check_classes

    source = common.open_boxes(args)
    check_classes(source.class_names, detector.class_names, detector.classes)
    common.image_size(args, detector.size)
    return data.make_detection_feed(
        source,
        size=detector.size,
        **feed_settings(args, DETECTOR_BATCH_SIZE),
        on_bad_annotation=args.on_bad,
    )


def feed_settings(args: argparse.Namespace, batch_size: int) -> dict[str, Any]:
    """Returns what both feeds are made with: pixels as they are, one split."""
    return {
        "batch_size": batch_size
        if args.batch_size is None
        else args.batch_size,
        "train_split": None,
        "test_split": args.split,
        "cache": False,
        "mean": 0.0,
        "std": 1.0,
    }


def print_accuracies(result: "Evaluation") -> None:
    """Prints the accuracies and the classes that are hardest."""
    print(
        f"{result.images} images: top 1 {result.top_1:.2%}, "
        f"top 5 {result.top_5:.2%}"
    )
    accuracies = result.per_class
    # Classes without images come last, as NaN.
    hardest = accuracies.argsort()[:10]
    print("hardest classes:")
    for number in hardest:
        if accuracies[number] == accuracies[number]:
            print(f"  {accuracies[number]:>7.2%}  {result.class_names[number]}")


def print_precisions(result: "DetectionEvaluation") -> None:
    """Prints the figures of COCO and those of Pascal VOC."""
    print(f"{result.images} images, {result.objects} objects")
    for name, value in result.coco.items():
        print(f"  {name:<10}{value:>8.4f}")
    print(f"{'VOC, IoU 0.5':<24}{'area':>8}{'11 points':>11}")
    for name, value in result.voc.items():
        print(f"  {name:<22}{value:>8.4f}{result.voc_11_points[name]:>11.4f}")
