r"""Draws the objects that a detector finds on an image, a folder or a video.

    muffnet detect --model runs/cells/last.keras --labels labels.txt \
        photo.jpg --output boxes.png
    muffnet detect --model detector.tflite photos/ --output boxes/
    muffnet detect --model served/ film.mp4 --output boxes.mp4

The model is the name of a detector that ships, a `.keras` file, a SavedModel
(or the folder of its versions) or a `.tflite` file; pixels are scaled as
`preprocess_input` does. Of a folder all images are taken, and the pictures have
their names, as PNG files; hidden files are passed over, and a bad image is
reported and makes the status 1 at the end. Videos are written as VP9 in .webm
files and as H.264 in others. Prints what was found, box by box, in pixels of
the image: of a video, frame by frame.
"""

import argparse
import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

from keras_muffnet.cli import common
from keras_muffnet.data.layout import SUFFIXES
from keras_muffnet.data.layout import is_hidden

# Suffixes of videos, and the encoders of what is written.
VIDEOS = {
    ".avi": "libx264",
    ".mkv": "libx264",
    ".mov": "libx264",
    ".mp4": "libx264",
    ".webm": "libvpx-vp9",
}
# Frames that are looked at a time.
BATCH = 8
COLORS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#008080",
    "#9a6324",
    "#808000",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a parser this command's flags."""
    parser.add_argument(
        "input", type=pathlib.Path, help="an image, a folder or a video"
    )
    parser.add_argument("--model", required=True, help="see above")
    parser.add_argument(
        "--labels",
        type=pathlib.Path,
        help="text file with the name of a class on each line (default: what "
        "the detector was saved with, else their numbers)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.4,
        help="score from which an object is shown (default: 0.4)",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=pathlib.Path,
        help="picture, folder or video to write",
    )


def run(args: argparse.Namespace) -> int:
    """Detects, draws, writes and prints; returns the exit status."""
    from keras_muffnet.evaluation import load_detector

    if not args.input.exists():
        raise ValueError(f"input must exist. Received: {args.input}")
    suffix = args.input.suffix.lower()
    is_video = suffix in VIDEOS
    if not args.input.is_dir() and suffix not in (*SUFFIXES, *VIDEOS):
        raise ValueError(
            "input must be a folder or end in "
            f"{', '.join((*SUFFIXES, *VIDEOS))}. Received: {args.input}"
        )
    check_output(args.output, args.input)
    detector = load_detector(args.model)
    labels = list(detector.class_names)
    if args.labels:
        labels = common.read_labels(args.labels)
        if detector.classes not in (None, len(labels)):
            raise ValueError(
                f"--labels must name the {detector.classes} classes of the "
                f"detector. Received: {args.labels}, with {len(labels)} names"
            )
    mark = functools.partial(marked, labels=labels, detector=detector)
    if is_video:
        mark_video(args.input, args.output, mark, args.threshold)
        return 0
    status = 0
    for path, target in pictures(args.input, args.output):
        try:
            image = read_picture(path)
        except ValueError as error:
            if not args.input.is_dir():
                raise
            print(f"muffnet detect: error: {error}", file=sys.stderr)
            status = common.FAILED
            continue
        mark_picture(path, image, target, mark, args.threshold)
    return status


def check_output(output: pathlib.Path, source: pathlib.Path) -> None:
    """Raises if the output's name says of no format that can be written."""
    from keras_muffnet._optional import load_optional

    if source.is_dir():
        return
    suffix = output.suffix.lower()
    if source.suffix.lower() in VIDEOS:
        if suffix not in VIDEOS:
            raise ValueError(
                f"--output must end in {', '.join(VIDEOS)} for a video. "
                f"Received: {output}"
            )
        return
    pillow = load_optional("PIL.Image", "arrays")
    if pillow.registered_extensions().get(suffix) not in pillow.SAVE:
        raise ValueError(
            "--output must end as a picture does, such as .png or .jpg, for "
            f"an image. Received: {output}"
        )


