"""Seconds of an optimizer step, from operations and bytes and what a device can do."""

from __future__ import annotations

from dataclasses import dataclass

from fac_lightning.estimate.machines import Machine
from fac_lightning.estimate.training import LineCost

__all__ = ["StepTime", "optimizer_traffic", "step_time"]

#: Bytes per trained parameter that AdamW moves: weight, gradient and two states read, all but the gradient written.
ADAMW_MOVES = 7


#: How many times longer a product of a mixture's experts takes than a dense one: Qwen3-30B-A3B reaches 21 % of the
#: bf16 peak of an H100 where dense models reach 40 (NVIDIA-NeMo, performance of AutoModel and Megatron-Bridge).
EXPERT_SLOWNESS = 2.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step; ranks work side by side."""

    compute: float  # forward and backward of all lines of a rank
    optimizer: float  # the update: bytes over bandwidth
    communication: float  # what of it the backward pass does not hide

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.optimizer + self.communication


def optimizer_traffic(line: LineCost, ranks_share: int = 1) -> int:
    """Bytes that an AdamW update moves on one rank when ``ranks_share`` ranks divide the states among them."""
    return ADAMW_MOVES * sum(slot.trained_bytes for slot in line.slots.values()) // ranks_share


def step_time(
    line: LineCost,
    machine: Machine,
    lines: int = 1,
    half: bool = False,
    ranks: int = 1,
    shared_states: bool = False,
    moved_times: float = 2.0,
    utilisation: float | None = None,
) -> StepTime:
    """Seconds of a step.

    Products run at ``utilisation`` of the peak, which stands for everything else that forward and backward do, those of
    a mixture's experts at half of it; the
    update waits for memory; gradients travel while the backward pass runs, and what takes longer than it is waited for.

    Args:
        line: What each line costs.
        machine: The device.
        lines: Lines of a rank in a step (``accumulate_grad_batches``).
        half: Products run in bfloat16.
        ranks: Devices.
        shared_states: Ranks divide the optimizer's states among them.
        moved_times: How often the trained parameters' bytes travel in a step: 2 for averaging gradients, 3 where
            weights are gathered twice.
        utilisation: Share of the peak; the machine's own when None.
    """
    rate = machine.flops(half) * (machine.utilisation if utilisation is None else utilisation)
    compute = lines * (line.total_flops + (EXPERT_SLOWNESS - 1) * sum(line.expert_flops.values())) / rate
    backward = lines * (line.by_phase()["backward"] + line.by_phase()["again"]) / rate
    trained = sum(slot.trained_bytes for slot in line.slots.values())
    travel = 0.0 if ranks == 1 else moved_times * trained * (ranks - 1) / ranks / machine.link
    return StepTime(
        compute=compute,
        optimizer=optimizer_traffic(line, ranks if shared_states else 1) / machine.bandwidth,
        communication=max(0.0, travel - backward),
    )
