"""One video through a flow: decode → velocity → encode in three threads, with memory that does not grow.

Kept: every frame with its timestamp (constant rate or not), the pixel aspect, upright pictures in place of a rotation
tag, and the audio streams' packets as they are where the new container takes them. Subtitles, chapters and data streams
are left out. The picture is written as 8-bit 4:2:0, limited range, BT.709 or BT.601 by its height, and tagged so.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import av
import numpy as np

from .errors import MediaError
from .files import write_aside
from .flow import Flow
from .frames import Item, Look, look, matrix, open_video, read, yuv
from .media import Media
from .pipeline import ahead
from .pixels import Uint8
from .steady import Steady
from .upscale import given_back, resized

_MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
_H264 = {"crf": "16", "preset": "medium"}
_LIMITED = 1  # AVCOL_RANGE_MPEG
_VP9 = {"crf": "20", "b": "0", "cpu-used": "4", "row-mt": "1"}


def translate_video(
    media: Media, target: Path, flow: Flow, on_frames: Callable[[int, int | None], None], steady: float = 0.0
) -> str:
    """Write the translation of `media` to `target`, whole or not at all.

    Args:
        flow: chooses the size; an odd side gets its last row or column once more.
        on_frames: called with (frames written, frames expected or None).
        steady: how much of the last frame's displacement is carried on where nothing moves, in [0, 1).

    Returns:
        What was left out, for a person to read; empty for nothing.

    Raises:
        MediaError: the source is damaged, or the target's container cannot hold it.
    """
    with media.open() as stream:
        seen = look(media, stream)
        with open_video(media, stream) as (source, _), write_aside(target) as partial:
            output = av.open(f"file:{partial}", "w", format=_MUXERS[target.suffix.lower()])
            try:
                fitted = flow.fit(seen.width, seen.height)
                width, height = flow.output_size(seen.width, seen.height)
                batch = flow.batch(*fitted)
                video = _add_video(output, target, seen, width, height)
                audio, note = _add_audio(output, source, target)
                source.close()  # from here on the reading thread has the stream
                frames = read(media, stream, list(audio), (width, height))
                made = ahead(_through(ahead(frames, batch), flow, steady, fitted), 2 * batch, flow.stop)
                with closing(made) as items:
                    _write(items, output, video, audio, seen, on_frames)
                output.close()  # writes the index, which can fail as any write
            except (av.FFmpegError, OSError, ValueError) as e:
                raise MediaError(f"{target}: cannot be written: {e}") from e
            finally:
                with suppress(Exception):  # after an error: what counts is the first one
                    output.close()
    return note


def _through(items: Iterable[Item], flow: Flow, steady: float, fitted: tuple[int, int]) -> Generator[Item, None, None]:
    """Frames translated `batch` at a time; audio packets pass by them, since the muxer puts both in order."""
    waiting: list[tuple[int, Uint8]] = []
    steadied = Steady(steady) if steady else None

    def translated() -> list[tuple[int, Uint8]]:
        frames = np.stack([resized(pixels, fitted) for _, pixels in waiting])
        out = flow(frames)
        out = steadied(frames, out) if steadied else out
        back = (given_back(flow.upscale, *each) for each in zip((p for _, p in waiting), frames, out, strict=True))
        return [(pts, pixels) for (pts, _), pixels in zip(waiting, back, strict=True)]

    for item in items:
        index, content = item
        if isinstance(content, av.Packet):
            yield item
            continue
        waiting.append((index, content))
        if len(waiting) >= flow.batch(*fitted):
            yield from translated()
            waiting.clear()
    if waiting:
        yield from translated()


def _write(
    items: Iterable[Item],
    output: Any,
    video: Any,
    audio: dict[int, Any],
    seen: Look,
    on_frames: Callable[[int, int | None], None],
) -> None:
    count, last = 0, None
    for index, content in items:
        if isinstance(content, av.Packet):
            content.stream = audio[index]
            output.mux(content)
            continue
        pts, frame = index, yuv(content)
        last = pts if last is None else max(pts, last + 1)  # a muxer refuses time that stands still
        frame.pts, frame.time_base = last, seen.time_base
        output.mux(video.encode(frame))
        count += 1
        on_frames(count, seen.frames)
    output.mux(video.encode(None))


def _add_video(output: Any, target: Path, seen: Look, width: int, height: int) -> Any:
    codec, options = ("libvpx-vp9", _VP9) if target.suffix.lower() == ".webm" else ("libx264", _H264)
    video = output.add_stream(codec, rate=seen.rate, options=options)
    video.width, video.height, video.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    context = video.codec_context
    context.time_base = seen.time_base
    context.sample_aspect_ratio = seen.pixel_aspect
    context.colorspace, context.color_range = matrix(height), _LIMITED
    context.color_primaries, context.color_trc = seen.primaries, seen.transfer  # untouched: RGB passes as it is
    return video


def _add_audio(output: Any, source: Any, target: Path) -> tuple[dict[int, Any], str]:
    """The output's stream for each of the source's audio streams, and what the container does not take."""
    taken: dict[int, Any] = {}
    refused: list[str] = []
    for stream in source.streams.audio:
        try:
            taken[stream.index] = output.add_stream_from_template(stream)
            taken[stream.index].metadata.update(stream.metadata)
        except (ValueError, av.FFmpegError):
            refused.append(stream.codec_context.name if stream.codec_context else "unknown")
    note = f"audio left out: {target.suffix.lower()} does not take {', '.join(refused)} (.mkv would)" if refused else ""
    return taken, note
