"""Pictures decoded by threads while the network is busy, in their order, a bounded number of them at a time.

Threads and not loader processes: the decoders and resizing leave Python's lock, paths may come from anywhere and never end, and nothing
is copied from one process to another.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def read_ahead(function: Callable[[In], Out], items: Iterable[In], *, threads: int, ahead: int) -> Iterator[Out]:
    """`function` of each item, in order.

    Args:
        threads: 0 calls it here, when the next result is asked for.
        ahead: the most results that wait, done or not.
    """
    if threads == 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[Future[Out]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # also when nobody asks for the rest
