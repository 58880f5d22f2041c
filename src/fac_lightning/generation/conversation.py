"""What is said in the turns of a conversation, and what of it the model has not seen yet."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fac_lightning.generation.prompt import Piece, UserTurn, reply_opening, user_pieces
from fac_lightning.generation.stepping import Decoded
from fac_lightning.prompts import MODES, ChatFormat, Mode

__all__ = ["Conversation"]


class Conversation:
    """The turns of one conversation, laid out as a training row would be.

    After a reply, the closing marks of the assistant's turn are read together with the next user turn.

    Args:
        chat: Token ids of the marks.
        mode: How turns are given and answered, one of ``MODES``. A turn of the other kind is taken as well.
        system: System prompt.
    """

    def __init__(self, chat: ChatFormat, mode: str, system: str) -> None:
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
        self.chat, self.mode = chat, mode
        self.turns = 0  # answered so far
        self.unseen: list[Piece] = [chat.system(system)]  # what the backbone must read before the next user turn
        self.before: Decoded | None = None  # the reply before, whose last position the backbone has not seen

    def ask(self, text: str | None, audio: Tensor | np.ndarray | None) -> tuple[list[Piece], Mode]:
        """The pieces of what the user says, and the mode of the answer.

        Raises:
            ValueError: Nothing is given.
        """
        if text is None and audio is None:
            raise ValueError("nothing to answer: give text=... or audio=...")
        mode = MODES[self.mode].given(audio is not None)
        return user_pieces(self.chat, UserTurn(text, audio), self._turn_name(mode)), mode

    def row(self, pieces: list[Piece], mode: Mode) -> list[Piece]:
        """All that the model must read before it answers a turn."""
        return [*self.unseen, *pieces, *reply_opening(self.chat, mode)]

    def close(self, decoded: Decoded) -> None:
        """Remember what ends the assistant's turn. A cut reply is closed as if it had ended by itself."""
        close, self.before = self.chat.close(), decoded
        speaks = decoded.codes is not None and (decoded.chain is None or bool(decoded.chain.opened.item()))
        if not decoded.finished.item():  # <|audio_eos|> only where <|audio_bos|> was
            self.unseen = [[self.chat.audio_eos, *close]] if speaks else [close]
        elif decoded.codes is not None:
            self.unseen = [close]  # the pending position is <|audio_eos|>
        else:
            self.unseen = [close[1:]]  # the pending position is <|im_end|>
        self.turns += 1

    def _turn_name(self, mode: Mode) -> str:
        """The mode by which a turn is given: that of the conversation where what is given fits, else its sibling."""
        if MODES[self.mode].hears == mode.hears:
            return self.mode
        return f"{'S' if mode.hears else 'T'}2{'M' if mode.speaks else 'T'}"
