"""Preference pairs from dialogues that are already there: the right answer before that of another dialogue."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fac_lightning.data.dialogue import read_dialogues
from fac_lightning.data.preference_pairs import PreferencePair, PreferenceWriter, TurnAnswer

__all__ = ["SwappedAnswers"]


class SwappedAnswers:
    """Write one pair per dialogue: its own last answer is preferred to one with another text from elsewhere.

    The plainest pairs there are: they teach to answer this question and no other, and show the machinery at work.
    Nothing is copied; pairs name turns of the dialogues. The same seed gives the same pairs.

    Args:
        dialogues: Folder of dialogues whose last turn is the assistant's.
        out: Folder for ``pairs.jsonl``.
        task: Family of the pairs.
        limit: Pairs to write, spread over the dialogues; all when None.
        seed: Of who gets whose answer.
    """

    def __init__(self, dialogues: str, out: str, task: str = "answer", limit: int | None = None, seed: int = 0) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}; None takes all")
        self.dialogues, self.out, self.task, self.limit, self.seed = dialogues, Path(out), task, limit, seed

    def run(self) -> dict[str, int]:
        """Write what is not there yet; returns the number of pairs.

        Raises:
            ValueError: No two dialogues end with different answers of the assistant.
        """
        found = [d for d in read_dialogues(self.dialogues, audio=False) if len(d.turns) > 1]
        found = [d for d in found if d.turns[-1].role == "assistant" and d.turns[-2].role == "user"]
        answers = [dialogue.turns[-1].text for dialogue in found]
        if len(set(answers)) < 2:
            raise ValueError(
                f"{self.dialogues} has {len(set(answers))} different last answers to a user; swapping needs two or more"
            )
        rng = np.random.default_rng(self.seed)
        places = np.arange(len(found))
        if self.limit is not None and self.limit < len(found):
            places = np.linspace(0, len(found) - 1, self.limit).round().astype(int)
        with PreferenceWriter(self.out, self.dialogues) as writer:
            for place in places.tolist():
                other = int(rng.integers(len(found)))
                while answers[other] == answers[place]:
                    other = int(rng.integers(len(found)))
                mine, theirs = found[place], found[other]
                pair = PreferencePair(
                    id=f"{self.task}-{mine.id}",
                    dialogue=mine.id,
                    turns=len(mine.turns) - 1,
                    chosen=TurnAnswer(mine.id, len(mine.turns) - 1),
                    rejected=TurnAnswer(theirs.id, len(theirs.turns) - 1),
                    task=self.task,
                )
                if pair.id not in writer.done:
                    writer.write(pair)
            return {"pairs": len(writer.done)}
