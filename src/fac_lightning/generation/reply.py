"""What comes back to the caller: text, codes and the waveform."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from fac_lightning.generation.stepping import Decoded
from fac_lightning.prompts import SPECIAL_TOKENS, ChatFormat, Mode
from fac_lightning.tokenizers.base import SpeechTokenizer

__all__ = ["Reply", "build_replies", "speak", "special_ids"]


@dataclass(frozen=True, eq=False)
class Reply:
    """One answer of the assistant."""

    text: str
    text_ids: list[int]  # without special tokens
    codes: Tensor | None  # (T, Q) int64 on CPU; None for written replies
    audio: Tensor | None  # (S,) float32 on CPU; None for written replies and without a tokenizer
    sample_rate: int | None  # Hz of audio
    finished: bool  # False when max_positions cut it
    chain: str | None = None  # what it wrote before it spoke, in a mode with a chain
    transcript: str | None = None  # of the chain: what it heard the user say
    draft: str | None = None  # of the chain: the answer


def build_replies(
    decoded: Decoded, chat: ChatFormat, tokenizer: SpeechTokenizer | None, mode: Mode | None = None
) -> list[Reply]:
    """Replies of the rows of ``decoded``; their waveforms are decoded as one batch.

    Args:
        decoded: What was said and written.
        chat: Token ids of the marks.
        tokenizer: Makes the waveforms; none without it.
        mode: Says what the lines of a chain are; needed where there is one.
    """
    special = special_ids(chat)
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
            audio = list(speak(said, tokenizer))
    rate = tokenizer.output_rate if tokenizer is not None else None
    replies = [
        Reply(chat.decode(ids), ids, grid, clip, rate if clip is not None else None, done)
        for ids, grid, clip, done in zip(texts, codes, audio, finished, strict=True)
    ]
    if decoded.chain is None or mode is None:
        return replies
    rows = zip(decoded.chain.text_ids.cpu(), decoded.chain.text_kept.cpu(), strict=True)
    written = [chat.decode(ids[mask].tolist()) for ids, mask in rows]
    parts = [mode.read_chain(text) for text in written]
    return [
        replace(reply, chain=text.rstrip("\n"), transcript=transcript, draft=draft)
        for reply, text, (transcript, draft) in zip(replies, written, parts, strict=True)
    ]


def special_ids(chat: ChatFormat) -> set[int]:
    """Token ids that are no text."""
    return set(chain.from_iterable(chat.encode(token) for token in SPECIAL_TOKENS))


def speak(codes: list[Tensor], tokenizer: SpeechTokenizer) -> list[Tensor]:
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
