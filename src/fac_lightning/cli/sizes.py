"""Sizes that follow: a part named on the command line brings its codes, its rate or its width with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from fac_lightning.cli.build import ensure_tokenizer, without_base_weights
from fac_lightning.config import Recipe, UserError, amend, check, instantiate

if TYPE_CHECKING:
    from fac_lightning.models.agreement import SizeError

__all__ = ["with_sizes"]

log = logging.getLogger(__name__)

SAYS_SIZES = ("tokenizer", "model.encoder", "model.backbone")  # all other parts are told them
_GROUPS = {"tokenizer": "vars.group_size", "model.encoder": "model.feature_adapter.group_size"}


def with_sizes(recipe: Recipe) -> Recipe:
    """A recipe whose sizes are those of the parts that its words name.

    Another tokenizer has other codes and another rate, another LLM another width. A recipe writes such sizes once,
    under ``vars``; where a word exchanges a part and no word its sizes, they are set to what fits, and a line tells
    which. A recipe whose words name no such part is left as it is: what its file says is what it means. So is one for
    which nothing can be set; building it says why.

    Args:
        recipe: Composed and checked.

    Raises:
        UserError: A part could not be built.
    """
    named = [part for part in SAYS_SIZES if any(_is_at(word, part) for word in recipe.words)]
    changed: dict[str, int] = {}
    trial = _Trial()
    while named and recipe.path is not None and recipe.tree.get("model"):
        error = trial.error(recipe.tree)
        fix = None if error is None else _choose(error.fixes, named)
        if not fix or any(key in changed or any(_is_at(word, key) for word in recipe.words) for key in fix):
            break
        amended = amend(recipe, [f"{key}={value}" for key, value in fix.items()])
        if check(amended):  # it has no such size
            break
        recipe, changed = amended, changed | fix
    if changed:
        listed = ", ".join(f"{key}={value}" for key, value in changed.items())
        log.info(f"to go with {' and '.join(named)}: {listed}")
    return recipe


def _is_at(word: str, key: str) -> bool:
    """Whether a word sets ``key`` or something in it."""
    return f"{word.removeprefix('~').partition('=')[0]}.".startswith(f"{key}.")


def _choose(fixes: list[dict[str, int]], named: list[str]) -> dict[str, int] | None:
    """The first way out. Where rates lie apart it keeps the positions a second of the side that was not exchanged."""
    if not any(_GROUPS.values() & fix.keys() for fix in fixes):
        return fixes[0] if fixes else None
    exchanged = [part for part in _GROUPS if part in named]
    if len(exchanged) != 1:  # both rates are new: how many positions a second are wanted is not known
        return None
    other = next(key for part, key in _GROUPS.items() if part not in exchanged)
    near = [fix for fix in fixes if other not in fix]
    if not near and exchanged == ["tokenizer"]:  # no whole group meets the user's rate: both change, to one near it
        near = [fix for fix in fixes if len(fix) == 2]
    return near[0] if near else None


class _Trial:
    """Builds models to see whether their parts agree; parts that no size reaches are built once."""

    def __init__(self) -> None:
        self.built: dict[str, tuple[Any, Any]] = {}  # place in the recipe -> node and part

    def error(self, tree: Mapping[str, Any]) -> SizeError | None:
        """What parts of the model, or tokenizer and model, say that do not go together."""
        from fac_lightning.models.agreement import SizeError

        try:
            model = self._model(tree["model"])
            ensure_tokenizer(model, self._part("tokenizer", tree["tokenizer"]) if tree.get("tokenizer") else None)
        except UserError as error:
            if isinstance(error.__cause__, SizeError):
                return error.__cause__
            raise
        return None

    def _model(self, node: Mapping[str, Any]) -> Any:
        """A model to be asked for its sizes: its backbone, mostly the largest part, holds no numbers."""
        import torch

        node = without_base_weights(node)
        built = {}
        for name, place in (("backbone", torch.device("meta")), ("encoder", nullcontext())):
            if isinstance(node.get(name), Mapping):
                with place:
                    built[name] = self._part(f"model.{name}", node.pop(name))
        return instantiate(node, "model", **built)

    def _part(self, key: str, node: Mapping[str, Any]) -> Any:
        if key not in self.built or self.built[key][0] != node:
            self.built[key] = (node, instantiate(node, key))
        return self.built[key][1]
