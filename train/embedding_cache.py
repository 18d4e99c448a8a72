"""Embeddings of pictures, kept across trainings in one SQLite file, by content.

$RFP_CACHE/embeddings-1.sqlite    files       path, member, size, mtime → MD5 of the bytes: nothing is hashed twice
                                  embeddings  embedder, content → float16 vector

It holds nothing that could not be made again. WAL mode: several trainings may read and write it at once.
"""

import hashlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..runtime.errors import MediaError
from ..runtime.media import Media
from .domains import WORKERS, Item

Half = npt.NDArray[np.float16]
T = TypeVar("T")

NAME = "embeddings-1.sqlite"
"""The number is the format's: another format is another file."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT, member TEXT, size INTEGER, mtime_ns INTEGER, md5 TEXT, PRIMARY KEY (path, member)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS embeddings (
    embedder TEXT, content TEXT, vector BLOB, PRIMARY KEY (embedder, content));
"""
WAIT_SECONDS = 60.0
"""For another process that writes."""
HASHED_AT_ONCE = 1024
"""Files between commits."""


def _use_wal(db: sqlite3.Connection) -> None:
    """Turning a new file to WAL mode answers "locked" at once, whatever the timeout, while another process does it."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as e:
            if "locked" not in str(e) or time.monotonic() > until:
                raise
        time.sleep(0.05)


class EmbeddingCache:
    """The open cache. A damaged file is set aside; one that cannot be used is done without. `note` says so."""

    def __init__(self, folder: Path, note: Callable[[str], None]) -> None:
        self._path, self._note = folder / NAME, note
        self._db = sqlite3.connect(":memory:")
        self._db.executescript(SCHEMA)
        self._try(self._open, None)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def contents(self, items: Sequence[Item]) -> list[str]:
        """What each picture is, whatever its name: the MD5 of its file or zip member; for a frame of a video that,
        its number, and the size it was decoded to. "" where it cannot be read.

        Files whose path, size and time of change are known are not read.
        """
        known = {media: self._indexed(media) for media in dict.fromkeys(item.media for item in items)}
        fresh = [media for media, md5 in known.items() if not md5]
        with ThreadPoolExecutor(WORKERS) as pool:
            for start in range(0, len(fresh), HASHED_AT_ONCE):
                some = fresh[start : start + HASHED_AT_ONCE]
                stamps = [_stamp(media) for media in some]  # before the bytes are read
                hashes = list(pool.map(_md5, some))
                known |= zip(some, hashes, strict=True)
                rows = [(*_place(m), *stamp, md5) for m, stamp, md5 in zip(some, stamps, hashes, strict=True) if md5]
                self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
        return [_content(item, known[item.media]) for item in items]

    def md5(self, path: Path) -> str:
        """The MD5 of a file, such as a net's weights; hashed once."""
        return self.contents([Item(Media(path, "image", PurePosixPath(path.name)))])[0]

    def load(self, embedder: str, contents: Sequence[str], into: Half) -> list[int]:
        """Fill `into` [N, D] with the vectors of `contents`, and return the rows of those that are not here."""

        def read() -> list[int]:
            missing = []
            for row, content in enumerate(contents):
                query = "SELECT vector FROM embeddings WHERE embedder = ? AND content = ?"
                found = self._db.execute(query, (embedder, content)).fetchone()
                whole = found and isinstance(found[0], bytes) and len(found[0]) == 2 * into.shape[1]
                if whole and np.isfinite(vector := np.frombuffer(found[0], "<f2")).all():
                    into[row] = vector
                else:
                    missing.append(row)
            return missing

        return self._try(read, list(range(len(contents))))

    def save(self, embedder: str, contents: Sequence[str], vectors: Half) -> None:
        """Keep vectors [N, D], all or none of them."""
        rows = [(embedder, c, v.astype("<f2").tobytes()) for c, v in zip(contents, vectors, strict=True) if c]
        self._write("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", rows)

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, timeout=WAIT_SECONDS)
        try:
            _use_wal(db)
            db.execute("PRAGMA synchronous = NORMAL")  # a power cut costs the last few vectors, not the file
            db.executescript(SCHEMA)
        except sqlite3.Error:
            db.close()
            raise
        self._db.close()
        self._db = db

    def _indexed(self, media: Media) -> str:
        query = "SELECT md5 FROM files WHERE path = ? AND member = ? AND size = ? AND mtime_ns = ?"
        found = self._try(lambda: self._db.execute(query, (*_place(media), *_stamp(media))).fetchone(), None)
        return str(found[0]) if found else ""

    def _write(self, statement: str, rows: Sequence[tuple[str | int | bytes, ...]]) -> None:
        def write() -> None:
            with self._db:
                self._db.executemany(statement, rows)

        self._try(write, None)

    def _try(self, act: Callable[[], T], otherwise: T) -> T:
        """`act()`; `otherwise` after a damaged file was set aside, or where the file cannot be used."""
        try:
            return act()
        except (sqlite3.OperationalError, OSError) as e:  # locked, read-only, full, not a folder
            self._do_without(f"cannot be used ({e})")
        except sqlite3.DatabaseError as e:
            self._set_aside(e)
        return otherwise

    def _do_without(self, why: str) -> None:
        self._note(f"{self._path}: {why}: this time embeddings are not kept")
        self._db.close()
        self._db = sqlite3.connect(":memory:")
        self._db.executescript(SCHEMA)

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        self._db.close()
        number = 1
        while (aside := self._path.with_name(f"{self._path.stem}.damaged-{number}.sqlite")).exists():
            number += 1
        try:
            self._path.rename(aside)
            for suffix in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    self._path.with_name(NAME + suffix).rename(aside.with_name(aside.name + suffix))
            self._note(f"{self._path}: damaged ({error}): set aside as {aside.name}, starting a new one")
            self._open()
        except (sqlite3.Error, OSError) as e:
            self._do_without(f"damaged ({error}), and cannot be replaced ({e})")


def _place(media: Media) -> tuple[str, str]:
    path = str(media.path.resolve()).encode("utf-8", "backslashreplace")  # SQLite takes no name that is no text
    return path.decode(), media.member or ""


def _stamp(media: Media) -> tuple[int, int]:
    try:
        stat = media.path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _md5(media: Media) -> str:
    try:
        md5 = hashlib.md5(usedforsecurity=False)
        with media.room(), media.open() as stream:
            while part := stream.read(1 << 20):
                md5.update(part)
        return md5.hexdigest()
    except (MediaError, OSError):
        return ""


def _content(item: Item, md5: str) -> str:
    if item.frames is None or not md5:
        return md5
    h, w = item.frames.shape[1:3]
    return f"{md5}#{item.frame}@{w}x{h}"
