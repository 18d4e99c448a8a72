"""What became of the inputs, or of the pictures that were asked for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .errors import MediaError

KEPT = 1000
"""Events of one kind that a report holds: of 100,000 inputs it has the number, and not each one's name."""


@dataclass(frozen=True)
class Event:
    """What `on_event` is told: how many inputs were found, or pictures are wanted, then how each one goes.

    `found` has the number of inputs as `total`; `frames` says that `count` of `total` frames of a video are written
    (None: nobody knows how many there are); `done`, `skipped` and `failed` end an input, `message` saying why it
    was skipped or failed, or what of it was left out.
    """

    kind: Literal["found", "frames", "done", "skipped", "failed"]
    source: str = ""
    target: Path | None = None
    message: str = ""
    count: int = 0
    total: int | None = None


class Ended:
    """How many inputs ended in one way, as `len`; iterating and indexing give the first KEPT of them."""

    def __init__(self) -> None:
        self._count = 0
        self._first: list[Event] = []

    def append(self, event: Event) -> None:
        self._count += 1
        if len(self._first) < KEPT:
            self._first.append(event)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Event]:
        return iter(self._first)

    def __getitem__(self, i: int) -> Event:
        return self._first[i]

    def __repr__(self) -> str:
        return f"<{self._count}: {self._first[:3]}{' …' if self._count > 3 else ''}>"


@dataclass
class Report:
    """What became of the inputs, in the order in which they ended, and the wall time in seconds.

    `images` counts the pictures that were translated, `stages` has the seconds in each stage, summed over the threads,
    so that together they may exceed the wall time: read (bytes and their hash), decode, prepare (size, numbers),
    integrate, finish (grey levels, size), encode, write (which waits for the disk), and of films join. `notes` are on
    the whole, not on one input.
    """

    done: Ended = field(default_factory=Ended)
    skipped: Ended = field(default_factory=Ended)
    failed: Ended = field(default_factory=Ended)
    seconds: float = 0.0
    device: str = ""
    notes: list[str] = field(default_factory=list)
    images: int = 0
    images_per_second: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)

    def teller(self, on_event: Callable[[Event], None]) -> Callable[[Event], None]:
        """Take down what ended, then tell `on_event`."""

        def tell(event: Event) -> None:
            if event.kind in ("done", "skipped", "failed"):
                getattr(self, event.kind).append(event)
            on_event(event)

        return tell


def ended(source: str, target: Path, error: MediaError | None) -> Event:
    """`done`, or `failed` with a message that names the source."""
    if error is None:
        return Event("done", source, target)
    message = str(error)
    named = message.startswith((source, str(target)))
    return Event("failed", source, target, message if named else f"{source}: {message}")
