"""The decoding loop: one backbone step per position, the speech head only while speech is due.

A spoken reply opens with ``<|audio_bos|>``; then every position holds a text token and, until the speech has ended, a
group of codes. Speech decides when it ends: until then the text head cannot close the turn. Afterwards text alone goes
on until ``<|audio_eos|>``, or ``<|audio_eos|>`` stands there at once: the reply rule (``fac_lightning.replies``) says
which. This is the row that training lays out, so stepping gives the log-probabilities of teacher forcing.

All state is in the objects made here; nothing is written to a module. The host waits for the device once a position.

Legend: B rows, L new positions, D width, k frames of a group, Q codebooks, M positions of the reply.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fac_lightning.generation.memory import BackboneState, HeadMemory
from fac_lightning.generation.prompt import left_pad, prompt_text
from fac_lightning.generation.sampling import Decoding
from fac_lightning.generation.streams import SpeechStream, TextStream, join, reply_noise
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ChatFormat
from fac_lightning.replies import FrameEnd, ReplyRule
from fac_lightning.types import SpeechTextBatch, to_device

__all__ = ["Decoded", "decode_reply", "read_prompt"]


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
    batch = to_device(batch, state.mask.device)
    embeds, mask = left_pad(model.embed(batch), batch.lengths)
    reads = memory is not None and memory.whole_sequence
    text = left_pad(prompt_text(model, batch), batch.lengths)[0] if reads else embeds[..., :0]
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
    spoken: bool,
    reply: ReplyRule | None = None,
    memory: HeadMemory | None = None,
) -> Decoded:
    """Answer behind a prompt that ``state`` has seen; ``hidden`` ``(B, D)`` is its last position.

    Args:
        model: The speech LLM, in eval mode.
        chat: Token ids of the marks.
        state: Moves on with every position.
        hidden: Of ``<|audio_bos|>`` for a spoken reply, else of the last token before the reply.
        decoding: Sampling and the longest reply.
        seeds: One per row.
        spoken: Say codes as well as text.
        reply: How a spoken reply lies, as in training; ``FrameEnd()`` when None.
        memory: What the head has read; a fresh one when None.
    """
    rows, device, longest = len(seeds), hidden.device, decoding.max_positions
    reply = reply or FrameEnd()
    draws = model.geometry.group_size * model.geometry.num_codebooks if spoken else 0
    random = decoding.text.temperature > 0 or (spoken and decoding.speech.temperature > 0)
    noise = reply_noise(seeds, longest, 1 + draws, random, device)
    text = TextStream(chat, decoding.text, noise[..., 0], model.backbone.vocab_size, spoken)
    speech = None
    if spoken:
        speech = SpeechStream(memory or HeadMemory(model, rows), decoding.speech, noise[..., 1:], reply)
    text_embeds = model.backbone.embed(torch.full((rows,), chat.audio_bos, device=device))  # read by a spoken hidden
    no_speech, any_due = torch.zeros(rows, dtype=torch.bool, device=device), spoken
    for step in range(longest):
        due = no_speech if speech is None else speech.due
        token = text.next(model.backbone.logits(hidden), due)
        group, present = (None, None) if speech is None else speech.next(hidden, text_embeds, any_due)
        if speech is not None and not reply.text_goes_on:
            token = text.close(due & ~speech.due)
        text_embeds = model.backbone.embed(token)
        pending = join(model, text_embeds, group, present)
        due = no_speech if speech is None else speech.due
        all_done, any_due = torch.stack([text.done.all(), due.any()]).tolist()  # the one wait per position
        if all_done or step + 1 == longest:
            break
        hidden = state.feed(pending[:, None])[:, -1]
    return Decoded(
        text_ids=torch.stack(text.tokens, dim=1),
        text_kept=torch.stack(text.kept, dim=1),
        codes=torch.cat(speech.groups, dim=1) if speech else None,
        codes_kept=torch.cat(speech.kept, dim=1) if speech else None,
        finished=text.done,
        pending=pending[:, None],
        pending_text=text_embeds[:, None],
    )
