"""Tokenizers whose codes have no decoder of their own: somebody else must speak them."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import Waveforms

__all__ = ["DetokenizedTokenizer"]


class Detokenizer(Protocol):
    """What a tokenizer asks of ``detokenizer``; every ``SpeechDetokenizer`` gives it."""

    sample_rate: int
    num_codebooks: int
    codebook_size: int
    codes_name: str | None

    @property
    def frame_rate(self) -> float:
        """Hz."""

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        """Waveforms of codes ``(B, T, Q)``."""


class DetokenizedTokenizer(SpeechTokenizer):
    """A tokenizer that decodes through a part it was given, or not at all.

    A subclass sets its sizes and ``codes_name``, then calls :meth:`take_detokenizer`.
    """

    kind: str  # what the codes are called, for messages
    example: str  # a detokenizer that may be named, for messages
    detokenizer: nn.Module | None

    def take_detokenizer(self, detokenizer: nn.Module | None, source: str = "") -> None:
        """Keep a detokenizer that speaks codes of this rate and size; ``source`` says where the codes come from.

        Raises:
            ValueError: If it speaks other codes.
        """
        self.detokenizer = detokenizer
        if detokenizer is None:
            return
        part = cast(Detokenizer, detokenizer)
        found = (part.frame_rate, part.num_codebooks, part.codebook_size)
        due = (self.frame_rate, self.num_codebooks, self.codebook_size)
        if found != due:
            raise ValueError(
                f"detokenizer speaks {found[1]} x {found[2]} codes at {found[0]:g} Hz, but {self.kind} gives "
                f"{due[1]} x {due[2]} at {due[0]:g} Hz; name one made for {self.kind}, such as {self.example}"
            )
        if self.codes_name and part.codes_name and self.codes_name != part.codes_name:
            raise ValueError(
                f"detokenizer speaks the codes of {part.codes_name}, but {source} make those of {self.codes_name}: "
                f"the same numbers mean other sounds; name weights of {part.codes_name}"
            )
        self.codes_name = self.codes_name or part.codes_name

    @property
    def output_rate(self) -> int:
        """Hz of the waveforms that ``decode`` gives: those of the detokenizer."""
        return self.sample_rate if self.detokenizer is None else cast(Detokenizer, self.detokenizer).sample_rate

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        """Waveforms at ``output_rate`` of codes ``(B, T, Q)``; ``lengths`` ``(B,)`` in frames.

        Raises:
            ValueError: If this tokenizer was built without a detokenizer.
        """
        if self.detokenizer is None:
            name = type(self).__name__
            raise ValueError(
                f"{self.kind} codes have no decoder of their own and this {name} was given none: pass "
                f"{name}(detokenizer=...), for example fac_lightning.detokenizers.{self.example}"
            )
        return cast(Detokenizer, self.detokenizer).decode(codes, lengths)
