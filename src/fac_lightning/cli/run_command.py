"""``fac run``: whatever a recipe is: a training, a job, or a pipeline of stages."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fac_lightning.cli.arguments import recipe_parser
from fac_lightning.cli.build import load_run, run_folder
from fac_lightning.cli.fit import fit
from fac_lightning.cli.fit_command import print_result
from fac_lightning.cli.sizes import with_sizes
from fac_lightning.config import Recipe, UserError, amend, ensure, find_recipe, instantiate, load, recipe_text

__all__ = ["main", "plan", "run", "run_job"]

log = logging.getLogger(__name__)


def main(words: Sequence[str]) -> int:
    """Run a recipe."""
    made = recipe_parser("run", "Run a recipe: 'stages:' is a pipeline, 'job:' runs one object, all else trains.")
    made.add_argument("--resume", action="store_true", help="a training goes on from its last checkpoint")
    stages = made.add_argument_group("a pipeline", "Stages that are done are skipped, interrupted ones go on.")
    stages.add_argument("--from", dest="start", metavar="STAGE", help="look at this stage and all that need it")
    stages.add_argument("--until", metavar="STAGE", help="look at this stage and all that it needs")
    stages.add_argument("--only", metavar="STAGE", help="look at this stage")
    stages.add_argument("--jobs", type=int, default=1, metavar="N", help="stages at work at a time, in processes")
    stages.add_argument("--dry-run", action="store_true", help="print what would run and why, and run nothing")
    args = made.parse_intermixed_args(words)
    recipe = load(args.recipe, args.overrides)
    if recipe.tree.get("stages"):
        _run_words(recipe, args)
        return 0
    asked = [name for name in ("from", "until", "only") if getattr(args, "start" if name == "from" else name)]
    asked += ["dry-run"] if args.dry_run else []
    asked += ["jobs"] if args.jobs != 1 else []
    if asked:
        raise UserError(f"--{asked[0]} is for pipelines, and {recipe.name} has no 'stages:'")
    run(recipe, resume=args.resume)
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
    """Stages of a pipeline recipe, in an order that can be run; ``look`` sees the composed recipe of each.

    Words of the command line for ``model``, ``tokenizer``, ``task``, ``data`` and ``trainer`` go to every stage whose
    recipe takes them.

    Raises:
        UserError: A stage names no recipe or one that cannot be composed, stages go round in a circle, or no stage
            takes a word.
    """
    from fac_lightning.pipeline import plan_stages

    folder = _beside(recipe)
    taken: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # file and overrides of a stage -> words

    def compose(name: str, overrides: list[str]) -> dict[str, Any]:
        stage = load(_stage_file(folder, name), overrides)
        words = taken[name, tuple(overrides)] = _taken(stage, recipe.for_stages)
        if words:
            told, stage = stage.notes, amend(stage, words)
            for note in stage.notes:
                if note not in told:
                    log.info(note)
        look(replace(stage, name=name))
        return stage.tree

    try:
        stages = plan_stages(recipe.tree["stages"], compose)
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{recipe.name}: {error}") from error
    stages = [replace(stage, words=(*stage.words, *taken[stage.file, stage.words])) for stage in stages]
    for word in recipe.for_stages:
        if not any(word in words for words in taken.values()):
            raise UserError(f"{recipe.name}: no stage takes {word!r}; stages are {', '.join(s.name for s in stages)}")
    return stages


def _beside(recipe: Recipe) -> Path:
    """Folder in which a pipeline looks for the recipes of its stages first."""
    return recipe.path.parent if recipe.path else Path()


def _stage_file(folder: Path, name: str) -> Path:
    beside = folder / name
    return beside if beside.is_file() else find_recipe(name)


def _taken(stage: Recipe, words: Sequence[str]) -> list[str]:
    """Those of a pipeline's words whose section a stage has, and whose key can be set there."""
    kept: list[str] = []
    for word in words:
        section = word.removeprefix("~").partition("=")[0].partition(".")[0]
        if stage.tree.get(section) and len(amend(stage, [*kept, word]).problems) == len(stage.problems):
            kept.append(word)
    return kept


