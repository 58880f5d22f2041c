"""``fac list``: every part of every slot with its arguments, read from source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fac_lightning.cli.arguments import parser
from fac_lightning.config import BadPath, Definition, Unreadable, UserError, find, public_names
from fac_lightning.config.errors import did_you_mean

__all__ = ["ROOMS", "main", "parts"]

#: slot or section of a recipe -> room
ROOMS = (
    "tokenizers", "encoders", "adapters", "backbones", "heads", "models", "tasks", "data", "losses", "callbacks",
    "synthesizers", "recognizers", "evaluation",
)  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Print parts."""
    made = parser("list", "Every part of every slot, with its arguments and what they are without you.")
    made.add_argument("slot", nargs="?", help=f"one of {', '.join(ROOMS)}; all without it")
    args = made.parse_args(words)
    rooms: Sequence[str] = ROOMS
    if args.slot:
        rooms = [room for room in ROOMS if args.slot in (room, room.rstrip("s"))]
        if not rooms:
            raise UserError(f"there is no slot '{args.slot}'.{did_you_mean(args.slot, ROOMS)} {', '.join(ROOMS)}")
    for room in rooms:
        print(f"{room}")
        for path, definition in parts(room):
            mark = "  (base class: derive from it)" if definition.abstract else ""
            print(f"  {path}{mark}")
            if definition.doc:
                print(f"      {definition.doc.splitlines()[0]}")
            for argument in definition.arguments:
                print(f"        {argument}")
        print()
    return 0


def parts(room: str) -> Iterator[tuple[str, Definition]]:
    """Public classes and functions of a room, and where each is written."""
    for name in public_names(f"fac_lightning.{room}"):
        path = f"fac_lightning.{room}.{name}"
        try:
            yield path, find(path)
        except (BadPath, Unreadable):  # a constant
            continue
