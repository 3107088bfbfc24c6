"""What the commands share: how models and images are named, how they fail."""

import argparse
import os
import pathlib
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from keras_muffnet.data import DetectionSource
    from keras_muffnet.data import Source
    from keras_muffnet.preprocessing import Preprocessing

FAILED = 1
INTERRUPTED = 128 + 2  # as a shell reports SIGINT

MODEL_HELP = (
    "name of one that ships ({names}), .keras or .weights.h5 file{more}"
)


def run(work: Callable[[], int | None], program: str, resumes: str = "") -> int:
    """Runs a command; reports what can go wrong outside of the code in a line.

    Args:
        work: does it, and may return an exit status.
        program: what the line starts with.
        resumes: where the same command resumes if it is interrupted.

    Returns:
        The exit status.
    """

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"{program}: warning: {message}", file=sys.stderr, flush=True)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            return work() or 0
    except BaseException as error:
        status = report(error, program, resumes)
        if status is None:
            raise
        return status


def report(error: BaseException, program: str, resumes: str = "") -> int | None:
    """Prints an expected failure as one line on stderr.

    Args:
        error: what was raised.
        program: see `run`.
        resumes: see `run`.

    Returns:
        The exit status; None for what is not expected, of which nothing is
        printed.
    """
    if isinstance(error, KeyboardInterrupt):
        hint = f"; the same command resumes {resumes}" if resumes else ""
        # A run says after which step it was.
        when = f" {error}" if str(error) else ""
        line = f"\n{program}: interrupted{when}{hint}"
        print(line, file=sys.stderr, flush=True)
        return INTERRUPTED
    if isinstance(error, expected_failures()):
        line = f"{program}: error: {in_one_line(error)}"
        print(line, file=sys.stderr, flush=True)
        return FAILED
    return None


def expected_failures() -> tuple[type[Exception], ...]:
    """Errors of bad data or arguments, missing packages and full disks."""
    known: tuple[type[Exception], ...] = (
        EOFError,
        ImportError,
        OSError,
        RuntimeError,
        ValueError,
        zipfile.BadZipFile,
    )
    # A bad image that tf.data meets. TensorFlow is not started for this.
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None:
        known += (tensorflow.errors.OpError,)
    return known


def in_one_line(error: BaseException) -> str:
    """Returns an error's message without line breaks and TensorFlow's nodes."""
    text = str(getattr(error, "message", None) or error) or repr(error)
    # What Python raised within tf.data, without where.
    text = text.partition("Traceback (most recent call last)")[0]
    text = re.sub(
        r"^Error in user-defined function .*?: \w+Error: ",
        "",
        text,
        flags=re.DOTALL,
    )
    text = re.sub(r"\{\{function_node [^}]*\}\}", "", text)
    text = re.sub(r"\[\[\{\{node .*?\}\}.*?\]\]", "", text)
    text = re.sub(r"\[Op:\w+\]( name:.*)?", "", text)
    # The functions' argument, as the commands name it.
    text = re.sub(r"on_bad_(image|annotation)='skip'", "--on-bad skip", text)
    return " ".join(text.split())


def add_model_arguments(
    parser: argparse.ArgumentParser, evaluates: bool = False
) -> None:
    """Adds `--model`, and the flags that the weights of a MuffNet need.

    Args:
        parser: gets the flags.
        evaluates: whether a SavedModel and a `.tflite` file will do too.
    """
    from keras_muffnet.published import published_detectors
    from keras_muffnet.published import published_weights

    names = ", ".join([*published_weights(), *published_detectors()])
    more = ", SavedModel (or the folder of its versions), .tflite file"
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help=MODEL_HELP.format(names=names, more=more if evaluates else ""),
    )
    weights = parser.add_argument_group("the network of a .weights.h5 file")
    weights.add_argument("--alpha", type=float, help="width multiplier")
    weights.add_argument("--size", type=int, help="of its images, in pixels")
    weights.add_argument(
        "--stem", help="first layers: see MuffNet (default: auto)"
    )
    weights.add_argument(
        "--classes", type=int, help="(default: those of --data, if any)"
    )


