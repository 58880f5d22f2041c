"""Candidate answers to one prompt, before anybody ranked them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fac_lightning.data.dialogue import Turn
from fac_lightning.preferences.base import LoadRun

__all__ = ["Candidate", "CandidateGroup", "CandidateSource"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One answer."""

    turn: Turn  # what a pair stores
    audio: np.ndarray | None = None  # (S,) float32, how it sounds; None for written answers
    sample_rate: int | None = None  # Hz, with audio
    finished: bool = True  # False where the model was cut off
    custom: dict[str, Any] = field(default_factory=dict)  # what its source says of it: labels, scores

    @property
    def text(self) -> str:
        """What it says."""
        return self.turn.text


@dataclass(frozen=True, eq=False)
class CandidateGroup:
    """Answers to one prompt."""

    id: str
    prompt: tuple[Turn, ...]  # the last is the user's
    candidates: tuple[Candidate, ...]
    reference: Turn | None = None  # the right answer, where one is known
    system: str | None = None
    mode: str | None = None  # in which the answers were made
    custom: dict[str, Any] = field(default_factory=dict)  # what its source says of the prompt: a style asked for


class CandidateSource(ABC):
    """Where candidates come from."""

    @abstractmethod
    def groups(self, load_run: LoadRun | None, leave_out: Callable[[str], None]) -> Iterator[CandidateGroup]:
        """Groups in a fixed order, the same at every call.

        Args:
            load_run: Rebuilds trained runs, for sources that sample.
            leave_out: Told of each prompt that gives no group, and why.
        """
