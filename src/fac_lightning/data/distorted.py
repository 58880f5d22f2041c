"""The job behind noisy evaluation sets: a dialogues folder once more, the user's speech distorted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fac_lightning.data.dialogue import Dialogue, DialogueWriter, Turn, read_dialogues
from fac_lightning.data.distortions import Distortion, sample_rng
from fac_lightning.data.finished import SUMMARY_FILE, finished_summary
from fac_lightning.data.manifest import manifest_path

__all__ = ["DistortedDialogues"]


class DistortedDialogues:
    """Copy dialogues, and let something happen to every spoken turn of the user: noise, rooms, networks.

    The copy is a dialogues folder like any other: as an evaluation set it is the same for every model that is asked,
    and it can be listened to. What happens to a turn depends on ``seed``, on the dialogue's id, on the turn and on the
    copy alone. The assistant's turns stay as they are, and so do turns that are not spoken.

    The folder is there whole or not at all. Calling ``run`` again with the same arguments changes nothing.

    Args:
        dialogues: Dialogues folder or manifest.
        distortion: What happens to the user's speech.
        out: Folder of the copy.
        copies: How often every dialogue is copied, each time drawn anew: a small set gives a steadier figure.
        seed: Of all that is drawn.
    """

    def __init__(self, dialogues: str, distortion: Distortion, out: str, copies: int = 1, seed: int = 0) -> None:
        if copies < 1:
            raise ValueError(f"copies must be at least 1, got {copies}")
        self.dialogues, self.distortion, self.out = dialogues, distortion, Path(out)
        self.copies, self.seed = copies, seed

    def run(self) -> dict[str, Any]:
        """Write the copy; counts and arguments, also in ``summary.json``.

        Raises:
            ValueError: No user speaks in the dialogues, or the folder holds something else.
        """
        settings = {
            "dialogues": hashlib.sha256(manifest_path(self.dialogues).read_bytes()).hexdigest(),
            "distortion": repr(self.distortion),
            "copies": self.copies,
            "seed": self.seed,
        }
        done = finished_summary(self.out, settings, "dialogues")
        if done is not None:
            return done
        part = self.out.with_name(f"{self.out.name}.part")
        if part.exists():  # of a run that was interrupted
            shutil.rmtree(part)
        written, distorted = 0, 0
        with DialogueWriter(part) as writer:
            for dialogue in self._copies():
                writer.write(dialogue)
                written += 1
                distorted += sum(_spoken(turn) for turn in dialogue.turns)
        if not distorted:
            raise ValueError(f"no user speaks in {self.dialogues}, so there is nothing to distort")
        summary = {"dialogues": written, "distorted_turns": distorted, "settings": settings}
        (part / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        os.replace(part, self.out)
        return summary

    def _copies(self) -> Iterator[Dialogue]:
        for dialogue in read_dialogues(self.dialogues):
            for copy in range(self.copies):
                turns = tuple(
                    self._distorted(turn, f"{dialogue.id}/{place}/{copy}") if _spoken(turn) else turn
                    for place, turn in enumerate(dialogue.turns)
                )
                name = dialogue.id if self.copies == 1 else f"{dialogue.id}-{copy}"
                yield replace(dialogue, id=name, turns=turns)

    def _distorted(self, turn: Turn, name: str) -> Turn:
        assert turn.audio is not None
        assert turn.sample_rate is not None
        return replace(turn, audio=self.distortion(turn.audio, turn.sample_rate, sample_rng(self.seed, name)))


def _spoken(turn: Turn) -> bool:
    return turn.role == "user" and turn.audio is not None
