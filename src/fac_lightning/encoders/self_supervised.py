"""What encoders share that learned from untranscribed speech: loading, the layer to read, windows."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fac_lightning.encoders.checkpoint import cache_first
from fac_lightning.encoders.windowed import WindowedEncoder
from fac_lightning.weights import CheckpointError

__all__ = ["SelfSupervisedEncoder"]

SAMPLE_RATE = 16000  # Hz
_MASK = "masked_spec_embed"  # stands in masked places while such models are pretrained


class SelfSupervisedEncoder(WindowedEncoder):
    """Base of encoders around a model of transformers with a ``feature_projection`` and an ``encoder`` of layers.

    What such models do at random while they are pretrained (masking spans, leaving layers out) is turned off; dropout
    stays. Layers above the chosen one are not kept.

    Args:
        name: Hub id, or a folder that ``save_pretrained`` wrote; heads for other tasks are left out.
        layer: Transformer layer whose output is given, from 1; ``None`` for what the whole model gives.
        pretrained: Load weights. If false, only the sizes of ``name`` (or ``config``) are used.
        config: ``model_type`` and arguments of its configuration, for other sizes; excludes ``pretrained``.
        max_seconds: Longer clips are cut into windows of this length.
    """

    sample_rate = SAMPLE_RATE
    families: ClassVar[tuple[str, ...]]  # model types that the encoder knows
    model: Any

    def __init__(
        self, name: str, layer: int | None, pretrained: bool, config: dict[str, Any] | None, max_seconds: float
    ) -> None:
        super().__init__()
        if config is not None and pretrained:
            raise ValueError("config describes a model without weights: set pretrained to false, or leave config out")
        settings = self._settings(name, config)
        self.hop_length, self.dim = self.frame_samples(settings), int(settings.hidden_size)
        self.max_frames = int(max_seconds * SAMPLE_RATE / self.hop_length)
        if self.max_frames < 1:
            raise ValueError(f"max_seconds must hold at least one frame ({self.hop_length} samples), got {max_seconds}")
        available = settings.num_hidden_layers
        if layer is not None and not 1 <= layer <= available:
            raise ValueError(f"layer must be between 1 and {available}, the layers of {name}; got {layer}")
        self.layer = layer
        self.model = cache_first(name, partial(_load, name, settings)) if pretrained else _build(settings)
        self.model.config.mask_time_prob = self.model.config.mask_feature_prob = self.model.config.layerdrop = 0.0
        if hasattr(self.model, _MASK):
            delattr(self.model, _MASK)  # nothing reads it, and a weight without a gradient stops parallel training
        if layer is not None:
            self.model.encoder.layers = self.model.encoder.layers[:layer]
            self.model.config.num_hidden_layers = layer

    def extra_repr(self) -> str:
        """What features depend on beside weights."""
        return f"layer={self.layer}, max_frames={self.max_frames}"

    def encode(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Frames ``(W, T, dim)`` of windows ``(W, N, ...)``."""
        frames = -(-lengths // self.hop_length)
        hidden = self.model.feature_projection(self.observe(inputs, frames))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # HuBERT's gives nothing else
        mask = torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]
        found: Tensor = self.model.encoder(hidden, attention_mask=mask).last_hidden_state
        return found

    @abstractmethod
    def observe(self, inputs: Tensor, frames: Tensor) -> Tensor:
        """What the layers start from: ``(W, T, C)`` in the type of the weights, of windows ``(W, N, ...)``.

        Args:
            inputs: Windows of what ``prepare`` gives.
            frames: ``(W,)`` frames of each; what stands behind is not looked at.
        """

    @abstractmethod
    def frame_samples(self, settings: Any) -> int:
        """Samples per frame, by transformers' configuration.

        Raises:
            ValueError: The configuration is of a kind that the encoder cannot run.
        """

    def _settings(self, name: str, config: dict[str, Any] | None) -> Any:
        """Transformers' configuration, of a kind that the encoder can run."""
        from transformers import AutoConfig

        if config is None:
            settings = cache_first(name, lambda local: AutoConfig.from_pretrained(name, local_files_only=local))
            family, settings_of = settings.model_type, f"{name} is a"
        else:
            entries = dict(config)
            family = entries.pop("model_type", self.families[0] if len(self.families) == 1 else None)
            settings_of = "config has the model_type"
            settings = AutoConfig.for_model(family, **entries) if family in self.families else None
        if family not in self.families:
            raise ValueError(f"{settings_of} {family}; {type(self).__name__} takes one of {', '.join(self.families)}")
        if getattr(settings, "add_adapter", False):
            raise ValueError(
                f"the {family} has an adapter that makes frames fewer by convolution, which is a feature adapter's "
                "work here; take the model that it was trained from"
            )
        return settings


def _build(settings: Any) -> Any:
    """Transformers' model with random weights."""
    from transformers import AutoModel

    return AutoModel.from_config(settings)


def _load(name: str, settings: Any, local_files_only: bool) -> Any:
    """Transformers' model with trained weights in float32, out of a checkpoint for any task."""
    from transformers import AutoModel

    model, info = AutoModel.from_pretrained(
        name, config=settings, dtype=torch.float32, local_files_only=local_files_only, output_loading_info=True
    )
    missing = sorted(set(info["missing_keys"]) - {_MASK})
    if missing:
        raise CheckpointError(f"{name} lacks weights of its {settings.model_type}: {missing[:3]} ...")
    return model
