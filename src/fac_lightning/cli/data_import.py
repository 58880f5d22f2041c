"""``fac data import``: other people's training data as a dialogues folder."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fac_lightning.cli.arguments import parser
from fac_lightning.config import UserError
from fac_lightning.config.errors import did_you_mean

__all__ = ["main"]

AUTO = "auto"


def main(words: Sequence[str]) -> int:
    """Import and print the counts, or list formats and maps."""
    made = parser(
        "data import",
        "Make a dialogues folder of other people's data. What is bad is left out, told, and listed in bad.jsonl beside "
        "the manifest (exit code 3). Calling it again goes on where it was stopped.",
    )
    made.add_argument("format", nargs="?", metavar="FORMAT", help="one of --list, or 'auto': looks at the source")
    made.add_argument("source", nargs="?", metavar="SOURCE", help="file or folder; for hf also owner/name of the hub")
    made.add_argument("--out", metavar="DIR", help="dialogues folder")
    made.add_argument("--map", metavar="NAME", help="whose columns a table has; one of --list")
    help_ = "a column of the map that differs, such as user_audio=audio; 'system=' takes one away"
    made.add_argument("--column", action="append", default=[], metavar="FIELD=NAME", help=help_)
    help_ = "any other argument of the format or of all formats, such as role=assistant, trust_paths=true, root=/data"
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help_)
    made.add_argument("--limit", type=int, metavar="N", help="stop after so many dialogues")
    made.add_argument("--skip-bad", action="store_true", help="accept that bad items are left out")
    made.add_argument("--list", action="store_true", help="print formats, maps and settings")
    args = made.parse_intermixed_args(words)
    if args.list:
        print_formats()
        return 0
    if not args.format or not args.source or not args.out:
        made.error("FORMAT, SOURCE and --out are needed, or --list")
    from fac_lightning.data.importers import IMPORT_FORMATS, guess_format

    name = args.format
    if name == AUTO:
        name, why = guess_format(Path(args.source), args.source)
        print(f"fac: {args.source}: {name}, for {why}", file=sys.stderr)
    if name not in IMPORT_FORMATS:
        known = [AUTO, *IMPORT_FORMATS]
        raise UserError(f"there is no format '{name}'.{did_you_mean(name, known)} It is one of {', '.join(known)}")
    words_ = [*args.set]
    words_ += [f"column_map={args.map}"] if args.map is not None else []
    words_ += [f"columns.{word}" for word in args.column]
    words_ += [f"limit={args.limit}"] if args.limit is not None else []
    words_ += ["skip_bad=true"] if args.skip_bad else []
    job = IMPORT_FORMATS[name].job
    try:
        built = job(source=args.source, out=args.out, **job_arguments(job, name, words_))
    except (TypeError, ValueError) as error:
        raise UserError(f"fac data import {name}: {error}") from error
    print_result(args.out, built.run())
    return 0


def job_arguments(job: Any, name: str, words: Sequence[str]) -> dict[str, Any]:
    """Arguments of a format's job out of ``key=value`` words; what all formats share goes into their options.

    Raises:
        UserError: A word has no '=', or the format takes no such key.
    """
    from fac_lightning.data.importers import ImportOptions

    own = [key for key in inspect.signature(job).parameters if key not in ("source", "out", "options")]
    shared = [field.name for field in dataclasses.fields(ImportOptions)]
    shared = shared if "options" in inspect.signature(job).parameters else []
    arguments: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        head, _, inner = key.partition(".")
        if not equals:
            raise UserError(f"'{word}' sets nothing; write key=value")
        if head not in own and head not in shared:
            raise UserError(
                f"the format {name} takes no '{head}'.{did_you_mean(head, [*own, *shared])} "
                f"It takes {', '.join([*own, *shared])}"
            )
        into = arguments if head in own else options
        if inner:
            into.setdefault(head, {})[inner] = _plain(value)
        else:
            into[head] = _plain(value)
    if options:
        arguments["options"] = ImportOptions(**options)
    return arguments


def _plain(value: str) -> Any:
    """A value as a recipe would read it."""
    import yaml

    if not value:
        return ""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def print_result(folder: str, counts: Mapping[str, Any]) -> None:
    """The counts as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", show_header=False)
    table.columns[1].justify = "right"
    for name, value in counts.items():
        shown = f"{value:.2f}" if isinstance(value, float) else f"{value:,}"
        table.add_row(name.replace("_", " "), shown, style="red" if name.startswith("bad") and value else None)
    console = Console()
    console.print(table)
    console.print(f"dialogues: {folder}", highlight=False, soft_wrap=True)


def print_formats() -> None:
    """Formats, maps of columns, and the settings of all formats."""
    from fac_lightning.data.importers import COLUMN_MAPS, IMPORT_FORMATS, ImportOptions

    print("formats:")
    for name, one in IMPORT_FORMATS.items():
        own = [key for key in inspect.signature(one.job).parameters if key not in ("source", "out", "options")]
        print(f"  {name:<16}{one.about}\n{'':18}{', '.join(own)}")
    print("\nmaps of columns (--map), for the format hf:")
    for name, columns in COLUMN_MAPS.items():
        named = ", ".join(f"{field}={column}" for column, field in columns.columns().items())
        print(f"  {name:<22}{named}")
    shared = ", ".join(field.name for field in dataclasses.fields(ImportOptions))
    print(f"\nsettings of all formats but fun-audio-chat (--set): {shared}")
