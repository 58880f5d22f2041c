"""The decoding loop: one backbone step per position, the speech head only while speech is due.

A spoken reply opens with ``<|audio_bos|>``; then every position holds a text token and, until the speech has ended, a
group of codes. Speech decides when it ends: until a frame is ``eos`` the text head cannot close the turn, afterwards
text alone goes on until ``<|audio_eos|>``. This is the row that training lays out, so stepping gives the
log-probabilities of teacher forcing.

All state is in the objects made here; nothing is written to a module. The host waits for the device once a position.

Legend: B rows, L new positions, D width, k frames of a group, Q codebooks, M positions of the reply.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fac_lightning.generation.sampling import Decoding
from fac_lightning.generation.streams import SpeechStream, TextStream, join, reply_noise
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ChatFormat

__all__ = ["BackboneState", "Decoded", "decode_reply"]


class BackboneState:
    """What the backbone remembers of B rows.

    Args:
        model: Whose backbone steps.
        batch_size: Rows, B.
    """

    def __init__(self, model: SpeechLM, batch_size: int) -> None:
        device = next(model.parameters()).device
        self.backbone, self.cache = model.backbone, model.backbone.new_cache()
        self.mask = torch.ones(batch_size, 0, dtype=torch.bool, device=device)
        self.position = torch.zeros(batch_size, dtype=torch.int64, device=device)  # next one of each row

    def feed(self, embeds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Last hidden states ``(B, D)`` of new positions ``(B, L, D)``, padding where ``mask`` ``(B, L)`` is False."""
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        counted = mask.cumsum(1)
        position_ids = (self.position[:, None] + counted - 1).clamp_min(0)
        self.mask = torch.cat([self.mask, mask], dim=1)
        self.position = self.position + counted[:, -1]
        return self.backbone.step(embeds, self.mask, position_ids, self.cache)[:, -1]


@dataclass(frozen=True, eq=False)
class Decoded:
    """What B rows said, position by position."""

    text_ids: Tensor  # (B, M) int64
    text_kept: Tensor  # (B, M) bool, the position is part of the row's reply
    codes: Tensor | None  # (B, M * k, Q) int64, groups as they were fed back; None for written replies
    codes_kept: Tensor | None  # (B, M * k) bool, real codes before the end of the row's speech
    finished: Tensor  # (B,) bool, the row closed its reply itself
    pending: Tensor  # (B, 1, D), the last position chosen; the backbone has not seen it


def decode_reply(
    model: SpeechLM,
    chat: ChatFormat,
    state: BackboneState,
    hidden: Tensor,
    decoding: Decoding,
    seeds: list[int],
    spoken: bool,
    lead_in: int = 0,
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
        lead_in: Groups of ``bos`` codes before the first group of speech.
    """
    rows, device, longest = len(seeds), hidden.device, decoding.max_positions
    draws = model.geometry.group_size * model.geometry.num_codebooks if spoken else 0
    random = decoding.text.temperature > 0 or (spoken and decoding.speech.temperature > 0)
    noise = reply_noise(seeds, longest, 1 + draws, random, device)
    text = TextStream(chat, decoding.text, noise[..., 0], model.backbone.vocab_size, spoken)
    speech = SpeechStream(model, decoding.speech, noise[..., 1:], lead_in) if spoken else None
    text_embeds = model.backbone.embed(torch.full((rows,), chat.audio_bos, device=device))  # read by a spoken hidden
    no_speech, any_due = torch.zeros(rows, dtype=torch.bool, device=device), spoken
    for step in range(longest):
        due = no_speech if speech is None else speech.due
        token = text.next(model.backbone.logits(hidden), due)
        group, present = (None, None) if speech is None else speech.next(hidden, text_embeds, any_due)
        text_embeds = model.backbone.embed(token)
        pending = join(model, text_embeds, group, present)
        due = no_speech if speech is None else speech.due
        all_done, any_due = torch.stack([text.done.all(), due.any()]).tolist()  # the one wait per position
        if all_done or step + 1 == longest:
            break
        hidden = state.feed(pending[:, None])
    return Decoded(
        text_ids=torch.stack(text.tokens, dim=1),
        text_kept=torch.stack(text.kept, dim=1),
        codes=torch.cat(speech.groups, dim=1) if speech else None,
        codes_kept=torch.cat(speech.kept, dim=1) if speech else None,
        finished=text.done,
        pending=pending[:, None],
    )
