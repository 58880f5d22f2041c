"""``fac show``: what a recipe comes to: its text, its parts, its rates, and the shapes of one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from fac_lightning.cli.arguments import recipe_parser
from fac_lightning.cli.build import build_model
from fac_lightning.cli.sizes import with_sizes
from fac_lightning.config import Recipe, UserError, ensure, instantiate, load

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Print the resolved recipe and what it builds."""
    made = recipe_parser("show", "Resolved recipe, parts with parameter counts, frame rates, shapes of one batch.")
    made.add_argument("--recipe-only", action="store_true", help="print the resolved recipe and build nothing")
    args = made.parse_intermixed_args(words)
    recipe = load(args.recipe, args.overrides)
    if args.recipe_only:
        print(recipe.text, end="")
        return 0
    ensure(recipe)
    if recipe.tree.get("model"):
        recipe = with_sizes(recipe)
    from rich.console import Console
    from rich.syntax import Syntax

    console = Console()
    console.print(Syntax(recipe.text, "yaml", background_color="default"))
    if not recipe.tree.get("model"):
        return 0
    model = build_model(recipe.tree["model"], pretrained=False)
    tokenizer = instantiate(recipe.tree["tokenizer"], "tokenizer") if recipe.tree.get("tokenizer") else None
    _print_parts(console, model, tokenizer)
    for line in rates(model, tokenizer):
        console.print(line, highlight=False)
    _print_batch(console, recipe, model, tokenizer)
    return 0


def parts(model: Any, tokenizer: Any = None) -> Iterator[tuple[str, str, int]]:
    """Key, class and number of parameters of the model, of each slot in it, and of the tokenizer."""
    yield "model", type(model).__name__, _count(model)
    for name, part in model.named_children():
        yield f"  {name}", type(part).__name__, _count(part)
    if tokenizer is not None:
        yield "tokenizer", type(tokenizer).__name__, _count(tokenizer)


def rates(model: Any, tokenizer: Any = None) -> Iterator[str]:
    """How time shrinks from the waveform to the backbone, one line a stream."""
    encoder, adapter = getattr(model, "encoder", None), getattr(model, "feature_adapter", None)
    if encoder is not None and adapter is not None:
        heard = encoder.frame_rate / adapter.group_size
        yield (
            f"user speech:  {encoder.sample_rate} Hz -> {encoder.frame_rate:g} frames/s "
            f"-> /{adapter.group_size} -> {'at most ' if adapter.variable_rate else ''}{heard:g} positions/s"
        )
    grouping = getattr(model, "head", None) or getattr(model, "code_adapter", None)
    if tokenizer is not None and grouping is not None:
        said = tokenizer.frame_rate / grouping.group_size
        yield (
            f"model speech: {tokenizer.sample_rate} Hz -> {tokenizer.frame_rate:g} frames/s "
            f"({tokenizer.num_codebooks} x {tokenizer.codebook_size} codes) "
            f"-> /{grouping.group_size} -> {said:g} positions/s"
        )
    if tokenizer is not None and hasattr(model, "check_tokenizer"):
        try:
            model.check_tokenizer(tokenizer)
        except ValueError as error:
            yield str(error)


def _count(part: Any) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _print_parts(console: Any, model: Any, tokenizer: Any) -> None:
    from rich.table import Table

    table = Table("part", "class", "parameters")
    table.columns[2].justify = "right"
    for name, kind, count in parts(model, tokenizer):
        table.add_row(name, kind, f"{count:,}")
    console.print(table)


def _print_batch(console: Any, recipe: Recipe, model: Any, tokenizer: Any) -> None:
    node = recipe.tree.get("data")
    if not node:
        return
    shared = {"tokenizer": tokenizer, "geometry": getattr(model, "geometry", None)}
    try:
        data = instantiate(node, "data", **{name: item for name, item in shared.items() if item is not None})
        data.prepare_data()
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
    except (OSError, UserError, ValueError, StopIteration) as error:
        console.print(f"shapes of a batch: the data cannot be read yet ({error})", highlight=False, soft_wrap=True)
        return
    from rich.table import Table

    table = Table("field of a batch", "shape", "type")
    for name, shape, kind in shapes(batch):
        table.add_row(name, shape, kind)
    console.print(table)


def shapes(value: Any, name: str = "batch") -> Iterator[tuple[str, str, str]]:
    """Name, shape and type of every tensor in dataclasses, mappings and lists; of other fields their value."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        yield name, str(tuple(value.shape)), str(value.dtype).removeprefix("torch.")
    elif is_dataclass(value):
        for field in fields(value):
            yield from shapes(getattr(value, field.name), field.name if name == "batch" else f"{name}.{field.name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from shapes(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        kinds = sorted({type(item).__name__ for item in value})
        yield name, f"{len(value)} items", ", ".join(kinds)
    else:
        yield name, str(value), type(value).__name__
