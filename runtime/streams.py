"""Every stream of a film beside its picture: copied packet by packet where the new container takes it."""

from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
from av.stream import Disposition

from .cut import Cut, Handler
from .recoding import sound, words

MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
_COVERS = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")}
_PREROLL = Fraction(1, 10)
"""Seconds of sound before the beginning that a decoder may need; Opus asks for the longest, 80 ms."""
_OF_THE_FILE = ("major_brand", "minor_version", "compatible_brands", "encoder", "duration")
_WORDS = ("BPS", "DURATION", "NUMBER_OF_FRAMES", "NUMBER_OF_BYTES", "_STATISTICS", "ENCODER", "encoder")


def carry(
    source: Any,
    main: Any,
    output: Any,
    suffix: str,
    cut: Cut,
    covers: Mapping[int, bytes],
    without: Container[int],
    anew: Container[int],
) -> tuple[dict[int, Handler], list[str]]:
    """Add to `output` a stream for each of the source's others, its chapters and metadata.

    Args:
        covers: the pictures that `covers_of` found, by the index of their streams.
        without: indices of streams that are not carried over.
        anew: indices of streams that are not copied, whatever the container says to their headers.

    Returns:
        What turns the packets of each stream that is carried over, by its index; and notes on what is not as it was.
    """
    handlers: dict[int, Handler] = {}
    notes: list[str] = []
    for stream in source.streams:
        if stream is main or stream.index in without:
            continue
        name = stream.codec_context.name if stream.codec_context else getattr(stream, "name", None)
        cover = is_cover(stream)
        if stream.type == "data" and name in ("bin_data", None) and source.format.name.startswith("mov"):
            continue  # time codes and chapter texts, which a muxer makes anew out of metadata
        if cover and suffix == ".mkv" and name in _COVERS:
            if stream.index in covers:
                ending, kind = _COVERS[name]
                output.add_attachment(f"cover.{ending}", kind, covers[stream.index])
            continue
        if stream.type == "attachment":
            if suffix == ".mkv":
                output.add_stream_from_template(stream)
            else:
                notes.append(f"attachment left out: {suffix} takes none (.mkv would)")
            continue
        if stream.index not in anew and _takes(suffix, stream, cover):
            handlers[stream.index] = _copying(_added(output, stream), stream, cut, suffix)
            if stream.type == "video" and not cover:
                notes.append(f"video stream {stream.index} is copied as it is; only the main one is translated")
        elif stream.type == "audio" and stream.codec_context:
            made, handlers[stream.index] = sound(output, stream, suffix, cut)
            label(made, stream)
            notes.append(f"audio made anew: {suffix} does not take {name}")
        elif stream.type == "subtitle" and stream.codec_context and stream.codec_context.codec.text_sub:
            made, handlers[stream.index] = words(output, stream, suffix, cut)
            label(made, stream)
        else:
            kind, form = "cover" if cover else stream.type, name or "a kind unknown to FFmpeg"
            elsewhere = "" if suffix == ".mkv" else " (.mkv may)"
            notes.append(f"{kind} left out: {suffix} does not take {form}{elsewhere}")
    output.metadata.update({k: v for k, v in source.metadata.items() if k.lower() not in _OF_THE_FILE})
    _chapters(source, output, cut)
    return handlers, notes


def is_cover(stream: Any) -> bool:
    return stream.type == "video" and bool(stream.disposition & Disposition.attached_pic)


def covers_of(source: Any) -> dict[int, bytes]:
    """The pictures that are attached to a container, by the index of their streams."""
    wanted = [s for s in source.streams if is_cover(s)]
    found: dict[int, bytes] = {}
    for packet in source.demux(wanted) if wanted else ():
        if packet.size:
            found.setdefault(packet.stream.index, bytes(packet))
        if len(found) == len(wanted):
            break
    return found


def label(stream: Any, source: Any) -> None:
    """Language, title and the like of a source's stream, and whether it is the default, forced, …"""
    stream.metadata.update({k: v for k, v in source.metadata.items() if not k.startswith(_WORDS)})
    with suppress(AttributeError, ValueError):
        stream.disposition = source.disposition


def _added(output: Any, template: Any) -> Any:
    stream = output.add_stream_from_template(template, opaque=True) if template.codec_context else None
    stream = stream or output.add_stream_from_template(template)
    label(stream, template)
    return stream


def _takes(suffix: str, stream: Any, cover: bool) -> bool:
    """Whether the container holds such a stream, by trying: its header may fail where the list of codecs does not."""
    if cover and suffix not in (".mp4", ".m4v"):
        return False
    try:
        with av.open(BytesIO(), "w", format=MUXERS[suffix]) as trial:
            _added(trial, stream)
            trial.start_encoding()
    except (av.FFmpegError, ValueError, OSError):
        return False
    return True


def _copying(stream: Any, source: Any, cut: Cut, suffix: str) -> Handler:
    spans, cover = source.type == "subtitle", is_cover(source)
    apart = 0 if suffix in (".mkv", ".webm") else 1  # the least between two packets of a stream
    last: int | None = None

    def handle(packet: Any) -> Iterator[Any]:
        nonlocal last
        if packet is None or packet.size == 0:
            return
        if cover:
            packet.pts = packet.dts = 0
        elif packet.dts is None and packet.pts is None:
            return
        else:
            packet.pts = packet.dts if packet.pts is None else packet.pts
            if packet.is_discard and packet.pts * packet.time_base < cut.shift - _PREROLL:
                return  # before the beginning that an edit list sets
            if not cut.place(packet, spans):
                return
            if last is not None and packet.dts < last + apart:  # time that stands still or goes back
                packet.dts = last + apart
                packet.pts = max(packet.pts, packet.dts)
            last = packet.dts
        packet.stream = stream
        yield packet

    return handle


def _chapters(source: Any, output: Any, cut: Cut) -> None:
    kept = []
    for chapter in source.chapters():
        base = chapter["time_base"] or Fraction(1, 1000)
        start, end = chapter["start"] * base, chapter["end"] * base
        low = max(start, cut.start) if cut.start is not None else start
        high = min(end, cut.end) if cut.end is not None else end
        if low < high:
            kept.append({**chapter, "start": int((low - cut.shift) / base), "end": int((high - cut.shift) / base)})
    if kept:
        output.set_chapters(kept)
