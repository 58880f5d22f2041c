"""Peak memory of this process and all it starts."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path
from types import TracebackType

__all__ = ["PeakMemory"]


class PeakMemory:
    """Sample the resident memory of the process tree in the background.

    ``megabytes`` holds the largest sum seen, in 2^20 bytes. Pages that processes share, such as libraries, count once.
    Where Linux's ``/proc`` is absent it is the larger of the process's and its largest child's own peak, as the
    operating system counts them.

    Args:
        interval: Seconds between samples.
    """

    def __init__(self, interval: float = 0.5) -> None:
        self.interval, self.megabytes = interval, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.megabytes = max(self.megabytes, _tree_megabytes(Path("/proc/self").resolve()))

    def _watch(self) -> None:
        me = Path("/proc/self").resolve()
        while True:
            self.megabytes = max(self.megabytes, _tree_megabytes(me))
            if self._stop.wait(self.interval):
                return


def _tree_megabytes(process: Path) -> float:
    if not (process / "smaps_rollup").exists():
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, kilobytes elsewhere
        usages = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return max(usages) / unit
    total, waiting = 0.0, [process]
    while waiting:
        current = waiting.pop()
        try:
            total += _resident_megabytes(current)
            for children in current.glob("task/*/children"):
                waiting += [process.parent / pid for pid in children.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return total


def _resident_megabytes(process: Path) -> float:
    """Resident pages, each divided by the number of processes that map it (PSS)."""
    for line in (process / "smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) / 2**10
    return 0.0  # it is ending and holds nothing any more
