"""The finished segments of a film and the other streams of its source become one file, nothing encoded again."""

import errno
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import Any, BinaryIO

import av

from .cut import Cut, cut_of
from .encoders import Encoder, tag
from .files import write_aside
from .frames import Look, open_video
from .matroska import ROOM, set_pixel_aspect
from .media import Media
from .options import FilmOptions
from .segments import Work, open_segment
from .streams import MUXERS, carry, covers_of, label


@dataclass(frozen=True)
class Film:
    """The finished segments of a film, and what they were made of and with."""

    media: Media
    stream: BinaryIO
    seen: Look
    encoder: Encoder
    options: FilmOptions
    work: Work
    damaged: bool

    @property
    def frame(self) -> int:
        """How long a frame is shown, in the time base of the picture."""
        return max(1, round(1 / self.seen.rate / self.seen.time_base))

    @property
    def end(self) -> Fraction:
        """When the last frame ends, in s of the source's clock."""
        return ((self.work.last or 0) + self.frame) * self.seen.time_base


def join(film: Film, target: Path) -> tuple[list[str], float]:
    """The segments as they are and the source's other streams, into the target.

    A stream that the container does not take, which may show as late as in its last packet, is left out.

    Returns:
        Notes on what is not as it was, and the seconds that the source lacks of what it says.
    """
    suffix = target.suffix.lower()
    with write_aside(target) as partial:
        try:
            notes, missing = _join(film, suffix, partial)
        except (av.FFmpegError, ValueError) as e:
            refused, anew = ({}, set()) if getattr(e, "errno", None) in _DISK else _refused(film, suffix, partial)
            if not refused and not anew:
                raise
            notes, missing = _join(film, suffix, partial, refused, anew)
            notes += refused.values()
        if _lacks_aspect(film, suffix):
            set_pixel_aspect(partial, film.seen.pixel_aspect)
    return notes, missing


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def _lacks_aspect(film: Film, suffix: str) -> bool:
    held = film.encoder.codec in ("h264", "hevc")  # these say it themselves, to the last digit
    return suffix in (".mkv", ".webm") and not held and film.seen.pixel_aspect != 1


def _refused(film: Film, suffix: str, partial: Path) -> tuple[dict[int, str], set[int]]:
    """Of the streams that cannot be copied where each is the only one beside the picture, by their indices: notes on
    those that cannot be made anew either, and those that can. None where the picture alone cannot be written."""
    with open_video(film.media, film.stream) as (source, main):
        kinds = {s.index: s.type for s in source.streams if s is not main}
    refused: dict[int, str] = {}
    anew: set[int] = set()
    for index, again in [(None, False), *((k, again) for k in kinds for again in (False, True))]:
        if again and index not in refused:
            continue
        try:
            _join(film, suffix, partial, kinds.keys() - {index}, {index} if again else ())
            if again:
                anew.add(index)
                del refused[index]
        except (av.FFmpegError, ValueError) as e:
            if index is None:
                break
            refused.setdefault(index, f"{kinds[index]} left out: {suffix} refused it ({e})")
    return refused, anew


def _join(
    film: Film, suffix: str, partial: Path, without: Container[int] = (), anew: Container[int] = ()
) -> tuple[list[str], float]:
    """Write the file with none of the streams in `without`, those in `anew` not copied, and see that it opens."""
    media, stream, seen, encoder, work = film.media, film.stream, film.seen, film.encoder, film.work
    cut = cut_of(media, stream, film.options)
    if film.damaged:  # sound without a picture is no part of the good part
        cut = Cut(cut.shift, cut.start, film.end)
    with open_video(media, stream) as (source, _):
        covers = covers_of(source)
    with (
        open_video(media, stream) as (source, main),
        open_segment(work.first()) as first,
        av.open(f"file:{partial}", "w", format=MUXERS[suffix]) as output,
    ):
        template = first.streams.video[0]
        video = output.add_stream_from_template(template, opaque=True)
        label(video, main)
        tag(video.codec_context, seen, template.codec_context.height)
        video.time_base, video.codec_context.framerate = seen.time_base, seen.rate
        if cut.start:
            video.metadata.pop("timecode", None)  # of the first frame, which is not there
        if _lacks_aspect(film, suffix):
            video.metadata["title"] = video.metadata.get("title", "") + ROOM
        if encoder.codec == "hevc" and suffix != ".mkv":
            video.codec_context.codec_tag = "hvc1"  # Apple's players take no other
        handlers, notes = carry(source, main, output, suffix, cut, covers, without, anew)
        if seen.hdr:
            notes.insert(0, f"HDR ({seen.hdr}) is mapped to SDR (BT.709)")
        reach = [film.end]
        others = _others(source, handlers, notes, reach)
        for packet in merge(_pictures(work, video, seen, cut, film.frame), others, key=_when):
            output.mux(packet)
        output.close()  # writes the index, which can fail as any write
        missing = 0.0 if film.options.end is not None else _missing(source, float(reach[0]))
    with av.open(f"file:{partial}", format=MUXERS[suffix]) as made:  # MOV with ID3 is written, and then not read
        if not made.streams.video:
            raise ValueError("the file that was written holds no video")
    return notes, missing


def _missing(source: Any, reach: float) -> float:
    """Seconds that a file promises after its last packet: Matroska and AVI that are cut short end without an error."""
    if source.format.name not in ("matroska,webm", "avi") or not source.duration:
        return 0.0
    missing = source.duration / 1_000_000 - reach  # both count from zero, wherever the film starts
    return missing if missing > 1 + 0.01 * reach else 0.0


def _pictures(work: Work, video: Any, seen: Look, cut: Cut, duration: int) -> Iterator[Any]:
    shift = round(cut.shift / seen.time_base)
    for packet in work.packets(seen.time_base, duration):
        packet.pts -= shift
        packet.dts -= shift
        packet.stream = video
        yield packet


def _others(source: Any, handlers: dict[int, Any], notes: list[str], reach: list[Fraction]) -> Iterator[Any]:
    """The packets of the other streams, in the order of the source; `reach` holds the latest end in s so far."""
    wanted = [s for s in source.streams if s.index in handlers]
    if not wanted:
        return
    damaged = 0
    try:
        for packet in source.demux(wanted):
            if packet.size and packet.pts is not None:
                reach.append((packet.pts + (packet.duration or 0)) * packet.time_base)
                reach[:] = [max(reach)]
            if packet.size and packet.is_corrupt:
                damaged += 1
            elif packet.size:
                yield from handlers[packet.stream.index](packet)
    except (av.FFmpegError, OSError) as e:
        notes.append(f"the other streams end early: {e}")
    if damaged:
        notes.append(f"{damaged} damaged packets of the other streams left out")
    for stream in wanted:
        with suppress(av.EOFError):
            yield from handlers[stream.index](None)


def _when(packet: Any) -> Fraction:
    time = packet.dts if packet.dts is not None else packet.pts or 0
    return Fraction(time) * Fraction(packet.time_base)
