"""Measure what a trained run knows in text, without generating."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fac_lightning.prompts import SYSTEM_PROMPTS, ChatFormat
from fac_lightning.text_probe import lay_out_texts, read_texts, score_texts

__all__ = ["TextQAEvaluation"]


class TextQAEvaluation:
    """Ask every question of one or more sets in text and see how likely the true answers are (mode T2T).

    Teacher forcing in packed lines, much faster than generating: ``text_exact`` is the share of answers of which every
    token, the end included, is the most likely one, and those are the answers that greedy decoding says word for word.
    Beside it ``text_accuracy`` of the answer tokens and ``text_loss`` in nats per token.

    Args:
        run: Folder of a trained run.
        sets: Name -> dialogues folder (of which the texts are read), or file of JSON lines with ``prompt`` and
            ``answer``.
        out: Folder for ``results.json``.
        load_run: Rebuilds a run (``fac_lightning.cli.build.load_run``); the command line passes it.
        limit: Dialogues taken from each set, spread over it; None takes all.
        system: System prompt; None takes what the run was trained with in mode T2T.
        capacity: Positions of a packed line.
    """

    def __init__(
        self,
        run: str,
        sets: dict[str, str],
        out: str,
        load_run: Callable[[str], Any],
        limit: int | None = None,
        system: str | None = None,
        capacity: int = 2048,
    ) -> None:
        if not sets:
            raise ValueError("sets is empty: name at least one dialogues folder or file of JSON lines to evaluate on")
        self.run_folder, self.sets, self.out, self.load_run = run, dict(sets), Path(out), load_run
        self.limit, self.system, self.capacity = limit, system, capacity

    def run(self) -> dict[str, Any]:
        """Evaluate and write ``results.json``; returns its content."""
        loaded = self.load_run(self.run_folder)
        chat, model = ChatFormat(loaded.text_tokenizer), loaded.model
        prompts = loaded.data.get("system_prompts") or {}
        system = prompts.get("T2T", SYSTEM_PROMPTS["T2T"]) if self.system is None else self.system
        result: dict[str, Any] = {"run": self.run_folder, "mode": "T2T", "sets": {}}
        for name, path in self.sets.items():
            lines = lay_out_texts(read_texts(path, self.limit), chat, system, self.capacity)
            scores = score_texts(getattr(model, "backbone", model), lines)
            result["sets"][name] = {
                "count": scores.answers,
                "text_exact": scores.exact,
                "text_accuracy": scores.accuracy,
                "text_loss": scores.loss,
                "tokens": scores.tokens,
            }
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "results.json").write_text(json.dumps(result, indent=2, ensure_ascii=False), encoding="utf-8")
        return result
