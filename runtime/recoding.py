"""Sound and subtitles made anew, for a container that does not take them as they are."""

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any

import av

from .cut import Cut, Handler

_JITTER = Fraction(1, 20)
"""Seconds by which a frame of sound may miss the end of the one before it: containers round times to 1 ms, AVI to
frames."""
_TEXT = {".mp4": "mov_text", ".m4v": "mov_text", ".mov": "mov_text", ".webm": "webvtt", ".mkv": "ass"}


def sound(output: Any, source: Any, suffix: str, cut: Cut) -> tuple[Any, Handler]:
    """A stream of `output` in Opus or AAC, and what fills it from the packets of `source`."""
    codec = "libopus" if suffix in (".webm", ".mkv") else "aac"
    rate = source.codec_context.sample_rate
    stream = output.add_stream(codec, rate=rate if rate in (av.Codec(codec, "w").audio_rates or ()) else 48000)
    channels = source.codec_context.layout.nb_channels
    stream.codec_context.layout = {1: "mono", 2: "stereo"}.get(channels, "5.1")  # AVI names none
    stream.codec_context.bit_rate = 80_000 * min(channels, 6)
    made: list[Any] = []  # opened by the header, which tells how long its frames are
    following: Fraction | None = None

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
        nonlocal following
        frames: list[Any] = []
        with suppress(av.InvalidDataError):  # one packet of sound that is damaged
            frames = source.codec_context.decode(packet)
        for frame in frames:
            time = following if frame.pts is None else frame.pts * frame.time_base
            if time is None:
                continue
            if following is not None and abs(time - following) < _JITTER:
                time = following
            following = time + Fraction(frame.samples, frame.sample_rate)
            if (cut.start and time < cut.start) or (cut.end is not None and time >= cut.end):
                continue
            frame.pts, frame.time_base = round((time - cut.shift) * frame.sample_rate), Fraction(1, frame.sample_rate)
            for block in resampler().resample(frame):
                yield from stream.encode(block)
        if packet is None and made:
            for block in resampler().resample(None):
                yield from stream.encode(block)
            yield from stream.encode(None)

    return stream, handle


def words(output: Any, source: Any, suffix: str, cut: Cut) -> tuple[Any, Handler]:
    """A stream of `output` in the container's own kind of text, and what fills it from the packets of `source`."""
    stream = output.add_stream(_TEXT[suffix])
    if not source.codec_context.is_open:
        source.codec_context.open(strict=False)  # which makes the header that an encoder asks for
    stream.codec_context.subtitle_header = source.codec_context.subtitle_header
    stream.time_base = Fraction(1, 1000)

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

    return stream, handle
