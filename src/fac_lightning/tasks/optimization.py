"""What is trained and how fast: parameter patterns, groups for AdamW, the schedule. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

__all__ = ["cosine_with_warmup", "match_parameters", "parameter_groups", "parameter_table"]


def cosine_with_warmup(step: int, warmup_steps: int, max_steps: int, floor: float) -> float:
    """Factor on the learning rate at optimizer step ``step``, counted from 0.

    Rises linearly to 1 over ``warmup_steps``, then falls as half a cosine to ``floor`` at ``max_steps`` and stays.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def match_parameters(
    patterns: Iterable[str], names: Sequence[str], purpose: str, modules: Iterable[str] = ()
) -> dict[str, list[str]]:
    """Parameter names that each pattern means.

    A pattern is a slot or any module (``backbone``, ``head.transformer``), a parameter, or has wildcards
    (``backbone.*.bias``).

    Args:
        patterns: What is asked for.
        names: Parameter names.
        purpose: Which option asks; begins the message.
        modules: Names of modules that may be asked for although they have no parameter.

    Raises:
        ValueError: A pattern means nothing; the message lists names that look like it.
    """
    found, empty = {}, set(modules)
    for pattern in patterns:
        found[pattern] = [n for n in names if n.startswith(pattern + ".") or fnmatchcase(n, pattern)]
        if not found[pattern] and pattern not in empty:
            parents = {n[:i] for n in names for i, c in enumerate(n) if c == "."}
            near = get_close_matches(pattern, [*sorted(parents), *names], n=3, cutoff=0.4)
            slots = sorted({n.split(".")[0] for n in names})
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"{purpose}: {pattern!r} matches no parameter; {hint}Slots: {', '.join(slots)}")
    return found


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], lr: float, weight_decay: float, lr_factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups for AdamW: weight decay on matrices only, and a learning rate per group.

    Args:
        parameters: Trainable parameters by name.
        lr: Learning rate where no factor is given.
        weight_decay: Of parameters with two dimensions or more.
        lr_factors: Pattern (see ``match_parameters``) -> factor on ``lr``; the first pattern that matches counts.
    """
    factors: dict[str, float] = {}
    matched = match_parameters(lr_factors, list(parameters), "lr_factors (among what is trained)")
    for pattern, names in matched.items():
        for name in names:
            factors.setdefault(name, lr_factors[pattern])
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((factors.get(name, 1.0), decay), []).append(parameter)
    return [{"params": params, "lr": lr * f, "weight_decay": decay} for (f, decay), params in groups.items()]


def parameter_table(model: nn.Module) -> str:
    """Parameters of every slot, trainable and all, as lines of text; shared ones count where they come first."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        slot = counts.setdefault(name.split(".")[0], [0, 0])
        slot[0] += parameter.numel() if parameter.requires_grad else 0
        slot[1] += parameter.numel()
    counts["total"] = [sum(c[i] for c in counts.values()) for i in (0, 1)]
    width = max(map(len, counts))
    lines = [f"{name:<{width}}  {trained:>15,}  {every:>15,}" for name, (trained, every) in counts.items()]
    return "\n".join([f"{'slot':<{width}}  {'trainable':>15}  {'parameters':>15}", *lines])
