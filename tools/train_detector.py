"""Trains SSD by a recipe; interrupted, the same command goes on.

    python tools/train_detector.py ssd300_fast --data VOC/ --output runs/cells
    python tools/train_detector.py ssd512 --data tfds:voc --weights best.keras

Any setting on the command line overrides the recipe's; `none` takes one back
that may be without a value. The run's folder gets what `tools/train.py` writes;
the best epoch is that of the highest AP50 on the test split. Killed at any
moment, the same command goes on after the last checkpoint. `KERAS_BACKEND`
chooses tensorflow, jax or torch.
"""

import argparse
import pathlib
import sys

# The flags are those of `train.py`, which lies beside this file.
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import train as classifier

from keras_muffnet.training import DetectionRecipe


def main() -> None:
    """Runs the command."""
    args = parse_args()
    output = args.output or pathlib.Path("runs") / args.recipe
    classifier.run(lambda: train(args, output), "train_detector")


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    return classifier.make_parser(__doc__ or "", DetectionRecipe).parse_args()


def train(args: argparse.Namespace, output: pathlib.Path) -> None:
    """Trains and prints the closing figures."""
    from keras_muffnet.training import Detection
    from keras_muffnet.training import build_detector
    from keras_muffnet.training import configure_keras
    from keras_muffnet.training import fit
    from keras_muffnet.training import open_detection_feed

    recipe = classifier.overridden(args, DetectionRecipe)
    configure_keras(recipe)
    feed = open_detection_feed(recipe)
    model = build_detector(recipe, len(feed.class_names))
    print(
        f"{model.name}, {model.count_params():,} parameters; {feed.report()}; "
        f"{feed.steps_per_epoch} steps an epoch"
    )
    result = fit(model, recipe, feed, output, task=Detection(recipe, feed))
    print(f"\n{'weights':<10}{'epoch':>6}{'AP50':>9}{'loss':>9}")
    for name, row in result.items():
        print(
            f"{name:<10}{row['epoch']:>6}{row['ap50']:>9.2%}{row['loss']:>9.4f}"
        )
    print(f"Files: {output}")


if __name__ == "__main__":
    main()
