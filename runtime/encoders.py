"""Which encoder a film gets, and how a picture becomes its frame."""

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.video.reformatter import ColorRange, Colorspace

from .errors import UsageError
from .frames import BT709, YUV, Look, matrix
from .options import FilmOptions
from .pixels import Uint8

_LIMITED = 1  # AVCOL_RANGE_MPEG
_PIX_FMT = re.compile(r"yuv4(20|22|44)p(10le|12le)?|nv12|p010le")
_TAKES = {
    ".mp4": ("h264", "hevc", "av1", "vp9"),
    ".m4v": ("h264", "hevc"),
    ".mov": ("h264", "hevc", "prores"),
    ".mkv": ("h264", "hevc", "av1", "vp9", "ffv1", "prores"),
    ".webm": ("vp9", "av1"),
}


@dataclass(frozen=True)
class Encoder:
    """FFmpeg's name of an encoder, its options, and the pixel format that it is given."""

    name: str
    codec: str
    pix_fmt: str
    options: dict[str, str]

    @property
    def segment(self) -> str:
        """FFmpeg's name of the container for parts of a film: NUT keeps any time base, and takes all but ProRes."""
        return "mov" if self.codec == "prores" else "nut"


@dataclass(frozen=True)
class _Software:
    name: str
    crf: float | None
    most: float
    pix_fmt: str
    options: dict[str, str]


_SOFTWARE = {
    "h264": _Software("libx264", 16, 51, "yuv420p", {"preset": "medium"}),
    "hevc": _Software("libx265", 18, 51, "yuv420p", {"preset": "medium", "x265-params": "log-level=none"}),
    "av1": _Software("libsvtav1", 24, 63, "yuv420p", {"preset": "8"}),
    "vp9": _Software("libvpx-vp9", 20, 63, "yuv420p", {"b": "0", "cpu-used": "4", "row-mt": "1"}),
    "ffv1": _Software("ffv1", None, 0, "yuv444p", {"level": "3", "g": "1"}),
    "prores": _Software("prores_ks", None, 0, "yuv422p10le", {"vendor": "apl0"}),
}
_SAME = {software.name: codec for codec, software in _SOFTWARE.items()} | {"h265": "hevc"}
_HARDWARE = {
    "nvenc": "an NVIDIA GPU and its driver",
    "videotoolbox": "a Mac",
    "qsv": "an Intel GPU and its driver",
    "amf": "an AMD GPU and its driver",
    "vaapi": "a GPU with a VA-API driver, and a PyAV built with it",
}


def choose(film: FilmOptions, suffix: str) -> Encoder:
    """The encoder of a film in a file with this suffix.

    Raises:
        UsageError: a codec that is not known, not here, or not for this container; a crf or pixel format out of range.
    """
    asked = film.codec or ("vp9" if suffix == ".webm" else "h264")
    asked = _SAME.get(asked, asked)
    codec, _, maker = asked.partition("_")
    if codec not in _SOFTWARE or (maker and maker not in _HARDWARE):
        raise UsageError(
            f"codec {asked!r} is not known; wanted {', '.join(_SOFTWARE)}, or one in hardware, such as h264_nvenc"
        )
    if codec not in _TAKES[suffix]:
        raise UsageError(f"{suffix} does not take {codec}; it takes {', '.join(_TAKES[suffix])}, and .mkv takes all")
    software = _SOFTWARE[codec]
    if film.crf is not None and not (software.crf is not None and 0 <= film.crf <= software.most):
        wanted = f"0 to {software.most:g}" if software.crf is not None else "none, for it has no such scale"
        raise UsageError(f"crf is {film.crf:g}; for {codec} wanted {wanted}")
    quality = software.crf if film.crf is None else film.crf
    options = _hardware_quality(maker, quality or 0) if maker else dict(software.options)
    if not maker and quality is not None:
        options["crf"] = f"{quality:g}"
    if asked == "h264" and _has_avx512():
        options["x264-params"] = f"asm={_UP_TO_AVX2}"
    if asked == "av1":
        os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 else tells its settings on stderr
    if codec == "prores" and not maker:
        options["profile"] = "4444" if "444" in (film.pix_fmt or "") else "hq"
    pix_fmt = film.pix_fmt or (_of_hardware(asked, maker) if maker else software.pix_fmt)
    encoder = Encoder(asked if maker else software.name, codec, pix_fmt, options)
    _check(encoder, asked, maker)
    return encoder


def _of_hardware(name: str, maker: str) -> str:
    """The first pixel format of such an encoder that a picture can be brought to."""
    try:
        known = () if maker == "vaapi" else av.Codec(name, "w").video_formats or ()
    except ValueError:  # which `_check` says
        known = ()
    return next((f.name for f in known if _PIX_FMT.fullmatch(f.name)), "nv12")


