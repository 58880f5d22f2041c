"""Worker processes that all do one thing, results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Generic, Self, TypeVar

__all__ = ["WorkerPool"]

Task_ = TypeVar("Task_")
Result_ = TypeVar("Result_")


class WorkerPool(Generic[Task_, Result_]):
    """One function in worker processes.

    Workers are started with "spawn", so a script that uses them needs ``if __name__ == "__main__":``.

    Args:
        make: Makes the function of a worker out of its number, once in each; it is pickled.
        num_workers: Processes, each on one thread; 0 works in this process.
    """

    def __init__(self, make: Callable[[int], Callable[[Task_], Result_]], num_workers: int = 0) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}")
        self._make, self.num_workers = make, num_workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, tasks: Iterable[Task_]) -> Iterator[Result_]:
        """Result of each task; at most three tasks a worker are under way, whatever the number of tasks."""
        if self.num_workers == 0:
            yield from map(self._make(0), tasks)
            return
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.num_workers, spawn, _start_worker, (self._make, spawn.Value("i", 0)))
        waiting: deque[Future[Result_]] = deque()
        for task in tasks:
            waiting.append(self._pool.submit(_work, task))
            if len(waiting) >= 3 * self.num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_function: Callable[[Any], Any] | None = None


def _start_worker(make: Callable[[int], Callable[[Any], Any]], started: Any) -> None:
    global _function
    import torch

    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # the processes share the cores
    with started.get_lock():
        number = started.value
        started.value += 1
    _function = make(number)


def _die_with_parent() -> None:
    """A killed parent cannot stop its pool, and the idle workers would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Any) -> Any:
    assert _function is not None
    return _function(task)
