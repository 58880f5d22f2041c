"""Stages as a graph: which stage uses what another one leaves, and in which order they can run."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

__all__ = ["Stage", "StageError", "choose_stages", "inside", "paths_in", "plan_stages"]

#: makes the checked, resolved recipe of a stage from a file and ``key=value`` strings
Compose = Callable[[str, list[str]], dict[str, Any]]

KEYS = ("recipe", "overrides", "init_from", "after")


class StageError(ValueError):
    """A stage cannot be planned or run; the message names it."""


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline."""

    name: str
    recipe: dict[str, Any]  # composed and resolved
    out: Path  # folder of its artefact
    needs: dict[str, str]  # stage whose artefact it uses -> where that is said: "job.run = runs/mine/sft"
    file: str  # its recipe, as the pipeline names it
    words: tuple[str, ...] = ()  # overrides, as on the command line


def plan_stages(stages: Mapping[str, Any], compose: Compose) -> list[Stage]:
    """Compose every stage, find out what needs what, and put them in an order that can be run.

    A stage needs another when its recipe names the other's output folder or something in it (``vars`` alone do not
    count: they are only repeated elsewhere), when ``init_from`` names the other, or when ``after`` does.

    Args:
        stages: Name -> ``{recipe: file, overrides: mapping, init_from: stage, after: [stages]}``.
        compose: Makes a checked, resolved recipe from a file and ``key=value`` strings.

    Returns:
        In the order of the file, but each behind what it needs.

    Raises:
        StageError: For an unknown stage or key, stages that go round in a circle, a recipe without an output folder,
            or output folders that lie in each other.
    """
    nodes = {str(name): _node(str(name), node, stages) for name, node in stages.items()}
    starts = {name: {node["init_from"]: "init_from"} if node["init_from"] else {} for name, node in nodes.items()}
    drafts: dict[str, Stage] = {}
    for name in _order(starts):
        node, words = nodes[name], list(_flatten(nodes[name]["overrides"]))
        if node["init_from"]:
            words.append(f"init_from={json.dumps(str(drafts[node['init_from']].out))}")
        recipe = compose(node["recipe"], words)
        if node["init_from"] and recipe.get("job"):
            raise StageError(
                f"stages.{name}.init_from: {node['recipe']} is a job, which starts from no weights; write the folder "
                f"of {node['init_from']} where the job takes it"
            )
        needs = starts[name] | dict.fromkeys(node["after"], "after")
        drafts[name] = Stage(name, recipe, _out_folder(name, recipe), needs, node["recipe"], tuple(words))
    _refuse_nested(drafts)
    for stage in drafts.values():
        for key, path in paths_in(stage.recipe):
            for other in drafts.values():
                if other is not stage and inside(path, other.out):
                    stage.needs.setdefault(other.name, f"{key} = {path}")
    return [drafts[name] for name in _order({name: drafts[name].needs for name in nodes})]


def choose_stages(
    stages: Iterable[Stage], start: str | None = None, until: str | None = None, only: str | None = None
) -> set[str]:
    """Names of the stages that are looked at; the others are left as they are.

    Args:
        stages: From :func:`plan_stages`.
        start: This one and all that need it.
        until: This one and all that it needs; with ``start``, what lies between.
        only: This one.

    Raises:
        StageError: An unknown name, ``only`` with another, or nothing lies between ``start`` and ``until``.
    """
    ordered = list(stages)
    names = [stage.name for stage in ordered]
    for name in (start, until, only):
        if name is not None and name not in names:
            raise StageError(f"there is no stage {name!r}.{_near(name, names)} Stages: {', '.join(names)}")
    if only is not None:
        if start is not None or until is not None:
            raise StageError("--only names one stage: leave out --from and --until")
        return {only}
    chosen = set(names)
    if start is not None:
        behind = {start}
        for stage in ordered:
            if behind & stage.needs.keys():
                behind.add(stage.name)
        chosen &= behind
    if until is not None:
        before = {until}
        for stage in reversed(ordered):
            if stage.name in before:
                before |= stage.needs.keys()
        chosen &= before
    if not chosen:
        raise StageError(f"{until} does not need {start}, so no stage lies between --from {start} and --until {until}")
    return chosen


