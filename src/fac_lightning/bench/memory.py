"""How much memory a call holds at most.

On a CPU torch's own profiler tells of every tensor that is made and freed; their running sum is the measure. It is
exact and does not depend on the load, and it knows nothing of memory that is not a tensor's (numpy, files read into
Python, a library's scratch space). On CUDA it is the allocator's high-water mark. ``resident_peak`` is the other view,
of the whole process, by the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_memory", "profile_call", "reset_resident_peak", "resident_peak", "resident_size"]


def profile_call(call: Callable[[], Any], **options: Any) -> profile:
    """What PyTorch's profiler, with these options, tells of a call on the CPU."""
    profiler = profile(activities=[ProfilerActivity.CPU], **options)
    with _without_chatter():
        profiler.start()
    try:
        call()
    finally:
        with _without_chatter():
            profiler.stop()
    return profiler


def peak_memory(call: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes of tensors that a call holds at most at a time, beyond those that were there before it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    profiler = profile_call(call, profile_memory=True)
    results: Any = profiler.profiler.kineto_results  # type: ignore[union-attr]
    held = most = 0
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def reset_resident_peak() -> bool:
    """Begin a new high-water mark of this process; False where the kernel offers none."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def resident_size() -> int:
    """Bytes of this process that lie in memory now."""
    return _status("VmRSS")


def resident_peak() -> int:
    """Most of them since ``reset_resident_peak``."""
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


@contextmanager
def _without_chatter() -> Iterator[None]:
    """The profiler's library writes a line to stderr when it starts and stops, which no setting of its own silences."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
