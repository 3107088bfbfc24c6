"""Labelled images, encoded, by position.

A source gives the encoded images of a split by position, in any order. Both
feeds read from it, so that they see the same examples under the same numbers.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence


class Examples:
    """The encoded images of a split, by position from 0."""

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, position: int) -> str:
        """What an error calls the image: its path, or file and record."""
        raise NotImplementedError

    def read(self, position: int) -> tuple[bytes, int]:
        """Reads an image, still encoded, and its label.

        Raises:
            ValueError: telling what is wrong, without the image's name.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Source:
    """Labelled images, split into training and test images.

    Made by `open_source`.

    Attributes:
        name: as it was given to `open_source`.
        class_names: a name for each label.
    """

    name: str
    class_names: tuple[str, ...]
    _split: Callable[[str], Examples] = dataclasses.field(repr=False)

    def split(self, name: str) -> Examples:
        """Opens a split.

        Raises:
            ValueError: if there is none of that name, or it lacks an image,
                in all or in a class folder.
        """
        examples = self._split(name)
        if len(examples) == 0:
            raise ValueError(
                f"`source` must hold images. Received: {self.name!r}, whose "
                f"split {name!r} has none"
            )
        return examples


def listed(names: Sequence[str]) -> str:
    """How many there are, and the first five."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)}: {', '.join(map(repr, names[:5]))}{more}"
