"""One picture on its way through the stages, and the room that pictures have together."""

import threading
from dataclasses import dataclass

from .errors import MediaError
from .ledger import Stat
from .pictures import NOTHING, Frames, Metadata
from .pixels import Uint8
from .plan import Job

KEPT = 1 << 28
"""Bytes of pictures at their own size that wait for their translation; one that finds no room is decoded again."""


class Room:
    """So many bytes, for several threads."""

    def __init__(self, size: int) -> None:
        self._left, self._lock = size, threading.Lock()

    def took(self, size: int) -> bool:
        """Whether there was room for so many more."""
        with self._lock:
            fits = size <= self._left
            self._left -= size if fits else 0
            return fits

    def give_back(self, size: int) -> None:
        with self._lock:
            self._left += size


@dataclass
class Task:
    """A job on its way through the stages, and in the end what became of it.

    Exactly one of these holds: `skipped` says why nothing is to be done, `error` what went wrong, `shown` has the
    frames of an animation, or else `pixels` are uint8 [H, W, 3].
    """

    job: Job
    original: Uint8 | None = None
    """The picture at its own size, beside `small` at the flow's, until `pixels` are given back; None for no room."""
    small: Uint8 | None = None
    pixels: Uint8 | None = None
    shown: Frames | None = None
    skipped: str | None = None
    error: MediaError | None = None
    note: str = ""
    source: tuple[str, Stat] | None = None
    known: Metadata = NOTHING
    animated: bool = False
    seconds: float = 0.0
    """Of work on it."""
    area: int = 0
    """Pixels of the picture at its own size."""
    room: Room | None = None
    """Where `original` takes some."""

    def let_go(self) -> None:
        """Of the pixels."""
        if self.room is not None and self.original is not None:
            self.room.give_back(self.original.nbytes)
        self.original = self.small = self.pixels = self.shown = None
