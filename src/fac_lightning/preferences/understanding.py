"""Audio understanding: the right answer before a wrong one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fac_lightning.preferences.base import LoadRun
from fac_lightning.preferences.candidates import Candidate, CandidateGroup, CandidateSource
from fac_lightning.preferences.ranking import LeftOutError, Ranked, RankedPairs
from fac_lightning.wer import normalize_english, word_error_rate

__all__ = ["UnderstandingPairs"]


@dataclass(frozen=True)
class UnderstandingPairs(RankedPairs):
    """Rank answers by their errors: a right option before a wrong one, a close transcript before a poor one.

    Where the answers of a group say whether they are ``correct`` (true or false), a right one counts 0 and a wrong one
    1, and only a right one is chosen. Else the errors are those of its words against the group's reference, per word;
    where no answer is without errors, the reference itself stands first.

    Args:
        candidates: Options, transcripts, or the model's own answers: ``SampledCandidates`` with text sampled.
        out: Folder of the pairs.
        min_margin: Errors of a pair differ by more than this.
        task: Family of the pairs.
        load_run: Rebuilds trained runs; the command line passes it.
    """

    measure: ClassVar[str] = "errors against the right answer, lower is better"

    candidates: CandidateSource
    out: str
    min_margin: float = 0.0
    task: str = "understanding"
    load_run: LoadRun | None = None

    def rank(self, group: CandidateGroup) -> list[Ranked]:
        """All candidates, and the reference where none of them is right."""
        marked = [one for one in group.candidates if isinstance(one.custom.get("correct"), bool)]
        if marked:
            values = [0.0 if one.custom["correct"] else 1.0 for one in marked]
            return [Ranked(one, value, -value, value == 0) for one, value in zip(marked, values, strict=True)]
        reference = group.reference
        if reference is None or not normalize_english(reference.text):
            raise LeftOutError("nothing says which answer is right")
        wers = [word_error_rate([reference.text], [one.text]) for one in group.candidates]
        ranked = [Ranked(one, wer, -wer) for one, wer in zip(group.candidates, wers, strict=True)]
        if 0 not in wers:
            ranked.append(Ranked(Candidate(reference, custom={"reference": True}), 0.0, 0.0))
        return ranked
