"""Mixing: several sources become one endless sequence, drawn by weight; each goes round by itself.

Nothing of the sequence is remembered but a seed: the draw at any place is found again without those before it being
laid out, so that ranks deal it out among them and an interrupted run goes on anywhere in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

__all__ = ["DataSource", "Draw", "draw_rows", "mixing_shares"]

BLOCK = 4096  # sources drawn at once


class DataSource:
    """One of several sources to train on, with what is its own.

    Args:
        path: Dialogues folder or manifest, or several that count as one.
        weight: How often it is drawn, beside the others; its number of dialogues when None.
        tags: Words by which rows are counted in the logs beside the source's name, such as ``en`` or ``qa``.
        modes: Weight per mode; those of the data module when None.
        system_prompts: Prompt per mode, where it is to differ from those of the data module.

    Raises:
        ValueError: The weight is not above 0.
    """

    def __init__(
        self,
        path: str | list[str],
        weight: float | None = None,
        tags: list[str] | None = None,
        modes: dict[str, float] | None = None,
        system_prompts: dict[str, str] | None = None,
    ) -> None:
        if weight is not None and not weight > 0:
            raise ValueError(f"weight of the source {path} must be above 0, got {weight}; leave the source out instead")
        self.paths = [path] if isinstance(path, str) else list(path)
        self.weight, self.tags = weight, tuple(tags or ())
        self.modes, self.system_prompts = modes, system_prompts

    def settings(self) -> dict[str, object]:
        """What the training stream depends on, beside the content; readable."""
        return {"weight": self.weight, "modes": self.modes, "system_prompts": self.system_prompts}


class Draw(NamedTuple):
    """One place of the endless sequence."""

    place: int  # in the sequence, over all ranks
    source: int
    row: int  # of the source
    epoch: int  # passes over the source before this one
    way: float  # how far this one has come, from 0 to 1


def mixing_shares(sizes: Sequence[int], temperature: float, weights: Sequence[float | None] = ()) -> np.ndarray:
    """Probability of each source, proportional to ``weight ** (1 / temperature)``: as weighed at 1, evener above.

    Args:
        sizes: Rows of each source: its weight where it has no other.
        temperature: Above 0.
        weights: Of each source, or None.

    Raises:
        ValueError: The temperature is not above 0.
    """
    if temperature <= 0:
        raise ValueError(
            f"temperature must be above 0, got {temperature}: 1 draws sources by their weight or size, more evens them"
        )
    given = weights or [None] * len(sizes)
    chosen = [size if weight is None else weight for size, weight in zip(sizes, given, strict=True)]
    powers = np.asarray(chosen, dtype=np.float64) ** (1 / temperature)
    shares: np.ndarray = powers / powers.sum()
    return shares


def draw_rows(
    orders: Sequence[Callable[[int], Iterator[int]]],
    sizes: Sequence[int],
    shares: Sequence[float] | np.ndarray,
    seed: int,
    shard: int = 0,
    num_shards: int = 1,
    start: int = 0,
) -> Iterator[Draw]:
    """The endless sequence of sources and their rows, as one shard has it: shards take turns over the places.

    Every pass of a source sees each of its rows once, over all shards together.

    Args:
        orders: Of each source, the order of its rows in an epoch.
        sizes: Rows of each source.
        shares: Probability of each source.
        seed: Of the draw of sources.
        shard: Rank of this process.
        num_shards: Processes.
        start: First place; what lies before it is passed over, not read.
    """
    rng = np.random.default_rng([seed, 0])
    ends = np.cumsum(shares)
    passed = np.zeros(len(sizes), dtype=np.int64)  # rows drawn of each source before the block
    cursors = [_Cursor(order, size) for order, size in zip(orders, sizes, strict=True)]
    first = 0
    while True:
        drawn = np.zeros(BLOCK, dtype=np.int64)
        if len(sizes) > 1:  # the last bin takes what rounding leaves
            drawn = np.minimum(np.searchsorted(ends, rng.random(BLOCK), side="right"), len(sizes) - 1)
        if first + BLOCK > start:
            turns = _turns(drawn, passed)
            begin = max(start - first, 0)
            begin += (shard - first - begin) % num_shards
            for i in range(begin, BLOCK, num_shards):
                source = int(drawn[i])
                epoch, turn = divmod(int(turns[i]), sizes[source])
                yield Draw(first + i, source, cursors[source].at(epoch, turn), epoch, turn / sizes[source])
        passed += np.bincount(drawn, minlength=len(sizes))
        first += BLOCK


def _turns(drawn: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """How many rows of the same source come before each draw of a block."""
    turns = np.empty_like(drawn)
    for source in range(len(passed)):
        mine = np.flatnonzero(drawn == source)
        turns[mine] = passed[source] + np.arange(len(mine))
    return turns


class _Cursor:
    """Goes forward through the epochs of one source."""

    def __init__(self, order: Callable[[int], Iterator[int]], size: int) -> None:
        self.order, self.size = order, size
        self.epoch, self.turn = -1, 0
        self.rows: Iterator[int] = iter(())

    def at(self, epoch: int, turn: int) -> int:
        """Row at a turn that is not before the last one asked for."""
        if epoch != self.epoch:
            self.epoch, self.turn, self.rows = epoch, 0, self.order(epoch)
        row = next(islice(self.rows, turn - self.turn, None))
        self.turn = turn + 1
        return row


def described(sources: Mapping[str, DataSource]) -> dict[str, object]:
    """Settings of all sources, for the recipe of a stream."""
    return {name: source.settings() for name, source in sources.items()}
