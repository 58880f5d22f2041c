"""Augmentation: the user's speech sounds otherwise every time training comes to a dialogue, and always in the same way.

What happens to a clip depends on the seed, on the epoch, on the dialogue's id and on the turn, and on nothing else: the
number of workers and processes, packing and an interruption change nothing. How long it will be is known before it is
read, so that layout counts the right positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fac_lightning.data.distortions.base import Distortion, sample_rng
from fac_lightning.data.layout import Clip, SpokenTurn
from fac_lightning.data.packing import Budget
from fac_lightning.data.row_plans import RowPart, RowPlanner
from fac_lightning.data.row_source import CorpusItem, RowSource
from fac_lightning.encoders.base import SpeechEncoder

__all__ = ["Augmentation", "AugmentedPlanner", "refuse_remembering"]


@dataclass(frozen=True)
class Augmentation:
    """Lets a distortion happen to the user's clips of a dialogue.

    Args:
        distortion: What happens.
        sample_rate: Hz of the clips.
    """

    distortion: Distortion
    sample_rate: int

    @property
    def keeps_length(self) -> bool:
        """Clips stay as long as they are, in every epoch."""
        return self.distortion.keeps_length

    def __call__(self, item: CorpusItem, seed: int, epoch: int) -> CorpusItem:
        """The dialogue as it is heard in an epoch; nothing is read.

        Args:
            item: The dialogue as it was recorded.
            seed: Of all that is drawn.
            epoch: Passes over the dialogues before this one.
        """
        turns = [
            turn if turn.clip is None else self._heard(turn, turn.clip, seed, f"{epoch}/{item.id}/{i}")
            for i, turn in enumerate(item.turns)
        ]
        return replace(item, turns=tuple(turns))

    def _heard(self, turn: SpokenTurn, clip: Clip, seed: int, name: str) -> SpokenTurn:
        settled = self.distortion
        if not settled.keeps_length:
            settled = settled.settle(sample_rng(seed, f"length/{name}"))
        load = _Distorted(clip.load, settled, self.sample_rate, seed, f"sound/{name}")
        return replace(turn, clip=Clip(settled.num_samples(clip.num_samples), load))


@dataclass(frozen=True)
class _Distorted:
    """Reads a clip and lets something happen to it."""

    load: Callable[[], np.ndarray]
    distortion: Distortion  # settled
    sample_rate: int
    seed: int
    name: str

    def __call__(self) -> np.ndarray:
        samples = self.load()
        scale = 1 / 32768 if samples.dtype == np.int16 else 1.0
        audio = samples.astype(np.float32) * np.float32(scale)
        return self.distortion(audio, self.sample_rate, sample_rng(self.seed, self.name))


class AugmentedPlanner(RowPlanner):
    """Plans rows whose clips are augmented anew at every pass over the source.

    Where clips that became longer would push turns out of every line, a dialogue is taken as it was recorded: nothing
    is left out that is not left out without augmentation.

    Args:
        source: Dialogues.
        budget: Of a line.
        context_turns: Turns shown again before each part of a dialogue that is too long for a line.
        augmentation: What happens to the clips.
    """

    def __init__(self, source: RowSource, budget: Budget, context_turns: int, augmentation: Augmentation) -> None:
        super().__init__(source, budget, context_turns)
        self.augmentation = augmentation

    def plan(self, index: int, seed: int, epoch: int, way: float) -> Sequence[RowPart]:
        """Rows that a dialogue becomes in an epoch, with the lengths that its clips have then."""
        recorded, take = super().plan(index, seed, epoch, way), (seed, epoch)
        if not recorded or self.augmentation.keeps_length:
            return [part._replace(take=take) for part in recorded]
        mode = recorded[0].mode
        parts, left_out = self._split(self.augmentation(self.source.sketch(index), *take), mode)
        if left_out and left_out > self.split(index, mode)[1]:
            return recorded
        return [part._replace(take=take) for part in parts]

    def _item(self, index: int, part: RowPart, sketch: bool) -> CorpusItem:
        item = super()._item(index, part, sketch)
        return item if part.take is None else self.augmentation(item, *part.take)


def refuse_remembering(model: nn.Module) -> None:
    """Refuse a model that keeps the features of every clip it hears.

    Raises:
        ValueError: It does. Clips that never come again would fill memory or disk, and be looked up never.
    """
    for name, part in model.named_modules():
        if isinstance(part, SpeechEncoder) and part.remembers:
            raise ValueError(
                f"data.augment changes the users' speech anew every epoch, and {name or 'the model'} is a "
                f"{type(part).__name__}, which keeps the features of every clip: they would never be asked for again. "
                "Use the encoder inside it alone, or leave augment out"
            )
