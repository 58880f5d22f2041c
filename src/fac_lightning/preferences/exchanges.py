"""The first question of dialogues, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from fac_lightning.data.dialogue import Dialogue, dialogue_of_cut, read_cuts

__all__ = ["first_exchanges"]


def first_exchanges(folder: str, limit: int | None, leave_out: Callable[[str], None]) -> Iterator[Dialogue]:
    """Dialogues of a folder, cut off behind the first answer, with their audio.

    Args:
        folder: Dialogues folder or manifest.
        limit: Dialogues, spread over the folder; all when None.
        leave_out: Told of dialogues that do not begin with a question and an answer.
    """
    cuts = list(read_cuts(folder))
    places = np.arange(len(cuts))
    if limit is not None and limit < len(cuts):
        places = np.linspace(0, len(cuts) - 1, limit).round().astype(int)
    for place in places.tolist():
        cut = cuts[place]
        if [supervision.speaker for supervision in cut.supervisions[:2]] != ["user", "assistant"]:
            leave_out("begins without a question and an answer")
            continue
        dialogue = dialogue_of_cut(cut)
        yield replace(dialogue, turns=dialogue.turns[:2])
