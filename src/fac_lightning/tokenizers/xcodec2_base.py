"""What X-Codec 2 and NeuCodec share: sound and w2v-BERT's frames in one codebook of finite scalars."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from fac_lightning.kaldi_fbank import kaldi_fbank
from fac_lightning.tokenizers.frozen import FrozenCodec
from fac_lightning.tokenizers.pretrained import load_codec, noise, output_of

__all__ = ["XCodec2Base"]

SAMPLE_RATE = 16000
HOP_LENGTH = 320  # two filter banks, which are one frame of w2v-BERT


class XCodec2Base(FrozenCodec):
    """One code in 20 ms, from 16 kHz.

    transformers' feature extractors of these models compute filter banks with torchaudio; here they are computed
    without, to the same numbers.

    Args:
        kind: Name of the model's class in transformers.
        name: Hub id or folder of the model.
        released: The hub id whose sizes are transformers' defaults.
        pretrained: Load weights of ``name``; if false they are drawn.
        config: Arguments of the model's configuration, for a model without weights.
        seed: Of random weights.
    """

    def __init__(
        self, kind: str, name: str, released: str, pretrained: bool, config: dict[str, Any] | None, seed: int
    ) -> None:
        super().__init__()
        import transformers

        if not hasattr(transformers, kind):
            raise ImportError(
                f"{type(self).__name__} needs {kind}, which transformers {transformers.__version__} does not have: "
                "pip install -U transformers"
            )
        self.model: Any = load_codec(getattr(transformers, kind), name, pretrained, config, seed, {released: {}})
        settings = self.model.config
        hop = math.prod(settings.downsampling_ratios)
        if hop != HOP_LENGTH:
            raise ValueError(
                f"downsampling_ratios {list(settings.downsampling_ratios)} make a frame of {hop} samples, but that of "
                f"w2v-BERT has {HOP_LENGTH}, and both are quantised together; take ratios whose product is {HOP_LENGTH}"
            )
        self.sample_rate, self.hop_length = SAMPLE_RATE, HOP_LENGTH
        self.num_codebooks, self.codebook_size = 1, math.prod(settings.quantization_levels)
        if not pretrained:
            self._spread(seed)

    @abstractmethod
    def encode_rows(self, audio: Tensor) -> Tensor:
        """Codes ``(B, T, 1)`` of waveforms ``(B, T * hop_length)``."""

    def quantize(self, audio: Tensor, heard: Tensor) -> Tensor:
        """Codes ``(B, T, 1)``.

        Args:
            audio: ``(B, S)`` as the encoder of sound takes it.
            heard: ``(B, S')`` whose filter banks w2v-BERT takes; two of them a code, or one code less.
        """
        width = self.model.config.semantic_model_config.feature_projection_input_dim
        bands = kaldi_fbank(heard, width // 2)  # (B, 2 T, n_mels)
        spread, mean = torch.var_mean(bands, 1, keepdim=True)
        bands = (bands - mean) / (spread + 1e-7).sqrt()
        codes: Tensor = self.model.encode(audio[:, None], bands.unflatten(1, (-1, 2)).flatten(2)).audio_codes
        return codes.transpose(1, 2).long()

    def decode_rows(self, codes: Tensor) -> Tensor:
        """Waveforms ``(B, S)`` of codes ``(B, T, 1)``."""
        audio: Tensor = self.model.decode(codes.transpose(1, 2)).audio_values
        return audio[:, 0]

    @torch.no_grad()
    def _spread(self, seed: int) -> None:
        """Let random weights answer noise with all levels of every number; they would give one code for all."""
        project = self.model.quantizer.project_in
        with output_of(project) as found:
            self.encode_rows(noise(self.hop_length, seed)[0])
        deviation, mean = torch.std_mean(found[0][0], 0)
        project.bias.sub_(mean).div_(deviation)
        project.weight.div_(deviation[:, None])
