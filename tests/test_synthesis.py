"""Synthesis: judged, shared, resumable, the same whatever the number of workers."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fac_lightning.data import DialogueSynthesis, JsonlDialogues, SynthesisSplit, World, read_dialogues
from fac_lightning.data.clips import ClipMaker, ClipRequest, clip_word_error_rate
from fac_lightning.recognizers.base import Recognizer
from fac_lightning.synthesizers import Synthesizer, ToneSynthesizer

pytest.importorskip("whisper_normalizer", reason="whisper-normalizer not installed")


class Ear(Recognizer):
    """Knows every clip of tones by its samples; ``deaf`` to texts that contain a word."""

    def __init__(self, voices: Sequence[Synthesizer], texts: Sequence[str], deaf: str = "\0") -> None:
        self.sample_rate = 16000
        self.known = {voice(text).tobytes(): text for voice in voices for text in texts}
        self.deaf, self.heard = deaf, 0

    def __call__(self, audio: Sequence[np.ndarray]) -> list[str]:
        self.heard += len(audio)
        texts = [self.known[clip.tobytes()] for clip in audio]
        return ["mumble" if self.deaf in text else text for text in texts]


class SteadyTone(ToneSynthesizer):
    """A tone whose seed changes nothing."""

    def __call__(self, text: str, seed: int = 0) -> np.ndarray:
        return super().__call__(text, seed=0)


def voices(*pitches: float) -> list[Synthesizer]:
    return [SteadyTone(pitch, letter_seconds=0.005) for pitch in pitches]


def job(folder: Path, **changes) -> DialogueSynthesis:
    arguments = {
        "source": World(relations=["sides"]),
        "splits": {
            "train": SynthesisSplit("train", voices(200, 250, 300)),
            "eval": SynthesisSplit("unseen", voices(350, 400), limit=4),
            "text": SynthesisSplit("train"),
        },
        "assistant": SteadyTone(150, letter_seconds=0.005),
        "trim": None,
        **changes,
    }
    return DialogueSynthesis(str(folder), **arguments)


def ear(made: DialogueSynthesis, deaf: str = "\0") -> Ear:
    texts = {t.text for select in ("train", "unseen") for d in made.source.dialogues(select) for t in d.turns}
    return Ear(made._voices, sorted(texts), deaf)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "settings.json"
    }


def test_splits_hold_what_was_asked_and_turns_tell_how_they_were_made(tmp_path: Path) -> None:
    made = job(tmp_path)
    made.recognizer = ear(made)
    summary = made.run()
    assert {name: part["dialogues"] for name, part in summary.items()} == {
        "answers": 5,
        "train": 30,
        "eval": 4,
        "text": 30,
    }
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert sum(v["heard"] for v in summary["train"]["voices"].values()) == 30
    for dialogue in read_dialogues(tmp_path / "train"):
        user, assistant = dialogue.turns
        assert user.custom["voice"] == dialogue.custom["voice"]
        assert (user.custom["wer"], user.custom["asr_text"]) == (0.0, user.text)
        assert assistant.custom["voice"] == "tone/150"
        assert user.audio is not None
        assert len(user.audio) == len(user.text) * 80
    assert all(turn.audio is None for d in read_dialogues(tmp_path / "text") for turn in d.turns)


def test_an_answer_has_the_same_samples_in_all_its_dialogues(tmp_path: Path) -> None:
    job(tmp_path).run()
    answers: dict[str, set[bytes]] = defaultdict(set)
    for split in ("train", "eval"):
        for dialogue in read_dialogues(tmp_path / split):
            assert dialogue.turns[1].audio is not None
            answers[dialogue.turns[1].text].add(dialogue.turns[1].audio.tobytes())
    assert len(answers) == 5
    assert all(len(samples) == 1 for samples in answers.values())


def test_every_fact_is_heard_in_every_voice_and_no_voice_is_tied_to_a_wording(tmp_path: Path) -> None:
    made = job(tmp_path)
    items = made.plan("train")
    heard: dict[str, set[int]] = defaultdict(set)
    wordings: dict[int, set[int]] = defaultdict(set)
    for item in items:
        assert item.voice is not None
        heard[item.dialogue.custom["fact"]].add(item.voice)
        wordings[item.voice].add(item.dialogue.custom["wording"])
    assert all(len(found) == 3 for found in heard.values())
    assert all(len(found) == 6 for found in wordings.values())


def test_limit_draws_different_answers_and_both_voices(tmp_path: Path) -> None:
    made = job(tmp_path)
    items = made.plan("eval")
    assert len({item.dialogue.custom["fact"] for item in items}) == 4
    assert sorted(Counter(item.voice for item in items).values()) == [2, 2]
    assert items == made.plan("eval")


def test_voices_per_dialogue_speak_each_dialogue_that_often(tmp_path: Path) -> None:
    made = job(tmp_path, splits={"train": SynthesisSplit("train", voices(200, 250, 300), voices_per_dialogue=2)})
    items = made.plan("train")
    assert len({item.id for item in items}) == len(items) == 60
    with pytest.raises(ValueError, match="voices_per_dialogue is 3 but there are 2 voices"):
        job(tmp_path, splits={"a": SynthesisSplit("train", voices(200, 250), voices_per_dialogue=3)})
    with pytest.raises(ValueError, match="a split may not be called 'answers'"):
        job(tmp_path, splits={"answers": SynthesisSplit("train")})


def test_what_the_recogniser_mishears_is_rejected_with_the_reason(tmp_path: Path) -> None:
    made = job(tmp_path)
    made.recognizer = ear(made, deaf="Count the sides of a square")
    summary = made.run()
    assert (summary["train"]["dialogues"], summary["train"]["rejected"]) == (29, 1)
    (line,) = (tmp_path / "train" / "rejected.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["reason"] == "user turn 'Count the sides of a square.': WER 1.00 > 0.34"
    assert record["turns"][0]["asr_text"] == "mumble"
    assert made.run() == summary


def test_a_rejected_answer_takes_its_dialogues_along(tmp_path: Path) -> None:
    made = job(tmp_path)
    made.recognizer = ear(made, deaf="A square has four")
    summary = made.run()
    assert (summary["answers"]["dialogues"], summary["answers"]["rejected"]) == (4, 1)
    assert (summary["train"]["dialogues"], summary["train"]["rejected"]) == (24, 6)
    lines = (tmp_path / "train" / "rejected.jsonl").read_text().splitlines()
    reasons = {json.loads(line)["reason"] for line in lines}
    assert reasons == {"answer 'A square has four sides.' was rejected"}


def test_filter_fraction_hears_a_sample_and_says_so(tmp_path: Path) -> None:
    splits = {"train": SynthesisSplit("train", voices(200, 250, 300), filter_fraction=0.4)}
    made = job(tmp_path, splits=splits)
    made.recognizer = ear(made)
    made.run()
    heard = [d.turns[0].custom["wer"] is not None for d in read_dialogues(tmp_path / "train", audio=False)]
    assert 4 <= sum(heard) <= 20
    assert made.recognizer.heard == sum(heard) + 5


def test_more_attempts_keep_the_best() -> None:
    class Moody(Recognizer):
        transcripts = iter(["one", "one two four", "one two three", "never asked"])

        def __call__(self, audio: Sequence[np.ndarray]) -> list[str]:
            return [next(self.transcripts) for _ in audio]

    maker = ClipMaker([ToneSynthesizer(letter_seconds=0.002)], Moody(), trim=None)
    (clip,) = maker([ClipRequest("one two three", 0, seed=5, max_wer=0.0, attempts=4)])
    assert (clip.wer, clip.asr_text) == (0.0, "one two three")
    assert clip.seed == 5 + 2 * 1_000_003
    assert next(Moody.transcripts) == "never asked"


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = job(tmp_path / "whole")
    whole.recognizer = ear(whole, deaf="Count the sides of a square")
    whole.run()
    broken = job(tmp_path / "broken")
    broken.recognizer = ear(broken, deaf="Count the sides of a square")
    broken.run()
    for name in ("answers/cuts.jsonl", "train/cuts.jsonl", "train/rejected.jsonl"):
        file = tmp_path / "broken" / name
        data = file.read_bytes()
        file.write_bytes(data[: len(data) * 2 // 3])  # a kill in the middle of a line
    broken.run()
    assert content(tmp_path / "broken").keys() == content(tmp_path / "whole").keys()
    for name, data in content(tmp_path / "whole").items():
        again = content(tmp_path / "broken")[name]
        assert sorted(again.splitlines()) == sorted(data.splitlines()), name


def test_a_folder_made_with_other_settings_is_refused(tmp_path: Path) -> None:
    job(tmp_path).run()
    with pytest.raises(ValueError, match=r"was made with other clips, text \(see settings.json there\)"):
        job(tmp_path, seed=1, splits=job(tmp_path).splits).run()


def test_worker_processes_make_the_same_files(tmp_path: Path) -> None:
    splits = {"train": SynthesisSplit("train", [ToneSynthesizer(200, 0.002)], limit=5)}
    for workers in (0, 1):
        assistant = ToneSynthesizer(150, 0.002)
        job(tmp_path / str(workers), splits=splits, assistant=assistant, sample_rate=8000, num_workers=workers).run()
    one, two = content(tmp_path / "0"), content(tmp_path / "1")
    assert one == two
    assert any(name.endswith(".flac") for name in one)


def test_jsonl_dialogues_with_several_turns(tmp_path: Path) -> None:
    turns = [("user", "Hello."), ("assistant", "Hi."), ("user", "How are you?"), ("assistant", "Fine.")]
    record = {"id": "a", "turns": [{"role": r, "text": t} for r, t in turns], "system": "Be kind."}
    file = tmp_path / "text.jsonl"
    file.write_text(json.dumps(record) + "\n\n" + json.dumps({**record, "id": "b", "split": "test"}) + "\n")
    splits = {"all": SynthesisSplit("train", voices(200))}
    job(tmp_path / "out", source=JsonlDialogues(str(file)), splits=splits).run()
    (dialogue,) = read_dialogues(tmp_path / "out" / "all")
    assert dialogue.system == "Be kind."
    assert [(turn.role, turn.text) for turn in dialogue.turns] == turns
    assert [turn.custom["voice"] for turn in dialogue.turns] == ["tone/200", "tone/150"] * 2
    with pytest.raises(ValueError, match=r"has no dialogue of split 'dev'; it has \['test', 'train'\]"):
        JsonlDialogues(str(file)).dialogues("dev")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: JSONDecodeError"),
        ('{"id": 1}', "line 2: KeyError: 'turns'"),
        ('{"id": 1, "turns": [{"role": "system", "text": "x"}]}', "role 'system'; choose from"),
        ('{"id": 1, "turns": []}', "has no turns"),
        ('{"id": "a", "turns": [{"role": "user", "text": "x"}]}', "id 'a' appears twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"id": "a", "turns": [{"role": "user", "text": "x"}]}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        JsonlDialogues(str(file)).dialogues("train")


def test_word_error_rate_counts_edits_of_normal_forms() -> None:
    assert clip_word_error_rate("After seven comes eight.", "after 7 comes 8") == 0.0
    assert clip_word_error_rate("The colour is gray.", "the color is grey") == 0.0
    assert clip_word_error_rate("a b c d", "a x c") == pytest.approx(0.5)
    assert clip_word_error_rate("one", "one two three") > 0
    assert clip_word_error_rate("", "") == 0.0
