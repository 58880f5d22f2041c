"""Records of JSON files as people have them: a list in one document, or one object a line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.told import bad_record, shown

__all__ = ["first_record", "is_json", "read_json", "read_json_records"]

Record = dict[str, Any]


def is_json(file: Path) -> bool:
    """Whether a file is JSON by its name."""
    return file.name.endswith((".json", ".jsonl", ".json.gz", ".jsonl.gz"))


def read_json(file: Path) -> Any:
    """The one document of a file.

    Raises:
        BadData: It is not JSON.
    """
    try:
        with _opened(file) as content:
            return json.loads(content.read())
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadData(
            "FAC-D15", "file that is not JSON", str(file), str(error), "a document", "Make it again."
        ) from error


def read_json_records(file: Path) -> Iterator[tuple[str, Record | BadData]]:
    """Where it stands and what it is, of every object; what is no object gives its ``BadData``, and the next follows.

    A file that begins with ``[`` is one list, any other has an object on every line that is not blank.

    Raises:
        BadData: A list is not JSON.
    """
    with _opened(file) as lines:
        begins = next((byte for line in lines if (byte := line.strip()[:1])), b"") if file.suffix != ".gz" else b""
    if begins == b"[":
        for number, record in enumerate(read_json(file)):
            where = f"{file}, item {number}"
            good = isinstance(record, dict)
            yield where, record if good else bad_record(where, record, "a JSON object")
        return
    number = 0
    with _opened(file) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}, line {number}", _parsed(line, f"{file}, line {number}")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            where, rule = f"{file}, line {number + 1}", "a file that unpacks to its end"
            yield where, BadData("FAC-D03", "truncated gzip file", where, str(error), rule, "Fetch or make it again.")


def first_record(file: Path) -> Record | None:
    """The first object of a file, or None where it has none."""
    try:
        return next((record for _, record in read_json_records(file) if isinstance(record, dict)), None)
    except BadData:
        return None


def _parsed(line: bytes, where: str) -> Record | BadData:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        told = f"byte 0x{line[error.start]:02x} as byte {error.start + 1} of the line"
        return BadData("FAC-D05", "text that is not UTF-8", where, told, "UTF-8", "Convert the file.")
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n"):
            rule, advice = "a whole JSON object and a newline", "Remove the line or write it again."
            return BadData("FAC-D02", "truncated last line", where, shown(line[-40:].decode("utf-8")), rule, advice)
        return bad_record(where, line.decode("utf-8").strip(), f"a JSON object ({error})")
    return record if isinstance(record, dict) else bad_record(where, record, "a JSON object")


def _opened(file: Path) -> Any:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")
