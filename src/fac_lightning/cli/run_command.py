"""``fac run``: whatever a recipe is: a training, a job, or a pipeline of stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fac_lightning.cli.arguments import recipe_parser
from fac_lightning.cli.build import load_run
from fac_lightning.cli.fit import fit
from fac_lightning.cli.fit_command import print_result
from fac_lightning.config import Recipe, UserError, ensure, find_recipe, instantiate, load, recipe_text

__all__ = ["main", "plan", "run", "run_job"]


def main(words: Sequence[str]) -> int:
    """Run a recipe."""
    made = recipe_parser("run", "Run a recipe: 'stages:' is a pipeline, 'job:' runs one object, all else trains.")
    made.add_argument("--resume", action="store_true", help="a training goes on from its last checkpoint")
    args = made.parse_intermixed_args(words)
    run(load(args.recipe, args.overrides), resume=args.resume)
    return 0


def run(recipe: Recipe, resume: bool = False) -> Any:
    """Run a composed recipe and print what it gave."""
    if recipe.tree.get("stages"):
        return run_stages(recipe)
    if recipe.tree.get("job"):
        return run_job(recipe)
    result = fit(recipe, resume=resume)
    print_result(result)
    return result


def run_job(recipe: Recipe) -> Any:
    """Build the object of ``job:`` and call its ``run()``.

    A job that takes ``load_run`` gets the function that rebuilds trained runs. A job with a folder ``out`` leaves its
    recipe there.
    """
    ensure(recipe)
    if not recipe.tree.get("job"):
        raise UserError(f"{recipe.name} has no 'job:'. fac fit trains it")
    if recipe.tree.get("seed") is not None:
        import lightning

        lightning.seed_everything(recipe.tree["seed"], workers=True, verbose=False)
    job = instantiate(recipe.tree["job"], "job", load_run=load_run)
    if not callable(getattr(job, "run", None)):
        raise UserError(f"job: {type(job).__name__} has no run(), so it is a part and no job")
    result = job.run()
    out = recipe.tree["job"].get("out")
    if isinstance(out, str) and Path(out).is_dir():
        # a job that leaves a run folder has put the recipe of its model there, and names another file for its own
        name = getattr(job, "recipe_file", "recipe.yaml")
        (Path(out) / name).write_text(recipe_text(recipe), encoding="utf-8")
    return result


def plan(recipe: Recipe, look: Callable[[Recipe], None]) -> list[Any]:
    """Stages of a pipeline recipe, in order; ``look`` sees the composed recipe of each.

    Raises:
        UserError: A stage names no recipe, or one that cannot be composed.
    """
    from fac_lightning.pipeline import plan_stages

    folder = recipe.path.parent if recipe.path else Path()

    def compose(name: str, overrides: list[str]) -> dict[str, Any]:
        beside = folder / name
        stage = load(beside if beside.is_file() else find_recipe(name), overrides)
        look(replace(stage, name=name))
        return stage.tree

    try:
        return plan_stages(recipe.tree["stages"], compose)
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{recipe.name}: {error}") from error


def run_stages(recipe: Recipe) -> dict[str, Any]:
    """Run a pipeline: what is done is skipped, what was interrupted goes on, what changed starts afresh."""
    from rich.console import Console

    from fac_lightning.pipeline import run_pipeline

    ensure(recipe)
    composed: dict[str, Recipe] = {}

    def look(stage: Recipe) -> None:
        ensure(stage)
        composed[str(len(composed))] = stage

    stages = plan(recipe, look)
    recipes = dict(zip((stage.name for stage in stages), composed.values(), strict=True))
    console = Console()
    titles = {
        "skip": "[dim]done before",
        "start": "[bold cyan]starts",
        "resume": "[bold cyan]goes on",
        "done": "[bold green]done",
    }

    def tell(stage: Any, what: str) -> None:
        number = [one.name for one in stages].index(stage.name) + 1
        console.print(f"[{number}/{len(stages)}] {stage.name}: {titles[what]}", highlight=False)

    def work(stage: Any) -> Any:
        one = recipes[stage.name]
        return _plain(run_job(one) if one.tree.get("job") else _fit_stage(one))

    return run_pipeline(stages, _pipeline_folder(recipe), work, tell)


def _fit_stage(recipe: Recipe) -> dict[str, Any]:
    result = fit(recipe, resume=True)
    print_result(result)
    return {"folder": str(result.folder), "steps": result.steps, "metrics": result.metrics}


def _pipeline_folder(recipe: Recipe) -> Path:
    return Path((recipe.tree.get("vars") or {}).get("run") or Path("runs") / Path(recipe.name).stem)


def _plain(value: Any) -> Any:
    """What JSON can hold of a result."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
