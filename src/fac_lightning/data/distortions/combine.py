"""Distortions out of distortions: one after the other, one of several, now and then."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fac_lightning.data.distortions.base import Distortion

__all__ = ["Chain", "OneOf", "Sometimes"]


@dataclass(frozen=True)
class Chain(Distortion):
    """One distortion after the other: a room, then its noise, then the telephone.

    Args:
        distortions: In order.
    """

    distortions: list[Distortion]

    @property
    def keeps_length(self) -> bool:
        """When all of them do."""
        return all(part.keeps_length for part in self.distortions)

    def settle(self, rng: np.random.Generator) -> Chain:
        """All of them, each settled."""
        return replace(self, distortions=[part.settle(rng) for part in self.distortions])

    def num_samples(self, count: int) -> int:
        """What is left behind the last, of a settled chain."""
        for part in self.distortions:
            count = part.num_samples(count)
        return count

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Clip that went through all of them."""
        for part in self.distortions:
            audio = part(audio, sample_rate, rng)
        return audio


@dataclass(frozen=True)
class OneOf(Distortion):
    """One of several distortions, drawn per clip.

    Args:
        distortions: To draw from.
        weights: How often each is drawn; equally when None.
    """

    distortions: list[Distortion]
    weights: list[float] | None = None

    def __post_init__(self) -> None:
        """Refuse weights that cannot be drawn by."""
        weights = self.weights
        if not self.distortions or (
            weights is not None
            and (len(weights) != len(self.distortions) or min(weights) < 0 or not 0 < sum(weights) < np.inf)
        ):
            raise ValueError(
                f"{len(self.distortions)} distortions and the weights {weights}: give one distortion or more, and for "
                "each a weight of 0 or more, not all 0"
            )

    @property
    def keeps_length(self) -> bool:
        """When all of them do."""
        return all(part.keeps_length for part in self.distortions)

    def settle(self, rng: np.random.Generator) -> Distortion:
        """One of them, settled, where the length depends on which."""
        return self if self.keeps_length else self._draw(rng).settle(rng)

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Clip that went through one of them."""
        return self._draw(rng)(audio, sample_rate, rng)

    def _draw(self, rng: np.random.Generator) -> Distortion:
        shares = None if self.weights is None else np.array(self.weights) / sum(self.weights)
        return self.distortions[int(rng.choice(len(self.distortions), p=shares))]


@dataclass(frozen=True)
class Sometimes(Distortion):
    """A distortion with a probability; otherwise the clip stays as it is.

    Args:
        distortion: What happens.
        probability: Of its happening.
    """

    distortion: Distortion
    probability: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must lie between 0 and 1, got {self.probability}")

    @property
    def keeps_length(self) -> bool:
        """When the distortion does."""
        return self.distortion.keeps_length

    def settle(self, rng: np.random.Generator) -> Distortion:
        """The distortion, settled, or none, where the length depends on it."""
        if self.keeps_length:
            return self
        return self.distortion.settle(rng) if rng.random() < self.probability else Chain([])

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Clip, changed or not."""
        return self.distortion(audio, sample_rate, rng) if rng.random() < self.probability else audio
