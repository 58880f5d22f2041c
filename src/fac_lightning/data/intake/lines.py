"""Lines of a manifest: records and what is wrong with the others, each with its number."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.cases import bad_data

__all__ = ["nearest_names", "read_lines"]

Record = dict[str, Any]


def read_lines(file: str | Path, key: str = "id", unique: bool = False) -> Iterator[tuple[int, Record | BadData]]:
    """Number (from 1) and record of every line of a JSON-lines file, which may be gzipped.

    A line that is no record gives its ``BadData`` (FAC-D02, D04, D05, D06, D15) and the next line follows; a gzip file
    that breaks off gives FAC-D03 and ends.

    Args:
        file: The file.
        key: What every record must have.
        unique: Tell also records whose ``key`` an earlier line has (FAC-D06).

    Raises:
        OSError: The file cannot be opened.
    """
    file = Path(file)
    seen: dict[Any, int] = {}
    number = 0
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                found = _record(line, f"{file}, line {number}", key)
                if unique and not isinstance(found, BadData):
                    first = seen.setdefault(found[key], number)
                    if first != number:
                        where = f"{file}, line {number}, field {key!r}"
                        found = bad_data("FAC-D06", where, found[key], f"an id that line {first} does not have")
                yield number, found
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield number + 1, bad_data("FAC-D03", f"{file}, line {number + 1}", str(error))


def _record(line: bytes, where: str, key: str) -> Record | BadData:
    if not line.strip():
        return bad_data("FAC-D04", where, line.decode("latin-1"))
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return bad_data("FAC-D05", where, f"byte 0x{line[error.start]:02x} as byte {error.start + 1} of the line")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n"):
            return bad_data("FAC-D02", where, f"...{text[-40:]!r}")
        return _no_record(where, key, f"{text.strip()[:60]!r} ({error})")
    if not isinstance(record, dict):
        return _no_record(where, key, f"a JSON {_kind(record)}")
    name = record.get(key)
    if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
        told = repr(name) if key in record else f"only {', '.join(map(repr, record)) or 'nothing'}"
        return _no_record(f"{where}, field {key!r}", key, told)
    return record


def _no_record(where: str, key: str, value: str) -> BadData:
    return bad_data("FAC-D15", where, value, f"a JSON object with {key!r}", what=f"not a JSON object with {key!r}")


def _kind(value: object) -> str:
    names = {list: "list", str: "string", bool: "true or false", int: "number", float: "number", type(None): "null"}
    return names[type(value)]


def nearest_names(path: str | Path, limit: int = 3) -> list[str]:
    """Names in the nearest folder that exists that look like the one that is missing there."""
    import difflib

    path = Path(path)
    while path.parent != path and not path.parent.is_dir():
        path = path.parent
    try:
        there = sorted(child.name for child in path.parent.iterdir())
    except OSError:
        return []
    return difflib.get_close_matches(path.name, there, n=limit, cutoff=0.5)
