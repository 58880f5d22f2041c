"""wav2vec 2.0, HuBERT and WavLM: frames learned from raw waveforms without a transcript."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fac_lightning.encoders.checkpoint import cache_first
from fac_lightning.encoders.self_supervised import SAMPLE_RATE, SelfSupervisedEncoder

__all__ = ["Wav2VecEncoder"]


class Wav2VecEncoder(SelfSupervisedEncoder):
    """wav2vec 2.0, HuBERT or WavLM at 50 frames a second: convolutions over samples, then transformer layers.

    Frames are transformers' for the clip followed by silence up to the last frame that touches it: without that, ``n``
    samples would give ``(n - 400) // 320 + 1`` frames. Rows are masked everywhere, also in the norm over time behind
    the first convolution of base models, so that padding reaches no frame. Levels are normalised per clip where the
    model's feature extractor says so; without one, where every convolution has a norm, as the models were trained.

    The models know no longest clip, but were trained on some 15 s, and the cost of attention grows with the square:
    clips longer than ``max_seconds`` are cut into windows of that length that do not see each other.

    Args:
        name: Hub id such as ``microsoft/wavlm-large`` or ``facebook/hubert-base-ls960``, or a folder that
            ``save_pretrained`` wrote; heads for other tasks are left out.
        layer: Give the output of this transformer layer, from 1, and leave out those above: transformers'
            ``hidden_states[layer]``. ``None`` for the last, normalised where the model does that.
        pretrained: Load weights. If false, only the sizes of ``name`` (or ``config``) are used.
        config: ``model_type`` (``wav2vec2``, ``hubert`` or ``wavlm``) and arguments of its configuration, for other
            sizes; excludes ``pretrained``.
        max_seconds: Length of a window.

    Source: https://arxiv.org/abs/2006.11477, https://arxiv.org/abs/2106.07447, https://arxiv.org/abs/2110.13900
    """

    families = ("hubert", "wav2vec2", "wavlm")

    def __init__(
        self,
        name: str = "microsoft/wavlm-base-plus",
        layer: int | None = None,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        max_seconds: float = 30.0,
    ) -> None:
        super().__init__(name, layer, pretrained, config, max_seconds)
        settings = self.model.config
        self.normalize = settings.feat_extract_norm == "layer" if config is not None else _normalizes(name, settings)
        #: samples per step and samples seen, of what follows the first convolution and of all
        self._later, self._all = _field(settings, 1), _field(settings, 0)
        if layer is not None and settings.do_stable_layer_norm:
            self.model.encoder.layer_norm = nn.Identity()  # is behind the last layer of all, and of no other
        if settings.model_type == "wavlm":
            from fac_lightning.encoders.wavlm_attention import FusedWavLMAttention

            for layer_ in self.model.encoder.layers:
                layer_.attention.__class__ = FusedWavLMAttention

    def extra_repr(self) -> str:
        """What features depend on beside weights."""
        return f"{super().extra_repr()}, normalize={self.normalize}"

    def frame_samples(self, settings: Any) -> int:
        """Samples per frame: the product of all strides."""
        if getattr(settings, "conv_pos_batch_norm", False):
            raise ValueError(
                "a hubert with conv_pos_batch_norm is not supported: that norm goes over all clips of a batch"
            )
        return math.prod(settings.conv_stride)

    def prepare(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Waveforms ``(B, S)`` with silence after their ends, at mean 0 and variance 1 where the model wants it."""
        audio = super().prepare(audio.float(), lengths)
        if not self.normalize:
            return audio
        inside = torch.arange(audio.shape[1], device=audio.device) < lengths[:, None]
        count = lengths.clamp(min=1)[:, None]
        audio = (audio - audio.sum(1, keepdim=True) / count) * inside
        return audio * (audio.square().sum(1, keepdim=True) / count + 1e-7).rsqrt()

    def observe(self, inputs: Tensor, frames: Tensor) -> Tensor:
        """What the convolutions make ``(W, T, C)`` of windows ``(W, S)``."""
        step, seen = self._all
        weight = self.model.feature_extractor.conv_layers[0].conv.weight
        hidden = F.pad(inputs, (0, seen - step)).to(weight.dtype)[:, None]  # the last frame sees beyond its hop
        for layer in self.model.feature_extractor.conv_layers:
            if isinstance(norm := getattr(layer, "layer_norm", None), nn.GroupNorm):  # the first of base models
                step, seen = self._later
                hidden = layer.activation(_normalize_over_time(layer.conv(hidden), (frames - 1) * step + seen, norm))
            else:
                hidden = layer(hidden)
        return hidden.transpose(1, 2)


def _field(settings: Any, first: int) -> tuple[int, int]:
    """Step and field of view of the convolutions from ``first`` on, in entries of their input."""
    step, seen = 1, 1
    for kernel, stride in zip(settings.conv_kernel[first:], settings.conv_stride[first:], strict=True):
        seen += (kernel - 1) * step
        step *= stride
    return step, seen


def _normalize_over_time(hidden: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A norm of every channel over time on rows ``(W, C, L)`` of which ``lengths`` ``(W,)`` entries count."""
    if int(lengths.min()) >= hidden.shape[2]:
        found: Tensor = norm(hidden)
        return found
    inside = (torch.arange(hidden.shape[2], device=hidden.device) < lengths[:, None])[:, None]  # (W, 1, L)
    count = lengths[:, None, None]
    kept = hidden.float().masked_fill(~inside, 0.0)
    centred = (kept - kept.sum(2, keepdim=True) / count).masked_fill(~inside, 0.0)
    scale = (centred.square().sum(2, keepdim=True) / count + norm.eps).rsqrt() * norm.weight[:, None]
    return (centred * scale + norm.bias[:, None]).to(hidden.dtype)


def _normalizes(name: str, settings: Any) -> bool:
    """Whether waveforms are brought to variance 1, by the feature extractor beside the model."""
    from transformers import AutoFeatureExtractor

    try:
        extractor = cache_first(name, lambda local: AutoFeatureExtractor.from_pretrained(name, local_files_only=local))
    except OSError:
        return bool(settings.feat_extract_norm == "layer")
    if extractor.sampling_rate != SAMPLE_RATE:
        raise ValueError(f"{name} hears {extractor.sampling_rate} Hz, but models of this kind are run at {SAMPLE_RATE}")
    return bool(extractor.do_normalize)
