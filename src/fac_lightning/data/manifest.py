"""Manifest files: one JSON object a line, read so that a mistake is told by file and line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.intake.lines import nearest_names, read_lines
from fac_lightning.data.intake.records import check_record
from fac_lightning.data.intake.sources import SourceGate
from fac_lightning.data.lhotse_setup import import_lhotse

__all__ = ["Manifest", "ManifestLine", "drop_partial_line", "manifest_path", "read_records"]

# Without these there is no cut to hand out; what else is wrong with one says ``Manifest.lines``.
UNREADABLE = frozenset({"FAC-D02", "FAC-D03", "FAC-D04", "FAC-D05", "FAC-D10", "FAC-D15"})


def manifest_path(path: str | Path) -> Path:
    """The manifest of a dialogues folder, or the file itself.

    Raises:
        FileNotFoundError: Nothing is there.
    """
    path = Path(path)
    file = path / "cuts.jsonl" if path.is_dir() or not path.suffix else path
    if not file.is_file():
        near = nearest_names(file if path.is_dir() else path)
        told = f"; near it lie {', '.join(near)}" if near else ""
        raise FileNotFoundError(
            f"{file} does not exist; name a dialogues folder (with cuts.jsonl) or a cuts file{told}"
        )
    return file


@dataclass(frozen=True)
class ManifestLine:
    """A line of a manifest of dialogues: a cut, and what is wrong with it."""

    where: str  # file and line
    cut: Any  # None where the line holds none
    problems: tuple[BadData, ...]


class Manifest:
    """Cuts of a manifest file, read anew at every iteration.

    Args:
        file: JSON lines, gzipped or not.
        limits: What is accepted; the default when None.
    """

    def __init__(self, file: Path, limits: IntakeLimits | None = None) -> None:
        self.file, self.limits = file, limits or IntakeLimits()

    def __iter__(self) -> Iterator[Any]:
        """Cuts.

        Raises:
            BadData: A line holds no cut, or one whose sources may not be read.
        """
        for line in self._read(unique=False, dialogues=None):
            for problem in line.problems:
                if problem.code in UNREADABLE:
                    raise problem
            yield line.cut

    def lines(self) -> Iterator[ManifestLine]:
        """Every line, which must hold a dialogue, with all that is wrong with it."""
        return self._read(unique=True, dialogues=True)

    def _read(self, unique: bool, dialogues: bool | None) -> Iterator[ManifestLine]:
        import_lhotse()
        from lhotse.serialization import deserialize_item

        gate = SourceGate(self.file.parent, self.limits)
        for number, record in read_lines(self.file, unique=unique):
            where = f"{self.file}, line {number}"
            if isinstance(record, BadData):
                yield ManifestLine(where, None, (record,))
                continue
            problems = check_record(record, where, gate, self.limits, dialogues)
            cut = None
            if not any(problem.code in UNREADABLE for problem in problems):
                try:
                    cut = deserialize_item(record)
                except Exception as error:  # lhotse raises many kinds
                    rule = "the fields of a lhotse cut"
                    problems.append(bad_data("FAC-D15", where, str(error), rule, what="not a lhotse cut"))
                else:
                    self._resolve(cut)
            yield ManifestLine(where, cut, tuple(problems))

    def _resolve(self, cut: Any) -> None:
        """Paths count from the manifest's folder."""
        if cut.has_recording:
            cut.recording = cut.recording.with_path_prefix(self.file.parent)
        target = (cut.custom or {}).get("target_audio")
        if target is not None:
            cut.custom["target_audio"] = target.with_path_prefix(self.file.parent)


def read_records(file: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of the lines of a file, which may be gzipped.

    Raises:
        BadData: FAC-D02 to D05, D15: a line holds none.
    """
    for _, record in read_lines(file):
        if isinstance(record, BadData):
            raise record
        yield record


def drop_partial_line(file: Path) -> None:
    """Cut off what follows the last newline: a crash left it there."""
    data = file.read_bytes()
    end = data.rfind(b"\n") + 1
    if end != len(data):
        os.truncate(file, end)
