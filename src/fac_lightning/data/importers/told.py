"""What is wrong with data of others, in the words that importers share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from fac_lightning.data.errors import BadData

__all__ = ["bad_field", "bad_record", "missing_file", "nearest", "shown"]

LONGEST = 120  # characters of a value that a message shows


def shown(value: object) -> str:
    """A value on one line, shortened."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def bad_field(where: str, value: object, rule: str, advice: str = "Correct it or leave the item out") -> BadData:
    """A field that the format does not allow to be so."""
    return BadData("FAC-I02", "wrong value", where, shown(value), rule, f"{advice}.")


def bad_record(where: str, value: object, rule: str) -> BadData:
    """A line that is no record at all."""
    return BadData("FAC-D15", "line that is no record", where, shown(value), rule, "Make the manifest again.")


def nearest(name: str, names: Iterable[str]) -> str:
    """`` The nearest is 'x'.`` with the name that looks most like one, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" The nearest is {close[0]!r}." if close else ""


def missing_file(path: Path, where: str, code: str = "FAC-A01") -> BadData:
    """A file that is not there, with the name of its folder that looks most like it."""
    there = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    advice = f"Put it there or correct the path.{nearest(path.name, there)}"
    return BadData(code, "missing file", where, str(path), "a file that exists", advice)
