"""Dialogues on disk: what is written comes back, crashes do no harm, and what does not fit is refused."""

import gzip
import json

import numpy as np
import pytest
import soundfile

from fac_lightning.data import Dialogue, DialogueWriter, Turn, load_turn_audio, read_cuts, read_dialogues
from fac_lightning.resampling import resample
from fac_lightning.testing.dialogues import make_dialogues


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, samples).astype(np.float32)


@pytest.fixture
def spoken():
    return Dialogue(
        "a/b c",
        (
            Turn("user", "hi", noise(7001, 1), 22050, {"voice": "x"}),
            Turn("assistant", "hé ✓", noise(9000, 2), 16000),
            Turn("assistant", "not spoken"),
            Turn("user", "again", noise(101, 3), 22050),
            Turn("assistant", "bye", noise(33, 4), 16000),
        ),
        system="Be brief.",
        custom={"wer": 0.5},
    )


def write(folder, *dialogues):
    with DialogueWriter(folder) as writer:
        for dialogue in dialogues:
            writer.write(dialogue)


def assert_same(found, expected):
    assert (found.id, found.system, found.custom) == (expected.id, expected.system, expected.custom)
    assert len(found.turns) == len(expected.turns)
    for a, b in zip(found.turns, expected.turns, strict=True):
        assert (a.role, a.text, a.sample_rate, a.custom) == (b.role, b.text, b.sample_rate, b.custom)
        assert (a.audio is None) == (b.audio is None)
        if b.audio is not None:
            assert a.audio.dtype == np.float32
            assert a.audio.shape == b.audio.shape
            assert np.abs(a.audio - b.audio).max() <= 0.5 / 32768 + 1e-7


def test_what_is_written_comes_back(tmp_path, spoken):
    written = Dialogue("text", (Turn("user", "x"), Turn("assistant", "y")))
    write(tmp_path, spoken, written)
    first, second = read_dialogues(tmp_path)
    assert_same(first, spoken)
    assert_same(second, written)
    assert all(t.audio is None for d in read_dialogues(tmp_path, audio=False) for t in d.turns)


def test_a_folder_may_be_moved_and_lhotse_opens_it(tmp_path, spoken):
    from lhotse import CutSet
    from lhotse.qa import validate

    write(tmp_path / "old", spoken)
    (tmp_path / "old").rename(tmp_path / "new")
    assert_same(next(read_dialogues(tmp_path / "new" / "cuts.jsonl")), spoken)
    (cut,) = read_cuts(tmp_path / "new")
    validate(cut, read_data=True)
    assert cut.load_audio().shape == (1, 7102)
    assert cut.load_target_audio().shape == (1, 9033)
    assert len(CutSet.from_file(tmp_path / "new" / "cuts.jsonl")) == 1


def test_a_gzipped_manifest_is_read_too(tmp_path, spoken):
    write(tmp_path, spoken)
    zipped = tmp_path / "cuts.jsonl.gz"
    zipped.write_bytes(gzip.compress((tmp_path / "cuts.jsonl").read_bytes()))
    assert_same(next(read_dialogues(zipped)), spoken)


def test_a_cut_that_starts_later_in_its_recording_is_read_from_there(tmp_path, spoken):
    write(tmp_path, spoken)
    (cut,) = read_cuts(tmp_path)
    cut.start += 1000 / 22050
    cut.supervisions[0].duration -= 1000 / 22050
    audio, _ = load_turn_audio(cut, 0)
    np.testing.assert_allclose(audio, spoken.turns[0].audio[1000:], atol=1e-4)


