"""``fac bench data``: packed lines out of shards, from flac and from codes, beside plain lhotse on the same files.

All is generated in a temporary folder: dialogues of two rounds, 6 s of question and 12 s of answer on average. What is
timed is the work of one data worker, one thread, as in its first epoch: a pass over all shards up to finished batches,
nothing known from a pass before. Shards hold token ids of their texts; a cell of its own tokenises the texts instead.
Plans of lines are made by the process that trains and are cells of their own. Plain lhotse reads the same tars in
sequence and pads batches of the same number of dialogues; it lays out no text.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell, Trial
from fac_lightning.data.dialogue import Dialogue, DialogueWriter, Turn
from fac_lightning.data.lhotse_setup import import_lhotse
from fac_lightning.data.packing import Budget
from fac_lightning.data.row_plans import RowPlanner
from fac_lightning.data.shards import DialogueSharding, ShardCorpus
from fac_lightning.data.stream import LineStream
from fac_lightning.data.text import CachedChatFormat
from fac_lightning.data.turn_codes import TurnCodes
from fac_lightning.text_tokenizer import load_text_tokenizer, train_text_tokenizer
from fac_lightning.types import SpeechGeometry

__all__ = ["DataBenchmark", "speech_like"]

RATE, FRAME_RATE, CODEBOOK = 16000, 25.0, 6561
QUESTION, ANSWER, ROUNDS = 6.0, 12.0, 2  # seconds on average; rounds of a dialogue
WORDS_PER_SECOND = 2.5
VOCABULARY = 1000
CAPACITY = 2048
PER_BATCH = 16  # dialogues that plain lhotse pads together; about what a line holds
SHARDS = 6
#: dialogues of a shard with flac, and of one with codes alone
SIZES = {"tiny": (12, 150)}
OTHER_SIZES = (100, 1000)


class DataBenchmark(Benchmark):
    """Batches of one worker: users' flac, and replies as stored codes."""

    name = "data"
    summary = "packed lines out of shards, from flac and from codes, beside plain lhotse on the same files"

    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        """See ``Benchmark.cells``."""
        world = cache(partial(_World, *SIZES.get(settings.config, OTHER_SIZES)))
        return [
            Cell("flac: ours", lambda: world().packed("flac", "S2T")),
            Cell("flac: lhotse", lambda: world().padded("flac", "recording")),
            Cell("codes: ours", lambda: world().packed("codes", "T2M")),
            Cell("codes: ours, from texts", lambda: world().packed("codes", "T2M", texts=True)),
            Cell("codes: lhotse", lambda: world().padded("codes", "codes")),
            Cell("codes: plan", lambda: world().planned("codes", "T2M")),
            Cell("codes: plan, from texts", lambda: world().planned("codes", "T2M", texts=True)),
        ]

    def findings(self, report: BenchReport) -> Mapping[str, float]:
        """Seconds of speech for a second of the worker, and how much longer plain lhotse takes for them."""
        found = {}
        for kind in ("flac", "codes"):
            ours, lhotse = report[f"{kind}: ours"], report[f"{kind}: lhotse"]
            found[f"{kind}: seconds of speech in a second"] = ours.rate("audio_s")
            found[f"{kind}: ours / lhotse"] = ours.rate("audio_s") / lhotse.rate("audio_s")
        return found


