"""Calls over a network that loses packets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fac_lightning.data.distortions.base import Distortion, check_range

__all__ = ["PacketLoss", "lost_packets"]


def lost_packets(count: int, rate: float, burst: float, rng: np.random.Generator) -> np.ndarray:
    """Which of ``count`` packets are lost, ``(count,)`` bool: runs of lost and of received ones take turns.

    Both kinds of runs are geometric, which is the two-state chain of Gilbert (1960,
    https://doi.org/10.1002/j.1538-7305.1960.tb03959.x) without losses in its good state.

    Args:
        count: Packets.
        rate: Share lost in the long run.
        burst: Mean length of a run of lost packets, at least 1.
        rng: Of the runs.

    Raises:
        ValueError: No chain loses so many packets in so short runs.
    """
    if not (burst >= 1 and 0 <= rate <= burst / (burst + 1)):
        raise ValueError(
            f"packets cannot be lost at a rate of {rate:g} in runs of {burst:g} on average: the runs have at least one "
            "packet, and the rate lies between 0 and burst / (burst + 1)"
        )
    if not rate:
        return np.zeros(count, dtype=bool)
    leave_good = rate / (burst * (1 - rate))
    first = rng.random() < rate  # the chain has run for long
    runs = np.arange(count) % 2 == (0 if first else 1)  # True: a run of losses; each is a packet or more, so enough
    lengths = rng.geometric(np.where(runs, 1 / burst, leave_good))
    return np.repeat(runs, np.minimum(lengths, count))[:count]


@dataclass(frozen=True)
class PacketLoss(Distortion):
    """Silence the packets that a network lost, with nothing put in their place.

    Args:
        rate: Range of the share of packets lost.
        packet: Seconds of sound in a packet.
        burst: Mean length of a loss, in packets.
    """

    rate: tuple[float, float] = (0.05, 0.3)
    packet: float = 0.02
    burst: float = 2.0

    def __post_init__(self) -> None:
        """Refuse rates and lengths that mean nothing."""
        object.__setattr__(self, "rate", check_range("rate", self.rate, 0.0, 1.0))
        if self.packet <= 0:
            raise ValueError(f"packet must be above 0 s, got {self.packet}")
        lost_packets(0, self.rate[1], self.burst, np.random.default_rng(0))

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Clip with gaps ``(S,)``."""
        size = max(1, round(self.packet * sample_rate))
        lost = lost_packets(-(-len(audio) // size), rng.uniform(*self.rate), self.burst, rng)
        return np.where(np.repeat(lost, size)[: len(audio)], 0.0, audio)