def test_other_sample_rates_on_request(tmp_path, spoken):
    write(tmp_path, spoken)
    turn = next(read_dialogues(tmp_path, sample_rate=16000)).turns[0]
    assert turn.sample_rate == 16000
    assert len(turn.audio) == -(-7001 * 16000 // 22050)


def test_resampling_keeps_a_tone():
    tone = np.sin(2 * np.pi * 440 * np.arange(24000) / 24000).astype(np.float32)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(resample(tone, 24000, 16000)[100:-100], expected[100:-100], atol=0.02)
    assert resample(tone, 24000, 24000) is tone


def test_a_line_cut_short_is_dropped_and_the_rest_continued(tmp_path, spoken):
    write(tmp_path, spoken)
    whole = (tmp_path / "cuts.jsonl").read_bytes()
    (tmp_path / "cuts.jsonl").write_bytes(whole + whole[: len(whole) // 2])
    other = Dialogue("other", (Turn("user", "x"),))
    with DialogueWriter(tmp_path) as writer:
        assert writer.done == {"a/b c"}
        writer.write(other)
        assert writer.done == {"a/b c", "other"}
    assert [d.id for d in read_dialogues(tmp_path)] == ["a/b c", "other"]


def test_an_id_is_written_once(tmp_path, spoken):
    write(tmp_path, spoken)
    with DialogueWriter(tmp_path) as writer, pytest.raises(ValueError, match=r"already in .* ids must be unique"):
        writer.write(spoken)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((), "has no turns"),
        ((Turn("user", "x", np.zeros((2, 8), np.float32), 16000),), "shape \\(2, 8\\); give mono"),
        ((Turn("user", "x", np.zeros(0, np.float32), 16000),), "at least one"),
        ((Turn("user", "x", np.full(4, np.nan, np.float32), 16000),), "NaN"),
        ((Turn("user", "x", noise(4)),), "sample rates \\['None'\\]"),
        ((Turn("user", "x", noise(4), 8000), Turn("user", "y", noise(4), 16000)), "must share one"),
    ],
)
def test_turns_that_cannot_be_stored_are_refused(tmp_path, turns, message):
    with DialogueWriter(tmp_path) as writer, pytest.raises(ValueError, match=message):
        writer.write(Dialogue("d", turns))
    assert list(read_dialogues(tmp_path)) == []


def test_reserved_keys_are_refused(tmp_path):
    with DialogueWriter(tmp_path) as writer, pytest.raises(ValueError, match=r"\['system'\] are reserved"):
        writer.write(Dialogue("d", (Turn("user", "x"),), custom={"system": 1}))


def edit(folder, change):
    record = json.loads((folder / "cuts.jsonl").read_text())
    change(record)
    (folder / "cuts.jsonl").write_text(json.dumps(record) + "\n")


@pytest.mark.parametrize(("kind", "source"), [("command", "cat x.flac"), ("file", "cat x.flac |")])
def test_manifests_that_run_commands_are_refused(tmp_path, spoken, kind, source):
    write(tmp_path, spoken)
    edit(tmp_path, lambda r: r["recording"]["sources"][0].update(type=kind, source=source))
    with pytest.raises(ValueError, match="manifests that run commands are refused"):
        list(read_dialogues(tmp_path))


def test_audio_that_does_not_fit_its_manifest_is_refused(tmp_path, spoken):
    write(tmp_path, spoken)
    path = tmp_path / "audio" / "a%2Fb%20c-user.flac"
    soundfile.write(path, noise(7102), 16000)
    with pytest.raises(ValueError, match=r"FAC-A08: .* got 7102 samples at 16000 Hz, want 7102 at 22050 Hz"):
        list(read_dialogues(tmp_path))
    path.write_bytes(b"no audio")
    with pytest.raises(ValueError, match="recording 'a/b c-user'"):
        list(read_dialogues(tmp_path))
    path.unlink()
    with pytest.raises(ValueError, match="recording 'a/b c-user'"):
        list(read_dialogues(tmp_path))


def test_broken_manifests_name_file_and_line(tmp_path, spoken):
    write(tmp_path, spoken)
    with (tmp_path / "cuts.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"FAC-D04: blank line in .*cuts\.jsonl, line 2"):
        list(read_dialogues(tmp_path))
    (tmp_path / "cuts.jsonl").write_text('{"id": "x", "type": "Banana"}\n')
    with pytest.raises(ValueError, match=r"FAC-D15: not a lhotse cut in .*, line 1, .*: got the type 'Banana'"):
        list(read_dialogues(tmp_path))
    with pytest.raises(FileNotFoundError, match="name a dialogues folder"):
        list(read_dialogues(tmp_path / "nowhere"))


def test_turns_need_a_role_and_a_text(tmp_path, spoken):
    write(tmp_path, spoken)
    edit(tmp_path, lambda r: r["supervisions"][1].update(speaker="Bob"))
    with pytest.raises(ValueError, match="turn 1, field 'speaker': got 'Bob'"):
        list(read_dialogues(tmp_path))


def test_dummy_dialogues_repeat_and_continue(tmp_path):
    make_dialogues(tmp_path / "a", 3, seed=1, rounds=2)
    make_dialogues(tmp_path / "b", 2, seed=1, rounds=2)
    make_dialogues(tmp_path / "b", 3, seed=1, rounds=2)
    for a, b in zip(read_dialogues(tmp_path / "a"), read_dialogues(tmp_path / "b"), strict=True):
        assert_same(a, b)
        assert len(a.turns) == 4
    assert all(t.audio is None for d in read_dialogues(make_dialogues(tmp_path / "c", spoken=False)) for t in d.turns)