def add_normalization_argument(parser: Any) -> None:
    """Adds `--normalization`."""
    parser.add_argument(
        "--normalization",
        nargs=2,
        type=float,
        metavar=("MEAN", "STD"),
        help="how pixels of 0 to 255 are scaled for a classifier (default: "
        "what a .tflite file says; 0 1 if the model starts with a layer that "
        "scales them; 128 128 otherwise)",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--data`, how it is split, and `--on-bad`."""
    parser.add_argument(
        "--data",
        required=True,
        help="a folder or archive of images, 'digits' or 'tfds:NAME': see "
        "keras_muffnet.data.open_source, and for detectors "
        "open_detection_source",
    )
    parser.add_argument(
        "--validation-split",
        type=float,
        metavar="PART",
        help="of the training images, as given in training with the same "
        "--seed: the split val",
    )
    parser.add_argument(
        "--nested",
        choices=("top", "path"),
        help="what folders in the folder of a class are: more of its images, "
        "or classes of their own",
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--on-bad",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with bad images and annotations (default: raise)",
    )


def open_images(args: argparse.Namespace) -> "Source":
    """Opens the images of a classifier that the command line names."""
    from keras_muffnet.data import open_source

    return open_source(
        args.data,
        validation_split=args.validation_split,
        seed=args.seed,
        nested=args.nested,
    )


def open_boxes(args: argparse.Namespace) -> "DetectionSource":
    """Opens the images of a detector that the command line names."""
    from keras_muffnet.data import open_detection_source

    refuse(args, ("nested",), "for a detector")
    return open_detection_source(
        args.data, validation_split=args.validation_split, seed=args.seed
    )


def add_batch_size_argument(
    parser: argparse.ArgumentParser, classifier: int, detector: int
) -> None:
    """Adds `--batch-size`, whose default `batch_size` gives."""
    parser.add_argument(
        "--batch-size",
        type=int,
        help=f"(default: {classifier}; of a detector {detector})",
    )


def network_arguments(
    args: argparse.Namespace, classes: int | None = None
) -> dict[str, Any]:
    """Returns what the command line says of the network of weights.

    Args:
        args: with what `add_model_arguments` adds.
        classes: number of classes that the images have; None if unknown.

    Returns:
        Arguments of `keras_muffnet.MuffNet` for `.weights.h5`; for others
        those that were given all the same, except the size.

    Raises:
        ValueError: if one is missing.
    """
    given = {
        name: getattr(args, name)
        for name in ("alpha", "stem", "classes")
        if getattr(args, name) is not None
    }
    if not is_weights(args.model):
        return given
    from keras_muffnet.blocks import image_shape

    given.setdefault("classes", classes)
    given["input_shape"] = args.size and image_shape(args.size)
    for flag, name in (
        ("--alpha", "alpha"),
        ("--size", "input_shape"),
        ("--classes", "classes"),
    ):
        if given.get(name) is None:
            raise ValueError(
                f"{flag} must be given for a .weights.h5 file. "
                f"Received: --model {args.model}"
            )
    return given


def image_size(
    args: argparse.Namespace, size: tuple[int | None, int | None]
) -> tuple[int, int]:
    """Returns the height and width of a model's images.

    Args:
        args: with what `add_model_arguments` adds.
        size: what the model says of them; None for any.

    Raises:
        ValueError: if `--size` is missing for a model that takes any, or
            another one than that of the model.
    """
    height, width = (side or args.size for side in size)
    if height is None or width is None:
        raise ValueError("--size must be given: the model takes any size")
    if args.size not in (None, height) or args.size not in (None, width):
        raise ValueError(
            f"--size must be left out for a model of {height}x{width}. "
            f"Received: {args.size}"
        )
    return height, width


def is_weights(model: str) -> bool:
    """Whether a model is named by a file of its weights."""
    return pathlib.Path(model).suffix == ".h5"


def refuse(args: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    """Refuses flags that were given and cannot be honored.

    Args:
        args: of the command line, where what was not given is None.
        names: of the flags, as attributes.
        reason: ends "... must be left out ".

    Raises:
        ValueError: naming the flag.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} must be left out {reason}. "
                f"Received: {value}"
            )


def use_tensorflow() -> None:
    """Has Keras run on TensorFlow, unless the environment says otherwise."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def read_labels(path: pathlib.Path) -> list[str]:
    """Reads the names of classes, one on each line that is not empty.

    Raises:
        ValueError: if the file is not UTF-8; a byte order mark may start it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--labels must be a text file in UTF-8. Received: {path} ({error})"
        ) from None
    return [line.strip() for line in lines if line.strip()]


def write_litert(
    model: Any, known: "Preprocessing", path: pathlib.Path
) -> None:
    """Writes a float LiteRT file, of a classifier with metadata.

    Args:
        model: a classifier or a detector.
        known: what the metadata tell of the classes and the images.
        path: the file.
    """
    from keras_muffnet._files import written_aside
    from keras_muffnet.detection.ssd import is_detector
    from keras_muffnet.export import export_litert
    from keras_muffnet.litert.metadata import embed_metadata

    export_litert(model, path)
    if is_detector(model):
        return
    content = embed_metadata(
        path.read_bytes(),
        name=model.name,
        labels=known.class_names or None,
        mean=known.mean,
        std=known.std,
        crop=known.crop,
    )
    with written_aside(path) as aside:
        aside.write_bytes(content)