class _World:
    """Dialogues, their shards, and ways to read them; lives until the last cell is closed."""

    def __init__(self, with_flac: int, with_codes: int) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="fac-bench-data-")
        self.root = Path(self.folder.name)
        self.users = 0
        rng = np.random.default_rng(0)
        bank = [speech_like(rng, 2 * QUESTION) for _ in range(16)]
        train_text_tokenizer([_words(rng, 1000)], VOCABULARY, str(self.root / "text"))
        for kind, per_shard in (("flac", with_flac), ("codes", with_codes)):
            with DialogueWriter(self.root / kind / "dialogues") as writer:
                for number in range(SHARDS * per_shard):
                    writer.write(_dialogue(rng, f"{kind}-{number:06d}", bank if kind == "flac" else None))
            for name, text in (("shards", str(self.root / "text")), ("texts", None)):
                out = str(self.root / kind / name)
                DialogueSharding(str(self.root / kind / "dialogues"), out, per_shard, text_tokenizer=text).run()
        self.tokenizer = load_text_tokenizer(str(self.root / "text"))

    def packed(self, kind: str, mode: str, texts: bool = False) -> Trial:
        """A worker's part of one pass: lines laid out, read and collated."""
        windows = list(_pass(self._stream(kind, mode, texts)))
        stream = self._stream(kind, mode, texts)
        found = [batch for window in windows for batch in stream[window]]
        seconds, fill = sum(batch.seconds for batch in found), sum(len(batch.text_ids) for batch in found)
        values = {"fill": fill / len(found) / CAPACITY}
        source = stream.planners[0].source
        assert isinstance(source, ShardCorpus)

        def call() -> None:
            source.close()
            source.chat = CachedChatFormat(self.tokenizer)
            for window in windows:
                stream[window]

        return self._trial(call, seconds, values)

    def planned(self, kind: str, mode: str, texts: bool = False) -> Trial:
        """The plan of one pass."""
        stream = self._stream(kind, mode, texts)
        seconds = sum(batch.seconds for window in _pass(stream) for batch in stream[window])
        return self._trial(lambda: list(_pass(self._stream(kind, mode, texts))), seconds)

    def padded(self, kind: str, field: str) -> Trial:
        """One pass of lhotse over the same tars, in batches padded to their longest."""
        folder = self.root / kind / "shards"
        fields = {"cuts": sorted(map(str, folder.glob("cuts.*.jsonl.gz")))}
        fields[field] = sorted(map(str, folder.glob(f"{field}.*.tar")))
        rate = RATE if field == "recording" else FRAME_RATE
        lhotse = import_lhotse()

        def call() -> float:
            total = 0
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # third party: it leaves its files open
                cuts = iter(lhotse.CutSet.from_shar(fields=fields))
                while batch := list(islice(cuts, PER_BATCH)):
                    total += int(_padded(batch, field)[1].sum())
                del cuts
                gc.collect(0)
            return total / rate

        return self._trial(call, call())

    def _stream(self, kind: str, mode: str, texts: bool) -> LineStream:
        """Of a worker that has read nothing yet."""
        geometry = SpeechGeometry(RATE, RATE // 5, 5, 1, CODEBOOK, 2 * VOCABULARY)
        folder = str(self.root / kind / ("texts" if texts else "shards"))
        shards = ShardCorpus([folder], CachedChatFormat(self.tokenizer), geometry, None, {mode: 1.0}, window=1)
        return LineStream([RowPlanner(shards, Budget(CAPACITY))], [1.0], 0)

    def _trial(self, call: Any, seconds: float, values: Mapping[str, float] | None = None) -> Trial:
        self.users += 1
        found = None if values is None else lambda: values
        return Trial(call, {"audio_s": seconds}, found, count_flops=False, count_memory=False, close=self._close)

    def _close(self) -> None:
        self.users -= 1
        if not self.users:
            self.folder.cleanup()


def _pass(stream: LineStream) -> Iterator[Any]:
    """Windows of a stream until the next would go round again."""
    (planner,) = stream.planners
    left = len(planner.source)
    for window in stream.windows():
        left -= sum(map(len, window.lines))
        if left < 0:
            return
        yield window


def _padded(cuts: Sequence[Any], field: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a plain collate makes of a field: a padded batch and lengths."""
    if field == "recording":
        found = [torch.from_numpy(cut.load_audio()[0]) for cut in cuts]
    else:
        found = [torch.from_numpy(cut.load_codes().astype(np.int64)) for cut in cuts]
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True), torch.tensor([len(one) for one in found])


def _dialogue(rng: np.random.Generator, name: str, bank: Sequence[np.ndarray] | None) -> Dialogue:
    turns: list[Turn] = []
    for _ in range(ROUNDS):
        question, answer = rng.uniform(0.5, 1.5, 2) * (QUESTION, ANSWER)
        text = _words(rng, question)
        if bank is None:
            turns.append(Turn("user", text))
        else:
            audio = bank[int(rng.integers(len(bank)))]
            turns.append(Turn("user", text, audio[: round(question * RATE)], RATE))
        codes = TurnCodes("bench", rng.integers(0, CODEBOOK, (round(answer * FRAME_RATE), 1)), FRAME_RATE)
        turns.append(Turn("assistant", _words(rng, answer), codes=codes))
    return Dialogue(name, tuple(turns))


def _words(rng: np.random.Generator, seconds: float) -> str:
    return " ".join(f"word{i}" for i in rng.integers(0, 1000, round(WORDS_PER_SECOND * seconds)))


def speech_like(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Samples ``(S,)`` at 16 kHz that flac takes as it takes speech: harmonics in syllables, and breath."""
    time_ = np.arange(round(seconds * RATE)) / RATE
    pitch = rng.uniform(100, 200) * (1 + 0.2 * np.sin(2 * np.pi * 0.7 * time_))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 15))
    syllables = np.clip(np.sin(2 * np.pi * 3 * time_ + rng.uniform(0, 6)), 0, None)
    noise = rng.standard_normal(len(time_))
    return np.asarray(0.1 * voice * syllables + 0.02 * noise * syllables + 0.003 * noise, dtype=np.float32)
