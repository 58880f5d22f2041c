"""What saying one group of codes costs: bytes that must be read, found by one step of the model without numbers.

One stream reads every weight once a position and those of the head once a code, so bytes and not operations decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fac_lightning.estimate.folding import folded, stacks_of, straight_on
from fac_lightning.estimate.shapes import hollow
from fac_lightning.estimate.trace import OUTSIDE, OperationTrace
from fac_lightning.models import SpeechLM

__all__ = ["GroupCost", "trace_group"]


@dataclass(frozen=True)
class GroupCost:
    """One position of a reply: a step of the backbone, the text token, the group of codes."""

    bytes: Mapping[str, int]  # slot -> weights, keys and values that products and attention read
    flops: Mapping[str, int]  # slot -> floating-point operations
    seconds: float  # of speech in the group

    @property
    def total_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(self.bytes.values())


def trace_group(
    model: SpeechLM, frame_rate: float, context: int = 512, streams: int = 1, fold: bool = False
) -> GroupCost:
    """Say one group after a context and count what it reads.

    Args:
        model: With numbers or without.
        frame_rate: Codes a second.
        context: Backbone positions before, all of them read by the backbone and, where the head reads whole rows,
            by the head; a head that reads its reply alone begins it here.
        streams: Conversations that say a group together.
        fold: As in ``trace_line``.

    Raises:
        ValueError: The model says no codes.
    """
    if model.head is None:
        raise ValueError("the model has no head, so it says no codes; compare models that do")
    group_size = model.head.group_size
    model = hollow(model).eval()
    runs = folded(model, lambda some: _say(some, context, streams)) if fold else None
    if runs is None:
        trace = _say(model, context, streams)
        read, flops = dict(trace.product_bytes), dict(trace.flops)
    else:
        layers = {slot: count for slot, (_, count) in stacks_of(model).items()}
        read = straight_on(runs[0].product_bytes, runs[1].product_bytes, layers, lambda key: key)
        flops = straight_on(runs[0].flops, runs[1].flops, layers, lambda key: key[0])
    return GroupCost(
        bytes={slot: size for slot, size in read.items() if size},
        flops={slot: count for (slot, _), count in flops.items() if count},
        seconds=group_size / frame_rate,
    )


def _say(model: SpeechLM, context: int, streams: int) -> OperationTrace:
    head, backbone = model.head, model.backbone
    assert head is not None
    trace = OperationTrace(model)
    with trace, trace.watching(), torch.no_grad():
        weight = backbone.output_weight
        line = weight.new_zeros(streams, context, backbone.dim)
        cache, state = backbone.new_cache(), head.new_state(streams)
        places = torch.arange(context).expand(streams, -1)
        hidden = backbone.step(line, torch.ones(streams, context, dtype=torch.bool), places, cache)
        codes = torch.zeros(streams, context, head.group_size, head.num_codebooks, dtype=torch.int64)
        head.read(hidden, codes, state, text_embeds=line if head.needs_text else None)
        trace.forget()

        if model.code_adapter is not None:
            model.code_adapter(codes[:, 0])
        with trace.slot("backbone"):
            mask = torch.ones(streams, context + 1, dtype=torch.bool)
            hidden = backbone.step(line[:, :1], mask, torch.full((streams, 1), context), cache)[:, 0]
        with trace.slot(OUTSIDE):
            torch.nn.functional.linear(hidden, weight)
        with trace.slot("head"):
            head.step(hidden, state, _first, line[:, 0] if head.needs_text else None)
    return trace


def _first(logits: Tensor) -> Tensor:
    return torch.zeros(logits.shape[0], dtype=torch.int64)
