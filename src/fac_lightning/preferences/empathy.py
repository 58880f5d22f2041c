"""Voice empathy: the answer that judges found warm before the one they found cold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fac_lightning.preferences.base import LoadRun
from fac_lightning.preferences.candidates import Candidate, CandidateGroup, CandidateSource
from fac_lightning.preferences.ranking import LeftOutError, Ranked, RankedPairs

__all__ = ["EmpathyPairs"]

KINDS = ("score", "rank", "label")
LABELS = ("empathetic", "neutral", "indifferent")


@dataclass(frozen=True)
class EmpathyPairs(RankedPairs):
    """Rank answers as judges did: people, or a model that listens. Nothing here can hear empathy itself.

    Every answer carries one of ``rank`` (1 is the best), ``score`` (more is better) or ``label`` (one of ``labels``,
    whose place counts). Text and tone are judged together, so spoken answers stay spoken.

    Args:
        candidates: Judged answers: ``ManifestCandidates``.
        out: Folder of the pairs.
        labels: The judges' words, the best first; empathetic, neutral, indifferent when None.
        min_margin: Ranks, scores or places of a pair differ by more than this.
        task: Family of the pairs.
        load_run: Rebuilds trained runs; the command line passes it.
    """

    measure: ClassVar[str] = "the judges' score (more is better), rank or label (less is better)"

    candidates: CandidateSource
    out: str
    labels: list[str] | None = None
    min_margin: float = 0.0
    task: str = "empathy"
    load_run: LoadRun | None = None

    def rank(self, group: CandidateGroup) -> list[Ranked]:
        """Candidates that were judged, all in the same way.

        Raises:
            ValueError: A label is not among ``labels``.
        """
        kinds = [next((kind for kind in KINDS if kind in one.custom), None) for one in group.candidates]
        used = {kind for kind in kinds if kind is not None}
        if len(used) != 1:
            raise LeftOutError("judged in two ways" if used else "not judged")
        kind = used.pop()
        judged = [one for one, how in zip(group.candidates, kinds, strict=True) if how == kind]
        values = [self._value(one, kind) for one in judged]
        sign = 1 if kind == "score" else -1
        return [Ranked(one, value, sign * value) for one, value in zip(judged, values, strict=True)]

    def _value(self, candidate: Candidate, kind: str) -> float:
        found = candidate.custom[kind]
        if kind != "label":
            return float(found)
        labels = LABELS if self.labels is None else self.labels
        if found not in labels:
            raise ValueError(f"an answer has the label {found!r}; labels are {', '.join(labels)}, the best first")
        return float(labels.index(found))
