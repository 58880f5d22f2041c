"""The two streams of a reply: each chooses its next token or group for B rows and keeps what was said.

Legend: B rows, D width, V vocabulary, k frames of a group, Q codebooks, M positions of the reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fac_lightning.generation.memory import HeadMemory
from fac_lightning.generation.sampling import Sampling, pick, uniforms
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import IM_START, ChatFormat
from fac_lightning.replies import ReplyRule
from fac_lightning.types import bos_code, code_vocab_size, eos_code, pad_code

__all__ = ["SpeechStream", "TextStream", "evaluating", "join", "reply_noise"]


class TextStream:
    """Picks text tokens and knows which are out of place.

    While speech is due, the text cannot end. Afterwards its own mark ends it, and no other mark may be said:
    ``<|audio_eos|>`` behind speech, ``<|im_end|>`` behind a written reply, ``<|audio_bos|>`` behind a chain.

    Args:
        chat: Token ids of the marks.
        sampling: How to pick.
        noise: Uniform numbers ``(B, max_positions)``.
        vocab_size: Rows of the text logits, V.
        stop: The mark that ends the text.
    """

    def __init__(self, chat: ChatFormat, sampling: Sampling, noise: Tensor, vocab_size: int, stop: int) -> None:
        never, marks = {chat.pad, chat.audio, *chat.encode(IM_START)}, {chat.audio_bos, chat.audio_eos, chat.im_end}
        self.chat, self.sampling, self.noise, self.stop = chat, sampling, noise, stop
        forbidden = torch.zeros(2, vocab_size, dtype=torch.bool)  # [no speech due, speech due]
        forbidden[0, sorted(never | {chat.sil} | marks - {stop})] = True
        forbidden[1, sorted(never | marks)] = True
        self.forbidden = forbidden.to(noise.device)
        self.seen = torch.zeros(len(noise), vocab_size, dtype=torch.bool, device=noise.device)
        self.done = torch.zeros(len(noise), dtype=torch.bool, device=noise.device)  # rows that said the mark
        self.tokens: list[Tensor] = []  # (B,) per position
        self.kept: list[Tensor] = []  # (B,) bool per position, part of the row's reply

    def next(self, logits: Tensor, speech_due: Tensor) -> Tensor:
        """Tokens ``(B,)`` from logits ``(B, V)``; rows where ``speech_due`` ``(B,)`` cannot close the reply."""
        logits = logits.float().masked_fill(self.forbidden[speech_due.long()], -torch.inf)
        token = pick(logits, self.sampling, self.noise[:, len(self.tokens)], self.seen)
        token = torch.where(self.done, self.chat.pad, token)
        if self.sampling.repetition_penalty != 1.0:
            self.seen.scatter_(1, token[:, None], True)
            self.seen[:, self.chat.sil] = False  # silence repeats by design
        self.done = self.done | (token == self.stop)
        self.tokens.append(token)
        self.kept.append(~self.done)
        return token

    def close(self, rows: Tensor) -> Tensor:
        """The newest tokens ``(B,)``, with the mark that closes the reply in ``rows`` ``(B,)`` bool."""
        self.tokens[-1] = self.tokens[-1].masked_fill(rows, self.stop)
        self.done = self.done | rows
        self.kept[-1] = self.kept[-1] & ~rows
        return self.tokens[-1]


class SpeechStream:
    """Asks the head for groups until each row has said ``eos``.

    Args:
        memory: The head and what it remembers.
        sampling: How to pick codes.
        noise: Uniform numbers ``(B, max_positions, k * Q)``.
        reply: How a spoken reply lies, as in training.
    """

    def __init__(self, memory: HeadMemory, sampling: Sampling, noise: Tensor, reply: ReplyRule) -> None:
        head = memory.head
        if reply.says_bos and not head.says_special:
            raise ValueError(
                f"{type(head).__name__} cannot say bos, and by {reply} the head says the lead-in; take the rule "
                "fac_lightning.replies.FrameEnd, or a head that says_special (FunAudioHead)"
            )
        self.memory, self.sampling, self.noise, self.reply = memory, sampling, noise, reply
        memory.begin_reply()
        batch_size, device = len(noise), noise.device
        self.codebook_size = size = head.codebook_size
        shape = (batch_size, head.group_size, head.num_codebooks)
        self.lead = torch.full(shape, bos_code(size), device=device)
        self.silence = torch.full(shape, pad_code(size), device=device)
        self.due = torch.ones(batch_size, dtype=torch.bool, device=device)  # rows that still speak
        self.order = head.order  # places of a group as the head asks for them
        self.ends = torch.where(self.due, head.group_size, 0)  # (B,) frames that each row has to say in this group
        self.leads = self.due  # rows that have said no real code
        self.frame_leads = ~self.due  # rows whose current frame is one of bos
        self.seen = torch.zeros(head.num_codebooks, batch_size, code_vocab_size(size), dtype=torch.bool, device=device)
        forbidden = torch.zeros(2, code_vocab_size(size), dtype=torch.bool)  # [a code was said, none was]
        forbidden[:, [bos_code(size), pad_code(size)]] = True
        forbidden[1, bos_code(size)] = not reply.says_bos
        inside = forbidden[0].clone()
        inside[eos_code(size)] = True  # a frame ends the speech as a whole, so its first code decides
        self.forbidden, self.forbidden_inside = forbidden.to(device), inside.to(device)
        self.asked = 0  # codes of the current group
        self.groups: list[Tensor] = []  # (B, k, Q) per position
        self.kept: list[Tensor] = []  # (B, k) bool per position, real codes before the row's eos

    def next(self, hidden: Tensor, text_embeds: Tensor, any_due: bool) -> tuple[Tensor, Tensor]:
        """Groups ``(B, k, Q)`` after ``hidden`` ``(B, D)``, and which rows have one at the next position ``(B,)``.

        ``text_embeds`` ``(B, D)`` are those of the text tokens that ``hidden`` has read last. Nothing is computed once
        ``any_due`` is False.
        """
        present, group = self.due, self.silence
        frames = torch.zeros(group.shape[:2], dtype=torch.bool, device=group.device)
        if not any_due:
            self.memory.listen(hidden[:, None], text_embeds[:, None])
        elif len(self.groups) < self.reply.lead_in_groups:
            self.memory.listen(hidden[:, None], text_embeds[:, None])
            group = self.lead
        else:
            self.asked, self.ends = 0, torch.where(self.due, self.memory.head.group_size, 0)
            said = self.reply.close(self.memory.say(hidden, self._pick, text_embeds), self.codebook_size)
            self.due = self.due & ~said.ended
            group = torch.where(present[:, None, None], said.groups, self.silence)
            frames = said.speech & present[:, None]
            if not self.reply.text_goes_on:  # the position at which speech ends is the mark's
                present = self.due
        self.groups.append(group)
        self.kept.append(frames)
        return group, present

    def _pick(self, logits: Tensor) -> Tensor:
        """Codes ``(B,)``; the head asks place by place in its ``order``, the first codebook of a frame first."""
        frame, codebook = divmod(self.order[self.asked], len(self.seen))
        size = self.codebook_size
        if codebook > 0:
            logits = logits.masked_fill(self.forbidden_inside, -torch.inf)
        else:
            logits = logits.masked_fill(self.forbidden[self.leads.long()], -torch.inf)
        seen = self.seen[codebook]
        code = pick(logits, self.sampling, self.noise[:, len(self.groups), self.asked], seen)
        if self.reply.says_bos:
            if codebook > 0:  # a frame leads in as a whole
                code = code.masked_fill(self.frame_leads, bos_code(size))
            self.frame_leads = code == bos_code(size)
            self.leads = self.leads & (code >= size)
        code = code.masked_fill(self.ends <= frame, self.reply.filler(size))
        self.ends = torch.where(code == eos_code(size), self.ends.clamp_max(frame), self.ends)
        if self.sampling.repetition_penalty != 1.0:
            seen.scatter_(1, code[:, None], True)
            seen[:, bos_code(size)] = False  # the lead-in repeats by design
        self.asked += 1
        return code


def reply_noise(seeds: list[int], max_positions: int, draws: int, needed: bool, device: torch.device) -> Tensor:
    """Uniform numbers ``(B, max_positions, draws)``; zeros that take no memory when nothing is drawn at random."""
    if not needed:
        return torch.zeros(1, 1, 1, device=device).expand(len(seeds), max_positions, draws)
    return uniforms(seeds, (max_positions, draws), device)


def join(
    model: SpeechLM,
    text_embeds: Tensor,
    group: Tensor | None,
    present: Tensor | None,
    codes: nn.Module | None = None,
) -> Tensor:
    """Embeddings ``(B, D)`` of one new position per row, fused as ``SpeechLM.embed`` does.

    Args:
        model: Has the adapters and the fusion.
        text_embeds: ``(B, D)``; every row has a text token.
        group: Codes ``(B, k, Q)``; None in a written reply.
        present: ``(B,)`` bool, rows whose group counts.
        codes: Embeds groups in place of the code adapter.
    """
    everywhere = torch.ones(len(text_embeds), dtype=torch.bool, device=text_embeds.device)
    streams, there = [text_embeds], [everywhere]
    if model.code_adapter is not None:
        if group is None or present is None:
            streams.append(torch.zeros_like(text_embeds))
            there.append(~everywhere)
        else:
            embeds = (codes or model.code_adapter)(group)
            streams.append(embeds.to(text_embeds.dtype).masked_fill(~present[:, None], 0))
            there.append(present)
    elif group is not None:
        raise ValueError("the model has no code_adapter, so it cannot speak; name one or choose a text mode")
    if model.feature_adapter is not None:  # a stream of user speech that is absent here
        streams.append(torch.zeros_like(text_embeds))
        there.append(~everywhere)
    stacked = torch.stack(streams)
    fused: Tensor = stacked.sum(0) if model.fusion is None else model.fusion(stacked, torch.stack(there))
    return fused


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, and the modules' own modes again afterwards; a model in eval mode is not touched."""
    modes = [(module, module.training) for module in model.modules() if module.training]
    try:
        if modes:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
