"""``fac eval``: measure a trained run on spoken questions whose answers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fac_lightning.cli.arguments import parser
from fac_lightning.cli.build import load_run
from fac_lightning.config import Recipe, ensure, instantiate, loads
from fac_lightning.config.compose import override
from fac_lightning.config.errors import RecipeError, UserError

__all__ = ["evaluate", "main", "validation_sets"]

_JOB = "fac_lightning.evaluation.SpokenQAEvaluation"


def main(words: Sequence[str]) -> int:
    """Evaluate and print a table."""
    made = parser("eval", "Measure a trained run on dialogues whose answers are known; by default its validation data.")
    made.add_argument("run", metavar="RUN", help="run folder")
    help_ = "arguments of the evaluation: limit=20 mode=S2T sets.mine=folder recognizer._target_=..."
    made.add_argument("overrides", metavar="key=value", nargs="*", help=help_)
    made.add_argument("--allow", action="append", default=[], metavar="PREFIX", help="the run may build these too")
    args = made.parse_intermixed_args(words)
    print_scores(evaluate(args.run, args.overrides, args.allow))
    return 0


def evaluate(run: str | Path, overrides: Sequence[str] = (), allow: Sequence[str] = ()) -> dict[str, Any]:
    """Scores of a run.

    Args:
        run: Run folder.
        overrides: Arguments of ``SpokenQAEvaluation`` as ``key=value``.
        allow: Further prefixes that the run's recipe may build.
    """
    job = {
        "_target_": _JOB,
        "run": str(run),
        "out": str(Path(run) / "evaluation"),
        "sets": validation_sets(run),
    }
    tree: dict[str, Any] = {"job": job}
    problems = override(tree, [f"~job.{w[1:]}" if w.startswith("~") else f"job.{w}" for w in overrides], [])
    if problems:
        raise RecipeError("fac eval", problems)
    if not tree["job"]["sets"]:
        raise UserError("this run has no validation dialogues: name some, sets.mine=folder")
    ensure(Recipe("fac eval", tree))
    result: dict[str, Any] = instantiate(tree["job"], "job", load_run=partial(load_run, allow=allow)).run()
    return result


def validation_sets(run: str | Path) -> dict[str, str]:
    """Dialogues that a run was validated with, by name; none where it was not.

    Raises:
        FileNotFoundError: It is no run folder.
    """
    file = Path(run) / "recipe.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has no recipe.yaml (fac fit writes one)")
    data = loads(file.read_text(encoding="utf-8"), str(file)).tree.get("data") or {}
    return {"val": data["val"]} if isinstance(data.get("val"), str) else {}


def print_scores(result: Mapping[str, Any]) -> None:
    """One column a set, one row a figure."""
    from rich.console import Console
    from rich.table import Table

    columns = dict(result.get("sets", {}))
    if "reconstruction" in result:
        columns["tokenizer alone"] = result["reconstruction"]
    rows = dict.fromkeys(
        name for scores in columns.values() for name, v in scores.items() if isinstance(v, int | float)
    )
    table = Table("", *columns, title=str(result.get("run", "")))
    for name in rows:
        cells = (scores.get(name) for scores in columns.values())
        table.add_row(name, *("" if cell is None else f"{cell:.4g}" for cell in cells))
    Console().print(table)
