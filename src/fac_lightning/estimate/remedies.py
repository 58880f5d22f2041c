"""What would make a training fit: what each way out saves, and what it costs.

Each is computed from the traced line by leaving out or scaling what it concerns; its words, added to the command, trace
it exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from fac_lightning.estimate.setting import Assessment
from fac_lightning.estimate.trace import StepMemory
from fac_lightning.estimate.training import LineCost, SlotSize

__all__ = ["Remedy", "cheapest", "fewer_positions", "frozen_slot", "low_rank_slot", "smaller_slot"]

Key = TypeVar("Key")


@dataclass(frozen=True)
class Remedy:
    """A way out."""

    name: str
    words: str  # what to add to the command
    outcome: Assessment
    disturbs: int  # 0: the same training; 1: more devices, or another precision; 2: another model or less trained


def cheapest(remedies: Iterable[Remedy], count: int = 3) -> list[Remedy]:
    """Those that fit: first what leaves the training as it is, then by device-seconds per second of conversation."""
    fitting = [remedy for remedy in remedies if remedy.outcome.fits]
    return sorted(fitting, key=lambda remedy: (remedy.disturbs, remedy.outcome.device_seconds))[:count]


def fewer_positions(line: LineCost, share: float) -> LineCost:
    """A line of ``share`` of the positions: all that grows with them shrinks alike."""
    memory = line.memory
    kept = memory.backward_total - sum(memory.backward.values())  # gradients at that moment
    return replace(
        line,
        flops=_scaled(line.flops, share),
        traffic=_scaled(line.traffic, share),
        expert_flops=_scaled(line.expert_flops, share),
        memory=replace(
            memory,
            forward=_scaled(memory.forward, share),
            backward=_scaled(memory.backward, share),
            backward_total=kept + int(share * sum(memory.backward.values())),
        ),
        positions=int(line.positions * share),
        seconds=line.seconds * share,
    )


def frozen_slot(line: LineCost, name: str, stored: bool = False) -> LineCost:
    """A line whose slot ``name`` is not trained and keeps nothing; ``stored``: nor runs, its outputs are read."""
    slot = line.slots[name]
    phases = () if stored else ("forward",)
    return replace(
        line,
        flops={key: count for key, count in line.flops.items() if key[0] != name or key[1] in phases},
        traffic={key: count for key, count in line.traffic.items() if key[0] != name or key[1] in phases},
        slots={**line.slots, name: replace(slot, trained=0, trained_bytes=0)},
        memory=_without(line, name, 0.0, slot.trained_bytes),
    )


def low_rank_slot(line: LineCost, name: str, parameters: int) -> LineCost:
    """A line whose slot ``name`` learns ``parameters`` in float32 beside what it has, which is frozen.

    Activations stay: what lies in front is trained. Half of the products of the backward pass, those for gradients of
    weights, are left out.
    """
    slot = line.slots[name]
    changed = SlotSize(slot.total + parameters, parameters, slot.bytes + 4 * parameters, 4 * parameters)
    flops = {key: count // 2 if key == (name, "backward") else count for key, count in line.flops.items()}
    return replace(
        line,
        flops=flops,
        slots={**line.slots, name: changed},
        memory=_without(line, name, 1.0, slot.trained_bytes - 4 * parameters),
    )


def smaller_slot(line: LineCost, name: str, share: float) -> LineCost:
    """A line whose slot ``name`` has ``share`` of its parameters, its work and what it keeps."""
    slot = line.slots[name]
    counts = (int(share * value) for value in (slot.total, slot.trained, slot.bytes, slot.trained_bytes))
    return replace(
        line,
        flops={key: int(share * count) if key[0] == name else count for key, count in line.flops.items()},
        traffic={key: int(share * count) if key[0] == name else count for key, count in line.traffic.items()},
        slots={**line.slots, name: SlotSize(*counts)},
        memory=_without(line, name, share, slot.trained_bytes - int(share * slot.trained_bytes)),
    )


def _without(line: LineCost, name: str, share: float, gradients: int) -> StepMemory:
    memory = line.memory
    dropped = int((1 - share) * memory.backward.get(name, 0))
    return replace(
        memory,
        forward={slot: int(size * share) if slot == name else size for slot, size in memory.forward.items()},
        backward={slot: int(size * share) if slot == name else size for slot, size in memory.backward.items()},
        backward_total=max(0, memory.backward_total - dropped - gradients),
        gradients=memory.gradients - gradients,
    )


def _scaled(counts: Mapping[Key, int], share: float) -> dict[Key, int]:
    return {key: int(share * count) for key, count in counts.items()}
