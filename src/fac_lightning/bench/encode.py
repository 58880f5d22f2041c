"""``fac bench encode``: the Fun-Audio encoder on chunks beside a plain reading with one dense mask, ever more audio.

Legend: A clips, S samples, N positions of all chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell, Trial
from fac_lightning.bench.implementation import Implementation, load_implementation
from fac_lightning.bench.sizes import build_encoder, sizes_of
from fac_lightning.encoders import FunAudioEncoder
from fac_lightning.encoders.fun_audio import _Chunks
from fac_lightning.types import Waveforms

__all__ = ["DenseEncoder", "EncodeBenchmark", "clips_of", "growth"]

#: seconds of audio in a batch
LENGTHS = {"tiny": (4, 16, 42)}
OTHER_LENGTHS = (37, 165, 423)
#: seconds of the clips, round and round, until a batch has its length
CLIPS = (6.4, 11.3, 3.7, 15.6)


class EncodeBenchmark(Benchmark):
    """Forward passes without gradients over batches of 37, 165 and 423 seconds (``tiny``: 4, 16 and 42)."""

    name = "encode"
    summary = "the encoder on chunks beside a dense mask over the batch, 37 to 423 s"

    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        """See ``Benchmark.cells``."""
        ways: list[tuple[str, Callable[[], Callable[[Tensor, Tensor], Any]]]] = [
            ("ours", cache(partial(_built, FunAudioEncoder, settings))),
            ("dense", cache(partial(_built, DenseEncoder, settings))),
        ]
        for word in settings.implementations:
            name, given = load_implementation(word)
            ways.append((name, cache(partial(_encode_of, given, settings))))
        lengths = LENGTHS.get(settings.config, OTHER_LENGTHS)
        return [
            Cell(f"{name} {seconds} s", partial(_trial, make, seconds, settings))
            for seconds in lengths
            for name, make in ways
        ]

    def findings(self, report: BenchReport) -> Mapping[str, float]:
        """How much longer the dense mask takes, and with which power of the audio's length each grows."""
        lengths = LENGTHS.get(report.settings.config, OTHER_LENGTHS)
        found: dict[str, float] = {}
        for seconds in lengths:
            ours, dense = report[f"ours {seconds} s"], report[f"dense {seconds} s"]
            found[f"dense / ours, time at {seconds} s"] = report.ratio(dense.name, ours.name)
            if ours.memory and dense.memory:
                found[f"dense / ours, peak memory at {seconds} s"] = dense.memory / ours.memory
        for way in ("ours", "dense"):
            cells = [report[f"{way} {seconds} s"] for seconds in lengths]
            found[f"exponent of time, {way}"] = growth(lengths, [cell.median for cell in cells])
            found[f"exponent of FLOPs, {way}"] = growth(lengths, [cell.flops or 1 for cell in cells])
        return found


def growth(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent ``p`` of ``cost = c * size ** p``, by least squares on logarithms."""
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    x0, y0 = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / sum((x - x0) ** 2 for x in xs)


def clips_of(seconds: float, seed: int = 0) -> Waveforms:
    """Clips of a few seconds each, ``seconds`` in all, right padded; noise."""
    lengths: list[int] = []
    left = round(seconds * FunAudioEncoder.sample_rate)
    while left > 0:
        lengths.append(min(left, round(CLIPS[len(lengths) % len(CLIPS)] * FunAudioEncoder.sample_rate)))
        left -= lengths[-1]
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor(lengths)
    audio = torch.rand(len(lengths), max(lengths), generator=generator) - 0.5
    audio = audio.masked_fill(torch.arange(max(lengths)) >= counts[:, None], 0)
    return Waveforms(audio, counts, FunAudioEncoder.sample_rate)


class DenseEncoder(FunAudioEncoder):
    """The same network with all chunks of all clips in one row, and a mask ``(N, N)`` that parts them."""

    def _at_once(self, rows: Tensor) -> int:
        return len(rows)

    def _embed(self, rows: Tensor, held: Tensor) -> tuple[Tensor, _Chunks]:
        hidden, chunks = super()._embed(rows, held)
        places = torch.arange(chunks.rows * chunks.length, device=hidden.device)
        chunk = (places if chunks.places is None else chunks.places) // chunks.length  # (N,)
        return hidden, _Chunks(1, len(hidden), None, (chunk[:, None] == chunk)[None, None])


def _trial(make: Callable[[], Callable[[Tensor, Tensor], Any]], seconds: float, settings: BenchSettings) -> Trial:
    clips = clips_of(seconds)
    encode, audio = make(), clips.audio.to(settings.device)

    def call() -> None:
        with torch.no_grad():
            encode(audio, clips.lengths)

    return Trial(call, {"audio_s": float(clips.lengths.sum()) / clips.sample_rate})


def _built(kind: type[FunAudioEncoder], settings: BenchSettings) -> FunAudioEncoder:
    """An encoder with the weights that every encoder of this benchmark has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_encoder(sizes_of(settings.config), kind).to(settings.device).eval()


def _encode_of(given: Implementation, settings: BenchSettings) -> Callable[[Tensor, Tensor], Tensor]:
    given.build(sizes_of(settings.config), settings.device)
    return given.encode
