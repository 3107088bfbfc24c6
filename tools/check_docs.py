"""Runs every command and Python block of the README and the guides.

    python tools/check_docs.py                  # README.md and docs/guides/
    python tools/check_docs.py README.md        # one page

Blocks fenced as `bash` and `python` run in their order, in a folder of the
page's own that holds small stand-ins for the reader's files (`photos/`,
`cells/`, `photo.jpg`). The Python blocks of a page share a kernel. Before a
block, a comment changes how it is treated:

    <!-- check: background -->     starts a server and waits for its port
    <!-- check: skip: reason -->   is not run, and is listed with the reason
    <!-- check: train: FLAGS -->   runs `muffnet train` with these flags too,
                                   such as fewer epochs

Prints a line a block with its exit status; exits with status 1 if one failed.
It needs `nbclient` and `ipykernel`, and the package installed.
"""

import argparse
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import nbclient
import nbformat
import numpy as np
from PIL import Image
from PIL import ImageDraw

ROOT = pathlib.Path(__file__).resolve().parent.parent
SERVER_STARTS = 120  # seconds

_BLOCK = re.compile(
    r"(?:<!-- check: (?P<how>[^\n]*?) -->\n+)?"
    r"^```(?P<language>bash|python)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_COLORS = {
    "daisy": (250, 250, 240),
    "rose": (200, 30, 60),
    "tulip": (250, 190, 0),
}
_CELLS = {
    "RBC": (200, 110, 110),
    "WBC": (110, 70, 160),
    "Platelets": (150, 120, 190),
}


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        line: where it starts, counted from 1.
        language: "bash" or "python".
        how: "", "background", "skip: reason" or "train: FLAGS".
        code: its text.
    """

    line: int
    language: str
    how: str
    code: str


def main() -> None:
    """Runs the command; exits with status 1 if a block failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "pages",
        nargs="*",
        type=pathlib.Path,
        default=[ROOT / "README.md", *sorted((ROOT / "docs/guides").iterdir())],
        help="Markdown files (default: README.md and docs/guides/)",
    )
    failed = 0
    for page in parser.parse_args().pages:
        with tempfile.TemporaryDirectory() as folder:
            failed += run_page(page, pathlib.Path(folder))
    raise SystemExit(int(failed > 0))


def run_page(page: pathlib.Path, folder: pathlib.Path) -> int:
    """Runs the blocks of a page in a folder; returns how many failed."""
    make_files(folder)
    failed = 0
    servers: list[subprocess.Popen] = []
    notebook = nbformat.v4.new_notebook()
    client = nbclient.NotebookClient(
        notebook,
        timeout=1200,
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        with client.setup_kernel():
            for block in find_blocks(page.read_text()):
                status = run_block(block, client, folder, servers)
                failed += status not in ("0", "started", "skipped")
                first = block.code.strip().splitlines()[0]
                print(
                    f"{page.name}:{block.line}\t{status}\t{first}", flush=True
                )
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
    return failed


def find_blocks(text: str) -> list[Block]:
    """Finds the blocks of a page in their order."""
    return [
        Block(
            text.count("\n", 0, match.start("language")) + 1,
            match["language"],
            match["how"] or "",
            match["code"],
        )
        for match in _BLOCK.finditer(text)
    ]


def run_block(
    block: Block,
    client: nbclient.NotebookClient,
    folder: pathlib.Path,
    servers: list[subprocess.Popen],
) -> str:
    """Runs a block; returns its exit status, "started" or "skipped"."""
    if block.how.startswith("skip"):
        return "skipped"
    if block.language == "python":
        return run_cell(block.code, client)
    environment = {
        **os.environ,
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    code = block.code
    if block.how.startswith("train: "):
        flags = block.how.removeprefix("train: ")
        code = code.replace("muffnet train ", f"muffnet train {flags} ")
    command = ["bash", "-euo", "pipefail", "-c", code]
    if block.how == "background":
        servers.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
            )
        )
        return wait_for_port(block.code)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stdout[-3000:] + done.stderr[-3000:], file=sys.stderr)
    return str(done.returncode)


def run_cell(code: str, client: nbclient.NotebookClient) -> str:
    """Runs Python code in the page's kernel."""
    cell = nbformat.v4.new_code_cell(code)
    client.nb.cells.append(cell)
    client.execute_cell(cell, len(client.nb.cells) - 1)
    for output in cell.outputs:
        if output.output_type == "error":
            print("\n".join(output.traceback), file=sys.stderr)
            return f"{output.ename}: {output.evalue}".splitlines()[0]
    return "0"


def wait_for_port(command: str) -> str:
    """Waits until the server of a command listens on its REST port."""
    match = re.search(r"--rest_api_port[= ](\d+)", command)
    port = int(match[1]) if match else 8501
    deadline = time.monotonic() + SERVER_STARTS
    while time.monotonic() < deadline:
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return "started"
        time.sleep(0.2)
    return f"no server on port {port} after {SERVER_STARTS} s"


def make_files(folder: pathlib.Path) -> None:
    """Makes the reader's files: photos by class, cells with boxes, a photo."""
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for name, color in _COLORS.items():
            target = folder / "photos" / split / name
            target.mkdir(parents=True)
            for k in range(count):
                flower(random, color).save(target / f"{k}.jpg", quality=95)
    flower(random, _COLORS["rose"]).save(folder / "photo.jpg", quality=95)
    cells = folder / "cells"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (cells / part).mkdir(parents=True)
    for k in range(10):
        image, boxes = smear(random)
        image.save(cells / "JPEGImages" / f"{k}.jpg", quality=95)
        (cells / "Annotations" / f"{k}.xml").write_text(annotation(k, boxes))
    for split, numbers in (("trainval", range(8)), ("test", range(8, 10))):
        listed = "".join(f"{k}\n" for k in numbers)
        (cells / "ImageSets/Main" / f"{split}.txt").write_text(listed)


def flower(
    random: np.random.Generator, color: tuple[int, int, int]
) -> Image.Image:
    """Draws a disk of a class's color on a noisy background."""
    size = (96, 64)
    noise = random.integers(40, 120, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    x, y = int(random.integers(24, 72)), int(random.integers(20, 44))
    ImageDraw.Draw(image).ellipse((x - 18, y - 18, x + 18, y + 18), fill=color)
    return image


def smear(
    random: np.random.Generator,
) -> tuple[Image.Image, list[tuple[str, int, int]]]:
    """Draws cells of BCCD's classes; returns the picture and their places."""
    image = Image.new("RGB", (320, 240), (235, 225, 215))
    draw = ImageDraw.Draw(image)
    boxes = []
    for name, color in _CELLS.items():
        x, y = int(random.integers(0, 240)), int(random.integers(0, 160))
        draw.ellipse((x, y, x + 70, y + 70), fill=color)
        boxes.append((name, x, y))
    return image, boxes


def annotation(k: int, boxes: list[tuple[str, int, int]]) -> str:
    """Writes an image's boxes in Pascal VOC's form."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
        f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + 71}</xmax><ymax>{y + 71}</ymax></bndbox></object>"
        for name, x, y in boxes
    )
    return (
        f"<annotation><filename>{k}.jpg</filename><size><width>320</width>"
        f"<height>240</height><depth>3</depth></size>{objects}</annotation>"
    )


if __name__ == "__main__":
    main()
