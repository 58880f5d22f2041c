"""``fac pairs``: preference pairs out of a trained run's own answers, or as a recipe says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fac_lightning.cli.arguments import parser
from fac_lightning.cli.build import load_run
from fac_lightning.cli.run_command import run_job
from fac_lightning.config import Recipe, ensure, instantiate, load, loads
from fac_lightning.config.compose import override
from fac_lightning.config.errors import RecipeError, UserError

__all__ = ["main", "make_pairs", "print_pairs"]

_ROOM, _DISTORTIONS = "fac_lightning.preferences", "fac_lightning.data.distortions"


def main(words: Sequence[str]) -> int:
    """Make pairs and print a table per family."""
    made = parser(
        "pairs",
        "Make preference pairs. A recipe's job makes what it says; for a run folder, robustness and stability pairs "
        "are made of the run's own answers to its training questions, in RUN/pairs.",
    )
    made.add_argument("source", metavar="RUN_OR_RECIPE", help="run folder, recipe file or name of a shipped recipe")
    help_ = "changes to the recipe; for a run: families.stability.candidates.limit=50 '~families.robustness' out=folder"
    made.add_argument("overrides", metavar="key=value", nargs="*", help=help_)
    made.add_argument("--allow", action="append", default=[], metavar="PREFIX", help="a run may build these too")
    args = made.parse_intermixed_args(words)
    print_pairs(make_pairs(args.source, args.overrides, args.allow))
    return 0


def make_pairs(source: str | Path, overrides: Sequence[str] = (), allow: Sequence[str] = ()) -> dict[str, Any]:
    """Summaries of the families that a recipe or a run folder gives.

    Args:
        source: Recipe with a ``job:``, or run folder.
        overrides: ``key=value``: of the recipe, or of ``PairFamilies``.
        allow: Further prefixes that a run's recipe may build.
    """
    file = Path(source) / "recipe.yaml"
    tree = loads(file.read_text(encoding="utf-8"), str(file)).tree if file.is_file() else {}
    if "model" in tree:
        return _of_run(str(source), tree, overrides, allow)
    result: dict[str, Any] = run_job(load(source, overrides))
    return {str(result.get("task", Path(source).stem)): result} if "pairs" in result else result


def _of_run(run: str, tree: Mapping[str, Any], overrides: Sequence[str], allow: Sequence[str]) -> dict[str, Any]:
    train = (tree.get("data") or {}).get("train")
    dialogues = train[0] if isinstance(train, list) and train else train
    job = {"job": _families(run, dialogues if isinstance(dialogues, str) else None)}
    problems = override(job, [f"~job.{w[1:]}" if w.startswith("~") else f"job.{w}" for w in overrides], [])
    if problems:
        raise RecipeError("fac pairs", problems)
    if not job["job"].get("families"):
        raise UserError("no family is left to make; keep families.robustness or families.stability")
    ensure(Recipe("fac pairs", job))
    result: dict[str, Any] = instantiate(job["job"], "job", load_run=partial(load_run, allow=allow)).run()
    return result


def _families(run: str, dialogues: str | None) -> dict[str, Any]:
    """The job for a run folder; ``dialogues`` stays to be named where the run has no training questions."""
    out, asked = str(Path(run) / "pairs"), {"dialogues": dialogues or "???", "limit": 200}
    kinds = ("ColoredNoise", "DecayingReverb", "Clipping", "PacketLoss")
    sampling = {"_target_": "fac_lightning.generation.Sampling", "temperature": 1.0}
    answers = {"_target_": f"{_ROOM}.ModelAnswers", "run": run}
    robustness = {
        "_target_": f"{_ROOM}.RobustnessPairs",
        **asked,
        "distortion": {
            "_target_": f"{_DISTORTIONS}.OneOf",
            "distortions": [{"_target_": f"{_DISTORTIONS}.{kind}"} for kind in kinds],
        },
        "answers": answers,
        "out": f"{out}/robustness",
    }
    stability = {
        "_target_": f"{_ROOM}.StabilityPairs",
        "candidates": {
            "_target_": f"{_ROOM}.SampledCandidates",
            **asked,
            "answers": {**answers, "speech": sampling},
        },
        "recognizer": {"_target_": "fac_lightning.recognizers.WhisperRecognizer", "name": "openai/whisper-base"},
        "out": f"{out}/stability",
    }
    families = {"robustness": robustness, "stability": stability}
    return {"_target_": f"{_ROOM}.PairFamilies", "out": out, "families": families}


def print_pairs(summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """A table per family: pairs, means of the measure, what was left out and why."""
    from rich.console import Console
    from rich.table import Table

    for name, summary in summaries.items():
        table = Table("", "", title=name, show_header=False, title_justify="left")
        table.add_row("pairs", str(summary["pairs"]), style="bold")
        for key in ("measure", "mean_chosen", "mean_rejected", "mean_margin"):
            if summary.get(key) is not None:
                value = summary[key]
                table.add_row(key.replace("_", " "), value if isinstance(value, str) else f"{value:.4g}")
        for reason, count in (summary.get("left_out") or {}).items():
            table.add_row(f"left out: {reason}", str(count))
        Console().print(table)
