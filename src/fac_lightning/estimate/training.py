"""What one packed line costs to train on: operations by slot and memory, found by running the model without numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from fac_lightning.backbones.base import Backbone
from fac_lightning.estimate.folding import folded, stacks_of, straight_on
from fac_lightning.estimate.shapes import ShapesOnly, hollow
from fac_lightning.estimate.trace import Moments, OperationTrace, Phase, StepMemory, fullest
from fac_lightning.models import SpeechLM
from fac_lightning.types import SpeechTextBatch, to_device

__all__ = ["LineCost", "SlotSize", "slot_sizes", "trace_line"]


@dataclass(frozen=True)
class SlotSize:
    """Parameters of a slot; a tensor that two slots share counts where it comes first."""

    total: int
    trained: int
    bytes: int  # of all
    trained_bytes: int


@dataclass(frozen=True)
class LineCost:
    """What training on one line takes on one device."""

    flops: Mapping[tuple[str, Phase], int]  # slot and phase -> floating-point operations
    traffic: Mapping[tuple[str, Phase], int]  # slot and phase -> bytes that operations read and write, one by one
    expert_flops: Mapping[str, int]  # slot -> operations of a mixture's experts, which are among those above
    memory: StepMemory
    slots: Mapping[str, SlotSize]
    positions: int  # of the backbone
    seconds: float  # of speech and of text that stands for speech; 0 when the batch does not say

    @property
    def total_flops(self) -> int:
        """Floating-point operations of the line."""
        return sum(self.flops.values())

    def with_reference(self, copied: bool) -> LineCost:
        """The same with one forward pass more, of a reference model; ``copied``: which lies beside the trained one."""
        slots = dict(self.slots)
        if copied:
            total, size = (sum(getattr(slot, key) for slot in slots.values()) for key in ("total", "bytes"))
            slots["reference"] = SlotSize(total, 0, size, 0)
        forward = self.by_phase()["forward"]
        return replace(self, flops={**self.flops, ("reference", "forward"): forward}, slots=slots)

    def by_slot(self) -> dict[str, int]:
        """Slot -> floating-point operations, the greatest first."""
        found: dict[str, int] = {}
        for (slot, _), count in self.flops.items():
            found[slot] = found.get(slot, 0) + count
        return {slot: count for slot, count in sorted(found.items(), key=lambda item: -item[1]) if count}

    def by_phase(self) -> dict[Phase, int]:
        """Phase -> floating-point operations."""
        return {
            phase: sum(count for (_, which), count in self.flops.items() if which == phase)
            for phase in ("forward", "again", "backward")
        }


def slot_sizes(model: nn.Module) -> dict[str, SlotSize]:
    """Parameters of every direct part of a model."""
    found: dict[str, list[int]] = {name: [0, 0, 0, 0] for name, _ in model.named_children()}
    for name, parameter in model.named_parameters():
        counts = found.setdefault(name.partition(".")[0], [0, 0, 0, 0])
        size, width = parameter.numel(), parameter.element_size()
        trained = size if parameter.requires_grad else 0
        for place, value in enumerate((size, trained, size * width, trained * width)):
            counts[place] += value
    return {name: SlotSize(*counts) for name, counts in found.items() if counts[0]}


def trace_line(
    model: SpeechLM | Backbone, batch: SpeechTextBatch, autocast: torch.dtype | None = None, fold: bool = False
) -> LineCost:
    """Run forward and backward over a line without numbers and count.

    What is trained, and which modules are in training mode, is as the model says: freeze it first.

    Args:
        model: Built within ``ShapesOnly``, or any, of which a copy without numbers is taken; a bare backbone is trained
            on text.
        batch: A packed line; its integers count, its sound does not.
        autocast: Type of matrix products under automatic mixed precision; None for none.
        fold: Run stacks of equal layers with two and with three of them and go on in a straight line: the same counts
            in a fraction of the time. Gradients of weights are then taken to be there through the whole backward pass.

    Raises:
        ValueError: Nothing of the model is trained.
    """
    whole = model if isinstance(model, SpeechLM) else SpeechLM(model)
    if not all(isinstance(parameter, FakeTensor) for parameter in whole.parameters()):
        whole = hollow(whole)
    if not any(parameter.requires_grad for parameter in whole.parameters()):
        raise ValueError("nothing of the model is trained; leave something unfrozen")
    slots = slot_sizes(whole)
    runs = folded(whole, lambda some: _run(some, batch, autocast)) if fold else None
    if runs is None:
        trace = _run(whole, batch, autocast)
        flops, traffic, experts, memory = dict(trace.flops), dict(trace.bytes), trace.expert_flops, trace.memory()
    else:
        layers = {slot: count for slot, (_, count) in stacks_of(whole).items()}
        two, three = runs
        flops = straight_on(two.flops, three.flops, layers, lambda key: key[0])
        traffic = straight_on(two.bytes, three.bytes, layers, lambda key: key[0])
        experts = Counter(straight_on(two.expert_flops, three.expert_flops, layers, lambda key: key))
        gradients = sum(slot.trained_bytes for slot in slots.values())
        memory = _memory_straight_on(two, three, layers, gradients)
    return LineCost(
        flops={key: count for key, count in flops.items() if count},
        traffic={key: count for key, count in traffic.items() if count},
        expert_flops=dict(experts),
        memory=memory,
        slots=slots,
        positions=len(batch.text_ids),
        seconds=batch.seconds,
    )


def _run(model: SpeechLM, batch: SpeechTextBatch, autocast: torch.dtype | None) -> OperationTrace:
    trace = OperationTrace(model)
    context = nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast)
    with trace, trace.watching():
        line = _emptied(to_device(batch, "cpu"), trace)
        with context:
            output = model(line)
            loss = output.text_loss_sum + output.speech_loss_sum
            loss = torch.stack([loss, *output.auxiliary.values()]).sum()
        trace.begin_backward()
        loss.backward()
    model.zero_grad(set_to_none=True)
    return trace


def _memory_straight_on(
    two: OperationTrace, three: OperationTrace, layers: Mapping[str, int], gradients: int
) -> StepMemory:
    def on(few: Moments, more: Moments) -> dict[str, int]:
        kinds = [slot for slot in more if slot in few]
        return fullest({slot: straight_on(few[slot], more[slot], layers, lambda key: key) for slot in kinds})

    forward = on(two.forward_moments, three.forward_moments)
    backward = on(two.backward_moments, three.backward_moments)
    return StepMemory(forward, backward, sum(backward.values()) + gradients, gradients)


def _emptied(batch: SpeechTextBatch, mode: ShapesOnly) -> SpeechTextBatch:
    """The batch with waveforms that have a shape alone."""
    return replace(batch, audio=replace(batch.audio, audio=mode.empty(batch.audio.audio)))
