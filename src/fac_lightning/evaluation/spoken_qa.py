"""Evaluate a trained run on spoken questions whose answers are known."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from fac_lightning.data.dialogue import Dialogue, read_dialogues
from fac_lightning.evaluation.audio import write_wav
from fac_lightning.generation import Decoding, Generator, Reply, Sampling, SpeechEngine, UserTurn
from fac_lightning.prompts import MODES, ChatFormat
from fac_lightning.recognizers.base import Recognizer
from fac_lightning.resampling import resample
from fac_lightning.wer import word_error_rate

__all__ = ["Answer", "SpokenQAEvaluation"]


@dataclass(frozen=True)
class Answer:
    """One question put to the model, and all that was measured of its answer."""

    id: str
    question: str
    voice: str
    reference: str
    text: str
    exact: bool  # the model's text equals the reference
    finished: bool  # it ended by itself
    seconds: float  # spoken answer
    transcript: str | None = None  # what the recogniser heard
    heard: str | None = None  # what the model says the question was, in a mode that transcribes
    draft: str | None = None  # what it wrote before it spoke, in a mode that drafts
    files: dict[str, str] = field(default_factory=dict)  # kind -> audio file


class SpokenQAEvaluation:
    """Ask every question of one or more dialogue sets and measure text and speech of the answers.

    Text: share of answers that are the reference, word for word. Speech: word error rate of an independent recogniser
    on the spoken answers against the model's own text, beside its error on the tokenizer's reconstruction of the true
    answers (the best that the tokenizer allows) and on the true recordings. Chain, in the modes STC, SAC and SUC: word
    error rate of the model's transcripts against the questions, share of drafts that are the reference.

    Args:
        run: Folder of a trained run.
        sets: Name -> dialogues folder (first user turn asks, next assistant turn is the reference).
        out: Folder for ``results.json`` and the audio of examples.
        load_run: Rebuilds a run (``fac_lightning.cli.build.load_run``); the command line passes it.
        recognizer: Judge of the spoken answers; its weights must not be the speech encoder's. None skips speech.
        mode: ``S2M`` or another mode of the model (``prompts.MODES``).
        batch_size: Questions generated together.
        limit: Questions taken from each set, spread over it; None takes all.
        limit_spoken: Answers of each set that the recogniser hears; None: all.
        num_examples: Question and answer pairs kept as audio.
        max_positions: Longest answer in backbone positions, what is written before speech included.
        text: Sampling of the text; greedy when None.
        speech: Sampling of the speech; greedy when None. Speech that is clear when it is greedy may slip when it is
            drawn.
        seed: Of the sampling; the answer to question ``i`` of a set draws from ``seed + i``, whatever the batch.
    """

    def __init__(
        self,
        run: str,
        sets: dict[str, str],
        out: str,
        load_run: Callable[[str], Any],
        recognizer: Recognizer | None = None,
        mode: str = "S2M",
        batch_size: int = 32,
        limit: int | None = None,
        limit_spoken: int | None = None,
        num_examples: int = 6,
        max_positions: int = 64,
        text: Sampling | None = None,
        speech: Sampling | None = None,
        seed: int = 0,
    ) -> None:
        if not sets:
            raise ValueError("sets is empty: name at least one dialogues folder to evaluate on")
        self.run_folder, self.sets, self.out, self.mode = run, dict(sets), Path(out), mode
        self.load_run, self.recognizer = load_run, recognizer
        self.batch_size, self.limit, self.limit_spoken = batch_size, limit, limit_spoken
        self.num_examples, self.max_positions = num_examples, max_positions
        self.text, self.speech, self.seed = text or Sampling(), speech or Sampling(), seed

    def run(self) -> dict[str, Any]:
        """Evaluate and write ``results.json``; returns its content."""
        loaded = self.load_run(self.run_folder)
        generator = Generator(
            loaded.model,
            ChatFormat(loaded.text_tokenizer),
            tokenizer=loaded.tokenizer,
            system_prompts=loaded.data.get("system_prompts"),
            reply=loaded.reply,
        )
        result: dict[str, Any] = {"run": self.run_folder, "mode": self.mode, "sets": {}}
        truths: dict[str, tuple[np.ndarray, int]] = {}
        for name, folder in self.sets.items():
            dialogues = _spread(list(read_dialogues(folder)), self.limit)
            result["sets"][name] = self._evaluate(generator, dialogues, name, truths)
        if self.recognizer is not None and generator.tokenizer is not None and truths:
            result["reconstruction"] = self._reconstruction(generator, truths)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "results.json").write_text(json.dumps(result, indent=2, ensure_ascii=False), encoding="utf-8")
        return result

    def _evaluate(
        self, generator: Generator, dialogues: list[Dialogue], name: str, truths: dict[str, tuple[np.ndarray, int]]
    ) -> dict[str, Any]:
        rate = generator.model.geometry.sample_rate
        answers: list[Answer] = []
        replies: list[Reply] = []
        answering, count = self._answering(generator)
        started = time.perf_counter()
        for first in track(range(0, len(dialogues), count), f"{name}: answering", console=_console()):
            batch = dialogues[first : first + count]
            turns = [_user_turn(d, rate, self.mode) for d in batch]
            decoding = Decoding(self.text, self.speech, self.max_positions, self.seed + first)
            replies += answering.generate(turns, mode=self.mode, decoding=decoding)
        wall = time.perf_counter() - started
        for dialogue, reply in zip(dialogues, replies, strict=True):
            question, truth = dialogue.turns[0], dialogue.turns[1]
            if truth.audio is not None and truth.sample_rate is not None:
                truths.setdefault(truth.text, (truth.audio, truth.sample_rate))
            answers.append(
                Answer(
                    id=dialogue.id,
                    question=question.text,
                    voice=str(question.custom.get("voice", "")),
                    reference=truth.text,
                    text=reply.text.strip(),
                    exact=reply.text.strip() == truth.text.strip(),
                    finished=reply.finished,
                    seconds=_seconds(reply),
                    heard=reply.transcript,
                    draft=reply.draft,
                )
            )
        scored: dict[str, Any] = {
            "count": len(answers),
            "text_exact": float(np.mean([a.exact for a in answers])),
            "finished": float(np.mean([a.finished for a in answers])),
            "text_exact_by_voice": _by_voice(answers),
            "text_wer": word_error_rate([a.reference for a in answers], [a.text for a in answers]),
            "seconds": wall,
        }
        heard_as = [(a.question, a.heard) for a in answers if a.heard is not None]
        if heard_as:
            scored["heard_wer"] = word_error_rate([q for q, _ in heard_as], [h for _, h in heard_as])
        if any(a.draft is not None for a in answers):
            scored["draft_exact"] = float(np.mean([a.draft == a.reference.strip() for a in answers]))
        spoken = _spread([i for i, r in enumerate(replies) if r.audio is not None], self.limit_spoken)
        if self.recognizer is not None and spoken:
            heard = self._listen([_at(replies[i], self.recognizer.sample_rate) for i in spoken], f"{name}: listening")
            for i, text in zip(spoken, heard, strict=True):
                answers[i] = _replace(answers[i], transcript=text)
            pairs = [(answers[i].text, text) for i, text in zip(spoken, heard, strict=True) if answers[i].text]
            scored["asr_wer"] = word_error_rate([t for t, _ in pairs], [h for _, h in pairs])
            scored["asr_wer_to_reference"] = word_error_rate([answers[i].reference for i in spoken], heard)
            scored["spoken_count"] = len(spoken)
            scored["silent_count"] = len(replies) - sum(r.audio is not None and len(r.audio) > 0 for r in replies)
        for i in _spread(spoken, self.num_examples):
            answers[i] = _replace(answers[i], files=self._write_example(name, dialogues[i], replies[i]))
        scored["answers"] = [asdict(a) for a in answers]
        return scored

    def _answering(self, generator: Generator) -> tuple[Generator | SpeechEngine, int]:
        """What answers, and how many questions it is given: where all parts of the model step together, the engine.

        It says the same, and a question takes the place of one that is answered.
        """
        if not SpeechEngine.suits(generator.model):
            return generator, self.batch_size
        engine = SpeechEngine(
            generator.model,
            generator.chat,
            generator.tokenizer,
            generator.reply,
            num_slots=self.batch_size,
            system_prompts=generator.system_prompts,
        )
        return engine, 4 * self.batch_size

    def _reconstruction(self, generator: Generator, truths: dict[str, tuple[np.ndarray, int]]) -> dict[str, Any]:
        assert generator.tokenizer is not None
        assert self.recognizer is not None
        tokenizer, texts = generator.tokenizer, sorted(truths)
        texts = _spread(texts, self.limit_spoken)
        originals, rebuilt = [], []
        for text in texts:
            audio, rate = truths[text]
            wave = torch.from_numpy(resample(audio, rate, tokenizer.sample_rate)).float()[None]
            back = tokenizer.decode(tokenizer.encode(wave).codes)
            rebuilt.append(resample(back.audio[0].numpy(), back.sample_rate, self.recognizer.sample_rate))
            originals.append(resample(audio, rate, self.recognizer.sample_rate))
        return {
            "count": len(texts),
            "asr_wer": word_error_rate(texts, self._listen(rebuilt, "reconstructions: listening")),
            "asr_wer_original": word_error_rate(texts, self._listen(originals, "originals: listening")),
        }

    def _listen(self, clips: list[np.ndarray], what: str) -> list[str]:
        """Transcripts of clips, in parts, so that the progress can be seen."""
        assert self.recognizer is not None
        heard: list[str] = []
        for first in track(range(0, len(clips), self.batch_size), what, console=_console()):
            heard += self.recognizer(clips[first : first + self.batch_size])
        return heard

    def _write_example(self, name: str, dialogue: Dialogue, reply: Reply) -> dict[str, str]:
        files: dict[str, str] = {}
        stem = f"{name}-{dialogue.id}".replace("/", "_")
        question, truth = dialogue.turns[0], dialogue.turns[1]
        for kind, audio, rate in (
            ("question", question.audio, question.sample_rate),
            ("answer", None if reply.audio is None else reply.audio.numpy(), reply.sample_rate),
            ("truth", truth.audio, truth.sample_rate),
        ):
            if audio is not None and rate is not None:
                path = self.out / "audio" / f"{stem}.{kind}.wav"
                write_wav(path, audio, rate)
                files[kind] = str(path.relative_to(self.out))
        return files


def _console() -> Console:
    return Console(stderr=True)


def _user_turn(dialogue: Dialogue, rate: int, mode: str) -> UserTurn:
    turn = dialogue.turns[0]
    read = mode in MODES and not MODES[mode][0]  # an unknown mode is refused by the generator
    if read or turn.audio is None or turn.sample_rate is None:
        return UserTurn(text=turn.text)
    return UserTurn(audio=resample(turn.audio, turn.sample_rate, rate))


def _at(reply: Reply, rate: int) -> np.ndarray:
    assert reply.audio is not None
    assert reply.sample_rate is not None
    return resample(reply.audio.float().numpy(), reply.sample_rate, rate)


def _seconds(reply: Reply) -> float:
    return 0.0 if reply.audio is None or not reply.sample_rate else len(reply.audio) / reply.sample_rate


def _by_voice(answers: Sequence[Answer]) -> dict[str, float]:
    voices = sorted({a.voice for a in answers})
    return {v: float(np.mean([a.exact for a in answers if a.voice == v])) for v in voices}


def _spread(items: list[Any], limit: int | None) -> list[Any]:
    """At most ``limit`` items, evenly taken from the whole list."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def _replace(answer: Answer, **changes: Any) -> Answer:
    return Answer(**{**asdict(answer), **changes})
