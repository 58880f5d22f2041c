"""K-means over more frames than fit into memory.

Legend: N frames of a batch, D width, K centroids.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MiniBatchKMeans", "nearest", "spread_out"]

DISTANCES = 20_000_000  # computed at once: 80 MB
STARVED = 0.01  # of the largest cluster's frames: a centroid with fewer moves to a frame that is far from all
FEED_EVERY = 10  # frames per centroid between two looks for starved ones


def nearest(frames: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of centroids ``(K, D)`` to each frame ``(N, D)``.

    Returns:
        Numbers ``(N,)`` int64 and squared distances ``(N,)``.
    """
    offsets = centroids.square().sum(1)
    numbers, distances = [], []
    for part in frames.split(max(1, DISTANCES // len(centroids))):
        best, found = torch.addmm(offsets, part, centroids.T, alpha=-2.0).min(1)
        numbers.append(found)
        distances.append((best + part.square().sum(1)).clamp(min=0))
    return torch.cat(numbers), torch.cat(distances)


def spread_out(frames: Tensor, num_centroids: int, generator: torch.Generator) -> Tensor:
    """Centroids ``(K, D)`` to begin with, drawn from frames ``(N, D)``: each far from those before it.

    k-means++ (https://dl.acm.org/doi/10.5555/1283383.1283494): a frame is drawn in proportion to its squared distance
    from the nearest centroid drawn so far.

    Raises:
        ValueError: If fewer frames differ than centroids are wanted.
    """
    left = torch.full((len(frames),), torch.inf, device=frames.device)
    chosen: list[int] = []
    weights = torch.ones(len(frames), dtype=torch.float64)
    for _ in range(num_centroids):
        if not weights.any():
            raise ValueError(
                f"{len(frames)} frames hold only {len(chosen)} that differ, too few for {num_centroids} centroids; "
                "give more speech, or take fewer"
            )
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        left = torch.minimum(left, (frames - frames[chosen[-1]]).square().sum(1))
        weights = left.double().cpu()
    return frames[chosen].clone()


class MiniBatchKMeans:
    """Centroids that follow the frames of one batch after another.

    Each centroid is the mean of all frames that were nearest to it when they came (D. Sculley,
    https://dl.acm.org/doi/10.1145/1772690.1772862, whole batches at a time). Centroids that hardly any frame is nearest
    to are moved to frames that are far from all, as scikit-learn does.

    Args:
        centroids: ``(K, D)`` to begin with; changed in place.
        generator: Of the frames that starved centroids move to, on the CPU.
    """

    def __init__(self, centroids: Tensor, generator: torch.Generator) -> None:
        self.centroids, self.generator = centroids, generator
        self.counts = torch.zeros(len(centroids), device=centroids.device)  # frames that each is the mean of
        self._unfed = 0

    def update(self, frames: Tensor, feed: bool = True) -> tuple[Tensor, Tensor]:
        """Learn from frames ``(N, D)``; gives what ``nearest`` gave before.

        Args:
            frames: A batch.
            feed: Starved centroids may move.
        """
        numbers, distances = nearest(frames, self.centroids)
        fresh = torch.bincount(numbers, minlength=len(self.centroids)).to(self.counts)
        self.counts += fresh
        sums = torch.zeros_like(self.centroids).index_add_(0, numbers, frames)
        pull = 1 / self.counts.clamp(min=1)[:, None]
        self.centroids += (sums - fresh[:, None] * self.centroids) * pull
        self._unfed += len(frames)
        if feed and self._unfed >= FEED_EVERY * len(self.centroids):
            self._unfed = 0
            self._feed(frames, distances)
        return numbers, distances

    def _feed(self, frames: Tensor, distances: Tensor) -> None:
        starved = (self.counts < STARVED * self.counts.max()).nonzero().squeeze(1)
        far = distances.double().cpu()
        count = min(len(starved), int((far > 0).sum()), len(frames) // 2)
        if not count:
            return
        starved = starved[self.counts[starved].argsort()[:count]]
        self.centroids[starved] = frames[torch.multinomial(far, count, generator=self.generator).to(frames.device)]
        self.counts[starved] = self.counts.where(self.counts >= STARVED * self.counts.max(), self.counts.max()).min()
