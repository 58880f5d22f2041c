"""One reply among many: what was asked, how far it is, and what was said so far.

Legend: V vocabulary, k frames of a group, Q codebooks, M positions of the reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fac_lightning.generation.chunks import ReplyChunk, ReplyChunks
from fac_lightning.generation.memory import HeadMemory
from fac_lightning.generation.prompt import Piece
from fac_lightning.generation.reply import Reply
from fac_lightning.generation.row_memory import RowMemory
from fac_lightning.generation.sampling import Decoding, uniforms
from fac_lightning.generation.stepping import Chain, Decoded
from fac_lightning.prompts import ChatFormat, Mode

if TYPE_CHECKING:
    from fac_lightning.generation.engine_session import EngineSession

__all__ = ["EngineChunk", "SpeechRequest"]


@dataclass(frozen=True, eq=False)
class EngineChunk:
    """What a step added to one of the replies under way."""

    request: SpeechRequest
    chunk: ReplyChunk


class SpeechRequest:
    """A reply that was asked for. Read ``reply``, ``over``, ``running`` and ``cancelled``; the engine writes the rest.

    Args:
        mode: Of the answer.
        decoding: Sampling, seed and the longest reply.
        pieces: What the model must read first.
        session: The conversation that it belongs to.
        memory: What the head remembers of it; None where nothing is to be said.
    """

    def __init__(
        self,
        mode: Mode,
        decoding: Decoding,
        pieces: list[Piece],
        session: EngineSession | None = None,
        memory: HeadMemory | RowMemory | None = None,
    ) -> None:
        self.mode, self.decoding, self.pieces, self.session, self.memory = mode, decoding, pieces, session, memory
        self.reply: Reply | None = None  # the whole, once it is over
        self.cancelled = self.running = False  # it was stopped; it has a slot
        self.tokens: list[int] = []  # of the reply
        self.chain: list[int] = []
        self.opened = self.finished = False  # the chain ended by itself; the reply did
        self.groups: list[Tensor] = []  # (k, Q) on CPU per position
        self.kept: list[Tensor] = []  # (k,) bool per position, real codes
        self.seen_text: Tensor | None = None  # (V,) bool, where repetition is penalised
        self.seen_codes: Tensor | None = None  # (Q, V) bool
        self.hidden: Tensor | None = None  # (1, D), behind which the next position is chosen
        self.voice = -1  # row of the head

    def begin(self, chat: ChatFormat, chunks: ReplyChunks, draws: int) -> None:
        """Get ready: ``draws`` are the codes of a position."""
        mode, decoding = self.mode, self.decoding
        self.chat, self.chunks, self.limit = chat, chunks, decoding.max_positions
        self.writes, self.speaks, self.leads = mode.chains, mode.speaks, True  # a chain; speech is due; no code was
        self.noise: Tensor | None = None  # (M, 1 + k * Q + 1 of a chain); None when nothing is drawn
        if decoding.text.temperature > 0 or (mode.speaks and decoding.speech.temperature > 0):
            shape = (decoding.max_positions, 1 + (draws if mode.speaks else 0) + mode.chains)
            self.noise = uniforms([decoding.seed], shape)[0]

    @property
    def over(self) -> bool:
        """Whether nothing will come any more."""
        return self.reply is not None or self.cancelled

    @property
    def ended(self) -> bool:
        """Whether all was said."""
        return self.finished or (not self.writes and len(self.tokens) >= self.limit)

    @property
    def stop(self) -> int:
        """The mark that ends the text which is being said."""
        if self.writes:
            return self.chat.audio_bos
        return self.chat.audio_eos if self.mode.speaks else self.chat.im_end

    @property
    def forbids_end(self) -> bool:
        """Whether the text cannot end now, because speech goes on."""
        return self.speaks and not self.writes

    @property
    def listens(self) -> bool:
        """Whether the head speaks again behind positions at which it says nothing."""
        return self.speaks or self.session is not None

    def uniform(self) -> float:
        """The random number of the next text token."""
        if self.noise is None:
            return 0.0
        return float(self.noise[len(self.chain), -1] if self.writes else self.noise[len(self.tokens), 0])

    def uniforms(self, draws: int) -> Tensor:
        """The random numbers ``(k * Q,)`` of the next group."""
        return torch.zeros(draws) if self.noise is None else self.noise[len(self.tokens), 1 : 1 + draws]

    def write(self, token: int) -> None:
        """A token of the chain was chosen."""
        self.chain.append(token)
        longest = self.decoding.max_positions
        self.opened = token == self.stop
        if self.opened or len(self.chain) == longest:
            self.writes, self.seen_text = False, None
            self.limit = longest - len(self.chain)

    def say(self, token: int, group: Tensor, kept: Tensor) -> None:
        """A position was chosen: its token, and on CPU its group ``(k, Q)`` and which frames are speech ``(k,)``."""
        self.finished = token == self.stop
        self.tokens.append(token)
        if self.mode.speaks:
            self.groups.append(group)
            self.kept.append(kept)

    def next_chunk(self) -> ReplyChunk:
        """What the newest position added."""
        token = None if self.finished else self.tokens[-1]
        return self.chunks.next(token, self.groups[-1][self.kept[-1]] if self.mode.speaks else None)

    def decoded(self, pending: Tensor, pending_text: Tensor, num_codebooks: int) -> Decoded:
        """What was said, in the form of a batch of one row.

        Args:
            pending: ``(1, D)``, the last position chosen.
            pending_text: ``(1, D)``, its text token alone.
            num_codebooks: Q.
        """
        ids = torch.tensor([self.tokens], dtype=torch.int64)
        codes, kept, chain = None, None, None
        if self.mode.speaks:
            none = torch.zeros(0, num_codebooks, dtype=torch.int64)
            codes = torch.cat([none, *self.groups])[None]
            kept = torch.cat([torch.zeros(0, dtype=torch.bool), *self.kept])[None]
        if self.mode.chains:
            written = torch.tensor([self.chain[:-1] if self.opened else self.chain], dtype=torch.int64)
            chain = Chain(written, torch.ones_like(written, dtype=torch.bool), torch.tensor([self.opened]))
        return Decoded(
            text_ids=ids,
            text_kept=ids != self.stop,
            codes=codes,
            codes_kept=kept,
            finished=torch.tensor([self.finished]),
            pending=pending[:, None],
            pending_text=pending_text[:, None],
            chain=chain,
        )
