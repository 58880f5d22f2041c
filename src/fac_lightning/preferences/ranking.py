"""Pairs out of ranked candidates: the best of a group before the worst."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fac_lightning.preferences.base import LoadRun, PairBuilder
from fac_lightning.preferences.candidates import Candidate, CandidateGroup, CandidateSource
from fac_lightning.preferences.folder import PairFolder

__all__ = ["LeftOutError", "Ranked", "RankedPairs", "best_and_worst"]


class LeftOutError(ValueError):
    """A group gives no pair; the message is the reason, counted in the summary."""


@dataclass(frozen=True, eq=False)
class Ranked:
    """A candidate and what the measure gave for it."""

    candidate: Candidate
    value: float  # as the summary tells it
    goodness: float  # the same, so that more is better
    may_win: bool = True


def best_and_worst(ranked: Sequence[Ranked], min_margin: float = 0.0) -> tuple[Ranked, Ranked]:
    """The best that may win and the worst; of equals the first.

    Raises:
        LeftOutError: There are less than two, none may win, or they lie ``min_margin`` or less apart.
    """
    winners = [one for one in ranked if one.may_win]
    if len(ranked) < 2:
        raise LeftOutError("fewer than two answers to rank")
    if not winners:
        raise LeftOutError("no answer good enough to be chosen")
    best, worst = max(winners, key=lambda one: one.goodness), min(ranked, key=lambda one: one.goodness)
    if best.goodness - worst.goodness <= 0:
        raise LeftOutError("tie")
    if best.goodness - worst.goodness <= min_margin:
        raise LeftOutError(f"margin of {min_margin:g} or less")
    return best, worst


class RankedPairs(PairBuilder):
    """Builders that rank groups of candidates by a measure of their own."""

    candidates: CandidateSource
    min_margin: float

    @abstractmethod
    def rank(self, group: CandidateGroup) -> list[Ranked]:
        """The candidates of a group that can be ranked.

        Raises:
            LeftOutError: The group cannot be ranked.
        """

    def margin(self, group: CandidateGroup) -> float:
        """What best and worst of a group must differ by, and more."""
        return self.min_margin

    def build(self, folder: PairFolder, load_run: LoadRun | None) -> None:
        """Best before worst, group by group."""
        for group in self.candidates.groups(load_run, folder.leave_out):
            try:
                ranked = self.rank(group)
                best, worst = best_and_worst(ranked, self.margin(group))
            except LeftOutError as reason:
                folder.leave_out(str(reason))
                continue
            custom: dict[str, Any] = {
                "values": [one.value for one in ranked],
                "chosen_info": best.candidate.custom,
                "rejected_info": worst.candidate.custom,
            }
            folder.write(
                group.id,
                group.prompt,
                best.candidate.turn,
                worst.candidate.turn,
                (best.value, worst.value),
                group.system,
                group.mode,
                custom,
            )
