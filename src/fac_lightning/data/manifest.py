"""Manifest files: one JSON object a line, read so that a mistake is told by file and line."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fac_lightning.data.lhotse_setup import import_lhotse

__all__ = ["Manifest", "drop_partial_line", "manifest_path", "read_records"]


def manifest_path(path: str | Path) -> Path:
    """The manifest of a dialogues folder, or the file itself.

    Raises:
        FileNotFoundError: Nothing is there.
    """
    path = Path(path)
    file = path / "cuts.jsonl" if path.is_dir() or not path.suffix else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; name a dialogues folder (with cuts.jsonl) or a cuts file")
    return file


class Manifest:
    """Cuts of a manifest file, read anew at every iteration."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __iter__(self) -> Iterator[Any]:
        import_lhotse()
        from lhotse.serialization import deserialize_item

        for number, record in enumerate(read_records(self.file), start=1):
            try:
                cut = deserialize_item(record)
            except Exception as error:
                raise ValueError(f"{self.file}, line {number}: not a lhotse cut ({error})") from error
            if cut.has_recording:
                cut.recording = cut.recording.with_path_prefix(self.file.parent)
            target = (cut.custom or {}).get("target_audio")
            if target is not None:
                cut.custom["target_audio"] = target.with_path_prefix(self.file.parent)
            yield cut


def read_records(file: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of the lines of a file, which may be gzipped."""
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                record["id"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}, line {number}: not a JSON object with an 'id' ({error})") from error
            yield record


def drop_partial_line(file: Path) -> None:
    """Cut off what follows the last newline: a crash left it there."""
    data = file.read_bytes()
    end = data.rfind(b"\n") + 1
    if end != len(data):
        os.truncate(file, end)
