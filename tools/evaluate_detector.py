"""Evaluates a detector on a split of images with boxes.

    python tools/evaluate_detector.py --model runs/cells/last.keras --data VOC/
    python tools/evaluate_detector.py --model d.tflite --data coco/ --split val

The model is the name of a detector that ships, a `.keras` file, a SavedModel
(or the folder of its versions) or a `.tflite` file; pixels are scaled as
`preprocess_input` does. Prints COCO's twelve figures, and Pascal VOC's average
precision of each class at an IoU of 0.5, of the whole area and at 11 points.
Writes them to `evaluation.json`, and to `boxes.png` a sheet of images with what
was found, their scores, in them.
"""

import argparse
import json
import pathlib
from typing import Any


def main() -> None:
    """Runs the command."""
    args = parse_args()
    try:
        evaluate(args)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"evaluate_detector: error: {error}") from error


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", required=True, type=pathlib.Path, help="see above"
    )
    parser.add_argument(
        "--data",
        required=True,
        help="images: see `keras_muffnet.data.open_detection_source`",
    )
    parser.add_argument("--split", default="test", help="(default: test)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--on-bad-annotation",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with bad images and objects (default: raise)",
    )
    parser.add_argument(
        "--pictures", type=int, default=12, help="on the sheet (default: 12)"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.4,
        help="score from which boxes are drawn (default: 0.4)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help="folder (default: evaluation, beside the model)",
    )
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates, prints and writes."""
    import keras

    from keras_muffnet.data.detection.feed import make_detection_feed
    from keras_muffnet.data.detection.sources import open_detection_source
    from keras_muffnet.detection.evaluation import find_objects
    from keras_muffnet.evaluation import load_detector

    # The same for all formats; detectors transpose for a model that wants it.
    keras.config.set_image_data_format("channels_last")
    detector = load_detector(args.model)
    source = open_detection_source(args.data)
    feed = make_detection_feed(
        source,
        size=detector.size,
        batch_size=min(args.batch_size, len(source.split(args.split))),
        augment=False,
        train_split=args.split,  # the other one is not opened
        test_split=args.split,
        on_bad_annotation=args.on_bad_annotation,
        cache=False,
        mean=0.0,
        std=1.0,
    )
    truths = feed.ground_truth()
    shown: list[Any] = []

    def detect(batch: tuple[Any, Any]) -> Any:
        shown.extend(batch[0][: max(0, args.pictures - len(shown))])
        return detector.detect(batch[0])

    found = find_objects(detect, feed.evaluation(), truths, detector.size)
    figures = measure(truths, found, feed.class_names)
    print(f"{len(truths)} images, {sum(len(t.boxes) for t in truths)} objects")
    print_figures(figures)
    output = args.output or args.model.parent / "evaluation"
    write(output, args, figures, len(truths))
    if shown:
        draw(shown, truths, found, feed.class_names, args.threshold, output)
    print(f"Files: {output}")


def measure(
    truths: list[Any], found: list[Any], class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Returns COCO's figures and VOC's, the latter class by class."""
    from keras_muffnet.detection.evaluation import mean_precision
    from keras_muffnet.detection.metrics import coco_figures
    from keras_muffnet.detection.metrics import voc_average_precision

    count = len(class_names)
    figures: dict[str, Any] = {"coco": coco_figures(truths, found, count)}
    for name, points in (("voc", False), ("voc_11_points", True)):
        precisions = voc_average_precision(
            truths, found, count, eleven_points=points
        )
        figures[name] = {
            "mean": mean_precision(precisions),
            **dict(zip(class_names, map(float, precisions), strict=True)),
        }
    return figures


def print_figures(figures: dict[str, Any]) -> None:
    """Prints both tables."""
    for name, value in figures["coco"].items():
        print(f"  {name:<10}{value:>8.4f}")
    print(f"{'VOC, IoU 0.5':<24}{'area':>8}{'11 points':>11}")
    for name, value in figures["voc"].items():
        print(
            f"  {name:<22}{value:>8.4f}{figures['voc_11_points'][name]:>11.4f}"
        )


def write(
    output: pathlib.Path,
    args: argparse.Namespace,
    figures: dict[str, Any],
    images: int,
) -> None:
    """Writes `evaluation.json`; what there is no figure of is null in it."""
    from keras_muffnet._files import written_aside

    def known(values: dict[str, float]) -> dict[str, float | None]:
        return {k: v if v == v else None for k, v in values.items()}

    content = {
        "model": str(args.model),
        "data": args.data,
        "split": args.split,
        "images": images,
        **{name: known(values) for name, values in figures.items()},
    }
    with written_aside(output / "evaluation.json") as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n")


def draw(
    images: list[Any],
    truths: list[Any],
    found: list[Any],
    class_names: tuple[str, ...],
    threshold: float,
    output: pathlib.Path,
) -> None:
    """Draws the first images, in their own aspect, with what was found."""
    import numpy as np
    from PIL import Image

    from keras_muffnet.plots import plot_boxes

    pixels, drawn = [], []
    for image, truth, answer in zip(images, truths, found, strict=False):
        height, width = truth.size
        picture = Image.fromarray(np.rint(image).astype(np.uint8))
        pixels.append(np.asarray(picture.resize((width, height))))
        sure = answer.scores >= threshold
        drawn.append([values[sure] for values in answer])
    boxes, scores, classes = zip(*drawn, strict=True)
    plot_boxes(
        pixels, boxes, classes, scores, class_names, output / "boxes.png"
    )


if __name__ == "__main__":
    main()
