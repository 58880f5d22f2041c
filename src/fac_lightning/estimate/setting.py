"""A line on a device under a strategy: does it fit, and how long does a step take."""

from __future__ import annotations

from dataclasses import dataclass

from fac_lightning.estimate.machines import Machine
from fac_lightning.estimate.rank_memory import RankMemory, Sharding, rank_memory
from fac_lightning.estimate.step_time import StepTime, step_time
from fac_lightning.estimate.training import LineCost

__all__ = ["Assessment", "Setting", "assess"]


@dataclass(frozen=True)
class Setting:
    """Devices, and how they share the work."""

    machine: Machine
    sharding: Sharding
    ranks: int = 1
    lines: int = 1  # of a rank in an optimizer step
    half: bool = False  # products run in bfloat16
    state_bytes: float | None = None  # of the optimizer's states per trained parameter; None: AdamW's
    foreach: bool = False  # the update is not fused
    utilisation: float | None = None  # share of the peak; None: the machine's
    largest_layer: int = 0  # bytes


@dataclass(frozen=True)
class Assessment:
    """What comes of a line in a setting."""

    memory: RankMemory
    time: StepTime
    room: int  # bytes of the device
    device_seconds: float  # per second of conversation
    conversation_seconds: float  # of all ranks in one step

    @property
    def fits(self) -> bool:
        """Whether it fits the device's memory."""
        return self.memory.total <= self.room

    @property
    def headroom(self) -> int:
        """Bytes left; below zero what is missing."""
        return self.room - self.memory.total

    def hours(self, steps: float) -> float:
        """Hours of so many optimizer steps."""
        return steps * self.time.total / 3600

    def steps(self, data_hours: float) -> float:
        """Optimizer steps in which so many hours of conversation are seen once."""
        return data_hours * 3600 / self.conversation_seconds


def assess(line: LineCost, setting: Setting) -> Assessment:
    """Memory and time of a line in a setting."""
    memory = rank_memory(
        line,
        setting.machine,
        setting.sharding,
        setting.ranks,
        setting.lines,
        setting.state_bytes,
        setting.largest_layer,
        setting.foreach,
    )
    time = step_time(
        line,
        setting.machine,
        setting.lines,
        setting.half,
        setting.ranks,
        setting.sharding.states,
        setting.sharding.travels,
        setting.utilisation,
    )
    seconds = line.seconds * setting.lines * setting.ranks
    return Assessment(
        memory=memory,
        time=time,
        room=setting.machine.memory,
        device_seconds=time.total * setting.ranks / seconds if seconds else 0.0,
        conversation_seconds=seconds,
    )
