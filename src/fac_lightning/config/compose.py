"""From files and command line to one resolved tree of plain Python: load, merge ``base:``, override, resolve ``${}``.

Mistakes that leave a tree to look at (an unknown key, a dangling ``${}``) are collected, so that ``check`` can list
them beside its own; what leaves no tree (no such file, broken YAML) raises at once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from fac_lightning.config.each import expand_stages
from fac_lightning.config.errors import Problem, UserError, did_you_mean
from fac_lightning.config.signatures import Definition, define
from fac_lightning.config.source import BadPath

__all__ = [
    "MISSING", "TOP_LEVEL", "Recipe", "amend", "find_recipe", "load", "loads", "merge", "override", "shipped_recipes",
]  # fmt: skip

MISSING = "???"
TOP_LEVEL = (
    "base", "seed", "vars", "model", "tokenizer", "task", "data", "trainer", "ckpt_path", "init_from", "job", "stages",
)  # fmt: skip
_TRAINER = "lightning.Trainer"  # what ``trainer:`` builds when it names nothing
_OF_STAGES = ("model", "tokenizer", "task", "data", "trainer")  # a pipeline has none of its own

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """A composed recipe: plain dicts, lists and scalars, every ``${}`` resolved."""

    name: str  # as the user called it
    tree: dict[str, Any]
    path: Path | None = None  # file it came from
    problems: tuple[Problem, ...] = ()  # found while composing; ``check`` adds to them
    notes: tuple[str, ...] = field(default=(), compare=False)  # arguments dropped with a changed ``_target_``
    words: tuple[str, ...] = field(default=(), compare=False)  # of the command line, in force
    for_stages: tuple[str, ...] = field(default=(), compare=False)  # words of a pipeline for all stages that take them

    @property
    def text(self) -> str:
        """The tree as YAML."""
        return OmegaConf.to_yaml(OmegaConf.create(self.tree), resolve=False)


class _Unresolved:
    """Stands where an interpolation failed, so that the same mistake is told once."""

    def __repr__(self) -> str:
        return "(unresolved)"


UNRESOLVED = _Unresolved()


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Compose a recipe: its file, what it is based on, ``key=value`` and ``~key``, then ``${}``.

    Args:
        recipe: A file, or the name of a recipe that comes with the library: ``tiny/sft``.
        overrides: Words of the command line.

    Raises:
        UserError: There is no such file, it is no YAML, or its ``base:`` goes round in a circle.
    """
    path = find_recipe(recipe)
    made = _compose(str(recipe), path, overrides)
    for note in made.notes:
        log.info(note)
    return made


def amend(recipe: Recipe, words: Sequence[str]) -> Recipe:
    """A recipe composed anew with further words behind its own; nothing is logged.

    Args:
        recipe: From a file: what ``load`` gave.
        words: Such as ``vars.dim=64``.
    """
    if recipe.path is None:
        raise ValueError(f"{recipe.name} comes from no file, so it cannot be composed anew")
    return _compose(recipe.name, recipe.path, [*recipe.words, *words])


def loads(text: str, name: str = "recipe") -> Recipe:
    """Recipe from YAML text as ``save`` wrote it: complete, so without ``base:``.

    Raises:
        UserError: The text is no YAML or not a saved recipe.
    """
    tree = _parse_yaml(text, name)
    if "base" in tree or "${" in text:
        raise UserError(
            f"{name}: a saved recipe is complete, but this one has 'base:' or '${{}}'; it was not saved here"
        )
    return _finish(name, tree, (), [], None)


def _compose(name: str, path: Path, overrides: Sequence[str]) -> Recipe:
    notes: list[str] = []
    return _finish(name, _read(path, (), notes), overrides, notes, path)


