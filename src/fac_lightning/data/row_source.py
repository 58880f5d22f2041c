"""Where rows come from: dialogues with an order, a mode for each, and a fingerprint; in memory or in shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from fac_lightning.data.layout import Passage, Row, SpokenTurn, fit_mode, lay_out_line
from fac_lightning.data.mode_schedule import ModeSchedule
from fac_lightning.prompts import MODES, ChatFormat
from fac_lightning.replies import FrameEnd, ReplyRule
from fac_lightning.types import SpeechGeometry

__all__ = ["CorpusItem", "RowSource"]

NEED_USER_TEXT = ("T2M", "T2T", "ASR")


@dataclass(frozen=True)
class CorpusItem:
    """One dialogue."""

    id: str
    turns: tuple[SpokenTurn, ...]
    system: str | None
    unwritten: bool = False  # a spoken user turn has no text, so no mode that needs it can be served


class RowSource(ABC):
    """Dialogues that become rows.

    A source of your own says how many dialogues there are, gives one by its number, and names its content; it may say
    in which order they are best read and how a dialogue looks before its codes are read. Modes and layout are here.

    Args:
        chat: Token ids.
        geometry: Sizes of the model; None for text alone.
        modes: Weight of each mode of ``prompts.MODES``, to begin with.
        system_prompts: Prompts that replace those of the modes.
        reply: How spoken replies lie; ``FrameEnd()`` when None.
        mode_schedule: How the weights change over the epochs; constant when None.

    Raises:
        ValueError: There is no such mode, or none has a positive weight.
    """

    def __init__(
        self,
        chat: ChatFormat,
        geometry: SpeechGeometry | None,
        modes: Mapping[str, float],
        system_prompts: Mapping[str, str] | None = None,
        reply: ReplyRule | None = None,
        mode_schedule: ModeSchedule | None = None,
    ) -> None:
        self.chat, self.geometry, self.reply = chat, geometry, reply or FrameEnd()
        self.start = {mode: float(weight) for mode, weight in modes.items() if weight > 0}
        self.schedule = mode_schedule
        later = mode_schedule.modes if mode_schedule is not None else ()
        self.modes = tuple(dict.fromkeys([*self.start, *later]))  # all that may ever be drawn
        self.system_prompts = dict(system_prompts or {})
        if unknown := sorted((modes.keys() | self.system_prompts.keys() | set(self.modes)) - MODES.keys()):
            raise ValueError(f"unknown modes {', '.join(unknown)}; choose from {', '.join(MODES)}")
        if not self.start:
            raise ValueError(f"modes gives no mode a positive weight: {dict(modes)}")

    @abstractmethod
    def __len__(self) -> int:
        """Dialogues."""

    @abstractmethod
    def item(self, index: int) -> CorpusItem:
        """Dialogue ``index`` with its texts and codes; the users' clips are read when a line needs them."""

    def sketch(self, index: int) -> CorpusItem:
        """Dialogue ``index`` as packing plans with it: codes of the right shape, whatever is in them.

        Planning goes over every dialogue and, when a run is resumed, over those that were seen already; a source that
        reads codes from a disk gives stand-ins here, such as ``np.broadcast_to(np.int16(0), (frames, codebooks))``.
        """
        return self.item(index)

    @abstractmethod
    def fingerprint(self) -> str:
        """Name of the content: the dialogues in their order and all that their rows depend on, but for settings."""

    def describe(self) -> dict[str, float]:
        """Counts of what is there."""
        return {"dialogues": len(self)}

    def order(self, seed: int, epoch: int) -> Iterator[int]:
        """Every index once, in an order of this epoch's own.

        A source in shards goes through them one after the other, or a few at a time, so that reading stays local.
        """
        return iter(np.random.default_rng([seed, epoch]).permutation(len(self)).tolist())

    def served(self, item: CorpusItem) -> dict[str, str]:
        """For each mode that may be drawn, the nearest that a dialogue can serve; modes without one are left out."""
        fitted = {mode: fit_mode(mode, item.turns) for mode in self.modes}
        return {m: fit for m, fit in fitted.items() if fit and not (item.unwritten and fit in NEED_USER_TEXT)}

    def draw_mode(
        self, item: CorpusItem, seed: int, epoch: int, place: float = 0.0, served: Mapping[str, str] | None = None
    ) -> str | None:
        """The mode of a dialogue in an epoch, by weight; None when it can serve no mode. Depends on nothing else.

        Args:
            item: The dialogue.
            seed: Of the draw.
            epoch: Passes over the source before this one.
            place: How far this one has come at the dialogue, from 0 to 1, or infinity for the end of all
                training: schedules look at it.
            served: What ``served`` gives for the dialogue, where the caller knows it.
        """
        served = self.served(item) if served is None else served
        weights = self.start if self.schedule is None else self.schedule.weights(self.start, epoch + place)
        drawn = [(fit, weights.get(mode, 0.0)) for mode, fit in served.items() if weights.get(mode, 0.0) > 0]
        if not drawn:
            return None
        if len(drawn) == 1:
            return drawn[0][0]
        ticket = int.from_bytes(blake2b(f"{seed}/{epoch}/{item.id}".encode(), digest_size=7).digest()) / 2**56
        ticket *= sum(weight for _, weight in drawn)
        for mode, weight in drawn[:-1]:
            if ticket < weight:
                return mode
            ticket -= weight
        return drawn[-1][0]

    def row(self, index: int, seed: int, epoch: int, place: float = 0.0) -> Row | None:
        """Dialogue ``index`` laid out in the mode drawn (``draw_mode``); None when it can serve no mode."""
        item = self.item(index)
        mode = self.draw_mode(item, seed, epoch, place)
        return None if mode is None else self.lay_out(item, mode)

    def passage(
        self, item: CorpusItem, mode: str, first: int = 0, last: int | None = None, context: int | None = None
    ) -> Passage:
        """What of a dialogue becomes a row, in a mode that it serves.

        Args:
            item: The dialogue.
            mode: One of those that ``served`` gives, for the turns.
            first: First turn that is learned.
            last: One behind the last; to the end when None.
            context: First turn that is shown; that which is learned when None.
        """
        begin = first if context is None else context
        system = item.system if item.system is not None else self.system_prompts.get(mode)
        whole = begin == 0 and last is None
        name, turns = (item.id, item.turns) if whole else (f"{item.id}#{first}", item.turns[begin:last])
        return Passage(name, turns, mode, system, first - begin)

    def lay_out(self, item: CorpusItem, mode: str) -> Row:
        """A dialogue laid out in a mode that it serves."""
        return lay_out_line([self.passage(item, mode)], self.chat, self.geometry, self.reply)[0]
