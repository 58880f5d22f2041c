"""``fac bench serve``: many answers at once beside one after another.

Questions of 2 to 6.4 s of speech, answers of 25 groups, greedy. One after another is ``Generator``, a turn at a time;
every answer that the engine gives is compared with it, token by token and code by code.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial

import torch

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell, Trial
from fac_lightning.bench.conversations import TRAIN_SHAPES, make_conversations
from fac_lightning.bench.generate import GROUPS, ask, seconds_to_compile
from fac_lightning.bench.runner import timer_of
from fac_lightning.bench.sizes import BenchSizes
from fac_lightning.generation import Decoding, Generator, Reply, SpeechEngine, SpeechRequest, UserTurn

__all__ = ["STREAMS", "ServeBenchmark"]

#: answers of a cell, and the most that are given at once
STREAMS = 16
ONE_BY_ONE = "one after another"
RELEASED_ALONE = "released head, one after another"
#: an answer begins every so many steps of the engine on average, in the cell with arrivals by chance
STEPS_BETWEEN_ARRIVALS = 2.0


class ServeBenchmark(Benchmark):
    """16 answers: one after another, 4 and 16 at once, 16 without packed weights, and as they arrive by chance.

    One after another and 16 at once also with the released model's head, which reads the whole row.
    """

    name = "serve"
    summary = "16 answers at once beside one after another"
    takes = frozenset({"compiled"})

    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        """See ``Benchmark.cells``."""
        cells = [
            Cell(ONE_BY_ONE, partial(_alone, settings)),
            Cell("1 slot", partial(_together, settings, 1)),
            Cell("4 at once", partial(_together, settings, 4)),
            Cell("16 at once", partial(_together, settings, 16)),
            Cell("16, weights not packed", partial(_together, settings, 16, pack_weights=False)),
            Cell("16 slots, by chance", partial(_together, settings, 16, by_chance=True)),
            Cell(RELEASED_ALONE, partial(_alone, settings, released=True)),
            Cell("released head, 16 at once", partial(_together, settings, 16, released=True)),
        ]
        if settings.compiled:
            cells.append(Cell("16 at once, compiled", partial(_together, settings, 16, compiled=True)))
        return cells

    def findings(self, report: BenchReport) -> Mapping[str, float]:
        """Throughput beside one after another, and the share of answers that are identical."""
        together = [cell.name for cell in report.cells if cell.name not in (ONE_BY_ONE, RELEASED_ALONE)]
        found = {}
        for name in together:
            alone = RELEASED_ALONE if name.startswith("released") else ONE_BY_ONE
            found[f"throughput, {name} / {alone}"] = report.ratio(alone, name)
        found["16 at once / 1 slot"] = report.ratio("1 slot", "16 at once")
        found["identical answers"] = min(report[name].values["identical"] for name in together)
        return found


def _questions(sizes: BenchSizes) -> tuple[list[UserTurn], str]:
    asked = make_conversations(sizes, STREAMS, TRAIN_SHAPES)
    return [UserTurn(audio=torch.from_numpy(each.audio)) for each in asked], asked[0].system


def _work(sizes: BenchSizes) -> dict[str, float]:
    return {"groups": float(STREAMS * GROUPS), "audio_s": STREAMS * GROUPS * sizes.group_size / sizes.frame_rate}


def _alone(settings: BenchSettings, released: bool = False) -> Trial:
    sizes, model, chat = ask(settings, released)
    turns, system = _questions(sizes)
    generator = Generator(model, chat, system_prompts={"S2M": system})
    decoding = Decoding(max_positions=GROUPS)

    def answer() -> None:
        for turn in turns:
            generator.generate([turn], "S2M", decoding)

    return Trial(answer, _work(sizes), count_flops=False, count_memory=False)


@lru_cache(maxsize=2)
def _answers_alone(settings: BenchSettings, released: bool) -> list[Reply]:
    sizes, model, chat = ask(settings, released)
    turns, system = _questions(sizes)
    generator, decoding = Generator(model, chat, system_prompts={"S2M": system}), Decoding(max_positions=GROUPS)
    return [generator.generate([turn], "S2M", decoding)[0] for turn in turns]


def _together(
    settings: BenchSettings,
    slots: int,
    pack_weights: bool = True,
    by_chance: bool = False,
    released: bool = False,
    compiled: bool = False,
) -> Trial:
    sizes, model, chat = ask(settings, released)
    turns, system = _questions(sizes)
    prompts, decoding = {"S2M": system}, Decoding(max_positions=GROUPS)
    engine = SpeechEngine(
        model, chat, num_slots=slots, system_prompts=prompts, pack_weights=pack_weights, compile_step=compiled
    )
    clock = timer_of(settings)
    steps: list[float] = []
    said: list[list[Reply | None]] = []

    def answer() -> None:
        engine.forget_prefixes()
        chance, coming, requests = random.Random(0), list(turns), list[SpeechRequest]()
        due, step = 0.0, 0
        while coming or engine.running or engine.waiting:
            while coming and (not by_chance or due <= step):
                requests.append(engine.submit(coming.pop(0), "S2M", decoding))
                due += chance.expovariate(1 / STEPS_BETWEEN_ARRIVALS)
            start = clock()
            engine.step()
            steps.append(clock() - start)
            step += 1
        said.append([request.reply for request in requests])

    once: dict[str, float] = {}
    if compiled:
        once["first answers s"] = seconds_to_compile(answer, steps)

    def values() -> dict[str, float]:
        want = _answers_alone(settings, released)
        same = [_identical(one, other) for replies in said for one, other in zip(replies, want, strict=True)]
        ordered = sorted(steps)
        told = {"step p50 ms": 1000 * statistics.median(ordered), "p95 ms": 1000 * ordered[int(0.95 * len(ordered))]}
        return told | {"identical": sum(same) / len(same)} | once

    return Trial(answer, _work(sizes), values, count_flops=False, count_memory=False)


def _identical(one: Reply | None, other: Reply) -> bool:
    assert one is not None
    assert one.codes is not None
    assert other.codes is not None
    return one.text_ids == other.text_ids and torch.equal(one.codes, other.codes) and one.finished == other.finished
