"""A noisy copy of dialogues: the user's speech and nothing else, the same every time, whole or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fac_lightning.data import Dialogue, DialogueWriter, DistortedDialogues, Turn, read_dialogues
from fac_lightning.data.distortions import ColoredNoise, Distortion, Speed, sample_rng

RATE = 8000
STEP = 1 / 32768  # of 16 bits


def tone(pitch, seconds=0.25):
    return (0.2 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.fixture
def talk(tmp_path):
    """Two exchanges in one dialogue, one in another, and one that is only written."""
    with DialogueWriter(tmp_path / "talk") as writer:
        turns = [Turn("user", "First?", tone(200), RATE, {"voice": "a"}), Turn("assistant", "One.", tone(300), RATE)]
        more = [Turn("user", "Second?", tone(400, 0.5), RATE), Turn("assistant", "Two.")]
        writer.write(Dialogue("long", (*turns, *more), "Be brief.", {"topic": "numbers"}))
        writer.write(Dialogue("short", tuple(turns)))
        writer.write(Dialogue("written", (Turn("user", "Third?"), Turn("assistant", "Three.", tone(500), RATE))))
    return str(tmp_path / "talk")


def by_id(folder):
    return {dialogue.id: dialogue for dialogue in read_dialogues(folder)}


def test_the_users_speech_changes_and_nothing_else(talk, tmp_path):
    job = DistortedDialogues(talk, ColoredNoise(), str(tmp_path / "out"), seed=3)
    assert job.run()["distorted_turns"] == 3
    clean, noisy = by_id(talk), by_id(tmp_path / "out")
    assert list(noisy) == ["long", "short", "written"]
    for name, dialogue in clean.items():
        copy = noisy[name]
        assert (copy.system, copy.custom) == (dialogue.system, dialogue.custom)
        for place, (was, turn) in enumerate(zip(dialogue.turns, copy.turns, strict=True)):
            assert (turn.role, turn.text, turn.custom) == (was.role, was.text, was.custom)
            if was.audio is None or was.role == "assistant":
                np.testing.assert_array_equal(turn.audio, was.audio)
            else:
                expected = ColoredNoise()(was.audio, RATE, sample_rng(3, f"{name}/{place}/0"))
                np.testing.assert_allclose(turn.audio, expected, atol=0.6 * STEP)
    first, second = noisy["long"].turns[0].audio, noisy["short"].turns[0].audio
    assert np.abs(first - second).max() > 0.01  # the same question, other noise


def test_copies_are_drawn_anew_and_a_seed_draws_the_same(talk, tmp_path):
    runs = {
        name: DistortedDialogues(talk, ColoredNoise(), str(tmp_path / name), copies, seed)
        for name, copies, seed in (("one", 1, 0), ("two", 2, 0), ("again", 2, 0), ("other", 2, 1))
    }
    assert [job.run()["dialogues"] for job in runs.values()] == [3, 6, 6, 6]
    one, two, again, other = (by_id(job.out) for job in runs.values())
    assert list(two) == ["long-0", "long-1", "short-0", "short-1", "written-0", "written-1"]
    for name in ("long", "short"):
        first, second = (two[f"{name}-{copy}"].turns[0].audio for copy in (0, 1))
        assert np.abs(first - second).max() > 0.01
        np.testing.assert_array_equal(first, one[name].turns[0].audio)
        np.testing.assert_array_equal(second, again[f"{name}-1"].turns[0].audio)
        assert np.abs(first - other[f"{name}-0"].turns[0].audio).max() > 0.01


def test_a_distortion_may_change_the_length(talk, tmp_path):
    DistortedDialogues(talk, Speed((2.0, 2.0)), str(tmp_path / "out")).run()
    assert [len(turn.audio) for turn in by_id(tmp_path / "out")["long"].turns[::2]] == [1000, 2000]


class Fragile(Distortion):
    """Breaks at the second clip."""

    left = 1

    def distort(self, audio, sample_rate, rng):
        if not self.left:
            raise OSError("the cable broke")
        self.left -= 1
        return audio

    def __repr__(self):
        return "Fragile()"


def test_the_folder_is_there_whole_or_not_at_all_and_made_once(talk, tmp_path):
    out = tmp_path / "out"
    fragile = Fragile()
    with pytest.raises(OSError, match="the cable broke"):
        DistortedDialogues(talk, fragile, str(out)).run()
    assert not out.exists()
    fragile.left = 10
    first = DistortedDialogues(talk, fragile, str(out)).run()
    assert json.loads((out / "summary.json").read_text()) == first
    fragile.left = 0  # nothing is distorted again
    assert DistortedDialogues(talk, fragile, str(out)).run() == first
    with pytest.raises(ValueError, match="out was made with other copies, seed; choose another folder, or delete this"):
        DistortedDialogues(talk, fragile, str(out), copies=2, seed=1).run()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(ValueError, match="mine holds no finished dialogues"):
        DistortedDialogues(talk, fragile, str(tmp_path / "mine")).run()


def test_what_cannot_be_distorted_is_refused(tmp_path):
    with DialogueWriter(tmp_path / "talk") as writer:
        writer.write(Dialogue("written", (Turn("user", "Third?"), Turn("assistant", "Three.", tone(500), RATE))))
    with pytest.raises(ValueError, match=r"no user speaks in .*talk, so there is nothing to distort"):
        DistortedDialogues(str(tmp_path / "talk"), ColoredNoise(), str(tmp_path / "out")).run()
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        DistortedDialogues(str(tmp_path / "talk"), ColoredNoise(), str(tmp_path / "out"), copies=0)
