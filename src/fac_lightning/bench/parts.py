"""Where the time of a training step goes: by part of the model and by operation.

PyTorch's profiler tells of every operation and of the number under which autograd keeps it, so that an operation of the
backward pass belongs to the part whose forward made it. Python between operations is in none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.profiler import record_function

from fac_lightning.bench.memory import profile_call

__all__ = ["time_by_part"]

_MARK = "part: "
_BACKWARD = "autograd::engine::evaluate_function: "
_OPTIMIZER = "Optimizer."


def time_by_part(call: Callable[[], Any], parts: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
    """Part -> operation -> seconds on the CPU in the operation itself, forward and backward, of one call.

    What happens outside of all parts stands under ``behind NAME`` of the part that ran last in the forward pass (behind
    the backbone of a ``SpeechLM`` are the logits of its text), or under ``before all``; the rest under ``optimizer``
    and, where autograd adds a gradient to those that are there, ``gradients``.

    Args:
        call: The work, in this thread.
        parts: Modules that ``call`` runs by calling them; where they contain each other the innermost counts.
    """
    with ExitStack() as stack:
        for name, module in parts.items():
            stack.enter_context(_marked(name, module))
        profiler = profile_call(call)
    events = sorted(profiler.events() or [], key=lambda event: event.time_range.start)
    place = _Places(events)
    names: dict[int, str] = {}  # of the backward pass, by autograd's number
    for event in events:
        if event.sequence_nr >= 0 and not _backward_of(event):
            names[event.sequence_nr] = place(event)
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        if event.name.startswith(_MARK):
            continue
        node = _backward_of(event)
        name = place(event) if node is None else names.get(node.sequence_nr, "gradients")
        found[name][event.name.removeprefix(_BACKWARD)] += event.self_cpu_time_total / 1e6
    return {name: dict(operations) for name, operations in found.items()}


@contextmanager
def _marked(name: str, module: nn.Module) -> Iterator[None]:
    """Tell the profiler when a module runs forward."""
    running: list[Any] = []

    def enter(*_: Any) -> None:
        running.append(record_function(_MARK + name))
        running[-1].__enter__()

    def leave(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    hooks = module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _backward_of(event: Any) -> Any:
    """The node of the backward pass in which an event happened; None for one outside of it."""
    while event is not None and not event.name.startswith(_BACKWARD):
        event = event.cpu_parent
    return event


class _Places:
    """Where in the call an event of the forward pass, or of the optimizer, happened."""

    def __init__(self, events: list[Any]) -> None:
        marks = [event for event in events if event.name.startswith(_MARK)]
        self.ends = sorted((mark.time_range.end, mark.name.removeprefix(_MARK)) for mark in marks)

    def __call__(self, event: Any) -> str:
        above = event
        while above is not None:
            if above.name.startswith(_MARK):
                return str(above.name.removeprefix(_MARK))
            if above.name.startswith(_OPTIMIZER):
                return "optimizer"
            above = above.cpu_parent
        behind = bisect_right(self.ends, event.time_range.start, key=lambda end: end[0])
        return f"behind {self.ends[behind - 1][1]}" if behind else "before all"
