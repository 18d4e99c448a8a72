"""Every stream of a film beside its picture: copied packet by packet where the new container takes it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
from av.stream import Disposition

MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
_AUDIO = {".webm": ("libopus", 48000), ".mkv": ("libopus", 48000)}
_AAC = ("aac", None)
_TEXT = {".mp4": "mov_text", ".m4v": "mov_text", ".mov": "mov_text", ".webm": "webvtt", ".mkv": "ass"}
_COVERS = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")}
_OF_THE_FILE = ("major_brand", "minor_version", "compatible_brands", "encoder", "duration")
_WORDS = ("BPS", "DURATION", "NUMBER_OF_FRAMES", "NUMBER_OF_BYTES", "_STATISTICS", "ENCODER", "encoder")


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


def carry(source: Any, main: Any, output: Any, suffix: str, cut: Cut) -> tuple[dict[int, Handler], list[str]]:
    """Add to `output` a stream for each of the source's others, its chapters and metadata.

    Returns:
        What turns the packets of each stream that is carried over, by its index; and notes on what is not as it was.
    """
    handlers: dict[int, Handler] = {}
    notes: list[str] = []
    for stream in source.streams:
        if stream is main:
            continue
        name = stream.codec_context.name if stream.codec_context else "unknown"
        cover = stream.type == "video" and stream.disposition & Disposition.attached_pic
        if stream.type == "data" and name in ("unknown", "bin_data", None):
            continue  # time codes and chapter texts, which a muxer makes anew out of metadata
        if cover and suffix == ".mkv" and name in _COVERS:
            _attach_cover(source, stream, output, name)
            continue
        if stream.type == "attachment":
            if suffix == ".mkv":
                output.add_stream_from_template(stream)
            else:
                notes.append(f"attachment left out: {suffix} takes none (.mkv would)")
            continue
        if _takes(suffix, stream, bool(cover)):
            handlers[stream.index] = _copying(_added(output, stream), stream, cut, bool(cover))
            if stream.type == "video" and not cover:
                notes.append(f"video stream {stream.index} is copied as it is; only the main one is translated")
        elif stream.type == "audio" and stream.codec_context:
            handlers[stream.index] = _encoding(output, stream, suffix, cut)
            notes.append(f"audio made anew: {suffix} does not take {name}")
        elif stream.type == "subtitle" and stream.codec_context and stream.codec_context.codec.text_sub:
            handlers[stream.index] = _texts(output, stream, suffix, cut)
        else:
            notes.append(f"{stream.type} left out: {suffix} does not take {name} (.mkv may)")
    output.metadata.update({k: v for k, v in source.metadata.items() if k.lower() not in _OF_THE_FILE})
    _chapters(source, output, cut)
    return handlers, notes


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
    if cover and suffix not in (".mp4", ".m4v", ".mov"):
        return False
    try:
        with av.open(BytesIO(), "w", format=MUXERS[suffix]) as trial:
            _added(trial, stream)
            trial.start_encoding()
    except (av.FFmpegError, ValueError, OSError):
        return False
    return True


def _copying(stream: Any, source: Any, cut: Cut, cover: bool) -> Handler:
    spans = source.type == "subtitle"

    def handle(packet: Any) -> Iterator[Any]:
        if packet is None or packet.size == 0:
            return
        if cover:
            packet.pts = packet.dts = 0
        elif packet.dts is None and packet.pts is None:
            return
        else:
            packet.pts = packet.dts if packet.pts is None else packet.pts
            if not cut.place(packet, spans):
                return
        packet.stream = stream
        yield packet

    return handle


def _encoding(output: Any, source: Any, suffix: str, cut: Cut) -> Handler:
    codec, rate = _AUDIO.get(suffix, _AAC)
    stream = output.add_stream(codec, rate=rate or source.codec_context.sample_rate)
    channels = source.codec_context.layout.nb_channels
    stream.codec_context.layout = source.codec_context.layout.name if channels <= 2 else "5.1"
    stream.codec_context.bit_rate = 80_000 * min(channels, 6)
    label(stream, source)
    made: list[Any] = []  # opened by the header, which tells how long its frames are

    def resampler() -> Any:
        if not made:
            context = stream.codec_context
            context.open(strict=False)
            made.append(
                av.AudioResampler(
                    context.format.name, context.layout.name, context.sample_rate, frame_size=context.frame_size or None
                )
            )
        return made[0]

    def handle(packet: Any) -> Iterator[Any]:
        frames: list[Any] = []
        with suppress(av.InvalidDataError):  # one packet of sound that is damaged
            frames = source.codec_context.decode(packet)
        for frame in frames:
            time = None if frame.pts is None else frame.pts * frame.time_base
            if time is None or (cut.start and time < cut.start) or (cut.end is not None and time >= cut.end):
                continue
            frame.pts -= round(cut.shift / frame.time_base)
            for block in resampler().resample(frame):
                yield from stream.encode(block)
        if packet is None and made:
            for block in resampler().resample(None):
                yield from stream.encode(block)
            yield from stream.encode(None)

    return handle


def _texts(output: Any, source: Any, suffix: str, cut: Cut) -> Handler:
    stream = output.add_stream(_TEXT[suffix])
    if not source.codec_context.is_open:
        source.codec_context.open(strict=False)  # which makes the header that an encoder asks for
    stream.codec_context.subtitle_header = source.codec_context.subtitle_header
    stream.time_base = Fraction(1, 1000)
    label(stream, source)

    def handle(packet: Any) -> Iterator[Any]:
        if packet is None or packet.size == 0 or packet.pts is None or not cut.place(packet, spans=True):
            return
        text = None
        with suppress(av.FFmpegError):
            text = source.codec_context.decode2(packet)
        if text is None or not len(text):
            return
        made = stream.codec_context.encode_subtitle(text)
        made.time_base, made.pts, made.dts = packet.time_base, packet.pts, packet.pts
        made.duration, made.stream = packet.duration, stream
        yield made

    return handle


def _attach_cover(source: Any, stream: Any, output: Any, name: str) -> None:
    ending, kind = _COVERS[name]
    source.seek(0)
    packet = next((p for p in source.demux(stream) if p.size), None)
    if packet is not None:
        output.add_attachment(f"cover.{ending}", kind, bytes(packet))


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
