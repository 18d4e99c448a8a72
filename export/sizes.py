"""The heights and widths that a Core ML package takes: one, several, or all between two sides."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..runtime.errors import UsageError

Between = tuple[int, int]
"""The shortest and the longest side, pixels."""


@dataclass(frozen=True)
class Sizes:
    """(height, width) in pixels, the default first; with `between` all whose sides are between those."""

    choices: tuple[tuple[int, int], ...]
    between: Between | None = None

    @property
    def varies(self) -> tuple[bool, bool]:
        """Whether there is more than one height, and more than one width."""
        heights, widths = zip(*self.choices, strict=True)
        return (True, True) if self.between else (len(set(heights)) > 1, len(set(widths)) > 1)

    def example(self, multiple: int) -> tuple[int, int]:
        """A height and a width to trace a net with: 2 or more times `multiple` where it varies, for 1 is special."""
        height, width = self.choices[0]
        rows, columns = self.varies
        return 2 * multiple if rows else height, 4 * multiple if columns else width

    def over(self, factor: int) -> "Sizes":
        """The same for what is `factor` times smaller."""
        between = (self.between[0] // factor, self.between[1] // factor) if self.between else None
        return Sizes(tuple((h // factor, w // factor) for h, w in self.choices), between)

    def take(self, width: int, height: int) -> bool:
        """Whether a picture of this size is one of them."""
        if self.between:
            return all(self.between[0] <= side <= self.between[1] for side in (width, height))
        return (height, width) in self.choices

    def __str__(self) -> str:
        if self.between:
            return f"{self.between[0]}..{self.between[1]}"
        return ", ".join(f"{w}x{h}" for h, w in self.choices)


def sides_to_prove(between: Between, side: int, multiple: int) -> Sequence[tuple[int, int]]:
    """Of all sizes between two sides (width, height): the size of training, the smallest, and one that is no square.

    Raises:
        UsageError: nothing is between them, or they are no multiples of the net's.
    """
    low, high = between
    if low >= high or low % multiple or high % multiple:
        raise UsageError(f"--sizes {low}..{high}: wanted two multiples of {multiple}, the smaller first")
    middle = min(max(side, low), high)
    taller = middle + multiple if middle < high else middle - multiple
    return list(dict.fromkeys([(middle, middle), (low, low), (middle, taller)]))
