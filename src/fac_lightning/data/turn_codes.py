"""Speech codes that come with a turn: some tokenizer made them elsewhere, and the waveform is not at hand."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TurnCodes"]

DTYPES = ("<u2", "<i4")  # smallest first


@dataclass(frozen=True, eq=False)
class TurnCodes:
    """What an assistant's turn says, in codes of a named tokenizer.

    Codes of different tokenizers mean different sounds though their numbers look alike, so a corpus takes only codes
    of one name. A ``SpeechTokenizer`` given beside them must be the one of that name: its ``codes_name``, or its
    ``tokenizer_fingerprint``.
    """

    tokenizer: str
    codes: np.ndarray  # (T, Q) int, not negative
    frame_rate: float  # Hz

    def __post_init__(self) -> None:
        """Refuse what is no grid of codes."""
        codes = self.codes
        if codes.ndim != 2 or not codes.size or codes.dtype.kind not in "iu" or codes.min() < 0:
            raise ValueError(
                f"codes of {self.tokenizer!r} have the shape {codes.shape} and the type {codes.dtype}; give integers "
                "from 0 up of the shape (T, Q), at least one"
            )
        if not self.tokenizer or not self.frame_rate > 0:
            raise ValueError(
                f"codes need the name of their tokenizer and a frame rate above 0 Hz, got {self.tokenizer!r} and "
                f"{self.frame_rate}"
            )

    @property
    def seconds(self) -> float:
        """How long they sound."""
        return len(self.codes) / self.frame_rate

    def to_record(self) -> dict[str, Any]:
        """JSON values; the codes as base64, which takes a third of the room that their digits would."""
        dtype = next(name for name in DTYPES if self.codes.max() <= np.iinfo(name).max)
        data = base64.b64encode(self.codes.astype(dtype).tobytes()).decode()
        told = {"tokenizer": self.tokenizer, "frame_rate": self.frame_rate}
        return {**told, "shape": list(self.codes.shape), "dtype": dtype, "data": data}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> TurnCodes:
        """What ``to_record`` wrote.

        Raises:
            ValueError: The record is damaged.
        """
        try:
            if record["dtype"] not in DTYPES:
                raise ValueError(f"dtype {record['dtype']!r} is none of {', '.join(DTYPES)}")
            data = base64.b64decode(record["data"], validate=True)
            codes = np.frombuffer(data, record["dtype"]).reshape(record["shape"])
            return TurnCodes(str(record["tokenizer"]), codes, float(record["frame_rate"]))
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise ValueError(f"stored codes cannot be read ({type(error).__name__}: {error})") from error
