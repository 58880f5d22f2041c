"""``fac bench generate``: one spoken answer, and how soon it begins.

The question is 4 s of speech behind a system prompt that brings the whole to 77 or to 320 positions. The answer is
greedy and has 25 groups; it is an error when random weights end it before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell, Trial
from fac_lightning.bench.conversations import PROMPT_WORDS, Conversation, make_conversations
from fac_lightning.bench.implementation import load_implementation, synchronize
from fac_lightning.bench.runner import timer_of
from fac_lightning.bench.sizes import BenchSizes, build_model, sizes_of
from fac_lightning.bench.words import WordTokenizer
from fac_lightning.generation import Decoding, Generator, SpeechEngine, UserTurn
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ChatFormat

__all__ = ["GROUPS", "GenerateBenchmark", "ask", "question"]

#: groups of an answer: 5 s of speech
GROUPS = 25
#: words of a system prompt that bring a prompt to 300 positions beside its speech
LONG_PROMPT = 286
QUESTION = (20, GROUPS)  # groups heard and said


class GenerateBenchmark(Benchmark):
    """One answer of 5 s by the engine, plain, composed and on a GPU captured, by ``Session``, and by others."""

    name = "generate"
    summary = "one spoken answer: prompt, first group, milliseconds a group"
    takes = frozenset({"compiled"})

    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        """See ``Benchmark.cells``."""
        ways: dict[str, Callable[[SpeechLM, ChatFormat, str], _Way]] = {
            "session": _Session,
            "engine": partial(_Engine, pack_weights=True),
            "engine, weights not packed": partial(_Engine, pack_weights=False),
        }
        if torch.device(settings.device).type == "cuda":
            ways["engine, captured"] = partial(_Engine, cuda_graph=True)
            ways["engine, compiled and captured"] = partial(_Engine, cuda_graph=True, compile_step=True)
        made = [
            Cell(f"{way}{tail}", partial(_trial, kind, settings, words))
            for words, tail in ((PROMPT_WORDS, ""), (LONG_PROMPT, ", prompt 300"))
            for way, kind in ways.items()
        ]
        made.append(Cell("engine, composed", partial(_trial, partial(_Engine, compose=True), settings, PROMPT_WORDS)))
        if settings.compiled:
            way = partial(_Engine, compile_step=True)
            made.append(Cell("engine, compiled", partial(_trial, way, settings, PROMPT_WORDS, compiles=True)))
        for word in settings.implementations:
            name, other = load_implementation(word)
            made.append(Cell(name, partial(_other_trial, other, settings)))
        return made

    def findings(self, report: BenchReport) -> Mapping[str, float]:
        """How much faster the engine is than ``Session``, as a whole and to the first group."""
        found = {}
        for tail in ("", ", prompt 300"):
            slow, fast = f"session{tail}", f"engine{tail}"
            found[f"session / engine{tail}"] = report.ratio(slow, fast)
            first = report[slow].values["first ms"] / report[fast].values["first ms"]
            found[f"session / engine to the first group{tail}"] = first
        if report.settings.compiled:
            found["engine / compiled"] = report.ratio("engine", "engine, compiled")
        return found


def question(sizes: BenchSizes, prompt_words: int = PROMPT_WORDS) -> Conversation:
    """What all are asked: 4 s of speech."""
    return make_conversations(sizes, 1, (QUESTION,), prompt_words)[0]


def seconds_to_compile(answer: Callable[[], None], *measured: list[float]) -> float:
    """Seconds of the first answers, by the time of day: compilers are processes of their own; forgets ``measured``."""
    start = time.perf_counter()
    answer()
    seconds = time.perf_counter() - start
    for one in measured:
        one.clear()
    return seconds


def ask(settings: BenchSettings, released: bool = False) -> tuple[BenchSizes, SpeechLM, ChatFormat]:
    """Sizes, a model in eval mode, if asked with the head of the released one, and its chat format."""
    sizes = sizes_of(settings.config)
    model = build_model(sizes, settings.device, released=released).eval()
    return sizes, model, ChatFormat(WordTokenizer(sizes.vocab_size))


@dataclass
class _Way:
    """One way to answer: says chunk after chunk."""

    model: SpeechLM
    chat: ChatFormat
    system: str
    decoding: Decoding = field(default_factory=lambda: Decoding(max_positions=GROUPS))

    def chunks(self, audio: Tensor) -> Any:
        """An iterator over what is said; the last is the whole."""
        raise NotImplementedError


@dataclass
class _Session(_Way):
    def chunks(self, audio: Tensor) -> Any:
        session = Generator(self.model, self.chat).session("S2M", self.system, self.decoding)
        return session.stream(audio=audio)


@dataclass
class _Engine(_Way):
    pack_weights: bool = True
    compose: bool = False
    compile_step: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        self.engine = SpeechEngine(
            self.model,
            self.chat,
            num_slots=1,
            capacity=512 if self.cuda_graph or self.compile_step else 128,  # enough for both prompts
            system_prompts={"S2M": self.system},
            pack_weights=self.pack_weights,
            compose=self.compose,
            compile_step=self.compile_step,
            cuda_graph=self.cuda_graph,
        )

    def chunks(self, audio: Tensor) -> Any:
        self.engine.forget_prefixes()  # its prompt is read anew, as in a first call
        self.engine.submit(UserTurn(audio=audio), "S2M", self.decoding)
        return (said.chunk for said in self.engine.run())


def _trial(
    kind: Callable[[SpeechLM, ChatFormat, str], _Way],
    settings: BenchSettings,
    prompt_words: int,
    compiles: bool = False,
) -> Trial:
    sizes, model, chat = ask(settings)
    asked = question(sizes, prompt_words)
    way, audio = kind(model, chat, asked.system), torch.from_numpy(asked.audio)
    clock = timer_of(settings)
    first: list[float] = []
    steps: list[float] = []

    def answer() -> None:
        last, groups = clock(), 0
        for chunk in way.chunks(audio):
            if chunk.reply is None:
                synchronize(settings.device)
                now = clock()
                (steps if groups else first).append(now - last)
                last, groups = now, groups + 1
        if groups != GROUPS or chunk.reply.codes.shape[0] != GROUPS * sizes.group_size:
            raise ValueError(f"the answer has {groups} positions and {len(chunk.reply.codes)} codes: it ended early")

    once: dict[str, float] = {}
    if compiles:
        once["first answer s"] = seconds_to_compile(answer, first, steps)

    def values() -> dict[str, float]:
        ordered = sorted(steps)
        seconds = GROUPS * sizes.group_size / sizes.frame_rate
        told = {"first ms": 1000 * statistics.median(first), "group ms": 1000 * statistics.median(ordered)}
        told["p95 ms"] = 1000 * ordered[int(0.95 * len(ordered))]
        return told | {"RTF": told["group ms"] * GROUPS / 1000 / seconds} | once

    return Trial(answer, _work(sizes), values, count_flops=False, count_memory=False)


def _other_trial(other: Any, settings: BenchSettings) -> Trial:
    sizes = sizes_of(settings.config)
    other.build(sizes, settings.device)
    asked = question(sizes)
    return Trial(lambda: other.generate(asked, GROUPS), _work(sizes), count_flops=False, count_memory=False)


def _work(sizes: BenchSizes) -> dict[str, float]:
    return {"groups": float(GROUPS), "audio_s": GROUPS * sizes.group_size / sizes.frame_rate}
