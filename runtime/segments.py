"""The finished part of a film that is being made, in a folder beside its target, so that an interruption costs little.

Each segment is SEGMENT frames by an encoder of their own, and so a function of these frames alone: a film that was
interrupted any number of times ends up packet for packet like one that was not.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np

from .errors import MediaError
from .files import hidden, lock, write_aside, write_json

SEGMENT = 250
"""Frames of a segment: what x264 puts between two key frames anyway."""


@dataclass(frozen=True)
class Segment:
    """A finished file: its frames, the pts of the last one, and by how many packets decoding order runs ahead."""

    frames: int
    last: int
    delay: int


class Work:
    """The work folder of one target, its segments in files of this `form`. `segments` are those that are finished."""

    def __init__(self, folder: Path, key: dict[str, Any], form: str = "nut") -> None:
        self.folder, self._key, self.form = folder, key, form
        self.segments: list[Segment] = []
        state = _state(folder / "film.json")
        if state.get("key") == key:
            self.segments = [Segment(**entry) for entry in state["segments"]]
        for path in folder.iterdir():  # what another film, or one of other settings, left
            if path.name != "lock" and not (self.segments and self._holds(path)):
                path.unlink()

    @property
    def frames(self) -> int:
        return sum(segment.frames for segment in self.segments)

    @property
    def last(self) -> int | None:
        """The pts of the last finished frame."""
        return self.segments[-1].last if self.segments else None

    def next_file(self) -> Path:
        return self._file(len(self.segments))

    def add(self, segment: Segment, carried: tuple[Any, Any] | None = None) -> None:
        """Take down a segment that is written; `carried` is what the next one's frames need of this one's."""
        if carried is not None:
            with write_aside(self._carried(len(self.segments) + 1)) as partial, partial.open("wb") as f:
                np.savez(f, before=carried[0], kept=carried[1])
        segments = [*self.segments, segment]
        write_json(self.folder / "film.json", {"key": self._key, "segments": [asdict(s) for s in segments]})
        self.segments = segments  # only now: on a full disk none would be found again
        self._carried(len(self.segments) - 1).unlink(missing_ok=True)

    def carried(self) -> tuple[Any, Any] | None:
        path = self._carried(len(self.segments))
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["before"], arrays["kept"]

    def packets(self, time_base: Fraction, duration: int) -> Iterator[Any]:
        """Every video packet in decoding order, times in `time_base`.

        The times of decoding are made anew, dts[i] = the pts that is (i − delay)-th to be shown, since those of a
        segment may reach back over the one before it where the rate varies.
        """
        delay = max(segment.delay for segment in self.segments)
        shown: list[int] = []
        position = 0
        for number, segment in enumerate(self.segments):
            with open_segment(self._file(number)) as container:
                found = [p for p in container.demux(video=0) if p.pts is not None]
                times = [round(p.pts * p.time_base / time_base) for p in found]
                moved = segment.last - max(times)  # a segment begins at zero, which is its first time of decoding
                times = [t + moved for t in times]
                ahead = sorted(times)
                following = dict(zip(ahead, [*ahead[1:], segment.last + duration], strict=True))
                shown += ahead
                for packet, pts in zip(found, times, strict=True):
                    early = delay - position
                    dts = shown[0] - early * duration if early > 0 else shown[-early]
                    packet.time_base, packet.pts, packet.dts = time_base, pts, dts
                    packet.duration = following[pts] - pts
                    position += 1
                    yield packet
                del shown[: max(0, position - delay)]
                position = min(position, delay)

    def first(self) -> Path:
        return self._file(0)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.{self.form}"

    def _carried(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def _holds(self, path: Path) -> bool:
        known = [self._file(n) for n in range(len(self.segments))]
        return path.name == "film.json" or path in known or path == self._carried(len(self.segments))


def _state(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def work_on(target: Path, key: dict[str, Any], form: str = "nut") -> Iterator[Work]:
    """Yield the work folder beside `target`; afterwards it is gone, unless it holds finished segments.

    Raises:
        MediaError: another process is at work on it, or it cannot be made.
    """
    folder = hidden(target, target.name, ".segments")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as e:
        raise MediaError(f"{target}: cannot be written: {e}") from e
    work: Work | None = None
    try:
        if not lock(held, shared=False, wait=False):
            raise MediaError(f"{target}: another rfp is writing it")
        work = Work(folder, key, form)
        yield work
    finally:
        if work is not None and not work.segments:
            work.remove()
        os.close(held)


@contextmanager
def open_segment(path: Path) -> Iterator[Any]:
    with av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": "nut,mov"}) as container:
        yield container


def delay_of(times: Sequence[int]) -> int:
    """How many packets decoding order runs ahead of the order of showing: pts in decoding order → a count."""
    rank = dict(zip(sorted(times), count(), strict=False))
    return max((i - rank[t] for i, t in enumerate(times)), default=0)
