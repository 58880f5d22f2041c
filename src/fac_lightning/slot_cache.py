"""Keys and values of several rows in memory that is there before they come, every row with a length of its own.

Rows come and go while others run on. Those in use are always the first ones, so that a step works on slices: when a
row leaves, the last one takes its place. A step writes its keys and values in place; what is there is copied only when
a row outgrows the room that all have. Room is added by the piece and not doubled: rows that lie close together are read
in half the time on a CPU.

Legend: S slots, R rows in use, L new positions of a pass, C positions that have room, H query heads, K key-value heads
(H a multiple of K), E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fac_lightning.packed import capped_attention

__all__ = ["CachedRow", "SlotCache"]

#: Room is a multiple of this many positions, unless a cache says otherwise.
PIECE = 64


@dataclass(frozen=True, eq=False)
class CachedRow:
    """A row taken out of a cache, as long as it is; it may be put back more than once."""

    length: int
    layers: dict[int, tuple[Tensor, Tensor]]  # keys and values (K, length, E) of each layer


@dataclass(frozen=True, eq=False)
class _Pass:
    """New positions on their way through the layers."""

    first: int  # row
    rows: int  # R
    new: int  # L
    extent: int  # positions that the longest row has behind this pass
    positions: Tensor  # (R, L) int64
    masks: dict[int | None, Tensor | None]  # window -> (R, 1, L, extent) bool
    fixed: bool = False  # of all slots and all positions that have room, whatever is in use


class SlotCache:
    """Attention over what rows have seen; used by all layers of one transformer.

    A pass is ``open``, ``attend`` of every layer, ``close``.

    Args:
        num_slots: Rows that have room, S.
        capacity: Positions that each has room for at first, C.
        device: Of keys and values.
        piece: What room grows by; more where rows grow by many positions at a time.
    """

    def __init__(self, num_slots: int, capacity: int, device: torch.device | str = "cpu", piece: int = PIECE) -> None:
        if num_slots < 1 or capacity < 1:
            raise ValueError(f"a cache needs at least one slot and one position, got {num_slots} and {capacity}")
        self.num_slots, self.capacity, self.device, self.piece = num_slots, capacity, torch.device(device), piece
        self.lengths: list[int] = []  # of the rows in use
        self.layer = 0  # whose keys and values came last, for callers that are not told it when they attend
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # (S, K, C, E) each
        self._rows = torch.arange(num_slots, device=self.device)
        self._pass: _Pass | None = None
        self._fixed: Tensor | None = None
        self._passes = 0  # of the fixed step that ran last

    def join(self, seen: CachedRow | None = None) -> int:
        """Take a row into use, behind the others; it has seen what ``seen`` has, or nothing. Gives its number."""
        row = len(self.lengths)
        assert row < self.num_slots, "all slots are in use"
        self.lengths.append(0)
        if seen is not None:
            self.make_room(seen.length)
            for layer, (keys, values) in seen.layers.items():
                for room, part in zip(self._room(layer, keys, values), (keys, values), strict=True):
                    room[row, :, : seen.length] = part
            self.lengths[row] = seen.length
        return row

    def leave(self, row: int) -> None:
        """Take a row out of use; the last one takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            length = self.lengths[row] = self.lengths[last]
            for parts in self._layers.values():
                for room in parts:
                    room[row, :, :length] = room[last, :, :length]
        self.lengths.pop()

    def copied(self, row: int) -> CachedRow:
        """What a row has seen."""
        length = self.lengths[row]
        parts = {i: (k[row, :, :length].clone(), v[row, :, :length].clone()) for i, (k, v) in self._layers.items()}
        return CachedRow(length, parts)

    def open(self, new: int = 1, row: int | None = None) -> Tensor:
        """Begin a pass of ``new`` positions of one row, or of all rows in use: their positions ``(R, L)``."""
        assert self._pass is None, "a pass is under way"
        if self._fixed is not None:
            self._pass = _Pass(0, self.num_slots, 1, self.capacity, self._fixed, {}, fixed=True)
            return self._fixed
        first, rows = (0, len(self.lengths)) if row is None else (row, 1)
        extent = max(self.lengths[first : first + rows]) + new
        self.make_room(extent)
        starts = torch.tensor(self.lengths[first : first + rows], device=self.device)
        positions = starts[:, None] + torch.arange(new, device=self.device)
        self._pass = _Pass(first, rows, new, extent, positions, {})
        return positions

    def close(self) -> None:
        """End a pass."""
        done = self._pass
        assert done is not None, "no pass is under way"
        if done.fixed:
            self._fixed, self._passes = done.positions + 1, self._passes + 1
        else:
            for row in range(done.first, done.first + done.rows):
                self.lengths[row] += done.new
        self._pass = None

    @contextmanager
    def fixed_at(self, positions: Tensor) -> Iterator[None]:
        """Inside, passes are of all slots, each at its place in ``positions`` ``(S, 1)``, over all that has room.

        The next pass is one place further. Shapes are always the same and nothing is read from the host, so that the
        passes can be captured once and replayed. What a slot that is not in use reads and writes means nothing.
        Lengths stay as they are: see ``advance``.
        """
        self._fixed, self._passes = positions, 0
        try:
            yield
        finally:
            self._fixed = None

    def advance(self, rows: Sequence[bool] | None = None) -> None:
        """Count what the fixed passes have written: of the ``rows`` in use that are True, or of all."""
        moved = [True] * len(self.lengths) if rows is None else rows
        self.lengths = [length + self._passes * moves for length, moves in zip(self.lengths, moved, strict=True)]

    def reserve(self, new: int = 1) -> None:
        """Make room for fixed passes of the longest row; it is doubled, for what is captured holds until it grows."""
        length = max(self.lengths) + new
        if length > self.capacity:
            self.make_room(max(length, 2 * self.capacity))

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """What transformers calls before it attends; remembers the layer."""
        self.layer = layer
        return key, value

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Remember new keys and values, and attend to all that the rows have seen: ``(R, H, L, E)``.

        Args:
            layer: Number of the layer.
            query: ``(R, H, L, E)``.
            key: ``(R, K, L, E)``.
            value: ``(R, K, L, E)``.
            scale: Factor of the scores; ``E ** -0.5`` when None.
            window: Positions that a query sees, itself included; all earlier ones when None.
            softcap: Scores stay below this number; see ``capped_attention``.
        """
        now = self._pass
        assert now is not None, "no pass is under way"
        seen = []
        for room, part in zip(self._room(layer, key[0], value[0]), (key, value), strict=True):
            if now.new == 1:
                room[self._rows[now.first : now.first + now.rows], :, now.positions[:, 0]] = part[:, :, 0]
            else:  # of one row
                end = self.lengths[now.first] + now.new
                room[now.first, :, end - now.new : end] = part[0]
            seen.append(room[now.first : now.first + now.rows, :, : now.extent])
        keys, values = seen
        mask = self._mask(now, window)
        if softcap is not None:
            if mask is None and now.new > 1:
                mask = _behind(now, self.device)
            return capped_attention(query, keys, values, mask, softcap, scale)
        groups = query.shape[1] // keys.shape[1]
        if now.new == 1 and groups > 1:  # queries that share keys are several queries of one head
            query = query.unflatten(1, (-1, groups)).squeeze(3)  # (R, K, H / K, E)
            out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
            return out.flatten(1, 2).unsqueeze(2)
        causal = now.new > 1 and mask is None
        return F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=groups > 1
        )

    def _mask(self, now: _Pass, window: int | None) -> Tensor | None:
        """What new positions see ``(R, 1, L, extent)``; None where it is all, or all that is not behind them."""
        if window is not None and window >= now.extent:
            window = None
        if window not in now.masks:
            even = not now.fixed and all(
                length + now.new == now.extent for length in self.lengths[now.first : now.first + now.rows]
            )
            if even and window is None and (now.new == 1 or now.new == now.extent):
                now.masks[window] = None
            else:
                now.masks[window] = _behind(now, self.device, window)
        return now.masks[window]

    def _room(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Where keys and values of a layer lie, shaped for those of one row ``(K, L, E)``."""
        if layer not in self._layers:
            heads, _, width = key.shape
            shape = (self.num_slots, heads, self.capacity)
            # zeros: what a mask hides is still multiplied
            self._layers[layer] = key.new_zeros(*shape, width), value.new_zeros(*shape, value.shape[-1])
        return self._layers[layer]

    def make_room(self, length: int) -> None:
        """Have room for ``length`` positions a row, or more."""
        if length <= self.capacity:
            return
        old, self.capacity = self.capacity, -(-length // self.piece) * self.piece
        for layer, parts in self._layers.items():
            grown = tuple(x.new_zeros(*x.shape[:2], self.capacity, x.shape[3]) for x in parts)
            for new, part in zip(grown, parts, strict=True):
                new[:, :, :old] = part
            self._layers[layer] = grown[0], grown[1]


def _behind(now: _Pass, device: torch.device, window: int | None = None) -> Tensor:
    """Positions that are not behind a new one ``(R, 1, L, extent)``, of which no more than ``window``."""
    places, positions = torch.arange(now.extent, device=device), now.positions[..., None]
    seen = places <= positions
    if window is not None:
        seen = seen & (places > positions - window)
    return seen.unsqueeze(1)
