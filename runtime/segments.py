"""The finished part of a film that is being made, in a folder beside its target, so that an interruption costs little.

Each segment is SEGMENT frames by an encoder of their own, and so a function of these frames alone: a film that was
interrupted any number of times ends up packet for packet like one that was not.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import av
import numpy as np

from .errors import MediaError
from .files import hidden, lock, read_small, write_aside, write_json

SEGMENT = 250
"""Frames of a segment: what x264 puts between two key frames anyway."""


_OURS = re.compile(r"\.?\d{6}(\.partial)?\.(nut|mov|npz)|\.?film(\.partial)?\.json")
"""Names of what is written into the folder, and so may be removed from it."""
_MOST_CARRIED = 1 << 30
_DELAY = 64


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
            self.segments = self._sound(state.get("segments"))
        for path in folder.iterdir():  # what another film, or one of other settings, left
            if _OURS.fullmatch(path.name) and not (self.segments and self._holds(path)):
                path.unlink()

    def _sound(self, entries: Any) -> list[Segment]:
        """The segments that film.json tells of; none where they are not such as this program writes."""
        try:
            segments = [Segment(**entry) for entry in entries]
            files = [self._file(number) for number in range(len(segments))]
            if all(map(_plausible, segments)) and all(f.is_file() and not f.is_symlink() for f in files):
                self._read(self._carried(len(segments)))
                return segments
        except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile):
            pass
        return []

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
        return self._read(self._carried(len(self.segments)))

    def _read(self, path: Path) -> tuple[Any, Any] | None:
        if not path.exists():
            return None
        with ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > _MOST_CARRIED:
                raise ValueError(f"{path}: unpacks to more than {_MOST_CARRIED:,} bytes")
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
        with suppress(OSError):  # what someone else put there stays
            for path in self.folder.iterdir():
                if _OURS.fullmatch(path.name) or path.name == "lock":
                    path.unlink()
            self.folder.rmdir()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.{self.form}"

    def _carried(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def _holds(self, path: Path) -> bool:
        known = [self._file(n) for n in range(len(self.segments))]
        return path.name == "film.json" or path in known or path == self._carried(len(self.segments))


def _plausible(segment: Segment) -> bool:
    numbers = segment.frames, segment.last, segment.delay
    whole = all(isinstance(n, int) for n in numbers)
    return whole and 1 <= segment.frames <= SEGMENT and 0 <= segment.delay <= _DELAY and abs(segment.last) < 1 << 62


def _state(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_small(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def work_on(target: Path, key: dict[str, Any], form: str = "nut") -> Iterator[Work]:
    """Yield the work folder beside `target`; afterwards it is gone, unless it holds finished segments.

    Raises:
        MediaError: another process is at work on it, or it cannot be made.
    """
    folder = hidden(target, target.name, ".segments")
    if folder.is_symlink():
        raise MediaError(f"{folder}: is a link, and not the folder in which a film is made; remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
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
