"""Mimi (https://arxiv.org/abs/2410.00037), the codec of Moshi, as transformers builds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from fac_lightning.tokenizers.frozen import FrozenCodec
from fac_lightning.tokenizers.pretrained import draw_codebooks, load_codec, noise
from fac_lightning.tokenizers.seanet import stream_layers

__all__ = ["MimiTokenizer"]


class MimiTokenizer(FrozenCodec):
    """Codes of Mimi: 12.5 frames a second of ``num_codebooks`` codes out of 2048, at 24 kHz, causal both ways.

    The first codebook holds what is said, learned from WavLM; the others are residual and hold how it sounds.

    Args:
        name: Hub id or folder of the model.
        num_codebooks: Codebooks used, of 32; Moshi speaks 8 (1.1 kbit/s).
        pretrained: Load weights of ``name``; if false they are drawn from ``seed``, for tests without a network.
        config: Arguments of transformers' ``MimiConfig`` for a model without weights; excludes ``pretrained``.
        seed: Of random weights, which are the same in every process.
    """

    causal = True
    padded_from = 1

    def __init__(
        self,
        name: str = "kyutai/mimi",
        num_codebooks: int = 8,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        from transformers import MimiModel

        self.model: Any = load_codec(MimiModel, name, pretrained, config, seed, {"kyutai/mimi": {}})
        settings = self.model.config
        lowest, highest = settings.num_semantic_quantizers, settings.num_quantizers
        if not lowest <= num_codebooks <= highest:
            raise ValueError(f"num_codebooks must be between {lowest} and {highest}, got {num_codebooks}")
        if not settings.use_causal_conv or settings.trim_right_ratio != 1.0 or settings.pad_mode == "reflect":
            raise ValueError(f"{name!r} is not causal, which makes it another codec than Mimi; take kyutai/mimi")
        self.sample_rate = int(settings.sampling_rate)
        self.hop_length = round(settings.sampling_rate / settings.frame_rate)
        self.num_codebooks, self.codebook_size = num_codebooks, int(settings.codebook_size)
        if not pretrained:
            embeds = self._latents(noise(self.hop_length, seed))
            for part in (
                self.model.quantizer.semantic_residual_vector_quantizer,
                self.model.quantizer.acoustic_residual_vector_quantizer,
            ):
                with torch.no_grad():
                    draw_codebooks(part.layers, embeds if part.input_proj is None else part.input_proj(embeds), seed)

    def encode_rows(self, audio: Tensor) -> Tensor:
        """Codes ``(B, T, Q)`` of waveforms ``(B, T * hop_length)``."""
        codes: Tensor = self.model.encode(audio[:, None], num_quantizers=self.num_codebooks).audio_codes
        return codes.transpose(1, 2)

    def decode_rows(self, codes: Tensor) -> Tensor:
        """Waveforms ``(B, T * hop_length)`` of codes ``(B, T, q)``."""
        audio: Tensor = self.model.decode(codes.transpose(1, 2)).audio_values
        return audio[:, 0]

    def stream_rows(self, codes: Tensor, memory: dict[Any, Any]) -> Tensor:
        """Waveforms ``(B, t * hop_length)`` of the next codes ``(B, t, q)``."""
        from transformers import DynamicCache

        half = self.model.decoder if hasattr(self.model.decoder, "decoder_transformer") else self.model
        signal = stream_layers([half.upsample], self.model.quantizer.decode(codes.transpose(1, 2)), memory)
        cache = memory.get("cache")
        if cache is None:
            cache = memory["cache"] = DynamicCache(config=half.decoder_transformer.config)
        hidden = half.decoder_transformer(signal.transpose(1, 2), past_key_values=cache, use_cache=True)
        signal = hidden.last_hidden_state.transpose(1, 2)
        last = half.decoder if half is self.model else half.decoder_seanet
        return stream_layers(last.layers, signal, memory)[:, 0]

    @torch.no_grad()
    def _latents(self, audio: Tensor) -> Tensor:
        """What is quantised, ``(B, D, T)``, of waveforms ``(B, 1, S)``."""
        model, encoder = self.model, self.model.encoder
        if hasattr(encoder, "encoder_transformer"):
            latents: Tensor = encoder(audio).latents
        else:  # transformers before 5.23 kept the parts of both halves in the model
            hidden = model.encoder_transformer(encoder(audio).transpose(1, 2)).last_hidden_state
            latents = model.downsample(hidden.transpose(1, 2))
        return latents

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast; transformers keeps a copy of each codebook that would stay where it was made."""
        super()._apply(fn, recurse)
        for module in self.model.modules():
            if getattr(module, "_embed", None) is not None:
                module._embed = None
        return self
