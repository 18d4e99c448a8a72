"""The display size in a Matroska or WebM header, which PyAV leaves out: VP9 and AV1 hold no pixel aspect themselves.

Elements are read and written as RFC 8794 (EBML) and RFC 9559 (Matroska) have them. Nothing in the file moves: the bytes
for the new elements are those that ROOM took up in the name of the track.
"""

import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

ROOM = " " * 40
"""To be appended to the title of the video stream before the header is written; `set_pixel_aspect` takes it off."""
_SEGMENT, _TRACKS, _TRACK = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae"
_NAME, _VIDEO, _VOID, _CRC = b"\x53\x6e", b"\xe0", b"\xec", b"\xbf"
_WIDTH, _HEIGHT = b"\xb0", b"\xba"
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = b"\x54\xb0", b"\x54\xba", b"\x54\xb2"
_HEAD = 1 << 24
"""Bytes among which the tracks are looked for; FFmpeg writes them before the attachments."""


def set_pixel_aspect(path: Path, aspect: Fraction) -> None:
    """Give the first track of a file the display size that makes its pixels so many times as wide as they are high.

    Raises:
        ValueError: the file has no tracks where FFmpeg writes them, or no ROOM in the name of the first one.
    """
    with path.open("r+b") as f:
        head = f.read(_HEAD)
        _, start, end = next(p for p in _elements(head, 0, len(head)) if p[0] == _SEGMENT)
        for name, start, end in _elements(head, start, min(end, len(head))):  # noqa: B020 (inside the segment now)
            if name == _TRACKS:
                f.seek(start)
                f.write(_tracks(head[start:end], aspect))
                return
    raise ValueError(f"{path}: no tracks found")


def segment_end(head: bytes) -> int | None:
    """Where the segment ends, in bytes from the beginning of the file; None where it does not say, as of a recording
    under way, or `head`, the beginning of the file, does not reach to it."""
    try:
        _, start, end = next(p for p in _elements(head, 0, len(head)) if p[0] == _SEGMENT)
    except (StopIteration, IndexError):
        return None
    unknown = end - start + 1 in {1 << 7 * width for width in range(1, 9)}
    return None if unknown else end


def _tracks(tracks: bytes, aspect: Fraction) -> bytes:
    out = bytearray(tracks)
    _, start, end = next(p for p in _elements(tracks, 0, len(tracks)) if p[0] == _TRACK)
    out[start:end] = _track(tracks[start:end], aspect)
    name, start, end = next(_elements(tracks, 0, len(tracks)))
    if name == _CRC:  # of what comes after it
        out[start:end] = zlib.crc32(out[end:]).to_bytes(4, "little")
    return bytes(out)


def _track(track: bytes, aspect: Fraction) -> bytes:
    body = b""
    for name, start, end in _elements(track, 0, len(track)):
        data = track[start:end]
        if name == _NAME:
            data = data.removesuffix(ROOM.encode())
        elif name == _VIDEO:
            parts = {key: data[a:b] for key, a, b in _elements(data, 0, len(data))}
            width, height = (int.from_bytes(parts[key], "big") for key in (_WIDTH, _HEIGHT))
            parts.pop(_DISPLAY_UNIT, None)  # "unknown", where no display size is set; else pixels
            parts[_DISPLAY_WIDTH] = round(width * aspect).to_bytes(4, "big")
            parts[_DISPLAY_HEIGHT] = height.to_bytes(4, "big")
            data = b"".join(_element(key, value) for key, value in parts.items())
        if data or name != _NAME:
            body += _element(name, data)
    left = len(track) - len(body) - 2
    if not 0 <= left < 127:
        raise ValueError("no room for a display size in the name of the track")
    return body + _element(_VOID, bytes(left))


def _elements(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Each element's identifier and where its data begin and end."""
    while at < end:
        after = at + _length(data[at])
        name = data[at:after]
        width = _length(data[after])
        size = int.from_bytes(data[after : after + width], "big") & ((1 << 7 * width) - 1)
        start = after + width
        at = start + size
        yield name, start, at


def _length(first: int) -> int:
    """Bytes of a number of variable length, by its first one."""
    return 9 - first.bit_length()


def _element(name: bytes, data: bytes) -> bytes:
    width = next(w for w in range(1, 9) if len(data) < (1 << 7 * w) - 1)
    return name + (len(data) | 1 << 7 * width).to_bytes(width, "big") + data
