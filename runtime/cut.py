"""What of a film is kept, and how its packets are moved in time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

from .frames import open_video, origin
from .media import Media
from .options import FilmOptions


@dataclass(frozen=True)
class Cut:
    """What is kept, in s of the source's clock, and what is taken off every time."""

    shift: Fraction
    start: Fraction | None
    end: Fraction | None

    def place(self, packet: Any, spans: bool = False) -> bool:
        """Move a packet's times; False for one outside. One that `spans` is kept in part where it reaches inside."""
        base = packet.time_base
        time, long = packet.pts * base, (packet.duration or 0) * base
        if self.end is not None and time >= self.end:
            return False
        if self.start is not None and time < self.start:
            if not (spans and time + long > self.start):
                return False
            packet.duration = round((time + long - self.start) / base)
            packet.pts = packet.dts = round(self.start / base)
        if spans and self.end is not None and packet.duration:
            packet.duration = min(packet.duration, round(self.end / base) - packet.pts)
        shift = round(self.shift / base)
        packet.pts -= shift
        packet.dts = packet.pts if packet.dts is None else packet.dts - shift
        return True


Handler = Callable[[Any], Iterable[Any]]
"""A packet of the source, or None at its end → packets of the output."""


def cut_of(media: Media, stream: BinaryIO, film: FilmOptions) -> Cut:
    with open_video(media, stream) as (source, _):
        zero = origin(source)
    start = None if film.start is None else zero + Fraction(film.start)
    return Cut(zero if start is None else start, start, None if film.end is None else zero + Fraction(film.end))
