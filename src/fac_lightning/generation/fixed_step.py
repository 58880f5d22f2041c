"""A whole position as one function of fixed shapes: backbone, text token, group of codes, next embedding.

Of a small step most of the time goes into starting its operations one by one, k x Q passes of the head above all. Here
nothing is read by the host on the way, so that the whole can be captured as one CUDA graph, or compiled, or both. It
goes over all slots and all positions that have room, also where nothing is in use.

Which operations there are depends on a ``StepKind`` alone: on how those under way sample, and on whether any of them
speaks. Everything else comes in as numbers, in memory that stays where it is.

The capture has not run on a GPU so far: tests hold the function to the plain step on a CPU, and to doing nothing that
a host would wait for; the test of the capture skips where there is no CUDA device.

Legend: S slots, D width, V vocabulary, k frames of a group, Q codebooks, C caches of the head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.generation.picking import CodePicker, CodeRules, TextRules, pick_kinds
from fac_lightning.generation.sampling import Sampling
from fac_lightning.generation.streams import join
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ChatFormat
from fac_lightning.replies import ReplyRule
from fac_lightning.slot_cache import SlotCache
from fac_lightning.types import bos_code, pad_code

__all__ = ["FixedStep", "StepInputs", "StepKind", "StepOutputs"]

#: Runs before a capture or a compilation, in which kernels are chosen and memory is reserved.
WARM_UPS = 3
#: Captured or compiled kinds that are kept; the oldest goes.
MOST_KINDS = 8
#: Times that a function may be compiled, for kinds and for room that grew.
MOST_COMPILATIONS = 64


@dataclass(frozen=True)
class StepKind:
    """What decides which operations a step has."""

    text: tuple[Sampling, ...]  # how rows pick text
    speech: tuple[Sampling, ...]  # how rows pick codes; empty where none speaks, and then the head does not run

    @property
    def sees_text(self) -> bool:
        """Whether a row is penalised for text that it said."""
        return any(sampling.repetition_penalty != 1.0 for sampling in self.text)

    @property
    def sees_codes(self) -> bool:
        """Whether a row is penalised for codes that it said."""
        return any(sampling.repetition_penalty != 1.0 for sampling in self.speech)


@dataclass(frozen=True, eq=False)
class StepInputs:
    """What a step reads, one row a slot."""

    pending: Tensor  # (S, D), the position chosen last
    text: Tensor  # (S, D), the text that was read last
    hidden: Tensor  # (S, D), of rows that have just read their prompt
    place: Tensor  # (S, 1) int64, positions that the backbone has seen
    fresh: Tensor  # (S,) bool, the row takes ``hidden`` and not the backbone's step
    stop: Tensor  # (S,) int64, kind of ``TextRules``
    text_kind: Tensor  # (S,) int64, number of its sampling in ``StepKind.text``
    uniform: Tensor  # (S,) of the text
    due: Tensor  # (S,) bool, speech goes on
    speaks: Tensor  # (S,) bool, of that: the head says the group
    voice: Tensor  # (S,) int64, its row of the head
    row: Tensor  # (S,) int64 by row of the head: the row here
    code_kind: Tensor  # (S,) int64 by row of the head: number of its sampling in ``StepKind.speech``
    noise: Tensor  # (S, k * Q) by row of the head
    leads: Tensor  # (S,) bool by row of the head, no real code was said
    previous: Tensor  # (S, ...) by row of the head, what it said last
    voice_places: tuple[Tensor, ...]  # (S, 1) int64 by row of the head, positions in each of its C caches
    seen_text: Tensor | None  # (S, V) bool, for kinds that see text
    seen_codes: Tensor | None  # (S, Q, V) bool by row of the head, for kinds that see codes


@dataclass(frozen=True, eq=False)
class StepOutputs:
    """What a step gives, one row a slot; of ``StepInputs`` what has moved on, and what was said."""

    pending: Tensor  # (S, D)
    text: Tensor  # (S, D)
    token: Tensor  # (S,) int64
    hidden: Tensor  # (S, D), behind which it was chosen
    previous: Tensor  # (S, ...) by row of the head
    seen_text: Tensor | None
    seen_codes: Tensor | None
    groups: Tensor | None  # (S, k, Q) by row of the head; None where the head did not run, as the rest
    speech: Tensor | None  # (S, k) bool by row of the head
    ended: Tensor | None  # (S,) bool by row of the head
    leads: Tensor | None  # (S,) bool by row of the head


class FixedStep:
    """The next position of all slots.

    Args:
        model: The speech LLM, in eval mode.
        chat: Token ids of the marks.
        reply: How spoken replies lie.
        slots: What the backbone has seen.
        voices: Rows of the head, what its ``new_slots`` gave; None without a head.
        text_rules: Which text tokens are out of place.
        code_rules: Which codes are; None without a head.
        codes: Embeds groups in place of the code adapter.
        capture: As a CUDA graph.
        compile_backend: What ``torch.compile`` is given; None compiles nothing.
    """

    def __init__(
        self,
        model: SpeechLM,
        chat: ChatFormat,
        reply: ReplyRule,
        slots: SlotCache,
        voices: Any,
        text_rules: TextRules,
        code_rules: CodeRules | None,
        codes: nn.Module | None = None,
        capture: bool = False,
        compile_backend: str | Callable[..., Any] | None = None,
    ) -> None:
        self.model, self.chat, self.reply, self.slots, self.voices = model, chat, reply, slots, voices
        self.text_rules, self.code_rules, self.capture = text_rules, code_rules, capture
        self.codes, self.compile_backend = codes, compile_backend
        geometry, device = model.geometry, slots.device
        shape, size = (geometry.group_size, geometry.num_codebooks), geometry.codebook_size
        self._lead, self._silence = (torch.full(shape, c, device=device) for c in (bos_code(size), pad_code(size)))
        self._ready: dict[StepKind, Callable[[StepInputs], StepOutputs]] = {}
        self._room: tuple[int, ...] = ()  # of all caches, for which the ready ones are

    def __call__(self, kind: StepKind, inputs: StepInputs) -> StepOutputs:
        """What comes next. ``inputs`` of one kind are the same tensors in every call; outputs are gone in the next."""
        if not self.capture and self.compile_backend is None:
            return self.compute(kind, inputs)
        room = self.slots.capacity, *(cache.capacity for cache in (() if self.voices is None else self.voices.slots))
        if room != self._room:
            self._ready, self._room = {}, room
        if kind not in self._ready:
            if len(self._ready) >= MOST_KINDS:
                self._ready.pop(next(iter(self._ready)))
            self._ready[kind] = self._prepare(kind, inputs)
        return self._ready[kind](inputs)

    def compute(self, kind: StepKind, inputs: StepInputs) -> StepOutputs:
        """The step itself; running it again on the same inputs changes nothing."""
        model = self.model
        with self.slots.fixed_at(inputs.place):
            stepped = model.backbone.step_slots(inputs.pending[:, None], self.slots)[:, 0]
        hidden = torch.where(inputs.fresh[:, None], inputs.hidden, stepped)
        logits, seen = self.text_rules.forbid_kinds(model.backbone.logits(hidden), inputs.stop), inputs.seen_text
        token = pick_kinds(logits, inputs.uniform, seen, kind.text, inputs.text_kind)
        if seen is not None:
            seen = seen.scatter(1, token[:, None], True)
            seen[:, self.chat.sil].fill_(False)  # silence repeats by design
        group, present, said = None, None, None
        previous, seen_codes, leads = inputs.previous, inputs.seen_codes, None
        if model.head is not None and model.code_adapter is not None:
            group, present = torch.where(inputs.due[:, None, None], self._lead, self._silence), inputs.due
            if kind.speech:
                said, previous, seen_codes, leads = self._say(kind, inputs, hidden)
                group = torch.where(inputs.speaks[:, None, None], said.groups[inputs.voice], group)
                if not self.reply.text_goes_on:
                    closed = inputs.speaks & said.ended[inputs.voice]
                    token, present = token.masked_fill(closed, self.chat.audio_eos), present & ~closed
        text = model.backbone.embed(token)
        return StepOutputs(
            pending=join(model, text, group, present, self.codes),
            text=text,
            token=token,
            hidden=hidden,
            previous=previous,
            seen_text=seen,
            seen_codes=seen_codes,
            groups=None if said is None else said.groups,
            speech=None if said is None else said.speech,
            ended=None if said is None else said.ended,
            leads=leads,
        )

    def _say(self, kind: StepKind, inputs: StepInputs, hidden: Tensor) -> tuple[Any, Tensor, Tensor | None, Tensor]:
        """By row of the head: the closed groups, what was said last, what was seen, and who said no real code yet."""
        head, rules = self.model.head, self.code_rules
        assert head is not None
        assert rules is not None
        seen = None if inputs.seen_codes is None else inputs.seen_codes.clone()  # moves on with the picks
        choose = partial(pick_kinds, kinds=kind.speech, which=inputs.code_kind)
        picker = CodePicker(rules, choose, inputs.noise, inputs.leads, seen)
        with self.voices.fixed_at(inputs.previous, inputs.voice_places):
            text = inputs.text[inputs.row] if head.needs_text else None
            groups = head.step(hidden[inputs.row], self.voices, picker, text)
            previous = self.voices.previous if self.voices.slots else inputs.previous
        return self.reply.close(groups, head.codebook_size), previous, seen, picker.leads

    def _prepare(self, kind: StepKind, inputs: StepInputs) -> Callable[[StepInputs], StepOutputs]:
        """The step of a kind, compiled and captured as was asked."""
        step = partial(self.compute, kind)
        if not self.capture:
            step(inputs)  # reserves memory, which a compilation would take for a change
            return self._compiled(step)
        run = step if self.compile_backend is None else self._compiled(step)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step(inputs)
            for _ in range(WARM_UPS):
                run(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run(inputs)

        def replay(inputs: StepInputs) -> StepOutputs:
            graph.replay()
            return outputs

        return replay

    def _compiled(self, step: Callable[[StepInputs], StepOutputs]) -> Callable[[StepInputs], StepOutputs]:
        import torch._dynamo as dynamo  # takes seconds to import

        assert self.compile_backend is not None
        compiled = torch.compile(step, backend=self.compile_backend, dynamic=False)

        def run(inputs: StepInputs) -> StepOutputs:
            with dynamo.config.patch(recompile_limit=MOST_COMPILATIONS):
                outputs: StepOutputs = compiled(inputs)
            return outputs

        return run
