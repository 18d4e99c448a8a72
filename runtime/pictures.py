"""Picture files as they are: metadata, animations and pages, which decoding to one RGB picture would lose."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .errors import MediaError
from .media import MAX_PIXELS, upright_rgb

ANIMATED = {".gif", ".webp", ".png", ".apng"}
"""Suffixes of what holds an animation."""
PAGED = {".tif", ".tiff"}
_STRUCTURAL = (
    *(256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339, 347),
    *(513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675),
)
"""TIFF tags that tell how the source's pixels lie, its orientation, or what is carried apart from EXIF."""
_TIFF_XMP = 700
_TEXTS = (269, 270, 271, 272, 285, 305, 306, 315, 316, 33432)
"""Names, maker, dates, authors and the like."""
_DENSITY, _UNIT = (282, 283), 296
_EXIF_SIZE = (0xA002, 0xA003)
_NESTED = (0x8769, 0x8825)
"""EXIF's own tags and those of GPS."""
_JPEG_MOST = 65_502
"""Bytes of EXIF or XMP that fit a JPEG segment beside its header."""

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".apng": ("PNG", {}),
    ".jpg": ("JPEG", {"subsampling": 0}),
    ".jpeg": ("JPEG", {"subsampling": 0}),
    ".webp": ("WEBP", {}),
    ".gif": ("GIF", {}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
}
_LOSSY = {"JPEG", "WEBP"}
_LONGEST = {"JPEG": 65_500, "WEBP": 16_383, "GIF": 65_535}
"""Pixels of the longest side that a format takes; the others take any that is decoded."""
_MOST_MS = {"GIF": 655_350, "WEBP": (1 << 24) - 1}
"""How long they show a frame at most; APNG shows one as long as any source can."""
_MOST_PLAYS = 65_535


@dataclass(frozen=True)
class Metadata:
    """What a picture file says beside its pixels. The EXIF has no orientation, size and thumbnail: they would lie."""

    exif: bytes = b""
    icc: bytes = b""
    xmp: bytes = b""


NOTHING = Metadata()


@dataclass
class Frames:
    """Frames of an animation, or pages: durations in ms; `plays` 0 is for ever; the first may be no part of it."""

    pictures: list[Image.Image] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    plays: int = 0
    poster: bool = False


def has_frames(image: Image.Image) -> bool:
    """An animation, or a TIFF of several pages; a camera's JPEG with a second picture inside is neither."""
    return image.format in ("GIF", "WEBP", "PNG", "TIFF") and bool(getattr(image, "is_animated", False))


def metadata(image: Image.Image) -> Metadata:
    """EXIF, an RGB colour profile and XMP of an image before it is decoded; what is damaged is left out."""
    exif, icc, xmp = b"", b"", b""
    with suppress(Exception):  # a stranger's bytes, and Pillow raises many kinds
        read = image.getexif()
        for tag in (tag for tag in _NESTED if tag in read):
            read.get_ifd(tag)  # reads it, so that it is copied too; of one that is not there it would make an empty one
        tags = Image.Exif()
        tags.load(read.tobytes())
        for tag in _STRUCTURAL:
            tags.pop(tag, None)
        for tag in _EXIF_SIZE if _NESTED[0] in tags else ():
            tags.get_ifd(_NESTED[0]).pop(tag, None)
        exif = tags.tobytes() if len(tags) else b""
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and profile[16:20] == b"RGB ":  # a grey or CMYK one does not fit what is written
        icc = profile
    found = image.info.get("xmp")
    if isinstance(found, bytes) and b"tiff:Orientation" not in found:
        xmp = found
    return Metadata(exif, icc, xmp)


def frames(image: Image.Image) -> Iterator[tuple[Image.Image, float]]:
    """Every frame as upright RGB, whole as it is shown, with its duration in ms."""
    for i in range(getattr(image, "n_frames", 1)):
        image.seek(i)
        image.load()
        duration = image.info.get("duration") or 0
        yield upright_rgb(image), float(duration)


def plays(image: Image.Image) -> int:
    """How often an animation is shown, 0 for ever; a GIF counts repetitions, the others count showings."""
    loop = image.info.get("loop")
    if image.format != "GIF":
        return int(loop or 0)
    return 1 if loop is None else 0 if loop == 0 else int(loop) + 1


