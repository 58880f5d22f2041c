"""Splitting: a dialogue that is too long for a line becomes several rows, cut between turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fac_lightning.data.layout import Cost, SpokenTurn

__all__ = ["TurnSpan", "split_turns"]


class TurnSpan(NamedTuple):
    """The turns of one part of a dialogue."""

    context: int  # first turn that is shown
    first: int  # first turn that is learned
    last: int  # one behind the last


def split_turns(
    turns: Sequence[SpokenTurn],
    cost: Callable[[TurnSpan], Cost | None],
    takes: Callable[[Cost], bool],
    context_turns: int = 0,
) -> tuple[list[TurnSpan], int]:
    """Cut a dialogue into parts that fit, each as long as it can be.

    A part begins with a turn of the user that answers something (or with the dialogue) and ends before another; with
    context it is shown up to so many turns before it, from a user's turn on, as far as they fit.

    Args:
        turns: The dialogue.
        cost: What a part takes; None where it serves no mode.
        takes: Whether so much fits into a line.
        context_turns: Turns shown again before each part but the first.

    Returns:
        The parts, and the number of turns that are left out because no line takes them with the turns that they
        belong to.
    """
    begins = [i for i, turn in enumerate(turns) if i == 0 or (turn.role == "user" and turns[i - 1].role != "user")]
    ends = [*begins[1:], len(turns)]

    def fits(span: TurnSpan) -> bool:
        found = cost(span)
        return found is not None and takes(found)

    parts: list[TurnSpan] = []
    left_out = block = 0
    while block < len(begins):
        first = begins[block]
        shown = [begin for begin in begins[:block] if first - begin <= context_turns]
        part = next((span for c in [*shown, first] if fits(span := TurnSpan(c, first, ends[block]))), None)
        block += 1
        if part is None:
            left_out += ends[block - 1] - first
            continue
        while block < len(begins) and fits(longer := part._replace(last=ends[block])):
            part, block = longer, block + 1
        parts.append(part)
    return parts, left_out
