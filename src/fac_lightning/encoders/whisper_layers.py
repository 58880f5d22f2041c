"""Whisper features with the sound left in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fac_lightning.encoders.whisper import WhisperEncoder

__all__ = ["WhisperLayers"]


class WhisperLayers(WhisperEncoder):
    """Whisper's last frames and those of some earlier layers, side by side.

    The last layer knows the words; pitch and voice are clearer in the middle. A codec that must say again what it
    heard, and not only what was meant, reads both.

    Args:
        name: Hub id or folder, as for :class:`WhisperEncoder`.
        pretrained: Load weights.
        config: Arguments of transformers' ``WhisperConfig``; excludes ``pretrained``.
        layers: Earlier layers to add before the last one; 0 is what the convolutions give.
    """

    chosen: Tensor

    def __init__(
        self,
        name: str = "openai/whisper-tiny.en",
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        layers: Sequence[int] = (2,),
    ) -> None:
        super().__init__(name, pretrained, config)
        last = len(self.model.layers)
        if any(not 0 <= layer < last for layer in layers):
            raise ValueError(f"layers must lie between 0 and {last - 1} (the last, {last}, is always read): {layers}")
        # in the state, because features, and codes made from them, are known by it
        self.register_buffer("chosen", torch.tensor(list(layers), dtype=torch.long))
        self.dim *= 1 + len(layers)

    def read(self, states: list[Tensor]) -> Tensor:
        """Features ``(B, T, dim)``: the chosen hidden states, then the last one, normalised."""
        return torch.cat([*(states[layer] for layer in self.chosen.tolist()), super().read(states)], dim=-1)
