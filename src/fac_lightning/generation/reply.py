"""What comes back to the caller: text, codes and the waveform."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from fac_lightning.generation.stepping import Decoded
from fac_lightning.prompts import SPECIAL_TOKENS, ChatFormat
from fac_lightning.tokenizers.base import SpeechTokenizer

__all__ = ["Reply", "build_replies"]


@dataclass(frozen=True, eq=False)
class Reply:
    """One answer of the assistant."""

    text: str
    text_ids: list[int]  # without special tokens
    codes: Tensor | None  # (T, Q) int64 on CPU; None for written replies
    audio: Tensor | None  # (S,) float32 on CPU; None for written replies and without a tokenizer
    sample_rate: int | None  # Hz of audio
    finished: bool  # False when max_positions cut it


def build_replies(decoded: Decoded, chat: ChatFormat, tokenizer: SpeechTokenizer | None) -> list[Reply]:
    """Replies of the rows of ``decoded``; their waveforms are decoded as one batch."""
    special = set(chain.from_iterable(chat.encode(token) for token in SPECIAL_TOKENS))
    finished = decoded.finished.tolist()
    kept = [ids[mask].tolist() for ids, mask in zip(decoded.text_ids.cpu(), decoded.text_kept.cpu(), strict=True)]
    texts = [[token for token in ids if token not in special] for ids in kept]
    codes: list[Tensor | None] = [None] * len(texts)
    audio: list[Tensor | None] = [None] * len(texts)
    if decoded.codes is not None and decoded.codes_kept is not None:
        rows = zip(decoded.codes.cpu(), decoded.codes_kept.cpu(), strict=True)
        said = [grid[mask].clone() for grid, mask in rows]
        codes = list(said)
        if tokenizer is not None:
            audio = list(_speak(said, tokenizer))
    rate = tokenizer.output_rate if tokenizer is not None else None
    return [
        Reply(chat.decode(ids), ids, grid, clip, rate if clip is not None else None, done)
        for ids, grid, clip, done in zip(texts, codes, audio, finished, strict=True)
    ]


def _speak(codes: list[Tensor], tokenizer: SpeechTokenizer) -> list[Tensor]:
    """Waveforms ``(S,)`` of code grids ``(T, Q)``; nothing said gives no samples."""
    lengths = torch.tensor([len(grid) for grid in codes])
    clips = [torch.zeros(0) for _ in codes]
    heard = lengths.nonzero().squeeze(1).tolist()
    if heard:
        weight = next(chain(tokenizer.parameters(), tokenizer.buffers()), lengths)
        padded = torch.nn.utils.rnn.pad_sequence([codes[i] for i in heard], batch_first=True)
        waves = tokenizer.decode(padded.to(weight.device), lengths[heard].to(weight.device))
        for i, clip, length in zip(heard, waves.audio.float().cpu(), waves.lengths.tolist(), strict=True):
            clips[i] = clip[:length].clone()
    return clips
