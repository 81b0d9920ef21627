"""An iterator that is filled by a thread, which ends with it in every case."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

_PATIENCE_SECONDS = 0.2


@dataclass(frozen=True)
class _End:
    """The source is exhausted, or has raised an error."""

    error: BaseException | None = None


def prefetched(source: Iterable[Item], ahead: int) -> Generator[Item, None, None]:
    """The items of `source`, produced by a thread up to `ahead` items early; its error is raised in its place.

    Closing the generator stops the thread and joins it, so close it if a loop may end early (`contextlib.closing`).
    If it is not closed (an exception's traceback keeps it alive), the thread ends once the main thread has: a thread
    inside torch during interpreter shutdown aborts the process.
    """
    closed = threading.Event()
    # Queues in C: a bounded one, in Python, hands over an item with several switches between the threads.
    ready: queue.SimpleQueue[Item | _End] = queue.SimpleQueue()
    free: queue.SimpleQueue[None] = queue.SimpleQueue()
    for _ in range(ahead):
        free.put(None)

    def offer(item: Item | _End) -> bool:
        while not closed.is_set() and threading.main_thread().is_alive():
            try:
                free.get(timeout=_PATIENCE_SECONDS)
            except queue.Empty:
                continue
            if closed.is_set():
                break
            ready.put(item)
            return True
        return False

    def produce() -> None:
        try:
            for item in source:
                if not offer(item):
                    return
        except BaseException as error:  # noqa: BLE001 - passed to the consumer, which raises it
            offer(_End(error))
        else:
            offer(_End())

    producer = threading.Thread(target=produce, name="prefetch", daemon=False)
    producer.start()
    try:
        while not isinstance(item := ready.get(), _End):
            free.put(None)
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()
        # Wakes the thread if it waits.
        free.put(None)
        producer.join()
