"""EnCodec (https://arxiv.org/abs/2210.13438) as transformers builds it: many codebooks, any voice, any sound."""

from __future__ import annotations

from typing import Any

from fac_lightning.tokenizers.encodec_base import EncodecBase
from fac_lightning.tokenizers.pretrained import load_codec

__all__ = ["EncodecTokenizer"]


class EncodecTokenizer(EncodecBase):
    """Residual codes of EnCodec: 75 frames a second of ``num_codebooks`` codes out of 1024, at 24 kHz.

    Its decoder is causal but for the beginning, which it mirrors: the first chunk of a stream has 7 frames or more.

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
        from transformers import EncodecModel

        model = load_codec(EncodecModel, name, pretrained, config, seed, {"facebook/encodec_24khz": {}})
        settings = model.config
        if settings.audio_channels != 1 or settings.normalize or settings.chunk_length_s is not None:
            raise ValueError(
                f"{name!r} is stereo, scales its input or cuts it into chunks, which codes alone do not undo: take a "
                "mono model such as facebook/encodec_24khz, or Encodec48kTokenizer, which keeps the scale in a code"
            )
        super().__init__(model, int(settings.sampling_rate), int(settings.hop_length), num_codebooks)
        if not pretrained:
            self.draw(seed)
        if settings.use_causal_conv and settings.norm_type == "weight_norm":
            mirrors = settings.pad_mode == "reflect"
            self.padded_from = max(settings.kernel_size, settings.last_kernel_size) if mirrors else 1
            self.first_chunk_frames = settings.kernel_size if mirrors else 1
            self.causal = settings.trim_right_ratio == 1.0
