r"""Quantizes a trained model to int8 LiteRT files and compares them.

    muffnet quantize --model m.keras --data digits --output runs/int8
    muffnet quantize --model w.weights.h5 --alpha 0.5 --size 224 \
        --data photos/ --output runs/int8
    muffnet quantize --model bccd --data bccd/ --on-bad skip --output runs/cells

Writes to the output folder `float32.tflite`; `int8_post_training.tflite`,
calibrated by the lowest and highest values; `int8.tflite`, fine-tuned from
there under fake quantization; `metrics.json`, and for a classifier with
--report what each layer lost. For a classifier the data may also be an .npz
file of uint8 `train_images` and `test_images`, `(n, height, width, channels)`,
and integer `train_labels` and `test_labels`. On two CPU cores and the 1,437
training digits MuffNet 0.5 at 32x32 takes two minutes. Interrupted in
fine-tuning, the same command resumes after the last whole epoch.

Of a detector `metrics.json` has Pascal VOC's average precision at an IoU of
0.5, of the whole area, and the mean IoU of the float file's sure boxes with
those nearest to them. Box decoding and suppression are inside; they, the input
and the outputs stay float32, the network is int8. Fine-tuning is by SSD's loss.
"""

import argparse
import pathlib

from keras_muffnet.cli import common

RESUMES = "after the last whole epoch of fine-tuning"
# Of a classifier and of a detector, where the command line does not say.
DEFAULTS = {
    "engine": ("keras", None),
    "epochs": (1, 2),
    "batch_size": (32, 8),
    "calibration_images": (500, 200),
    "train_split": ("train", None),
    "test_split": ("test", "test"),
    "on_bad": ("raise", "raise"),
    "io_dtype": ("int8", None),
    "float_layers": ([], None),
    "report": (False, None),
}
CLASSIFIER_FLAGS = (
    "engine",
    "train_images",
    "normalization",
    "float_layers",
    "io_dtype",
    "report",
    "emit_header",
)
# They say how images are read; an .npz file holds arrays.
IMAGE_FLAGS = (
    "train_split",
    "test_split",
    "validation_split",
    "nested",
    "on_bad",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a parser this command's flags."""
    common.add_model_arguments(parser)
    common.add_data_arguments(parser)
    # As of all in DEFAULTS, so that it is known what was given.
    parser.set_defaults(on_bad=None)
    parser.add_argument(
        "--train-split",
        help="(default: train; of a detector trainval where there is one)",
    )
    parser.add_argument("--test-split", help="(default: test)")
    parser.add_argument(
        "--output", required=True, type=pathlib.Path, help="folder"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        help="of fine-tuning (default: 1; of a detector 2)",
    )
    parser.add_argument(
        "--learning-rate", type=float, default=5e-4, help="(default: 0.0005)"
    )
    common.add_batch_size_argument(parser, 32, 8)
    parser.add_argument(
        "--calibration-images",
        type=int,
        help="(default: 500; of a detector 200)",
    )
    group = parser.add_argument_group("of a classifier")
    common.add_normalization_argument(group)
    group.add_argument(
        "--engine", choices=("keras", "tfmot"), help="(default: keras)"
    )
    group.add_argument(
        "--train-images", type=int, help="fine-tune on a sample of this size"
    )
    group.add_argument(
        "--float-layers",
        nargs="+",
        help="layers to leave in float, or 'unknown' for all that cannot be "
        "quantized",
    )
    group.add_argument(
        "--io-dtype",
        choices=("int8", "uint8", "float32"),
        help="(default: int8)",
    )
    group.add_argument(
        "--report",
        action="store_true",
        default=None,
        help="write report.txt and report.png: the loss of each layer",
    )
    group.add_argument(
        "--emit-header",
        metavar="NAME",
        help="write NAME.h too: int8.tflite as a C array",
    )


def run(args: argparse.Namespace) -> None:
    """Quantizes a classifier or a detector, whichever the model is."""
    common.use_tensorflow()
    import keras

    from keras_muffnet.detection.ssd import is_detector
    from keras_muffnet.evaluation import load_keras_model

    keras.utils.set_random_seed(args.seed)
    classes = None
    if common.is_weights(args.model) and args.classes is None:
        classes = count_classes(args)
    model = load_keras_model(
        args.model, common.network_arguments(args, classes)
    )
    if is_detector(model):
        from keras_muffnet.cli import quantize_detector

        common.refuse(args, CLASSIFIER_FLAGS, "for a detector")
        quantize_detector.quantize(model, with_defaults(args, 1))
    else:
        from keras_muffnet.cli import quantize_classifier

        if args.data.endswith(".npz"):
            refuse_image_flags(args)
        quantize_classifier.quantize(model, with_defaults(args, 0))


def refuse_image_flags(args: argparse.Namespace) -> None:
    """Refuses what an .npz file has no use for; weights need their size."""
    size = () if common.is_weights(args.model) else ("size",)
    common.refuse(args, (*IMAGE_FLAGS, *size), "for an .npz file")


def with_defaults(args: argparse.Namespace, kind: int) -> argparse.Namespace:
    """Fills in what a classifier (0) or a detector (1) has by default."""
    filled = vars(args).copy()
    for name, values in DEFAULTS.items():
        if filled[name] is None:
            filled[name] = values[kind]
    return argparse.Namespace(**filled)


def count_classes(args: argparse.Namespace) -> int | None:
    """Returns how many classes images have; None for an .npz file."""
    if args.data.endswith(".npz"):
        return None
    return len(common.open_images(args).class_names)
