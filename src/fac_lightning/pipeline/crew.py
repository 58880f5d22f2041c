"""Stages side by side: who may start, and work in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fac_lightning.pipeline.graph import Stage, StageError
from fac_lightning.pipeline.memory import PeakMemory

__all__ = ["Crew", "apart", "at_a_time"]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # read when a process loads torch

_environment = threading.Lock()


class Crew:
    """Gives stages out when what they need is settled; made by :func:`at_a_time`."""

    def __init__(self, jobs: int, pool: ThreadPoolExecutor | None) -> None:
        self.jobs, self.pool = jobs, pool
        self.working: dict[Future[None], str] = {}

    def in_turn(self, stages: Sequence[Stage]) -> Iterator[Stage]:
        """Every stage once, in order, but never before what it needs, nor while all hands are busy."""
        waiting = list(stages)
        while waiting:
            open_ = {stage.name for stage in waiting} | set(self.working.values())
            ready = next((stage for stage in waiting if not open_ & stage.needs.keys()), None)
            if ready is None or len(self.working) >= self.jobs:
                self.settle(FIRST_COMPLETED)
                continue
            waiting.remove(ready)
            yield ready
        while self.working:
            self.settle(FIRST_COMPLETED)

    def do(self, stage: Stage, work: Callable[[], None]) -> None:
        """Start work; with one hand, do it."""
        if self.pool is None:
            work()
        else:
            self.working[self.pool.submit(work)] = stage.name

    def settle(self, until: str) -> None:
        """Wait for work, and raise what it raised."""
        for future in wait(self.working, return_when=until).done:
            del self.working[future]
            future.result()


@contextmanager
def at_a_time(jobs: int) -> Iterator[Crew]:
    """A crew of so many hands. Where one fails, the others finish what they have begun."""
    if jobs == 1:
        yield Crew(1, None)
        return
    with ThreadPoolExecutor(jobs, "stage") as pool:
        try:
            yield Crew(jobs, pool)
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()  # the pool waits for them
            raise


def apart(
    run_stage: Callable[[Stage], Any], jobs: int, log: Callable[[Stage], Path]
) -> Callable[[Stage, PeakMemory], Any]:
    """Run each stage in a process of its own, with its share of the machine's threads.

    Args:
        run_stage: A function that another process can import.
        jobs: Processes at a time.
        log: Where what the process prints goes.
    """
    share = str(max(1, (os.cpu_count() or 1) // jobs))

    def run(stage: Stage, memory: PeakMemory) -> Any:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            with _environment:  # a process takes its threads from the environment it is started in
                ours = {name: os.environ.get(name) for name in THREADS}
                os.environ.update({name: value or share for name, value in ours.items()})
                try:
                    done = pool.submit(_work, run_stage, stage, log(stage))
                finally:
                    for name, value in ours.items():
                        if value is None:
                            del os.environ[name]
            try:
                result, memory.megabytes = done.result()
            except BrokenProcessPool:
                raise StageError(f"the process of stage {stage.name!r} was killed; see {log(stage)}") from None
        return result

    return run


def _work(run_stage: Callable[[Stage], Any], stage: Stage, log: Path) -> tuple[Any, float]:
    """What a stage gives, and its peak memory in megabytes."""
    threading.Thread(target=_end_with, args=(os.getppid(),), name="parent", daemon=True).start()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    with PeakMemory() as memory:
        result = run_stage(stage)
    sys.stdout.flush()
    return result, memory.megabytes


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone: nobody would take what it gives."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
