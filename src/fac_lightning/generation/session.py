"""A conversation of many turns: what was said stays in the key-value cache and is never computed again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fac_lightning.generation.chunks import ReplyChunk, ReplyChunks
from fac_lightning.generation.conversation import Conversation
from fac_lightning.generation.memory import BackboneState, HeadMemory
from fac_lightning.generation.prompt import Piece, prompt_batch
from fac_lightning.generation.reply import Reply, build_replies
from fac_lightning.generation.sampling import Decoding
from fac_lightning.generation.stepping import Decoded, ReplySteps, decode_reply, read_prompt
from fac_lightning.generation.streams import evaluating
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import MODES, ChatFormat, Mode
from fac_lightning.replies import FrameEnd, ReplyRule
from fac_lightning.tokenizers.base import SpeechTokenizer

__all__ = ["Session"]


class Session:
    """One conversation. All its state is in this object, so sessions over one model do not disturb each other.

    The cache holds the dialogue as a training row would: after a reply, the closing marks of the assistant's turn are
    given to the backbone together with the next user turn. A head whose context is the whole sequence has read them
    too when it speaks next.

    Args:
        model: The speech LLM; it runs in eval mode and is left as it was.
        chat: Token ids of the chat format it was trained on.
        mode: How turns are given and answered, one of ``MODES``. A turn of the other kind is taken as well: text in
            S2M is answered as in T2M. A chain has no transcript of a turn that is text.
        system: System prompt.
        tokenizer: Gives replies a waveform; without it they have codes only.
        reply: How spoken replies lie, as in training; ``FrameEnd()`` when None.
        decoding: Sampling and the longest reply; greedy by default. Turn ``i`` draws from ``seed + i``.
    """

    def __init__(
        self,
        model: SpeechLM,
        chat: ChatFormat,
        mode: str,
        system: str,
        tokenizer: SpeechTokenizer | None = None,
        reply: ReplyRule | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        self._conversation = Conversation(chat, mode, system)
        self.model, self.chat, self.mode, self.tokenizer = model, chat, mode, tokenizer
        self.reply, self.decoding = reply or FrameEnd(), decoding or Decoding()
        self._state = BackboneState(model, 1)
        self._memory = HeadMemory(model, 1) if MODES[mode].speaks else None
        self._speaking = False  # a stream is under way

    @property
    def turns(self) -> int:
        """Answered so far."""
        return self._conversation.turns

    def send(self, text: str | None = None, audio: Tensor | np.ndarray | None = None) -> Reply:
        """Say something and get the answer.

        Args:
            text: What the user writes.
            audio: What the user says, ``(S,)`` at ``model.geometry.sample_rate``; used when both are given.

        Raises:
            ValueError: Nothing is given, the model lacks a part for it, or a stream is under way.
        """
        pieces, mode = self._conversation.ask(text, audio)
        decoded = self._decode(pieces, mode)
        self._conversation.close(decoded)
        return build_replies(decoded, self.chat, self.tokenizer, mode)[0]

    def stream(self, text: str | None = None, audio: Tensor | np.ndarray | None = None) -> Iterator[ReplyChunk]:
        """Say something and get the answer as it comes: a chunk per position of the backbone.

        The last chunk has the whole reply, the one that ``send`` gives. Who closes the iterator before its end cuts
        the reply there, and the conversation goes on behind what was said. A chain is written before the first chunk.

        Args:
            text: What the user writes.
            audio: What the user says, ``(S,)`` at ``model.geometry.sample_rate``; used when both are given.

        Raises:
            ValueError: Nothing is given, the model lacks a part for it, or another stream is under way.
        """
        return self._stream(*self._conversation.ask(text, audio))

    def _stream(self, pieces: list[Piece], mode: Mode) -> Iterator[ReplyChunk]:
        steps, chunks = self._steps(pieces, mode), ReplyChunks(self.chat, self.tokenizer, mode)
        self._speaking = True
        try:
            while not steps.over:
                with evaluating(self.model), torch.inference_mode():
                    steps.step()
                    chunk = chunks.next(*steps.newest)
                yield chunk  # outside: the mode of the caller is not to change
        finally:  # also where the listener left
            self._speaking = False
            with evaluating(self.model), torch.inference_mode():
                self._conversation.close(steps.decoded)
        with torch.inference_mode():
            chunk = chunks.last(steps.decoded)
        yield chunk

    def _decode(self, pieces: list[Piece], mode: Mode) -> Decoded:
        seeds = [self.decoding.seed + self.turns]
        with evaluating(self.model), torch.inference_mode():
            state, memory, hidden = self._state, self._memory, self._read(pieces, mode)
            return decode_reply(self.model, self.chat, state, hidden, self.decoding, seeds, mode, self.reply, memory)

    def _steps(self, pieces: list[Piece], mode: Mode) -> ReplySteps:
        seeds = [self.decoding.seed + self.turns]
        with evaluating(self.model), torch.inference_mode():
            state, memory, hidden = self._state, self._memory, self._read(pieces, mode)
            return ReplySteps(self.model, self.chat, state, hidden, self.decoding, seeds, mode, self.reply, memory)

    def _read(self, pieces: list[Piece], mode: Mode) -> Tensor:
        """Show the model what it has not seen; the hidden state ``(1, D)`` behind which it answers."""
        if self._speaking:
            raise ValueError("the reply before is still being said: take its stream to the end, or close() it")
        batch = prompt_batch([self._conversation.row(pieces, mode)], self.chat, self.model.geometry)
        return read_prompt(self.model, batch, self._state, self._memory, self._conversation.before)
