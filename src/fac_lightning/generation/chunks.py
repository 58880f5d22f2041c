"""What comes of a reply bit by bit: its text as characters are complete, its speech as samples can be heard."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fac_lightning.detokenizers.base import SpeechDetokenizer
from fac_lightning.generation.reply import Reply, build_replies, speak, special_ids
from fac_lightning.generation.stepping import Decoded
from fac_lightning.prompts import ChatFormat, Mode
from fac_lightning.tokenizers.base import SpeechTokenizer

__all__ = ["ReplyChunk", "ReplyChunks"]


@dataclass(frozen=True, eq=False)
class ReplyChunk:
    """What a position of the backbone adds to a reply."""

    text: str  # the chunks' texts in a row are the reply's
    codes: Tensor | None  # (t, Q) int64 on CPU; None for written replies
    audio: Tensor | None  # (s,) float32 on CPU, samples that can be heard now; None without a tokenizer
    sample_rate: int | None  # Hz of audio
    reply: Reply | None = None  # the whole, in the last chunk


class ReplyChunks:
    """Makes chunks of what one row says, position by position.

    Args:
        chat: Token ids of the marks.
        tokenizer: Makes the waveform: a causal one chunk by chunk, one with a streaming detokenizer as that gives it,
            another at the end. None makes none.
        mode: Of the reply.
    """

    def __init__(self, chat: ChatFormat, tokenizer: SpeechTokenizer | None, mode: Mode) -> None:
        self.chat, self.mode = chat, mode
        self._voice = _Voice(tokenizer) if tokenizer is not None and mode.speaks else None
        self._special, self._ids, self._shown = special_ids(chat), list[int](), ""

    def next(self, token: int | None, codes: Tensor | None) -> ReplyChunk:
        """What a position added.

        Args:
            token: Its text token; None where that is no part of the reply.
            codes: Its frames of speech ``(t, Q)`` on CPU; None in a written reply.
        """
        if token is not None and token not in self._special:
            self._ids.append(token)
        text = self.chat.decode(self._ids)
        if not text.startswith(self._shown) or text.endswith("\N{REPLACEMENT CHARACTER}"):
            text = self._shown  # a character that the next tokens complete
        text, self._shown = text[len(self._shown) :], text
        return self._chunk(text, codes, None if codes is None or self._voice is None else self._voice.say(codes))

    def last(self, decoded: Decoded) -> ReplyChunk:
        """What was held back, and the whole reply."""
        reply = build_replies(decoded, self.chat, None, self.mode)[0]
        text = reply.text[len(self._shown) :]
        if self._voice is None:
            return replace(self._chunk(text, None if reply.codes is None else reply.codes[:0], None), reply=reply)
        rest = self._voice.end()
        whole = torch.cat(self._voice.said)
        reply = replace(reply, audio=whole, sample_rate=self._voice.sample_rate)
        return replace(self._chunk(text, None if reply.codes is None else reply.codes[:0], rest), reply=reply)

    def _chunk(self, text: str, codes: Tensor | None, audio: Tensor | None) -> ReplyChunk:
        return ReplyChunk(text, codes, audio, None if audio is None or self._voice is None else self._voice.sample_rate)


class _Voice:
    """Speaks codes as early as its tokenizer can."""

    def __init__(self, tokenizer: SpeechTokenizer) -> None:
        self.tokenizer, self.sample_rate = tokenizer, tokenizer.output_rate
        detokenizer = getattr(tokenizer, "detokenizer", None)
        self.detokenizer = detokenizer if isinstance(detokenizer, SpeechDetokenizer) else None
        self.state: Any = tokenizer.new_decoder_state(1) if tokenizer.causal else None
        if self.detokenizer is not None and not tokenizer.causal:
            self.state = self.detokenizer.new_state()
        self.device = next(chain(tokenizer.parameters(), tokenizer.buffers()), torch.empty(0)).device
        self.waiting = torch.zeros(0, tokenizer.num_codebooks, dtype=torch.int64)  # codes that were not spoken yet
        self.said = [torch.zeros(0)]

    def say(self, codes: Tensor) -> Tensor:
        """Samples ``(s,)`` that codes ``(t, Q)`` complete."""
        self.waiting = torch.cat([self.waiting, codes])
        started, least = len(self.said) > 1, self.tokenizer.first_chunk_frames
        if self.state is None or not len(self.waiting) or (not started and len(self.waiting) < least):
            return torch.zeros(0)
        codes, self.waiting = self.waiting.to(self.device), self.waiting[:0]
        if self.tokenizer.causal:
            return self._heard(self.tokenizer.decode_chunk(codes[None], self.state)[0])
        assert self.detokenizer is not None
        return self._heard(self.detokenizer.stream(codes, self.state))

    def end(self) -> Tensor:
        """Samples ``(s,)`` of all that is left."""
        if self.state is not None and not self.tokenizer.causal and len(self.said) > 1:
            assert self.detokenizer is not None
            return self._heard(self.detokenizer.stream(self.waiting.to(self.device), self.state, final=True))
        return self._heard(speak([self.waiting], self.tokenizer)[0])

    def _heard(self, audio: Tensor) -> Tensor:
        self.said.append(audio.float().cpu())
        return self.said[-1]
