"""Time the cells of a benchmark in turns, so that what disturbs the machine disturbs all of them alike.

Every cell is set up, called once to warm up, under torch's FLOP counter, and once under the eyes of the allocator; then
the rounds begin, in each of which every cell has its turn. With ``isolate`` a cell lives in a process of its own that
waits while others have theirs.

The clock is the CPU time of the process where one thread computes on a CPU, which other processes do not lengthen, and
else the time of day, the device waited for.
"""

from __future__ import annotations

import importlib
import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol

import torch

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell, CellResult, Trial
from fac_lightning.bench.flops import count_flops
from fac_lightning.bench.implementation import synchronize
from fac_lightning.bench.machine import check_device, machine_line
from fac_lightning.bench.memory import peak_memory, reset_resident_peak, resident_peak, resident_size

__all__ = ["check_options", "find_benchmark", "run_benchmark"]


def find_benchmark(name: str) -> Benchmark:
    """The benchmark ``<Name>Benchmark`` of ``fac_lightning.bench.<name>``.

    Raises:
        ValueError: There is no such file, or no such class in it.
    """
    module = f"fac_lightning.bench.{name}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ValueError(f"there is no benchmark {name!r}: {module} does not exist") from error
    kind = getattr(found, f"{name.capitalize()}Benchmark", None)
    if kind is None:
        raise ValueError(f"{name!r} is no benchmark: {module} has no {name.capitalize()}Benchmark")
    made: Benchmark = kind()
    return made


def clock_of(settings: BenchSettings) -> str:
    """``cpu`` or ``wall``."""
    return "cpu" if settings.threads == 1 and torch.device(settings.device).type == "cpu" else "wall"


def timer_of(settings: BenchSettings) -> Callable[[], float]:
    """Seconds by the clock of ``clock_of``."""
    return time.process_time if clock_of(settings) == "cpu" else time.perf_counter


def check_options(benchmark: Benchmark, settings: BenchSettings) -> None:
    """Refuse an option that would change nothing.

    Raises:
        ValueError: Names it.
    """
    for name, given in (("over", settings.over), ("compiled", settings.compiled)):
        if given and name not in benchmark.takes:
            raise ValueError(f"--{name} means nothing to fac bench {benchmark.name}; leave it out")


def run_benchmark(benchmark: Benchmark, settings: BenchSettings) -> BenchReport:
    """Measure all cells and draw the findings.

    Raises:
        ValueError: The device is not there, an option means nothing to the benchmark, or a cell cannot be set up.
    """
    check_device(settings.device)
    check_options(benchmark, settings)
    torch.set_num_threads(settings.threads)
    machine = machine_line(settings.device, settings.threads) | {"clock": clock_of(settings)}
    cells = benchmark.cells(settings)
    with ExitStack() as stack:
        runners: list[_Runner] = []
        for cell in cells:
            made: _Runner = _Process(benchmark.name, cell.name, settings) if settings.isolate else _Here(cell, settings)
            stack.callback(made.close)
            runners.append(made)
        seconds: list[list[float]] = [[] for _ in runners]
        for _ in range(settings.rounds):
            for times, runner in zip(seconds, runners, strict=True):
                times += runner.turn()
        results = tuple(
            replace(runner.result(), seconds=tuple(times)) for runner, times in zip(runners, seconds, strict=True)
        )
    report = BenchReport(benchmark.name, settings, machine, results)
    return replace(report, findings=dict(benchmark.findings(report)))


class _Runner(Protocol):
    """A cell that is set up."""

    def turn(self) -> list[float]:
        """Seconds of each call of one turn."""

    def result(self) -> CellResult:
        """All but the seconds."""

    def close(self) -> None:
        """Let go of it."""


class _Here:
    """A cell in this process."""

    def __init__(self, cell: Cell, settings: BenchSettings) -> None:
        self.cell, self.settings = cell, settings
        before = resident_size() if settings.isolate and reset_resident_peak() else None
        self.trial: Trial = cell.setup()
        self.flops = _flops(self.trial)
        synchronize(settings.device)
        # read now: profiling takes memory of its own
        self.resident = None if before is None else resident_peak() - before
        self.memory = peak_memory(self.trial.call, settings.device) if self.trial.count_memory else None

    def turn(self) -> list[float]:
        clock = timer_of(self.settings)
        seconds = []
        for _ in range(self.settings.reps):
            synchronize(self.settings.device)
            start = clock()
            self.trial.call()
            synchronize(self.settings.device)
            seconds.append(clock() - start)
        return seconds

    def result(self) -> CellResult:
        values: Mapping[str, float] = self.trial.values() if self.trial.values else {}
        work = dict(self.trial.work)
        return CellResult(self.cell.name, (), work, self.memory, self.resident, self.flops, dict(values))

    def close(self) -> None:
        if self.trial.close:
            self.trial.close()


class _Process:
    """A cell in a process of its own, which does what it is told through a pipe."""

    def __init__(self, benchmark: str, cell: str, settings: BenchSettings) -> None:
        self.cell = cell
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, benchmark, cell, settings), daemon=True)
        self.process.start()
        theirs.close()
        self._ask(None)

    def turn(self) -> list[float]:
        seconds: list[float] = self._ask("turn")
        return seconds

    def result(self) -> CellResult:
        result: CellResult = self._ask("result")
        return result

    def close(self) -> None:
        if self.process.is_alive():
            self.pipe.send("close")
        self.process.join()

    def _ask(self, word: str | None) -> Any:
        if word is not None:
            self.pipe.send(word)
        try:
            done, answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise ValueError(
                f"the process of cell {self.cell!r} ended with status {self.process.exitcode}; "
                "with too little memory it is killed: take a smaller --config"
            ) from None
        if not done:
            raise ValueError(f"cell {self.cell!r}: {answer}")
        return answer


def _serve(pipe: Any, benchmark: str, name: str, settings: BenchSettings) -> None:
    """A process of one cell."""
    torch.set_num_threads(settings.threads)
    try:
        cell = next(cell for cell in find_benchmark(benchmark).cells(settings) if cell.name == name)
        here = _Here(cell, settings)
        pipe.send((True, None))
        while (word := pipe.recv()) != "close":
            pipe.send((True, here.turn() if word == "turn" else here.result()))
        here.close()
    except (ValueError, OSError) as error:
        pipe.send((False, str(error)))
    except Exception as error:  # nobody expected it: the traceback is what helps
        traceback.print_exc()
        pipe.send((False, f"{type(error).__name__}: {error}"))


def _flops(trial: Trial) -> int | None:
    """FLOPs of the first call; None where they are not to be counted."""
    if not trial.count_flops:
        trial.call()
        return None
    return count_flops(trial.call)
