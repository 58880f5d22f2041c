"""The next position of many replies: one pass through the backbone, one of the head for those that speak, one wait.

Legend: R replies under way, N of them that speak, D width, k frames of a group, Q codebooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fac_lightning.generation.memory import HeadMemory
from fac_lightning.generation.picking import CodePicker, CodeRules, TextRules, pick_rows
from fac_lightning.generation.requests import SpeechRequest
from fac_lightning.generation.row_memory import RowMemory
from fac_lightning.generation.stepping import Decoded
from fac_lightning.generation.streams import join
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ChatFormat
from fac_lightning.replies import ReplyRule
from fac_lightning.types import bos_code, code_vocab_size, pad_code

__all__ = ["Positions", "Said"]


class Positions:
    """What was chosen last for every row of the slots, and the choice of what comes next.

    Args:
        model: The speech LLM, in eval mode.
        chat: Token ids of the marks.
        reply: How spoken replies lie, as in training.
        num_slots: Most rows.
        codes: Embeds groups in place of the code adapter.
    """

    def __init__(
        self, model: SpeechLM, chat: ChatFormat, reply: ReplyRule, num_slots: int, codes: nn.Module | None = None
    ) -> None:
        self.model, self.chat, self.reply, self.codes = model, chat, reply, codes
        weight = model.backbone.output_weight
        self.device = weight.device
        self._text_rules = TextRules(chat, self.device)
        head, geometry = model.head, model.geometry
        self.group = (geometry.group_size, geometry.num_codebooks)
        self.draws = geometry.group_size * geometry.num_codebooks
        self._code_rules = None if head is None else CodeRules(head, reply, self.device)
        self._voices = None if head is None else head.new_slots(num_slots)
        self._speakers: list[SpeechRequest] = []  # by row of the head
        size = geometry.codebook_size
        self.lead, self.silence = (torch.full(self.group, code) for code in (bos_code(size), pad_code(size)))
        self._text = torch.empty(0, model.backbone.dim, dtype=weight.dtype, device=self.device)  # (R, D) text read last
        self._pending = self._text  # (R, D), the position chosen last

    def new_memory(self) -> HeadMemory | RowMemory | None:
        """What the head remembers of one row: in its slots, or by itself where it has none; None without a head."""
        head = self.model.head
        if head is None:
            return None
        return HeadMemory(self.model, 1) if self._voices is None else RowMemory(head, self._voices)

    def join(self, hidden: Tensor, request: SpeechRequest) -> None:
        """A row began, behind the others: the hidden state ``(1, D)`` behind which it answers."""
        last = self.chat.assistant_open()[-1] if request.writes else self.chat.audio_bos
        read = self.model.backbone.embed(torch.tensor([last], device=self.device))
        self._text = torch.cat([self._text, read.to(self._text.dtype)])
        self._pending = torch.cat([self._pending, torch.zeros_like(self._text[:1])])
        request.hidden = hidden

    def leave(self, row: int, request: SpeechRequest) -> None:
        """A row is over; the last takes its place."""
        self._hush(request)
        self._text, self._pending = _without(self._text, row), _without(self._pending, row)

    def decoded(self, row: int, request: SpeechRequest) -> Decoded:
        """What a row said so far."""
        return request.decoded(self._pending[row : row + 1], self._text[row : row + 1], self.group[1])

    def advance(self, rows: list[SpeechRequest], step: Callable[[Tensor], Tensor]) -> None:
        """Show the backbone what was chosen last, in all rows: ``step`` takes ``(R, 1, D)`` and gives as much."""
        if any(request.hidden is not None for request in rows):
            return  # a prompt failed meanwhile, so that nothing was chosen behind what was shown
        hidden = step(self._pending[:, None])[:, 0]
        for request, row in zip(rows, hidden.split(1), strict=True):
            request.hidden = row

    def choose(self, rows: list[SpeechRequest]) -> None:
        """The next text token of every row, and the next group of those that speak; written to the requests."""
        hidden = torch.cat([request.hidden for request in rows if request.hidden is not None])  # (R, D)
        token = self._token(hidden, rows)
        group, present, said = self._say(hidden, rows)
        if said is not None and not self.reply.text_goes_on:
            closed = torch.zeros_like(token, dtype=torch.bool).index_copy(0, said.index, said.ended)
            token = token.masked_fill(closed, self.chat.audio_eos)
            assert present is not None
            present = present & ~closed
        self._text = self.model.backbone.embed(token)
        self._pending = join(self.model, self._text, group, present, self.codes)
        self._write(rows, token, said)
        for request in rows:
            request.hidden = None

    def _token(self, hidden: Tensor, rows: list[SpeechRequest]) -> Tensor:
        """Text tokens ``(R,)``."""
        stops = [None if request.forbids_end else request.stop for request in rows]
        logits = self._text_rules.forbid(self.model.backbone.logits(hidden), stops)
        samplings = [request.decoding.text for request in rows]
        uniform = torch.tensor([request.uniform() for request in rows], device=self.device)
        penalised = [i for i, sampling in enumerate(samplings) if sampling.repetition_penalty != 1.0]
        if not penalised:
            return pick_rows(logits, samplings, uniform, None)
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for i in penalised:
            before = rows[i].seen_text
            if before is not None:
                seen[i] = before
        token = pick_rows(logits, samplings, uniform, seen)
        seen.scatter_(1, token[:, None], True)
        seen[:, self.chat.sil] = False  # silence repeats by design
        for i in penalised:
            rows[i].seen_text = seen[i]
        return token

    def _say(self, hidden: Tensor, rows: list[SpeechRequest]) -> tuple[Tensor | None, Tensor | None, Said | None]:
        """Groups ``(R, k, Q)`` as they are fed back, which rows have one ``(R,)``, and what the head said."""
        lead_in = self.reply.lead_in_groups
        due = [request.forbids_end for request in rows]
        speaks = [wants and len(request.tokens) >= lead_in for wants, request in zip(due, rows, strict=True)]
        for row, request in enumerate(rows):
            if speaks[row]:
                self._raise_voice(request)
        self._listen(hidden, rows, speaks)
        if not any(due):
            return None, None, None
        group = self.silence.to(self.device).repeat(len(rows), 1, 1)
        leads = [row for row in range(len(rows)) if due[row] and not speaks[row]]
        if leads:
            group[leads] = self.lead.to(self.device)
        said = self._speak(hidden, rows) if any(speaks) else None
        if said is not None:
            group = group.index_copy(0, said.index, said.groups)
        return group, torch.tensor(due, device=self.device), said

    def _speak(self, hidden: Tensor, rows: list[SpeechRequest]) -> Said:
        """What the rows with a voice say."""
        head = self.model.head
        assert head is not None
        row_of = {id(request): row for row, request in enumerate(rows)}
        places = [row_of[id(request)] for request in self._speakers]
        index = torch.tensor(places, device=self.device)
        if places != list(range(len(rows))):
            hidden, text = hidden[index], self._text[index]
        else:
            text = self._text
        if self._voices is not None:
            picker = self._picker(self._speakers)
            groups = head.step(hidden, self._voices, picker, text if head.needs_text else None)
            leads = picker.leads
        else:
            spoken = []
            for i, request in enumerate(self._speakers):
                picker = self._picker([request])
                assert isinstance(request.memory, HeadMemory)
                spoken.append((request.memory.say(hidden[i : i + 1], picker, text[i : i + 1]), picker.leads))
            groups, leads = (torch.cat(parts) for parts in zip(*spoken, strict=True))
        closed = self.reply.close(groups, head.codebook_size)
        return Said(index, closed.groups, closed.speech, closed.ended, leads)

    def _picker(self, speakers: list[SpeechRequest]) -> CodePicker:
        rules = self._code_rules
        assert rules is not None
        samplings = [request.decoding.speech for request in speakers]
        noise = torch.stack([request.uniforms(self.draws) for request in speakers]).to(self.device)
        leads = torch.tensor([request.leads for request in speakers], device=self.device)
        seen = None
        if any(sampling.repetition_penalty != 1.0 for sampling in samplings):
            shape = (self.group[1], code_vocab_size(rules.size))
            for request in speakers:
                if request.seen_codes is None:
                    request.seen_codes = torch.zeros(shape, dtype=torch.bool, device=self.device)
            seen = torch.stack([request.seen_codes for request in speakers if request.seen_codes is not None])
            for request, part in zip(speakers, seen, strict=True):
                request.seen_codes = part  # moves on with the picks
        choose = lambda logits, uniform, seen: pick_rows(logits, samplings, uniform, seen)  # noqa: E731
        return CodePicker(rules, choose, noise, leads, seen)

    def _write(self, rows: list[SpeechRequest], token: Tensor, said: Said | None) -> None:
        """Tell the requests what was chosen; here the host waits for the device."""
        frames, books = self.group
        parts = [token]
        if said is not None:
            parts += [x.long().flatten() for x in (said.ended, said.leads, said.speech, said.groups)]
        host = torch.cat(parts).cpu()
        tokens, count = host[: len(rows)].tolist(), len(self._speakers)
        spoken = {}
        if said is not None:
            ended, leads, speech, groups = host[len(rows) :].split([count, count, count * frames, count * self.draws])
            kept, codes = speech.bool().view(count, frames), groups.view(count, frames, books)
            spoken = {
                id(request): (bool(end), bool(lead), code, keep)
                for request, end, lead, code, keep in zip(
                    self._speakers, ended.tolist(), leads.tolist(), codes, kept, strict=True
                )
            }
        nothing = torch.zeros(frames, dtype=torch.bool)
        for request, chosen in zip(rows, tokens, strict=True):
            if request.writes:
                request.write(chosen)
            elif id(request) in spoken:
                end, request.leads, code, keep = spoken[id(request)]
                request.say(chosen, code, keep)
                if end:
                    request.speaks = False
                    self._hush(request)
            else:
                request.say(chosen, self.lead if request.forbids_end else self.silence, nothing)

    def _listen(self, hidden: Tensor, rows: list[SpeechRequest], speaks: list[bool]) -> None:
        """Let the head know later of positions, hidden states ``(R, D)``, at which rows do not speak."""
        for row, request in enumerate(rows):
            if not speaks[row] and request.memory is not None and request.listens:
                request.memory.listen(hidden[row : row + 1, None], self._text[row : row + 1, None])

    def _raise_voice(self, request: SpeechRequest) -> None:
        """Give a request a row of the head, unless it has one."""
        if request.voice < 0:
            if isinstance(request.memory, RowMemory):
                request.memory.join()
            request.voice = len(self._speakers)
            self._speakers.append(request)

    def _hush(self, request: SpeechRequest) -> None:
        """Take its row of the head back; the last one takes its place."""
        row = request.voice
        if row >= 0:
            last = self._speakers.pop()
            if last is not request:
                self._speakers[row], last.voice = last, row
            if isinstance(request.memory, RowMemory):
                request.memory.leave(row, keep=request.session is not None)
            request.voice = -1


@dataclass(frozen=True, eq=False)
class Said:
    """What the head said for the rows that speak."""

    index: Tensor  # (N,) rows
    groups: Tensor  # (N, k, Q)
    speech: Tensor  # (N, k) bool, frames of real codes before the end
    ended: Tensor  # (N,) bool, speech ends here
    leads: Tensor  # (N,) bool, no real code was said yet


def _without(rows: Tensor, row: int) -> Tensor:
    """Rows without one; the last takes its place."""
    kept = rows[:-1].clone()
    kept[row : row + 1] = rows[-1:][: len(kept) - row]
    return kept
