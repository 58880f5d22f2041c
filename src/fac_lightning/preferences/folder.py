"""A folder of pairs that holds the dialogues they name, and appears whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fac_lightning.data.dialogue import Dialogue, DialogueWriter, Turn
from fac_lightning.data.finished import SUMMARY_FILE, finished_summary
from fac_lightning.data.preference_pairs import PreferencePair, PreferenceWriter, TurnAnswer, WrittenAnswer

__all__ = ["PairFolder"]

log = logging.getLogger(__name__)


class PairFolder:
    """Write pairs under a temporary name, count what was left out, and rename the folder when all is written.

    Args:
        out: The folder.
        task: Family of the pairs.
        measure: What ranked the answers.
        settings: What the pairs are made with, as JSON values.
    """

    def __init__(self, out: str | Path, task: str, measure: str, settings: Mapping[str, Any]) -> None:
        self.out, self.task, self.measure, self.settings = Path(out), task, measure, dict(settings)
        self.part = self.out.with_name(f"{self.out.name}.part")
        self._left_out: Counter[str] = Counter()
        self._scores: list[tuple[float, float]] = []
        self._told: dict[str, Any] = {}

    def finished(self) -> dict[str, Any] | None:
        """Summary of the folder if it was made before, with the same settings; None if there is none.

        Raises:
            ValueError: It was made with other settings, or is no folder of pairs.
        """
        summary = finished_summary(self.out, self.settings, "pairs")
        if summary is None:
            return None
        log.info("%s has its pairs already; delete it to make them anew", self.out)
        return summary

    def __enter__(self) -> PairFolder:
        if self.part.exists():  # of a run that was interrupted
            shutil.rmtree(self.part)
        self._dialogues, self._pairs = DialogueWriter(self.part), PreferenceWriter(self.part)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dialogues.close()
        self._pairs.close()
        if kind is not None:
            return
        if not self._scores:
            log.warning("%s has no pair: %s", self.out, _listed(self._left_out) or "there was nothing to rank")
        (self.part / SUMMARY_FILE).write_text(json.dumps(self.summary(), indent=2) + "\n", encoding="utf-8")
        os.replace(self.part, self.out)

    def write(
        self,
        name: str,
        prompt: Sequence[Turn],
        chosen: Turn,
        rejected: Turn,
        scores: tuple[float, float],
        system: str | None = None,
        mode: str | None = None,
        custom: Mapping[str, Any] | None = None,
    ) -> None:
        """Append one pair with its dialogues.

        Args:
            name: Unique in the folder.
            prompt: Turns before the answers; the last is the user's.
            chosen: The better answer.
            rejected: The other.
            scores: What the measure gave for both.
            system: System prompt, where the prompt has its own.
            mode: Of ``prompts.MODES``, where the answers were made for one.
            custom: More about how the pair came to be, JSON values.
        """
        name = f"{self.task}-{name}"
        self._dialogues.write(Dialogue(name, (*prompt, chosen), system))
        other: TurnAnswer | WrittenAnswer = WrittenAnswer(rejected.text)
        if rejected.audio is not None or rejected.codes is not None:
            self._dialogues.write(Dialogue(f"{name}-rejected", (rejected,)))
            other = TurnAnswer(f"{name}-rejected", 0)
        ranked = {"measure": self.measure, "chosen": scores[0], "rejected": scores[1]}
        answer = TurnAnswer(name, len(prompt))
        self._pairs.write(
            PreferencePair(name, name, len(prompt), answer, other, self.task, mode, 1.0, {**ranked, **(custom or {})})
        )
        self._scores.append(scores)

    def leave_out(self, reason: str) -> None:
        """Count what gave no pair."""
        self._left_out[reason] += 1

    def tell(self, **facts: Any) -> None:
        """Add facts to the summary, JSON values."""
        self._told.update(facts)

    def summary(self) -> dict[str, Any]:
        """Counts, means of the measure, and the settings."""
        count = len(self._scores)
        chosen, rejected = (sum(side) / count for side in zip(*self._scores, strict=True)) if count else (None, None)
        return {
            "task": self.task,
            "pairs": count,
            "left_out": dict(self._left_out.most_common()),
            "measure": self.measure,
            "mean_chosen": chosen,
            "mean_rejected": rejected,
            "mean_margin": sum(abs(a - b) for a, b in self._scores) / count if count else None,
            **self._told,
            "settings": self.settings,
        }


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