def pictures(
    source: pathlib.Path, output: pathlib.Path
) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Yields the images, each with where its picture goes."""
    if not source.is_dir():
        yield source, output
        return
    paths = sorted(
        path
        for path in source.iterdir()
        if path.suffix.lower() in SUFFIXES and not is_hidden(path.name)
    )
    if not paths:
        raise ValueError(f"input must hold images. Received: {source}")
    for path in paths:
        yield path, output / f"{path.name}.png"


def read_picture(path: pathlib.Path) -> Any:
    """Reads an image.

    Raises:
        ValueError: naming the file, if it cannot be read or decoded.
    """
    from keras_muffnet.data.decoding import rgb_with_pillow

    try:
        return rgb_with_pillow(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"input must hold whole images. Received: {path} ({error})"
        ) from error


def mark_picture(
    path: pathlib.Path,
    image: Any,
    target: pathlib.Path,
    mark: Any,
    threshold: float,
) -> None:
    """Writes an image with boxes, and prints them."""
    from keras_muffnet._files import written_aside

    [(picture, lines)] = mark([image], threshold=threshold)
    with written_aside(target) as aside:
        picture.save(aside)
    print(f"{path}: {len(lines)} objects, {target}")
    for line in lines:
        print(f"  {line}")


def mark_video(
    source: pathlib.Path, target: pathlib.Path, mark: Any, threshold: float
) -> None:
    """Writes a video with boxes, and prints them frame by frame.

    Raises:
        ValueError: if the video cannot be read, or has no frames.
        OSError: if the new one cannot be written.
    """
    import numpy as np
    from PIL import Image

    from keras_muffnet._files import written_aside
    from keras_muffnet._optional import load_optional

    ffmpeg = load_optional("imageio_ffmpeg", "video")
    imageio = load_optional("imageio.v2", "video")
    try:
        reader = imageio.get_reader(source, "ffmpeg")
    except (OSError, RuntimeError) as error:
        raise ValueError(
            "input must be a video that ffmpeg can read. "
            f"Received: {source} ({last_line(error)})"
        ) from error
    with reader, written_aside(target) as aside:
        number = 0
        with video_writer(
            imageio, aside, target, reader.get_meta_data()["fps"]
        ) as append:
            for frames in batches(reader):
                images = [Image.fromarray(np.asarray(f)) for f in frames]
                for picture, lines in mark(images, threshold=threshold):
                    append(even(np.asarray(picture)))
                    print(f"frame {number}: {len(lines)} objects")
                    for line in lines:
                        print(f"  {line}")
                    number += 1
        if not number:
            raise ValueError(f"input must have frames. Received: {source}")
        with named_failures(target):
            written, _ = ffmpeg.count_frames_and_secs(aside)
        if written < number:
            raise OSError(
                f"{str(target)!r} cannot be written: only {written} of "
                f"{number} frames arrived"
            )
    print(f"{number} frames, {target}")


@contextlib.contextmanager
def video_writer(
    imageio: Any, aside: pathlib.Path, target: pathlib.Path, rate: float
) -> Iterator[Callable[[Any], None]]:
    """Yields what appends a frame to a video.

    Args:
        imageio: the package.
        aside: the file.
        target: what errors call it.
        rate: frames a second.
    """
    with named_failures(target):
        writer = imageio.get_writer(
            aside,
            format="ffmpeg",
            fps=rate,
            codec=VIDEOS[target.suffix.lower()],
            # Else frames are resized to multiples of 16.
            macro_block_size=1,
        )

    def append(frame: Any) -> None:
        with named_failures(target):
            writer.append_data(frame)

    try:
        yield append
    finally:
        with named_failures(target):
            writer.close()


@contextlib.contextmanager
def named_failures(target: pathlib.Path) -> Iterator[None]:
    """Raises what ffmpeg reports of a file that it writes, in one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{str(target)!r} cannot be written: {last_line(error)}"
        ) from error


def last_line(error: Exception) -> str:
    """Returns the last line of an error: ffmpeg's whole log may precede it."""
    return str(error).strip().rpartition("\n")[2]


def even(frame: Any) -> Any:
    """Repeats the last row and column of a frame of odd sides.

    H.264 stores colors for 2x2 pixels.

    Args:
        frame: uint8 `(height, width, 3)`.
    """
    import numpy as np

    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge")


def batches(frames: Any) -> Iterator[list[Any]]:
    """Yields frames by some at a time."""
    batch: list[Any] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def marked(
    images: list[Any], labels: list[str], detector: Any, threshold: float
) -> list[tuple[Any, list[str]]]:
    """Returns copies of PIL images with boxes, and a line for each box."""
    import numpy as np

    from keras_muffnet.data.decoding import resized_with_pillow

    pixels = np.stack(
        [np.asarray(resized_with_pillow(x, detector.size)) for x in images]
    )
    found = detector.detect(pixels.astype(np.float32))
    height, width = detector.size
    results = []
    for k, image in enumerate(images):
        scale = np.array([image.width / width, image.height / height] * 2)
        objects = [
            (found.boxes[k, n] * scale, found.scores[k, n], found.classes[k, n])
            for n in range(int(found.count[k]))
            if found.scores[k, n] >= threshold
        ]
        results.append(drawn(image, objects, labels))
    return results


def drawn(
    image: Any, objects: list[tuple[Any, float, int]], labels: list[str]
) -> tuple[Any, list[str]]:
    """Draws boxes, the surest on top, and prints them, surest first."""
    from PIL import ImageDraw
    from PIL import ImageFont

    picture = image.copy()
    draw = ImageDraw.Draw(picture)
    line = max(1, round(max(image.size) / 300))
    font = ImageFont.load_default(size=max(10, round(max(image.size) / 45)))
    lines = []
    for box, score, kind in reversed(objects):
        name = labels[kind] if kind < len(labels) else f"class {kind}"
        color = COLORS[kind % len(COLORS)]
        x_min, y_min, x_max, y_max = map(float, box)
        draw.rectangle((x_min, y_min, x_max, y_max), outline=color, width=line)
        text = f"{name} {score:.2f}"
        _, _, right, bottom = draw.textbbox((0, 0), text, font=font)
        # Inside of the image where there is no room above the box.
        top = max(0.0, y_min - bottom - 2)
        draw.rectangle((x_min, top, x_min + right + 4, top + bottom + 2), color)
        draw.text((x_min + 2, top), text, fill="white", font=font)
        lines.append(
            f"{name} {score:.3f} at "
            f"({x_min:.1f}, {y_min:.1f}, {x_max:.1f}, {y_max:.1f})"
        )
    return picture, lines[::-1]
