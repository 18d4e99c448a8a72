"""Files appear whole or not at all: written aside under a hidden name, flushed to disk, then renamed."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any


def aside(path: Path) -> Path:
    """The name beside `path` under which it is written until it is whole: `a/b.mp4` → `a/.b.partial.mp4`.

    The name is always the same, so a killed command leaves at most one such file and its next run replaces it.
    """
    return hidden(path, path.stem, f".partial{path.suffix}")


_LONGEST = 255
"""Bytes of a file's name that common file systems take."""


def hidden(path: Path, stem: str, ending: str) -> Path:
    """`.STEM+ENDING` beside `path`; of a name that would be too long the stem is a hash, and so always the same."""
    name = f".{stem}{ending}"
    if len(os.fsencode(name)) > _LONGEST:
        name = f".{blake2b(os.fsencode(stem), digest_size=16).hexdigest()}{ending}"
    return path.with_name(name)


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, an empty file; rename it to `path` on success, remove it on any error.

    Raises:
        BlockingIOError: another process is writing `path`: whichever ended first would give the other's half its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = aside(path)
    held = _claimed(partial, path)
    try:
        yield partial
        with partial.open("rb+") as f:
            os.fsync(f.fileno())
        partial.replace(path)
        with suppress(FileNotFoundError):
            if partial.samefile(path):  # two names of one file, which stay as they are
                partial.unlink()
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        if held is not None:
            os.close(held)


def _claimed(partial: Path, path: Path) -> int | None:
    """Make the file and lock it as long as what is returned is open; what a killed command left there goes."""
    busy = BlockingIOError(errno.EBUSY, "another rfp is writing it", str(path))
    try:
        left = os.open(partial, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if not lock(left, shared=False, wait=False):
                raise busy
            if os.fstat(left).st_nlink:  # else its writer has just ended, and that name is the next one's
                partial.unlink(missing_ok=True)
        finally:
            os.close(left)
    except FileNotFoundError:
        pass
    except BlockingIOError:
        raise
    except OSError:
        partial.unlink(missing_ok=True)  # a link, and what that leads to is not ours
    try:
        held = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise busy from None
    if sys.platform == "win32":  # which renames no open file
        os.close(held)
        return None
    if not lock(held, shared=False, wait=False) or not os.fstat(held).st_nlink:
        os.close(held)
        raise busy
    return held


@contextmanager
def write_folder_aside(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it becomes `path`, replacing what stood there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = aside(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    old = hidden(path, path.name, ".replaced")
    try:
        yield partial
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.replace(old)
        partial.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with write_aside(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all."""
    write_text(path, json_text(value, indent=2) + "\n")


def read_small(path: Path, most: int = 1 << 24) -> str:
    """The text of a file that this program wrote, or someone else in its place: a plain file of so many bytes at most.

    Raises:
        OSError: it cannot be read. ValueError: it is no such file, or no text.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file() or path.stat().st_size > most:
        raise ValueError(f"{path}: no file of at most {most:,} bytes")
    return path.read_text(encoding="utf-8")


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that UTF-8 can hold: bytes of a file's name that are no text are escapes, and read back so."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


if sys.platform == "win32":

    def lock(fd: int, shared: bool, wait: bool = True) -> bool:
        """No lock: nothing of this was tried on Windows."""
        return True

else:
    import fcntl

    def lock(fd: int, shared: bool, wait: bool = True) -> bool:
        """Lock an open file, or change how it is locked; False where another process has it and we do not wait."""
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:  # a file system that knows no locks, as some of networks
            return True
        return True
