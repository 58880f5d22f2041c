"""The audio inside the tar files of a Shar folder, held against what is told of it there."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.audio import DeclaredAudio, check_audio
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.intake.shar import SharItem, check_field_file, tar_items

__all__ = ["FieldReport", "check_field"]


@dataclass(frozen=True)
class FieldReport:
    """What was found out about one field's file of a shard."""

    problems: tuple[tuple[str | None, BadData], ...]  # with the cut's id; without one it is a problem of all cuts
    clips: int  # that were looked at
    seconds: float  # of them


def check_field(path: Path, ids: Sequence[str], limits: IntakeLimits, decode: bool = True) -> FieldReport:
    """Check the items of a field's file against the ids of the cuts, then the audio in it.

    Args:
        path: A ``.tar``, or a ``.jsonl``.
        ids: Of the cuts, in order.
        limits: What is accepted.
        decode: Look at the samples too, and not at headers alone.
    """
    problem = check_field_file(path, ids, limits)
    if problem is not None or ".jsonl" in path.name:
        return FieldReport(() if problem is None else ((None, problem),), 0, 0.0)
    problems: list[tuple[str | None, BadData]] = []
    clips, seconds = 0, 0.0
    with tarfile.open(path) as tar:
        for item in list(tar_items(path, limits)):
            if item.empty:
                continue
            where = f"{path}, cut {item.id!r}"
            try:
                declared = _declared(tar, item, where)
            except BadData as error:
                problems.append((item.id, error))
                continue
            if declared is None:
                continue
            report = check_audio(_bytes(tar, item.data), where, limits, declared, decode)
            problems += [(item.id, found) for found in report.problems]
            clips += 1
            seconds += report.header.seconds if report.header is not None else 0.0
    return FieldReport(tuple(problems), clips, seconds)


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # it is a plain file: its header was checked
    return file.read()


def _declared(tar: tarfile.TarFile, item: SharItem, where: str) -> DeclaredAudio | None:
    """What is told of an item that is a recording; None of any other."""
    try:
        meta = json.loads(_bytes(tar, item.meta))
        if "sampling_rate" not in meta or "num_samples" not in meta or "sources" not in meta:
            return None
        channels = sum(len(source["channels"]) for source in meta["sources"])
        return DeclaredAudio(int(meta["sampling_rate"]), int(meta["num_samples"]), channels)
    except (ValueError, TypeError, KeyError) as error:
        rule, what = "a lhotse manifest", "no manifest of an item"
        raise bad_data(
            "FAC-D15", f"{where}, {item.meta.name}", f"{type(error).__name__}: {error}", rule, what=what
        ) from error
