"""The same conversation at several rates: what the paper's "about half of the GPU hours" comes to for given sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fac_lightning.estimate.decoding import GroupCost, trace_group
from fac_lightning.estimate.machines import Machine
from fac_lightning.estimate.shapes import hollow
from fac_lightning.estimate.step_time import step_time
from fac_lightning.estimate.training import LineCost, trace_line
from fac_lightning.models import SpeechLM
from fac_lightning.types import SpeechTextBatch

__all__ = ["RateComparison", "RateCost", "RateVariant", "compare_rates"]


@dataclass(frozen=True)
class RateVariant:
    """A model at some rate and the conversations as it reads them."""

    model: SpeechLM  # with numbers or without; frozen parts frozen
    batch: SpeechTextBatch  # the same conversations for every variant


@dataclass(frozen=True)
class RateCost:
    """What a variant costs."""

    line: LineCost  # of a training step
    train_seconds: float  # of that step, or of its share of one; the update included
    group: GroupCost | None  # of saying one group; None where that was not asked for
    decode_seconds: float  # reading what 200 ms of speech need, one stream; 0 where that was not asked for


@dataclass(frozen=True)
class RateComparison:
    """Costs by the name of the variant."""

    costs: Mapping[str, RateCost]

    def train_ratio(self, slow: str, fast: str) -> float:
        """How many times longer a training step of one variant takes than that of another."""
        return self.costs[slow].train_seconds / self.costs[fast].train_seconds

    def flop_ratio(self, slow: str, fast: str) -> float:
        """The same of floating-point operations."""
        return self.costs[slow].line.total_flops / self.costs[fast].line.total_flops

    def decode_ratio(self, slow: str, fast: str) -> float:
        """The same of the bytes that a second of speech reads."""
        return self.costs[slow].decode_seconds / self.costs[fast].decode_seconds


def compare_rates(
    variants: Mapping[str, RateVariant],
    machine: Machine,
    frame_rate: float | None = None,
    context: int = 512,
    autocast: torch.dtype | None = None,
    half: bool = False,
    repeats: float = 1.0,
    utilisation: float | None = None,
    fold: bool = False,
) -> RateComparison:
    """Cost of training on each batch and, with ``frame_rate``, of saying 200 ms of speech.

    Args:
        variants: Models at other rates on the same conversations, by name.
        machine: Device that the seconds are for.
        frame_rate: Codes a second; None leaves out decoding.
        context: Backbone positions before the group that is said, at the lowest rate; at others as many seconds.
        autocast: Type of matrix products under automatic mixed precision.
        half: Products run in bfloat16 on the device, and weights are read in it when speaking.
        repeats: Such batches to an optimizer step; the update's time is divided by it.
        utilisation: Share of the peak that training reaches; the machine's own when None.
        fold: As in ``trace_line``.
    """
    coarsest = max((v.model.head.group_size for v in variants.values() if v.model.head is not None), default=1)
    costs = {}
    for name, variant in variants.items():
        line = trace_line(variant.model, variant.batch, autocast, fold)
        group, seconds = None, 0.0
        if frame_rate is not None and variant.model.head is not None:
            stretched = context * coarsest // variant.model.head.group_size
            spoken = hollow(variant.model, torch.bfloat16) if half else variant.model
            group = trace_group(spoken, frame_rate, stretched, fold=fold)
            seconds = group.total_bytes / machine.bandwidth * 0.2 / group.seconds
        time = step_time(line, machine, half=half, utilisation=utilisation)
        costs[name] = RateCost(line, time.compute + time.optimizer / repeats, group, seconds)
    return RateComparison(costs)
