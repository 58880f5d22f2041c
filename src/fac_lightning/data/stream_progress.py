"""How far a run has come in its stream: a few integers that a checkpoint keeps, and what may change on resuming."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Literal

import torch

from fac_lightning.data.stream import PlannedWindow, StreamPlace
from fac_lightning.weights import CheckpointError

__all__ = ["StreamProgress", "recipe_hash", "refuse_changes"]

log = logging.getLogger(__name__)


class StreamProgress:
    """Counts the windows that are planned, to know the place behind those that were trained on."""

    def __init__(self) -> None:
        self.start = StreamPlace()  # of the running iteration
        self.batches = 0  # that the trainer had counted there
        self.seen = 0  # draws that planning had looked at there
        self._planned: deque[PlannedWindow] = deque()
        self._dropped = 0  # planned windows that are long done
        self._anew = False  # restored with other windows: the batches of the checkpoint are not whole ones of these

    def begin(self, batches: int, window: int) -> StreamPlace:
        """Where an iteration begins when the trainer has counted ``batches``."""
        self.seen, self.start = self.reached(batches, window)[1], self.place(batches, window)
        self.batches, self._anew = batches, False
        self._planned.clear()
        self._dropped = 0
        return self.start

    def follow(self, windows: Iterator[PlannedWindow]) -> Iterator[PlannedWindow]:
        """Pass planned windows on, and remember them."""
        for window in windows:
            self._planned.append(window._replace(lines=[]))
            yield window

    def place(self, batches: int, window: int) -> StreamPlace:
        """Place behind the last whole window of ``batches``."""
        return self.reached(batches, window)[0]

    def reached(self, batches: int, window: int) -> tuple[StreamPlace, int]:
        """Place behind the last whole window of ``batches``, and the draws that were looked at on the way there."""
        done = 0 if self._anew else (batches - self.batches) // window
        while self._planned and self._dropped < done - 1:
            self._planned.popleft()
            self._dropped += 1
        if done == 0:
            return self.start, self.seen
        if not self._planned:  # nobody iterated in this process: the stream is planned again anyway
            start = self.start
            return StreamPlace(start.virtual_epoch, start.windows + done, start.draw, start.number), self.seen
        last = self._planned[0]
        return StreamPlace(last.virtual_epoch, last.number + 1, *last.begin), last.seen

    def state(self, batches: int, window: int, settings: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint keeps; to be called by all processes."""
        place, seen = self.reached(batches, window)
        mine = [place.draw, place.number, seen]
        ranks = [mine]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks = [[]] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(ranks, mine)
        return {
            "virtual_epoch": place.virtual_epoch,
            "windows": place.windows,
            "batches": batches - (batches - (0 if self._anew else self.batches)) % window,
            "ranks": ranks,  # draw and row with which the virtual epoch began, draws looked at
            "accumulate_grad_batches": window,
            "settings": settings,
            "hash": recipe_hash(settings),
        }

    def restore(self, state: dict[str, Any], rank: int, ranks: int, window: int) -> None:
        """Go on where a checkpoint was; with other processes or accumulation with the next virtual epoch."""
        then = (len(state["ranks"]), state["accumulate_grad_batches"])
        self.__init__()  # type: ignore[misc]
        self.batches = state["batches"]
        if then == (ranks, window):
            draw, number, self.seen = state["ranks"][rank]
            self.start = StreamPlace(state["virtual_epoch"], state["windows"], draw, number)
            return
        self._anew, self.seen = True, max(seen for _, _, seen in state["ranks"])
        self.start = StreamPlace(state["virtual_epoch"] + 1, 0, self.seen, 0)
        log.warning(
            "The checkpoint is of %d process(es) with %d line(s) a step, this run has %d with %d: it goes on with "
            "virtual epoch %d behind all data that were looked at; rows that waited in open lines are left out of this "
            "pass.",
            *then,
            ranks,
            window,
            self.start.virtual_epoch,
        )


def recipe_hash(settings: dict[str, Any]) -> str:
    """Short name of all that a stream depends on."""
    text = "\n".join(f"{key}={settings[key]}" for key in sorted(settings))
    return blake2b(text.encode(), digest_size=8).hexdigest()


def refuse_changes(state: dict[str, Any], now: dict[str, Any], policy: Literal["refuse", "continue"]) -> None:
    """Compare the recipe of a stream with that of a checkpoint.

    Raises:
        CheckpointError: They differ and the policy is to refuse; the message says in what.
    """
    then = state.get("settings")
    if then is None:
        raise CheckpointError(
            "the checkpoint was written by an earlier version, which did not say how far the training data had come; "
            "begin a run from its weights (init_from) instead"
        )
    if state["hash"] == recipe_hash(now):
        return
    changed = [key for key in sorted({*then, *now}) if str(then.get(key)) != str(now.get(key))]
    diff = "; ".join(f"{key}: {then.get(key)} -> {now.get(key)}" for key in changed)
    if policy == "refuse":
        raise CheckpointError(
            f"the training data are not those of the checkpoint, so the run cannot go on exactly ({diff}). Put that "
            "back, begin a run from the weights (init_from), or set data.resume_changed to 'continue'"
        )
    log.warning(
        "The training data are not those of the checkpoint (%s): the run goes on at the same number of steps, and rows "
        "may come again or be missed.",
        diff,
    )