def run_stages(
    recipe: Recipe, chosen: Callable[[list[Any]], Collection[str]] | None = None, jobs: int = 1
) -> dict[str, Any]:
    """Run a pipeline: what is done is skipped, what was interrupted goes on, what changed starts afresh.

    Args:
        recipe: With ``stages:``.
        chosen: Gives the names of the stages to look at, of all planned ones; None means all.
        jobs: Stages at work at a time.
    """
    from rich.console import Console

    from fac_lightning.pipeline import StageError, run_pipeline

    ensure(recipe)
    stages = plan(recipe, ensure)
    console = Console()
    titles = {
        "skip": "[dim]done before",
        "start": "[bold cyan]starts",
        "resume": "[bold cyan]goes on",
        "restore": "[bold green]taken back",
        "leave": "[dim]left as it is",
        "done": "[bold green]done",
        "failed": "[bold red]stopped",
        "note": "[dim]note",
    }
    told = {"start", "resume", "restore", "failed", "note", "leave"}  # of which the reason is told too
    names = [stage.name for stage in stages]

    def tell(stage: Any, what: str, why: str) -> None:
        reason = f" ({why})" if why and what in told else ""
        console.print(
            f"[{names.index(stage.name) + 1}/{len(names)}] {stage.name}: {titles[what]}", end="", highlight=False
        )
        console.print(reason, markup=False, highlight=False, soft_wrap=True)

    folder = _pipeline_folder(recipe)
    try:
        names_chosen = None if chosen is None else chosen(stages)
        return run_pipeline(stages, folder, partial(_run_stage, folder, _beside(recipe)), tell, names_chosen, jobs)
    except StageError as error:
        raise UserError(f"{recipe.name}: {error}") from error


def _run_words(recipe: Recipe, args: argparse.Namespace) -> None:
    """Run a pipeline, or print what would run, as the command line asks."""
    from fac_lightning.pipeline import StageError, choose_stages, preview

    def chosen(stages: list[Any]) -> Collection[str]:
        return choose_stages(stages, args.start, args.until, args.only)

    if not args.dry_run:
        run_stages(recipe, chosen, args.jobs)
        return
    ensure(recipe)
    stages = plan(recipe, ensure)
    folder = _pipeline_folder(recipe)
    try:
        decisions = preview(stages, folder, chosen(stages))
    except StageError as error:
        raise UserError(f"{recipe.name}: {error}") from error
    titles = {"skip": "done", "start": "runs", "resume": "goes on", "restore": "taken back", "leave": "left as it is"}
    rows = [(one.stage.name, titles[one.action], one.why, ", ".join(one.stage.needs)) for one in decisions]
    working = sum(one.action in ("start", "resume") for one in decisions)
    print(f"{recipe.name} in {folder}: {working} of {len(decisions)} stages would run")
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for number, (name, title, why, needs) in enumerate(rows, 1):
        line = f"{number:>3}  {name:<{widths[0]}}  {title:<{widths[1]}}  {why}"
        print(f"{line}{f'  [needs {needs}]' if needs else ''}".rstrip())


def _run_stage(folder: Path, recipes: Path, stage: Any) -> Any:
    one = Recipe(stage.file, stage.recipe, _stage_file(recipes, stage.file), words=stage.words)
    if one.tree.get("job"):
        return _plain(run_job(one))
    if _one_device(one):
        return _fit_stage(one)
    return _fit_apart(with_sizes(one), folder / "stages" / f"{stage.name}.yaml")


def _fit_stage(recipe: Recipe) -> dict[str, Any]:
    started = time.process_time()
    result = fit(recipe, resume=True)
    print_result(result)
    cost = round(time.process_time() - started, 1)  # beside the wall clock, which other work on the machine moves
    return {"folder": str(result.folder), "steps": result.steps, "metrics": result.metrics, "cpu_seconds": cost}


def _one_device(recipe: Recipe) -> bool:
    """Whether a training surely runs on one device."""
    trainer = recipe.tree.get("trainer") or {}
    devices = trainer.get("devices", "auto")
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    return trainer.get("num_nodes", 1) == 1 and (one or (devices == "auto" and trainer.get("accelerator") == "cpu"))


def _fit_apart(recipe: Recipe, file: Path) -> dict[str, Any]:
    """Train in a process of its own.

    Lightning starts its command again for every further device, and what it sets up between them ends with them.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(recipe_text(recipe), encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "fac_lightning", "fit", str(file), "--resume"], check=False)
    if done.returncode:
        raise UserError(f"the training of {file} ended with exit code {done.returncode}; what it said stands above")
    return {"folder": str(run_folder(recipe))}


def _pipeline_folder(recipe: Recipe) -> Path:
    return Path((recipe.tree.get("vars") or {}).get("run") or Path("runs") / Path(recipe.name).stem)


def _plain(value: Any) -> Any:
    """What JSON can hold of a result."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
