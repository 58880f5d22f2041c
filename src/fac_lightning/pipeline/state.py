"""What is written down of a stage: what made its artefact, how far it came, and how two makings differ."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Origin", "StageState", "differences", "write_json"]

SHOWN = 3  # differences that a reason names
LONGEST = 60  # characters of a value


@dataclass(frozen=True)
class Origin:
    """Everything that makes an artefact."""

    version: str  # of fac_lightning
    recipe: dict[str, Any]  # composed and resolved
    inputs: dict[str, str]  # file or folder that no stage makes -> mark
    needs: dict[str, str]  # stage -> key of its artefact

    @property
    def key(self) -> str:
        """Name of the artefact: a hash of all this."""
        return hashlib.sha256(_dump(asdict(self)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StageState:
    """A stage as ``<run>/stages/<name>.json`` has it."""

    key: str
    done: bool
    seconds: float  # over all calls that worked on it
    peak_rss_mb: float
    result: Any = None
    origin: Origin | None = None  # None where an earlier version of the pipeline wrote the file
    wrote: list[str] = field(default_factory=list)  # paths its recipe names that it changed itself: caches
    started: str = ""  # ISO 8601, of the first call
    finished: str = ""
    error: str | None = None  # what stopped the last call

    @staticmethod
    def load(path: Path) -> StageState | None:
        """State on disk, or None where there is none."""
        if not path.exists():
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("origin"):
            values["origin"] = Origin(**values["origin"])
        return StageState(**values)

    def save(self, path: Path) -> None:
        """Write atomically, so that an interruption leaves the old state or the new."""
        write_json(path, asdict(self))


def differences(old: Origin, new: Origin, finished: bool = True) -> str:
    """What of ``new`` is not as it was, in words; empty where all is the same.

    Args:
        old: What made the artefact.
        new: What would make it now.
        finished: Whether ``old`` came to its end. A file that a stage cut short did not find at its start may be its
            own, so it does not count.
    """
    found: list[str] = []
    before, now = dict(_leaves(old.recipe)), dict(_leaves(new.recipe))
    for name in [*before, *(name for name in now if name not in before)]:
        if before.get(name) != now.get(name):
            found.append(f"{name}: {_short(before.get(name))} -> {_short(now.get(name))}")
    if old.version != new.version:
        found.append(f"fac_lightning {old.version} -> {new.version}")
    for path in [*old.inputs, *(path for path in new.inputs if path not in old.inputs)]:
        if old.inputs.get(path) == new.inputs.get(path) or (path not in old.inputs and not finished):
            continue
        what = "is gone" if path not in new.inputs else "is new" if path not in old.inputs else "has changed"
        found.append(f"{path} {what}")
    for name in [*old.needs, *(name for name in new.needs if name not in old.needs)]:
        if old.needs.get(name) != new.needs.get(name):
            what = (
                "is no longer needed" if name not in new.needs else "changes" if name in old.needs else "is needed now"
            )
            found.append(f"{name} {what}")
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "; ".join([*found[:SHOWN], *more])


def write_json(path: Path, value: Any) -> None:
    """Write beside and rename: the file is the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str), encoding="utf-8")
    os.replace(part, path)


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Key and JSON text of every scalar and every empty or plain list."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}.{index}")
    else:
        yield key, _dump(value)


def _short(text: str | None) -> str:
    if text is None:
        return "(not there)"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
