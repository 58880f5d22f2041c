"""How the files of a shards folder are called, and which of them belong together.

The folder is Lhotse's Shar: a manifest ``cuts.000000.jsonl.gz`` and one tar for each field a shard,
``recording.000000.tar`` and so on. Lhotse takes every other file there for a field of its own, unless its name begins
with ``cuts.`` and has no ``.jsonl``; so what we keep beside the shards is called ``cuts.000000.index.json`` and
``cuts.summary.json``, and drafts end in ``.part``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fac_lightning.data.intake.cases import bad_data

__all__ = ["MANIFEST", "SUMMARY", "ShardFiles", "draft_name", "find_shards", "index_name", "manifest_name", "tar_name"]

SUMMARY = "cuts.summary.json"
MANIFEST = re.compile(r"cuts(\.[^.]+)?\.jsonl(\.gz)?$")
_TAR = re.compile(r"(?P<field>[^.]+)(?P<number>\.[^.]+)?\.tar$")


@dataclass(frozen=True)
class ShardFiles:
    """The files of one shard."""

    number: str  # what stands between the field and the ending, with its dot: ".000000", or nothing
    manifest: str
    tars: dict[str, str]  # file by field

    @property
    def index(self) -> str:
        """Where the index is, if there is one."""
        return f"cuts{self.number}.index.json"


def manifest_name(number: int) -> str:
    """Manifest of a shard."""
    return f"cuts.{number:06d}.jsonl.gz"


def index_name(number: int) -> str:
    """Index of a shard; the last of its files that is written."""
    return f"cuts.{number:06d}.index.json"


def tar_name(field: str, number: int) -> str:
    """Data of a field of a shard."""
    return f"{field}.{number:06d}.tar"


def draft_name(name: str) -> str:
    """What a file is called until it is whole."""
    return f"cuts.{name}.part"


def find_shards(where: str, names: Mapping[str, int], pattern: str = "cuts*") -> list[ShardFiles]:
    """The shards of a folder, in order.

    Args:
        where: The folder, for messages.
        names: Bytes of every file by its name.
        pattern: Only the shards whose manifest has such a name.

    Raises:
        BadData: There is no shard, or a field lacks some of them.
    """
    numbers = {(m.group(1) or ""): name for name in sorted(names) if (m := MANIFEST.match(name))}
    tars: dict[str, dict[str, str]] = {}
    for name in names:
        if found := _TAR.match(name):
            tars.setdefault(found["field"], {})[found["number"] or ""] = name
    if not numbers:
        advice = "Write one with 'fac data shard DIALOGUES --out DIR'"
        raise bad_data("FAC-D14", where, "no cuts.*.jsonl.gz", "a folder in Lhotse's Shar format", advice, "no shard")
    for field, there in sorted(tars.items()):
        if odd := sorted(there.keys() ^ numbers.keys()):
            told = f"{len(there)} x {field}.*.tar and {len(numbers)} x cuts.*.jsonl.gz; {field}{odd[0]} stands alone"
            raise bad_data("FAC-D14", f"{where}, field {field!r}", told, "the shards that the cuts have")
    kept = [n for n in sorted(numbers) if fnmatchcase(numbers[n], pattern)]
    if not kept:
        raise bad_data("FAC-D14", where, f"nothing like {pattern}", "cuts.*.jsonl.gz", "Change the pattern", "no shard")
    return [ShardFiles(n, numbers[n], {field: tars[field][n] for field in sorted(tars)}) for n in kept]
