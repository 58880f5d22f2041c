"""Every kind of encoder in its least size: random weights, no network, windows of a second."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch

from fac_lightning.encoders import SpeechEncoder

__all__ = ["ENCODER_KINDS", "tiny_encoder"]

_WHISPER: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 16,
    "max_source_positions": 50,
}
_LAYERS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,  # oneDNN's bfloat16 is wrong for 8 channels a group
}
_LARGE: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}  # the build of large models


def _random(config: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    return {"pretrained": False, "config": config, **arguments}


#: Name -> dotted path and arguments, as a recipe names a part; features are 16 wide.
ENCODER_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "fun_audio": (
        "fac_lightning.encoders.FunAudioEncoder",
        {"n_mels": 16, "d_model": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 32, "n_window": 50, "dim": 16},
    ),
    "hubert": (
        "fac_lightning.encoders.Wav2VecEncoder",
        _random({"model_type": "hubert", **_LAYERS, **_CONVOLUTIONS}, max_seconds=1.0),
    ),
    "mel": ("fac_lightning.encoders.MelEncoder", {"n_mels": 16, "dim": 16, "num_layers": 1}),
    "qwen2_audio": ("fac_lightning.encoders.Qwen2AudioEncoder", _random(_WHISPER)),
    "w2v_bert": (
        "fac_lightning.encoders.W2vBertEncoder",
        _random({**_LAYERS, "feature_projection_input_dim": 32, "conv_depthwise_kernel_size": 5}, max_seconds=1.0),
    ),
    "wav2vec2": (
        "fac_lightning.encoders.Wav2VecEncoder",
        _random({"model_type": "wav2vec2", **_LAYERS, **_CONVOLUTIONS, **_LARGE}, max_seconds=1.0),
    ),
    "wavlm": (
        "fac_lightning.encoders.Wav2VecEncoder",
        _random({"model_type": "wavlm", **_LAYERS, **_CONVOLUTIONS}, max_seconds=1.0),
    ),
    "whisper": ("fac_lightning.encoders.WhisperEncoder", _random(_WHISPER)),
}


def tiny_encoder(kind: str, seed: int = 0, **changes: Any) -> SpeechEncoder:
    """An encoder of some ten thousand random weights, wide enough that a test sees what a sample does.

    Args:
        kind: One of ``ENCODER_KINDS``.
        seed: Of the weights; the caller's random state is left as it was.
        changes: Arguments to add or to replace.

    Raises:
        ValueError: There is no such kind.
    """
    if kind not in ENCODER_KINDS:
        raise ValueError(f"there is no kind {kind!r}; choose from {', '.join(sorted(ENCODER_KINDS))}")
    path, arguments = ENCODER_KINDS[kind]
    room, name = path.rsplit(".", 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder: SpeechEncoder = getattr(importlib.import_module(room), name)(**copy.deepcopy({**arguments, **changes}))
        for weight in encoder.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    return encoder.eval()
