"""Where the time goes: seconds of work by stage, of all threads together, so that they may exceed the wall time."""

import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Stages(dict[str, float]):
    """Seconds by stage, in the order in which the stages were first heard of; any thread may add to them."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self[stage] = self.get(stage, 0.0) + seconds

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Around work of a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)

    def each(self, stage: str, items: Iterable[T]) -> Generator[T, None, None]:
        """Yield `items`; the time in which each is worked out is the stage's."""
        source = iter(items)
        try:
            while True:
                with self.timed(stage):
                    try:
                        item = next(source)
                    except StopIteration:
                        return
                yield item
        finally:
            if close := getattr(source, "close", None):
                close()
