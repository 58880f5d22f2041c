"""The Descript Audio Codec (https://arxiv.org/abs/2306.06546) as transformers builds it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fac_lightning.tokenizers.frozen import FrozenCodec
from fac_lightning.tokenizers.pretrained import load_codec

__all__ = ["DACTokenizer"]

#: What differs between the released models and the defaults of transformers' DacConfig.
RELEASED: dict[str, dict[str, Any]] = {
    "descript/dac_16khz": {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 12, "sampling_rate": 16000},
    "descript/dac_24khz": {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 32, "sampling_rate": 24000},
    "descript/dac_44khz": {"downsampling_ratios": [2, 4, 8, 8], "n_codebooks": 9, "sampling_rate": 44100},
}


class DACTokenizer(FrozenCodec):
    """Residual codes of DAC out of 1024: 50 frames a second at 16 kHz, 75 at 24 kHz, 86 at 44.1 kHz.

    It is not causal: a sample is heard when the codes around it are known. Strides that are odd cost the decoder a few
    samples at the end, 8 of any clip at 16 and 24 kHz; these are silence here.

    Args:
        name: Hub id (``descript/dac_16khz``, ``descript/dac_24khz``, ``descript/dac_44khz``) or folder of the model.
        num_codebooks: Codebooks used, the coarsest first; at most 12, 32 and 9 for the three.
        pretrained: Load weights of ``name``; if false they are drawn from ``seed``, for tests without a network.
        config: Arguments of transformers' ``DacConfig`` for a model without weights; excludes ``pretrained``.
        seed: Of random weights, which are the same in every process.
    """

    def __init__(
        self,
        name: str = "descript/dac_16khz",
        num_codebooks: int = 8,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        from transformers import DacModel

        self.model: Any = load_codec(DacModel, name, pretrained, config, seed, RELEASED)
        settings = self.model.config
        if not 1 <= num_codebooks <= settings.n_codebooks:
            raise ValueError(f"num_codebooks must be between 1 and {settings.n_codebooks}, got {num_codebooks}")
        self.sample_rate, self.hop_length = int(settings.sampling_rate), int(settings.hop_length)
        self.num_codebooks, self.codebook_size = num_codebooks, int(settings.codebook_size)

    def encode_rows(self, audio: Tensor) -> Tensor:
        """Codes ``(B, T, Q)`` of waveforms ``(B, T * hop_length)``."""
        codes: Tensor = self.model.encode(audio[:, None], n_quantizers=self.num_codebooks).audio_codes
        return codes.transpose(1, 2)

    def decode_rows(self, codes: Tensor) -> Tensor:
        """Waveforms ``(B, S)`` of codes ``(B, T, q)``."""
        audio: Tensor = self.model.decode(audio_codes=codes.transpose(1, 2)).audio_values
        return audio