def _finish(name: str, tree: dict[str, Any], overrides: Sequence[str], notes: list[str], path: Path | None) -> Recipe:
    if "trainer" in tree or "task" in tree:
        trainer = tree.get("trainer") or {}
        if isinstance(trainer, dict):
            tree["trainer"] = {"_target_": _TRAINER, **trainer}
    for_stages = [word for word in overrides if tree.get("stages") and _section(word) in _OF_STAGES]
    words = [word for word in overrides if word not in for_stages]
    problems = override(tree, words, notes)
    tree, unclear = expand_stages(tree)
    tree, dangling = _resolve(tree)
    found = (*problems, *unclear, *dangling)
    return Recipe(name, tree, path, found, tuple(notes), tuple(words), tuple(for_stages))


def _section(word: str) -> str:
    """``trainer`` of ``trainer.max_steps=5`` and of ``~trainer.callbacks``."""
    return word.removeprefix("~").partition("=")[0].partition(".")[0]


# files


def _recipe_folders() -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    return [folder for folder in (package / "recipes", package.parents[1] / "recipes") if folder.is_dir()]


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with the library, by name: ``tiny/sft``."""
    return {
        file.relative_to(folder).with_suffix("").as_posix(): file
        for folder in reversed(_recipe_folders())
        for file in sorted(folder.rglob("*.yaml"))
    }


def find_recipe(recipe: str | Path) -> Path:
    """File of a recipe: a path (``.yaml`` may be left out, a run folder means its recipe) or a name that is shipped.

    Raises:
        UserError: There is none; the closest shipped name is suggested.
    """
    given = Path(recipe)
    for path in (given, given.with_name(f"{given.name}.yaml"), given / "recipe.yaml"):
        if path.is_file():
            return path
    shipped = shipped_recipes()
    name = given.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    names = [known for known in shipped if not known.startswith("_")]
    hint = did_you_mean(name, names) or (f" Shipped: {', '.join(names)}." if names else "")
    raise UserError(f"there is no recipe '{recipe}', neither as a file nor among those of the library.{hint}")


def _parse_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        flow = " Inside {...} a value ??? must be in quotes: '???'." if re.search(r"\{[^}]*\?\?\?", text) else ""
        raise UserError(f"{name} is no valid YAML: {reason}.{flow}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{name} must be a mapping of keys to values, not a {type(tree).__name__}")
    return tree  # type: ignore[return-value]


def _read(path: Path, above: tuple[Path, ...], notes: list[str]) -> dict[str, Any]:
    real = path.resolve()
    if real in above:
        chain = " -> ".join(step.name for step in (*above[above.index(real) :], real))
        raise UserError(f"{path}: 'base:' goes round in a circle: {chain}")
    tree = _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    bases = tree.pop("base", None) or []
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str):
            raise UserError(f"{path}: 'base:' takes a file name or a list of them, got {base!r}")
        beside = path.parent / base
        file = beside if beside.is_file() else shipped_recipes().get(base.removesuffix(".yaml"))
        if file is None:
            near = did_you_mean(base, [other.name for other in path.parent.glob("*.yaml")])
            raise UserError(f"{path}: 'base: {base}' is not there ({beside} does not exist).{near}")
        merged = merge(merged, _read(file, (*above, real), notes), notes)
    return merge(merged, tree, notes)


# merging


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any], notes: list[str], key: str = "") -> dict[str, Any]:
    """Overlay laid over base: mappings merge, all else replaces; a changed ``_target_`` drops what it cannot take.

    Args:
        base: Tree below.
        overlay: Tree above.
        notes: Gets one line per changed ``_target_`` that dropped arguments.
        key: Where the two stand in the recipe.
    """
    old, new = base.get("_target_"), overlay.get("_target_")
    kept = dict(base)
    if new is not None and old is not None and new != old:
        kept = _retarget(base, str(new), notes, key, also=set(overlay))
    for name, value in overlay.items():
        below = kept.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            kept[name] = merge(below, value, notes, f"{key}.{name}" if key else name)
        else:
            kept[name] = _copy(value)
    return kept


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _retarget(
    node: Mapping[str, Any], target: str, notes: list[str], key: str, also: set[str] | frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Node with another target: arguments it takes stay, the rest goes, and a note says so."""
    definition = _definition(target)
    if definition is None:  # ``check`` tells of the bad path; arguments stay, so that it tells of nothing else
        return {**node, "_target_": target}
    stay = {name: value for name, value in node.items() if name in ("_target_", "_partial_") or definition.takes(name)}
    gone = [name for name in node if name not in stay and name not in also]
    if gone:
        keeps = [name for name in stay if not name.startswith("_")]
        notes.append(
            f"{key}: {str(node['_target_']).split('.')[-1]} -> {target} drops {', '.join(gone)} "
            f"(it takes no such argument) and keeps {', '.join(keeps) or 'nothing'}"
        )
    return {**stay, "_target_": target}


