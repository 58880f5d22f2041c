"""Instruction following: the answer in the manner that was asked for before one in another, both of the same words."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fac_lightning.preferences.base import LoadRun
from fac_lightning.preferences.candidates import Candidate, CandidateGroup, CandidateSource
from fac_lightning.preferences.ranking import LeftOutError, Ranked, RankedPairs
from fac_lightning.preferences.voice import level, pitch_track, speaking_rate

__all__ = ["MARGINS", "STYLES", "InstructionPairs", "measure_manner"]

#: style -> what is measured, and whether more of it is better
STYLES: dict[str, tuple[str, bool]] = {
    "high": ("pitch", True),
    "low": ("pitch", False),
    "lively": ("pitch_range", True),
    "flat": ("pitch_range", False),
    "fast": ("rate", True),
    "slow": ("rate", False),
    "loud": ("level", True),
    "soft": ("level", False),
}
#: what a listener tells apart without effort
MARGINS = {"pitch": 2.0, "pitch_range": 2.0, "rate": 2.0, "level": 3.0}
VOICED_FRAMES = 5  # fewer say nothing of a voice


@dataclass(frozen=True)
class InstructionPairs(RankedPairs):
    """Rank spoken answers of the same words by how much of the style they have that was asked for.

    The style stands with the prompt (``style`` of the manifest's line, or of the dialogue or its question). Measures
    are of the signal: ``high`` and ``low`` by the median pitch in semitones, ``lively`` and ``flat`` by the range of
    pitch (10th to 90th percentile, semitones), ``fast`` and ``slow`` by letters a second, ``loud`` and ``soft`` by the
    level of what sounds, dB. They know no emotion; for that, judge elsewhere and use ``EmpathyPairs``.

    Args:
        candidates: Spoken answers, or the model's own: ``SampledCandidates``.
        out: Folder of the pairs.
        margins: What best and worst differ by at least, per measure, where other than ``MARGINS``: ``pitch`` and
            ``pitch_range`` in semitones, ``rate`` in letters a second, ``level`` in dB.
        task: Family of the pairs.
        load_run: Rebuilds trained runs; the command line passes it.
    """

    measure: ClassVar[str] = "pitch and its range (semitones), rate (letters a second) or level (dB), as asked for"

    candidates: CandidateSource
    out: str
    margins: dict[str, float] | None = None
    task: str = "instruction"
    load_run: LoadRun | None = None

    def __post_init__(self) -> None:
        """Refuse margins of what is not measured."""
        if unknown := sorted((self.margins or {}).keys() - MARGINS.keys()):
            raise ValueError(f"margins are of {', '.join(MARGINS)}, not of {', '.join(unknown)}")

    def margin(self, group: CandidateGroup) -> float:
        """That of the style's measure."""
        kind = STYLES[group.custom["style"]][0]
        return {**MARGINS, **(self.margins or {})}[kind]

    def rank(self, group: CandidateGroup) -> list[Ranked]:
        """Candidates of the most frequent text that can be measured.

        Raises:
            ValueError: The style is unknown.
        """
        style = group.custom.get("style")
        if style is None:
            raise LeftOutError("no style asked for")
        if style not in STYLES:
            raise ValueError(f"prompt {group.id!r} asks for the style {style!r}; measured are {', '.join(STYLES)}")
        kind, more = STYLES[style]
        ranked = []
        for one in _same_words(group.candidates):
            value = measure_manner(kind, one)
            if value is not None:
                custom = {**one.custom, "style": style, "measured": kind}
                ranked.append(Ranked(replace(one, custom=custom), value, value if more else -value, one.finished))
        return ranked


def measure_manner(kind: str, candidate: Candidate) -> float | None:
    """What a spoken answer measures, by the names of ``MARGINS``; None where its sound does not tell."""
    audio, rate = candidate.audio, candidate.sample_rate
    if audio is None or rate is None or not np.any(audio):
        return None
    if kind == "rate":
        return speaking_rate(candidate.text, audio, rate) or None
    if kind == "level":
        return level(audio, rate)
    semitones = 12 * np.log2(pitch_track(audio, rate) / 100)  # above 100 Hz
    if len(semitones) < VOICED_FRAMES:
        return None
    if kind == "pitch":
        return float(np.median(semitones))
    return float(np.diff(np.percentile(semitones, [10, 90]))[0])


def _same_words(candidates: tuple[Candidate, ...]) -> list[Candidate]:
    """Spoken candidates of the text that most of them share; of several such texts that of the first."""
    by_text: dict[str, list[Candidate]] = defaultdict(list)
    for one in candidates:
        if one.audio is not None:
            by_text["".join(filter(str.isalnum, one.text.casefold()))].append(one)
    most = max(by_text.values(), key=len, default=[])
    if len(most) < 2:
        raise LeftOutError("no two spoken answers of the same words")
    return most
