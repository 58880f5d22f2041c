"""A small causal transformer for speech heads: packed rows in training, a growing cache in generation.

Pre-norm blocks with RMSNorm, rotary positions and a SwiGLU feed-forward, as in Qwen3 but plain.

Legend: N positions of a packed line, B rows, W width, H heads, E width of a head.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fac_lightning.heads.placed_linear import PlacedLinear, SharedLinear
from fac_lightning.packed import PackedLayout, packed_attention
from fac_lightning.slot_cache import SlotCache

__all__ = ["CausalTransformer", "KeyValueCache"]


class KeyValueCache:
    """Keys and values of all layers, doubled in place when full; rows advance together.

    Args:
        num_layers: Layers that share the cache.
        batch_size: Rows, B.
        capacity: Positions to begin with.
    """

    def __init__(self, num_layers: int, batch_size: int, capacity: int = 64) -> None:
        self.batch_size, self.length, self.capacity = batch_size, 0, capacity
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new ``(B, H, 1, E)`` behind ``length`` and return all ``(B, H, length + 1, E)``."""
        end = self.length + 1
        kept = self.layers[layer]
        if kept is None or kept[0].shape[2] < end:
            shape = (*key.shape[:2], max(self.capacity, 2 * self.length), key.shape[3])
            grown = key.new_empty(shape), value.new_empty(shape)
            if kept is not None:
                for new, old in zip(grown, kept, strict=True):
                    new[:, :, : self.length] = old[:, :, : self.length]
            kept = self.layers[layer] = grown
        keys, values = kept
        keys[:, :, end - 1 : end], values[:, :, end - 1 : end] = key, value
        return keys[:, :, :end], values[:, :, :end]


class CausalTransformer(nn.Module):
    """Blocks over a packed line or one step at a time, with a final norm.

    Args:
        dim: Width W.
        num_layers: Blocks.
        num_heads: Attention heads; ``dim / num_heads`` must be even.
        ffn_dim: Width inside the feed-forward.
        gradient_checkpointing: Recompute blocks in the backward pass to save memory.
        matrices: Above 1, every linear layer has that many matrices: place ``i`` of a row takes number
            ``i % matrices``. Rows are then as long as a multiple of it.
    """

    blocks: nn.ModuleList

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        gradient_checkpointing: bool = False,
        matrices: int = 1,
    ) -> None:
        super().__init__()
        if dim % (2 * num_heads):
            raise ValueError(
                f"width {dim} does not split into {num_heads} heads of an even width; "
                f"take a multiple of {2 * num_heads}, or other num_heads"
            )
        self.head_dim, self.gradient_checkpointing = dim // num_heads, gradient_checkpointing
        self.blocks = nn.ModuleList([_Block(dim, num_heads, ffn_dim, num_layers, matrices) for _ in range(num_layers)])
        self.norm = nn.RMSNorm(dim, eps=1e-6)

    def forward(self, inputs: Tensor, position_ids: Tensor, layout: PackedLayout) -> Tensor:
        """Hidden states ``(N, W)`` of a packed line ``(N, W)`` whose ``position_ids`` ``(N,)`` restart in every row."""
        rotary = self._rotary(position_ids, inputs.dtype)
        hidden = inputs
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                hidden = checkpoint(block, hidden, rotary, layout, use_reentrant=False)
            else:
                hidden = block(hidden, rotary, layout)
        normed: Tensor = self.norm(hidden)
        return normed

    def step(self, inputs: Tensor, cache: KeyValueCache | SlotCache) -> Tensor:
        """Hidden states ``(B, W)`` of the next position ``(B, W)`` of every row; ``cache`` grows by one.

        Rows of a ``KeyValueCache`` are at one place; of a ``SlotCache``, those in use are each at its own.
        """
        place = None
        if isinstance(cache, SlotCache):
            positions = cache.open()[:, 0]
        else:
            place, positions = cache.length, torch.full((1,), cache.length, device=inputs.device)
        rotary = self._rotary(positions, inputs.dtype)
        hidden = inputs
        for index, block in enumerate(self.blocks):
            hidden = cast(_Block, block).step(hidden, rotary, cache, index, place)
        if isinstance(cache, SlotCache):
            cache.close()
        else:
            cache.length += 1
        normed: Tensor = self.norm(hidden)
        return normed

    def _rotary(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # no buffer: a model cast to half precision would round the frequencies
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=position_ids.device) / self.head_dim
        angles = position_ids[:, None] * 10000.0**-exponents  # (N, E / 2)
        angles = torch.cat([angles, angles], -1)[:, None]  # (N, 1, E)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class _Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, num_layers: int, matrices: int) -> None:
        super().__init__()
        self.num_heads = num_heads

        def linear(in_dim: int, out_dim: int) -> SharedLinear | PlacedLinear:
            return SharedLinear(in_dim, out_dim) if matrices == 1 else PlacedLinear(in_dim, out_dim, matrices)

        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
        self.qkv, self.out = linear(dim, 3 * dim), linear(dim, dim)
        self.gate_up, self.down = linear(dim, 2 * ffn_dim), linear(ffn_dim, dim)
        for layer in (self.qkv, self.gate_up):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.out, self.down):  # the stream's variance stays independent of depth (GPT-2)
            nn.init.normal_(layer.weight, std=0.02 / (2 * num_layers) ** 0.5)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], layout: PackedLayout) -> Tensor:
        """Packed line ``(N, W)`` -> ``(N, W)``."""
        query, key, value = self._heads(hidden, rotary)
        mixed = packed_attention(query, key, value, layout)  # (N, H, E)
        return self._feed_forward(hidden + self.out(mixed.flatten(1)))

    def step(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KeyValueCache | SlotCache,
        index: int,
        place: int | None,
    ) -> Tensor:
        """One position a row ``(B, W)`` -> ``(B, W)``; all at ``place`` where it is known."""
        query, key, value = (x.unsqueeze(2) for x in self._heads(hidden, rotary, place))  # (B, H, 1, E)
        if isinstance(cache, SlotCache):
            mixed = cache.attend(index, query, key, value)
        else:
            mixed = F.scaled_dot_product_attention(query, *cache.append(index, key, value))
        return self._feed_forward(hidden + self.out(mixed.flatten(1), place), place)

    def _heads(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], place: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each ``(rows, H, E)``."""
        joined = self.qkv(self.attention_norm(hidden), place)
        query, key, value = joined.unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        return _rotate(query, *rotary), _rotate(key, *rotary), value

    def _feed_forward(self, hidden: Tensor, place: int | None = None) -> Tensor:
        gate, up = self.gate_up(self.ffn_norm(hidden), place).chunk(2, -1)
        added: Tensor = hidden + self.down(F.silu(gate) * up, place)
        return added


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine.to(x.dtype) + torch.cat([-second, first], -1) * sine.to(x.dtype)
