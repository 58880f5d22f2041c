"""Memory of one rank: what every strategy keeps of weights, gradients and optimizer states, and the line's activations.

Legend: N parameters of the model, T trained ones, R ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fac_lightning.estimate.machines import Machine
from fac_lightning.estimate.training import LineCost

__all__ = ["STRATEGIES", "RankMemory", "Sharding", "rank_memory", "sharding_named"]

#: DeepSpeed's buckets as Lightning sets them: elements that are reduced, and gathered, at a time.
BUCKET_ELEMENTS = 200_000_000
#: Elements that ZeRO-3 keeps gathered (``stage3_max_live_parameters``) at most.
LIVE_ELEMENTS = 1_000_000_000


@dataclass(frozen=True)
class Sharding:
    """What ranks divide among them; what is not divided every rank has whole."""

    name: str
    weights: bool = False
    gradients: bool = False
    states: bool = False
    master: bool = False  # weights of 2 bytes and, with the states, a float32 copy to update
    travels: float = 2.0  # how often trained bytes travel in a step


STRATEGIES = {
    sharding.name: sharding
    for sharding in (
        Sharding("single"),
        Sharding("ddp"),
        Sharding("zero1", states=True, master=True),
        Sharding("zero2", states=True, gradients=True, master=True),
        Sharding("zero3", states=True, gradients=True, weights=True, master=True, travels=3.0),
        Sharding("fsdp2", states=True, gradients=True, weights=True, travels=3.0),
    )
}
#: Names of Lightning's strategies, and classes, that mean one of them.
_ALIASES = {
    "deepspeed_stage_1": "zero1",
    "deepspeed": "zero2",
    "deepspeed_stage_2": "zero2",
    "deepspeed_stage_2_offload": "zero2",
    "deepspeed_stage_3": "zero3",
    "deepspeed_stage_3_offload": "zero3",
    "fsdp": "fsdp2",
    "ModelParallelStrategy": "fsdp2",
    "FSDPStrategy": "fsdp2",
    "DDPStrategy": "ddp",
    "ddp_find_unused_parameters_true": "ddp",
    "ddp_spawn": "ddp",
    "SingleDeviceStrategy": "single",
}


def sharding_named(name: str, ranks: int) -> Sharding:
    """The sharding of a strategy; ``auto`` is one device, or DDP on several.

    Raises:
        ValueError: The strategy is not known.
    """
    if name in ("auto", "single", "ddp"):
        return STRATEGIES["single" if ranks == 1 else "ddp"]
    found = STRATEGIES.get(_ALIASES.get(name, name))
    if found is None:
        raise ValueError(
            f"strategy {name!r} is not one whose memory is known: --strategy takes auto, {', '.join(STRATEGIES)}"
        )
    return found


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank at the fullest moment of a step."""

    weights: int
    gradients: int
    states: int  # of the optimizer, with a float32 copy of the weights where there is one
    buffers: int  # buckets of the strategy, weights gathered for a moment
    activations: int
    by_slot: Mapping[str, int]  # of these what the forward pass holds at its fullest moment
    update: int  # what the optimizer needs for a moment, when activations are gone
    reserve: int  # of driver and libraries

    @property
    def total(self) -> int:
        """Bytes in all."""
        kept = self.weights + self.states + self.gradients + self.buffers + self.reserve
        return kept + max(self.activations, self.update)


def rank_memory(
    line: LineCost,
    machine: Machine,
    sharding: Sharding,
    ranks: int = 1,
    lines: int = 1,
    state_bytes: float | None = None,
    largest_layer: int = 0,
    foreach: bool = False,
) -> RankMemory:
    """Memory of one rank.

    Args:
        line: Traced as the strategy computes: after a cast to bfloat16 where the sharding has a ``master`` copy.
        machine: The device.
        sharding: Of the strategy.
        ranks: Devices, R.
        lines: Lines of a step (``accumulate_grad_batches``): with more than one, gradients lie there all the time.
        state_bytes: Of both AdamW states per trained parameter; as wide as the parameter each when None.
        largest_layer: Bytes of the largest layer, which a sharding of weights gathers.
        foreach: AdamW works on lists of tensors and holds a copy of them for a moment (it is not fused).
    """
    total = sum(slot.total for slot in line.slots.values())
    trained = sum(slot.trained for slot in line.slots.values())
    all_bytes = sum(slot.bytes for slot in line.slots.values())
    trained_bytes = sum(slot.trained_bytes for slot in line.slots.values())
    several = ranks > 1
    if sharding.master:
        all_bytes, trained_bytes = 2 * total, 2 * trained
        states = trained * (4 + (8 if state_bytes is None else state_bytes))
        buffers = 2 * 2 * min(BUCKET_ELEMENTS, trained)
        if sharding.weights and several:
            buffers += 2 * min(LIVE_ELEMENTS, total)
    else:
        states = 2 * trained_bytes if state_bytes is None else trained * state_bytes
        buffers = trained_bytes if sharding.name == "ddp" and several else 0
        if sharding.weights and several:
            buffers += 2 * largest_layer
    memory = line.memory
    activations, gradients = memory.activations, trained_bytes
    if lines == 1 and not sharding.gradients and not several:  # gradients of the step before go as new ones come
        activations = max(sum(memory.forward.values()), memory.backward_total - trained_bytes)

    def share(size: float, divided: bool) -> int:
        return int(size / ranks if divided else size)

    return RankMemory(
        weights=share(all_bytes, sharding.weights),
        gradients=share(gradients, sharding.gradients),
        states=share(states, sharding.states),
        buffers=int(buffers),
        activations=activations,
        by_slot=memory.forward,
        update=share(trained_bytes, sharding.states) if foreach and not sharding.master else 0,
        reserve=machine.reserve,
    )
