"""Networks of the build of Whisper's encoder: two convolutions, a table of positions, layers that see both ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fac_lightning.encoders.log_mel import SAMPLE_RATE
from fac_lightning.encoders.windowed import WindowedEncoder

__all__ = ["WhisperTower"]


class WhisperTower(WindowedEncoder):
    """Base of encoders around such a network of transformers, run on as many frames as there is speech.

    Args:
        model: The network.
        name: What it is called in messages.
        num_layers: Keep only the first layers, ``None`` for all.
    """

    sample_rate = SAMPLE_RATE
    model: Any  # typed loosely, as transformers is

    def __init__(self, model: nn.Module, name: str, num_layers: int | None = None) -> None:
        super().__init__()
        self.model = model
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
        self.max_positions = int(self.model.config.max_source_positions)

    def forward_mel(self, mel: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Hidden states of log-mel frames, before the final norm; differentiable in ``mel``.

        Args:
            mel: ``(B, n_mels, M)`` frames of 10 ms as ``log_mel`` gives them, at most 30 s.
            lengths: ``(B,)`` mel frames per row, all of ``M`` if left out.

        Returns:
            What the convolutions give and what each layer gives, ``(B, ceil(M / 2), dim)`` each; frames after a
            row's length hold nothing of use.
        """
        if lengths is None:
            return self.attend(self.convolve(mel))
        inside = torch.arange(mel.shape[2], device=mel.device) < lengths[:, None]
        return self.attend(self.convolve(mel * inside[:, None]), -(-lengths // 2))

    def convolve(self, mel: Tensor) -> Tensor:
        """What the convolutions make of log-mel frames ``(B, n_mels, M)``: positions ``(B, ceil(M / 2), dim)``."""
        mel = mel.to(self.model.conv1.weight.dtype)
        hidden: Tensor = F.gelu(self.model.conv2(F.gelu(self.model.conv1(mel))))
        return hidden.transpose(1, 2)

    def attend(self, hidden: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Number positions ``(B, T, dim)`` and run the layers: ``forward_mel``'s hidden states.

        Args:
            hidden: What ``convolve`` gives.
            lengths: ``(B,)`` positions per row, all if left out.
        """
        num_frames, mask = hidden.shape[1], None
        if num_frames > self.max_positions:
            raise ValueError(f"{num_frames} frames are more than the {self.max_positions} positions: cut the mel up")
        if lengths is not None:
            mask = torch.arange(num_frames, device=hidden.device) < lengths[:, None]
            mask[:, 0] = True  # an empty row attends to something rather than to nothing, which would be NaN
            bias = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device)
            mask = bias.masked_fill(~mask, torch.finfo(hidden.dtype).min)[:, None, None]
            mask = mask.expand(-1, 1, num_frames, -1)
        states = [hidden + self.model.embed_positions.weight[:num_frames]]
        for layer in self.model.layers:
            states.append(layer(states[-1], mask))
        return states
