"""Find every mistake of a recipe before anything is imported or built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fac_lightning.config.annotations import choices, fits
from fac_lightning.config.compose import MISSING, TOP_LEVEL, UNRESOLVED, Recipe, _show, takes_no
from fac_lightning.config.errors import Problem, RecipeError, did_you_mean
from fac_lightning.config.signatures import Argument, Definition, define, find
from fac_lightning.config.source import BadPath, Unreadable

__all__ = ["GIVEN", "TRUSTED", "check", "ensure", "untrusted"]

#: Objects that are passed by keyword when a section is built, where its constructor takes them.
GIVEN: dict[str, tuple[str, ...]] = {"data": ("tokenizer", "geometry"), "task": ("model",), "job": ("load_run",)}

#: What a recipe that came with weights may build: parts, not doors (no command line, no loading of pickles).
TRUSTED = (
    *(
        f"fac_lightning.{room}."
        for room in (
            "tokenizers", "encoders", "adapters", "backbones", "heads", "detokenizers", "losses", "models", "tasks",
            "data", "callbacks", "synthesizers", "recognizers", "replies", "types",
        )
    ),
    "torch.nn.",
    "torch.optim.",
    "lightning.pytorch.trainer.",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
)  # fmt: skip

_NODES = ("model", "tokenizer", "task", "data", "trainer", "job")  # sections that are built


def check(recipe: Recipe, given: Mapping[str, Sequence[str]] = GIVEN, allow_missing: bool = False) -> list[Problem]:
    """All problems of a recipe; an empty list means that it can be built.

    Args:
        recipe: What ``load`` gave.
        given: Arguments per section that the caller passes when building it.
        allow_missing: Let ``???`` pass: for recipes that wait for the user's data.
    """
    problems = list(recipe.problems)
    for name, value in recipe.tree.items():
        if name not in TOP_LEVEL:
            lines = (f"a recipe has no '{name}'.{did_you_mean(name, TOP_LEVEL)}", f"It has: {', '.join(TOP_LEVEL)}.")
            problems.append(Problem(name, _show(value), lines))
        elif name in _NODES and isinstance(value, Mapping) and value.get("_target_") is None:
            problems.append(Problem(f"{name}._target_", "", (f"is missing: the dotted path of what '{name}' is.",)))
        elif name in _NODES and value is not None and not isinstance(value, Mapping) and value is not UNRESOLVED:
            problems.append(Problem(name, _show(value), ("must be a node: '_target_: dotted.path' and arguments.",)))
        problems += _walk(value, name, given.get(name, ()), allow_missing)
    problems += _check_scalars(recipe.tree)
    return problems


def ensure(recipe: Recipe, given: Mapping[str, Sequence[str]] = GIVEN) -> None:
    """Nothing, for a recipe without problems.

    Raises:
        RecipeError: Lists every problem.
    """
    problems = check(recipe, given)
    if problems:
        raise RecipeError(recipe.name, problems)


def untrusted(tree: Any, allow: Sequence[str] = (), key: str = "") -> list[Problem]:
    """Targets of a tree that lie outside the allow-list; nothing is imported to find out.

    A path is followed to where the thing is defined, so ``fac_lightning.heads.parallel.torch.load`` is seen for what
    it is. Classes and functions from elsewhere pass when a prefix in ``allow`` covers path and definition.
    """
    problems: list[Problem] = []
    if isinstance(tree, Mapping):
        target = tree.get("_target_")
        if "_target_" in tree:
            cause = _distrust(target, (*TRUSTED, *allow))
            if cause:
                problems.append(Problem(f"{key}._target_" if key else "_target_", _show(target), cause))
        if tree.get("trust_remote_code"):
            where = f"{key}.trust_remote_code" if key else "trust_remote_code"
            problems.append(Problem(where, "true", ("would run code from a hub; a recipe from elsewhere may not.",)))
    items: Any = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in items:
        problems += untrusted(value, allow, f"{key}.{name}" if key else str(name))
    return problems


def _distrust(target: Any, prefixes: Sequence[str]) -> tuple[str, ...] | None:
    package = str(target).split(".")[0]
    way = f"If you trust its author: --allow {package}."
    try:
        place = find(str(target)).path
    except BadPath as error:
        return (str(error),)
    except Unreadable:
        return ("cannot be followed to its source, so it is not built from a recipe that came with weights.",)
    if place.startswith(tuple(prefixes)):
        return None
    if not str(target).startswith(tuple(prefixes)) and package not in ("fac_lightning", "torch", "lightning"):
        return ("comes from a recipe saved elsewhere and lies outside what such a recipe may build.", way)
    moved = f" ({place})" if place != target else ""
    return (f"is not among the parts that a recipe saved elsewhere may build{moved}.",)


def _walk(value: Any, key: str, given: Sequence[str], allow_missing: bool) -> Iterator[Problem]:
    if value == MISSING and not allow_missing:
        yield Problem(key, MISSING, (f"is required. In the recipe, or on the command line: {key}=...",))
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield from _check_node(value, key, given, allow_missing)
        for name, item in value.items():
            if not ("_target_" in value and item == MISSING):  # told by the node, with its type
                yield from _walk(item, f"{key}.{name}", (), allow_missing)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _walk(item, f"{key}.{i}", (), allow_missing)


def _check_node(node: Mapping[str, Any], key: str, given: Sequence[str], allow_missing: bool) -> Iterator[Problem]:
    target = node["_target_"]
    if target is None or target is UNRESOLVED or (target == MISSING and allow_missing):
        return
    try:
        if not isinstance(target, str):
            raise BadPath("must be the dotted path of a class or function.")
        definition = define(target)
    except BadPath as error:
        yield Problem(f"{key}._target_", _show(target), (str(error),))
        return
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        yield Problem(f"{key}._partial_", _show(partial), ("is true or false.",))
    if definition.abstract and not partial:
        yield Problem(f"{key}._target_", target, ("is a base class: name one of its kinds ('fac list' shows them).",))
        return
    known = {argument.name: argument for argument in definition.arguments}
    meant: set[str] = set()
    for name, item in node.items():
        if name in ("_target_", "_partial_"):
            continue
        if name.startswith("_") and name.endswith("_"):
            yield Problem(f"{key}.{name}", _show(item), ("is no key of a node. There are '_target_' and '_partial_'.",))
        elif not definition.takes(name):
            lines = takes_no(target, definition, name)
            meant |= {other for other in known if f"Did you mean {other!r}?" in lines[0]}
            yield Problem(f"{key}.{name}", _show(item), lines)
        elif item == MISSING:
            if not allow_missing:
                kind = f" ({known[name].annotation})" if name in known and known[name].annotation else ""
                lines = (f"is required{kind}. In the recipe, or on the command line: {key}.{name}=...",)
                yield Problem(f"{key}.{name}", MISSING, lines)
        elif name in known and not (name == "callbacks" and name in given):
            yield from _check_value(item, known[name], target, f"{key}.{name}")
    if not partial:
        yield from _missing(definition, node, target, key, {*given, *meant})


def _missing(
    definition: Definition, node: Mapping[str, Any], target: str, key: str, settled: set[str]
) -> Iterator[Problem]:
    for argument in definition.arguments:
        if argument.default is None and argument.name not in node and argument.name not in settled:
            kind = f" ({argument.annotation})" if argument.annotation else ""
            line = f"is missing: {target} needs '{argument.name}'{kind}."
            yield Problem(f"{key}.{argument.name}", "", (line, f"It takes: {', '.join(definition.names)}."))


def _check_value(value: Any, argument: Argument, target: str, key: str) -> Iterator[Problem]:
    if value is UNRESOLVED or fits(value, argument.annotation) or (value is None and argument.default == "None"):
        return
    allowed = choices(argument.annotation)
    if allowed and isinstance(value, str):
        words = ", ".join(repr(item) for item in allowed)
        hint = did_you_mean(value, [item for item in allowed if isinstance(item, str)])
        yield Problem(key, _show(value), (f"{target} takes '{argument.name}' as one of {words}.{hint}",))
        return
    kind = "null" if value is None else f"the {type(value).__name__} {_show(value)}"
    way = ""
    if isinstance(value, float) and value.is_integer() and fits(int(value), argument.annotation):
        way = f" Write {int(value)}."
    elif not isinstance(value, str | list | dict) and fits("", argument.annotation):
        way = f" Put it in quotes: '{_show(value)}'."
    yield Problem(key, _show(value), (f"{target} takes '{argument.name}: {argument.annotation}', not {kind}.{way}",))


def _check_scalars(tree: Mapping[str, Any]) -> Iterator[Problem]:
    seed = tree.get("seed")
    if seed not in (None, MISSING, UNRESOLVED) and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
        yield Problem("seed", _show(seed), ("takes a whole number from 0.",))
    for name in ("ckpt_path", "init_from"):
        if not isinstance(tree.get(name), str | None | type(UNRESOLVED)):
            yield Problem(name, _show(tree[name]), ("takes a path.",))
    for name in ("vars", "stages"):
        if not isinstance(tree.get(name), Mapping | None | type(UNRESOLVED)):
            yield Problem(name, _show(tree[name]), ("takes a mapping of names to values.",))
