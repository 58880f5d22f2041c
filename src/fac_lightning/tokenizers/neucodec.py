"""NeuCodec (https://arxiv.org/abs/2509.09550), the codec of NeuTTS, as transformers builds it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from fac_lightning.tokenizers.xcodec2_base import XCodec2Base

__all__ = ["NeuCodecTokenizer"]


class NeuCodecTokenizer(XCodec2Base):
    """One codebook of 65536 codes at 50 frames a second, from 16 kHz, spoken at 24 kHz.

    It is not causal: encoder and decoder attend over the whole clip. Clips are filled with silence to whole frames
    first; the released scripts drop the rest behind the last whole frame.

    Args:
        name: Hub id or folder of the model in transformers' format.
        pretrained: Load weights of ``name``; if false they are drawn from ``seed``, for tests without a network.
        config: Arguments of transformers' ``NeuCodecConfig`` for a model without weights; excludes ``pretrained``.
        seed: Of random weights, which are the same in every process.

    Raises:
        ImportError: The installed transformers has no such model.
    """

    def __init__(
        self,
        name: str = "neuphonic/neucodec",
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__("NeuCodecModel", name, "neuphonic/neucodec", pretrained, config, seed)

    @property
    def output_rate(self) -> int:
        """Hz of the waveforms given."""
        return int(self.model.config.output_sampling_rate)

    def encode_rows(self, audio: Tensor) -> Tensor:
        """Codes ``(B, T, 1)`` of waveforms ``(B, T * 320)``."""
        audio = F.pad(audio, (0, self.hop_length))  # filter banks lie whole inside, so they end a frame earlier
        return self.quantize(audio, audio)
