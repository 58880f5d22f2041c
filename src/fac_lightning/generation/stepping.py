"""The decoding loop: one backbone step per position, the speech head only while speech is due.

A spoken reply opens with ``<|audio_bos|>``; then every position holds a text token and, until the speech has ended, a
group of codes. Speech decides when it ends: until then the text head cannot close the turn. Afterwards text alone goes
on until ``<|audio_eos|>``, or ``<|audio_eos|>`` stands there at once: the reply rule (``fac_lightning.replies``) says
which. This is the row that training lays out, so stepping gives the log-probabilities of teacher forcing.

In a chain of modality the rows first write text until they say ``<|audio_bos|>`` themselves. Rows whose chain is over
wait for the others, at positions that nobody sees; then all speak together.

All state is in the objects made here; nothing is written to a module. The host waits for the device once a position.

Legend: B rows, L new positions, D width, k frames of a group, Q codebooks, C positions of the chain, M positions of
the reply.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fac_lightning.generation.memory import BackboneState, HeadMemory
from fac_lightning.generation.prompt import left_pad, prompt_text
from fac_lightning.generation.sampling import Decoding
from fac_lightning.generation.streams import SpeechStream, TextStream, join, reply_noise
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ChatFormat, Mode
from fac_lightning.replies import FrameEnd, ReplyRule
from fac_lightning.types import SpeechTextBatch, to_device

__all__ = ["Chain", "Decoded", "ReplySteps", "decode_reply", "read_prompt"]


@dataclass(frozen=True, eq=False)
class Chain:
    """What B rows wrote before they spoke."""

    text_ids: Tensor  # (B, C) int64
    text_kept: Tensor  # (B, C) bool, the position is part of the row's chain; its <|audio_bos|> is not
    opened: Tensor  # (B,) bool, the row said <|audio_bos|>


@dataclass(frozen=True, eq=False)
class Decoded:
    """What B rows said, position by position."""

    text_ids: Tensor  # (B, M) int64
    text_kept: Tensor  # (B, M) bool, the position is part of the row's reply
    codes: Tensor | None  # (B, M * k, Q) int64, groups as they were fed back; None for written replies
    codes_kept: Tensor | None  # (B, M * k) bool, real codes before the end of the row's speech
    finished: Tensor  # (B,) bool, the row closed its reply itself
    pending: Tensor  # (B, 1, D), the last position chosen; the backbone has not seen it
    pending_text: Tensor  # (B, 1, D), its text token alone
    chain: Chain | None = None  # in a mode with a chain


def read_prompt(
    model: SpeechLM,
    batch: SpeechTextBatch,
    state: BackboneState,
    memory: HeadMemory | None = None,
    before: Decoded | None = None,
) -> Tensor:
    """Show backbone and head the rows of a prompt: hidden states ``(R, D)`` of their last positions.

    Args:
        model: The speech LLM, in eval mode.
        batch: What ``prompt_batch`` gave.
        state: Moves on.
        memory: What the head remembers; None where nothing is to be said.
        before: The reply before, whose last position has not been seen yet.
    """
    prompt = model.read(to_device(batch, state.mask.device))
    embeds, mask = left_pad(prompt.embeds, prompt.batch.lengths)
    reads = memory is not None and memory.whole_sequence
    text = left_pad(prompt_text(model, prompt.batch), prompt.batch.lengths)[0] if reads else embeds[..., :0]
    if before is not None:
        embeds = torch.cat([before.pending, embeds], dim=1)
        text = torch.cat([before.pending_text, text], dim=1) if reads else embeds[..., :0]
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
    hidden = state.feed(embeds, mask)
    if memory is not None:  # of the last position the head says its first group
        memory.listen(hidden[:, :-1], text[:, :-1], mask[:, :-1])
    return hidden[:, -1]


def decode_reply(
    model: SpeechLM,
    chat: ChatFormat,
    state: BackboneState,
    hidden: Tensor,
    decoding: Decoding,
    seeds: list[int],
    mode: Mode,
    reply: ReplyRule | None = None,
    memory: HeadMemory | None = None,
) -> Decoded:
    """Answer behind a prompt that ``state`` has seen, to the end; arguments are those of :class:`ReplySteps`."""
    steps = ReplySteps(model, chat, state, hidden, decoding, seeds, mode, reply, memory)
    while not steps.over:
        steps.step()
    return steps.decoded


class ReplySteps:
    """Answers behind a prompt that ``state`` has seen, position by position until ``over``.

    A chain is written at once, when this is made.

    Args:
        model: The speech LLM, in eval mode.
        chat: Token ids of the marks.
        state: Moves on with every position.
        hidden: ``(B, D)``, of ``<|audio_bos|>`` for a spoken reply without a chain, else of the last token before it.
        decoding: Sampling and the longest reply.
        seeds: One per row.
        mode: Whether codes are said as well as text, and whether a chain is written first.
        reply: How a spoken reply lies, as in training; ``FrameEnd()`` when None.
        memory: What the head has read; a fresh one when None.
    """

    def __init__(
        self,
        model: SpeechLM,
        chat: ChatFormat,
        state: BackboneState,
        hidden: Tensor,
        decoding: Decoding,
        seeds: list[int],
        mode: Mode,
        reply: ReplyRule | None = None,
        memory: HeadMemory | None = None,
    ) -> None:
        rows, device, longest = len(seeds), hidden.device, decoding.max_positions
        self.model, self.state, self.reply = model, state, reply or FrameEnd()
        draws = model.geometry.group_size * model.geometry.num_codebooks if mode.speaks else 0
        random = decoding.text.temperature > 0 or (mode.speaks and decoding.speech.temperature > 0)
        noise = reply_noise(seeds, longest, 1 + draws + mode.chains, random, device)  # (text, codes, text of the chain)
        stop = chat.audio_eos if mode.speaks else chat.im_end
        self.text = TextStream(chat, decoding.text, noise[..., 0], model.backbone.vocab_size, stop)
        self.speech: SpeechStream | None = None
        self.chain: Chain | None = None
        self.limits: Tensor | None = None  # (B,) positions that a chain leaves to each row
        if mode.speaks:
            memory = memory or HeadMemory(model, rows)
            self.speech = SpeechStream(memory, decoding.speech, noise[..., 1 : 1 + draws], self.reply)
        if mode.chains and memory is not None:
            writing = TextStream(chat, decoding.text, noise[..., -1], model.backbone.vocab_size, chat.audio_bos)
            self.chain, hidden, self._last = _write_chain(model, chat, state, hidden, writing, memory, longest)
            self.limits = longest - self.chain.text_kept.sum(1) - self.chain.opened.long()
            longest = int(self.limits.max())
        self.longest, self.over, self._hidden = longest, longest == 0, hidden
        # the token that a spoken hidden has read
        self._text_embeds = model.backbone.embed(torch.full((rows,), chat.audio_bos, device=device))
        self._pending: Tensor | None = None  # (B, D), the last position chosen
        self._no_speech = torch.zeros(rows, dtype=torch.bool, device=device)
        self._any_due = mode.speaks

    def step(self) -> None:
        """Say one position."""
        if self._pending is not None:
            self._hidden = self.state.feed(self._pending[:, None])[:, -1]
        due = self._due
        token = self.text.next(self.model.backbone.logits(self._hidden), due)
        group, present = None, None
        if self.speech is not None:
            group, present = self.speech.next(self._hidden, self._text_embeds, self._any_due)
            if not self.reply.text_goes_on:
                token = self.text.close(due & ~self.speech.due)
        self._text_embeds = self.model.backbone.embed(token)
        self._pending = join(self.model, self._text_embeds, group, present)
        said = len(self.text.tokens)
        over = self.text.done if self.limits is None else self.text.done | (self.limits <= said)
        all_over, self._any_due = torch.stack([over.all(), self._due.any()]).tolist()  # the one wait per position
        self.over = all_over or said == self.longest

    @property
    def newest(self) -> tuple[int | None, Tensor | None]:
        """What the newest position added to the first row: its text token, and its frames of speech ``(t, Q)``."""
        token = int(self.text.tokens[-1][0]) if bool(self.text.kept[-1][0]) else None
        if self.speech is None:
            return token, None
        return token, self.speech.groups[-1][0][self.speech.kept[-1][0]].cpu()

    @property
    def _due(self) -> Tensor:
        return self._no_speech if self.speech is None else self.speech.due

    @property
    def decoded(self) -> Decoded:
        """What was said so far, as if it had been cut here."""
        if self._pending is None:
            assert self.chain is not None, "nothing was said: call step() first"  # longest is at least 1
            return _silence(self.model, self.chain, self._last)
        speech = self.speech
        decoded = Decoded(
            text_ids=torch.stack(self.text.tokens, dim=1),
            text_kept=torch.stack(self.text.kept, dim=1),
            codes=torch.cat(speech.groups, dim=1) if speech else None,
            codes_kept=torch.cat(speech.kept, dim=1) if speech else None,
            finished=self.text.done,
            pending=self._pending[:, None],
            pending_text=self._text_embeds[:, None],
            chain=self.chain,
        )
        return decoded if self.limits is None else _cut(decoded, self.limits)


def _write_chain(
    model: SpeechLM,
    chat: ChatFormat,
    state: BackboneState,
    hidden: Tensor,
    text: TextStream,
    memory: HeadMemory,
    longest: int,
) -> tuple[Chain, Tensor, Tensor]:
    """Write until each row says ``<|audio_bos|>``; the rows' last hidden states ``(B, D)`` and tokens ``(B,)`` too.

    Nothing behind the ``longest``-th token is seen by the backbone.
    """
    token = torch.full_like(text.done, chat.assistant_open()[-1], dtype=torch.int64)  # read by hidden
    embeds, no_speech = model.backbone.embed(token), torch.zeros_like(text.done)
    for step in range(longest):
        writes = ~text.done
        memory.listen(hidden[:, None], embeds[:, None], writes[:, None])  # of <|audio_bos|> the first group is said
        token = torch.where(writes, text.next(model.backbone.logits(hidden), no_speech), token)
        if step + 1 == longest:
            break
        embeds = model.backbone.embed(token)
        seen = state.feed(join(model, embeds, None, None)[:, None], writes[:, None])
        hidden = torch.where(writes[:, None], seen[:, -1], hidden)
        if text.done.all():
            break
    chain = Chain(torch.stack(text.tokens, dim=1), torch.stack(text.kept, dim=1), text.done)
    return chain, hidden, token


def _silence(model: SpeechLM, chain: Chain, last: Tensor) -> Decoded:
    """What rows said that wrote until no position was left; ``last`` ``(B,)`` are their last tokens."""
    embeds = model.backbone.embed(last)
    none = chain.text_ids[:, :0]
    return Decoded(
        text_ids=none,
        text_kept=none.bool(),
        codes=none[..., None].expand(-1, -1, model.geometry.num_codebooks),
        codes_kept=none.bool(),
        finished=torch.zeros_like(chain.opened),
        pending=join(model, embeds, None, None)[:, None],
        pending_text=embeds[:, None],
        chain=chain,
    )


def _cut(decoded: Decoded, limits: Tensor) -> Decoded:
    """Each row as it would be alone: not more than its own number of positions ``(B,)``."""
    assert decoded.codes_kept is not None
    positions = decoded.text_ids.shape[1]
    inside = torch.arange(positions, device=limits.device) < limits[:, None]
    frames = decoded.codes_kept.shape[1] // positions
    return replace(
        decoded,
        text_kept=decoded.text_kept & inside,
        codes_kept=decoded.codes_kept & inside.repeat_interleave(frames, 1),
        finished=decoded.finished & (decoded.text_kept.sum(1) < limits),
    )
