"""Dialogue pieces to the embedded positions that the backbone is given before it answers.

The pieces stand in the order of training (``ChatFormat``), and they are embedded by the model's own ``embed``, so that
a prompt looks to the backbone exactly like the same stretch of a training row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ASR_INSTRUCTION, MODES, TTS_INSTRUCTION, ChatFormat, Mode
from fac_lightning.types import IGNORE, SpeechGeometry, SpeechTextBatch, Waveforms, pad_code

__all__ = ["Piece", "UserTurn", "left_pad", "prompt_batch", "prompt_text", "reply_opening", "user_pieces"]

#: Token ids, or a clip ``(S,)`` that takes one position per ``samples_per_position`` samples.
Piece = list[int] | Tensor


@dataclass(frozen=True, eq=False)
class UserTurn:
    """What the user says. Which of the two is used, the mode decides."""

    text: str | None = None
    audio: Tensor | np.ndarray | None = None  # (S,) float, mono, at model.geometry.sample_rate


def user_pieces(chat: ChatFormat, turn: UserTurn, mode: str) -> list[Piece]:
    """A user turn from ``user_open`` to the end of ``assistant_open``.

    Raises:
        ValueError: The mode is unknown, or the turn lacks what the mode reads or hears.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
    content: list[Piece]
    if MODES[mode].hears:
        content = [[chat.audio_bos], _clip(turn.audio, mode), [chat.audio_eos]]
        if mode == "ASR":
            content.append(chat.encode(f"\n{ASR_INSTRUCTION}"))
    elif turn.text is None:
        raise ValueError(f"mode {mode} reads the user's text, but the turn has none; give UserTurn(text=...)")
    else:
        content = [chat.encode(f"{TTS_INSTRUCTION}\n{turn.text}" if mode == "TTS" else turn.text)]
    return [chat.user_open(), *content, chat.close(), chat.assistant_open()]


def reply_opening(chat: ChatFormat, mode: Mode) -> list[Piece]:
    """What is put in before the assistant answers: ``<|audio_bos|>``, unless it is to write something first."""
    return [[chat.audio_bos]] if mode.speaks and not mode.chains else []


def _clip(audio: Tensor | np.ndarray | None, mode: str) -> Tensor:
    if audio is None:
        raise ValueError(f"mode {mode} hears the user, but the turn has no audio; give UserTurn(audio=...)")
    clip = torch.as_tensor(audio, dtype=torch.float32).detach()
    if clip.ndim != 1 or len(clip) == 0:
        raise ValueError(f"audio must be a mono waveform (S,) with at least one sample, got shape {tuple(clip.shape)}")
    return clip


def prompt_batch(rows: Sequence[Sequence[Piece]], chat: ChatFormat, geometry: SpeechGeometry) -> SpeechTextBatch:
    """Rows of pieces as one packed line without labels; codes only where ``geometry.user_codes`` wants pad codes."""
    ids: list[int] = []
    is_text: list[bool] = []
    lengths: list[int] = []
    clips: list[Tensor] = []
    for row in rows:
        start = len(ids)
        for piece in row:
            if isinstance(piece, Tensor):
                count = -(-len(piece) // geometry.samples_per_position)
                clips.append(piece.cpu())
                ids += [chat.audio] * count
                is_text += [False] * count
            else:
                ids += piece
                is_text += [True] * len(piece)
        lengths.append(len(ids) - start)
    text_mask, samples = torch.tensor(is_text, dtype=torch.bool), [len(c) for c in clips]
    audio = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True) if clips else torch.zeros(0, 0)
    none = torch.zeros(0, dtype=torch.int64)
    group = (geometry.group_size, geometry.num_codebooks)
    heard = (~text_mask).nonzero().squeeze(1)
    with_codes = heard if geometry.user_codes else none
    return SpeechTextBatch(
        text_ids=torch.tensor(ids, dtype=torch.int64),
        text_mask=text_mask,
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        lengths=torch.tensor(lengths),
        text_labels=torch.full((len(ids),), IGNORE),
        codes=torch.full((len(with_codes), *group), pad_code(geometry.codebook_size)),
        code_positions=with_codes,
        speech_positions=none,
        speech_labels=none.reshape(0, *group),
        reply_lengths=none,
        audio=Waveforms(audio, torch.tensor(samples, dtype=torch.int64), geometry.sample_rate),
        feature_positions=heard,
        capacity=len(ids),
        seconds=sum(samples) / geometry.sample_rate if samples else 0.0,
        text_token_total=0,
        speech_token_total=0,
    )


def prompt_text(model: SpeechLM, batch: SpeechTextBatch) -> Tensor:
    """Text embeddings ``(N, D)`` of a packed line, zero where a position has no text."""
    text = model.backbone.embed(batch.text_ids.masked_fill(~batch.text_mask, 0))
    return text.masked_fill(~batch.text_mask[:, None], 0)


def left_pad(embeds: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Packed embeddings ``(N, D)`` as rows ``(R, L, D)`` that end together, and their mask ``(R, L)``."""
    longest = int(lengths.max())
    mask = (torch.arange(longest) >= longest - lengths[:, None]).to(embeds.device)
    rows = embeds.new_zeros(*mask.shape, embeds.shape[-1])
    rows[mask] = embeds
    return rows, mask
