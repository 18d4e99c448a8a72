"""Videos as upright RGB frames with their timestamps, read as a stream."""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image

from .errors import MediaError
from .media import MAX_PIXELS, Media
from .pixels import Uint8

_DEMUXERS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,h264,hevc,m4v"
"""What a video suffix may hold. FFmpeg goes by content, and a playlist called a.mp4 could name any file or address."""
_YUV = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
_REORDER = 8  # frames that may come before a frame with an earlier time, in a file that mixes its times up
BT709, BT601, _UNSPECIFIED = 1, 6, 2  # AVCOL_SPC_…


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


Item = tuple[int, "Uint8 | av.Packet[Any]"]
"""A frame: (pts in the video stream's time base, uint8 [H, W, 3]); or audio: (stream index, packet as it was)."""


@contextmanager
def open_video(media: Media, stream: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """Yield the container and its main video stream. Raises MediaError for what is no video."""
    try:
        stream.seek(0)
        container = av.open(stream, options={"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as e:
        raise MediaError(f"{media}: not a readable video: {e}") from e
    with container:
        video = container.streams.best("video")
        if not isinstance(video, av.VideoStream) or video.codec_context is None:
            raise MediaError(f"{media}: holds no video that can be decoded")
        if video.codec_context.width * video.codec_context.height > MAX_PIXELS:
            raise MediaError(f"{media}: frames above the limit of {MAX_PIXELS:,} pixels")
        video.thread_type = "AUTO"
        yield container, video


def look(media: Media, stream: BinaryIO) -> Look:
    """Decode the first frame of a video for what an encoder must know before it starts."""
    with open_video(media, stream) as (container, video):
        rate = video.average_rate or video.guessed_rate or Fraction(25)
        aspect = video.sample_aspect_ratio or Fraction(1)
        try:
            frame = next(container.decode(video), None)
        except (av.FFmpegError, OSError) as e:
            raise MediaError(f"{media}: its first frame cannot be decoded: {e}") from e
        if frame is None:
            raise MediaError(f"{media}: holds no frame that can be decoded")
        frames = video.frames or (round(container.duration / 1_000_000 * rate) if container.duration else None)
        height, width = upright(frame).shape[:2]
        turned = width != frame.width or (width == height and frame.rotation % 180 != 0)
        return Look(
            width,
            height,
            pixel_aspect=1 / aspect if turned else aspect,
            rate=Fraction(rate),
            time_base=video.time_base or 1 / Fraction(rate),
            frames=frames,
            primaries=frame.color_primaries,
            transfer=frame.color_trc,
        )


def upright(frame: av.VideoFrame) -> Uint8:
    """A decoded frame as uint8 [H, W, 3], turned as its display matrix says."""
    untagged = frame.colorspace == _UNSPECIFIED and matrix(frame.height) == BT709
    rgb = frame.to_ndarray(
        format="rgb24",
        interpolation=_YUV,
        src_colorspace=Colorspace.ITU709 if untagged else None,
        dst_color_range=ColorRange.JPEG,
    )
    return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))


def yuv(pixels: Uint8) -> av.VideoFrame:
    """uint8 [H, W, 3] as a limited-range yuv420p frame; an odd side gets its last row or column twice."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
        format="yuv420p",
        interpolation=_YUV,
        src_color_range=ColorRange.JPEG,
        dst_colorspace=Colorspace.ITU709 if matrix(height) == BT709 else Colorspace.ITU601,
        dst_color_range=ColorRange.MPEG,
    )


def read(
    media: Media, stream: BinaryIO, audio: list[int], size: tuple[int, int], stride: int = 1
) -> Generator[Item, None, None]:
    """Yield every frame, or every `stride`-th one, and the packets of the `audio` streams.

    Frames come in the order in which they are shown and their times ascend, also in files whose B-frames have the times
    of the order in which they were coded (AVI keeps no others, and some MP4s are made so).

    Args:
        audio: indices of the streams whose packets are passed on as they are.
        size: (width, height) in px to which every frame is resized.

    Raises:
        MediaError: a frame that is lost or damaged, with the file and the time in seconds; after the frames before it.
    """
    with open_video(media, stream) as (container, video):
        step = max(1, round(1 / (video.average_rate or video.guessed_rate or 25) / video.time_base))
        count, latest = 0, -step
        times: list[int] = []
        waiting: deque[Uint8 | None] = deque()  # None: a frame that was not asked for
        wanted = [s for s in container.streams if s.index in audio or s is video]
        problem: MediaError | None = None

        def ready(held: int) -> Iterator[Item]:
            while len(waiting) > held:
                time, pixels = heappop(times), waiting.popleft()
                if pixels is not None:
                    yield time, pixels

        try:
            for packet in container.demux(wanted):
                if packet.stream is not video:
                    if packet.dts is not None:  # the empty packet that flushes a decoder has none
                        yield packet.stream.index, packet
                    continue
                for frame in packet.decode():
                    latest = latest + step if frame.pts is None else frame.pts
                    if frame.is_corrupt:
                        raise av.InvalidDataError(0, "the frame is damaged")
                    heappush(times, latest)
                    waiting.append(None if count % stride else _resized(upright(frame), size))
                    count += 1
                    yield from ready(_REORDER)
                if packet.is_corrupt:
                    raise av.InvalidDataError(0, "the file is damaged or cut short here")
        except (av.FFmpegError, OSError) as e:
            at = float((latest + step) * video.time_base)
            problem = MediaError(f"{media}: cannot be decoded at about {at:.3f} s: {e}")
            problem.__cause__ = e
        yield from ready(0)
        if problem:
            raise problem


def _resized(pixels: Uint8, size: tuple[int, int]) -> Uint8:
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
