"""Cuts of a Shar folder with the bytes of their fields, read strictly: what does not fit is told, never skipped."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.json_records import read_json_records
from fac_lightning.data.importers.told import bad_field
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.intake.shar import check_fields, check_member, list_fields

__all__ = ["is_shar", "read_shar"]

AGAIN = "Fetch or write the shard again."

Fields = dict[str, bytes | dict[str, Any]]  # bytes of sound and arrays, objects of JSON fields


def is_shar(folder: Path) -> bool:
    """Whether a folder is lhotse's Shar."""
    return folder.is_dir() and "cuts" in list_fields(folder)


def read_shar(folder: Path) -> Iterator[tuple[str, dict[str, Any] | BadData, Fields]]:
    """Where a cut stands, the cut as JSON, and its fields.

    lhotse goes through cuts and tar files with a plain ``zip``, so that a tar that ends early makes fewer cuts without
    a word, and takes an answer to last as long as its question, for it writes that down beside the answer. Here the
    ids must be equal from the first to the last, and what a recording lasts is what is in it.

    Raises:
        BadData: A field lacks shards (FAC-D14).
    """
    fields = list_fields(folder)
    for problem in check_fields(folder, fields):
        raise problem
    cuts = fields.pop("cuts")
    for shard, file in cuts.items():
        names = list(fields)
        readers = [_field_items(fields[name][shard]) for name in names]
        try:
            for found, *items in zip_longest(read_json_records(file), *readers):
                where, cut = found or (str(file), None)
                if isinstance(cut, BadData):
                    yield where, cut, {}
                    continue
                due = str(cut.get("id")) if cut is not None else None
                for name, item in zip(names, items, strict=True):
                    have = item[0] if item is not None else None
                    if have != due:
                        code, what = (
                            ("FAC-D12", "items in another order") if have and due else ("FAC-D11", "too few items")
                        )
                        place, rule = str(fields[name][shard]), f"that of {due!r}, as in {file.name}"
                        raise BadData(code, what, place, f"the item of {have!r}", rule, AGAIN)
                kept = {name: item[1] for name, item in zip(names, items, strict=True) if item[1] is not None}
                assert cut is not None
                yield where, cut, kept
        except tarfile.TarError as error:
            yield (
                str(file),
                BadData("FAC-D11", "shard that breaks off", str(file), str(error), "a whole one", AGAIN),
                {},
            )
        except BadData as error:  # which items belong together is not known behind it
            yield str(file), error, {}


def _field_items(file: Path) -> Iterator[tuple[str, bytes | dict[str, Any] | None]]:
    """Id and content of every item of a field; None for a cut that has none."""
    if not file.name.endswith((".tar", ".tar.gz")):
        for where, record in read_json_records(file):
            if isinstance(record, BadData):
                raise record
            if "cut_id" not in record:
                raise bad_field(where, record, "an object with a 'cut_id'")
            yield str(record["cut_id"]), record
        return
    limits = IntakeLimits()
    with tarfile.open(file, "r|*") as content:
        for info in content:
            check_member(info, str(file), limits)
            name, ending = info.name.rsplit(".", 1) if "." in info.name else (info.name, "")
            if ending in ("json", "nometa"):
                continue  # what is told of the data, which tell it themselves
            member = content.extractfile(info)
            assert member is not None
            yield name, None if ending == "nodata" else member.read()