def paths_in(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and text of every string of a recipe that may be a path: all but ``vars`` and dotted paths of classes."""
    for key, value in recipe.items():
        if key != "vars":
            yield from _strings(value, str(key))


def inside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path is a folder or lies in it, as written: links are not followed."""
    here, there = os.path.abspath(path), os.path.abspath(folder)
    return here == there or here.startswith(there.rstrip(os.sep) + os.sep)


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name != "_target_":
                yield from _strings(item, f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{key}.{index}")
    elif isinstance(value, str) and value and "\0" not in value:
        yield key, value


def _node(name: str, node: Any, stages: Mapping[str, Any]) -> dict[str, Any]:
    """A stage as written, checked, with all keys."""
    if not isinstance(node, Mapping):
        raise StageError(f"stages.{name} is {node!r}; a stage is a mapping of {', '.join(KEYS)}")
    unknown = [str(key) for key in node if key not in KEYS]
    if unknown or "recipe" not in node:
        problem = f"has unknown keys {unknown}" if unknown else "has no 'recipe'"
        raise StageError(f"stages.{name} {problem}; a stage takes {', '.join(KEYS)}")
    overrides = node.get("overrides") or {}
    if not isinstance(overrides, Mapping):
        raise StageError(f"stages.{name}.overrides is {overrides!r}; it takes a mapping of keys to values")
    after = node.get("after") or []
    after = [after] if isinstance(after, str) else list(after)
    for key, named in (("init_from", [node["init_from"]] if node.get("init_from") else []), ("after", after)):
        strange = [other for other in named if other not in stages]
        if strange:
            folder = "; for weights from elsewhere set overrides.init_from" if key == "init_from" else ""
            raise StageError(
                f"stages.{name}.{key} names {strange[0]!r}, and there is no such stage.{_near(strange[0], stages)} "
                f"Stages: {', '.join(map(str, stages))}{folder}"
            )
    return {
        "recipe": str(node["recipe"]),
        "overrides": overrides,
        "init_from": node.get("init_from"),
        "after": after,
    }


def _order(needs: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Names as given, but each behind what it needs."""
    ordered: list[str] = []
    waiting = list(needs)
    while waiting:
        ready = next((name for name in waiting if all(other in ordered for other in needs[name])), None)
        if ready is None:
            raise StageError(_circle(waiting, needs))
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def _circle(waiting: list[str], needs: Mapping[str, Mapping[str, str]]) -> str:
    walk = [waiting[0]]
    while walk.count(walk[-1]) < 2:
        walk.append(next(other for other in needs[walk[-1]] if other in waiting))
    circle = walk[walk.index(walk[-1]) :]
    steps = [f"{one} needs {other} ({needs[one][other]})" for one, other in pairwise(circle)]
    return f"stages go round in a circle: {', '.join(steps)}"


def _refuse_nested(stages: Mapping[str, Stage]) -> None:
    for one, other in combinations(stages.values(), 2):
        for inner, outer in ((one, other), (other, one)):
            if inside(inner.out, outer.out):
                raise StageError(
                    f"stage {inner.name!r} writes to {inner.out}, which lies in {outer.out} of stage {outer.name!r}: a "
                    "stage that runs again moves its folder aside, so give each a folder of its own"
                )


def _out_folder(name: str, recipe: Mapping[str, Any]) -> Path:
    job, trainer = recipe.get("job") or {}, recipe.get("trainer") or {}
    out = job.get("out") or job.get("folder") or trainer.get("default_root_dir")
    if not out:
        raise StageError(f"stage {name!r} has no output folder: set job.out or trainer.default_root_dir in its recipe")
    return Path(out)


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value and "_target_" not in value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value, ensure_ascii=False)}"


def _near(name: Any, choices: Iterable[Any]) -> str:
    close = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
