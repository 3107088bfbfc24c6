r"""Exports a trained model as the next version of a TF Serving model.

    muffnet export --model m.keras --labels labels.txt --output /models/muffnet
    muffnet export --model m.weights.h5 --alpha 0.5 --size 224 \
        --classes 1000 --output /models/muffnet
    muffnet export --model bccd --output /models/cells
    muffnet export --model int8.tflite --format litert --output /models/muffnet

The output is the model's base path; the version written is one above those
that are there. With --format litert a float LiteRT file is written, or an
existing one, such as `muffnet quantize` writes, is copied as it is. With
--format both the version holds a SavedModel, for TF Serving, and a LiteRT
file, which `muffnet serve` runs: for a single client two to three times as
fast, for many at about the same rate.
"""

import argparse
import dataclasses
import pathlib
import tempfile

from keras_muffnet.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a parser this command's flags."""
    common.add_model_arguments(parser)
    parser.add_argument(
        "--labels",
        type=pathlib.Path,
        help="text file with the name of a class on each line (default: those "
        "that the model was trained on)",
    )
    common.add_normalization_argument(parser)
    parser.add_argument(
        "--format",
        choices=("saved_model", "litert", "both"),
        default="saved_model",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=lambda path: pathlib.Path(path).absolute(),
        help="base path: the folder of the model's versions",
    )


def run(args: argparse.Namespace) -> None:
    """Exports, and prints the files."""
    common.use_tensorflow()
    folder = export(args)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            print(f"{path}  {path.stat().st_size:,} bytes")
    card = folder / "README.md"
    if card.exists():
        print("\n" + card.read_text(encoding="utf-8"))


def export(args: argparse.Namespace) -> pathlib.Path:
    """Writes the version and returns its folder."""
    from keras_muffnet.detection.ssd import is_detector
    from keras_muffnet.evaluation import load_keras_model
    from keras_muffnet.evaluation.models import class_names_of
    from keras_muffnet.export import export_saved_model
    from keras_muffnet.export import publish_litert
    from keras_muffnet.preprocessing import preprocessing_of
    from keras_muffnet.preprocessing import with_preprocessing

    if args.model.endswith(".tflite"):
        if args.format != "litert" or args.labels or args.normalization:
            raise ValueError(
                "--model must be a .keras file, except for --format litert "
                "without --labels and --normalization: a .tflite file has its "
                f"own. Received: {args.model}"
            )
        return publish_litert(args.model, args.output)
    model = load_keras_model(args.model, common.network_arguments(args))
    detects = is_detector(model)
    if args.labels and detects and args.format == "litert":
        raise ValueError(
            "--labels must be left out for --format litert of a detector, "
            "whose file has no room for them"
        )
    known = preprocessing_of(model)
    if args.normalization:
        mean, std = args.normalization
        known = dataclasses.replace(known, mean=mean, std=std)
    names = class_names_of(model, args.model)
    if args.labels:
        names = tuple(common.read_labels(args.labels))
    known = dataclasses.replace(known, class_names=names)
    with tempfile.TemporaryDirectory() as scratch:
        litert = None
        if args.format != "saved_model":
            litert = pathlib.Path(scratch, "model.tflite")
            common.write_litert(model, known, litert)
        if litert is not None and args.format == "litert":
            return publish_litert(litert, args.output)
        if known != preprocessing_of(model):
            model = with_preprocessing(model, known)
        return export_saved_model(
            model,
            args.output,
            labels=known.class_names or None,
            litert=litert,
        )
