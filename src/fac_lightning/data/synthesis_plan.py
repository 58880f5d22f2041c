"""Which voice asks which question: the dialogues of a split before anything is spoken."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fac_lightning.data.dialogue import Dialogue
from fac_lightning.data.sources import DialogueSource
from fac_lightning.synthesizers.base import Synthesizer

__all__ = ["PlannedDialogue", "SynthesisSplit", "plan_split"]


@dataclass(frozen=True)
class SynthesisSplit:
    """One folder of dialogues that the job writes."""

    select: str  # part of the source, for example "train"
    voices: Sequence[Synthesizer] | None = None  # of the user, in rotation; None leaves the dialogues text only
    voices_per_dialogue: int = 1  # each dialogue is spoken by this many voices
    limit: int | None = None  # draw this many dialogues, as many different answers as possible
    max_wer: float = 0.34  # of a user turn; dialogues above are rejected
    attempts: int = 1  # per user turn, each with another seed
    filter_fraction: float = 1.0  # share of the user turns that the recogniser hears; the others are kept unheard


@dataclass(frozen=True)
class PlannedDialogue:
    """A dialogue to be written: the text, its id on disk, and who asks."""

    id: str
    dialogue: Dialogue
    voice: int | None


def plan_split(
    name: str, split: SynthesisSplit, source: DialogueSource, first_voice: int = 0, seed: int = 0
) -> list[PlannedDialogue]:
    """Dialogues of a split, each with the voice that asks.

    Voices rotate over the dialogues that share an answer, and start one further for each answer, so that every answer
    is asked for in every voice (given enough wordings) and no voice is tied to a wording. A limit draws one dialogue
    of each answer before a second one of any.

    Args:
        name: Of the split; with ``seed`` it decides what a limit draws.
        split: What to plan.
        source: The text.
        first_voice: Index of the split's first voice among all voices.
        seed: See ``name``.
    """
    dialogues = source.dialogues(split.select)
    groups: dict[tuple[str, ...], list[Dialogue]] = defaultdict(list)
    for dialogue in dialogues:
        groups[tuple(turn.text for turn in dialogue.turns if turn.role == "assistant")].append(dialogue)
    chosen = {dialogue.id for dialogue in dialogues}
    if split.limit is not None:
        draw = random.Random(f"{seed}/{name}")
        shuffled = [draw.sample(group, len(group)) for group in draw.sample(list(groups.values()), len(groups))]
        ranked = sorted((rank, g) for g, group in enumerate(shuffled) for rank in range(len(group)))
        chosen = {shuffled[g][rank].id for rank, g in ranked[: split.limit]}
    drawn = ([dialogue for dialogue in group if dialogue.id in chosen] for group in groups.values())
    planned: list[PlannedDialogue] = []
    for g, kept in enumerate(filter(None, drawn)):
        for rank, dialogue in enumerate(kept):
            if split.voices is None:
                planned.append(PlannedDialogue(dialogue.id, dialogue, None))
                continue
            for copy in range(split.voices_per_dialogue):
                voice = (rank * split.voices_per_dialogue + copy + g) % len(split.voices)
                slug = split.voices[voice].name.replace("/", "-")
                planned.append(PlannedDialogue(f"{dialogue.id}-{slug}", dialogue, first_voice + voice))
    return planned
