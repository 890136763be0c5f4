"""Fixed slices of a catalogue, so that the tasks of a job array can share one run folder."""

import re
from dataclasses import dataclass
from pathlib import Path

from galmerhpc.errors import InputError


@dataclass(frozen=True, slots=True)
class Slice:
    """Every `count`-th view of a catalogue, from the `number`-th on (counted from 1).

    Attributes
    ----------
    number, count : int
        1 of 1 is the whole catalogue.

    Examples
    --------
    >>> part = Slice.parse("2/4")
    >>> list(part.of(10)), part.share(6), part.suffix
    ([1, 5, 9], 2, '-2of4')
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Slice":
        """Read ``K/N``.

        Raises
        ------
        InputError
            It is not of this form, or K is not in 1..N.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match and 1 <= int(match[1]) <= int(match[2]):
            return cls(int(match[1]), int(match[2]))
        raise InputError(f"--slice {text}: write K/N with K from 1 to N, for example 2/8")

    @classmethod
    def of_file(cls, path: Path) -> "Slice":
        """Return the slice that a file's name carries."""
        match = re.search(r"(raw|missing|scrape)-([0-9]+)of([0-9]+)[-.]", path.name)
        return cls(int(match[2]), int(match[3])) if match else cls()

    def is_sibling(self, other: "Slice") -> bool:
        """Return whether `other` is another slice of the same division, which may be running."""
        return other.count == self.count and other.number != self.number

    @property
    def whole(self) -> bool:
        """Whether it is the whole catalogue."""
        return self.count == 1

    @property
    def suffix(self) -> str:
        """What the names of its files carry."""
        return "" if self.whole else f"-{self.number}of{self.count}"

    def of(self, size: int) -> range:
        """Return the numbers of its views, from 0, in a catalogue of `size`."""
        return range(self.number - 1, size, self.count)

    def share(self, total: int) -> int:
        """Return its part of a whole number that the slices share."""
        return len(self.of(total))


WHOLE = Slice()
"""The whole catalogue."""
