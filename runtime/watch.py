"""Keep folders translated: look at them again and again, and translate when something in them is new or was changed."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .discovery import discover
from .errors import UsageError
from .media import paths

SETTLED = 1.0
"""Seconds for which a file was not written to before it is taken: it may still be on its way."""


def watch(
    inputs: Sequence[str | Path],
    output: str | Path,
    translate_all: Callable[[], object],
    stop: threading.Event,
    interval: float = 1.0,
) -> None:
    """Call `translate_all` at once, and after every change to the inputs, until `stop` is set.

    By a look at names, sizes and times every `interval` seconds, or as seldom as makes looking a tenth of the time.
    What is below `output` is no input. Folders may be empty at first.

    Args:
        translate_all: such as `translate` with FolderOptions(settled=SETTLED); its ledger knows what is to be done.

    Raises:
        UsageError: an input is not there. What `translate_all` raises.
    """
    done: dict[int, int] = {}
    while not stop.is_set():
        began = time.monotonic()
        found = _settled(paths(inputs), paths([output])[0])
        took = time.monotonic() - began
        if any(done.get(name) != state for name, state in found.items()):
            translate_all()
        done = found
        stop.wait(max(interval, 9 * took))


def _settled(inputs: Sequence[Path], output: Path) -> dict[int, int]:
    """A hash of the state of each input that nobody is writing to, by a hash of its name: 100,000 take about 15 MB."""
    here, now = str(output.resolve()) + os.sep, time.time()
    found: dict[int, int] = {}
    for path in inputs:
        try:
            items = discover([path], lambda error: None)
        except UsageError:
            if not path.is_dir():
                raise
            continue  # empty for now
        for item in items:
            try:
                stat = item.path.stat()
            except OSError:
                continue  # gone meanwhile
            if abs(now - stat.st_mtime) >= SETTLED and not str(item.path.resolve()).startswith(here):
                found[_hash(str(item))] = _hash(f"{stat.st_size} {stat.st_mtime_ns}")
    return found


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
