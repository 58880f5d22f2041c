"""Speech codes as people write them down: lists of numbers, or texts of them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.told import shown
from fac_lightning.data.turn_codes import TurnCodes

__all__ = ["parse_codes"]

WRITTEN = re.compile(r"[\s\d#,\[\]]*")  # SNAC's has a '#' before the seven codes of every frame


def parse_codes(cell: Any, where: str, tokenizer: str, frame_rate: float, books: int = 1) -> TurnCodes:
    """Codes of a cell: numbers in order, ``books`` of them a frame.

    Args:
        cell: List or array ``(T,)`` or ``(T, books)``, or a text of numbers with blanks, commas, brackets or ``#``.
        where: For messages.
        tokenizer: Name of what made them.
        frame_rate: Hz.
        books: Codes of one frame.

    Raises:
        BadData: The cell holds anything else.
    """
    if isinstance(cell, str):
        if not WRITTEN.fullmatch(cell):
            raise _unreadable(where, cell, "numbers, with blanks, commas, brackets or '#' between them")
        # of what is not a digit nothing but blanks is left, so that numpy can read the text in one go
        codes = np.fromstring(re.sub(r"\D+", " ", cell), dtype=np.int64, sep=" ")
    else:
        try:
            codes = np.asarray(cell)
        except ValueError as error:  # lists of several lengths
            raise _unreadable(where, cell, f"a list of numbers ({error})") from error
    if codes.dtype.kind not in "iu" or not codes.size:
        raise _unreadable(where, cell, "a list of integers, at least one")
    if (codes.ndim > 1 and codes.shape[-1] != books) or codes.size % books:
        raise _unreadable(where, f"{codes.size} numbers of the shape {codes.shape}", f"{books} for every frame")
    try:
        return TurnCodes(tokenizer, codes.reshape(-1, books), frame_rate)
    except ValueError as error:
        raise _unreadable(where, cell, str(error)) from error


def _unreadable(where: str, cell: Any, rule: str) -> BadData:
    return BadData("FAC-I05", "codes that cannot be read", where, shown(cell), rule, "Correct it or leave the row out.")
