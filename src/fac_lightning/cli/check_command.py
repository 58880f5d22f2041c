"""``fac check``: list every mistake of recipes, from source text alone."""

from __future__ import annotations

from collections.abc import Sequence

from fac_lightning.cli.arguments import parser
from fac_lightning.config import Problem, Recipe, UserError, check, load, report

__all__ = ["check_all", "main"]


def main(words: Sequence[str]) -> int:
    """Print the problems of each recipe; 2 if there is any."""
    made = parser("check", "List every mistake of recipes at once. Nothing is built and nothing heavy is imported.")
    made.add_argument("recipes", metavar="RECIPE", nargs="+", help="files or names of shipped recipes; key=value too")
    made.add_argument("--allow-missing", action="store_true", help="let '???' pass: what the user still owes")
    args = made.parse_intermixed_args(words)
    overrides = [word for word in args.recipes if "=" in word or word.startswith("~")]
    found = 0
    for name in [word for word in args.recipes if word not in overrides]:
        problems = check_all(load(name, overrides), args.allow_missing)
        print(report(name, problems))
        found += len(problems)
    return 2 if found else 0


def check_all(recipe: Recipe, allow_missing: bool = False) -> list[Problem]:
    """Problems of a recipe, and of every stage it names."""
    problems = check(recipe, allow_missing=allow_missing)
    if recipe.tree.get("stages") and not problems:
        from fac_lightning.cli.run_command import plan

        try:
            plan(recipe, lambda stage: problems.extend(_in_stage(stage, allow_missing)))
        except UserError as error:
            problems.append(Problem("stages", "", tuple(str(error).splitlines())))
    return problems


def _in_stage(stage: Recipe, allow_missing: bool) -> list[Problem]:
    return [
        Problem(f"{stage.name}: {problem.key}", problem.value, problem.lines)
        for problem in check(stage, allow_missing=allow_missing)
    ]
