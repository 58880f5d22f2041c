"""EnCodec (https://arxiv.org/abs/2210.13438) as transformers builds it: many codebooks, any voice, any sound."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechCodes, Waveforms

__all__ = ["EncodecTokenizer"]


class EncodecTokenizer(SpeechTokenizer):
    """Residual codes of EnCodec: 75 frames a second of ``num_codebooks`` codes out of 1024, at 24 kHz.

    Rows are filled with silence to whole frames and run in groups of equal length, so that neither padding nor the
    mirrored edges of the convolutions reach a code.

    Args:
        name: Hub id or folder of the model.
        num_codebooks: Codebooks used, the coarsest first; the bandwidth follows from it (8 are 6 kbit/s).
        pretrained: Load weights of ``name``; if false they are drawn from ``seed``, for tests without a network.
        config: Arguments of transformers' ``EncodecConfig`` for a model without weights; excludes ``pretrained``.
        seed: Of random weights, which are the same in every process.
    """

    def __init__(
        self,
        name: str = "facebook/encodec_24khz",
        num_codebooks: int = 8,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if pretrained and config is not None:
            raise ValueError("config describes a model without weights: set pretrained to false, or leave config out")
        from transformers import EncodecConfig, EncodecModel

        self.model: Any
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = (
                EncodecModel.from_pretrained(name) if pretrained else EncodecModel(EncodecConfig(**(config or {})))
            )
            settings = self.model.config
            mono = settings.audio_channels == 1 and not settings.normalize and settings.chunk_length_s is None
            if mono and not pretrained:
                _fill_codebooks(self.model)
        self.model.requires_grad_(False)
        if not mono:
            raise ValueError(
                f"{name!r} is stereo, scales its input or cuts it into chunks, which codes alone do not undo; "
                "take a mono model such as facebook/encodec_24khz"
            )
        if not 1 <= num_codebooks <= settings.num_quantizers:
            raise ValueError(f"num_codebooks must be between 1 and {settings.num_quantizers}, got {num_codebooks}")
        self.sample_rate, self.hop_length = int(settings.sampling_rate), int(settings.hop_length)
        self.num_codebooks, self.codebook_size = num_codebooks, int(settings.codebook_size)

    @property
    def bandwidth(self) -> float:
        """Bit rate of the codes, kbit/s, counted as transformers does (frames a second rounded up)."""
        return self.num_codebooks * math.log2(self.codebook_size) * int(self.model.config.frame_rate) / 1000

    @torch.no_grad()
    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechCodes:
        """Codes ``(B, ceil(S / hop_length), Q)`` of waveforms ``(B, S)``; ``lengths`` ``(B,)`` in samples."""
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        frames = -(-lengths // self.hop_length)
        longest = self.num_frames(audio.shape[1])
        audio = F.pad(audio, (0, longest * self.hop_length - audio.shape[1]))
        audio = audio * (torch.arange(audio.shape[1], device=audio.device) < lengths[:, None])
        codes = torch.zeros(audio.shape[0], longest, self.num_codebooks, dtype=torch.long, device=audio.device)
        for count in frames.unique().tolist():
            if count == 0:
                continue
            rows = (frames == count).nonzero().squeeze(1)
            embeds = self.model.encoder(audio[rows, None, : count * self.hop_length])  # (b, D, T)
            found = self.model.quantizer.encode(embeds, self.bandwidth * (1 + 1e-6))  # (Q, b, T)
            codes[rows, :count] = found[..., :count].permute(1, 2, 0)
        return SpeechCodes(codes, frames)

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        """Waveforms ``(B, T * hop_length)`` of codes ``(B, T, q)`` with ``q`` up to ``Q``; ``lengths`` in frames.

        Raises:
            ValueError: If a code is outside ``[0, codebook_size)``.
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(
                f"codes must lie in [0, {self.codebook_size}), got {int(codes.min())} to {int(codes.max())}; "
                "cut off special codes (bos, eos, pad) before decoding"
            )
        if lengths is None:
            lengths = torch.full((codes.shape[0],), codes.shape[1], device=codes.device)
        audio = torch.zeros(codes.shape[0], codes.shape[1] * self.hop_length, device=codes.device)
        for count in lengths.unique().tolist():
            if count == 0:
                continue
            rows = (lengths == count).nonzero().squeeze(1)
            embeds = self.model.quantizer.decode(codes[rows, :count].permute(2, 0, 1))
            audio[rows, : count * self.hop_length] = self.model.decoder(embeds)[:, 0, : count * self.hop_length]
        return Waveforms(audio, lengths * self.hop_length, self.sample_rate)


@torch.no_grad()
def _fill_codebooks(model: Any) -> None:
    """Draw codebooks around the random encoder's answer to noise; transformers leaves them at zero, all codes alike."""
    loudness = torch.linspace(0.01, 1, 64).repeat_interleave(model.config.hop_length)
    residual = model.eval().encoder((torch.randn(len(loudness)) * loudness)[None, None])  # (1, D, T)
    for layer in model.quantizer.layers:
        spread, mean = torch.std_mean(residual[0], dim=1)
        layer.codebook.embed.normal_().mul_(spread).add_(mean)
        residual = residual - layer.decode(layer.encode(residual))
