"""Media in files and zips, and the one way of decoding an image."""

import os
import threading
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import MediaError, RfpError

IMAGE_SUFFIXES = frozenset({".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"})
ARCHIVE_SUFFIXES = frozenset({".zip"})
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

MAX_PIXELS = 200_000_000
"""Pixels of the largest image that is decoded (600 MB as RGB): a few kilobytes can claim any size."""
LARGE = 1 << 24
"""Pixels above which images are decoded and finished one at a time, however many threads: that bounds the memory."""
# What was freed of its own 16 MiB a thread keeps: 4.9 GB for three images of 144 megapixels on two threads, not 2.7.
Image.core.set_block_size(1 << 26)  # type: ignore[attr-defined]
_ORIENTATION = 0x0112
_NO_RANGE = "holds floating-point numbers, whose range nothing says; save it with 8 or 16 bits"
MAX_MEMBER_BYTES = 1 << 30
"""Bytes of the largest zip member that is read, as unpacked."""
LARGE_MEMBER = 1 << 26
"""Bytes above which members are read one at a time: a zip of a few megabytes can claim this limit for each thread."""
MAX_MEMBERS = 5_000_000


@dataclass(frozen=True)
class Media:
    """One image or video, in a folder or inside a zip.

    `path` is the file (the zip for a member), `member` the name inside the zip or None, and `relative`
    the place of the item below the input it was found in, with which an output tree mirrors the input's.
    """

    path: Path
    kind: Literal["image", "video"]
    relative: PurePosixPath
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}::{self.member}"

    def room(self) -> AbstractContextManager[object]:
        """While a zip's member above LARGE_MEMBER is open: it waits until no other such one is, in any thread."""
        try:
            large = self.member is not None and _archive(self.path).getinfo(self.member).file_size > LARGE_MEMBER
        except Exception:  # said by `open`, and zipfile raises half a dozen kinds
            large = False
        return _large_member if large else nullcontext()

    def open(self) -> BinaryIO:
        """Open for reading, seekable. Raises MediaError where the file or member is not readable."""
        try:
            if self.member is None:
                return self.path.open("rb")
            return BytesIO(read_member(_archive(self.path), self.member))
        except MediaError:
            raise
        except Exception as e:  # zlib, bz2 and lzma raise kinds of their own on damaged members
            raise MediaError(f"{self}: cannot be read: {str(e)[:300] or type(e).__name__}") from e


_zips: dict[tuple[int, Path, int, int], zipfile.ZipFile] = {}
"""The zips that this process has open, the one last used at the end."""
_zips_lock = threading.Lock()
_large, _large_member = threading.RLock(), threading.RLock()
ZIPS_OPEN = 64
"""Zips that are kept open."""


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip, whose names are UTF-8 where all can be: macOS and Info-ZIP write that and do not say so, and zipfile would
    read it as letters of DOS."""
    try:
        return zipfile.ZipFile(path, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return zipfile.ZipFile(path)


def _archive(path: Path) -> zipfile.ZipFile:
    """A zip, kept open between its members: reading the list of 20,000 members takes 140 ms each time.

    One for all threads: a list in memory for each of 16 threads would be 200 MB. Opened anew when the file has changed,
    and after a fork, since the two processes would share one file position.
    """
    stat = path.stat()
    key = os.getpid(), path, stat.st_mtime_ns, stat.st_size
    with _zips_lock:
        archive = _zips.pop(key, None) or open_zip(path)
        _zips[key] = archive
        if len(_zips) > ZIPS_OPEN:
            del _zips[next(iter(_zips))]  # closed when the last thread that reads from it is done
    return archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of one member; one that says it unpacks to more than MAX_MEMBER_BYTES is refused, and none gives more.

    Threads may read from one archive: each has a place of its own in the file, and unpacks beside the others.
    """
    if archive.getinfo(name).file_size > MAX_MEMBER_BYTES:
        raise MediaError(f"{archive.filename}::{name}: unpacks to more than {MAX_MEMBER_BYTES >> 20} MiB; not read")
    with _zips_lock:  # ZipFile counts its readers without a lock of its own
        member = archive.open(name)
    try:
        return member.read()
    finally:
        with _zips_lock:
            member.close()


def kind_of(suffix: str) -> Literal["image", "video"] | None:
    """What a file of this suffix is."""
    suffix = suffix.lower()
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def read_image(source: Media | Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Decode one image to RGB: EXIF orientation applied, alpha laid over white, 16 bits scaled to 8.

    Raises:
        MediaError: not an image of a known format, damaged, truncated, or above MAX_PIXELS.
    """
    if isinstance(source, Path):
        source = Media(source, "image", PurePosixPath(source.name))
    name = name or str(source)
    with source.room() if isinstance(source, Media) else nullcontext():
        stream = source.open() if isinstance(source, Media) else source
        with open_image(stream, name) as image, alone(image.width * image.height):
            image.load()
            return upright_rgb(image)


def alone(pixels: int) -> AbstractContextManager[object]:
    """While an image of so many pixels is worked on: one above LARGE waits until no other such one is."""
    return _large if pixels > LARGE else nullcontext()


@contextmanager
def open_image(stream: BinaryIO, name: str) -> Iterator[Image.Image]:
    """Yield an image file whose pixels are not decoded yet, and close the stream; `name` is for messages.

    Raises:
        MediaError: as `read_image`, for whatever goes wrong inside too.
    """
    try:
        with stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the size has its own check here
            image: Image.Image = Image.open(stream, formats=IMAGE_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise MediaError(f"{name}: {image.width}×{image.height} pixels, above the limit of {MAX_PIXELS:,}")
            if image.mode.startswith("F"):
                raise MediaError(f"{name}: {_NO_RANGE}")
            yield image
    except RfpError:
        raise
    except UnidentifiedImageError as e:
        raise MediaError(f"{name}: not a readable image: of no known format, or damaged at its beginning") from e
    except Exception as e:  # Pillow's decoders raise a dozen kinds on damaged files
        raise MediaError(f"{name}: not a readable image: {str(e) or type(e).__name__}") from e


def upright_rgb(image: Image.Image) -> Image.Image:
    """A decoded image as RGB: EXIF orientation applied, alpha laid over white, 16 bits scaled to 8."""
    return _over_white(_eight_bits(ImageOps.exif_transpose(image)))


def lies(image: Image.Image) -> bool:
    """Whether upright its width is its height, by the EXIF orientation."""
    return image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)


def _eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image
    if image.mode.startswith("F"):
        raise MediaError(_NO_RANGE)
    values = np.asarray(image).astype(np.float32)
    values *= 255 / 65535
    return Image.fromarray(np.rint(np.clip(values, 0, 255, out=values), out=values).astype(np.uint8))


def _over_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def paths(values: Sequence[str | Path]) -> list[Path]:
    """Command-line strings as paths, `~` expanded where there is such a user."""
    return [Path(os.path.expanduser(v)) for v in values]  # noqa: PTH111 (pathlib's raises for an unknown user)
