"""``fac fit``: train what a recipe says."""

from __future__ import annotations

from collections.abc import Sequence

from fac_lightning.cli.arguments import recipe_parser
from fac_lightning.cli.fit import FitResult, fit
from fac_lightning.config import load

__all__ = ["main", "print_result"]


def main(words: Sequence[str]) -> int:
    """Train and print where the results lie."""
    made = recipe_parser("fit", "Train what a recipe says: its task, on its data, with its trainer.")
    made.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the run folder")
    args = made.parse_intermixed_args(words)
    print_result(fit(load(args.recipe, args.overrides), resume=args.resume))
    return 0


def print_result(result: FitResult) -> None:
    """Table of the last metrics and the run folder."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "last value", title=f"{result.steps} steps")
    table.columns[1].justify = "right"
    for name, value in sorted(result.metrics.items()):
        table.add_row(name, f"{value:.5g}")
    console = Console()
    if result.metrics:
        console.print(table)
    console.print(f"run folder: {result.folder}", highlight=False, soft_wrap=True)
