"""Videos as upright RGB frames with their timestamps, read as a stream."""

import math
import struct
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from typing import Any, BinaryIO

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from .errors import DamagedError, MediaError
from .media import LARGE, Media
from .pixels import Uint8
from .tonemap import HDR, ToneMap

_DEMUXERS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,h264,hevc,m4v"
"""What a video suffix may hold. FFmpeg goes by content, and a playlist called a.mp4 could name any file or address."""
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers that find the key frame before a time by an index."""
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
YUV = Interpolation.BICUBIC | _EXACT
SCALED = Interpolation.LANCZOS | _EXACT
_REORDER = 8  # frames that may come before a frame with an earlier time, in a file that mixes its times up
MAX_FRAME = 100_000_000
"""Pixels of the largest frame that is decoded, above 12K: some are in memory at once, of up to 8 bytes a pixel."""
BT709, BT601, _UNSPECIFIED = 1, 6, 2  # AVCOL_SPC_…; AVCOL_PRI_… and AVCOL_TRC_… call BT.709 1 too


def matrix(rows: int) -> int:
    """BT.709 from 720 rows on, BT.601 below: what players take an untagged video for, and what is written here."""
    return BT709 if rows >= 720 else BT601


@dataclass(frozen=True)
class Look:
    """What the first frame says of a video: its size upright in px, its pixel aspect, its rates and colour tags."""

    width: int
    height: int
    pixel_aspect: Fraction
    rate: Fraction
    time_base: Fraction
    frames: int | None
    primaries: int
    transfer: int
    hdr: str = ""
    """PQ or HLG where that is what the frames are; they are read as SDR in BT.709, and the tags here say so."""


Item = tuple[int, Uint8]
"""A frame: pts in the video stream's time base, uint8 [H, W, 3]."""