def _definition(target: Any) -> Definition | None:
    try:
        return define(target) if isinstance(target, str) else None
    except BadPath:
        return None


# command line


def override(tree: dict[str, Any], words: Sequence[str], notes: list[str]) -> list[Problem]:
    """Apply ``key=value`` and ``~key`` to a tree in place; changes of ``_target_`` come first.

    ``key=dotted.Path`` on a node that has a ``_target_`` means ``key._target_=dotted.Path``. A new key is taken only
    where the node's ``_target_`` takes it.

    Returns:
        One problem per word that could not be applied.
    """
    problems: list[Problem] = []
    later: list[tuple[str, Any]] = []
    for word in words:
        key, equals, text = word.partition("=")
        if word.startswith("~") and not equals:
            later.append((word, None))
            continue
        if not equals or not key or not all(key.split(".")):
            problems.append(Problem(word, "", ("is not 'key=value' or '~key'.",)))
            continue
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]  # type: ignore[index, call-overload]
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            reason = str(getattr(error, "problem", None) or error).split("\n")[0]
            problems.append(Problem(key, text, (f"is no valid YAML: {reason}. Put it in quotes: {key}='\"...\"'.",)))
            continue
        node = _get(tree, key)
        if isinstance(value, str) and value != MISSING and isinstance(node, Mapping) and "_target_" in node:
            key = f"{key}._target_"
        if key.endswith("._target_") and isinstance(value, str):
            problems += _change_target(tree, key.removesuffix("._target_"), value, notes)
        else:
            later.append((key, value))
    for key, value in later:
        problems += _delete(tree, key[1:]) if key.startswith("~") else _set(tree, key, value, notes)
    return problems


def _get(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, Mapping) and _own(tree, part) in tree:
            tree = tree[_own(tree, part)]
        else:
            return None
    return tree


def _own(node: Mapping[Any, Any], part: str) -> Any:
    """The node's key that is written like ``part``: YAML makes a number of ``5:``."""
    return part if part in node else next((key for key in node if str(key) == part), part)


def _change_target(tree: dict[str, Any], key: str, target: str, notes: list[str]) -> list[Problem]:
    node = _get(tree, key)
    if isinstance(node, dict) and node.get("_target_") is not None:
        if node["_target_"] != target:
            changed = _retarget(node, target, notes, key)
            node.clear()
            node.update(changed)
        return []
    if isinstance(node, dict):
        node["_target_"] = target
        return []
    return _set(tree, key, {"_target_": target}, notes)


def _set(tree: dict[str, Any], key: str, value: Any, notes: list[str]) -> list[Problem]:
    shown = _show(value)
    *parents, last = key.split(".")
    node: Any = tree
    free = False  # below an argument that is a plain mapping, such as trainer.callbacks, any name is fine
    for depth, part in enumerate([*parents, last]):
        here = ".".join(key.split(".")[:depth])
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                return [
                    Problem(key, shown, (f"'{here}' is a list of {len(node)}; name an item by its number from 0.",))
                ]
        elif not isinstance(node, dict):
            return [Problem(key, shown, (f"'{here}' is {_show(node)}, which has nothing inside to set.",))]
        elif _own(node, part) not in node:
            cause = None if free and "_target_" not in node else _refusal(node, here, part)
            if cause:
                return [Problem(key, shown, cause)]
            if depth < len(parents):
                node[part] = {}
        if depth == len(parents):
            break
        free = (isinstance(node, dict) and ("_target_" in node or free)) or here == "stages"
        index: Any = int(part) if isinstance(node, list) else _own(node, part)
        if node[index] is None:
            node[index] = {}
        node = node[index]
    own: Any = int(last) if isinstance(node, list) else _own(node, last)
    if isinstance(value, Mapping) and isinstance(node, dict) and isinstance(node.get(own), Mapping):
        node[own] = merge(node[own], value, notes, key)
    else:
        node[own] = value
    return []


