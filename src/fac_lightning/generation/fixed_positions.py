"""The next position of many replies by a step of fixed shapes.

Legend: S slots, R replies under way, D width, V vocabulary, k frames of a group, Q codebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.generation.fixed_step import FixedStep, StepInputs, StepKind, StepOutputs
from fac_lightning.generation.position import Positions, Said
from fac_lightning.generation.requests import SpeechRequest
from fac_lightning.generation.sampling import Sampling
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ChatFormat
from fac_lightning.replies import ReplyRule
from fac_lightning.slot_cache import SlotCache
from fac_lightning.types import code_vocab_size

__all__ = ["FixedPositions"]


class FixedPositions(Positions):
    """As ``Positions``, by ``FixedStep``: the backbone's step is part of the choice, and ``advance`` does nothing.

    Args:
        model: The speech LLM, in eval mode.
        chat: Token ids of the marks.
        reply: How spoken replies lie, as in training.
        slots: What the backbone has seen.
        codes: Embeds groups in place of the code adapter.
        capture: Capture the step as a CUDA graph.
        compile_backend: What ``torch.compile`` compiles it with; None does not.

    Raises:
        ValueError: The head's rows do not step with fixed shapes.
    """

    def __init__(
        self,
        model: SpeechLM,
        chat: ChatFormat,
        reply: ReplyRule,
        slots: SlotCache,
        codes: nn.Module | None = None,
        capture: bool = False,
        compile_backend: str | Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model, chat, reply, slots.num_slots, codes)
        if model.head is not None and not hasattr(self._voices, "fixed_at"):
            raise ValueError(
                "cuda_graph and compile_step need a head whose rows step together with fixed shapes, and "
                f"{type(model.head).__name__} has none; leave both out, or take a head of fac_lightning.heads"
            )
        if model.head is not None and model.head.whole_sequence:  # it sees as many positions as the backbone
            assert self._voices is not None
            for cache in self._voices.slots:
                cache.make_room(slots.capacity * self.draws)
        self._slots = slots
        self.fixed = FixedStep(
            model, chat, reply, slots, self._voices, self._text_rules, self._code_rules, codes, capture, compile_backend
        )
        size, device = slots.num_slots, self.device
        books = self.group[1]
        rows = lambda *shape: torch.zeros(size, *shape, dtype=torch.int64, device=device)  # noqa: E731
        flags = lambda *shape: torch.zeros(size, *shape, dtype=torch.bool, device=device)  # noqa: E731
        voices = self._voices
        self._inputs = StepInputs(
            pending=self._text.new_zeros(size, model.backbone.dim),
            text=self._text.new_zeros(size, model.backbone.dim),
            hidden=self._text.new_zeros(size, model.backbone.dim),
            place=rows(1),
            fresh=flags(),
            stop=rows(),
            text_kind=rows(),
            uniform=torch.zeros(size, device=device),
            due=flags(),
            speaks=flags(),
            voice=rows(),
            row=rows(),
            code_kind=rows(),
            noise=torch.zeros(size, self.draws, device=device),
            leads=flags(),
            previous=rows(0) if voices is None else rows(*voices.previous.shape[1:]),
            voice_places=() if voices is None else tuple(rows(1) for _ in voices.slots),
            seen_text=flags(model.backbone.vocab_size),
            seen_codes=flags(books, code_vocab_size(model.geometry.codebook_size)),
        )
        self._inputs_of: dict[StepKind, StepInputs] = {}  # without what a kind does not read

    def advance(self, rows: list[SpeechRequest], step: Callable[[Tensor], Tensor]) -> None:
        """Nothing yet: ``choose`` shows the backbone what was chosen last."""

    def choose(self, rows: list[SpeechRequest]) -> None:
        """The next text token of every row, and the next group of those that speak; written to the requests."""
        due = [request.forbids_end for request in rows]
        lead_in = self.reply.lead_in_groups
        speaks = [wants and len(request.tokens) >= lead_in for wants, request in zip(due, rows, strict=True)]
        for request, says in zip(rows, speaks, strict=True):
            if says:
                self._raise_voice(request)
        kind = StepKind(
            _kinds(request.decoding.text for request in rows),
            _kinds(request.decoding.speech for request in self._speakers),
        )
        self._slots.reserve()
        if self._speakers and self._voices is not None:
            for cache in self._voices.slots:
                cache.reserve(self.draws)  # no head makes more passes for a group than it has codes
        self._fill(kind, rows, due, speaks)
        inputs = self._inputs_of.setdefault(
            kind,
            replace(
                self._inputs,
                seen_text=self._inputs.seen_text if kind.sees_text else None,
                seen_codes=self._inputs.seen_codes if kind.sees_codes else None,
            ),
        )
        out = self._run(kind, inputs)
        count, voices = len(rows), len(self._speakers)
        self._slots.advance([request.hidden is None for request in rows])
        self._listen(out.hidden[:count].clone(), rows, speaks)
        self._text, self._pending = out.text[:count].clone(), out.pending[:count].clone()
        if out.seen_text is not None:
            for request, seen in zip(rows, out.seen_text[:count].clone(), strict=True):
                request.seen_text = seen
        if out.seen_codes is not None:
            for request, seen in zip(self._speakers, out.seen_codes[:voices].clone(), strict=True):
                request.seen_codes = seen
        said = None
        if out.groups is not None:
            assert out.speech is not None
            assert out.ended is not None
            assert out.leads is not None
            assert self._voices is not None
            self._voices.advance(out.previous[:voices].clone())
            said = Said(
                self._inputs.row[:voices],
                out.groups[:voices],
                out.speech[:voices],
                out.ended[:voices],
                out.leads[:voices],
            )
        self._write(rows, out.token[:count], said)
        for request in rows:
            request.hidden = None

    def _run(self, kind: StepKind, inputs: StepInputs) -> StepOutputs:
        """The step, which finds in the head's state what it puts there: a compilation would take rows for a change."""
        voices = self._voices
        if voices is None or not voices.slots:
            return self.fixed(kind, inputs)
        kept, voices.previous = voices.previous, inputs.previous
        try:
            return self.fixed(kind, inputs)
        finally:
            voices.previous = kept

    def _fill(self, kind: StepKind, rows: list[SpeechRequest], due: list[bool], speaks: list[bool]) -> None:
        """Write what the step reads; of slots that are not in use it stays as it was."""
        x, count, voices = self._inputs, len(rows), len(self._speakers)
        stops = [None if wants else request.stop for wants, request in zip(due, rows, strict=True)]
        x.pending[:count], x.text[:count] = self._pending, self._text
        for row, request in enumerate(rows):
            if request.hidden is not None:
                x.hidden[row] = request.hidden[0]
        for buffer, values in (
            (x.place[:, 0], self._slots.lengths),
            (x.fresh, [request.hidden is not None for request in rows]),
            (x.stop, self._text_rules.kinds(stops)),
            (x.text_kind, [kind.text.index(request.decoding.text) for request in rows]),
            (x.uniform, [request.uniform() for request in rows]),
            (x.due, due),
            (x.speaks, speaks),
            (x.voice, [max(0, request.voice) for request in rows]),
        ):
            buffer[:count] = torch.tensor(values, dtype=buffer.dtype)
        if kind.sees_text:
            _put(x.seen_text, [request.seen_text for request in rows])
        if not self._speakers:
            return
        row_of = {id(request): row for row, request in enumerate(rows)}
        for buffer, values in (
            (x.row, [row_of[id(request)] for request in self._speakers]),
            (x.code_kind, [kind.speech.index(request.decoding.speech) for request in self._speakers]),
            (x.leads, [request.leads for request in self._speakers]),
        ):
            buffer[:voices] = torch.tensor(values, dtype=buffer.dtype)
        x.noise[:voices] = torch.stack([request.uniforms(self.draws) for request in self._speakers])
        if kind.sees_codes:
            _put(x.seen_codes, [request.seen_codes for request in self._speakers])
        assert self._voices is not None
        if self._voices.slots:
            x.previous[:voices] = self._voices.previous
        for buffer, cache in zip(x.voice_places, self._voices.slots, strict=True):
            buffer[:voices, 0] = torch.tensor(cache.lengths)


def _kinds(samplings: Iterable[Sampling]) -> tuple[Sampling, ...]:
    """Different ones, in an order that does not depend on who came first."""
    return tuple(sorted(set(samplings), key=repr))


def _put(buffer: Tensor | None, parts: list[Tensor | None]) -> None:
    """Write rows; zeros where there is none yet."""
    assert buffer is not None
    for row, part in enumerate(parts):
        buffer[row] = False if part is None else part
