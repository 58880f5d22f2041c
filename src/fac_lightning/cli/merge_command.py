"""``fac merge``: merge a trained model with the one that it grew from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from fac_lightning.cli.arguments import parser
from fac_lightning.cli.build import load_run
from fac_lightning.cli.eval_command import validation_sets
from fac_lightning.config import Recipe, UserError, accepts, ensure, instantiate
from fac_lightning.config.compose import override
from fac_lightning.config.errors import RecipeError, did_you_mean

__all__ = ["METHODS", "main", "merge_job"]

#: names of ``--method``; a dotted path is another
METHODS = {
    "linear": "LinearMerge",
    "slerp": "SlerpMerge",
    "task_arithmetic": "TaskArithmeticMerge",
    "ties": "TiesMerge",
    "dare": "DareMerge",
    "lm_cocktail": "LMCocktailMerge",
}


def main(words: Sequence[str]) -> int:
    """Merge and print a table."""
    made = parser(
        "merge",
        "Merge a base with one or more models tuned from it: safetensors files, run folders or transformers folders. "
        "The output is used like the first tuned model.",
    )
    made.add_argument("base", metavar="BASE", help="model before training; the text LLM alone will do")
    made.add_argument("tuned", metavar="TUNED", nargs="+", help="model after training, or several")
    made.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    made.add_argument("--method", default="linear", help=f"{', '.join(METHODS)}, or a dotted path; linear without it")
    made.add_argument("--alpha", type=float, help="how much of what tuning changed is kept: 0 is the base; default 0.5")
    made.add_argument("--alphas", nargs="+", default=[], metavar="PATTERN=ALPHA", help="alpha of some tensors")
    made.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="more for the method: density=0.2"
    )
    made.add_argument("--include", nargs="+", metavar="PATTERN", help="merge these alone, copy the others from TUNED")
    made.add_argument("--exclude", nargs="+", metavar="PATTERN", help="do not merge these")
    made.add_argument("--growing", nargs="+", metavar="PATTERN", help="these may have more rows in TUNED; vocabularies")
    made.add_argument("--base-prefix", metavar="TEXT", help="stands before the base's names in TUNED; found without it")
    swept = made.add_argument_group("sweep", "evaluate merges over alpha and draw their text against their speech")
    swept.add_argument(
        "--sweep", nargs="*", type=float, metavar="ALPHA", help="try these alphas; without any 0 0.25 0.5 0.75 1"
    )
    help_ = "of the sweep: speech.limit=20 speech=my_lab.Quiz text.sets.mine=folder text_weight=0.3"
    swept.add_argument("--eval", nargs="+", metavar="KEY=VALUE", help=help_)
    swept.add_argument("--keep", choices=["all", "best", "none"], help="merged runs that stay; all without it")
    swept.add_argument("--allow", action="append", default=[], metavar="PREFIX", help="the run may build these too")
    args = made.parse_args(words)
    if args.sweep is None and (stray := [f"--{name}" for name in ("eval", "keep", "allow") if getattr(args, name)]):
        raise UserError(f"{', '.join(stray)}: only a sweep evaluates; add --sweep")
    job = instantiate(merge_job(args), "job", load_run=partial(load_run, allow=args.allow))
    from fac_lightning.weights import CheckpointError

    try:
        result = job.run()
    except CheckpointError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    if args.sweep is None:
        print(f"merged: {result['out']}")
    else:
        print(f"best alpha: {result['best']:g} ({result['out']}/sweep.json, sweep.png)")
    return 0


def merge_job(args: argparse.Namespace) -> dict[str, Any]:
    """The checked ``job:`` node of a command line.

    Raises:
        RecipeError: The method does not take an option.
    """
    method: dict[str, Any] = {"_target_": _target(args.method)}
    if args.alpha is not None:
        method["alpha"] = args.alpha
    if args.alphas:
        method["alphas"] = dict(_alpha(word) for word in args.alphas)
    job: dict[str, Any] = {
        "_target_": "fac_lightning.merging.WeightMerge",
        "base": args.base,
        "tuned": args.tuned,
        "out": args.out,
        "method": method,
    }
    optional = ("include", "exclude", "growing", "base_prefix")
    job |= {name: value for name in optional if (value := getattr(args, name)) is not None}
    tree: dict[str, Any] = {"job": job}
    words = [f"job.method.{word}" for word in args.option]
    if args.sweep is not None:
        _make_sweep(job, args)
        words += [f"~job.{word[1:]}" if word.startswith("~") else f"job.{word}" for word in args.eval or ()]
    problems = override(tree, words, [])
    if problems:
        raise RecipeError("fac merge", problems)
    ensure(Recipe("fac merge", tree))
    node: dict[str, Any] = tree["job"]
    if args.sweep is not None:
        for side in ("speech", "text"):
            if accepts(node[side], "sets") and not node[side].get("sets"):
                raise UserError(
                    f"{args.tuned[0]} has no validation dialogues: name some, --eval {side}.sets.mine=folder"
                )
    return node


def _make_sweep(job: dict[str, Any], args: argparse.Namespace) -> None:
    """Turn the job of a merge into that of a sweep: the questions that the run was validated with, heard and read."""
    if args.alpha is not None:
        raise UserError("--alpha is one merge and --sweep is several: leave one out; --sweep 0.2 0.4 names alphas")
    sets = validation_sets(args.tuned[0])
    job["_target_"] = "fac_lightning.merging.MergeSweep"
    job["method"]["_partial_"] = True
    job["speech"] = {"_target_": "fac_lightning.evaluation.SpokenQAEvaluation", "_partial_": True, "sets": dict(sets)}
    job["text"] = {"_target_": "fac_lightning.evaluation.TextQAEvaluation", "_partial_": True, "sets": dict(sets)}
    if args.sweep:
        job["alphas"] = args.sweep
    if args.keep:
        job["keep"] = args.keep


def _target(method: str) -> str:
    if "." in method:
        return method
    if method not in METHODS:
        raise UserError(f"there is no method '{method}'.{did_you_mean(method, METHODS)} {', '.join(METHODS)}")
    return f"fac_lightning.merging.{METHODS[method]}"


def _alpha(word: str) -> tuple[str, float]:
    pattern, _, value = word.rpartition("=")
    try:
        return pattern, float(value)
    except ValueError:
        pass
    raise UserError(f"--alphas takes PATTERN=ALPHA such as backbone.lm_head=0.3, got {word!r}")
