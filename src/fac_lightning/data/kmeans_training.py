"""Job: fit the centroids of a ``KMeansTokenizer`` to speech."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fac_lightning.data.audio import Span, read_span
from fac_lightning.data.clip_spans import SIDES, clip_spans, shortened
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import Waveforms

__all__ = ["KMeansTraining"]


class KMeansTraining:
    """Fit centroids in mini-batches of speech and write them to ``out/kmeans.safetensors``.

    ``out/summary.json`` says how well they fit: the share of the frames' variance that the codes explain and how many
    codes are used, over the last fifth of the batches, each before it was learned from. The same seed gives the same
    centroids.

    Args:
        tokenizer: A ``KMeansTokenizer``; its encoder and number of centroids count, its centroids are replaced.
        source: Dialogues folder or manifest, folder of sound files, or several of these.
        out: Folder to write; give it to the tokenizer's ``centroids``.
        steps: Batches.
        batch_seconds: Speech in a batch; longer clips are cut at a random place.
        side: Whose turns of dialogues: user, assistant or both.
        seed: Of order, cuts and first centroids.
    """

    def __init__(
        self,
        tokenizer: SpeechTokenizer,
        source: str | list[str],
        out: str,
        steps: int = 500,
        batch_seconds: float = 60.0,
        side: str = "both",
        seed: int = 0,
    ) -> None:
        if not callable(getattr(tokenizer, "learn", None)):
            raise ValueError(
                f"{type(tokenizer).__name__} has no centroids to fit; name fac_lightning.tokenizers.KMeansTokenizer"
            )
        if steps < 1 or batch_seconds <= 0:
            raise ValueError(f"steps must be at least 1 and batch_seconds above 0, got {steps} and {batch_seconds}")
        if side not in SIDES:
            raise ValueError(f"side must be one of {', '.join(SIDES)}, got {side!r}")
        self.tokenizer: Any = tokenizer
        self.sources = [source] if isinstance(source, str) else list(source)
        self.out, self.steps, self.batch_seconds = Path(out), steps, batch_seconds
        self.side, self.seed = side, seed

    def run(self) -> dict[str, Any]:
        """Fit, write, and give the summary.

        Raises:
            FileNotFoundError: A source does not exist.
            ValueError: There is too little speech for so many centroids.
        """
        from rich.console import Console
        from rich.progress import Progress

        spans = [span for source in self.sources for span in clip_spans(source, self.side)]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = self.tokenizer.to(device)
        last = []
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("centroids", total=self.steps)
            for number, step in enumerate(tokenizer.learn(self._batches(spans, device), self.steps, self.seed)):
                bar.advance(task)
                if number >= int(0.8 * self.steps):
                    last.append(step)
        frames = sum(step.frames for step in last)
        used = torch.stack([step.used for step in last]).sum(0)
        shares = used[used > 0].double() / used.sum()
        lost = sum(step.distance * step.frames for step in last) / sum(step.variance * step.frames for step in last)
        summary = {
            "centroids": tokenizer.codebook_size,
            "explained_variance": round(1 - lost, 4),
            "used": int((used > 0).sum()),
            "perplexity": round(math.exp(float(-(shares * shares.log()).sum())), 1),
            "judged_by_frames": frames,
            "clips": len(spans),
            "hours": round(sum(span.count / span.recording.sampling_rate for span in spans) / 3600, 3),
            "file": str(tokenizer.save(self.out)),
        }
        draft = self.out / ".summary.json.part"
        draft.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, self.out / "summary.json")
        Console().print(
            f"centroids: {summary['file']} ({summary['used']} of {summary['centroids']} used, they explain "
            f"{summary['explained_variance']:.0%} of the frames' variance)",
            highlight=False,
            soft_wrap=True,
        )
        return summary

    def _batches(self, spans: list[Span], device: torch.device) -> Iterator[Waveforms]:
        """``steps`` batches of clips in random order, all clips before one comes again."""
        rng = np.random.default_rng(self.seed)
        rate = self.tokenizer.sample_rate
        clips = self._clips(spans, rng)
        left: list[np.ndarray] = []
        for _ in range(self.steps):
            batch, seconds = left, sum(len(clip) for clip in left) / rate
            while seconds < self.batch_seconds:
                batch.append(read_span(next(clips), rate))
                seconds += len(batch[-1]) / rate
            left = [batch.pop()] if len(batch) > 1 else []
            lengths = torch.tensor([len(clip) for clip in batch])
            audio = torch.zeros(len(batch), int(lengths.max()))
            for row, clip in enumerate(batch):
                audio[row, : len(clip)] = torch.from_numpy(clip)
            yield Waveforms(audio.to(device), lengths.to(device), rate)

    def _clips(self, spans: list[Span], rng: np.random.Generator) -> Iterator[Span]:
        """Clips without end, none longer than a batch."""
        while True:
            for index in rng.permutation(len(spans)):
                span = spans[index]
                longest = max(1, int(self.batch_seconds * span.recording.sampling_rate))
                if span.count <= longest:
                    yield span
                else:
                    yield shortened(span, int(rng.integers(span.count - longest + 1)), longest)
