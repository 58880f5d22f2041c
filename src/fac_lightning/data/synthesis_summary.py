"""What a synthesis left on disk, in figures."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from fac_lightning.data.dialogue import read_cuts

__all__ = ["summarize", "summary_table"]


def summarize(folder: Path) -> dict[str, Any]:
    """Counts of a folder, as they stand on disk; WERs over all that the recogniser heard, kept or not."""
    seconds: Counter[str] = Counter()
    wers: dict[str, list[float]] = defaultdict(list)
    kept: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    dialogues = rejects = 0
    for cut in read_cuts(folder):
        dialogues += 1
        for supervision in cut.supervisions:
            custom = supervision.custom or {}
            if custom.get("spoken"):
                seconds[supervision.speaker] += supervision.duration
            if supervision.speaker == "user" or len(cut.supervisions) == 1:
                kept[custom.get("voice", "")] += 1
                if custom.get("wer") is not None:
                    wers[custom["voice"]].append(custom["wer"])
    for line in (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines():
        rejects += 1
        for turn in json.loads(line)["turns"]:
            rejected[turn["voice"]] += 1
            if turn["wer"] is not None:
                wers[turn["voice"]].append(turn["wer"])
    voices = {
        voice: {
            "kept": kept[voice],
            "rejected": rejected[voice],
            "heard": len(wers[voice]),
            "mean_wer": round(sum(wers[voice]) / len(wers[voice]), 4) if wers[voice] else None,
        }
        for voice in sorted((kept | rejected).keys() - {""})
    }
    return {
        "dialogues": dialogues,
        "rejected": rejects,
        "user_seconds": round(seconds["user"], 1),
        "assistant_seconds": round(seconds["assistant"], 1),
        "voices": voices,
    }


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The summaries of several folders, voice by voice."""
    table = Table("folder", "voice", "kept", "rejected", "heard", "mean WER", title="Synthesised dialogues")
    for name, part in summary.items():
        table.add_row(name, "", str(part["dialogues"]), str(part["rejected"]), "", "", style="bold")
        for voice, row in part["voices"].items():
            wer = "" if row["mean_wer"] is None else f"{100 * row['mean_wer']:.1f} %"
            table.add_row("", voice, str(row["kept"]), str(row["rejected"]), str(row["heard"]), wer)
    return table