@contextmanager
def open_video(media: Media, stream: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """Yield the container and its main video stream. Raises MediaError for what is no video."""
    try:
        stream.seek(0)
        container = av.open(stream, options={"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or e
        raise MediaError(f"{media}: not a readable video: {why}") from e
    with container:
        video = container.streams.best("video")
        cover = isinstance(video, av.VideoStream) and video.disposition & Disposition.attached_pic
        if not isinstance(video, av.VideoStream) or video.codec_context is None or cover:
            raise MediaError(f"{media}: holds no video that can be decoded")
        pixels = video.codec_context.width * video.codec_context.height
        if pixels > MAX_FRAME:
            raise MediaError(f"{media}: frames above the limit of {MAX_FRAME:,} pixels")
        video.thread_type = "AUTO" if pixels <= LARGE else "SLICE"  # or each thread would hold a frame
        yield container, video


def look(media: Media, stream: BinaryIO) -> Look:
    """Decode the first frame of a video for what an encoder must know before it starts."""
    with open_video(media, stream) as (container, video):
        rate = video.average_rate or video.guessed_rate or Fraction(25)
        aspect = video.sample_aspect_ratio or Fraction(1)
        try:
            frame = next(container.decode(video), None)
        except (av.FFmpegError, OSError) as e:
            raise MediaError(f"{media}: its first frame cannot be decoded: {e.strerror or e}") from e
        if frame is None:
            raise MediaError(f"{media}: holds no frame that can be decoded")
        frames = video.frames or (round(container.duration / 1_000_000 * rate) if container.duration else None)
        height, width = upright(frame).shape[:2]
        return Look(
            width,
            height,
            pixel_aspect=1 / aspect if _display(frame)[0] else aspect,
            rate=Fraction(rate),
            time_base=video.time_base or 1 / Fraction(rate),
            frames=frames,
            primaries=BT709 if frame.color_trc in HDR else frame.color_primaries,
            transfer=BT709 if frame.color_trc in HDR else frame.color_trc,
            hdr=HDR.get(frame.color_trc, ""),
        )


def upright(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> Uint8:
    """A decoded frame as uint8 [H, W, 3], turned and mirrored as its display matrix says.

    `size`: (width, height) in px of the result. Scaling before the colours are converted, by Lanczos as pictures are,
    takes a quarter of the time of scaling after it (720p to 64 px: 3.3 ms and 13.2 ms, 57 dB apart).
    """
    turned, down, across = _display(frame)
    width, height = (frame.width, frame.height) if size is None else size[::-1] if turned else size
    same = (width, height) == (frame.width, frame.height)
    untagged = frame.colorspace == _UNSPECIFIED and matrix(frame.height) == BT709
    rgb = frame.to_ndarray(
        width=width,
        height=height,
        format="rgb24",
        interpolation=YUV if same else SCALED,
        src_colorspace=Colorspace.ITU709 if untagged else None,
        dst_color_range=ColorRange.JPEG,
    )
    return np.ascontiguousarray((rgb.transpose(1, 0, 2) if turned else rgb)[::down, ::across])


def _display(frame: av.VideoFrame) -> tuple[bool, int, int]:
    """Whether rows are shown as columns, and the steps, 1 or -1, that are then taken down and across, by the display
    matrix; of one that turns by no quarter, those nearest to it."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, 1, 1
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    down, across = (d, a) if abs(a) >= abs(b) else (b, c)
    return abs(a) < abs(b), -1 if down < 0 else 1, -1 if across < 0 else 1


def read(
    media: Media,
    stream: BinaryIO,
    size: tuple[int, int],
    stride: int = 1,
    *,
    skip: int = 0,
    start: float | None = None,
    end: float | None = None,
) -> Generator[Item, None, None]:
    """Yield every frame, or every `stride`-th one.

    Frames come in the order in which they are shown and their times ascend, also in files whose B-frames have the times
    of the order in which they were coded (AVI keeps no others, and some MP4s are made so).

    Args:
        size: (width, height) in px to which every frame is resized.
        skip: frames that are decoded but not given out, the first ones from `start` on.
        start, end: in seconds: only frames from `start` on and before `end`; first, as of `start`, the one that is on
            the screen then, where the next comes more than a frame's time later.

    Raises:
        DamagedError: a frame that is lost or damaged, with the file and the time in s; after the frames before it.
    """
    with open_video(media, stream) as (container, video):
        step = max(1, round(1 / (video.average_rate or video.guessed_rate or 25) / video.time_base))
        beginning = origin(container)
        low, high = (None if t is None else (beginning + Fraction(t)) / video.time_base for t in (start, end))
        if low is not None and container.format.name in _SEEKABLE:
            with suppress(av.FFmpegError):  # then it is read from its beginning
                container.seek(int(low), stream=video)
        shown = _in_order(container, video, step)
        to_sdr = ToneMap()
        count, latest = -skip, -step

        def noted(items: Iterator[tuple[int, av.VideoFrame]]) -> Iterator[tuple[int, av.VideoFrame]]:
            nonlocal latest
            for item in items:
                latest = item[0]
                yield item

        if low is not None:
            shown = _from(noted(shown), math.ceil(low), step)
        while True:
            try:
                latest, frame = next(shown)
                if high is not None and latest >= high:
                    return
                if count >= 0 and count % stride == 0:
                    yield latest, upright(to_sdr(frame), size)
                count += 1
            except StopIteration:
                return
            except (av.FFmpegError, OSError) as e:
                at = float((latest + step) * video.time_base)
                raise DamagedError(f"{media}: cannot be decoded at about {at:.3f} s: {e.strerror or e}") from e


def _from(shown: Iterator[tuple[int, av.VideoFrame]], low: int, step: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames from time `low` on, and before them the one that stands then for long."""
    before: av.VideoFrame | None = None
    until = 0
    for time, frame in shown:
        if time < low:
            before, until = frame, time + max(step, frame.duration or 0)
            continue
        if before is not None and time - low > step:
            yield low, before
        before = None
        yield time, frame
    if before is not None and until > low:
        yield low, before


def origin(container: Any) -> Fraction:
    """The time in s that players call zero: the clock of an MPEG stream starts anywhere, others at 0."""
    started = container.start_time if container.format.name.startswith("mpeg") else None
    return Fraction(started or 0, 1_000_000)


def _in_order(container: Any, video: Any, step: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decoded frames, each with the next of the times in ascending order; an av.FFmpegError after the good ones."""
    times: list[int] = []
    waiting: deque[av.VideoFrame] = deque()
    latest = -step
    problem: Exception | None = None
    try:
        for packet in container.demux(video):
            for frame in packet.decode():
                latest = latest + step if frame.pts is None else frame.pts
                if frame.is_corrupt:
                    raise av.InvalidDataError(0, "the frame is damaged")
                if (pixels := frame.width * frame.height) > MAX_FRAME:  # the header may say less
                    raise av.InvalidDataError(0, f"a frame above the limit of {MAX_FRAME:,} pixels")
                heappush(times, latest)
                waiting.append(frame)
                while len(waiting) > min(_REORDER, max(1, _REORDER * LARGE // pixels)):
                    yield heappop(times), waiting.popleft()
            if packet.is_corrupt:
                raise av.InvalidDataError(0, "the file is damaged or cut short here")
    except (av.FFmpegError, OSError) as e:
        problem = e
    while waiting:
        yield heappop(times), waiting.popleft()
    if problem:
        raise problem
