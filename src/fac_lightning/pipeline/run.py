"""Run the stages that something changed for, in order; what is done is left alone."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from fac_lightning import __version__
from fac_lightning.config import surroundings
from fac_lightning.pipeline.crew import apart, at_a_time
from fac_lightning.pipeline.graph import Stage, StageError, inside
from fac_lightning.pipeline.inputs import PROVENANCE_FILE, artefact_key, input_paths, mark
from fac_lightning.pipeline.memory import PeakMemory
from fac_lightning.pipeline.state import Origin, StageState, differences, write_json

__all__ = ["Decision", "Progress", "preview", "run_pipeline"]

#: ``skip`` done before, ``start`` runs afresh, ``resume`` goes on, ``restore`` takes an older artefact back, ``leave``
#: was not asked for
Action = Literal["skip", "start", "resume", "restore", "leave"]

#: told of a stage: the action at its turn, then ``done`` or ``failed``; ``note`` at any time; and why
Progress = Callable[[Stage, str, str], None]

Marks = Callable[[str], str | None]


@dataclass(frozen=True)
class Decision:
    """What is to be done with a stage, and why."""

    stage: Stage
    action: Action
    why: str


def preview(stages: Sequence[Stage], run_folder: str | Path, chosen: Collection[str] | None = None) -> list[Decision]:
    """What :func:`run_pipeline` would do; nothing is run or written.

    Args:
        stages: From :func:`plan_stages`.
        run_folder: Where ``stages/<name>.json`` lie.
        chosen: Names of the stages to look at (:func:`choose_stages`); None means all.

    Raises:
        StageError: A chosen stage needs one that is neither done nor chosen, or a stage writes over the records.
    """
    desk, marks = _Desk(stages, run_folder, chosen), cache(mark)
    keys: dict[str, str] = {}
    decisions = []
    for stage in stages:
        decision, origin = desk.decide(stage, keys, marks)
        decisions.append(decision)
        state = desk.states[stage.name]
        keys[stage.name] = state.key if state is not None and decision.action in ("skip", "leave") else origin.key
    return decisions


def run_pipeline(
    stages: Sequence[Stage],
    run_folder: str | Path,
    run_stage: Callable[[Stage], Any],
    progress: Progress = lambda stage, what, why: None,
    chosen: Collection[str] | None = None,
    jobs: int = 1,
) -> dict[str, StageState]:
    """Run what is not done yet, in order.

    The artefact of a stage is known by the hash of everything that made it: the resolved recipe, the artefacts that
    it needs, files and folders from elsewhere that it names (:func:`mark`), the version of this library. Where all
    of it is as it was, the stage is skipped. One that was interrupted continues in its own folder. Where something
    changed, the old folder is moved aside (``<out>.old-1``, ...) and the stage starts afresh, unless one that was moved
    aside is what is asked for now: then that is taken back. A stage that finishes leaves ``provenance.json`` in its
    folder.

    A file or folder that changes while a stage that names it runs is a cache of that stage and no input.

    Args:
        stages: From :func:`plan_stages`.
        run_folder: Where ``stages/<name>.json`` lie.
        run_stage: Does the work of a stage and returns what JSON can hold.
        progress: Told of each stage.
        chosen: Names of the stages to look at (:func:`choose_stages`); None means all. What the others left is used as
            it is.
        jobs: Stages at work at a time. With more than one, each runs in a process of its own, its words go to
            ``stages/<name>.log``, and ``run_stage`` must be a function that another process can import. Where one
            fails no further one starts.

    Returns:
        State of each stage that is done, by name.

    Raises:
        StageError: As :func:`preview`, or another process is at work on the same run.
        Exception: What a stage raised, with a note that names it; what is done stays done.
    """
    if jobs < 1:
        raise StageError(f"jobs is {jobs}: give the stages that may be at work at a time, 1 or more")
    preview(stages, run_folder, chosen)  # what cannot work is told before anything runs
    with _alone(Path(run_folder)):
        desk = _Desk(stages, run_folder, chosen)
        work = partial(_work, desk, run_stage=_here(run_stage) if jobs == 1 else apart(run_stage, jobs, desk.log))
        with at_a_time(jobs) as crew:
            for stage in crew.in_turn(stages):
                decision, origin = desk.decide(stage, desk.keys, mark)
                progress(stage, decision.action, decision.why)
                if decision.action == "restore":
                    desk.restore(stage, origin)
                elif decision.action in ("start", "resume"):
                    crew.do(stage, partial(work, stage, origin, decision.action == "resume", progress=progress))
    return {name: state for name, state in desk.states.items() if state is not None and state.done}


@contextmanager
def _alone(run_folder: Path) -> Iterator[None]:
    """Hold the run: two processes in the same folders would write over each other."""
    (run_folder / "stages").mkdir(parents=True, exist_ok=True)
    with open(run_folder / "stages" / ".lock", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(
                f"another process is at work on {run_folder}; wait for it, or take another folder"
            ) from None
        yield


class _Desk:
    """The records of a pipeline run, and what follows from them."""

    def __init__(self, stages: Sequence[Stage], run_folder: str | Path, chosen: Collection[str] | None) -> None:
        self.stages, self.run_folder = stages, Path(run_folder)
        self.chosen = {stage.name for stage in stages} if chosen is None else set(chosen)
        for stage in stages:
            if inside(self.run_folder, stage.out):
                raise StageError(
                    f"stage {stage.name!r} writes to {stage.out}, where the pipeline keeps its records; give the stage "
                    f"a folder of its own, such as {self.run_folder / stage.name}"
                )
        self.states = {stage.name: StageState.load(self.file(stage)) for stage in stages}

    def file(self, stage: Stage) -> Path:
        return self.run_folder / "stages" / f"{stage.name}.json"

    def log(self, stage: Stage) -> Path:
        """What a stage said that ran in a process of its own."""
        return self.file(stage).with_suffix(".log")

    @property
    def keys(self) -> dict[str, str]:
        """Keys of the artefacts that are recorded."""
        return {name: state.key for name, state in self.states.items() if state is not None}

    def left(self, stage: Stage) -> bool:
        """Whether the artefact of a stage is where it was left."""
        state = self.states[stage.name]
        return state is not None and state.done and artefact_key(stage.out) == state.key

    def keep(self, stage: Stage, state: StageState) -> None:
        """Write a state down."""
        self.states[stage.name] = state
        state.save(self.file(stage))

    def inputs(self, stage: Stage, marks: Marks) -> dict[str, str]:
        """Marks of what is there now and is no cache of any stage."""
        caches = {path for state in self.states.values() if state is not None for path in state.wrote}
        paths = [path for path in input_paths(stage, self.stages, self.run_folder) if path not in caches]
        return {path: found for path in paths if (found := marks(path)) is not None}

    def decide(self, stage: Stage, keys: dict[str, str], marks: Marks) -> tuple[Decision, Origin]:
        """What to do with a stage, given the keys of those before it."""
        if stage.name in self.chosen:
            for other in self.stages:
                if other.name in stage.needs and other.name not in self.chosen and not self.left(other):
                    raise StageError(
                        f"stage {stage.name!r} needs {other.name!r} ({stage.needs[other.name]}), which is not done and "
                        f"not among the stages to run; run it first (--until {other.name})"
                    )
        needs = {other: keys.get(other, "") for other in stage.needs}
        origin = Origin(__version__, stage.recipe, self.inputs(stage, marks), needs)
        action, why = self._judge(stage, origin)
        if stage.name not in self.chosen:
            return Decision(stage, "leave", "" if action == "skip" else why), origin
        if action == "start" and (older := _older(stage.out, origin.key)) is not None:
            return Decision(stage, "restore", f"{why}; made before and kept as {older}"), origin
        return Decision(stage, action, why), origin

    def _judge(self, stage: Stage, origin: Origin) -> tuple[Action, str]:
        state = self.states[stage.name]
        if state is None:
            return "start", "has not run yet"
        if state.origin is None:
            return "start", "its record is of an earlier version of the pipeline and does not say what made it"
        caches = {path for other in self.states.values() if other is not None for path in other.wrote}
        kept = {path: text for path, text in state.origin.inputs.items() if path not in caches}
        changed = differences(replace(state.origin, inputs=kept), origin, state.done)
        if changed:
            return "start", changed
        if not state.done:
            return "resume", f"stopped after {state.seconds:.0f} s: {state.error}" if state.error else "was cut off"
        if not self.left(stage):
            return "start", f"{stage.out} {'is not what was left there' if stage.out.exists() else 'is gone'}"
        return "skip", f"{state.finished[:16].replace('T', ' ')}, {state.seconds:.0f} s"

    def restore(self, stage: Stage, origin: Origin) -> None:
        """Take an artefact back that was moved aside."""
        older = _older(stage.out, origin.key)
        assert older is not None
        if stage.out.exists():
            _move_aside(stage.out)
        older.rename(stage.out)
        found = json.loads((stage.out / PROVENANCE_FILE).read_text(encoding="utf-8"))
        kept = {name: found[name] for name in ("key", "seconds", "peak_rss_mb", "result", "started", "finished")}
        self.keep(stage, StageState(done=True, origin=origin, wrote=found["caches"], **kept))


def _work(
    desk: _Desk,
    stage: Stage,
    origin: Origin,
    resumed: bool,
    run_stage: Callable[[Stage, PeakMemory], Any],
    progress: Progress,
) -> None:
    before = desk.states[stage.name]
    if resumed and before is not None and before.origin is not None:
        state = replace(before, error=None)
    else:
        if before is not None and stage.out.exists():
            _move_aside(stage.out)
        wrote = [] if before is None else before.wrote
        state = StageState(origin.key, False, 0.0, 0.0, origin=origin, wrote=wrote, started=_now())
    desk.keep(stage, state)
    started, memory = time.perf_counter(), PeakMemory()
    try:
        result = run_stage(stage, memory)
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0].removesuffix(": ")
        state = replace(_worked(desk, stage, state, started, memory, progress), error=reason)
        desk.keep(stage, state)
        done = [name for name, one in desk.states.items() if one is not None and one.done]
        error.add_note(
            f"stage {stage.name!r} stopped after {state.seconds:.0f} s; done and kept: {', '.join(done) or 'none'}. "
            "The same command goes on from here"
        )
        progress(stage, "failed", reason)
        raise
    state = _worked(desk, stage, state, started, memory, progress)
    state = replace(state, done=True, result=result, finished=_now())
    _leave_provenance(desk, stage, state)
    desk.keep(stage, state)
    progress(stage, "done", f"{state.seconds:.0f} s")


def _here(run_stage: Callable[[Stage], Any]) -> Callable[[Stage, PeakMemory], Any]:
    """Run a stage in this process and watch its memory."""

    def run(stage: Stage, memory: PeakMemory) -> Any:
        with memory:
            return run_stage(stage)

    return run


def _worked(
    desk: _Desk, stage: Stage, state: StageState, started: float, memory: PeakMemory, progress: Progress
) -> StageState:
    """State after work: what it cost, and which of the paths that the recipe names turned out to be caches."""
    assert state.origin is not None
    found = desk.inputs(stage, mark)
    wrote = [path for path in found if found[path] != state.origin.inputs.get(path)]
    for path in wrote:
        note = f"wrote to {path}, which its recipe names: taken for a cache, so changes there re-run nothing"
        progress(stage, "note", note)
    inputs = {path: text for path, text in state.origin.inputs.items() if path not in wrote}
    origin = replace(state.origin, inputs=inputs)
    return replace(
        state,
        key=origin.key,
        origin=origin,
        wrote=sorted({*state.wrote, *wrote}),
        seconds=round(state.seconds + time.perf_counter() - started, 3),
        peak_rss_mb=round(max(state.peak_rss_mb, memory.megabytes), 1),
    )


def _leave_provenance(desk: _Desk, stage: Stage, state: StageState) -> None:
    """``provenance.json`` in the artefact's folder: what made it, where and when."""
    assert state.origin is not None
    folders = {one.name: str(one.out) for one in desk.stages}
    provenance = {
        "stage": stage.name,
        "key": state.key,
        "recipe_file": stage.file,
        "overrides": list(stage.words),
        "seed": stage.recipe.get("seed"),
        "needs": {name: {"key": key, "folder": folders[name]} for name, key in state.origin.needs.items()},
        "inputs": state.origin.inputs,
        "caches": state.wrote,
        **surroundings(),
        "started": state.started,
        "finished": state.finished,
        "seconds": state.seconds,
        "peak_rss_mb": state.peak_rss_mb,
        "result": state.result,
        "recipe": stage.recipe,
    }
    write_json(stage.out / PROVENANCE_FILE, provenance)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _older(folder: Path, key: str) -> Path | None:
    """The artefact with this key among those that were moved aside."""
    if not folder.parent.is_dir():
        return None
    aside = sorted(one for one in folder.parent.iterdir() if one.name.startswith(f"{folder.name}.old-"))
    return next((one for one in aside if artefact_key(one) == key), None)


def _move_aside(folder: Path) -> None:
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(target)