def save_picture(image: Image.Image, out: Any, suffix: str, quality: int = 95, known: Metadata = NOTHING) -> None:
    """Write an RGB picture to a path or file object in the format of the suffix. Raises as Pillow does."""
    format_, options = _options(suffix, quality, known, image.size)
    (_palette(image) if format_ == "GIF" else image).save(out, format_, **options)


def save_frames(shown: Frames, out: Any, suffix: str, quality: int = 95, known: Metadata = NOTHING) -> None:
    """Write frames or pages to a path. Raises as Pillow does."""
    format_, options = _options(suffix, quality, known, shown.pictures[0].size)
    first, *rest = shown.pictures
    if format_ != "TIFF":
        durations = [round(d) for d in shown.durations]
        if max(durations) > (most := _MOST_MS.get(format_, max(durations))):
            raise ValueError(f"a frame is shown for {max(durations):,} ms; {suffix} takes {most:,}, and png any time")
        if shown.poster and format_ == "PNG":
            options |= {"default_image": True}
            durations = durations[1:]
        elif shown.poster:
            first, *rest = rest
            durations = durations[1:]
        options["duration"] = durations if len(durations) > 1 else (durations or [0])[0]
        if format_ == "GIF":
            options |= {} if shown.plays == 1 else {"loop": min(max(0, shown.plays - 1), _MOST_PLAYS)}
        else:
            options["loop"] = min(shown.plays, _MOST_PLAYS)
    first.save(out, format_, save_all=True, append_images=rest, **options)


def small(image: Image.Image, suffix: str) -> Image.Image:
    """A frame as it is held until its animation is written: a GIF's have 256 colours."""
    return _palette(image) if suffix.lower() == ".gif" else image


def check_room(name: str, count: int, width: int, height: int) -> None:
    """All frames of an animation are held until it is written. Raises MediaError."""
    if count * width * height > MAX_PIXELS:
        raise MediaError(
            f"{name}: {count} frames of {width}×{height} px are more than the {MAX_PIXELS:,} pixels that an animation "
            "may have; try a smaller --size, or make it a video"
        )


def encode_image(image: Image.Image, suffix: str) -> bytes:
    """An RGB picture as a file of the format that its suffix names."""
    out = BytesIO()
    save_picture(image, out, suffix)
    return out.getvalue()


def holds(target: Path, source_format: str | None) -> bool:
    """Whether the target's format takes the frames, or pages, of the source's."""
    return target.suffix.lower() in (PAGED if source_format == "TIFF" else ANIMATED)


def _options(suffix: str, quality: int, known: Metadata, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
    format_, options = FORMATS[suffix.lower()]
    if max(size) > (most := _LONGEST.get(format_, max(size))):
        raise ValueError(f"{size[0]}×{size[1]} px; {suffix} takes {most:,} px a side at most, and png any number")
    options = dict(options)
    if format_ in _LOSSY:
        options["quality"] = quality
    if format_ in ("JPEG", "PNG", "WEBP", "TIFF"):
        fits = _JPEG_MOST if format_ == "JPEG" else 1 << 62
        if known.exif and len(known.exif) <= fits:
            options["exif"] = _plain(known.exif) if format_ == "TIFF" else known.exif
        if known.icc:
            options["icc_profile"] = known.icc
        if known.xmp and len(known.xmp) <= fits:
            options |= _xmp(format_, known.xmp, options)
    return format_, options


def _xmp(format_: str, xmp: bytes, options: dict[str, Any]) -> dict[str, Any]:
    """XMP as an option of Pillow's writer of this format."""
    if format_ == "PNG":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        return {"pnginfo": text}
    if format_ == "TIFF":
        tags = options.get("exif") or Image.Exif()
        tags[_TIFF_XMP] = xmp
        return {"exif": tags}
    return {"xmp": xmp}


def _plain(exif: bytes) -> Image.Exif:
    """What any TIFF takes: for one tag that is odd libtiff refuses the picture, and EXIF's own tags and those of GPS
    Pillow does not write."""
    found, tags = Image.Exif(), Image.Exif()
    found.load(exif)
    for tag, value in found.items():
        if _fits_tiff(tag, value):
            tags[tag] = value
    return tags


def _fits_tiff(tag: int, value: Any) -> bool:
    if tag in _TEXTS:
        return isinstance(value, str)
    if tag == _UNIT:
        return value in (1, 2, 3)
    return tag in _DENSITY and isinstance(value, Real) and 0 < float(value) < 1e6


def _palette(image: Image.Image) -> Image.Image:
    return image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
