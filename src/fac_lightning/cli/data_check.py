"""``fac data check``: everything that is wrong with data, a line each, before anything is trained on them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fac_lightning.cli.arguments import parser
from fac_lightning.config.errors import UserError

if TYPE_CHECKING:
    from fac_lightning.data import CheckResult, IntakeLimits
    from fac_lightning.data.errors import BadData

__all__ = ["main"]

SHOWN = 50
BAD_DATA = 3  # exit code


def main(words: Sequence[str]) -> int:
    """Check and print; 3 if anything is wrong."""
    made = parser(
        "data check",
        "Check every record and all audio of dialogues folders, manifests, Lhotse cuts, Shar folders and sound files. "
        "Nothing is changed. docs/data.md lists the codes.",
    )
    made.add_argument("paths", metavar="PATH", nargs="+", help="folder, manifest or sound file")
    help_ = "audio must lie in the manifest's folder or in this one; several times"
    made.add_argument("--roots", action="append", default=[], metavar="DIR", help=help_)
    help_ = "let sources of the type 'command' run: a manifest from elsewhere can then do anything"
    made.add_argument("--trust-commands", action="store_true", help=help_)
    help_ = "a file at another rate than its manifest says is taken at its own"
    made.add_argument("--resample", action="store_true", help=help_)
    made.add_argument("--fast", action="store_true", help="headers alone: no sample is decoded")
    made.add_argument("--workers", type=int, default=0, metavar="N", help="processes that look at audio; 0: none")
    made.add_argument("--max", type=int, default=SHOWN, metavar="N", help=f"problems shown; {SHOWN} without it")
    made.add_argument("--json", metavar="FILE", help="write all problems there; .jsonl: one a line")
    made.add_argument("--channels", type=int, default=1, metavar="N", help="channels of a turn; 2 for duplex")
    made.add_argument("--max-seconds", type=float, metavar="S", help="longest recording")
    help_ = "a field that Shar folders must have, such as codes; several times"
    made.add_argument("--field", action="append", default=[], metavar="NAME", help=help_)
    help_ = "silence and clipping alone do not make the exit code 3"
    made.add_argument("--allow-warnings", action="store_true", help=help_)
    args = made.parse_args(words)
    for name, least in (("workers", 0), ("max", 0), ("channels", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UserError(f"--json {args.json}: there is no folder {Path(args.json).parent}")
    from fac_lightning.data import DataCheck

    result = DataCheck(args.paths, _limits(args), args.workers, not args.fast, args.field).run()
    if args.json:
        write_report(Path(args.json), result)
    print_result(result, args.max, args.json)
    return BAD_DATA if result.errors or (result.problems and not args.allow_warnings) else 0


def _limits(args: Any) -> IntakeLimits:
    from fac_lightning.data import IntakeLimits

    given = {} if args.max_seconds is None else {"max_seconds": args.max_seconds}
    return IntakeLimits(
        roots=tuple(args.roots),
        trust_commands=args.trust_commands,
        resample=args.resample,
        channels=args.channels,
        **given,
    )


def print_result(result: CheckResult, shown: int, report: str | None) -> None:
    """Problems, a line each, then how many there are of each code."""
    from rich.console import Console
    from rich.table import Table

    from fac_lightning.data.intake import CASES, WARNINGS

    for problem in result.problems[:shown]:
        print(f"{'warning: ' if problem.code in WARNINGS else ''}{_line(problem)}")
    if len(result.problems) > shown:
        told = f"all are in {report}" if report else "--json FILE writes all"
        print(f"... {len(result.problems) - shown} more; {told}")
    if result.problems:
        table = Table("code", "what", "count")
        table.columns[2].justify = "right"
        for code, count in result.counts.items():
            what = CASES[code].what if code in CASES else ""
            table.add_row(code, what + (" (warning)" if code in WARNINGS else ""), f"{count:,}")
        Console().print(table)
    bad = result.records - result.good
    print(
        f"{result.good:,} of {result.records:,} records are good, {bad:,} bad; "
        f"{result.clips:,} recordings of {result.hours:,.2f} h looked at; {len(result.errors):,} errors, "
        f"{len(result.problems) - len(result.errors):,} warnings"
    )


def write_report(file: Path, result: CheckResult) -> None:
    """All problems as JSON, or as JSON lines; the file is there when it is whole."""
    found = [_entry(problem) for problem in result.problems]
    if file.suffix == ".jsonl":
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found)
    else:
        summary = {"records": result.records, "good": result.good, "clips": result.clips, "hours": result.hours}
        text = json.dumps({**summary, "counts": result.counts, "problems": found}, indent=2, ensure_ascii=False) + "\n"
    draft = file.with_name(f".{file.name}.part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)


def _line(problem: BadData) -> str:
    """One line, whatever stands in ids and paths."""
    return " ".join(str(problem).split("\n"))


def _entry(problem: BadData) -> dict[str, str]:
    from fac_lightning.data.intake import WARNINGS

    told = {"code": problem.code, "severity": "warning" if problem.code in WARNINGS else "error"}
    names = ("what", "where", "value", "rule", "advice")
    return {**told, **{name: str(getattr(problem, name)) for name in names}}
