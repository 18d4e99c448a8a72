"""The finished segments of a film and the other streams of its source become one file, nothing encoded again."""

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import Any, BinaryIO

import av

from .encoders import Encoder, tag
from .files import write_aside
from .frames import Look, open_video, origin
from .media import Media
from .options import FilmOptions
from .segments import Work, open_segment
from .streams import MUXERS, Cut, carry, label


def cut_of(media: Media, stream: BinaryIO, film: FilmOptions) -> Cut:
    with open_video(media, stream) as (source, _):
        zero = origin(source)
    start = None if film.start is None else zero + Fraction(film.start)
    return Cut(zero if start is None else start, start, None if film.end is None else zero + Fraction(film.end))


def join(
    media: Media,
    stream: BinaryIO,
    target: Path,
    seen: Look,
    encoder: Encoder,
    film: FilmOptions,
    work: Work,
    damaged: bool,
) -> tuple[list[str], float]:
    """The segments as they are and the source's other streams, into the target; notes, and the seconds missing."""
    suffix = target.suffix.lower()
    cut = cut_of(media, stream, film)
    duration = max(1, round(1 / seen.rate / seen.time_base))
    if damaged:  # sound without a picture is no part of the good part
        cut = Cut(cut.shift, cut.start, ((work.last or 0) + duration) * seen.time_base)
    with (
        open_video(media, stream) as (source, main),
        open_segment(work.first()) as first,
        write_aside(target) as partial,
        av.open(f"file:{partial}", "w", format=MUXERS[suffix]) as output,
    ):
        template = first.streams.video[0]
        video = output.add_stream_from_template(template, opaque=True)
        label(video, main)
        tag(video.codec_context, seen, template.codec_context.height)
        video.time_base = seen.time_base
        if encoder.codec == "hevc" and suffix != ".mkv":
            video.codec_context.codec_tag = "hvc1"  # Apple's players take no other
        handlers, notes = carry(source, main, output, suffix, cut)
        if suffix in (".webm", ".mkv") and encoder.codec in ("vp9", "av1") and seen.pixel_aspect != 1:
            # neither codec holds it, and PyAV leaves Matroska's own field empty
            notes.append(
                f"the pixel aspect {seen.pixel_aspect} is lost: {encoder.codec} in {suffix} has no place for it"
            )
        reach = [((work.last or 0) + duration) * seen.time_base]
        others = _others(source, handlers, notes, reach)
        for packet in merge(_pictures(work, video, seen, cut, duration), others, key=_when):
            output.mux(packet)
        output.close()  # writes the index, which can fail as any write
        missing = 0.0 if film.end is not None else _missing(source, float(reach[0]))
    return notes, missing


def _missing(source: Any, reach: float) -> float:
    """Seconds that a file promises after its last packet: Matroska and AVI that are cut short end without an error."""
    if source.format.name not in ("matroska,webm", "avi") or not source.duration:
        return 0.0
    missing = ((source.start_time or 0) + source.duration) / 1_000_000 - reach
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
    if source.format.name.startswith(("mov", "matroska")):
        source.seek(0)  # a cover may have been looked for
    try:
        for packet in source.demux(wanted):
            if packet.size and packet.pts is not None:
                reach.append((packet.pts + (packet.duration or 0)) * packet.time_base)
                reach[:] = [max(reach)]
            if packet.size and not packet.is_corrupt:
                yield from handlers[packet.stream.index](packet)
    except (av.FFmpegError, OSError) as e:
        notes.append(f"the other streams end early: {e}")
    for stream in wanted:
        with suppress(av.EOFError):
            yield from handlers[stream.index](None)


def _when(packet: Any) -> Fraction:
    time = packet.dts if packet.dts is not None else packet.pts or 0
    return Fraction(time) * Fraction(packet.time_base)
