import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rfp.runtime.pipeline import SLOW, ahead, parallel


def test_items_come_in_order_and_no_more_than_depth_are_worked_out_ahead():
    begun = []

    def source():
        for i in range(50):
            begun.append(i)
            yield i

    for i in ahead(source(), 3):
        assert len(begun) <= i + 1 + 3 + 1  # the one taken, three that wait, one in hand
        if i < 5:
            time.sleep(0.01)
    assert begun == list(range(50))


def test_an_error_arrives_after_the_items_before_it():
    def source():
        yield 1
        raise KeyError("two")

    items = ahead(source())
    assert next(items) == 1
    with pytest.raises(KeyError, match="two"):
        next(items)


def test_closing_ends_the_thread_and_the_source():
    closed = threading.Event()

    def source():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = ahead(source(), stop=lambda: None)
    next(items)
    before = threading.active_count()
    items.close()
    assert closed.is_set() and threading.active_count() == before - 1


def test_parallel_keeps_the_order_and_the_bound():
    begun = []
    with ThreadPoolExecutor(4) as pool:
        for i, out in enumerate(parallel(pool, lambda n: begun.append(n) or n * n, range(40), 5)):
            assert out == i * i and len(begun) <= i + 5


def test_parallel_raises_the_error_of_its_items_after_the_results_before_it():
    def source():
        yield from range(3)
        raise KeyError("three")

    got = []
    with ThreadPoolExecutor(2) as pool, pytest.raises(KeyError, match="three"):
        got.extend(parallel(pool, lambda n: n, source(), 8))
    assert got == [0, 1, 2]


def test_results_come_as_they_are_done_and_not_when_the_queue_is_full():
    seen, worked, ahead_of_seen = [], [], []

    def source():
        for i in range(8):
            yield i
            while len(worked) <= i:
                time.sleep(0.005)
            time.sleep(2 * SLOW)
            ahead_of_seen.append(i - len(seen))

    with ThreadPoolExecutor(2) as pool:
        for result in parallel(pool, lambda i: worked.append(i) or i, source(), 32):
            seen.append(result)
    assert seen == list(range(8)) and max(ahead_of_seen) <= 1  # though 32 might wait
