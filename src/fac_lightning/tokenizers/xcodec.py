"""X-Codec (https://arxiv.org/abs/2408.17175) as transformers builds it: DAC that also listens through HuBERT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fac_lightning.tokenizers.frozen import FrozenCodec
from fac_lightning.tokenizers.pretrained import draw_codebooks, load_codec, noise, output_of

__all__ = ["XCodecTokenizer"]


class XCodecTokenizer(FrozenCodec):
    """Residual codes of X-Codec: 50 frames a second of ``num_codebooks`` codes out of 1024, at 16 kHz.

    Frames of a speech model are quantised together with those of the sound, so that the first codebooks hold what is
    said. It is not causal: both listen to the whole clip.

    Args:
        name: Hub id or folder of the model; ``hf-audio`` has five, for speech and for any sound.
        num_codebooks: Codebooks used, the coarsest first; at most 8.
        pretrained: Load weights of ``name``; if false they are drawn from ``seed``, for tests without a network.
        config: Arguments of transformers' ``XcodecConfig`` for a model without weights; excludes ``pretrained``.
        seed: Of random weights, which are the same in every process.
    """

    def __init__(
        self,
        name: str = "hf-audio/xcodec-hubert-librispeech",
        num_codebooks: int = 8,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        from transformers import XcodecModel

        sizes: dict[str, dict[str, Any]] = {"hf-audio/xcodec-hubert-librispeech": {}}
        self.model: Any = load_codec(XcodecModel, name, pretrained, config, seed, sizes)
        settings = self.model.config
        if not 1 <= num_codebooks <= settings.num_quantizers:
            raise ValueError(f"num_codebooks must be between 1 and {settings.num_quantizers}, got {num_codebooks}")
        self.sample_rate, self.hop_length = int(settings.sample_rate), int(settings.hop_length)
        self.num_codebooks, self.codebook_size = num_codebooks, int(settings.codebook_size)
        if not pretrained:
            with output_of(self.model.fc) as found:
                self.encode_rows(noise(self.hop_length, seed)[0])
            draw_codebooks(self.model.quantizer.quantizers, found[0].transpose(1, 2), seed)

    @torch.no_grad()
    def encode_rows(self, audio: Tensor) -> Tensor:
        """Codes ``(B, T, Q)`` of waveforms ``(B, T * hop_length)``."""
        codes: Tensor = self.model.encode(audio[:, None], return_dict=True).audio_codes
        return codes[:, : self.num_codebooks].transpose(1, 2)

    def decode_rows(self, codes: Tensor) -> Tensor:
        """Waveforms ``(B, T * hop_length)`` of codes ``(B, T, q)``."""
        audio: Tensor = self.model.decode(codes.transpose(1, 2), return_dict=True).audio_values
        return audio[:, 0]
