"""A conversation of many turns: what was said stays in the key-value cache and is never computed again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fac_lightning.generation.memory import BackboneState, HeadMemory
from fac_lightning.generation.prompt import Piece, UserTurn, prompt_batch, user_pieces
from fac_lightning.generation.reply import Reply, build_replies
from fac_lightning.generation.sampling import Decoding
from fac_lightning.generation.stepping import Decoded, decode_reply, read_prompt
from fac_lightning.generation.streams import evaluating
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import MODES, ChatFormat
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
            S2M is answered as in T2M.
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
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
        self.model, self.chat, self.mode, self.tokenizer = model, chat, mode, tokenizer
        self.reply, self.decoding = reply or FrameEnd(), decoding or Decoding()
        self.turns = 0  # answered so far
        self._state = BackboneState(model, 1)
        self._memory = HeadMemory(model, 1) if MODES[mode][1] else None
        self._unseen: list[Piece] = [chat.system(system)]  # what the backbone must read before the next user turn
        self._before: Decoded | None = None  # the reply before, whose last position the backbone has not seen

    def send(self, text: str | None = None, audio: Tensor | np.ndarray | None = None) -> Reply:
        """Say something and get the answer.

        Args:
            text: What the user writes.
            audio: What the user says, ``(S,)`` at ``model.geometry.sample_rate``; used when both are given.

        Raises:
            ValueError: Nothing is given, or the model lacks a part for it.
        """
        if text is None and audio is None:
            raise ValueError("nothing to answer: give text=... or audio=...")
        pieces = user_pieces(self.chat, UserTurn(text, audio), self._turn_mode(audio is not None))
        decoded = self._decode(pieces)
        self._close(decoded)
        return build_replies(decoded, self.chat, self.tokenizer)[0]

    def _turn_mode(self, heard: bool) -> str:
        """The mode of this turn: that of the session where what is given fits, else its sibling."""
        if MODES[self.mode][0] == heard:
            return self.mode
        return {(True, True): "S2M", (True, False): "S2T", (False, True): "T2M", (False, False): "T2T"}[
            heard, MODES[self.mode][1]
        ]

    def _decode(self, pieces: list[Piece]) -> Decoded:
        spoken, seeds = MODES[self.mode][1], [self.decoding.seed + self.turns]
        opening: list[Piece] = [[self.chat.audio_bos]] if spoken else []
        batch = prompt_batch([[*self._unseen, *pieces, *opening]], self.chat, self.model.geometry)
        with evaluating(self.model), torch.inference_mode():
            state, memory = self._state, self._memory
            hidden = read_prompt(self.model, batch, state, memory, self._before)
            return decode_reply(self.model, self.chat, state, hidden, self.decoding, seeds, spoken, self.reply, memory)

    def _close(self, decoded: Decoded) -> None:
        """Remember what ends the assistant's turn. A cut reply is closed as if it had ended by itself."""
        close, self._before = self.chat.close(), decoded
        if not decoded.finished.item():
            self._unseen = [[self.chat.audio_eos, *close]] if decoded.codes is not None else [close]
        elif decoded.codes is not None:
            self._unseen = [close]  # the pending position is <|audio_eos|>
        else:
            self._unseen = [close[1:]]  # the pending position is <|im_end|>
        self.turns += 1
