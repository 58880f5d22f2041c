"""The dialogues of a manifest that can be trained on, and what is wrong with the others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fac_lightning.data.audio import Span, fit_span, probe_span
from fac_lightning.data.dialogue import turn_span
from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.cases import REFUSED, bad_data
from fac_lightning.data.intake.header import AudioHeader
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.manifest import Manifest, manifest_path

__all__ = ["GoodDialogues", "good_dialogues", "limit_bad"]

log = logging.getLogger(__name__)

READERS = 8  # threads that open files; opening holds no lock of Python's
SHOWN = 3

TurnKey = tuple[str, int]  # cut id, number of the turn


@dataclass
class GoodDialogues:
    """What there is of a manifest."""

    places: dict[str, str] = field(default_factory=dict)  # cut id -> file, line and cut, for messages
    cuts: list[Any] = field(default_factory=list)  # in the order of the manifest
    spans: dict[TurnKey, Span] = field(default_factory=dict)  # of the turns asked for, as their files have them
    bad: list[BadData] = field(default_factory=list)  # the first problem of every other line
    bad_ids: set[str] = field(default_factory=set)  # of lines that have one

    def drop(self, problems: dict[TurnKey, BadData]) -> None:
        """Leave out the dialogues of turns that turned out bad."""
        first: dict[str, BadData] = {}
        for (name, i), problem in problems.items():
            first.setdefault(name, problem.inside(f"{self.places[name]}, turn {i}"))
        self.bad += first.values()
        self.bad_ids |= first.keys()
        self.cuts = [cut for cut in self.cuts if cut.id not in first]


def good_dialogues(path: str | Path, limits: IntakeLimits, sides: Collection[str]) -> GoodDialogues:
    """Read a manifest, and the headers of the audio that will be used.

    Args:
        path: Dialogues folder or manifest.
        limits: What is accepted.
        sides: Whose audio will be used: ``user``, ``assistant``, both or none.

    Raises:
        FileNotFoundError: There is no manifest.
        BadData: The manifest is refused as a whole: it breaks off, runs commands, or leaves the data (``REFUSED``).
    """
    found = GoodDialogues()
    for line in Manifest(manifest_path(path), limits).lines():
        if refused := next((problem for problem in line.problems if problem.code in REFUSED), None):
            raise refused
        if line.problems:
            found.bad.append(line.problems[0])
            found.bad_ids |= {line.cut.id} if line.cut is not None else set()
            continue
        found.cuts.append(line.cut)
        found.places[line.cut.id] = f"{line.where}, cut {line.cut.id!r}"
    found.bad_ids -= found.places.keys()  # the id of a second line with it is good
    for cut in found.cuts:
        for i, supervision in enumerate(cut.supervisions):
            span = turn_span(cut, i) if supervision.speaker in sides else None
            if span is not None:
                found.spans[cut.id, i] = span
    _fit(found, limits)
    return found


def _fit(found: GoodDialogues, limits: IntakeLimits) -> None:
    """Fit spans to the files that they lie in; those that do not fit take their dialogues out."""
    headers = _probe(found.spans.values(), limits)
    problems: dict[TurnKey, BadData] = {}
    for turn, span in found.spans.items():
        header = headers[_file(span)]
        try:
            if isinstance(header, BadData):
                raise header
            if header is not None:
                found.spans[turn] = fit_span(span, header, limits, _file(span))
        except BadData as problem:
            problems[turn] = problem
    found.drop(problems)


def _probe(spans: Iterable[Span], limits: IntakeLimits) -> dict[str, AudioHeader | BadData | None]:
    files = {_file(span): span for span in spans}

    def probe(span: Span) -> AudioHeader | BadData | None:
        try:
            return probe_span(span, limits)
        except BadData as problem:
            if problem.code in REFUSED:
                raise
            return problem

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(files, pool.map(probe, files.values()), strict=True))


def _file(span: Span) -> str:
    """The file of a span, or its recording where the audio is no file."""
    sources = span.recording.sources
    source = next((source for source in sources if span.channel in source.channels), sources[0])
    return source.source if source.type == "file" else f"recording {span.recording.id!r}"


def limit_bad(paths: Sequence[str | Path], bad: Sequence[BadData], good: int, max_bad_share: float) -> None:
    """Say how much is left out; refuse when it is more than a share.

    Raises:
        BadData: FAC-A00: more than ``max_bad_share`` of all dialogues are bad.
    """
    if not bad:
        return
    total, where = good + len(bad), ", ".join(map(str, paths))
    counts = ", ".join(f"{code}: {n}" for code, n in sorted(Counter(problem.code for problem in bad).items()))
    value = f"{len(bad)} bad ones of {total} dialogues ({counts})"
    if len(bad) > max_bad_share * total:
        first = " ".join(map(str, bad[:SHOWN]))
        advice = (
            f"'fac data check {paths[0]}' lists them: repair or remove them, or raise max_bad_share. The first: {first}"
        )
        raise bad_data("FAC-A00", where, value, f"at most {max_bad_share:.2%}", advice)
    log.warning("%s: %s are left out; 'fac data check' lists them. The first: %s", where, value, bad[0])
