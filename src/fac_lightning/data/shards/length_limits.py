"""Dialogues of shards that are too short or too long for ``data.limits``: left out when lines are planned."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import fields

from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.row_source import CorpusItem

__all__ = ["LengthLimits"]

log = logging.getLogger(__name__)

HELD = ("min_seconds", "max_seconds", "max_member_bytes")


class LengthLimits:
    """Holds dialogues against limits by what their manifests say, and remembers which are bad.

    Args:
        limits: Shortest turn and longest recording. What is about files of sound was for those that shards are made of.
        sample_rate: Hz of the users' clips.
        where: The shards, for messages.
    """

    def __init__(self, limits: IntakeLimits, sample_rate: int, where: str) -> None:
        self.limits, self.sample_rate = limits, sample_rate
        self.bad: dict[str, BadData] = {}  # by the dialogue's id
        rest = [one.name for one in fields(limits) if one.name not in HELD]
        if changed := [name for name in rest if getattr(limits, name) != getattr(IntakeLimits, name)]:
            log.warning(
                "data.limits: the shards %s are held against %s alone; %s is about the files that they were made of",
                where,
                ", ".join(HELD),
                ", ".join(changed),
            )

    def takes(self, item: CorpusItem) -> bool:
        """Whether a dialogue is within the limits."""
        if item.id not in self.bad and (problem := self._problem(item)) is not None:
            self.bad[item.id] = problem
        return item.id not in self.bad

    def __str__(self) -> str:
        """What it depends on which dialogues are left out."""
        return f"{self.limits.min_seconds:g} to {self.limits.max_seconds:g} s"

    def _problem(self, item: CorpusItem) -> BadData | None:
        """The first thing that is wrong; a side's turns are one recording."""
        limits, sides = self.limits, defaultdict[str, float](float)
        for i, turn in enumerate(item.turns):
            if turn.clip is None and turn.codes is None:
                continue
            seconds = turn.seconds if turn.clip is None else turn.clip.num_samples / self.sample_rate
            sides[turn.role] += seconds
            if seconds < limits.min_seconds - 1e-6:
                place, rule = f"dialogue {item.id!r}, turn {i}", f"at least {limits.min_seconds:g} s"
                return bad_data("FAC-A14", place, f"{seconds:.4f} s", rule)
        for side, seconds in sides.items():
            if seconds > limits.max_seconds:
                place, rule = f"dialogue {item.id!r}, side {side!r}", f"at most {limits.max_seconds:g} s"
                return bad_data("FAC-A15", place, f"{seconds:.3f} s", rule)
        return None
