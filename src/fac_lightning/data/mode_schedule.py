"""Which modes are mixed when: the weights of modes as training goes through its data.

Time is counted in epochs, passes of all processes together over the training dialogues, as a fraction: the dialogue at
place ``i`` of the endless shuffled stream stands at ``i / dialogues``. Optimizer steps would not do. How many dialogues
make a step depends on packing, and so on the number of workers; the place of a dialogue depends on the seed alone, so
that it is laid out in the same mode with any number of workers and processes, and after a resume.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LinearModes", "ModeSchedule"]


class ModeSchedule(ABC):
    """How the weights of modes change over training.

    A schedule of your own derives from this class; the data module takes any (``data.mode_schedule`` of a recipe).
    """

    @property
    @abstractmethod
    def modes(self) -> tuple[str, ...]:
        """Modes that it may give weight to, beside those of the start."""

    @abstractmethod
    def weights(self, start: Mapping[str, float], epochs: float) -> dict[str, float]:
        """Weight of each mode.

        Args:
            start: Weights with which training begins (``data.modes``).
            epochs: Passes over the training dialogues so far; infinite asks for the weights that it ends with, which
                are those of validation.
        """


@dataclass(frozen=True)
class LinearModes(ModeSchedule):
    """From the weights of the start to others, in a straight line; then these.

    Weights are made to sum to 1 on both sides first, so that they are shares.

    Args:
        end: Weight per mode at the end; a mode that is not named has none.
        epochs: Passes over the training dialogues that the way takes.
        after: Passes before it begins.
    """

    end: dict[str, float]
    epochs: float
    after: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a way of no length and an end of no weight."""
        if not self.epochs > 0:
            raise ValueError(f"epochs must be above 0, got {self.epochs}; leave the schedule out for constant weights")
        if self.after < 0:
            raise ValueError(f"after must not be negative, got {self.after}; it counts passes before the change begins")
        if negative := [mode for mode, weight in self.end.items() if weight < 0]:
            raise ValueError(f"end gives {negative[0]} the weight {self.end[negative[0]]}; weights are 0 or more")
        if not sum(self.end.values()) > 0:
            raise ValueError(f"end gives no mode a positive weight: {self.end}")

    @property
    def modes(self) -> tuple[str, ...]:
        """Those of the end."""
        return tuple(mode for mode, weight in self.end.items() if weight > 0)

    def weights(self, start: Mapping[str, float], epochs: float) -> dict[str, float]:
        """Between start and end; see ``ModeSchedule.weights``."""
        way = 1.0 if math.isinf(epochs) else min(max((epochs - self.after) / self.epochs, 0.0), 1.0)
        first, last = _shares(start), _shares(self.end)
        return {mode: (1 - way) * first.get(mode, 0.0) + way * last.get(mode, 0.0) for mode in {**first, **last}}


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {mode: weight / total for mode, weight in weights.items()}
