"""Spoken clips out of text: many voices, judged by a recogniser, in worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fac_lightning.data.workers import WorkerPool
from fac_lightning.recognizers.base import Recognizer
from fac_lightning.resampling import resample
from fac_lightning.synthesizers.base import Synthesizer, trim_silence
from fac_lightning.wer import count_word_errors

__all__ = ["ClipMaker", "ClipPool", "ClipRequest", "SpokenClip", "clip_word_error_rate"]

RETRY_STRIDE = 1_000_003  # seeds of further attempts; a prime, so that they do not meet the seeds of neighbours


@dataclass(frozen=True)
class ClipRequest:
    """A sentence to be spoken."""

    text: str
    voice: int  # index into the voices
    seed: int
    max_wer: float = 1.0  # speak again, with another seed, above this WER
    attempts: int = 1
    judged: bool = True  # let the recogniser listen


@dataclass(frozen=True)
class SpokenClip:
    """A sentence that was spoken."""

    text: str
    audio: np.ndarray  # (S,) float32
    sample_rate: int  # Hz
    voice: str
    seed: int
    wer: float | None  # None where no recogniser listened
    asr_text: str | None


class ClipMaker:
    """Speak and judge; of several attempts the first that is good enough is kept, else the best.

    Args:
        voices: What a request's ``voice`` counts in.
        recognizer: Judge; None leaves every WER None.
        trim: Seconds of silence left at either end of a clip; None leaves clips as they are.
        sample_rate: Hz of the clips; None keeps each voice's own rate.
    """

    def __init__(
        self,
        voices: Sequence[Synthesizer],
        recognizer: Recognizer | None = None,
        trim: float | None = 0.05,
        sample_rate: int | None = None,
    ) -> None:
        self.voices, self.recognizer, self.trim, self.sample_rate = list(voices), recognizer, trim, sample_rate

    def __call__(self, requests: Sequence[ClipRequest]) -> list[SpokenClip]:
        """One clip a request, in order; all attempts of a round are judged together."""
        best: list[SpokenClip | None] = [None] * len(requests)
        pending = list(range(len(requests)))
        attempt = 0
        while pending:
            clips = [self._speak(requests[i], attempt) for i in pending]
            clips = self._judge(clips, [requests[i].judged for i in pending])
            for i, clip in zip(pending, clips, strict=True):
                old = best[i]
                if old is None or (clip.wer or 0.0) < (old.wer or 0.0):
                    best[i] = clip
            attempt += 1
            pending = [
                i
                for i in pending
                if attempt < requests[i].attempts and (getattr(best[i], "wer", 0) or 0.0) > requests[i].max_wer
            ]
        return [clip for clip in best if clip is not None]

    def _speak(self, request: ClipRequest, attempt: int) -> SpokenClip:
        voice = self.voices[request.voice]
        seed = request.seed + attempt * RETRY_STRIDE
        audio = voice(request.text, seed=seed)
        rate = voice.sample_rate
        if self.trim is not None:
            audio = trim_silence(audio, rate, keep=self.trim)
        if len(audio) == 0:
            raise ValueError(f"voice {voice.name} gave no sound for {request.text!r}; leave this text out")
        if self.sample_rate is not None:
            audio, rate = resample(audio, rate, self.sample_rate), self.sample_rate
        return SpokenClip(request.text, audio, rate, voice.name, seed, None, None)

    def _judge(self, clips: list[SpokenClip], judged: Sequence[bool]) -> list[SpokenClip]:
        if self.recognizer is None:
            return clips
        rate = self.recognizer.sample_rate
        heard = [i for i, wanted in enumerate(judged) if wanted]
        texts = self.recognizer([resample(clips[i].audio, clips[i].sample_rate, rate) for i in heard]) if heard else []
        for i, text in zip(heard, texts, strict=True):
            clip = clips[i]
            wer = round(clip_word_error_rate(clip.text, text), 4)
            clips[i] = SpokenClip(clip.text, clip.audio, clip.sample_rate, clip.voice, clip.seed, wer, text)
        return clips


class ClipPool(WorkerPool[Sequence[ClipRequest], list[SpokenClip]]):
    """``ClipMaker`` in worker processes: clips of each batch, in the order of the requests.

    Args:
        maker: Pickled once to each worker.
        num_workers: Processes, each on one thread; 0 works in this process.
    """

    def __init__(self, maker: ClipMaker, num_workers: int = 0) -> None:
        super().__init__(partial(_for_any_worker, maker), num_workers)


def _for_any_worker(maker: ClipMaker, number: int) -> ClipMaker:
    """The same maker, whatever the worker's number."""
    return maker


def clip_word_error_rate(reference: str, hypothesis: str) -> float:
    """Word errors of one clip per word of its text; a text without words counts as one word."""
    counts = count_word_errors([reference], [hypothesis])
    return counts.errors / max(1, counts.words)
