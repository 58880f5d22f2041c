"""Plans: which rows a dialogue becomes and what they take of a line, known before anything is read or laid out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fac_lightning.data.layout import Cost, Passage, Row, fit_mode, lay_out_line
from fac_lightning.data.mixing import draw_rows
from fac_lightning.data.packing import Budget
from fac_lightning.data.row_source import NEED_USER_TEXT, CorpusItem, RowSource
from fac_lightning.data.splitting import TurnSpan, split_turns

__all__ = ["RowPart", "RowPlan", "RowPlanner", "plan_rows"]

MAX_REMEMBERED = 2_000_000  # dialogues of a source whose parts are kept in memory


class RowPart(NamedTuple):
    """A row that a dialogue becomes in one mode."""

    mode: str
    span: TurnSpan | None  # None for the whole dialogue
    cost: Cost
    take: tuple[int, int] | None = None  # seed and epoch by which its clips are augmented; None: as recorded


class RowPlan(NamedTuple):
    """A row to be."""

    place: int  # of its draw in the endless sequence
    number: int  # among the rows of its draw
    source: int
    row: int  # dialogue of the source
    part: RowPart

    @property
    def id(self) -> str:
        """For messages."""
        return f"{self.row} of source {self.source}"

    @property
    def cost(self) -> Cost:
        """What it takes of a line."""
        return self.part.cost


class RowPlanner:
    """Plans the rows of a source and lays them out; costs are found once for each dialogue and mode.

    Args:
        source: Dialogues.
        budget: Of a line.
        context_turns: Turns shown again before each part of a dialogue that is too long for a line.
    """

    def __init__(self, source: RowSource, budget: Budget, context_turns: int = 0) -> None:
        if context_turns < 0:
            raise ValueError(f"context_turns must not be negative, got {context_turns}; 0 shows nothing again")
        self.source, self.budget, self.context_turns = source, budget, context_turns
        self._parts: dict[tuple[int, str], tuple[RowPart, ...]] = {}
        self._served: dict[int, dict[str, str]] = {}
        self._kinds: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}  # few; dialogues share them

    def __getstate__(self) -> dict[str, object]:
        """Without what is remembered: worker processes lay out and do not plan."""
        return {**self.__dict__, "_parts": {}, "_served": {}, "_kinds": {}}

    def plan(self, index: int, seed: int, epoch: int, way: float) -> Sequence[RowPart]:
        """Rows that a dialogue becomes in an epoch; none where it serves no mode or fits no line."""
        source = self.source
        served = self._served.get(index)
        if served is None:
            found = source.served(source.sketch(index))
            served = self._kinds.setdefault(tuple(found.items()), found)
            self._remember(self._served, index, served)
        if len(served) == 1 and source.schedule is None:
            mode: str | None = next(iter(served.values()))
        else:
            mode = source.draw_mode(source.sketch(index), seed, epoch, way, served)
        return () if mode is None else self.parts(index, mode)

    def parts(self, index: int, mode: str) -> tuple[RowPart, ...]:
        """Rows of a dialogue in a mode that it serves, those alone that fit a line."""
        parts = self._parts.get((index, mode))
        if parts is None:
            parts = self.split(index, mode)[0]
            self._remember(self._parts, (index, mode), parts)
        return parts

    def split(self, index: int, mode: str) -> tuple[tuple[RowPart, ...], int]:
        """Rows of a dialogue in a mode that it serves, and the number of turns that no line takes."""
        return self._split(self.source.sketch(index), mode)

    def _split(self, item: CorpusItem, mode: str) -> tuple[tuple[RowPart, ...], int]:
        whole = self.source.lay_out(item, mode).cost
        if self.budget.takes(whole):
            return (RowPart(mode, None, whole),), 0
        # ASR and TTS ask turn by turn, nothing before matters
        context = 0 if mode in ("ASR", "TTS") else self.context_turns

        def cost(span: TurnSpan) -> Cost | None:
            passage = self._passage(item, mode, span)
            return None if passage is None else self._lay_out(passage).cost

        spans, left_out = split_turns(item.turns, cost, self.budget.takes, context)
        return tuple(RowPart(mode, span, found) for span in spans if (found := cost(span))), left_out

    def passage(self, index: int, part: RowPart, sketch: bool = False) -> Passage:
        """What of a dialogue becomes a row; with ``sketch`` with codes that are stand-ins."""
        passage = self._passage(self._item(index, part, sketch), part.mode, part.span)
        assert passage is not None
        return passage

    def row(self, index: int, part: RowPart, sketch: bool = False) -> Row:
        """A row laid out; with ``sketch`` with codes that are stand-ins."""
        return self._lay_out(self.passage(index, part, sketch))

    def _item(self, index: int, part: RowPart, sketch: bool) -> CorpusItem:
        """The dialogue of a row."""
        return self.source.sketch(index) if sketch else self.source.item(index)

    def _passage(self, item: CorpusItem, mode: str, span: TurnSpan | None) -> Passage | None:
        """Some turns in the mode nearest to ``mode`` that they serve."""
        if span is None:
            return self.source.passage(item, mode)
        fitted = fit_mode(mode, item.turns[span.context : span.last])
        if fitted is None or (item.unwritten and fitted in NEED_USER_TEXT):
            return None
        return self.source.passage(item, fitted, span.first, span.last, span.context)

    def _lay_out(self, passage: Passage) -> Row:
        source = self.source
        return lay_out_line([passage], source.chat, source.geometry, source.reply)[0]

    @staticmethod
    def _remember(memory: dict, key: object, value: object) -> None:  # type: ignore[type-arg]
        if len(memory) >= MAX_REMEMBERED:
            memory.clear()
        memory[key] = value


def plan_rows(
    planners: Sequence[RowPlanner],
    shares: Sequence[float],
    seed: int,
    shard: int = 0,
    num_shards: int = 1,
    start: int = 0,
) -> Iterator[RowPlan]:
    """Plans without end, of sources drawn by their shares; see ``draw_rows``.

    A draw is one dialogue and gives as many rows as it is split into. Dialogues that serve no mode or fit no line give
    none. A schedule of modes goes by passes over the dialogue's own source, whatever the number of shards.
    """
    seeds = [seed + (number << 32) for number in range(len(planners))]  # of its own for each source
    orders = [_order(planner.source, own) for planner, own in zip(planners, seeds, strict=True)]
    sizes = [len(planner.source) for planner in planners]
    for draw in draw_rows(orders, sizes, shares, seed, shard, num_shards, start):
        place, source, index, epoch, way = draw
        for number, part in enumerate(planners[source].plan(index, seeds[source], epoch, way)):
            yield RowPlan(place, number, source, index, part)


def _order(source: RowSource, seed: int):  # type: ignore[no-untyped-def]
    return lambda epoch: source.order(seed, epoch)
