"""Counts of values in fixed bins: as large for a million values as for ten."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

__all__ = ["Histogram", "growing_edges", "whole_edges"]


def growing_edges(first: float, last: float, per_decade: int = 20) -> tuple[float, ...]:
    """Edges of bins from 0 on: one up to ``first``, then each wider than the one before by the same factor.

    Args:
        first: Above 0.
        last: The last edge lies at or behind it.
        per_decade: Bins in each factor of 10; 20 make each bin 12 % wide.
    """
    steps = math.ceil(per_decade * math.log10(last / first) - 1e-9)
    return (0.0, *(first * 10 ** (i / per_decade) for i in range(steps + 1)))


def whole_edges(last: int, singles: int = 8) -> tuple[float, ...]:
    """Edges of bins for whole numbers from 0 on: each number alone up to ``singles``, behind it wider and wider."""
    wider = {round(edge) for edge in growing_edges(1.0, last) if edge > singles}
    return (*map(float, range(singles + 1)), *map(float, sorted(wider)))


class Histogram:
    """How often values lay in which bin; their number, sum, least and greatest value are exact.

    Args:
        edges: Of the bins ``[edges[i], edges[i + 1])``, ascending. Values outside count in the first or last.
        whole: The values are whole numbers, and so are their quantiles.
    """

    def __init__(self, edges: Sequence[float], whole: bool = False) -> None:
        self.edges, self.whole = tuple(edges), whole
        self.counts = [0] * (len(self.edges) - 1)
        self.count, self.total = 0, 0.0
        self.least, self.greatest = math.inf, -math.inf

    def add(self, value: float) -> None:
        """Count a value."""
        place = bisect_right(self.edges, value) - 1
        self.counts[min(max(place, 0), len(self.counts) - 1)] += 1
        self.count, self.total = self.count + 1, self.total + value
        self.least, self.greatest = min(self.least, value), max(self.greatest, value)

    @property
    def mean(self) -> float:
        """Mean of the values; 0 of none."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """About the value below which a share of them lies: right to the width of a bin; 0 of none."""
        if not self.count:
            return 0.0
        wanted, below = share * self.count, 0
        for i, count in enumerate(self.counts):
            if count and below + count >= wanted:
                inside = (wanted - below) / (count + 1)  # inside the bin, also for the last of its values
                value = self.edges[i] + inside * (self.edges[i + 1] - self.edges[i])
                value = min(max(value, self.least), self.greatest)
                return math.floor(value) if self.whole else value
            below += count
        return self.greatest

    def to_record(self) -> dict[str, Any]:
        """JSON values: figures, and the bins that are not empty as ``[from, to, count]``."""
        if not self.count:
            return {"count": 0, "bins": []}
        return {
            "count": self.count,
            "mean": self.mean,
            "least": self.least,
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "greatest": self.greatest,
            "bins": [[*self.edges[i : i + 2], count] for i, count in enumerate(self.counts) if count],
        }
