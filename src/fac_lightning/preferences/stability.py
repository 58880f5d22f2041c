"""Speech stability: the clearest of several spoken answers before the least clear."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fac_lightning.preferences.base import LoadRun
from fac_lightning.preferences.candidates import CandidateGroup, CandidateSource
from fac_lightning.preferences.ranking import LeftOutError, Ranked, RankedPairs
from fac_lightning.recognizers.base import Recognizer
from fac_lightning.resampling import resample
from fac_lightning.wer import normalize_english, word_error_rate

__all__ = ["StabilityPairs"]


@dataclass(frozen=True)
class StabilityPairs(RankedPairs):
    """Rank spoken answers by the word error rate of a recogniser against their own text: lowest before highest.

    As the talker of Qwen2.5-Omni (https://arxiv.org/abs/2503.20215) is made stable. An answer that was cut off is
    never preferred. Groups whose answers are all heard equally well give no pair.

    Args:
        candidates: Spoken answers: ``SampledCandidates`` for the model's own.
        recognizer: Judge; not the model's own speech encoder.
        out: Folder of the pairs.
        min_margin: Word error rates of a pair differ by more than this.
        max_wer: A chosen answer has this word error rate or less.
        task: Family of the pairs.
        load_run: Rebuilds trained runs; the command line passes it.
    """

    measure: ClassVar[str] = "word error rate of the recogniser against the answer's text, lower is better"

    candidates: CandidateSource
    recognizer: Recognizer
    out: str
    min_margin: float = 0.0
    max_wer: float = 0.25
    task: str = "stability"
    load_run: LoadRun | None = None

    def rank(self, group: CandidateGroup) -> list[Ranked]:
        """Candidates that are spoken and say a word."""
        spoken = [one for one in group.candidates if one.audio is not None and normalize_english(one.text)]
        if len(spoken) < 2:
            raise LeftOutError("fewer than two spoken answers with words")
        rate = self.recognizer.sample_rate
        clips = [resample(one.audio, one.sample_rate, rate) for one in spoken]  # type: ignore[arg-type]
        ranked = []
        for candidate, heard in zip(spoken, self.recognizer(clips), strict=True):
            wer = word_error_rate([candidate.text], [heard])
            told = {**candidate.custom, "asr_text": heard, "finished": candidate.finished}
            may_win = candidate.finished and wer <= self.max_wer
            ranked.append(Ranked(replace(candidate, custom=told), wer, -wer, may_win))
        return ranked
