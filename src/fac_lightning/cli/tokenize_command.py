"""``fac tokenize``: speech codes of a manifest made beforehand, so that a training finds them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fac_lightning.cli.arguments import parser
from fac_lightning.config import Recipe, RecipeError, UserError, ensure, find_recipe, instantiate, load, untrusted
from fac_lightning.config.compose import UNRESOLVED, override

__all__ = ["encoder_node", "main", "tokenizer_node"]

SHOWN = 20  # pieces of bad audio that the screen shows
BAD_AUDIO = 3  # exit code


def main(words: Sequence[str]) -> int:
    """Tokenise and print a table; 3 if some audio could not be read."""
    made = parser(
        "tokenize",
        "Make the speech codes of the assistant's turns once and keep them beside the manifest, where 'fac fit' finds "
        "them. What is there already is not made again; a run that was stopped goes on when it is called again.",
    )
    made.add_argument("manifest", metavar="MANIFEST", help="dialogues folder, or its cuts.jsonl")
    help_ = "changes: of the recipe that --tokenizer names, else tokenizer.num_codebooks=4 and the like"
    made.add_argument("overrides", metavar="key=value", nargs="*", help=help_)
    help_ = "recipe or run folder whose 'tokenizer:' to take, a dotted path, or a node '{_target_: ..., ...}'"
    made.add_argument("--tokenizer", required=True, metavar="RECIPE", help=help_)
    made.add_argument("--out", metavar="DIR", help="folder that gets codes/; that of the manifest without it")
    made.add_argument("--workers", type=int, default=0, metavar="N", help="processes, each with a tokenizer; 0: none")
    made.add_argument("--allow", action="append", default=[], metavar="PREFIX", help="a run may build these too")
    args = made.parse_intermixed_args(words)
    if args.workers < 0:
        raise UserError(f"--workers must be at least 0, got {args.workers}")
    node = tokenizer_node(args.tokenizer, args.overrides, args.allow)
    from fac_lightning.data import CodeExtraction

    make = partial(instantiate, node, "tokenizer")
    result = CodeExtraction(args.manifest, make, args.out, args.workers).run()
    print_result(args.manifest, result)
    return BAD_AUDIO if result["bad"] else 0


def encoder_node(given: str, allow: Sequence[str] = ()) -> dict[str, Any]:
    """The checked ``encoder:`` node that a word of the command line means; of a recipe that of its model.

    Args:
        given: Recipe, run folder, dotted path, or a node in YAML.
        allow: Further prefixes that the recipe of a run folder may build.

    Raises:
        UserError: It is none of these, or the recipe's model has no encoder.
        RecipeError: The node has mistakes.
    """
    if "_target_" in given or _is_path(given):
        tree: dict[str, Any] = {}
        word = given if "_target_" in given else f"{{_target_: {given}}}"
        recipe = Recipe("fac data shard", tree, problems=tuple(override(tree, [f"model={word}"], [])))
        node = tree.get("model")
    else:
        recipe = load(given, [])
        model = recipe.tree.get("model")
        node = model.get("encoder") if isinstance(model, Mapping) else None
    if not recipe.problems and not (isinstance(node, Mapping) and node):
        raise UserError(
            f"{recipe.name} has no 'model.encoder'; name a recipe that has one, or a dotted path such as "
            "fac_lightning.encoders.WhisperEncoder"
        )
    kept = {"model": node, **({"vars": recipe.tree.get("vars")} if UNRESOLVED in _values(node) else {})}
    ensure(Recipe(recipe.name, kept, recipe.path, recipe.problems))  # a lone encoder stands where a model would
    if Path(given).is_dir() and (strange := untrusted(node, allow, "model.encoder")):
        raise RecipeError(recipe.name, strange)
    return dict(node or {})


def tokenizer_node(given: str, overrides: Sequence[str] = (), allow: Sequence[str] = ()) -> dict[str, Any]:
    """The checked ``tokenizer:`` node that a word of the command line means.

    Args:
        given: Recipe, run folder, dotted path, or a node in YAML.
        overrides: ``key=value`` of the recipe; of a recipe with nothing but ``tokenizer:`` where none is given.
        allow: Further prefixes that the recipe of a run folder may build.

    Raises:
        UserError: It is none of these, or the recipe has no tokenizer.
        RecipeError: The node has mistakes.
    """
    if "_target_" in given:
        tree: dict[str, Any] = {}
        problems = override(tree, [f"tokenizer={given}", *overrides], [])
        recipe = Recipe("fac tokenize", tree, problems=tuple(problems))
    elif _is_path(given):
        tree = {"tokenizer": {"_target_": given}}
        problems = override(tree, overrides, [])
        recipe = Recipe("fac tokenize", tree, problems=tuple(problems))
    else:
        recipe = load(given, overrides)
    node = recipe.tree.get("tokenizer")
    if not node:
        raise UserError(
            f"{recipe.name} has no 'tokenizer:'; name a recipe that has one, or a dotted path such as "
            "fac_lightning.tokenizers.EncodecTokenizer"
        )
    # Other sections may still wait for what the user owes them.
    unclear = UNRESOLVED in _values(node)
    kept = {"tokenizer": node, **({"vars": recipe.tree.get("vars")} if unclear else {})}
    ensure(Recipe(recipe.name, kept, recipe.path, recipe.problems))
    if Path(given).is_dir() and (strange := untrusted(node, allow, "tokenizer")):
        raise RecipeError(recipe.name, strange)
    return dict(node)


def _is_path(given: str) -> bool:
    """Whether a word is a dotted path and no recipe."""
    if not all(part.isidentifier() for part in given.split(".")) or "." not in given:
        return False
    try:
        find_recipe(given)
    except UserError:
        return True
    return False


def _values(node: Any) -> list[Any]:
    """Everything that stands inside a node."""
    if isinstance(node, Mapping):
        return [value for item in node.values() for value in _values(item)]
    return [value for item in node for value in _values(item)] if isinstance(node, list) else [node]


def print_result(manifest: str, result: Mapping[str, Any]) -> None:
    """A table, the folder of the codes, and the audio that could not be read."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"Speech codes of {manifest}", highlight=False, soft_wrap=True)
    table = Table("", "", show_header=False)
    table.columns[1].justify = "right"
    table.add_row("clips", f"{result['clips']:,}")
    table.add_row("hours", f"{result['hours']:,.2f}")
    table.add_row("made", f"{result['made']:,}", style="bold")
    table.add_row("skipped because done", f"{result['skipped']:,}")
    table.add_row("bad audio", f"{result['bad']:,}", style="red" if result["bad"] else None)
    table.add_row("codes/s", f"{result['codes_per_second']:,.0f}" if result["made"] else "-")
    table.add_row("times real time", f"{result['times_real_time']:,.1f}" if result["made"] else "-")
    console.print(table)
    console.print(f"codes: {result['folder']}", highlight=False, soft_wrap=True)
    for one in result["bad_audio"][:SHOWN]:
        print(f"fac: bad audio: dialogue {one['id']!r}, turn {one['turn']}: {one['reason']}", file=sys.stderr)
    if len(result["bad_audio"]) > SHOWN:
        more = len(result["bad_audio"]) - SHOWN
        print(f"fac: bad audio: {more} more in {result['folder']}/bad_audio.jsonl", file=sys.stderr)
