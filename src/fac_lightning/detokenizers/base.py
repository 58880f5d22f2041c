"""The slot ``detokenizer``: codes -> waveform."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.types import Waveforms

__all__ = ["SpeechDetokenizer"]


class SpeechDetokenizer(nn.Module, ABC):
    """Speak codes, at once or as they come.

    Contract (``fac_lightning.testing.check_detokenizer``): ``T`` frames give ``T * hop_length`` samples; padding
    changes no sample; an utterance streamed in chunks has as many samples as in one piece, and streams do not disturb
    each other; all runs without gradients.

    A state belongs to one utterance and to who asked for it. It holds what was not spoken yet, because the part needs
    to see what follows; nothing of an utterance is kept on the part.
    """

    sample_rate: int  # Hz of the waveforms given
    hop_length: int  # samples per frame
    num_codebooks: int  # Q
    codebook_size: int  # codes per codebook
    codes_name: str | None = None  # of the codes spoken, as tokenizers name theirs; None speaks any

    @property
    def frame_rate(self) -> float:
        """Frames per second, Hz."""
        return self.sample_rate / self.hop_length

    @abstractmethod
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        """Waveforms ``(B, T * hop_length)`` of codes ``(B, T, Q)``; ``lengths`` ``(B,)`` in frames."""

    @abstractmethod
    def new_state(self) -> Any:
        """State of a fresh utterance for ``stream``."""

    @abstractmethod
    def stream(self, codes: Tensor, state: Any, final: bool = False) -> Tensor:
        """Samples ``(S,)`` that can be spoken now.

        Args:
            codes: ``(T, Q)`` that follow those already given; may be empty.
            state: What ``new_state`` gave; it moves on.
            final: Nothing follows: speak all that is left.
        """

    def check_codes(self, codes: Tensor, lengths: Tensor | None = None) -> None:
        """Refuse what is no grid of codes ``(..., Q)``, special codes included; rows ``(B, T, Q)`` with ``lengths``.

        Raises:
            ValueError: Says what is wrong.
        """
        if codes.shape[-1] != self.num_codebooks:
            raise ValueError(
                f"codes have {codes.shape[-1]} codebooks, {type(self).__name__} speaks {self.num_codebooks}"
            )
        if lengths is not None:
            codes = codes[torch.arange(codes.shape[1], device=codes.device) < lengths[:, None]]
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(
                f"codes must lie in [0, {self.codebook_size}), got {int(codes.min())} to {int(codes.max())}; "
                "cut off special codes (bos, eos, pad) before decoding"
            )
