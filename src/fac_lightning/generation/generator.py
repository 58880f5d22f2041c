"""Answering many single turns at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fac_lightning.generation.memory import BackboneState, HeadMemory
from fac_lightning.generation.prompt import Piece, UserTurn, prompt_batch, reply_opening, user_pieces
from fac_lightning.generation.reply import Reply, build_replies
from fac_lightning.generation.sampling import Decoding
from fac_lightning.generation.session import Session
from fac_lightning.generation.stepping import Decoded, decode_reply, read_prompt
from fac_lightning.generation.streams import evaluating
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import MODES, SYSTEM_PROMPTS, ChatFormat, Mode
from fac_lightning.replies import ReplyRule, reply_rule
from fac_lightning.tokenizers.base import SpeechTokenizer

__all__ = ["Generator"]


class Generator:
    """Talk to a speech LLM. Holds no state of any conversation.

    Args:
        model: The speech LLM; it runs in eval mode and is left as it was.
        chat: Token ids of the chat format it was trained on.
        tokenizer: Gives replies a waveform; without it they have codes only.
        lead_in: Groups of ``bos`` codes before speech: short for ``reply=FrameEnd(lead_in)``.
        system_prompts: Mode -> system prompt, where it differs from ``SYSTEM_PROMPTS``.
        reply: How spoken replies lie, as in training; give this or ``lead_in``.
    """

    def __init__(
        self,
        model: SpeechLM,
        chat: ChatFormat,
        tokenizer: SpeechTokenizer | None = None,
        lead_in: int = 0,
        system_prompts: dict[str, str] | None = None,
        reply: ReplyRule | None = None,
    ) -> None:
        unknown = sorted(set(system_prompts or ()) - set(MODES))
        if unknown:
            raise ValueError(f"system_prompts has unknown modes {unknown}; the modes are {', '.join(MODES)}")
        self.model, self.chat, self.tokenizer, self.reply = model, chat, tokenizer, reply_rule(lead_in, reply)
        self.system_prompts = {**SYSTEM_PROMPTS, **(system_prompts or {})}

    def generate(self, turns: Sequence[UserTurn], mode: str = "S2M", decoding: Decoding | None = None) -> list[Reply]:
        """One reply per user turn. Each is what the turn gives alone; row ``i`` draws from ``seed + i``.

        Args:
            turns: What the users say, one turn each.
            mode: One of ``MODES``.
            decoding: Sampling and the longest reply; greedy by default.

        Raises:
            ValueError: The mode is unknown, a turn lacks what the mode needs, or the model lacks a part for it.
        """
        if not turns:
            return []
        decoding = decoding or Decoding()
        rows = [self._pieces(turn, mode) for turn in turns]
        seeds = [decoding.seed + row for row in range(len(rows))]
        decoded = self._decode(rows, MODES[mode], decoding, seeds)
        return build_replies(decoded, self.chat, self.tokenizer, MODES[mode])

    def session(self, mode: str = "S2M", system: str | None = None, decoding: Decoding | None = None) -> Session:
        """A conversation of many turns that keeps its caches."""
        prompt = self.system_prompts.get(mode, "") if system is None else system
        return Session(self.model, self.chat, mode, prompt, self.tokenizer, self.reply, decoding)

    def _pieces(self, turn: UserTurn, mode: str) -> list[Piece]:
        turn_pieces = user_pieces(self.chat, turn, mode)
        return [self.chat.system(self.system_prompts[mode]), *turn_pieces, *reply_opening(self.chat, MODES[mode])]

    def _decode(self, rows: list[list[Piece]], mode: Mode, decoding: Decoding, seeds: list[int]) -> Decoded:
        with evaluating(self.model), torch.inference_mode():
            state = BackboneState(self.model, len(rows))
            memory = HeadMemory(self.model, len(rows)) if mode.speaks else None
            batch = prompt_batch(rows, self.chat, self.model.geometry)
            hidden = read_prompt(self.model, batch, state, memory)
            return decode_reply(self.model, self.chat, state, hidden, decoding, seeds, mode, self.reply, memory)
