"""w2v-BERT 2.0: frames learned from 4.5 million hours of speech in 143 languages without a transcript."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fac_lightning.encoders.self_supervised import SelfSupervisedEncoder
from fac_lightning.kaldi_fbank import FBANK_HOP, FBANK_WINDOW, kaldi_fbank

__all__ = ["W2vBertEncoder"]


class W2vBertEncoder(SelfSupervisedEncoder):
    """w2v-BERT 2.0 at 50 frames a second: filter banks of 10 ms, two by two, through conformer layers.

    Filter banks have mean 0 and variance 1 in every band over the clip, as transformers' feature extractor makes them;
    that knows whole analysis windows only. The last frames, which reach beyond the clip, hear its end mirrored and do
    not count for mean and variance, so frames that the extractor has too begin as it gives them.

    The model knows no longest clip, but the cost of attention grows with the square: clips longer than ``max_seconds``
    are cut into windows of that length that do not see each other. Mean and variance are the whole clip's.

    Args:
        name: Hub id, or a folder that ``save_pretrained`` wrote; heads for other tasks are left out.
        layer: Give the output of this layer, from 1, and leave out those above: transformers'
            ``hidden_states[layer]``. ``None`` for the last.
        pretrained: Load weights. If false, only the sizes of ``name`` (or ``config``) are used.
        config: Arguments of transformers' ``Wav2Vec2BertConfig``, for other sizes; excludes ``pretrained``.
        max_seconds: Length of a window.

    Source: https://arxiv.org/abs/2312.05187
    """

    families = ("wav2vec2-bert",)

    def __init__(
        self,
        name: str = "facebook/w2v-bert-2.0",
        layer: int | None = None,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        max_seconds: float = 30.0,
    ) -> None:
        super().__init__(name, layer, pretrained, config, max_seconds)
        self.n_mels = int(self.model.config.feature_projection_input_dim) // 2

    def frame_samples(self, settings: Any) -> int:
        """Samples per frame: two of the filter banks'."""
        if settings.position_embeddings_type == "rotary":
            raise ValueError(
                "position_embeddings_type 'rotary' keeps a table from one batch for the next, in whatever type that "
                "had; take a model with 'relative_key', as facebook/w2v-bert-2.0 is"
            )
        return 2 * FBANK_HOP

    def prepare(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Filter banks ``(B, ceil(S / 320), 2 * n_mels)`` of waveforms ``(B, S)``, zero after each length."""
        pairs = -(-audio.shape[1] // self.hop_length)
        # all frames of a clip lie whole inside it once its end is followed by its mirror image
        step = torch.arange((2 * pairs - 1) * FBANK_HOP + FBANK_WINDOW, device=audio.device)
        last = (lengths - 1).clamp(min=0)[:, None]
        step = step % (2 * last).clamp(min=1)
        bands = kaldi_fbank(audio.gather(1, torch.minimum(step, 2 * last - step).clamp(min=0)), self.n_mels)

        given = 2 * -(-lengths // self.hop_length)
        whole = (lengths - FBANK_WINDOW).div(FBANK_HOP, rounding_mode="floor") + 1
        count = whole.where(whole > 1, given)[:, None, None]  # a clip too short for a variance counts all it has
        frame = torch.arange(bands.shape[1], device=audio.device)[:, None]
        bands = bands - bands.masked_fill(frame >= count, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
        variance = bands.masked_fill(frame >= count, 0.0).square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
        bands = (bands * (variance + 1e-7).rsqrt()).masked_fill(frame >= given[:, None, None], 0.0)
        stacked: Tensor = bands.unflatten(1, (pairs, 2)).flatten(2)
        return stacked

    def observe(self, inputs: Tensor, frames: Tensor) -> Tensor:
        """Filter banks in the type of the weights."""
        dtype: torch.dtype = self.model.feature_projection.projection.weight.dtype
        return inputs.to(dtype)
