"""Lhotse's Shar folders, checked by the headers of their tar files; nothing is unpacked.

A folder holds ``cuts.000000.jsonl.gz`` and, for every field, ``<field>.000000.tar`` with two members for each cut, in
the order of the cuts: the data (``<id>.flac``, or ``<id>.nodata``) and what is told of them (``<id>.json``, or
``<id>.nometa``). A field may also be ``<field>.000000.jsonl`` with one line for each cut. lhotse reads cuts and fields
with a plain ``zip``, so a tar file that ends early silently makes fewer cuts; these checks are strict.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.intake.lines import read_lines

__all__ = [
    "SharItem",
    "check_field_file",
    "check_fields",
    "check_ids",
    "check_member",
    "check_shar_folder",
    "list_fields",
    "member_pairs",
    "pair_up",
    "tar_items",
]


@dataclass(frozen=True)
class SharItem:
    """What a field has for one cut, as the tar file's headers tell it."""

    id: str
    data: tarfile.TarInfo
    meta: tarfile.TarInfo

    @property
    def empty(self) -> bool:
        """Whether the cut has nothing in this field."""
        return self.data.name.endswith(".nodata") or self.meta.name.endswith(".nometa")


def list_fields(folder: str | Path) -> dict[str, dict[str, Path]]:
    """Shard name -> file of every field, ``cuts`` first; other files of the folder are left out."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(Path(folder).iterdir()):
        field, _, rest = path.name.partition(".")
        shard, _, kind = rest.partition(".")
        if shard.isdigit() and kind in ("tar", "tar.gz", "jsonl", "jsonl.gz"):
            found.setdefault(field, {})[shard] = path
    return dict(sorted(found.items(), key=lambda item: (item[0] != "cuts", item[0])))


def check_fields(
    folder: str | Path, fields: Mapping[str, Mapping[str, Path]], required: Iterable[str] = ()
) -> list[BadData]:
    """Fields that are missing, and shards that some field lacks or has alone.

    Args:
        folder: For messages.
        fields: From ``list_fields``.
        required: Fields that must be there, such as ``recording``.
    """
    bad = []
    for field in dict.fromkeys(["cuts", *required]):
        if field not in fields:
            rule = f"{field}.000000.{'jsonl.gz' if field == 'cuts' else 'tar'} and on"
            bad.append(
                bad_data("FAC-D14", f"{folder}, field {field!r}", f"only {', '.join(fields) or 'nothing'}", rule)
            )
    cuts = fields.get("cuts", {})
    for field, shards in fields.items():
        missing, alone = sorted(cuts.keys() - shards.keys()), sorted(shards.keys() - cuts.keys())
        if field != "cuts" and "cuts" in fields and (missing or alone):
            told = [f"lacks shard {', '.join(missing[:3])}"] if missing else []
            told += [f"has shard {', '.join(alone[:3])} of no cuts"] if alone else []
            bad.append(
                bad_data(
                    "FAC-D14",
                    f"{folder}, field {field!r}",
                    f"{len(shards)} shards: {' and '.join(told)}",
                    f"the {len(cuts)} shards that the cuts have",
                )
            )
    return bad


def check_member(member: tarfile.TarInfo, where: str, limits: IntakeLimits) -> None:
    """Refuse members that are no plain files, or too large, before any of their bytes is read.

    Raises:
        BadData: FAC-D13.
    """
    place = f"{where}, member {member.name!r}"
    if not member.isreg():
        kind = "a link" if member.issym() or member.islnk() else "a folder" if member.isdir() else "a special file"
        aim = f" to {member.linkname!r}" if member.linkname else ""
        raise bad_data("FAC-D13", place, kind + aim, "regular files")
    if member.size > limits.max_member_bytes:
        raise bad_data(
            "FAC-D13", place, f"{member.size} bytes", f"at most {limits.max_member_bytes} (max_member_bytes)"
        )


def member_pairs(tar: tarfile.TarFile, where: str, limits: IntakeLimits) -> Iterator[SharItem]:
    """Items of an open tar file, checked one by one as they come.

    A reader of streams (``mode="r|"``) must take the bytes of a member before the next one, so it walks the members
    itself and calls ``check_member`` and ``pair_up``.

    Raises:
        BadData: FAC-D11 where the file ends inside an item, FAC-D12 where data and what is told of them do not belong
            together, FAC-D13 for members that are not taken.
    """
    first: tarfile.TarInfo | None = None
    members = iter(tar)
    while True:
        try:
            member = next(members)
        except StopIteration:
            break
        except tarfile.TarError as error:
            raise bad_data("FAC-D11", where, f"a tar file that breaks off ({error})") from error
        check_member(member, where, limits)
        if first is None:
            first = member
            continue
        yield pair_up(first, member, where)
        first = None
    if first is not None:
        raise bad_data("FAC-D11", where, f"{first.name!r} as the last member, without its .json")


def pair_up(data: tarfile.TarInfo, meta: tarfile.TarInfo, where: str) -> SharItem:
    """Two members that follow one another as the item of a cut.

    Raises:
        BadData: FAC-D12: they are not of one cut.
    """
    (name, _), (other, suffix) = os.path.splitext(data.name), os.path.splitext(meta.name)
    if name != other or suffix not in (".json", ".nometa"):
        raise bad_data(
            "FAC-D12", where, f"{data.name!r} followed by {meta.name!r}", "data, then .json or .nometa of the same id"
        )
    return SharItem(name, data, meta)


def tar_items(path: str | Path, limits: IntakeLimits) -> Iterator[SharItem]:
    """Items of a tar file, by its headers alone.

    Raises:
        BadData: As ``member_pairs``; FAC-D11 also where the file is no tar file.
    """
    try:
        tar = tarfile.open(path)  # noqa: SIM115
    except (tarfile.TarError, OSError, EOFError) as error:
        raise bad_data("FAC-D11", str(path), f"a file that is not read as tar ({error})") from error
    with tar:
        yield from member_pairs(tar, str(path), limits)
        _check_end(path, tar)


def _check_end(path: str | Path, tar: tarfile.TarFile) -> None:
    """A tar file that breaks off inside the data of its last member looks whole to ``tarfile``."""
    members = tar.getmembers()
    if not members or not str(path).endswith(".tar"):
        return
    end, size = members[-1].offset_data + members[-1].size, os.path.getsize(path)
    if size < end:
        raise bad_data("FAC-D11", str(path), f"{size} bytes where its last member {members[-1].name!r} ends at {end}")


def check_ids(expected: Sequence[str], found: Sequence[str], where: str) -> BadData | None:
    """What is wrong with the ids of a field beside those of the cuts, if anything is.

    Args:
        expected: Ids of the cuts, in order.
        found: Ids of the field, in order.
        where: The field's file.
    """
    place = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
    if len(found) < len(expected):
        lacks = expected[len(found)] if place is None else expected[place]
        value = f"{len(found)} items; the first that lacks is {lacks!r}"
        return bad_data("FAC-D11", where, value, f"{len(expected)} items, one for every cut")
    if place is not None:
        rule = f"{expected[place]!r}, as in the cuts"
        return bad_data("FAC-D12", where, f"{found[place]!r} as item {place + 1}", rule)
    if len(found) > len(expected):
        value = f"{len(found)} items; {found[len(expected)]!r} is of no cut"
        return bad_data("FAC-D12", where, value, f"{len(expected)} items, one for every cut")
    return None


def check_shar_folder(
    folder: str | Path, limits: IntakeLimits | None = None, required: Iterable[str] = ()
) -> Iterator[BadData]:
    """Everything that is wrong with the shards of a folder: one problem a file at most.

    Args:
        folder: Of the shards.
        limits: Of sizes; the default when None.
        required: Fields that must be there.
    """
    limits, fields = limits or IntakeLimits(), list_fields(folder)
    yield from check_fields(folder, fields, required)
    for shard, cuts in fields.get("cuts", {}).items():
        ids = [str(found["id"]) for _, found in read_lines(cuts) if not isinstance(found, BadData)]
        for field, shards in fields.items():
            if field == "cuts" or shard not in shards:
                continue
            problem = check_field_file(shards[shard], ids, limits)
            if problem is not None:
                yield problem


def check_field_file(path: Path, ids: Sequence[str], limits: IntakeLimits) -> BadData | None:
    """What is wrong with the shard of one field, if anything is.

    Args:
        path: A ``.tar``, or a ``.jsonl`` with ``cut_id``.
        ids: Of the cuts, in order.
        limits: Of sizes.
    """
    try:
        if ".jsonl" in path.name:
            found = []
            for _, line in read_lines(path, key="cut_id"):
                if isinstance(line, BadData):
                    return line
                found.append(str(line["cut_id"]))
        else:
            found = [item.id for item in tar_items(path, limits)]
    except BadData as error:
        return error
    return check_ids(ids, found, str(path))
