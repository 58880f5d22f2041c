"""``DataCheck``: every record and all audio of data on disk, against every rule; the data are only read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fac_lightning.data.audio import Span, read_span
from fac_lightning.data.data_survey import AudioTask, DataSurvey, FieldTask
from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.audio import check_audio
from fac_lightning.data.intake.cases import WARNINGS
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.intake.places import find_places
from fac_lightning.data.intake.shar_audio import check_field
from fac_lightning.data.lhotse_setup import import_lhotse
from fac_lightning.data.workers import WorkerPool

__all__ = ["CheckResult", "DataCheck"]

FILES_PER_TASK = 16

Task = Sequence[AudioTask | FieldTask]
T_ = TypeVar("T_")


@dataclass(frozen=True)
class CheckResult:
    """What a check found."""

    problems: tuple[BadData, ...]  # in the order they were met
    records: int  # lines of manifests, and sound files without one
    good: int  # records without a problem, warnings aside
    clips: int  # recordings that were looked at
    hours: float  # of them, as they say themselves

    @property
    def counts(self) -> dict[str, int]:
        """Problems of each code."""
        return dict(sorted(Counter(problem.code for problem in self.problems).items()))

    @property
    def errors(self) -> tuple[BadData, ...]:
        """Problems that make data bad."""
        return tuple(problem for problem in self.problems if problem.code not in WARNINGS)


class DataCheck:
    """Check data before anything is trained on them.

    Args:
        paths: Dialogues folders, manifests, Shar folders, sound files, or folders of these.
        limits: What is accepted; the default when None.
        num_workers: Processes that look at audio; 0 does it in this one.
        decode: Look at every sample, and not at headers alone.
        fields: Fields that Shar folders must have.
        progress: Show a bar, where there is a screen.
    """

    def __init__(
        self,
        paths: Sequence[str],
        limits: IntakeLimits | None = None,
        num_workers: int = 0,
        decode: bool = True,
        fields: Sequence[str] = (),
        progress: bool = True,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}")
        self.paths = [paths] if isinstance(paths, str) else list(paths)
        self.limits, self.num_workers, self.decode = limits or IntakeLimits(), num_workers, decode
        self.fields, self.progress = tuple(fields), progress

    def run(self) -> CheckResult:
        """Look at everything."""
        survey = DataSurvey(self.limits, self.fields)
        for path in self.paths:
            try:
                places = find_places(path)
            except BadData as missing:
                survey.tell(missing, [survey.record()])
                continue
            for place in places:
                survey.read(place)
        audio = list(survey.audio.values())
        tasks: list[Task] = [audio[i : i + FILES_PER_TASK] for i in range(0, len(audio), FILES_PER_TASK)]
        tasks += [[task] for task in survey.fields]
        clips, seconds = 0, 0.0
        make = partial(_make_looker, self.limits, self.decode)
        with WorkerPool(make, min(self.num_workers, len(tasks))) as pool:
            for looks in _shown(pool.map(tasks), len(tasks), self.progress):
                for look in looks:
                    clips, seconds = clips + look.clips, seconds + look.seconds
                    for cut, problem in look.problems:
                        survey.tell(problem, survey.users[look.key, cut])
        good = survey.records - len(survey.bad)
        return CheckResult(tuple(survey.problems), survey.records, good, clips, seconds / 3600)


@dataclass(frozen=True)
class _Look:
    """What a worker saw in a file."""

    key: str
    problems: tuple[tuple[str | None, BadData], ...]  # with the cut's id, in Shar
    clips: int
    seconds: float


def _make_looker(limits: IntakeLimits, decode: bool, number: int) -> Callable[[Task], list[_Look]]:
    return partial(_look_at_all, limits, decode)


def _look_at_all(limits: IntakeLimits, decode: bool, tasks: Task) -> list[_Look]:
    return [_look(task, limits, decode) for task in tasks]


def _look(task: AudioTask | FieldTask, limits: IntakeLimits, decode: bool) -> _Look:
    if isinstance(task, FieldTask):
        field = check_field(task.path, task.ids, limits, decode)
        return _Look(task.key, field.problems, field.clips, field.seconds)
    if task.recording is not None:
        return _by_lhotse(task, limits) if decode else _Look(task.key, (), 0, 0.0)
    report = check_audio(task.source, task.where, limits, task.declared, decode)
    seconds = report.header.seconds if report.header is not None else 0.0
    return _Look(task.key, tuple((None, problem) for problem in report.problems), 1, seconds)


def _by_lhotse(task: AudioTask, limits: IntakeLimits) -> _Look:
    """An address, a command that is trusted, or a recording with transforms."""
    recording = import_lhotse().Recording.from_dict(dict(task.recording or {})).with_path_prefix(task.base)
    channel = recording.channel_ids[0] if recording.num_channels > 1 else None
    problems: list[tuple[str | None, BadData]] = []
    try:
        read_span(
            Span(recording, 0, recording.num_samples, channel), None, limits, lambda flaw: problems.append((None, flaw))
        )
    except BadData as problem:
        problems.append((None, problem.inside(task.where)))
    return _Look(task.key, tuple(problems), 1, recording.duration)


def _shown(results: Iterable[T_], total: int, progress: bool) -> Iterator[T_]:
    from rich.console import Console
    from rich.progress import track

    console: Any = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    yield from track(results, "Audio", total, transient=True, disable=hidden, console=console)
