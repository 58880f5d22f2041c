"""``fac data stats``: what dialogues hold, as a table and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fac_lightning.cli.arguments import parser
from fac_lightning.cli.tokenize_command import tokenizer_node
from fac_lightning.config import UserError, instantiate

__all__ = ["main", "print_stats"]

SHOWN = 5  # of the densest replies


def main(words: Sequence[str]) -> int:
    """Count, print and, with --out, write a page."""
    made = parser(
        "data stats",
        "Count what dialogues hold, from their manifests alone: hours, turns, sample rates, lengths, voices, the modes "
        "they serve. With a text tokenizer also positions, and replies whose text is denser than their speech.",
    )
    made.add_argument("paths", metavar="PATH", nargs="+", help="dialogues folder, manifest of cuts, or shards")
    made.add_argument("--out", metavar="DIR", help="folder that gets stats.json and stats.html")
    made.add_argument("--text-tokenizer", metavar="NAME", help="folder or hub id of the text tokenizer")
    help_ = "speech tokenizer, for its frame rate, as 'fac tokenize' takes it; 25 Hz without it"
    made.add_argument("--tokenizer", metavar="RECIPE", help=help_)
    help_ = "positions a second of the backbone (default: 5)"
    made.add_argument("--group-rate", type=float, default=5.0, metavar="HZ", help=help_)
    args = made.parse_args(words)
    tokenizer = instantiate(tokenizer_node(args.tokenizer), "tokenizer") if args.tokenizer else None
    from fac_lightning.data.stats import DialogueStats

    try:
        job = DialogueStats(args.paths, args.out, args.text_tokenizer, tokenizer, args.group_rate)
    except ValueError as error:
        raise UserError(f"--group-rate: {error}") from None
    figures = job.run()
    print_stats(figures)
    if args.out:
        print(f"page: {args.out}/stats.html")
    return 0


def print_stats(figures: Mapping[str, Any]) -> None:
    """Tables of the sides, the modes, and what is denser than speech."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fac_lightning.data.stats.page import SIDE_ROWS, lengths

    console = Console(highlight=False)
    console.print(
        f"{figures['dialogues']:,} dialogues, {figures['turns']:,} turns, {figures['hours']:.2f} hours; lengths are "
        "least / median / greatest",
        soft_wrap=True,
    )
    table = Table("", *figures["sides"])
    for name, read in SIDE_ROWS:
        table.add_row(name, *(escape(str(read(side))) for side in figures["sides"].values()))
    console.print(table)
    told = [("turns a dialogue", lengths(figures["turns_per_dialogue"]))]
    told += [("positions a dialogue", lengths(figures["positions"]))] if figures["positions"] else []
    told.append(("modes served", ", ".join(f"{mode}: {n:,}" for mode, n in figures["modes"].items() if n) or "none"))
    for name, value in told:
        console.print(f"{name}: {value}", soft_wrap=True)
    dense = figures["density"]
    if dense is None:
        console.print("positions and density of text: not counted; name a --text-tokenizer", soft_wrap=True)
        return
    console.print(
        f"text denser than speech at {dense['group_rate']:g} Hz: {dense['flagged']:,} of {dense['replies']:,} replies, "
        f"{dense['lost_tokens']:,} tokens without a position",
        style="red" if dense["flagged"] else None,
        soft_wrap=True,
    )
    for reply in dense["densest"][:SHOWN]:
        if reply["lost"]:
            sizes = f"{reply['tokens']} tokens, {reply['positions']} positions, {reply['seconds']:.2f} s"
            console.print(f"  {escape(reply['id'])}, turn {reply['turn']}: {sizes}", soft_wrap=True)
