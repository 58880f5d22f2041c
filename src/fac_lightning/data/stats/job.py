"""``DialogueStats``: one pass over manifests, figures and a page out of it."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fac_lightning.data.layout import Clip, SpokenTurn, fit_mode, lay_out
from fac_lightning.data.row_source import NEED_USER_TEXT
from fac_lightning.data.stats.density import DensestReplies
from fac_lightning.data.stats.facts import DialogueFacts, read_facts
from fac_lightning.data.stats.histogram import Histogram
from fac_lightning.data.stats.page import stats_page
from fac_lightning.data.stats.tally import Tally, count_edges
from fac_lightning.data.text import CachedChatFormat
from fac_lightning.prompts import MODES, ChatFormat
from fac_lightning.replies import GroupEnd
from fac_lightning.text_tokenizer import load_text_tokenizer
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechGeometry

__all__ = ["DialogueStats"]

SIDES = ("user", "assistant")
ENCODER_RATE = 16000  # Hz; only the ratio to the positions' rate matters, clips are never read


class _Chat(CachedChatFormat):
    """Encodes once what all dialogues have, marks and prompts, and once what a turn says."""

    max_texts = 1000


class DialogueStats:
    """Job: count what dialogues hold, from their manifests alone: no audio is read.

    Replies whose text has more tokens than their speech has positions are counted and the densest named, for the rule
    of the released model (``GroupEnd``), which cuts such texts off. Positions of a dialogue are those of the mode
    nearest to S2M that it serves, by the same rule. Both need a text tokenizer.

    Args:
        paths: Dialogues folders, manifests, shards, or patterns of these.
        out: Folder that gets ``stats.json`` and ``stats.html``; nothing is written when None.
        text_tokenizer: Hub id or folder.
        tokenizer: Speech tokenizer, for its frame rate; 25 Hz when None.
        group_rate: Positions a second, Hz: 5 in Fun-Audio-Chat.
        lead_in_codes: Codes of ``bos`` before speech, so that text runs ahead: 10 in Fun-Audio-Chat.
        densest: How many of the densest replies are named.

    Raises:
        ValueError: The frame rate is no multiple of ``group_rate``.
    """

    def __init__(
        self,
        paths: str | list[str],
        out: str | None = None,
        text_tokenizer: str | None = None,
        tokenizer: SpeechTokenizer | None = None,
        group_rate: float = 5.0,
        lead_in_codes: int = 10,
        densest: int = 20,
    ) -> None:
        self.paths = [paths] if isinstance(paths, str) else list(paths)
        self.out, self.text_tokenizer = None if out is None else Path(out), text_tokenizer
        self.frame_rate = 25.0 if tokenizer is None else float(tokenizer.frame_rate)
        self.group_rate, self.densest = group_rate, densest
        group_size = self.frame_rate / group_rate if group_rate > 0 else 0.0
        if group_size < 1 or abs(group_size - round(group_size)) > 1e-6:
            raise ValueError(
                f"positions come at a rate that divides the {self.frame_rate:g} Hz of the speech tokens, got "
                f"{group_rate:g} Hz; for example {self.frame_rate / 5:g}"
            )
        self.geometry = SpeechGeometry(ENCODER_RATE, round(ENCODER_RATE / group_rate), round(group_size), 1, 1, 1)
        self.reply = GroupEnd(lead_in_codes)

    def run(self) -> dict[str, Any]:
        """Count; the figures, also in ``stats.json``.

        Raises:
            FileNotFoundError: A path does not exist.
            ValueError: A manifest is damaged or empty.
        """
        chat = None if self.text_tokenizer is None else _Chat(load_text_tokenizer(self.text_tokenizer))
        sides, modes = {side: Tally() for side in SIDES}, Counter(dict.fromkeys(MODES, 0))
        turns, positions = Histogram(count_edges, whole=True), Histogram(count_edges, whole=True)
        dense = DensestReplies(self.densest)
        for facts in read_facts(self.paths):
            spoken = [self._count(facts, i, sides, chat, dense) for i in range(len(facts.turns))]
            for side, rate, container in facts.recordings:
                sides[side].add_recording(rate, container)
            turns.add(len(spoken))
            unwritten = any(turn.clip is not None and not turn.text.strip() for turn in spoken)
            served = [m for m in MODES if fit_mode(m, spoken) == m and not (unwritten and m in NEED_USER_TEXT)]
            modes.update(served)
            if chat is not None and (mode := fit_mode("S2M", spoken)) is not None:
                row = lay_out(facts.id, spoken, chat, self.geometry, mode, system=facts.system, reply=self.reply)
                positions.add(len(row))
        figures = {
            "paths": self.paths,
            "dialogues": turns.count,
            "turns": sum(side.turns for side in sides.values()),
            "hours": sum(side.seconds.total for side in sides.values()) / 3600,
            "sides": {name: side.to_record() for name, side in sides.items()},
            "turns_per_dialogue": turns.to_record(),
            "modes": dict(modes),
            "text_tokenizer": self.text_tokenizer,
            "positions": None if chat is None else positions.to_record(),
            "density": None if chat is None else self._density(dense),
        }
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            _write(self.out / "stats.json", json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
            _write(self.out / "stats.html", stats_page(figures))
        return figures

    def _count(
        self,
        facts: DialogueFacts,
        index: int,
        sides: dict[str, Tally],
        chat: ChatFormat | None,
        dense: DensestReplies,
    ) -> SpokenTurn:
        """Count a turn, and give it as layout takes it, with stand-ins for what is heard and said."""
        turn = facts.turns[index]
        tokens = None if chat is None else len(chat.encode(turn.text))
        sides[turn.role].add(turn, tokens)
        if turn.seconds is None:
            return SpokenTurn(turn.role, turn.text)
        if turn.role == "user":
            return SpokenTurn(turn.role, turn.text, clip=Clip(math.ceil(turn.seconds * ENCODER_RATE), _not_read))
        frames = turn.frames
        if not frames or turn.frame_rate != self.frame_rate:
            frames = math.ceil(round(turn.seconds * self.frame_rate, 6))
        codes = np.broadcast_to(np.int64(0), (frames, 1))
        if tokens is not None:
            positions = len(self.reply.cut(codes, self.geometry).codes)
            dense.add(facts.id, index, tokens, positions, turn.seconds)
        return SpokenTurn(turn.role, turn.text, codes=codes, seconds=turn.seconds)

    def _density(self, dense: DensestReplies) -> dict[str, Any]:
        rule = {"group_rate": self.group_rate, "frame_rate": self.frame_rate, "rule": str(self.reply)}
        return {**rule, **dense.to_record()}


def _not_read() -> np.ndarray:
    raise AssertionError("counting reads no audio")


def _write(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: a file that is there is whole."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
