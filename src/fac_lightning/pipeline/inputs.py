"""What a stage reads that no stage makes: files and folders that its recipe names, each known by a short mark."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from fac_lightning.pipeline.graph import Stage, inside, paths_in

__all__ = ["HEAD_BYTES", "MOST_FILES", "PROVENANCE_FILE", "artefact_key", "input_paths", "mark"]

PROVENANCE_FILE = "provenance.json"
HEAD_BYTES = 2**20  # of a file; a smaller one is read whole
MOST_FILES = 10_000  # of a folder


def input_paths(stage: Stage, stages: Iterable[Stage], run_folder: str | Path) -> list[str]:
    """Files and folders that the recipe names, as it names them, whether they are there or not.

    What lies in the pipeline's own folder or in that of a stage does not count, nor does a folder around them: the
    pipeline itself writes there.
    """
    own = [Path(run_folder), *(one.out for one in stages)]
    found: dict[str, None] = {}
    for _, text in paths_in(stage.recipe):
        if not any(inside(text, folder) or inside(folder, text) for folder in own):
            found[text] = None
    return list(found)


def mark(path: str | Path) -> str | None:
    """Short text that changes when a file or folder does; None where there is neither.

    - A file of up to 1 MiB: its content.
    - A larger file: its size, the time of its last change and its first MiB.
    - The artefact of a stage, of whichever pipeline, or something in one: the artefact's key.
    - Another folder: names, sizes and times of the files in it and below, of the first 10 000 in the order of names.
    """
    try:
        info = os.stat(path)
    except (OSError, ValueError):  # no such path, or a text that is none: too long, a NUL in it
        return None
    for folder in (Path(path), *Path(path).absolute().parents):
        key = artefact_key(folder)
        if key is not None:
            return f"artefact {key}"
    digest = hashlib.sha256()
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            digest.update(file.read(HEAD_BYTES))
        if info.st_size > HEAD_BYTES:
            digest.update(f"|{info.st_size}|{info.st_mtime_ns}".encode())
    elif stat.S_ISDIR(info.st_mode):
        for count, (name, size, changed) in enumerate(_files(str(path), "")):
            if count == MOST_FILES:
                break
            digest.update(f"{name}|{size}|{changed}\n".encode(errors="surrogateescape"))
    else:
        return None
    return digest.hexdigest()[:16]


def artefact_key(folder: str | Path) -> str | None:
    """Key of the artefact in a folder; None where no stage has finished there."""
    try:
        found = json.loads((Path(folder) / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or a file of the same name that is not ours
        return None
    return str(found["key"]) if isinstance(found, dict) and "key" in found else None


def _files(folder: str, prefix: str) -> Iterator[tuple[str, int, int]]:
    """Name, size in bytes and time of the last change of every file, by name, depth first."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, f"{prefix}{entry.name}/")
        else:
            info = entry.stat(follow_symlinks=False)
            yield f"{prefix}{entry.name}", info.st_size, info.st_mtime_ns
