"""Stages that run beside one another, each holding a bounded number of items however long the input is."""

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

THREADS = min(8, os.cpu_count() or 1)
"""That decode, and twice as many that encode."""
SLOW = 0.05
"""Seconds."""


def ahead(items: Iterable[Out], depth: int = 2, stop: Callable[[], None] = lambda: None) -> Generator[Out, None, None]:
    """Yield `items` while a thread works out the next ones, at most `depth` of them.

    What `items` raises is raised here, after the items before it. Closing this generator (as Ctrl-C does while it
    waits) calls `stop`, which may make the item under way end early, then closes `items` and waits for its thread.
    """
    done = object()
    waiting: queue.Queue[object] = queue.Queue(depth)
    closed = threading.Event()
    failure: list[BaseException] = []

    def put(item: object) -> bool:
        while not closed.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        source = iter(items)
        try:
            for item in source:
                if not put(item):
                    break
        except BaseException as e:  # handed over to the reader, whatever it is
            failure.append(e)
        finally:
            if close := getattr(source, "close", None):
                close()
            put(done)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not done:
            yield item  # type: ignore[misc]  # the queue holds items and `done` only
        if failure:
            raise failure[0]
    finally:
        closed.set()
        stop()
        thread.join()


def parallel(pool: Executor, work: Callable[[In], Out], items: Iterable[In], depth: int) -> Generator[Out, None, None]:
    """Yield work(item) in the order of `items`, at most `depth` of them under way or waiting to be taken.

    Where items take SLOW or longer to come, what is done is not kept until so many wait: it may be all that there is to
    show. Else they are, for a pool that is drained first stands idle while each result is used.

    What `items` raises is raised here, after the results of the items before it.
    """
    waiting: deque[Future[Out]] = deque()
    failure: Exception | None = None
    source = iter(items)
    try:
        while True:
            began = time.monotonic()
            try:
                item = next(source)
                slow = time.monotonic() - began > SLOW
                waiting.append(pool.submit(work, item))
            except StopIteration:
                break
            except Exception as e:
                failure = e
                break
            while waiting and (len(waiting) >= depth or (slow and waiting[0].done())):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failure is not None:
            raise failure
    finally:
        for future in waiting:
            future.cancel()
