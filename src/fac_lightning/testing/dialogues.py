"""Tiny dialogues on disk, with tones for speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fac_lightning.data.dialogue import Dialogue, DialogueWriter, Turn

__all__ = ["make_dialogues"]

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun", "moon", "star"]


def make_dialogues(
    folder: str | Path,
    n: int = 8,
    seed: int = 0,
    sample_rate: int = 16000,
    rounds: int = 1,
    spoken: bool = True,
    seconds: tuple[float, float] = (0.2, 0.6),
) -> Path:
    """Write ``n`` question and answer dialogues and return the folder.

    A reply's tone depends on its text alone, so that a model can learn to say it.

    Args:
        folder: Where.
        n: Dialogues.
        seed: Of texts and lengths.
        sample_rate: Hz of all audio.
        rounds: Question and answer pairs per dialogue.
        spoken: With tones; else text only.
        seconds: Shortest and longest turn.
    """
    rng = np.random.default_rng(seed)

    def turn(role: str, text: str) -> Turn:
        if not spoken:
            return Turn(role, text)  # type: ignore[arg-type]
        span = seconds[0] + (seconds[1] - seconds[0]) * (rng.random() if role == "user" else len(text) % 10 / 10)
        time = np.arange(int(span * sample_rate)) / sample_rate
        pitch = 200 + 50 * (sum(map(ord, text)) % 20)
        tone = (0.3 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)
        return Turn(role, text, tone, sample_rate)  # type: ignore[arg-type]

    with DialogueWriter(folder) as writer:
        for i in range(n):
            turns = []
            for _ in range(rounds):
                word, other = rng.choice(WORDS, 2)
                turns += [turn("user", f"What follows {word}?"), turn("assistant", f"{other} follows {word}.")]
            if f"dummy-{i}" not in writer.done:
                writer.write(Dialogue(f"dummy-{i}", tuple(turns)))
    return Path(folder)
