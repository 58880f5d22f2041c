"""Where a manifest may lead: files of this machine inside the data, addresses, and no commands."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.limits import IntakeLimits

__all__ = ["SAFE_SCHEMES", "SAFE_SOURCES", "SourceGate", "check_command"]

SAFE_SOURCES = ("file", "memory", "url")
SAFE_SCHEMES = ("http", "https", "s3", "gs", "az", "abfs", "abfss", "hf", "ais")


def check_command(kind: object, source: object, where: str, limits: IntakeLimits) -> BadData | None:
    """FAC-D10 for a source that runs a program, or of a kind that is not read.

    Args:
        kind: Type of the source in the manifest.
        source: What it names: a file, an address, bytes.
        where: For messages.
        limits: ``trust_commands`` lets commands pass.
    """
    word = source.strip() if isinstance(source, str) else ""
    runs = kind == "command" or word.startswith(("|", "pipe:")) or word.endswith("|")
    if runs and not limits.trust_commands:
        rule = f"a source that runs nothing: {', '.join(SAFE_SOURCES)}"
        advice = "Store the audio as files: manifests that run commands are refused without trust_commands"
        return bad_data("FAC-D10", where, f"the {kind} {word[:80]!r}", rule, advice)
    if not runs and kind not in SAFE_SOURCES:
        rule = f"one of {', '.join(SAFE_SOURCES)}"
        return bad_data("FAC-D10", where, f"a source of type {kind!r}", rule, "Store the audio as files")
    if kind == "url" and word.partition("://")[0] not in SAFE_SCHEMES:
        return bad_data("FAC-D10", where, repr(word[:80]), f"an address of {', '.join(SAFE_SCHEMES)}")
    return None


class SourceGate:
    """Decides where the sources of one manifest may lead.

    A relative path counts from the manifest's folder and must end inside it or inside a root, links followed. An
    absolute path may lead anywhere on this machine, unless roots are named: then it must end inside one, or inside the
    manifest's folder.

    Args:
        base: The manifest's folder.
        limits: ``roots`` and ``trust_commands``.
        placeholders: Let sources of the type ``shar`` pass: their audio lies in the tar files beside the manifest.
    """

    def __init__(self, base: str | Path, limits: IntakeLimits, placeholders: bool = False) -> None:
        self.base, self.limits, self.placeholders = Path(base), limits, placeholders
        self._allowed = [os.path.realpath(folder) for folder in (base, *limits.roots)]
        self._parents: dict[str, str] = {}  # folder -> without links

    def path(self, source: str) -> str:
        """The file that a source names."""
        return os.path.join(self.base, source)

    def check(self, source: Mapping[str, Any], where: str) -> BadData | None:
        """FAC-D10, if a source may not be read; nothing of it is opened or run."""
        kind, name = source.get("type"), source.get("source")
        if self.placeholders and kind == "shar":
            return None
        problem = check_command(kind, name, where, self.limits)
        if problem is not None or kind != "file" or not isinstance(name, str):
            return problem
        if os.path.isabs(name) and not self.limits.roots:
            return None
        real = self._real(self.path(name))
        if any(real == folder or real.startswith(folder.rstrip(os.sep) + os.sep) for folder in self._allowed):
            return None
        shown = f"{name!r}, which leads to {real}" if real != name else repr(name)
        return bad_data("FAC-D10", where, shown, f"a file under {_listed(self._allowed)}")

    def _real(self, path: str) -> str:
        folder, name = os.path.split(path)
        if name in ("", ".", ".."):
            return os.path.realpath(path)
        parent = self._parents.get(folder)
        if parent is None:
            parent = self._parents[folder] = os.path.realpath(folder)
        joined = os.path.join(parent, name)
        return os.path.realpath(joined) if os.path.islink(joined) else joined


def _listed(folders: Sequence[str]) -> str:
    return " or ".join(folders[:3]) + (" ..." if len(folders) > 3 else "")
