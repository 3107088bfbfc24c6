r"""Exports a trained model as the next version of a TF Serving model.

    python tools/export.py --model m.keras --labels labels.txt \
        --output /models/muffnet
    python tools/export.py --weights m.weights.h5 --alpha 0.5 --size 224 \
        --classes 1000 --output /models/muffnet
    python tools/export.py --model int8.tflite --format litert \
        --output /models/muffnet

The output is the model's base path; the version written is one above those
that are there. With --format litert a float LiteRT file is written, or an
existing one, such as tools/quantize.py writes, is copied as it is.
"""

import argparse
import os
import pathlib
import tempfile
from typing import Any


def main() -> None:
    """Runs the command."""
    args = parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        folder = export(args)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"export: error: {error}") from error
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            print(f"{path}  {path.stat().st_size:,} bytes")
    if args.format == "saved_model":
        print("\n" + (folder / "README.md").read_text(encoding="utf-8"))


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--model",
        help=".keras or .tflite file, or the name of a detector that ships",
    )
    source.add_argument("--weights", help="weights of a MuffNet; see --alpha")
    parser.add_argument("--alpha", type=float, help="of --weights")
    parser.add_argument("--size", type=int, help="of --weights, in pixels")
    parser.add_argument("--classes", type=int, help="of --weights")
    parser.add_argument(
        "--labels",
        type=pathlib.Path,
        help="text file with the name of a class on each line",
    )
    parser.add_argument(
        "--normalization",
        nargs=2,
        type=float,
        metavar=("MEAN", "STD"),
        help="how pixels of 0 to 255 are scaled for the model (default: 128 "
        "128, and 0 1 if the model starts with a Rescaling layer)",
    )
    parser.add_argument(
        "--format", choices=("saved_model", "litert"), default="saved_model"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=lambda path: pathlib.Path(path).absolute(),
        help="base path: the folder of the model's versions",
    )
    return parser.parse_args()


def export(args: argparse.Namespace) -> pathlib.Path:
    """Writes the version and returns its folder."""
    from keras_muffnet.detection.ssd import is_detector
    from keras_muffnet.export import export_saved_model
    from keras_muffnet.export import publish_litert
    from keras_muffnet.preprocessing import scales_pixels
    from keras_muffnet.published import published_detectors

    if args.model and args.model.endswith(".tflite"):
        if args.format != "litert" or args.labels or args.normalization:
            raise ValueError(
                "--model must be a .keras file, but for --format litert "
                "without --labels and --normalization: a .tflite file has its "
                f"own. Received: {args.model}"
            )
        return publish_litert(args.model, args.output)
    model = load_model(args)
    labels = None
    if args.labels:
        labels = args.labels.read_text(encoding="utf-8").splitlines()
    elif args.format != "litert" and args.model in published_detectors():
        labels = list(published_detectors()[args.model].class_names)
    if args.format == "litert" and labels and is_detector(model):
        raise ValueError(
            "--labels must be left out for --format litert of a detector, "
            "whose file has no room for them"
        )
    if args.format == "litert":
        default = (0.0, 1.0) if scales_pixels(model) else (128.0, 128.0)
        return export_litert_version(
            model, labels, args.normalization or default, args.output
        )
    preprocess = None
    if args.normalization:
        mean, std = args.normalization

        def preprocess(pixels: Any) -> Any:
            return (pixels - mean) / std

    return export_saved_model(
        model, args.output, labels=labels, preprocess=preprocess
    )


def load_model(args: argparse.Namespace) -> Any:
    """Loads the model, or builds one for the weights."""
    import keras

    from keras_muffnet import MuffNet
    from keras_muffnet.detection import pretrained_ssd
    from keras_muffnet.published import published_detectors

    if args.model in published_detectors():
        return pretrained_ssd(args.model)
    if args.model:
        return keras.saving.load_model(args.model, compile=False)
    for name in ("alpha", "size", "classes"):
        if getattr(args, name) is None:
            raise ValueError(f"--weights needs --{name}")
    return MuffNet(
        input_shape=(args.size, args.size, 3),
        alpha=args.alpha,
        classes=args.classes,
        weights=args.weights,
    )


def export_litert_version(
    model: Any,
    labels: list[str] | None,
    normalization: tuple[float, float],
    base_path: pathlib.Path,
) -> pathlib.Path:
    """Writes a float LiteRT file with metadata as the next version."""
    from keras_muffnet.detection.ssd import is_detector
    from keras_muffnet.export import export_litert
    from keras_muffnet.export import publish_litert
    from keras_muffnet.litert.metadata import embed_metadata

    mean, std = normalization
    with tempfile.TemporaryDirectory() as folder:
        path = export_litert(model, pathlib.Path(folder) / "model.tflite")
        if is_detector(model):
            # Metadata is of models with one output.
            return publish_litert(path, base_path)
        content = embed_metadata(
            path.read_bytes(),
            name=model.name,
            labels=labels,
            mean=mean,
            std=std,
        )
        path.write_bytes(content)
        return publish_litert(path, base_path)


if __name__ == "__main__":
    main()
