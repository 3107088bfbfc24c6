"""What both feeds have in common: checks of arguments, and batches in order."""

import os
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras

from keras_muffnet._arguments import positive_integer


def check_batches(
    size: Any, batch_size: Any, seed: Any, data_format: str | None
) -> tuple[tuple[int, int], int, str]:
    """Checks what any feed's batches are of.

    Args:
        size: height and width of the images.
        batch_size: images a batch.
        seed: of the order and the augmentation.
        data_format: of the images; None for Keras's.

    Returns:
        Size, batch size and data format.

    Raises:
        ValueError: naming the argument, if one is not as above.
    """
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(
            f"`size` must be a height and a width. Received: size={size!r}"
        )
    height, width = (
        positive_integer(f"size[{k}]", side) for k, side in enumerate(size)
    )
    batch_size = positive_integer("batch_size", batch_size)
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(
            f"`seed` must be an integer, 0 or more. Received: seed={seed!r}"
        )
    if data_format is None:
        data_format = keras.config.image_data_format()
    if data_format not in ("channels_first", "channels_last"):
        raise ValueError(
            "`data_format` must be 'channels_first', 'channels_last' or None. "
            f"Received: data_format={data_format!r}"
        )
    return (height, width), batch_size, data_format


def skips(name: str, on_bad: Any) -> bool:
    """Whether an argument that is "raise" or "skip" is the latter.

    Raises:
        ValueError: if it is neither.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(
            f"`{name}` must be 'raise' or 'skip'. Received: {name}={on_bad!r}"
        )
    return on_bad == "skip"


def check_count(batch_size: int, images: int, kind: str = "training") -> None:
    """Raises if there are too few images for a batch."""
    if images < batch_size:
        raise ValueError(
            f"`batch_size` must be at most the number of {kind} images, "
            f"{images}. Received: batch_size={batch_size}"
        )


def check_step(epoch: int, start_step: int, steps: int) -> None:
    """Raises if there is no such epoch, or it has no such step.

    Args:
        epoch: from 0.
        start_step: from 0.
        steps: of an epoch; 0 without training images.
    """
    if steps == 0:
        raise ValueError(
            "`train_split` must be given for training batches. "
            "Received: train_split=None"
        )
    if not 0 <= start_step < steps or epoch < 0:
        raise ValueError(
            "`epoch` must be 0 or more and `start_step` in [0, "
            f"{steps}). Received: epoch={epoch}, "
            f"start_step={start_step}"
        )


class Batches(keras.utils.PyDataset):
    """Batches in their order, for Keras on any backend.

    Args:
        ready: gives them from the first on.
        length: how many there are.
    """

    def __init__(
        self, ready: Callable[[], Iterator[tuple[Any, ...]]], length: int
    ):
        super().__init__()
        self._ready = ready
        self._length = length
        self._next = 0
        self._iterator: Iterator[tuple[Any, ...]] = iter(())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if index >= len(self):
            # Ends a loop over the batches, as Keras before 3.11 writes it.
            raise IndexError(f"batch {index} of {len(self)}")
        if index == 0:
            # Keras looks at the first batches, then starts anew.
            self._iterator = self._ready()
            self._next = 0
        if index != self._next:
            raise ValueError(
                "batches must be taken in their order, which `model.fit` does "
                f"with shuffle=False. Received: batch {index} in place of "
                f"{self._next} of {len(self)}"
            )
        self._next += 1
        return next(self._iterator)


def fits_in_memory(needed: int) -> bool:
    """Whether so many bytes are within half of the machine's memory."""
    # Windows does not say; there numpy raises what it cannot hold.
    if not hasattr(os, "sysconf"):
        return True
    return (
        needed <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    )
