"""X-Codec 2 (https://arxiv.org/abs/2502.04128), the codec of Llasa, as transformers builds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fac_lightning.tokenizers.xcodec2_base import XCodec2Base
from fac_lightning.types import SpeechCodes

__all__ = ["XCodec2Tokenizer"]


class XCodec2Tokenizer(XCodec2Base):
    """One codebook of 65536 codes at 50 frames a second, 16 kHz.

    It is not causal: encoder and decoder attend over the whole clip. Released scripts put silence behind every clip, a
    whole frame of it behind one that ends with a frame, and so does this; the code of nothing but silence is dropped.

    Args:
        name: Hub id or folder of the model in transformers' format.
        pretrained: Load weights of ``name``; if false they are drawn from ``seed``, for tests without a network.
        config: Arguments of transformers' ``Xcodec2Config`` for a model without weights; excludes ``pretrained``.
        seed: Of random weights, which are the same in every process.

    Raises:
        ImportError: The installed transformers has no such model.
    """

    def __init__(
        self,
        name: str = "HKUSTAudio/xcodec2-hf",
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__("Xcodec2Model", name, "HKUSTAudio/xcodec2-hf", pretrained, config, seed)

    @torch.no_grad()
    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechCodes:
        """Codes ``(B, ceil(S / 320), 1)`` of waveforms ``(B, S)`` at 16 kHz; ``lengths`` ``(B,)`` in samples."""
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        audio = audio.masked_fill(torch.arange(audio.shape[1], device=audio.device) >= lengths[:, None], 0)
        found = super().encode(F.pad(audio, (0, 1)), lengths + 1).codes  # the sample of silence that begins a frame
        frames = -(-lengths // self.hop_length)
        codes = found[:, : self.num_frames(audio.shape[1])]
        beyond = torch.arange(codes.shape[1], device=audio.device) >= frames[:, None]
        return SpeechCodes(codes.masked_fill(beyond[..., None], 0), frames)

    def encode_rows(self, audio: Tensor) -> Tensor:
        """Codes ``(B, T, 1)`` of waveforms ``(B, T * 320)``."""
        return self.quantize(audio, F.pad(audio, (self.hop_length // 2, self.hop_length // 2)))
