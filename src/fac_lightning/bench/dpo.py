"""``fac bench dpo``: a step of preference training on four pairs of answers.

The learning rate is 0: a step costs what it costs, and all cells keep having the loss of the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell, Trial
from fac_lightning.bench.conversations import Conversation, lay_out_conversation, make_conversations
from fac_lightning.bench.plain import padded_row
from fac_lightning.bench.sizes import build_model, sizes_of
from fac_lightning.bench.words import WordTokenizer
from fac_lightning.data.preference_rows import AnswerRow, PairCollator, PairRows, weigh_answer
from fac_lightning.losses import JointStreams, NormalizedDPOLoss
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ChatFormat
from fac_lightning.tasks import FrozenReference, PreferenceSettings, Reference, SpeechDPO, StoredReference
from fac_lightning.types import PreferenceBatch

__all__ = ["DpoBenchmark", "Way", "preference_batch"]


@dataclass(frozen=True)
class Way:
    """How pairs are put into a line, and where the reference comes from."""

    padded: bool = False  # every answer as long as the longest
    shared: bool = False  # the prompt of a pair once
    stored: bool = False  # the reference's log-probabilities come with the data


WAYS = {
    "prompt shared, stored reference": Way(shared=True, stored=True),
    "prompt shared, frozen reference": Way(shared=True),
    "packed, stored reference": Way(stored=True),
    "packed, frozen reference": Way(),
    "padded, frozen reference": Way(padded=True),
}


class DpoBenchmark(Benchmark):
    """Answers padded, packed, and behind a prompt that they share, with the reference stored or computed."""

    name = "dpo"
    summary = "a step of preference training: padded, packed, prompts shared; the reference stored or computed"

    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        """See ``Benchmark.cells``."""
        model = cache(lambda: build_model(sizes_of(settings.config), settings.device))
        optimizer = cache(lambda: torch.optim.AdamW(model().parameters(), lr=0.0, weight_decay=0.0, fused=True))
        frozen = cache(partial(_frozen, model))
        return [Cell(name, partial(_trial, way, model, optimizer, frozen, settings)) for name, way in WAYS.items()]

    def findings(self, report: BenchReport) -> Mapping[str, float]:
        """How much longer the plainest way takes than the shortest, and what each saving brings by itself."""
        shared, packed = "prompt shared, stored reference", "packed, stored reference"
        return {
            "padded, frozen / prompt shared, stored": report.ratio("padded, frozen reference", shared),
            "packed / prompt shared": report.ratio(packed, shared),
            "frozen / stored": report.ratio("packed, frozen reference", packed),
            "padded / packed": report.ratio("padded, frozen reference", "packed, frozen reference"),
        }


def preference_batch(model: SpeechLM, conversations: Sequence[Conversation], way: Way) -> PreferenceBatch:
    """Pairs whose rejected answer is that of the next conversation."""
    chat = ChatFormat(WordTokenizer(model.geometry.vocab_size))
    rejected = [
        replace(each, text=other.text, codes=other.codes)
        for each, other in zip(conversations, [*conversations[1:], conversations[0]], strict=True)
    ]

    def answer(conversation: Conversation) -> AnswerRow:
        row = lay_out_conversation(conversation, model.geometry)
        return weigh_answer(row, chat, model.geometry.codebook_size, 0.0)

    answers = [(answer(one), answer(two)) for one, two in zip(conversations, rejected, strict=True)]
    if way.padded:
        longest = max(len(each.row) for pair in answers for each in pair)
        answers = [(_padded(one, longest), _padded(two, longest)) for one, two in answers]
    pairs = [PairRows(f"pair-{i}", 0, 1.0, one, two, way.shared) for i, (one, two) in enumerate(answers)]
    return PairCollator(("default",), sum(map(len, pairs)), model.geometry.sample_rate)(pairs)


def _trial(
    way: Way,
    model: Callable[[], SpeechLM],
    optimizer: Callable[[], torch.optim.Optimizer],
    frozen: Callable[[], FrozenReference],
    settings: BenchSettings,
) -> Trial:
    batch = preference_batch(model(), make_conversations(sizes_of(settings.config)), way).to(settings.device)
    reference: Reference = frozen()
    if way.stored:
        batch, reference = replace(batch, reference=frozen()(model(), batch)), StoredReference()
    how = PreferenceSettings(NormalizedDPOLoss(), JointStreams())
    task = SpeechDPO(model(), {"default": how}, reference)
    task.train()

    def step() -> float:
        scores = task.scores(batch)
        loss = how.streams(how.loss, scores).mean() + task.sft_weight * scores.nll()[0].mean()
        loss.backward()
        optimizer().step()
        optimizer().zero_grad(set_to_none=True)
        return float(loss.detach())

    work = {"pairs": float(batch.num_pairs), "positions": float(batch.line.lengths.sum())}
    return Trial(step, work, lambda: {"loss": step()})


def _frozen(model: Callable[[], SpeechLM]) -> FrozenReference:
    made = FrozenReference()
    made.prepare(model())
    return made


def _padded(answer: AnswerRow, length: int) -> AnswerRow:
    extra = length - len(answer.row)
    weights = np.pad(answer.text_weights, (0, extra))
    return replace(answer, row=padded_row(answer.row, extra), text_weights=weights)
