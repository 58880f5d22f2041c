"""Folders that a job made to the end: found again by what they were made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["SUMMARY_FILE", "finished_summary"]

SUMMARY_FILE = "summary.json"


def finished_summary(folder: Path, settings: Mapping[str, Any], what: str) -> dict[str, Any] | None:
    """The summary of a folder that a job finished before, with the same settings; None where there is no folder.

    Args:
        folder: Its ``summary.json`` holds ``settings``.
        settings: What the job makes it with, as JSON values.
        what: What the folder holds, for messages.

    Raises:
        ValueError: It was made with other settings, or holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    file = folder / SUMMARY_FILE
    summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    made = summary.get("settings") or {}
    if made != settings:
        changed = sorted(k for k in {*made, *settings} if made.get(k) != settings.get(k))
        told = f"was made with other {', '.join(changed)}" if made else f"holds no finished {what}"
        raise ValueError(f"{folder} {told}; choose another folder, or delete this one to make the {what} anew")
    return summary
