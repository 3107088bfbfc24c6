"""What a run writes of itself: CSV, TensorBoard events, curves."""

import os
import pathlib
import struct
import time
from collections.abc import Mapping
from collections.abc import Sequence

from keras_muffnet._files import write_csv
from keras_muffnet.plots import plot_curves

Row = Mapping[str, float]


class Log:
    """Writes `log.csv`, `curves.png` and TensorBoard's events.

    Args:
        folder: of the run.
        score: name of what the curves show beside the loss.
    """

    def __init__(self, folder: pathlib.Path, score: str) -> None:
        self.folder = folder
        self.score = score
        self._events: pathlib.Path | None = None
        self._draws = True

    def write(self, rows: Sequence[Row]) -> None:
        """Writes all epochs so far, the last of which is new.

        Args:
            rows: for each epoch its number, from 1, as "epoch", and more
                values by name.
        """
        self.rewrite(rows)
        self._write_events(rows[-1])

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Writes the CSV and the curves of the epochs so far."""
        write_csv(self.folder / "log.csv", rows, list(rows[0]))
        if self._draws:
            self._draw(rows)

    def _draw(self, rows: Sequence[Row]) -> None:
        history = {name: [row[name] for row in rows] for name in rows[0]}
        try:
            plot_curves(history, self.folder / "curves.png", self.score)
        except ImportError as error:
            # Machines for training often lack it, and can train all the same.
            print(f"No picture of the curves. {error}")
            self._draws = False

    def _write_events(self, row: Row) -> None:
        # A file for each start, as TensorBoard wants it: it would stop at a
        # record that a kill left half written.
        new = self._events is None
        now = time.time()
        if self._events is None:
            name = f"events.out.tfevents.{int(now)}.{os.getpid()}"
            self._events = self.folder / name
        with open(self._events, "ab") as file:
            if new:
                file.write(_record(_event(now, 0, _text(3, b"brain.Event:2"))))
            for name, value in row.items():
                if name != "epoch":
                    summary = _text(5, _summary(name, value))
                    file.write(_record(_event(now, int(row["epoch"]), summary)))


# TensorBoard's format: protocol buffers (tensorflow/core/util/event.proto) in
# TFRecords. Written by hand, so that it needs neither package.


def _event(now: float, step: int, content: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", now) + b"\x10" + _varint(step) + content


def _summary(name: str, value: float) -> bytes:
    number = b"\x15" + struct.pack("<f", value)
    return _text(1, _text(1, name.encode()) + number)


def _text(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    """CRC-32C, masked as TFRecords have it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    crc = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return struct.pack("<I", crc)
