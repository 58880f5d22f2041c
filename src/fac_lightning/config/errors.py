"""What goes wrong with a recipe, told to a reader: one ``Problem`` each, all of them in one ``RecipeError``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Problem", "RecipeError", "UserError", "did_you_mean", "report"]


class UserError(ValueError):
    """Something the user can put right; its text is all they need, so the command line shows no traceback."""


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, what stands there, and what to do about it."""

    key: str
    value: str  # as the user would write it; "" where there is none
    lines: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        head = f"  {self.key} = {self.value}" if self.value else f"  {self.key}"
        return "\n".join([head, *(f"      {line}" for line in self.lines)])


class RecipeError(UserError):
    """A recipe with at least one problem."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        super().__init__(report(name, problems))
        self.problems = tuple(problems)


def report(name: str, problems: Sequence[Problem]) -> str:
    """All problems of a recipe as text: one heading, then key, value, cause and way out of each."""
    if not problems:
        return f"{name}: no problems"
    noun = "problem" if len(problems) == 1 else "problems"
    return "\n".join([f"{name}: {len(problems)} {noun}", *(str(problem) for problem in problems)])


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with the closest choice, or nothing where none is close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
