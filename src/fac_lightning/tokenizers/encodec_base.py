"""What EnCodec's tokenizers share, whichever library built the network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.tokenizers.frozen import FrozenCodec
from fac_lightning.tokenizers.pretrained import draw_codebooks, noise
from fac_lightning.tokenizers.seanet import stream_layers

__all__ = ["EncodecBase"]


class EncodecBase(FrozenCodec):
    """Residual codes of a network with ``encoder``, ``quantizer`` and ``decoder``.

    Args:
        model: The network, of transformers or of the package ``encodec``.
        sample_rate: Hz.
        hop_length: Samples per frame.
        num_codebooks: Codebooks of a code grid, the network's coarsest first.
    """

    own_codebooks: int = 0  # those of num_codebooks that are not the network's

    def __init__(self, model: Any, sample_rate: int, hop_length: int, num_codebooks: int) -> None:
        super().__init__()
        self.model = model
        lowest, highest = 1 + self.own_codebooks, len(self.quantizers) + self.own_codebooks
        if not lowest <= num_codebooks <= highest:
            raise ValueError(f"num_codebooks must be between {lowest} and {highest}, got {num_codebooks}")
        self.sample_rate, self.hop_length, self.num_codebooks = sample_rate, hop_length, num_codebooks
        self.codebook_size = 2**model.bits_per_codebook

    @property
    def quantizers(self) -> Any:
        """The residual quantisers in a ``ModuleList``, the coarsest first."""
        quantizer = self.model.quantizer
        return quantizer.layers if hasattr(quantizer, "layers") else quantizer.vq.layers

    @property
    def bandwidth(self) -> float:
        """Bit rate of the network's codes, kbit/s, counted as EnCodec does (frames a second rounded up)."""
        bits = (self.num_codebooks - self.own_codebooks) * math.log2(self.codebook_size)
        return bits * math.ceil(self.frame_rate) / 1000

    @torch.no_grad()
    def draw(self, seed: int, channels: int = 1) -> None:
        """Give a network of random weights codebooks that fit them."""
        embeds = self.model.encoder(noise(self.hop_length, seed).expand(-1, channels, -1))
        draw_codebooks(self.quantizers, embeds, seed)

    def encode_rows(self, audio: Tensor) -> Tensor:
        """Codes ``(B, T, Q)`` of waveforms ``(B, T * hop_length)``."""
        return self.quantize(self.model.encoder(audio[:, None]))

    def decode_rows(self, codes: Tensor) -> Tensor:
        """Waveforms ``(B, T * hop_length)`` of codes ``(B, T, q)``."""
        audio: Tensor = self.model.decoder(self.embed(codes))
        return audio[:, 0]

    def stream_rows(self, codes: Tensor, memory: dict[Any, Any]) -> Tensor:
        """Waveforms ``(B, t * hop_length)`` of the next codes ``(B, t, q)``."""
        decoder = self.model.decoder
        layers: Iterable[nn.Module] = decoder.layers if hasattr(decoder, "layers") else decoder.model
        return stream_layers(layers, self.embed(codes), memory)[:, 0]

    def quantize(self, embeds: Tensor) -> Tensor:
        """The network's codes ``(B, T, Q - own_codebooks)`` of what its encoder gives, ``(B, D, T)``."""
        codes = []
        for layer in self.quantizers[: self.num_codebooks - self.own_codebooks]:
            codes.append(layer.encode(embeds))
            embeds = embeds - layer.decode(codes[-1])
        return torch.stack(codes, dim=-1)

    def embed(self, codes: Tensor) -> Tensor:
        """What the decoder is given, ``(B, D, T)``, of the network's codes ``(B, T, q)``."""
        layers = self.quantizers[: codes.shape[-1]]
        vectors = [layer.decode(column) for layer, column in zip(layers, codes.unbind(-1), strict=True)]
        return torch.stack(vectors).sum(0)
