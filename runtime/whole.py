"""Whether a film's file is as long as it says: one that is cut short may end without an error."""

from typing import BinaryIO

from .matroska import segment_end

_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"moof", b"wide", b"free", b"skip", b"pnot", b"sidx", b"uuid")
"""With what an MP4 or MOV file begins (ISO/IEC 14496-12, section 4.2, and Apple's QTFF)."""
_NEEDED = (b"moov", b"mdat", b"moof")
"""Boxes that hold the film: what else may stand at the end, as a camera's own data, need not be a box at all."""
_EBML = b"\x1a\x45\xdf\xa3"
_HEAD = 1 << 16


def missing_bytes(stream: BinaryIO) -> int:
    """How many bytes an MP4, MOV, Matroska, WebM or AVI file lacks of what it says; 0 where it is whole, or does not
    say."""
    size = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(_HEAD)
    if head.startswith(_EBML):
        return max(0, (segment_end(head) or 0) - size)
    if head.startswith(b"RIFF"):
        return _riff_lacks(stream, size)
    return _boxes_lack(stream, size) if head[4:8] in _BOXES else 0


def _riff_lacks(stream: BinaryIO, size: int) -> int:
    """Of an AVI file, in as many parts as it has gigabytes. FFmpeg takes one that is cut for a shorter one."""
    at = 0
    while at + 8 <= size:
        stream.seek(at)
        head = stream.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):  # as of a recording under way
            return 0
        at += 8 + length
        if at > size:
            return at - size
        at += length % 2
    return 0


def _boxes_lack(stream: BinaryIO, size: int) -> int:
    at = 0
    while at + 8 <= size:
        stream.seek(at)
        head = stream.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end of the file, wherever that is
            return 0
        at += length
        if at > size:
            return at - size if kind in _NEEDED else 0
    return 0
