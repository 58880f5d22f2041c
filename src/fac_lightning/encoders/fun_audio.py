"""The continuous encoder of the released Fun-Audio-Chat: Whisper's layers on chunks of two seconds.

Chunks are what makes it cheap: attention never leaves one, so the work grows with the length of the speech and not with
its square, and chunks of all clips share one batch.

Legend: A clips, M mel bands, T mel frames of the longest clip, C chunks that hold something, R mel frames of the
longest chunk, P positions of the longest chunk (50 Hz), N positions of all chunks, F frames given out (25 Hz),
W width inside, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.encoders.log_mel import HOP_LENGTH, SAMPLE_RATE, log_mel
from fac_lightning.types import SpeechFeatures

__all__ = ["FunAudioEncoder"]

#: Bytes of the widest activation of chunks that go through the layers together on a CPU: larger blocks come from the
#: kernel page by page every time, and leave its caches.
CPU_BYTES = 2**24


class FunAudioEncoder(SpeechEncoder):
    """Features of Fun-Audio-Chat, 25 a second: two convolutions, Whisper layers inside chunks, a mean over pairs.

    A clip of any length is cut into chunks of ``2 * n_window`` mel frames that do not see each other; positions restart
    in each. Pairs of positions are then averaged over the whole clip, so with an odd ``n_window`` a pair may straddle
    two chunks. Parameters have the names of the released ``continuous_audio_tower``; the defaults are the sizes of
    Fun-Audio-Chat-8B.

    Positions, not padded rows, go through everything but convolutions and attention. Lengths that are on the CPU cost
    no synchronisation with the device.

    Args:
        n_mels: Number of mel bands.
        d_model: Width inside.
        num_layers: Transformer layers.
        num_heads: Attention heads.
        ffn_dim: Width inside the feed-forward.
        n_window: Half the mel frames of a chunk: 100 for 2 s.
        dim: Width of the features, that of the backbone.
        max_source_positions: Longest chunk that positions are known for, at least ``n_window``.
        activation: Of the feed-forward, by transformers' name; ``gelu`` is the exact one.
        gradient_checkpointing: Recompute layers in the backward pass to save memory.

    Source: https://arxiv.org/abs/2512.20156 and its released weights.
    """

    sample_rate = SAMPLE_RATE
    hop_length = 4 * HOP_LENGTH
    layers: nn.ModuleList

    def __init__(
        self,
        n_mels: int = 128,
        d_model: int = 1280,
        num_layers: int = 32,
        num_heads: int = 20,
        ffn_dim: int = 5120,
        n_window: int = 100,
        dim: int = 4096,
        max_source_positions: int = 1500,
        activation: str = "gelu",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if d_model % num_heads or d_model % 2 or d_model < 4:
            raise ValueError(
                f"d_model {d_model} must be even, at least 4 and a multiple of num_heads {num_heads}: "
                "half its channels are sines, half cosines, and heads share it evenly"
            )
        if not 1 <= n_window <= max_source_positions:
            raise ValueError(
                f"n_window must be between 1 and max_source_positions ({max_source_positions}), since a chunk has that "
                f"many positions; got {n_window}"
            )
        self.n_mels, self.n_window, self.dim = n_mels, n_window, dim
        self.gradient_checkpointing = gradient_checkpointing
        self.ffn_dim = ffn_dim
        self.conv1 = nn.Conv1d(n_mels, d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, kernel_size=3, stride=2, padding=1)
        self.layers = nn.ModuleList(_Layer(d_model, num_heads, ffn_dim, activation) for _ in range(num_layers))
        self.ln_post = nn.LayerNorm(d_model)
        self.proj = nn.Linear(d_model, dim)
        # Part of the released checkpoint that nothing reads: kept so that weights go both ways, frozen so that data
        # parallel training does not wait for its gradient.
        self.audio_bos_eos_token = nn.Embedding(2, dim).requires_grad_(False)

    def extra_repr(self) -> str:
        """What features depend on beside weights."""
        return f"n_window={self.n_window}"

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        """Features ``(A, ceil(S / 640), dim)`` of waveforms ``(A, S)`` at 16 kHz; ``lengths`` ``(A,)`` in samples.

        Where the released encoder gives one vector less than ``ceil(n / 640)`` (the last 20 ms are its own), the last
        frame is zero, with which the released pipeline fills up.
        """
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1])
        mel = log_mel(audio, lengths.to(audio.device), self.n_mels)
        features = self.forward_mel(mel, -(-lengths // HOP_LENGTH)).features
        missing = -(-audio.shape[1] // self.hop_length) - features.shape[1]
        return SpeechFeatures(F.pad(features, (0, 0, 0, missing)), -(-lengths.to(audio.device) // self.hop_length))

    def forward_mel(self, mel: Tensor, lengths: Tensor) -> SpeechFeatures:
        """Features of log-mel frames, exactly those of the released encoder; differentiable in ``mel``.

        Args:
            mel: ``(A, n_mels, T)`` frames of 10 ms; what stands after a clip's end is not looked at.
            lengths: ``(A,)`` mel frames per clip, best on the CPU.

        Returns:
            ``(A, F, dim)`` frames of 40 ms in the dtype of the weights, zero after each length; lengths and ``F`` are
            ``frames_out`` of ``lengths`` and of ``T``.

        Raises:
            ValueError: ``mel`` has another number of bands, or a length does not lie in ``0 .. T``.
        """
        clips, bands, longest = mel.shape
        if bands != self.n_mels:
            raise ValueError(f"mel has {bands} bands but the encoder takes {self.n_mels}: compute it with n_mels")
        counts = lengths.to("cpu", torch.int64)
        if counts.shape != (clips,) or (clips > 0 and not 0 <= int(counts.min()) <= int(counts.max()) <= longest):
            raise ValueError(
                f"lengths must hold one number of mel frames between 0 and {longest} for each of {clips} clips, "
                f"got {lengths.tolist()}"
            )
        frames = frames_out(counts)
        width = int(frames_out(torch.tensor(longest)))
        if not counts.any():
            zeros = self.conv1.weight.new_zeros(clips, width, self.dim)
            return SpeechFeatures(zeros, frames.to(mel.device))

        rows, held = self._chunks(mel, counts)
        size = self._at_once(rows)
        parts = zip(rows.split(size), held.split(size), strict=True)
        hidden = torch.cat([self._positions(*part) for part in parts])
        pairs, places = _pooling(counts, width)
        pooled = hidden[pairs.to(mel.device)].mean(1)
        found = self.proj(self.ln_post(pooled))
        features = found.new_zeros(clips * width, self.dim).index_copy(0, places.to(mel.device), found)
        return SpeechFeatures(features.unflatten(0, (clips, width)), frames.to(mel.device))

    def _chunks(self, mel: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Mel frames of all chunks ``(C, n_mels, R)``, and how many of them ``(C,)`` each has."""
        size = min(2 * self.n_window, mel.shape[2])
        per_clip = -(-mel.shape[2] // size)
        held = (counts[:, None] - torch.arange(per_clip) * size).clamp(0, size)  # (A, per_clip) frames of each chunk
        clip, chunk = held.nonzero(as_tuple=True)
        held = held[clip, chunk]  # (C,)
        rows = F.pad(mel, (0, per_clip * size - mel.shape[2])).unflatten(2, (per_clip, size))[..., : int(held.max())]
        return rows[clip.to(mel.device), :, chunk.to(mel.device)].to(self.conv1.weight.dtype), held

    def _at_once(self, rows: Tensor) -> int:
        """Chunks that go through the layers together."""
        if rows.device.type != "cpu":
            return len(rows)
        positions = -(-rows.shape[2] // 2)
        return max(1, CPU_BYTES // (positions * self.ffn_dim * rows.element_size()))

    def _positions(self, rows: Tensor, held: Tensor) -> Tensor:
        """Positions ``(N, W)`` of chunks ``(C, n_mels, R)``, of whose frames ``held`` ``(C,)`` count."""
        hidden, chunks = self._embed(rows, held)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, chunks, use_reentrant=False)
            else:
                hidden = layer(hidden, chunks)
        return hidden

    def _embed(self, rows: Tensor, held: Tensor) -> tuple[Tensor, _Chunks]:
        """Positions ``(N, W)`` of chunks, convolved and numbered, and where they lie."""
        beyond = (torch.arange(rows.shape[2]) >= held[:, None])[:, None].to(rows.device)  # (C, 1, R)
        rows = F.gelu(self.conv1(rows.masked_fill(beyond, 0.0)))
        # the second convolution must not see what the first one made of padding
        rows = F.gelu(self.conv2(rows.masked_fill(beyond, 0.0))).transpose(1, 2)  # (C, P, W)
        num_rows, length, width = rows.shape
        hidden = (rows + _sinusoids(length, width, rows.device).to(rows.dtype)).flatten(0, 1)

        mask = torch.arange(length) < -(-held // 2)[:, None]  # (C, P)
        if mask.all():
            return hidden, _Chunks(num_rows, length)
        places = mask.flatten().nonzero().squeeze(1).to(rows.device)
        return hidden.index_select(0, places), _Chunks(num_rows, length, places, mask[:, None, None].to(rows.device))


def frames_out(lengths: Tensor) -> Tensor:
    """Frames that ``FunAudioEncoder`` gives for numbers of mel frames: ``ceil(L / 2) // 2``, but 1 for 1 and 2."""
    return ((lengths + 1) // 4).clamp(min=1).minimum(lengths)


def _pooling(lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The two of N positions that make each frame ``(frames, 2)``, and the frame's place ``(frames,)`` of A * width."""
    positions, frames = (lengths + 1) // 2, frames_out(lengths)
    clip = torch.arange(len(lengths)).repeat_interleave(frames)
    step = torch.arange(len(clip)) - (frames.cumsum(0) - frames)[clip]
    first = (positions.cumsum(0) - positions)[clip] + 2 * step
    second = first + (positions[clip] > 1)  # a clip of one position keeps it as it is
    return torch.stack([first, second], 1), clip * width + step


def _sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Whisper's positions ``(length, width)``: sines, then cosines, of wavelengths from 2 pi to 20000 pi.

    Computed in every forward: a buffer outside the checkpoint would be lost when a model is built on the meta device,
    and would be rounded when one is cast to half precision.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, device=device) * (-math.log(10000.0) / (half - 1)))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


@dataclass(frozen=True)
class _Chunks:
    """How N packed positions lie in rows of one chunk each."""

    rows: int  # C
    length: int  # P
    places: Tensor | None = None  # (N,) int64 into C * P; None where all chunks are full
    mask: Tensor | None = None  # (C, 1, 1, P) bool, True where a row has a position; None where all chunks are full

    def spread(self, hidden: Tensor, num_heads: int) -> Tensor:
        """Positions ``(N, W)`` to ``(C, H, P, W / H)``, zero where a row has none."""
        if self.places is not None:
            padded = hidden.new_zeros(self.rows * self.length, hidden.shape[1])
            hidden = padded.index_copy(0, self.places, hidden)
        return hidden.view(self.rows, self.length, num_heads, -1).transpose(1, 2)

    def gather(self, hidden: Tensor) -> Tensor:
        """Undo ``spread``."""
        flat = hidden.transpose(1, 2).flatten(2).flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)


class _Layer(nn.Module):
    """A layer of Whisper's encoder on packed positions: attention inside chunks, then a feed-forward, norms first."""

    def __init__(self, width: int, num_heads: int, ffn_dim: int, activation: str) -> None:
        super().__init__()
        self.self_attn = _ChunkAttention(width, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.activation = _activation(activation)
        self.fc1 = nn.Linear(width, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, chunks: _Chunks) -> Tensor:
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden), chunks)
        hidden = hidden + self.fc2(self.activation(self.fc1(self.final_layer_norm(hidden))))
        if hidden.dtype == torch.float16:  # as released: the stream outgrows half precision
            limit = torch.finfo(hidden.dtype).max - 1000
            hidden = hidden.clamp(-limit, limit)
        return hidden


class _ChunkAttention(nn.Module):
    """Attention in both directions inside every chunk; keys have no bias, as in Whisper."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, chunks: _Chunks) -> Tensor:
        query, key, value = (
            chunks.spread(proj(hidden), self.num_heads) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=chunks.mask)
        return cast(Tensor, self.out_proj(chunks.gather(out)))


def _activation(name: str) -> nn.Module:
    """Activation by the name that transformers' configurations have for it."""
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise ValueError(f"activation {name!r} is not one that transformers knows: {', '.join(sorted(ACT2FN))}")
    return cast(nn.Module, ACT2FN[name])
