"""A pipeline is a recipe of recipes: stages run in order, and only what changed runs again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fac_lightning import __version__
from fac_lightning.pipeline.memory import PeakMemory

__all__ = ["Stage", "StageError", "StageState", "plan_stages", "run_pipeline"]

#: stage name, its key and what is to be done: makes the recipe of a stage from a file and overrides
Compose = Callable[[str, list[str]], dict[str, Any]]


class StageError(ValueError):
    """A stage cannot be planned or has failed; the message names it."""


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline."""

    name: str
    recipe: dict[str, Any]  # composed and resolved
    after: tuple[str, ...]  # stages whose artefacts it uses
    out: Path  # folder of its artefact
    key: str  # hash of all that makes the artefact


@dataclass(frozen=True)
class StageState:
    """What is written down of a stage, as ``<run>/stages/<name>.json``."""

    key: str
    done: bool
    seconds: float  # over all calls that worked on it
    peak_rss_mb: float
    result: Any = None

    @staticmethod
    def load(path: Path) -> StageState | None:
        """State on disk, or None where there is none."""
        return StageState(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def save(self, path: Path) -> None:
        """Write atomically, so that an interruption leaves the old state or the new."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".tmp")
        part.write_text(json.dumps(self.__dict__, indent=2, ensure_ascii=False), encoding="utf-8")
        os.replace(part, path)


def plan_stages(stages: Mapping[str, Any], compose: Compose) -> list[Stage]:
    """Compose every stage and hash what makes it, its forerunners included.

    Args:
        stages: Name -> ``{recipe: file, overrides: mapping, after: [names]}``; ``after`` defaults to the stage before.
        compose: Makes a checked, resolved recipe from a file and ``key=value`` strings.

    Raises:
        StageError: For an unknown or later stage in ``after``, an unknown key, or a recipe without an output folder.
    """
    planned: dict[str, Stage] = {}
    previous: tuple[str, ...] = ()
    for name, node in stages.items():
        unknown = set(node) - {"recipe", "overrides", "after"}
        if unknown or "recipe" not in node:
            problem = f"has unknown keys {sorted(unknown)}" if unknown else "has no 'recipe'"
            raise StageError(f"stages.{name} {problem}; a stage takes recipe, overrides, after")
        after = tuple(node.get("after", previous))
        strange = [a for a in after if a not in planned]
        if strange:
            raise StageError(f"stages.{name}.after names {strange}, which no earlier stage is called: {list(planned)}")
        recipe = compose(node["recipe"], list(_flatten(node.get("overrides") or {})))
        key = _hash({"version": __version__, "recipe": recipe, "after": [planned[a].key for a in after]})
        planned[name] = Stage(name, recipe, after, _out_folder(name, recipe), key)
        previous = (name,)
    return list(planned.values())


def run_pipeline(
    stages: list[Stage],
    run_folder: str | Path,
    run_stage: Callable[[Stage], Any],
    report: Callable[[Stage, str], None] = lambda stage, what: None,
) -> dict[str, StageState]:
    """Run what is not done yet, in order.

    A stage whose key is written down as done is skipped. One that was interrupted continues in its own folder. Where
    the key changed, the old folder is moved aside (``<out>.old-1``, ...) and the stage starts afresh.

    Args:
        stages: From :func:`plan_stages`.
        run_folder: Where ``stages/<name>.json`` lie.
        run_stage: Does the work of a stage and returns what JSON can hold.
        report: Told of each stage ``"skip"``, ``"start"``, ``"resume"`` or ``"done"``.

    Returns:
        State of each stage by name.
    """
    states: dict[str, StageState] = {}
    for stage in stages:
        path = Path(run_folder) / "stages" / f"{stage.name}.json"
        state = StageState.load(path)
        if state is not None and state.key == stage.key and state.done:
            report(stage, "skip")
            states[stage.name] = state
            continue
        resumed = state is not None and state.key == stage.key
        spent = state.seconds if resumed and state is not None else 0.0
        if not resumed and stage.out.exists() and state is not None:
            _move_aside(stage.out)
        report(stage, "resume" if resumed else "start")
        StageState(stage.key, False, spent, 0.0).save(path)
        started = time.perf_counter()
        with PeakMemory() as memory:
            try:
                result = run_stage(stage)
            finally:
                spent += time.perf_counter() - started
                StageState(stage.key, False, spent, 0.0).save(path)
        states[stage.name] = StageState(stage.key, True, spent, memory.megabytes, result)
        states[stage.name].save(path)
        report(stage, "done")
    return states


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value and "_target_" not in value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value, ensure_ascii=False)}"


def _out_folder(name: str, recipe: Mapping[str, Any]) -> Path:
    job, trainer = recipe.get("job") or {}, recipe.get("trainer") or {}
    out = job.get("out") or job.get("folder") or trainer.get("default_root_dir")
    if not out:
        raise StageError(f"stage {name!r} has no output folder: set job.out or trainer.default_root_dir in its recipe")
    return Path(out)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _move_aside(folder: Path) -> None:
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(target)
