"""What is trained and how fast: parameter patterns, groups for AdamW, the schedule. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fac_lightning.patterns import match_names, matches

__all__ = [
    "base_rate",
    "cosine_with_warmup",
    "parameter_groups",
    "parameter_table",
    "silent_modules",
    "warmup_count",
]


def cosine_with_warmup(step: int, warmup_steps: int, max_steps: int, floor: float) -> float:
    """Factor on the learning rate at optimizer step ``step``, counted from 0.

    Rises linearly to 1 over ``warmup_steps``, then falls as half a cosine to ``floor`` at ``max_steps`` and stays.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_count(warmup_steps: float, max_steps: int) -> int:
    """Optimizer steps of warm-up: a number below 1 is that part of ``max_steps``, rounded up; at most all of them.

    Raises:
        ValueError: It is negative, or not a whole number of steps.
    """
    if warmup_steps < 0 or (warmup_steps >= 1 and warmup_steps != int(warmup_steps)):
        raise ValueError(
            f"warmup_steps takes a whole number of steps, or a part of all steps below 1 (0.02), got {warmup_steps}"
        )
    steps = math.ceil(warmup_steps * max_steps) if warmup_steps < 1 else int(warmup_steps)
    return min(steps, max_steps)


def base_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Learning rate now of a parameter with factor 1, where ``lr`` is what the schedule scales."""
    scaled = (lr * group["lr"] / group["initial_lr"] for group in optimizer.param_groups if group.get("initial_lr"))
    return float(next(scaled, optimizer.param_groups[0]["lr"]))


def silent_modules(model: nn.Module, patterns: Iterable[str]) -> list[nn.Module]:
    """Modules in which nothing is trained: all their parameters are frozen, or they have none and a pattern means them.

    They belong in eval mode: dropout, jitter and running statistics of a frozen part would change what it says.
    """
    asked = list(patterns)
    found = []
    for name, module in model.named_modules():
        wanted = any(matches(p, name) for p in asked)
        trainable = [parameter.requires_grad for parameter in module.parameters()]
        if not any(trainable) and (trainable or wanted):
            found.append(module)
    return found


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], lr: float, weight_decay: float, lr_factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups for AdamW: weight decay on matrices only, and a learning rate per group.

    Args:
        parameters: Trainable parameters by name.
        lr: Learning rate where no factor is given.
        weight_decay: Of parameters with two dimensions or more.
        lr_factors: Pattern (see ``fac_lightning.patterns``) -> factor on ``lr``; the first pattern that matches counts.
    """
    factors: dict[str, float] = {}
    negative = [pattern for pattern, factor in lr_factors.items() if factor < 0]
    if negative:
        raise ValueError(f"lr_factors: {negative[0]!r} is {lr_factors[negative[0]]}; a factor is 0 or above")
    matched = match_names(lr_factors, list(parameters), "lr_factors (among what is trained)", "parameter")
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
