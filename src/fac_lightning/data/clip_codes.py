"""Codes of pieces of recordings: read in batches of similar length, in this process or in several."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from fac_lightning.data.audio import Span, read_span
from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.workers import WorkerPool
from fac_lightning.tokenizers.base import SpeechTokenizer

__all__ = ["ClipCodes", "code_spans"]

SECONDS_PER_BATCH = 60.0
MAX_BATCH = 64
MAX_REMEMBERED = 100_000_000  # bytes of codes that a process remembers of samples it has met


@dataclass(frozen=True)
class ClipCodes:
    """What became of a batch."""

    codes: dict[str, np.ndarray]  # (T, Q) int32 by key
    problems: dict[str, BadData]  # why the audio of a key cannot be used
    seconds: float  # of audio in the batch, bad or not

    @property
    def bad(self) -> dict[str, str]:
        """Problems as text."""
        return {key: str(problem) for key, problem in self.problems.items()}


def code_spans(
    tokenizer: SpeechTokenizer,
    spans: Mapping[str, Span],
    progress: bool = True,
    make: Callable[[], SpeechTokenizer] | None = None,
    num_workers: int = 0,
) -> Generator[ClipCodes, None, None]:
    """Codes of pieces of recordings, batch by batch, the longest first, under a progress bar.

    Args:
        tokenizer: Works here when there are no workers.
        spans: What to tokenise, by key. Pieces with equal samples are tokenised once in each process.
        progress: Show a bar, where there is a screen.
        make: Makes the tokenizer of a worker; it is pickled. Needed with workers.
        num_workers: Processes; 0 works in this one. Each takes a GPU in turn where there are any.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    if not spans:
        return
    if num_workers and make is None:
        raise ValueError(f"{num_workers} workers need make(), which builds the tokenizer of each")
    seconds = {key: span.count / span.recording.sampling_rate for key, span in spans.items()}
    batches = [[(key, spans[key]) for key in keys] for keys in _batches(seconds)]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    hidden = not (progress and console.is_terminal)
    home = next((p.device for p in tokenizer.parameters()), None)
    training = tokenizer.training
    reader = partial(_in_worker, make) if num_workers and make is not None else partial(_here, tokenizer)
    try:
        with (
            Progress(*columns, console=console, transient=True, disable=hidden) as bar,
            WorkerPool(reader, min(num_workers, len(batches))) as pool,
        ):
            task = bar.add_task("Speech codes", total=sum(seconds.values()))
            for made in pool.map(batches):
                yield made
                bar.advance(task, made.seconds)
    finally:
        tokenizer.train(training)
        if home is not None:
            tokenizer.to(home)


def _batches(seconds: Mapping[str, float]) -> Iterator[list[str]]:
    """Keys, longest first, so that no padded batch exceeds ``SECONDS_PER_BATCH``."""
    order = sorted(seconds, key=lambda key: -seconds[key])
    while order:
        size = min(MAX_BATCH, max(1, int(SECONDS_PER_BATCH / max(seconds[order[0]], 1e-3))))
        yield order[:size]
        order = order[size:]


def _here(tokenizer: SpeechTokenizer, number: int) -> _Reader:
    return _Reader(tokenizer, _device(tokenizer, None))


def _in_worker(make: Callable[[], SpeechTokenizer], number: int) -> _Reader:
    tokenizer = make()
    return _Reader(tokenizer, _device(tokenizer, number))


def _device(tokenizer: SpeechTokenizer, worker: int | None) -> torch.device:
    """Where to tokenise: on a GPU when there is one, else where the tokenizer is."""
    if torch.cuda.is_available():
        return torch.device(
            "cuda", torch.cuda.current_device() if worker is None else worker % torch.cuda.device_count()
        )
    return next((p.device for p in tokenizer.parameters()), torch.device("cpu"))


class _Reader:
    """Reads pieces of recordings and tokenises them in one batch, equal samples once."""

    def __init__(self, tokenizer: SpeechTokenizer, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer.to(device).eval(), device
        self._seen: dict[bytes, np.ndarray] = {}
        self._bytes = 0

    def __call__(self, batch: Sequence[tuple[str, Span]]) -> ClipCodes:
        bad: dict[str, BadData] = {}
        contents: dict[str, bytes] = {}
        fresh: dict[bytes, np.ndarray] = {}
        for key, span in batch:
            try:
                samples = read_span(span, self.tokenizer.sample_rate)
            except BadData as error:
                bad[key] = error
                continue
            if not len(samples):
                bad[key] = bad_data("FAC-A14", f"recording {span.recording.id!r}", "a turn without a single sample")
                continue
            content = hashlib.blake2b(samples.tobytes(), digest_size=16).digest()
            contents[key] = content
            if content not in self._seen:
                fresh.setdefault(content, samples)
        self._seen.update(zip(fresh, self._encode(list(fresh.values())), strict=True))
        codes = {key: self._seen[content] for key, content in contents.items()}
        self._bytes += sum(self._seen[content].nbytes for content in fresh)
        if self._bytes > MAX_REMEMBERED:
            self._seen, self._bytes = {}, 0
        return ClipCodes(codes, bad, sum(span.count / span.recording.sampling_rate for _, span in batch))

    def _encode(self, audio: list[np.ndarray]) -> list[np.ndarray]:
        """Codes ``(T, Q)`` of waveforms ``(S,)``."""
        if not audio:
            return []
        lengths = torch.tensor([len(x) for x in audio])
        batch = torch.zeros(len(audio), int(lengths.max()))
        for i, samples in enumerate(audio):
            batch[i, : len(samples)] = torch.from_numpy(samples)
        with torch.inference_mode():
            out = self.tokenizer.encode(batch.to(self.device), lengths.to(self.device))
        codes, frames = out.codes.cpu(), out.lengths.tolist()
        expected = [self.tokenizer.num_frames(len(x)) for x in audio]
        wrong = next((i for i, n in enumerate(frames) if n != expected[i]), None)
        if wrong is not None or codes.min() < 0 or codes.max() >= self.tokenizer.codebook_size:
            i = wrong or 0
            raise ValueError(
                f"{type(self.tokenizer).__name__} gave {frames[i]} frames for {len(audio[i])} samples, and codes "
                f"{int(codes.min())} to {int(codes.max())}; {expected[i]} frames and codes below "
                f"{self.tokenizer.codebook_size} are due. fac_lightning.testing.check_tokenizer shows the contract"
            )
        return [codes[i, :n].numpy().astype(np.int32) for i, n in enumerate(frames)]
