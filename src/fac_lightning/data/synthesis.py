"""The job behind ``fac synth``: dialogues in text become spoken dialogues on disk."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fac_lightning.data.clips import ClipMaker, ClipPool, ClipRequest, SpokenClip
from fac_lightning.data.dialogue import Dialogue, DialogueWriter, Turn
from fac_lightning.data.sources import DialogueSource
from fac_lightning.data.synthesis_plan import PlannedDialogue, SynthesisSplit, plan_split
from fac_lightning.data.synthesis_store import AnswerStore, RejectList, answer_id, judgement
from fac_lightning.data.synthesis_summary import summarize, summary_table
from fac_lightning.recognizers.base import Recognizer
from fac_lightning.synthesizers.base import Synthesizer

__all__ = ["DialogueSynthesis"]

BATCH = 24  # dialogues that a worker speaks and judges at a time
ANSWERS = "answers"


class DialogueSynthesis:
    """Speak dialogues with several user voices and one assistant voice, judge them, and write one folder per split.

    A user turn whose word error rate (of the recogniser's transcript against the text) is above ``max_wer`` rejects
    its dialogue, as Fun-Audio-Chat filters its synthetic speech (https://arxiv.org/abs/2512.20156). Every turn stores
    ``voice``, ``seed``, ``wer`` and ``asr_text``; rejected dialogues are listed with the reason in ``rejected.jsonl``.

    Each assistant text is spoken once, in the folder ``answers``, and shared by all dialogues: equal samples, so equal
    speech codes. The data depend on the arguments alone, not on ``num_workers`` or on interruptions: calling ``run``
    again goes on where a killed run stopped.

    Args:
        folder: Where the splits' folders, ``answers`` and ``summary.json`` go.
        source: The text.
        splits: Folder name -> what to write there.
        assistant: Voice of the assistant; None leaves the assistant's turns text only.
        recognizer: Judge; None keeps everything and stores no WER.
        max_answer_wer: Answers above it are rejected, and with them their dialogues.
        answer_attempts: Attempts per answer, each with another seed.
        trim: Seconds of silence left around a clip; None leaves clips as the engine gave them.
        sample_rate: Hz of the clips on disk; None keeps each voice's own.
        seed: Draws the voices' seeds and the dialogues of splits with a ``limit``.
        num_workers: Processes that speak and judge; 0 works in this process.
    """

    def __init__(
        self,
        folder: str,
        source: DialogueSource,
        splits: Mapping[str, SynthesisSplit],
        assistant: Synthesizer | None = None,
        recognizer: Recognizer | None = None,
        max_answer_wer: float = 0.0,
        answer_attempts: int = 3,
        trim: float | None = 0.05,
        sample_rate: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        if ANSWERS in splits:
            raise ValueError(f"a split may not be called {ANSWERS!r}: the spoken answers are kept there")
        for name, split in splits.items():
            if split.voices is not None and not 1 <= split.voices_per_dialogue <= len(split.voices):
                raise ValueError(
                    f"split {name!r}: voices_per_dialogue is {split.voices_per_dialogue} but there are "
                    f"{len(split.voices)} voices; a dialogue is spoken at most once by each"
                )
        self.folder, self.source, self.splits = Path(folder), source, dict(splits)
        self.assistant, self.recognizer = assistant, recognizer
        self.max_answer_wer, self.answer_attempts = max_answer_wer, answer_attempts
        self.trim, self.sample_rate, self.seed, self.num_workers = trim, sample_rate, seed, num_workers
        self._voices: list[Synthesizer] = []
        self._offsets: dict[str, int] = {}  # split -> index of its first voice
        for name, split in self.splits.items():
            self._offsets[name] = len(self._voices)
            self._voices += split.voices or ()
        if assistant is not None:
            self._voices.append(assistant)

    def run(self) -> dict[str, Any]:
        """Write what is missing; the summary, also in ``summary.json``.

        Raises:
            ValueError: The folder was made with other arguments.
        """
        plans = {name: self.plan(name) for name in self.splits}
        self._claim(plans)
        maker = ClipMaker(self._voices, self.recognizer, self.trim, self.sample_rate)
        columns = (TextColumn("{task.description:>24}"), BarColumn(), MofNCompleteColumn())
        with (
            ClipPool(maker, self.num_workers) as pool,
            Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress,
        ):
            if self.assistant is not None:
                self._write_answers(plans, pool, progress)
            for name, items in plans.items():
                self._write_split(name, items, pool, progress)
        summary = {name: summarize(self.folder / name) for name in self._folders()}
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        Console(stderr=True).print(summary_table(summary))
        return summary

    def _folders(self) -> list[str]:
        return ([ANSWERS] if self.assistant is not None else []) + list(self.splits)

    def plan(self, name: str) -> list[PlannedDialogue]:
        """What a split will hold, in order."""
        return plan_split(name, self.splits[name], self.source, self._offsets[name], self.seed)

    def _claim(self, plans: dict[str, list[PlannedDialogue]]) -> None:
        """Mark the folder as made by these arguments, or refuse: a mixture of two settings would be neither."""
        settings = {
            "source": type(self.source).__name__,
            "voices": [_describe(voice) for voice in self._voices],
            "recognizer": None if self.recognizer is None else type(self.recognizer).__name__,
            "splits": {
                name: {**split.__dict__, "voices": None if split.voices is None else [v.name for v in split.voices]}
                for name, split in self.splits.items()
            },
            "answers": [self.max_answer_wer, self.answer_attempts],
            "clips": [self.trim, self.sample_rate, self.seed],
            "text": hashlib.sha256(
                json.dumps(
                    [(name, item.id, [t.text for t in item.dialogue.turns]) for name in plans for item in plans[name]]
                ).encode()
            ).hexdigest(),
        }
        file = self.folder / "settings.json"
        text = json.dumps(settings, indent=2) + "\n"
        if file.exists():
            old = json.loads(file.read_text(encoding="utf-8"))
            changed = sorted(key for key in settings if old.get(key) != json.loads(text)[key])
            if changed:
                raise ValueError(
                    f"{self.folder} was made with other {', '.join(changed)} (see settings.json there); "
                    "choose another folder, or delete this one to make it anew"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def _write_answers(self, plans: dict[str, list[PlannedDialogue]], pool: ClipPool, progress: Progress) -> None:
        texts = dict.fromkeys(
            turn.text
            for name, items in plans.items()
            if self.splits[name].voices is not None
            for item in items
            for turn in item.dialogue.turns
            if turn.role == "assistant"
        )
        voice = len(self._voices) - 1
        with DialogueWriter(self.folder / ANSWERS) as writer, RejectList(self.folder / ANSWERS) as rejects:
            bar = progress.add_task(ANSWERS, total=len(texts))
            pending = [text for text in texts if answer_id(text) not in writer.done | rejects.ids]
            progress.advance(bar, len(texts) - len(pending))
            batches = [pending[i : i + BATCH] for i in range(0, len(pending), BATCH)]
            requests = (
                [ClipRequest(text, voice, self.seed, self.max_answer_wer, self.answer_attempts) for text in batch]
                for batch in batches
            )
            for clips in pool.map(requests):
                for clip in clips:
                    if (clip.wer or 0.0) > self.max_answer_wer:
                        rejects.add(answer_id(clip.text), [clip], f"WER {clip.wer:.2f} > {self.max_answer_wer:g}")
                    else:
                        writer.write(Dialogue(answer_id(clip.text), (_spoken("assistant", clip),)))
                progress.advance(bar, len(clips))

    def _write_split(self, name: str, items: list[PlannedDialogue], pool: ClipPool, progress: Progress) -> None:
        split = self.splits[name]
        folder = self.folder / name
        answers = (
            AnswerStore(self.folder / ANSWERS) if self.assistant is not None and split.voices is not None else None
        )
        with DialogueWriter(folder) as writer, RejectList(folder) as rejects:
            bar = progress.add_task(name, total=len(items))
            pending = [item for item in items if item.id not in writer.done | rejects.ids]
            progress.advance(bar, len(items) - len(pending))
            batches = [pending[i : i + BATCH] for i in range(0, len(pending), BATCH)]
            requests = ([r for item in batch for r in self._requests(item, split)] for batch in batches)
            for batch, clips in zip(batches, pool.map(requests), strict=True):
                made = iter(clips)
                for item in batch:
                    mine = [next(made) for _ in self._requests(item, split)]
                    reason = _fault(item.dialogue, mine, split.max_wer, answers)
                    if reason:
                        rejects.add(item.id, mine, reason)
                    else:
                        writer.write(_assemble(item, mine, answers))
                progress.advance(bar, len(batch))

    def _requests(self, item: PlannedDialogue, split: SynthesisSplit) -> list[ClipRequest]:
        """The user's turns, to be spoken with seeds that depend on the id and the job's seed alone."""
        if item.voice is None:
            return []
        requests = []
        for i, turn in enumerate(item.dialogue.turns):
            if turn.role == "user":
                seed = zlib.crc32(f"{self.seed}/{item.id}/{i}".encode())
                judged = random.Random(seed).random() < split.filter_fraction
                requests.append(ClipRequest(turn.text, item.voice, seed, split.max_wer, split.attempts, judged))
        return requests


def _describe(voice: Synthesizer) -> dict[str, Any]:
    """What a voice was made with: its plain attributes."""
    plain = {k: v for k, v in vars(voice).items() if isinstance(v, str | int | float | None) and not k.startswith("_")}
    return {"class": type(voice).__name__, "name": voice.name, **plain}


def _spoken(role: Any, clip: SpokenClip) -> Turn:
    return Turn(role, clip.text, clip.audio, clip.sample_rate, judgement(clip))


def _fault(dialogue: Dialogue, clips: Sequence[SpokenClip], max_wer: float, answers: AnswerStore | None) -> str | None:
    """Why a dialogue must be rejected, or None."""
    for clip in clips:
        if clip.wer is not None and clip.wer > max_wer:
            return f"user turn {clip.text!r}: WER {clip.wer:.2f} > {max_wer:g}"
    for turn in dialogue.turns:
        if answers is not None and turn.role == "assistant" and turn.text not in answers:
            return f"answer {turn.text!r} was rejected"
    return None


def _assemble(item: PlannedDialogue, clips: Sequence[SpokenClip], answers: AnswerStore | None) -> Dialogue:
    """The dialogue with its sound."""
    spoken: Iterator[SpokenClip] = iter(clips)
    turns = []
    for turn in item.dialogue.turns:
        if turn.role == "user" and clips:
            clip = next(spoken)
            turns.append(replace(_spoken("user", clip), custom={**turn.custom, **judgement(clip)}))
        elif turn.role == "assistant" and answers is not None:
            answer = answers(turn.text)
            turns.append(replace(answer, custom={**turn.custom, **answer.custom}))
        else:
            turns.append(turn)
    custom = {**item.dialogue.custom, **({"voice": clips[0].voice} if clips else {})}
    return Dialogue(item.id, tuple(turns), item.dialogue.system, custom)