_UP_TO_AVX2 = "MMX2,SSE2Fast,LZCNT,SSSE3,SSE4.2,AVX,FMA3,BMI2,AVX2"
"""x264 (of PyAV 18) with AVX-512 on a busy machine: the same frames gave 3 different files in 24 encodings, with one
thread as with many; 1 without macroblock tree, 1 with these instructions. Without them an interrupted film could not
end up as the uninterrupted one does."""


@cache
def _has_avx512() -> bool:
    try:
        return "avx512" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False


def _hardware_quality(maker: str, quality: float) -> dict[str, str]:
    """Constant quality as each maker's encoder calls it; none of these was at hand to try."""
    if maker == "nvenc":
        return {"rc": "vbr", "cq": f"{quality:g}", "b": "0"}
    if maker == "amf":
        return {"rc": "cqp", "qp_i": f"{quality:g}", "qp_p": f"{quality:g}"}
    if maker == "qsv":
        return {"global_quality": f"{quality:g}"}
    if maker == "vaapi":
        return {"rc_mode": "CQP", "qp": f"{quality:g}"}
    return {"flags": "+qscale", "global_quality": str(round(118 * 100 * (1 - quality / 51)))}  # FF_QP2LAMBDA × 1…100


def _check(encoder: Encoder, asked: str, maker: str) -> None:
    needs = f" needs {_HARDWARE[maker]}, and" if maker else ""
    try:
        codec = av.Codec(encoder.name, "w")
    except ValueError as e:
        raise UsageError(f"codec {asked!r}{needs} is not in PyAV's FFmpeg; without --codec h264 is written") from e
    known = [] if maker == "vaapi" else [f.name for f in codec.video_formats or ()]
    if not _PIX_FMT.fullmatch(encoder.pix_fmt) or (known and encoder.pix_fmt not in known):
        usable = ", ".join(name for name in known or ["nv12", "p010le"] if _PIX_FMT.fullmatch(name))
        raise UsageError(f"pix_fmt {encoder.pix_fmt!r} is not for {asked}; wanted {usable}")
    if maker:  # FFmpeg knows its name on every machine
        try:
            with av.open(_Nowhere(), "w", format="matroska") as out:
                look = Look(320, 240, Fraction(1), Fraction(25), Fraction(1, 25), None, 2, 2)
                add_video(out, encoder, look, 320, 240).codec_context.open()
        except (av.FFmpegError, OSError, ValueError, RuntimeError) as e:
            why = e.strerror if isinstance(e, OSError) else e
            raise UsageError(
                f"codec {asked!r}{needs} did not start here ({why}); without --codec h264 is written"
            ) from e


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)


_X265_NARROW = 48
"""Pixels of width up to which x265 (of PyAV 18) with its CU tree writes past the end of its memory, and aborts."""


def add_video(output: Any, encoder: Encoder, seen: Look, width: int, height: int) -> Any:
    """A stream of `output` for such a film: its times, pixel aspect and colours as they were seen."""
    rate = min(seen.rate, Fraction(240)) if encoder.name == "libsvtav1" else seen.rate  # it refuses more
    device = {"hwaccel": HWAccel("vaapi")} if encoder.name.endswith("vaapi") else {}  # which takes frames of its own
    across, down = padding(encoder.pix_fmt, width, height)
    options = dict(encoder.options)
    if encoder.name == "libx265" and width + across <= _X265_NARROW:
        options["x265-params"] += ":cutree=0"
    video = output.add_stream(encoder.name, rate=rate, options=options, **device)
    video.width, video.height, video.pix_fmt = width + across, height + down, encoder.pix_fmt
    video.codec_context.time_base = seen.time_base
    tag(video.codec_context, seen, height)
    return video


def tag(context: Any, seen: Look, height: int) -> None:
    """Pixel aspect and colours; primaries and transfer are untouched, for RGB passes as it is."""
    context.sample_aspect_ratio = seen.pixel_aspect
    context.colorspace, context.color_range = matrix(height), _LIMITED
    context.color_primaries, context.color_trc = seen.primaries, seen.transfer


def padding(pix_fmt: str, width: int, height: int) -> tuple[int, int]:
    """Columns and rows that a picture lacks where colours are kept for every second one only."""
    return width % 2 if "444" not in pix_fmt else 0, height % 2 if "444" not in pix_fmt and "422" not in pix_fmt else 0


def to_frame(pixels: Uint8, pix_fmt: str) -> av.VideoFrame:
    """uint8 [H, W, 3] as a limited-range YUV frame; an odd side gets its last row or column twice where it must."""
    height, width = pixels.shape[:2]
    across, down = padding(pix_fmt, width, height)
    if across or down:
        pixels = np.pad(pixels, ((0, down), (0, across), (0, 0)), mode="edge")
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
        format=pix_fmt,
        interpolation=YUV,
        src_color_range=ColorRange.JPEG,
        dst_colorspace=Colorspace.ITU709 if matrix(height) == BT709 else Colorspace.ITU601,
        dst_color_range=ColorRange.MPEG,
    )
