"""Patterns of tensor names: a slot or module, a tensor, or a name with wildcards (``backbone.*.bias``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

__all__ = ["match_names", "matches"]


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern means a tensor: ``head`` and ``head.norm.weight`` by name, ``*.mlp.*`` by wildcards."""
    return name.startswith(pattern + ".") or fnmatchcase(name, pattern)


def match_names(
    patterns: Iterable[str], names: Sequence[str], purpose: str, what: str = "tensor", empty: Iterable[str] = ()
) -> dict[str, list[str]]:
    """Names that each pattern means.

    Args:
        patterns: What is asked for.
        names: Among which.
        purpose: Which option asks; begins the message.
        what: What ``names`` are; stands in the message.
        empty: Names of modules that may be asked for although they hold nothing.

    Raises:
        ValueError: A pattern means nothing; the message lists names that look like it.
    """
    found, allowed = {}, set(empty)
    for pattern in patterns:
        found[pattern] = [name for name in names if matches(pattern, name)]
        if not found[pattern] and pattern not in allowed:
            parents = {name[:i] for name in names for i, char in enumerate(name) if char == "."}
            near = get_close_matches(pattern, [*sorted(parents), *names], n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            slots = ", ".join(sorted({name.split(".")[0] for name in names})) or "none"
            raise ValueError(f"{purpose}: {pattern!r} matches no {what}; {hint}They begin with: {slots}")
    return found
