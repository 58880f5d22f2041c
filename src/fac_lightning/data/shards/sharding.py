"""Job: a dialogues folder becomes shards."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fac_lightning.data.clip_codes import code_spans
from fac_lightning.data.codes import CodeStore, tokenizer_fingerprint
from fac_lightning.data.dialogue import check_turn, load_turn_codes, read_cuts, turn_span
from fac_lightning.data.manifest import manifest_path
from fac_lightning.data.shards.features import FeatureMaker, FeaturesOf, encoder_fingerprint
from fac_lightning.data.shards.index import ShardIndex
from fac_lightning.data.shards.names import SUMMARY, draft_name
from fac_lightning.data.shards.records import CODES, FEATURES, RECORDING, REPLIES, TEXTS, CodesOf
from fac_lightning.data.shards.shard_content import AUDIO_FORMATS, ShardTask
from fac_lightning.data.shards.shard_writer import ShardWriter
from fac_lightning.data.shards.texts import TextMaker
from fac_lightning.data.workers import WorkerPool
from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.tokenizers.base import SpeechTokenizer

__all__ = ["DialogueSharding"]

VERSION = 1
SAMPLE_BYTES = 2  # of 16-bit audio, by which shards of a size are planned
_SIZE = re.compile(r"(\d+)\s*(MB|GB)$", re.IGNORECASE)


class DialogueSharding:
    """Pack dialogues into shards, for training that reads few large files one after the other.

    The folder is in Lhotse's Shar format: a manifest a shard with the texts, and tars with the user's audio, the
    assistant's, and the codes of what the assistant says. Codes that come with turns are kept. A shard has its name
    when it is whole, so a run that was killed goes on where it stopped; calling a finished one again changes nothing.
    The same dialogues give the same bytes, for any number of workers (but for Opus).

    Args:
        dialogues: Dialogues folder or manifest.
        out: Folder of the shards.
        shard_size: Dialogues of a shard, or ``"500MB"``: what its audio takes as 16-bit samples, before compression.
        audio: ``flac`` or ``wav`` (sample for sample), ``opus`` (lossy, small), or None, which leaves audio out: then
            every reply needs codes, and what users say remains as text alone.
        codes: Makes the tokenizer whose codes the replies get, here and in each worker; in a recipe a node with
            ``_partial_: true``. Codes are taken from beside the manifest where ``fac tokenize`` has put them, and put
            there where they are missing. None keeps only codes that come with turns.
        features: Makes the frozen encoder whose features of the users' turns are kept, for training that does not run
            it (``data.features``); None keeps none. With them ``audio`` may be None and the user is still heard.
        feature_dtype: ``float16``, or ``float32``, which keeps them exactly.
        text_tokenizer: Hub id or folder of the text tokenizer whose token ids of all texts are kept, so that training
            with the same tokenises nothing; with another one texts are tokenised as they are read. None keeps none.
        num_workers: Processes; 0 works in this one.
        skip_bad: Leave out dialogues that cannot be stored and list them in the summary; else the first ends the job.
    """

    def __init__(
        self,
        dialogues: str,
        out: str,
        shard_size: int | str = 1000,
        audio: str | None = "flac",
        codes: Callable[[], SpeechTokenizer] | None = None,
        num_workers: int = 0,
        skip_bad: bool = False,
        features: Callable[[], SpeechEncoder] | None = None,
        feature_dtype: str = "float16",
        text_tokenizer: str | None = None,
    ) -> None:
        self.features = None if features is None else FeatureMaker(features, feature_dtype)
        if audio is not None and audio not in AUDIO_FORMATS:
            raise ValueError(f"audio must be one of {', '.join(AUDIO_FORMATS)} or none, got {audio!r}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}")
        self.rows, self.bytes = _size(shard_size)
        self.dialogues, self.out, self.audio, self.codes = dialogues, Path(out), audio, codes
        self.num_workers, self.skip_bad = num_workers, skip_bad
        self.text_tokenizer = text_tokenizer

    def run(self) -> dict[str, Any]:
        """Write what is missing; the summary, also in ``cuts.summary.json``.

        Raises:
            FileNotFoundError: There is no manifest.
            ValueError: A dialogue cannot be stored, or the folder holds something else.
        """
        tokenizer = self.codes() if self.codes is not None else None
        plan = self._survey(tokenizer)
        settings = {
            "version": VERSION,
            "dialogues": plan.digest,
            "shard_size": self.rows or f"{self.bytes} bytes",
            "audio": self.audio,
            "codes": plan.codes_of.fingerprint or plan.codes_of.tokenizer if plan.codes_of else None,
            "skip_bad": self.skip_bad,
        }
        if self.features is not None:
            settings["features"] = f"{encoder_fingerprint(self.features.encoder)} {self.features.dtype}"
        texts = None if self.text_tokenizer is None else TextMaker(self.text_tokenizer)
        if texts is not None:
            settings["texts"] = texts.of.fingerprint
        if (done := _begun(self.out, settings)) and done.get("finished"):
            return done
        if tokenizer is None and self.audio is None:
            plan.check_kept()
        self.out.mkdir(parents=True, exist_ok=True)
        self._write_summary({"settings": settings, "finished": False})
        codes, bad = plan.stored, dict[str, str]()
        if tokenizer is not None and self.codes is not None:
            made, bad = self._make_codes(tokenizer, plan)
            codes = codes | made
        fields = plan.fields(self.audio, bool(codes), self.features is not None, texts is not None)
        writer = ShardWriter(self.out, fields, self.audio, plan.codes_of, self.skip_bad, self.features, texts)
        with WorkerPool(partial(_give, writer), self.num_workers) as pool:
            shards = list(_track(pool.map(self._tasks(plan, codes, bad)), len(plan.rows)))
        summary = {"settings": settings, "finished": True, **_counted(shards, plan.codes_of)}
        if self.features is not None and FEATURES in fields:
            summary["features_of"] = asdict(FeaturesOf.of(self.features.encoder))
        if texts is not None:
            summary["texts_of"] = asdict(texts.of)
        self._write_summary(summary)
        return summary

    def _survey(self, tokenizer: SpeechTokenizer | None) -> _Plan:
        """One pass over the manifest: how it is split, and what its turns have."""
        plan = _Plan(hashlib.blake2b(manifest_path(self.dialogues).read_bytes(), digest_size=8).hexdigest())
        ids: Counter[str] = Counter()
        size = 0.0
        for cut in read_cuts(self.dialogues):
            ids[cut.id] += 1
            if ids[cut.id] > 1:
                raise ValueError(f"{self.dialogues} has several dialogues of the id {cut.id!r}; ids must be unique")
            taken = _pcm_bytes(cut)
            full = plan.rows and (plan.rows[-1] >= self.rows if self.rows else size + taken > self.bytes)
            if full or not plan.rows:
                plan.rows.append(0)
                size = 0.0
            plan.rows[-1] += 1
            size += taken
            plan.add(cut)
        if not plan.rows:
            raise ValueError(f"there is no dialogue in {self.dialogues}")
        if tokenizer is not None:
            plan.take(tokenizer)
        return plan

    def _make_codes(
        self, tokenizer: SpeechTokenizer, plan: _Plan
    ) -> tuple[dict[tuple[str, int], np.ndarray], dict[str, str]]:
        """Codes of every reply with audio, and the dialogues whose audio cannot be read."""
        store = CodeStore(manifest_path(self.dialogues).parent, tokenizer)
        turns = store.survey(read_cuts(self.dialogues), max(1, self.num_workers), progress=True)
        missing = {key: span for key, span in turns.spans.items() if key not in store}
        unreadable: dict[str, str] = {}
        for batch in code_spans(tokenizer, missing, True, self.codes, self.num_workers):
            store.add(batch.codes)
            unreadable |= batch.bad
        told = turns.bad | {turn: unreadable[key] for turn, key in turns.keys.items() if key in unreadable}
        if told and not self.skip_bad:
            (name, i), reason = min(told.items())
            raise ValueError(f"dialogue {name!r}, turn {i}: {reason} (--skip-bad leaves such dialogues out)")
        codes = {turn: store[key] for turn, key in turns.keys.items() if turn not in told}
        return codes, {name: reason for (name, _), reason in told.items()}

    def _tasks(
        self, plan: _Plan, codes: Mapping[tuple[str, int], np.ndarray], bad: Mapping[str, str]
    ) -> Iterator[ShardTask]:
        cuts = iter(read_cuts(self.dialogues))
        for number, rows in enumerate(plan.rows):
            taken = tuple(next(cuts) for _ in range(rows))
            turns = [(cut.id, i) for cut in taken for i in range(len(cut.supervisions))]
            yield ShardTask(
                number,
                taken,
                {turn: codes[turn] for turn in turns if turn in codes},
                {cut.id: bad[cut.id] for cut in taken if cut.id in bad},
            )

    def _write_summary(self, summary: dict[str, Any]) -> None:
        draft = self.out / draft_name(SUMMARY)
        draft.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(draft, self.out / SUMMARY)


@dataclass
class _Plan:
    """What is known of the dialogues before anything is written."""

    digest: str  # of the manifest
    rows: list[int] = field(default_factory=list)  # dialogues of each shard
    sides: set[str] = field(default_factory=set)  # of which there is audio
    stored: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)  # codes that come with turns
    spoken_replies: list[tuple[str, int]] = field(default_factory=list)
    codes_of: CodesOf | None = None

    def add(self, cut: Any) -> None:
        """Take a dialogue in."""
        for i in range(len(cut.supervisions)):
            check_turn(cut, i)
            if turn_span(cut, i) is not None:
                user = cut.supervisions[i].speaker == "user"
                self.sides.add(RECORDING if user else REPLIES)
                self.spoken_replies += [] if user else [(cut.id, i)]
            if (stored := load_turn_codes(cut, i)) is not None:
                self.stored[cut.id, i] = stored.codes
                of = self.codes_of = self.codes_of or CodesOf(stored.tokenizer, stored.frame_rate)
                if (of.tokenizer, of.frame_rate) != (stored.tokenizer, stored.frame_rate):
                    raise ValueError(
                        f"dialogue {cut.id!r}, turn {i} has codes of {stored.tokenizer!r} at {stored.frame_rate} Hz, "
                        f"turns before it of {of.tokenizer!r} at {of.frame_rate} Hz; a folder of shards holds one kind"
                    )

    def take(self, tokenizer: SpeechTokenizer) -> None:
        """Name the tokenizer whose codes replies get; it must be the one of codes that come with turns."""
        fingerprint = tokenizer_fingerprint(tokenizer)
        names = [name for name in (tokenizer.codes_name, fingerprint) if name]
        if self.codes_of is not None and self.codes_of.tokenizer not in names:
            raise ValueError(
                f"the dialogues have codes of {self.codes_of.tokenizer!r}, but the tokenizer is {' or '.join(names)}: "
                "the same numbers mean other sounds. Give the tokenizer that made them, or keep those alone"
            )
        self.codes_of = CodesOf(names[0], tokenizer.frame_rate, fingerprint, tokenizer.codebook_size - 1)

    def check_kept(self) -> None:
        """Refuse to lose replies: they are left without audio, and nobody makes codes of them."""
        if self.spoken_replies:
            name, turn = self.spoken_replies[0]
            raise ValueError(
                f"without audio nothing would be left of {len(self.spoken_replies)} spoken replies, such as turn "
                f"{turn} of dialogue {name!r}: name a tokenizer with --codes, or keep audio"
            )

    def fields(self, audio: str | None, codes: bool, features: bool, texts: bool) -> tuple[str, ...]:
        """Tars of every shard."""
        sides = [name for name in (RECORDING, REPLIES) if name in self.sides and audio is not None]
        heard = [FEATURES] if features and RECORDING in self.sides else []
        return (*sides, *([CODES] if codes else []), *heard, *([TEXTS] if texts else []))


def _give(writer: ShardWriter, number: int) -> ShardWriter:
    """What a worker calls."""
    return writer


def _size(given: int | str) -> tuple[int, int]:
    """Rows, or bytes, of a shard; the other is 0."""
    if isinstance(given, int) or given.isdigit():
        rows = int(given)
        if rows < 1:
            raise ValueError(f"shard_size must be at least 1 dialogue, got {rows}")
        return rows, 0
    found = _SIZE.match(given.strip())
    if found is None or not int(found[1]):
        raise ValueError(f"shard_size must be dialogues, such as 1000, or a size, such as 500MB; got {given!r}")
    return 0, int(found[1]) * (10**6 if found[2].upper() == "MB" else 10**9)


def _pcm_bytes(cut: Any) -> float:
    """What the audio of a dialogue takes as 16-bit samples."""
    replies = (cut.custom or {}).get(REPLIES)
    samples = cut.duration * cut.recording.sampling_rate if cut.has_recording else 0.0
    samples += replies.num_samples if replies is not None else 0
    return SAMPLE_BYTES * float(samples)


def _begun(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of a folder that was begun with the same settings; None where nothing is there.

    Raises:
        ValueError: It holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    file = folder / SUMMARY
    summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    made = summary.get("settings") or {}
    if made != settings:
        changed = sorted(k for k in {*made, *settings} if made.get(k) != settings.get(k))
        told = f"holds shards with other {', '.join(changed)}" if made else "holds something else than shards"
        raise ValueError(f"{folder} {told}; choose another folder, or delete this one to write the shards anew")
    return summary


def _counted(shards: list[ShardIndex], codes_of: CodesOf | None) -> dict[str, Any]:
    """The summary of finished shards."""

    def total(name: str) -> float:
        return float(sum(shard.made[name] for shard in shards))

    rows = [shard.rows for shard in shards]
    if not sum(rows):
        left_out = [one for shard in shards for one in shard.made["left_out"]]
        raise ValueError(f"no dialogue could be stored; the first of {len(left_out)}: {left_out[0]['reason']}")
    fields = sorted(shards[0].fields)
    return {
        "dialogues": sum(rows),
        "shards": len(rows),
        "turns": int(total("turns")),
        "user_hours": total("user_seconds") / 3600,
        "assistant_hours": total("assistant_seconds") / 3600,
        "code_frames": int(total("code_frames")),
        "clipped_samples": int(total("clipped_samples")),
        "bytes": {name: [shard.fields[name].bytes for shard in shards] for name in fields},
        "codes_of": asdict(codes_of) if codes_of is not None and CODES in fields else None,
        "left_out": [one for shard in shards for one in shard.made["left_out"]],
        "rows": rows,
        "digests": [shard.digest for shard in shards],
    }


def _track(shards: Iterator[ShardIndex], total: int) -> Iterator[ShardIndex]:
    """A bar on a screen."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(shards, "Shards", total, transient=True, disable=not console.is_terminal, console=console)
