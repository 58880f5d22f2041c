"""Where everything is in a shard: what makes access at random possible without reading the data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fac_lightning.data.intake.cases import bad_data

__all__ = ["FieldIndex", "ShardIndex"]

VERSION = 1


@dataclass(frozen=True)
class FieldIndex:
    """The members of one tar, in the order of the manifest.

    The place of an array is that of its numbers, behind the header of its npy file.
    """

    bytes: int  # of the tar
    offsets: list[int]
    sizes: list[int]  # bytes; -1 where a dialogue has no such thing
    dtype: str = ""  # of arrays; empty for audio
    columns: int = 0  # of arrays (T, columns)
    digest: str = ""  # of the tar; empty where somebody else wrote it


@dataclass(frozen=True)
class ShardIndex:
    """What is known of a shard without reading its data."""

    rows: int
    digest: str  # of the manifest's lines
    fields: dict[str, FieldIndex] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)  # what the writer counted

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"version": VERSION, **asdict(self)}, separators=(",", ":"), sort_keys=True)

    @staticmethod
    def from_json(text: str | bytes, where: str) -> ShardIndex:
        """What ``to_json`` wrote.

        Args:
            text: The file.
            where: Its name, for messages.

        Raises:
            BadData: It is damaged.
        """
        try:
            values = json.loads(text)
            if values.pop("version") != VERSION:
                raise ValueError("another version of the format")
            fields = {name: FieldIndex(**one) for name, one in values.pop("fields").items()}
            index = ShardIndex(**values, fields=fields)
            wrong = [n for n, f in fields.items() if not len(f.offsets) == len(f.sizes) == index.rows]
            if wrong:
                raise ValueError(f"{', '.join(wrong)} does not have {index.rows} entries")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise bad_data(
                "FAC-D11",
                where,
                str(error),
                "what 'fac data shard' wrote",
                "Delete this file: the index is made again from the tars",
                what="index that cannot be read",
            ) from error
        return index
