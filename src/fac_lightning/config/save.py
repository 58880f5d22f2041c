"""The recipe of a run as text: complete, headed by the versions that made it."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fac_lightning.config.compose import Recipe

__all__ = ["header", "recipe_text", "surroundings"]


def header(command: Sequence[str] | None = None) -> str:
    """One comment line: versions, git commit of the working folder, command line."""
    found = surroundings(command)
    parts = [f"{name} {found['versions'][name]}" for name in ("fac_lightning", "lightning", "torch", "python")]
    if found["git"]:
        parts.append(f"git {found['git']['commit']}{' (dirty)' if found['git']['dirty'] else ''}")
    parts.append(found["command"])
    return f"# {' | '.join(parts)}".replace("\n", " ")


def surroundings(command: Sequence[str] | None = None) -> dict[str, Any]:
    """What a result was made with: ``versions``, ``git`` of the working folder (None outside one), ``command``."""
    packages = ("fac-lightning", "lightning", "torch", "transformers", "lhotse")
    versions = {package.replace("-", "_"): _version(package) for package in packages}
    commit = _git("rev-parse", "--short", "HEAD")
    return {
        "versions": {**versions, "python": platform.python_version()},
        "git": {"commit": commit, "dirty": bool(_git("status", "--porcelain"))} if commit else None,
        "command": shlex.join(_command_line() if command is None else command),
    }


def recipe_text(recipe: Recipe, command: Sequence[str] | None = None) -> str:
    """What ``recipe.yaml`` of a run holds: ``header`` and the resolved tree."""
    return f"{header(command)}\n{recipe.text}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _command_line() -> list[str]:
    program = Path(sys.argv[0]).name
    start = ["python", "-m", Path(sys.argv[0]).parent.name] if program == "__main__.py" else [program]
    return [*start, *sys.argv[1:]]


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
