r"""Evaluates a classifier on the test images of a data set.

    python tools/evaluate.py --model runs/cifar/best.keras --data cifar10/
    python tools/evaluate.py --model m.tflite --data tfds:cifar10
    python tools/evaluate.py --model w.weights.h5 --alpha 0.5 --size 32 \
        --data cifar10/

The model is a `.keras` file, the weights of a MuffNet, a SavedModel (or the
folder of its versions) or a `.tflite` file. Prints top-1 and top-5 accuracy
and the classes that are hardest, and writes `evaluation.json`,
`per_class.csv`, `confusion.png` and `mistakes.png`, a sheet of the most
confident mistakes.
"""

import argparse
import pathlib
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from keras_muffnet.evaluation import Evaluation


def main() -> None:
    """Runs the command."""
    args = parse_args()
    try:
        evaluate(args)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"evaluate: error: {error}") from error


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
        help="images: see `keras_muffnet.data.open_source`",
    )
    parser.add_argument("--split", default="test", help="(default: test)")
    parser.add_argument(
        "--size",
        type=int,
        help="in pixels, for weights and for models that take any size",
    )
    parser.add_argument(
        "--alpha", type=float, default=1.0, help="of weights (default: 1)"
    )
    parser.add_argument(
        "--stem", default="auto", help="of weights (default: auto)"
    )
    parser.add_argument(
        "--normalization",
        nargs=2,
        type=float,
        metavar=("MEAN", "STD"),
        help="how pixels of 0 to 255 are scaled for the model (default: what "
        "a .tflite file says, 0 1 if a .keras model starts with a layer that "
        "scales them, 128 128 otherwise)",
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--mistakes", type=int, default=32, help="on the sheet (default: 32)"
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

    from keras_muffnet import data
    from keras_muffnet import training

    # The same for all formats; predictors transpose for a model that wants it.
    keras.config.set_image_data_format("channels_last")
    source = data.open_source(args.data)
    network: dict[str, Any] | None = None
    if args.model.suffix == ".h5" and args.size is not None:
        network = {
            "input_shape": (args.size, args.size, 3),
            "alpha": args.alpha,
            "stem": args.stem,
            "classes": len(source.class_names),
        }
    predictor = training.load_predictor(
        args.model,
        network=network,
        normalization=args.normalization and tuple(args.normalization),
    )
    height, width = (size or args.size for size in predictor.size)
    if height is None or width is None:
        raise ValueError("--size must be given: the model takes any size")
    feed = data.make_feed(
        source,
        data.PLAIN,
        size=(height, width),
        batch_size=min(args.batch_size, len(source.split(args.split))),
        train_split=args.split,  # the other one is not opened
        test_split=args.split,
        cache=False,
        mean=0.0,
        std=1.0,
    )
    result = training.evaluate(
        predictor.predict, feed.evaluation(), feed.class_names, args.mistakes
    )
    print_figures(result)
    output = args.output or args.model.parent / "evaluation"
    result.write(
        output, model=str(args.model), data=args.data, split=args.split
    )
    print(f"Files: {output}")


def print_figures(result: "Evaluation") -> None:
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


if __name__ == "__main__":
    main()
