"""One stage of a pipeline for each of several values: ``each: {k: [1, 5], seed: [0, 1]}`` makes four.

``${each.k}`` in such a stage stands for the value. What goes with a value may stand beside it,
``each: {k: {1: {frames: 2}, 5: {frames: 10}}}``, and is called ``${each.k.frames}``. The stages are called
``<name>-k1-seed0`` and so on. Another stage that names ``<name>`` in ``after`` or ``init_from`` means those that agree
with it in the names that both have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

from fac_lightning.config.errors import Problem, did_you_mean

__all__ = ["expand_stages"]

_MARK = re.compile(r"\$\{each\.([A-Za-z_]\w*(?:\.\w+)?)\}")

Choice = dict[str, Any]  # name -> value, and name.detail -> what goes with it


def expand_stages(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The tree with every stage that has ``each`` replaced by its instances, and what was wrong with them."""
    stages = tree.get("stages")
    if not isinstance(stages, Mapping) or not any(isinstance(n, Mapping) and "each" in n for n in stages.values()):
        return dict(tree), []
    problems: list[Problem] = []
    choices = {str(name): _choices(str(name), node, problems) for name, node in stages.items()}
    made: dict[str, Any] = {}
    for name, node in stages.items():
        for choice in choices[str(name)]:
            if not isinstance(node, Mapping) or "each" not in node:
                instance = node
            else:
                plain = {key: value for key, value in node.items() if key != "each"}
                instance = _fill(plain, choice, f"stages.{name}", problems)
            made[_called(str(name), choice)] = _relate(instance, choice, choices, f"stages.{name}", problems)
    return {**tree, "stages": made}, list(dict.fromkeys(problems))


def _choices(name: str, node: Any, problems: list[Problem]) -> list[Choice]:
    each = node.get("each") if isinstance(node, Mapping) else None
    if each is None:
        return [{}]
    if not isinstance(each, Mapping) or not each or not all(isinstance(v, list | Mapping) and v for v in each.values()):
        reason = "takes names with lists of values: {seed: [0, 1, 2]}."
        problems.append(Problem(f"stages.{name}.each", str(each), (reason,)))
        return [{}]
    found = []
    for values in product(*each.values()):
        choice: Choice = dict(zip(map(str, each), values, strict=True))
        for key, value in list(choice.items()):
            details = each[key][value] if isinstance(each[key], Mapping) else None
            choice |= {f"{key}.{detail}": item for detail, item in (details or {}).items()}
        found.append(choice)
    return found


def _called(name: str, choice: Choice) -> str:
    return "-".join([name, *(f"{key}{value}" for key, value in choice.items() if "." not in key)])


def _fill(value: Any, choice: Choice, key: str, problems: list[Problem]) -> Any:
    """``value`` with every ``${each.x}`` replaced; a string that is nothing else keeps the value's type."""
    if isinstance(value, Mapping):
        return {name: _fill(item, choice, f"{key}.{name}", problems) for name, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, choice, f"{key}.{index}", problems) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    unknown = [name for name in _MARK.findall(value) if name not in choice]
    if unknown:
        hint = did_you_mean(unknown[0], choice) or f" It has: {', '.join(choice)}."
        problems.append(Problem(key, value, (f"'each' of this stage has no '{unknown[0]}'.{hint}",)))
        return value
    whole = _MARK.fullmatch(value)
    return choice[whole[1]] if whole else _MARK.sub(lambda found: str(choice[found[1]]), value)


def _relate(node: Any, choice: Choice, choices: Mapping[str, list[Choice]], key: str, problems: list[Problem]) -> Any:
    """A stage whose ``after`` and ``init_from`` name instances."""
    if not isinstance(node, Mapping):
        return node
    changed = dict(node)
    for field in ("after", "init_from"):
        named = node.get(field)
        if named is None:
            continue
        found: list[str] = []
        for other in named if isinstance(named, list) else [named]:
            fitting = [
                _called(str(other), theirs)
                for theirs in choices.get(str(other), [{}])
                if all(theirs[name] == choice[name] for name in theirs.keys() & choice.keys() if "." not in name)
            ]
            found += fitting
        if field == "after":
            changed[field] = found
        elif len(found) == 1:
            changed[field] = found[0]
        else:
            reason = f"means {len(found)} stages ({', '.join(found[:4])} ...); a stage starts from one"
            problems.append(Problem(f"{key}.{field}", str(named), (f"{reason}: give both the same 'each'.",)))
    return changed
