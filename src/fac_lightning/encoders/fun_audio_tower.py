"""The encoder of a released Fun-Audio-Chat with its trained weights, without the model around it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from fac_lightning.encoders.checkpoint import fill_tower, read_config
from fac_lightning.encoders.fun_audio import FunAudioEncoder
from fac_lightning.weights import CheckpointError

__all__ = ["FunAudioTower", "fun_audio_sizes"]


class FunAudioTower(FunAudioEncoder):
    """``FunAudioEncoder`` with the sizes and the weights that a checkpoint of Fun-Audio-Chat has.

    Only the tower's tensors are read, and of a hub id only the files that hold them are fetched. The projection to the
    width of the released backbone belongs to it, so ``dim`` is 4096 with Fun-Audio-Chat-8B.

    Args:
        name: Hub id or folder.
        pretrained: Load weights. If false, only the sizes of ``name`` are used.
        gradient_checkpointing: Recompute layers in the backward pass to save memory.

    Raises:
        CheckpointError: The checkpoint is another model's, or damaged.
    """

    def __init__(
        self,
        name: str = "FunAudioLLM/Fun-Audio-Chat-8B",
        pretrained: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        entries = read_config(name)
        audio = entries.get("audio_config")
        if not isinstance(audio, Mapping) or not isinstance(audio.get("output_dim"), int):
            raise CheckpointError(
                f"{name} is a {entries.get('model_type')}, without the audio_config of a Fun-Audio-Chat; name one, or "
                "take fac_lightning.encoders.FunAudioEncoder to train an encoder of its kind"
            )
        with torch.device("meta") if pretrained else nullcontext():
            super().__init__(**fun_audio_sizes(audio), gradient_checkpointing=gradient_checkpointing)
        if pretrained:
            fill_tower(self, name, ("continuous_audio_tower.",))


def fun_audio_sizes(audio: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``FunAudioEncoder`` by the ``audio_config`` of a released ``config.json``."""
    return {
        "n_mels": audio.get("num_mel_bins", 128),
        "d_model": audio.get("d_model", 1280),
        "num_layers": audio.get("encoder_layers", 32),
        "num_heads": audio.get("encoder_attention_heads", 20),
        "ffn_dim": audio.get("encoder_ffn_dim", 5120),
        "n_window": audio.get("n_window", 100),
        "dim": audio["output_dim"],
        "max_source_positions": audio.get("max_source_positions", 1500),
        "activation": audio.get("activation_function", "gelu"),
    }
