"""What a path means: a dialogues folder, a manifest, a Shar folder, or sound files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.lines import nearest_names
from fac_lightning.data.intake.shar import list_fields

__all__ = ["DataPlace", "find_places"]

MANIFESTS = (".jsonl", ".jsonl.gz")
SOUNDS = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph", ".m4a", ".w64", ".caf"}

Kind = Literal["dialogues", "manifest", "shar", "audio"]


@dataclass(frozen=True)
class DataPlace:
    """Something that can be checked."""

    kind: Kind
    path: Path  # a manifest, a Shar folder, or one sound file


def find_places(path: str | Path) -> list[DataPlace]:
    """Everything to check at a path; folders of folders are searched.

    Raises:
        BadData: FAC-D01: nothing is there.
    """
    path = Path(path)
    if path.is_file():
        return [DataPlace("manifest" if path.name.endswith(MANIFESTS) else "audio", path)]
    if not path.is_dir():
        near = nearest_names(path)
        advice = f"Correct the path; near it lie {', '.join(near)}" if near else None
        raise bad_data("FAC-D01", str(path), "no file or folder of this name", advice=advice)
    found = _in_folder(path)
    if not found:
        there = ", ".join(sorted(child.name for child in path.iterdir())[:5]) or "nothing"
        raise bad_data("FAC-D01", str(path), f"a folder with {there}")
    return found


def _in_folder(folder: Path) -> list[DataPlace]:
    if (folder / "cuts.jsonl").is_file():
        return [DataPlace("dialogues", folder / "cuts.jsonl")]
    if "cuts" in list_fields(folder):
        return [DataPlace("shar", folder)]
    children = sorted(folder.iterdir())
    found = [DataPlace("manifest", child) for child in children if child.name.endswith(MANIFESTS) and child.is_file()]
    if not found:
        found = [DataPlace("audio", child) for child in children if child.suffix.lower() in SOUNDS and child.is_file()]
    return found + [place for child in children if child.is_dir() for place in _in_folder(child)]
