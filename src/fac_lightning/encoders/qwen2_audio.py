"""The encoder of Qwen2-Audio: Whisper's, trained on with sound of all kinds and halved to 25 frames a second."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fac_lightning.encoders.checkpoint import fill_tower, read_config
from fac_lightning.encoders.log_mel import log_mel
from fac_lightning.encoders.whisper_tower import WhisperTower
from fac_lightning.weights import CheckpointError

__all__ = ["Qwen2AudioEncoder"]

_KIND = "qwen2_audio_encoder"
_POSITION = 320  # samples; a frame is the mean of two


class Qwen2AudioEncoder(WhisperTower):
    """The audio tower of Qwen2-Audio, 25 frames a second: Whisper's layers, pairs averaged, the norm behind.

    Frames are those of the released model, which averages whole pairs only; a position of 20 ms that is left over at
    the end of a clip becomes a frame of its own here, so that ``n`` samples give ``ceil(n / 640)``. A clip longer than
    the position table (30 s) is cut into windows of that length that do not see each other.

    Only the tower is read out of a checkpoint, and of a hub id only the files that hold it are fetched. It has 640
    million parameters; the language model and the projection into it are not part of it.

    Args:
        name: Hub id or folder of a Qwen2-Audio, or of its tower alone.
        pretrained: Load weights. If false, only the sizes of ``name`` (or ``config``) are used.
        config: Arguments of transformers' ``Qwen2AudioEncoderConfig``, for other sizes; excludes ``pretrained``.
        num_layers: Keep only the first layers, ``None`` for all.

    Source: https://arxiv.org/abs/2407.10759
    """

    hop_length = 2 * _POSITION

    def __init__(
        self,
        name: str = "Qwen/Qwen2-Audio-7B-Instruct",
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        num_layers: int | None = None,
    ) -> None:
        if config is not None and pretrained:
            raise ValueError("config describes a model without weights: set pretrained to false, or leave config out")
        entries = read_config(name) if config is None else config
        with torch.device("meta") if pretrained else nullcontext():
            tower = _build(entries.get("audio_config", entries), name)
        if pretrained:
            fill_tower(tower, name, ("audio_tower.", "model.audio_tower.") if "audio_config" in entries else ("",))
        super().__init__(tower, name, num_layers)
        self.max_frames = self.max_positions // 2

    def encode(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Frames ``(W, T, dim)`` of windows ``(W, S)``."""
        # Released inputs are filled to 30 s, so the convolutions see silence after the last sample and not nothing.
        heard = (lengths + _POSITION).clamp(max=self.max_positions * _POSITION)
        mel = log_mel(F.pad(inputs, (0, _POSITION)), heard, self.n_mels)
        count = inputs.shape[1] // _POSITION
        hidden = self.convolve(mel[..., : 2 * self.max_positions])[:, :count]
        positions = -(-lengths // _POSITION)
        return self.read(self.attend(hidden, positions), positions)

    def read(self, states: list[Tensor], lengths: Tensor | None = None) -> Tensor:
        """Features ``(B, ceil(T / 2), dim)`` of hidden states ``(B, T, dim)``, of which ``lengths`` ``(B,)`` count."""
        hidden = states[-1]
        if lengths is None:
            lengths = torch.full((len(hidden),), hidden.shape[1], device=hidden.device)
        inside = (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None])[..., None]
        odd = (0, 0, 0, hidden.shape[1] % 2)
        pairs, there = (F.pad(x, odd).unflatten(1, (-1, 2)) for x in (hidden * inside, inside))
        features: Tensor = self.model.layer_norm(pairs.sum(2) / there.sum(2).clamp(min=1))
        return features


def _build(sizes: dict[str, Any], name: str) -> Any:
    """Transformers' tower with random weights."""
    from transformers import Qwen2AudioEncoderConfig
    from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder as HFQwen2AudioEncoder

    kind = sizes.get("model_type", _KIND)
    if kind != _KIND:
        raise CheckpointError(
            f"{name} is a {kind} and has no audio tower of Qwen2-Audio; name a Qwen2-Audio checkpoint"
        )
    known = {key: value for key, value in sizes.items() if key not in ("model_type", "torch_dtype", "dtype")}
    return HFQwen2AudioEncoder(Qwen2AudioEncoderConfig(**known))
