"""Job: make the speech codes of a manifest beforehand, so that a training finds them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from fac_lightning.data.clip_codes import code_spans
from fac_lightning.data.codes import CodeStore
from fac_lightning.data.dialogue import read_cuts
from fac_lightning.data.manifest import manifest_path
from fac_lightning.tokenizers.base import SpeechTokenizer

__all__ = ["CodeExtraction"]

BAD_FILE = "bad_audio.jsonl"


class CodeExtraction:
    """Make the codes of the assistant's spoken turns and keep them where a training looks for them.

    Every batch is on disk when the next one begins, under the content of its audio: a run that was killed goes on
    where it stopped, and what is there is not made again. Audio that cannot be read is left out, told, and listed in
    ``bad_audio.jsonl`` beside the codes.

    Args:
        dialogues: Dialogues folder or manifest.
        tokenizer: Makes the tokenizer, here and in each worker; in a recipe a node with ``_partial_: true``.
        out: Folder that gets ``codes/``; that of the manifest when None, where a training finds it.
        num_workers: Processes; 0 works in this one. Each has a tokenizer, and a GPU in turn where there are any.
    """

    def __init__(
        self,
        dialogues: str,
        tokenizer: Callable[[], SpeechTokenizer],
        out: str | None = None,
        num_workers: int = 0,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}")
        self.dialogues, self.tokenizer, self.num_workers = dialogues, tokenizer, num_workers
        self.out = None if out is None else Path(out)

    def run(self) -> dict[str, Any]:
        """Make what is missing; counts of turns, hours, codes, and the turns that could not be read.

        Raises:
            FileNotFoundError: There is no manifest.
            ValueError: No turn of the assistant has audio, or the tokenizer breaks its contract.
        """
        manifest = manifest_path(self.dialogues)
        tokenizer = self.tokenizer()
        store = CodeStore(self.out or manifest.parent, tokenizer)
        turns = store.survey(read_cuts(self.dialogues), max(1, self.num_workers), progress=True)
        if not turns.keys and not turns.bad:
            raise ValueError(
                f"{manifest} has no turn of the assistant with audio, so there is nothing to tokenise; "
                "codes are made of what the assistant says"
            )
        missing = {key: span for key, span in turns.spans.items() if key not in store}
        unreadable: dict[str, str] = {}
        made, start = 0, time.monotonic()
        with closing(code_spans(tokenizer, missing, True, self.tokenizer, self.num_workers)) as batches:
            for batch in batches:
                store.add(batch.codes)
                unreadable |= batch.bad
                made += sum(codes.size for codes in batch.codes.values())
        seconds = time.monotonic() - start
        bad = turns.bad | {turn: unreadable[key] for turn, key in turns.keys.items() if key in unreadable}
        listed = [{"id": name, "turn": i, "reason": reason} for (name, i), reason in sorted(bad.items())]
        self._list(store.folder, listed)
        frames = sum(len(store[key]) for turn, key in turns.keys.items() if turn not in bad)
        fresh = sum(span.count / span.recording.sampling_rate for key, span in missing.items() if key not in unreadable)
        return {
            "clips": len(turns.keys) + len(turns.bad),
            "made": sum(key in missing and key not in unreadable for key in turns.keys.values()),
            "skipped": sum(key not in missing for key in turns.keys.values()),
            "bad": len(bad),
            "hours": frames / tokenizer.frame_rate / 3600,
            "codes": frames * tokenizer.num_codebooks,
            "codes_per_second": made / seconds if made else 0.0,
            "times_real_time": fresh / seconds if made else 0.0,
            "folder": str(store.folder),
            "bad_audio": listed,
        }

    @staticmethod
    def _list(folder: Path, bad: list[dict[str, Any]]) -> None:
        """Write the list of bad audio, or remove that of an earlier run."""
        file = folder / BAD_FILE
        if not bad:
            file.unlink(missing_ok=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.part")
        draft.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in bad), encoding="utf-8")
        os.replace(draft, file)