def _refusal(node: Mapping[str, Any], here: str, name: str) -> tuple[str, ...] | None:
    """Why a node cannot get a new key; None where it can."""
    if not here:
        if name in TOP_LEVEL:
            return None
        return (f"a recipe has no '{name}'.{did_you_mean(name, TOP_LEVEL)}", f"It has: {', '.join(TOP_LEVEL)}.")
    target = node.get("_target_")
    if target is None:
        known = ", ".join(str(known) for known in node)
        return (f"'{here}' has no '{name}'.{did_you_mean(name, map(str, node))}", f"It has: {known or 'nothing'}.")
    definition = _definition(target)
    if definition is None or definition.takes(name) or name in ("_target_", "_partial_"):
        return None
    return takes_no(str(target), definition, name)


def takes_no(target: str, definition: Definition, name: str) -> tuple[str, ...]:
    """The words for an argument that a callable does not take."""
    known = ", ".join(definition.names) or "no arguments"
    return (f"{target} takes no '{name}'.{did_you_mean(name, definition.names)}", f"It takes: {known}.")


def _delete(tree: dict[str, Any], key: str) -> list[Problem]:
    *parents, last = key.split(".")
    node = _get(tree, ".".join(parents)) if parents else tree
    if isinstance(node, dict) and _own(node, last) in node:
        del node[_own(node, last)]
        return []
    known = [str(name) for name in node] if isinstance(node, dict) else []
    has = f" It has: {', '.join(known)}." if known else ""
    where = f"'{'.'.join(parents)}'" if parents else "the recipe"
    return [Problem(f"~{key}", "", (f"{where} has no '{last}' to delete.{did_you_mean(last, known)}{has}",))]


def _show(value: Any) -> str:
    """A value as it would be written on the command line, cut to one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


# interpolation


def _resolve(tree: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    config = OmegaConf.create(tree)
    problems: list[Problem] = []
    return _resolve_node(config, "", problems), problems


def _resolve_node(node: DictConfig | ListConfig, key: str, problems: list[Problem]) -> Any:
    names: list[Any] = list(range(len(node))) if isinstance(node, ListConfig) else list(node.keys())
    resolved: dict[Any, Any] = {}
    for name in names:
        where = f"{key}.{name}" if key else str(name)
        raw: Any = node._get_node(name)
        text = str(raw._value()) if OmegaConf.is_interpolation(node, name) else ""
        if OmegaConf.is_missing(node, name) and not text:
            resolved[name] = MISSING
            continue
        try:
            value = node[name]  # type: ignore[index]
        except InterpolationToMissingValueError:  # told where the ??? stands
            resolved[name] = UNRESOLVED
            continue
        except OmegaConfBaseException as error:
            resolved[name] = UNRESOLVED
            problems.append(Problem(where, text, _dangling(node, text, error)))
            continue
        resolved[name] = _resolve_node(value, where, problems) if isinstance(value, DictConfig | ListConfig) else value
    return list(resolved.values()) if isinstance(node, ListConfig) else resolved


def _dangling(node: DictConfig | ListConfig, text: str, error: Exception) -> tuple[str, ...]:
    wanted = text.removeprefix("${").removesuffix("}")
    root = OmegaConf.to_container(node._get_root(), resolve=False)
    here, walked = root, []
    for part in wanted.split("."):
        if isinstance(here, dict) and part in here:
            here = here[part]
            walked.append(part)
        elif isinstance(here, dict) and part.isidentifier():
            place = f"'{'.'.join(walked)}'" if walked else "the recipe"
            return (f"points at nothing: {place} has no '{part}'.{did_you_mean(part, map(str, here))}",)
        else:
            break
    return (f"cannot be resolved: {str(error).splitlines()[0]}",)
