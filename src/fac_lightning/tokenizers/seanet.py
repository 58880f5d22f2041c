"""The decoder of a SEANet codec (https://arxiv.org/abs/2009.02095) in chunks, as if it had run in one piece."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["stream_layers"]


def stream_layers(layers: Iterable[nn.Module], signal: Tensor, memory: dict[Any, Any]) -> Tensor:
    """Run causal layers on what follows; in a row the chunks are what the layers make of the whole.

    Takes the layers of EnCodec and Mimi as transformers and the package ``encodec`` build them: convolutions with
    padding on the left, transposed ones cut on the right, residual blocks, LSTMs, and functions of single frames.

    Args:
        layers: In their order.
        signal: ``(B, C, t)``, at least one frame; the first chunk must be longer than what is mirrored.
        memory: What the layers saw last, by layer; empty at first. It moves on.
    """
    layer: Any
    for layer in layers:
        if hasattr(layer, "block"):
            signal = stream_layers([layer.shortcut], signal, memory) + stream_layers(layer.block, signal, memory)
        elif hasattr(layer, "lstm"):
            steps = signal.permute(2, 0, 1)
            hidden, memory[layer] = layer.lstm(steps, memory.get(layer))
            signal = (hidden + steps if getattr(layer, "skip", True) else hidden).permute(1, 2, 0)
        elif (transposed := _find(layer, nn.ConvTranspose1d)) is not None:
            signal = _stream_transposed(layer, transposed, signal, memory)
        elif (conv := _find(layer, nn.Conv1d)) is not None:
            signal = _stream_conv(layer, conv, signal, memory)
        else:
            signal = layer(signal)
    return signal


def _stream_conv(layer: Any, conv: nn.Conv1d, signal: Tensor, memory: dict[Any, Any]) -> Tensor:
    size = (conv.kernel_size[0] - 1) * conv.dilation[0]  # frames seen before the one it stands at
    before = memory.get(layer)
    if before is None:
        mode = "constant" if layer.pad_mode == "zero" else layer.pad_mode
        signal = F.pad(signal, (size, 0), mode)
    else:
        signal = torch.cat([before, signal], dim=2)
    memory[layer] = signal[:, :, signal.shape[2] - size :]
    result: Tensor = conv(signal)
    return result


def _stream_transposed(layer: Any, conv: nn.ConvTranspose1d, signal: Tensor, memory: dict[Any, Any]) -> Tensor:
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    size = -(-kernel // stride) - 1  # frames before that still sound
    count = signal.shape[2]
    before = memory.get(layer)
    if before is None:
        before = signal.new_zeros(*signal.shape[:2], size)
    signal = torch.cat([before, signal], dim=2)
    memory[layer] = signal[:, :, count:]
    result: Tensor = conv(signal)
    return result[:, :, size * stride : (size + count) * stride]


def _find(layer: nn.Module, kind: type[nn.Module]) -> Any:
    """The convolution inside a layer of convolution, padding and norm."""
    return next((module for module in layer.modules() if isinstance(module, kind)), None)
