"""What became of the inputs, or of the pictures that were asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .errors import MediaError


@dataclass(frozen=True)
class Event:
    """What `on_event` is told: how many inputs were found, or pictures are wanted, then how each one goes.

    `found` has the number of inputs as `total`; `frames` says that `count` of `total` frames of a video are written
    (None: nobody knows how many there are); `done`, `skipped` and `failed` end an input, `message` saying why it
    failed, or what of it was left out.
    """

    kind: Literal["found", "frames", "done", "skipped", "failed"]
    source: str = ""
    target: Path | None = None
    message: str = ""
    count: int = 0
    total: int | None = None


@dataclass
class Report:
    """What became of the inputs, in the order in which they ended, and the wall time in seconds."""

    done: list[Event] = field(default_factory=list)
    skipped: list[Event] = field(default_factory=list)
    failed: list[Event] = field(default_factory=list)
    seconds: float = 0.0
    device: str = ""

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
