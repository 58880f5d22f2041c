"""Pair builders: who wins a pair, what gives none, and that training takes what they leave."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import soundfile
import torch

import fac_lightning.preferences.model_answers as module
from fac_lightning.cli import main
from fac_lightning.cli.pairs_command import make_pairs
from fac_lightning.data import (
    Dialogue,
    DialogueWriter,
    PairCorpus,
    PreferenceDataModule,
    TextTokenizerTraining,
    Turn,
    TurnAnswer,
    TurnCodes,
    WrittenAnswer,
    load_turn_codes,
    read_cuts,
    read_dialogues,
    read_pairs,
    tokenizer_fingerprint,
)
from fac_lightning.data.distortions import ColoredNoise, sample_rng
from fac_lightning.generation import Reply, Sampling
from fac_lightning.preferences import (
    EmpathyPairs,
    InstructionPairs,
    LeftOutError,
    LlamaFactoryPairs,
    ManifestCandidates,
    ManifestPairs,
    ModelAnswers,
    PairFamilies,
    Ranked,
    RobustnessPairs,
    SampledCandidates,
    StabilityPairs,
    UnderstandingPairs,
    best_and_worst,
    level,
    pitch_track,
    speaking_rate,
)
from fac_lightning.preferences.folder import PairFolder
from fac_lightning.prompts import ChatFormat
from fac_lightning.recognizers.base import Recognizer
from fac_lightning.replies import FrameEnd
from fac_lightning.testing import make_dialogues, tiny_speech_lm
from fac_lightning.text_tokenizer import load_text_tokenizer
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechCodes, Waveforms

pytest.importorskip("jiwer", reason="the extra eval is not installed")
pytest.importorskip("whisper_normalizer", reason="the extra eval is not installed")

RATE = 8000


def voice(pitch=150.0, seconds=0.5, loudness=0.2, glide=0.0, rate=RATE):
    """A voice of sorts: harmonics that glide by so many semitones."""
    time = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(pitch * 2 ** (glide * (time / seconds - 0.5) / 12)) / rate
    return (loudness * sum(np.sin(k * phase) / k for k in range(1, 8))).astype(np.float32)


class SumTokenizer(SpeechTokenizer):
    """Codes are the loudness of a frame, and sound as steps of that loudness."""

    def __init__(self):
        super().__init__()
        self.sample_rate, self.hop_length, self.num_codebooks, self.codebook_size = RATE, 320, 1, 32

    def encode(self, audio, lengths=None):
        frames = torch.nn.functional.pad(audio, (0, -audio.shape[1] % 320)).unflatten(1, (-1, 320)).abs().sum(-1)
        lengths = torch.full((len(audio),), audio.shape[1]) if lengths is None else lengths
        return SpeechCodes(frames.long()[..., None] % 32, -(-lengths // 320))

    def decode(self, codes, lengths=None):
        lengths = torch.full((len(codes),), codes.shape[1]) if lengths is None else lengths
        return Waveforms(codes[..., 0].float().repeat_interleave(320, dim=1) / 32, lengths * 320, RATE)


class Ear(Recognizer):
    """Hears a word wrong for every thousand samples of the clip, from the end."""

    sample_rate = RATE

    def __init__(self, text="the cat is big"):
        self.text = text

    def __call__(self, audio):
        words = self.text.split()
        return [" ".join(words[: len(words) - len(clip) // 1000]) for clip in audio]


class Script:
    """A generator that says what is written for each question, in order of its seeds."""

    answers: ClassVar[dict] = {}
    asked: ClassVar[list] = []

    def __init__(self, model, chat, tokenizer=None, system_prompts=None, reply=None):
        self.system = (system_prompts or {}).get("S2M")

    def generate(self, turns, mode, decoding):
        Script.asked.append((len(turns), mode, decoding, self.system))
        return [
            self.reply(mode, *Script.answers[round(len(t.audio) / 100)][(decoding.seed + i) % 2])
            for i, t in enumerate(turns)
        ]

    @staticmethod
    def reply(mode, text, frames, finished=True):
        if mode == "S2T":
            return Reply(text, [1], None, None, None, finished)
        audio = torch.full((frames * 320,), 0.1)
        codes = torch.full((frames, 1), 3)
        return Reply(text, [1], codes, audio, RATE, finished)


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """A run that answers by a script, and dialogues whose questions are told apart by their length."""
    monkeypatch.setattr(module, "Generator", Script)
    monkeypatch.setattr(module, "ChatFormat", lambda tokenizer: tokenizer)
    Script.answers, Script.asked = {}, []
    with DialogueWriter(tmp_path / "talk") as writer:
        for i in range(1, 5):
            question = Turn("user", f"question {i}", voice(seconds=i / 10)[: 50 * i], RATE)
            answer = Turn("assistant", "the cat is big", voice(), RATE)
            writer.write(Dialogue(f"d{i}", (question, answer), "Be brief." if i == 3 else None))
        writer.write(Dialogue("backwards", (Turn("assistant", "Hello."), Turn("user", "Hi."))))
    loaded = SimpleNamespace(
        model=SimpleNamespace(geometry=SimpleNamespace(sample_rate=2 * RATE)),
        tokenizer=SumTokenizer(),
        text_tokenizer=object(),
        data={"system_prompts": {"S2M": "Speak."}},
        reply=FrameEnd(),
    )
    return SimpleNamespace(
        talk=str(tmp_path / "talk"), load=lambda run: loaded, out=str(tmp_path / "out"), here=tmp_path
    )


def pairs_of(out):
    return [pair for _, pair in read_pairs(out)]


# robustness


def test_robustness_rejects_what_the_model_says_wrongly(scripted):
    right, wrong = ("The cat is big.", 2), ("the dog is old", 3)
    Script.answers = {1: [right] * 2, 2: [wrong] * 2, 3: [("the cat is old", 0)] * 2, 4: [right] * 2}
    builder = RobustnessPairs(scripted.talk, ColoredNoise(), scripted.out, ModelAnswers("run", batch_size=3))
    summary = builder.run(scripted.load)
    assert summary["pairs"] == 2
    assert summary["left_out"] == {"understood all the same": 2, "begins without a question and an answer": 1}
    assert summary["mean_margin"] == pytest.approx((0.5 + 0.25) / 2)
    assert "ColoredNoise(snr=(5.0, 20.0)" in summary["distortion"]
    first, second = pairs_of(scripted.out)
    assert first.id == "robustness-d2"
    assert (first.task, first.mode) == ("robustness", "S2M")
    assert first.chosen == TurnAnswer("robustness-d2", 1)
    assert first.rejected == TurnAnswer("robustness-d2-rejected", 0)
    assert (first.custom["chosen"], first.custom["rejected"]) == (0.0, 0.5)
    assert second.rejected == WrittenAnswer("the cat is old")  # nothing was said, so nothing is stored as speech
    cuts = {cut.id: cut for cut in read_cuts(scripted.out)}
    said = load_turn_codes(cuts["robustness-d2-rejected"], 0)
    assert said.codes.tolist() == [[3]] * 3  # the codes themselves
    assert said.tokenizer == tokenizer_fingerprint(SumTokenizer())


def test_the_stored_question_is_the_distorted_one(scripted):
    Script.answers = dict.fromkeys(range(1, 5), [("no", 1)] * 2)
    RobustnessPairs(scripted.talk, ColoredNoise(), scripted.out, ModelAnswers("run"), seed=5).run(scripted.load)
    clean = {d.id: d for d in read_dialogues(scripted.talk)}
    stored = {d.id: d for d in read_dialogues(scripted.out)}
    for i in range(1, 5):
        question = stored[f"robustness-d{i}"].turns[0]
        expected = ColoredNoise()(clean[f"d{i}"].turns[0].audio, RATE, sample_rng(5, f"d{i}"))
        np.testing.assert_allclose(question.audio, expected, atol=0.6 / 32768)
        assert question.text == f"question {i}"
    assert stored["robustness-d3"].system == "Be brief."
    assert [asked[3] for asked in Script.asked] == ["Speak.", "Be brief.", "Speak."]  # what training will say too


@pytest.mark.parametrize("wrong", ["I do not know.", ""])
def test_robustness_without_a_model_rejects_what_it_is_given(scripted, wrong):
    summary = RobustnessPairs(scripted.talk, ColoredNoise(), scripted.out, wrong_answer=wrong, limit=2).run()
    assert summary["pairs"] == 1  # the other of the two begins without a question
    (pair,) = pairs_of(scripted.out)
    assert pair.rejected == WrittenAnswer(wrong)
    assert pair.mode is None


def test_robustness_refuses_what_rejects_nothing(scripted):
    with pytest.raises(ValueError, match=r"give either answers .* or wrong_answer"):
        RobustnessPairs(scripted.talk, ColoredNoise(), scripted.out)
    with pytest.raises(ValueError, match="mode T2M reads them; take S2M or S2T"):
        RobustnessPairs(scripted.talk, ColoredNoise(), scripted.out, ModelAnswers("run", "T2M"))
    with pytest.raises(ValueError, match="answers of run need load_run"):
        RobustnessPairs(scripted.talk, ColoredNoise(), scripted.out, ModelAnswers("run")).run()


# stability


def stability(scripted, **changes):
    sampled = ModelAnswers("run", speech=Sampling(1.0), batch_size=4)
    source = SampledCandidates(scripted.talk, sampled, num_samples=2)
    return StabilityPairs(source, Ear(), scripted.out, **changes)


def test_stability_prefers_the_clearest_to_the_least_clear(scripted):
    text = "The cat is big."  # the ear loses a word for every three frames or so
    Script.answers = {
        1: [(text, 10), (text, 1)],
        2: [(text, 1), (text, 1)],
        3: [(text, 1, False), (text, 7)],
        4: [(text, 1), (text, 0)],
    }
    summary = stability(scripted).run(scripted.load)
    assert summary["pairs"] == 1
    assert summary["left_out"] == {
        "begins without a question and an answer": 1,
        "tie": 1,
        "no answer good enough to be chosen": 1,  # the clear one was cut off, the other is poor
        "fewer than two spoken answers with words": 1,
    }
    (pair,) = pairs_of(scripted.out)
    assert pair.custom["values"] == [0.75, 0.0]
    assert (pair.custom["chosen"], pair.custom["rejected"]) == (0.0, 0.75)
    assert pair.custom["rejected_info"] == {"seed": 0, "asr_text": "the", "finished": True}
    lengths = {cut.id: load_turn_codes(cut, -1).codes.shape for cut in read_cuts(scripted.out)}
    assert lengths == {"stability-d1": (1, 1), "stability-d1-rejected": (10, 1)}


def test_stability_takes_its_limits_from_the_user(scripted):
    text = "The cat is big."
    Script.answers = {i: [(text, 4), (text, 7)] for i in range(1, 5)}  # 0.25 and 0.5
    assert stability(scripted, max_wer=0.2).run(scripted.load)["pairs"] == 0
    scripted.out += "2"
    assert stability(scripted, min_margin=0.25).run(scripted.load)["left_out"]["margin of 0.25 or less"] == 4
    scripted.out += "3"
    assert stability(scripted, min_margin=0.2).run(scripted.load)["pairs"] == 4


def test_the_models_own_answers_are_ranked_by_every_measure(scripted):
    with DialogueWriter(scripted.here / "asked") as writer:
        question = Turn("user", "Quickly!", voice()[:100], RATE, {"style": "fast"})
        writer.write(Dialogue("d", (question, Turn("assistant", "the cat is big", voice(), RATE))))
    Script.answers = {2: [("the cat was big", 10), ("The cat was big.", 40)]}
    spoken = ModelAnswers("run", speech=Sampling(1.0))
    source = SampledCandidates(str(scripted.here / "asked"), spoken, num_samples=2)
    assert InstructionPairs(source, scripted.out, {"rate": 1.0}).run(scripted.load)["pairs"] == 1
    (pair,) = pairs_of(scripted.out)
    assert pair.custom["chosen_info"] == {"seed": 0, "style": "fast", "measured": "rate"}
    source = SampledCandidates(str(scripted.here / "asked"), ModelAnswers("run", "S2T", Sampling(1.0)), num_samples=2)
    assert UnderstandingPairs(source, f"{scripted.out}2").run(scripted.load)["pairs"] == 1
    (pair,) = pairs_of(f"{scripted.out}2")
    assert pair.mode == "S2T"
    assert pair.rejected == WrittenAnswer("the cat was big")
    chosen = next(iter(read_dialogues(f"{scripted.out}2"))).turns[1]
    assert chosen.text == "the cat is big"  # no answer was right, so the dialogue's own stands in


def test_sampling_needs_chance_and_rivals(scripted):
    with pytest.raises(ValueError, match="all 4 answers would be the same, for nothing is sampled"):
        SampledCandidates(scripted.talk, ModelAnswers("run"))
    with pytest.raises(ValueError, match="in mode S2T all 4 answers would be the same"):
        SampledCandidates(scripted.talk, ModelAnswers("run", "S2T", speech=Sampling(1.0)))
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1: one answer has no rival"):
        SampledCandidates(scripted.talk, ModelAnswers("run", text=Sampling(1.0)), num_samples=1)
    with pytest.raises(ValueError, match="pairs are made in the modes S2M, S2T, T2M, T2T, not in 'TTS'"):
        ModelAnswers("run", "TTS")


def test_what_a_run_lacks_is_told(scripted):
    mute = SimpleNamespace(**{**vars(scripted.load("run")), "tokenizer": None})
    with pytest.raises(ValueError, match="run has no speech tokenizer, so it cannot answer in mode S2M"):
        ModelAnswers("run").talker(lambda run: mute)
    ModelAnswers("run", "S2T").talker(lambda run: mute)


# ranked manifests


def manifest(folder, *records, name="answers.jsonl"):
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder / name)


def sound(folder, name, audio):
    soundfile.write(folder / name, audio, RATE, subtype="FLOAT")
    return name


STYLES = {
    "high": ({"pitch": 200}, {"pitch": 100}, 12.0),
    "low": ({"pitch": 100}, {"pitch": 200}, 12.0),
    "lively": ({"glide": 12}, {"glide": 0}, 8.8),
    "flat": ({"glide": 0}, {"glide": 12}, 8.8),
    "fast": ({"seconds": 0.5}, {"seconds": 1.0}, 13.0),
    "slow": ({"seconds": 1.0}, {"seconds": 0.5}, 13.0),
    "loud": ({"loudness": 0.2}, {"loudness": 0.02}, 20.0),
    "soft": ({"loudness": 0.02}, {"loudness": 0.2}, 20.0),
}


@pytest.mark.parametrize("style", STYLES)
def test_the_style_that_was_asked_for_wins(tmp_path, style):
    more, less, margin = STYLES[style]
    answers = [
        {"text": "Hello there, you!", "audio": sound(tmp_path, f"{name}.wav", voice(**kind))}
        for name, kind in (("less", less), ("more", more))
    ]
    answers.append({"text": "Good bye.", "audio": sound(tmp_path, "other.wav", voice(300, 2.0, 0.5))})  # other words
    path = manifest(tmp_path, {"id": "q", "prompt": f"Say it {style}!", "style": style, "answers": answers})
    summary = InstructionPairs(ManifestCandidates(path), str(tmp_path / "out")).run()
    assert summary["pairs"] == 1
    assert summary["mean_margin"] == pytest.approx(margin, rel=0.05)
    chosen = next(d for d in read_dialogues(tmp_path / "out") if d.id == "instruction-q").turns[-1]
    np.testing.assert_allclose(chosen.audio, voice(**more), atol=1e-4)


def test_styles_that_do_not_differ_or_are_not_asked_for_give_no_pair(tmp_path):
    near = [{"text": "Hi.", "audio": sound(tmp_path, f"{p}.wav", voice(p))} for p in (100, 110)]
    silent = [{"text": "Hi.", "audio": sound(tmp_path, f"s{i}.wav", np.zeros(4000))} for i in range(2)]
    lines = [
        {"id": "near", "prompt": "Higher!", "style": "high", "answers": near},
        {"id": "unasked", "prompt": "Hello!", "answers": near},
        {"id": "silent", "prompt": "Higher!", "style": "high", "answers": silent},
        {"id": "written", "prompt": "Higher!", "style": "high", "answers": ["Hi.", "Hi."]},
    ]
    source = ManifestCandidates(manifest(tmp_path, *lines))
    summary = InstructionPairs(source, str(tmp_path / "out")).run()
    assert summary["left_out"] == {
        "margin of 2 or less": 1,
        "no style asked for": 1,
        "fewer than two answers to rank": 1,
        "no two spoken answers of the same words": 1,
    }
    assert summary["mean_margin"] is None
    assert InstructionPairs(source, str(tmp_path / "out2"), margins={"pitch": 1.0}).run()["pairs"] == 1
    with pytest.raises(ValueError, match="margins are of pitch, pitch_range, rate, level, not of joy"):
        InstructionPairs(source, "out", margins={"joy": 1.0})
    lines[0]["style"] = "happy"
    with pytest.raises(ValueError, match="'near' asks for the style 'happy'; measured are high, low, lively"):
        InstructionPairs(ManifestCandidates(manifest(tmp_path, lines[0])), str(tmp_path / "out3")).run()


def test_right_options_before_wrong_ones(tmp_path):
    answers = [{"text": "Red.", "correct": False}, {"text": "Blue.", "correct": True}]
    wrong = [{"text": "Red.", "correct": False}, {"text": "Green.", "correct": False}]
    path = manifest(
        tmp_path, {"id": "q", "prompt": "?", "answers": answers}, {"id": "r", "prompt": "?", "answers": wrong}
    )
    summary = UnderstandingPairs(ManifestCandidates(path), str(tmp_path / "out")).run()
    assert summary["left_out"] == {"no answer good enough to be chosen": 1}
    (pair,) = pairs_of(tmp_path / "out")
    assert pair.rejected == WrittenAnswer("Red.")
    assert next(iter(read_dialogues(tmp_path / "out"))).turns[-1].text == "Blue."


def test_close_transcripts_before_poor_ones(tmp_path):
    lines = [
        {
            "id": "a",
            "prompt": "?",
            "reference": "the sun is red",
            "answers": ["The sun is red!", "a son is red", "bun"],
        },
        {"id": "b", "prompt": "?", "reference": "the sun is red", "answers": ["the sun was read"]},
        {"id": "c", "prompt": "?", "reference": "the sun is red", "answers": ["The sun is red."]},
        {"id": "d", "prompt": "?", "answers": ["The sun is red."]},
    ]
    summary = UnderstandingPairs(ManifestCandidates(manifest(tmp_path, *lines)), str(tmp_path / "out")).run()
    assert summary["left_out"] == {"fewer than two answers to rank": 1, "nothing says which answer is right": 1}
    first, second = pairs_of(tmp_path / "out")
    assert first.custom["values"] == [0.0, 0.5, 1.0]
    assert first.rejected == WrittenAnswer("bun")
    assert second.custom["chosen_info"] == {"reference": True}  # the right answer stands in where no other is right
    assert second.rejected == WrittenAnswer("the sun was read")


@pytest.mark.parametrize(
    "judged",
    [
        [{"label": "neutral"}, {"label": "indifferent"}, {"label": "empathetic"}],
        [{"score": 3}, {"score": 1.5}, {"score": 4}],
        [{"rank": 2}, {"rank": 3}, {"rank": 1}],
    ],
)
def test_warm_answers_before_cold_ones_as_judges_say(tmp_path, judged):
    answers = [{"text": text, **how} for text, how in zip(("Hm.", "So what?", "Oh no!"), judged, strict=True)]
    path = manifest(tmp_path, {"id": "q", "prompt": "I lost my cat.", "answers": answers})
    assert EmpathyPairs(ManifestCandidates(path), str(tmp_path / "out")).run()["pairs"] == 1
    (pair,) = pairs_of(tmp_path / "out")
    assert pair.rejected == WrittenAnswer("So what?")
    assert next(iter(read_dialogues(tmp_path / "out"))).turns[-1].text == "Oh no!"


def test_judgements_must_be_there_be_one_kind_and_known(tmp_path):
    lines = [
        {"id": "a", "prompt": "?", "answers": ["x", "y"]},
        {"id": "b", "prompt": "?", "answers": [{"text": "x", "rank": 1}, {"text": "y", "score": 1}]},
        {"id": "c", "prompt": "?", "answers": [{"text": "x", "rank": 1}, {"text": "y", "rank": 1}]},
    ]
    source = ManifestCandidates(manifest(tmp_path, *lines))
    summary = EmpathyPairs(source, str(tmp_path / "out")).run()
    assert summary["left_out"] == {"not judged": 1, "judged in two ways": 1, "tie": 1}
    odd = {"id": "d", "prompt": "?", "answers": [{"text": "x", "label": "warm"}, {"text": "y", "label": "cold"}]}
    source = ManifestCandidates(manifest(tmp_path, odd))
    with pytest.raises(ValueError, match="the label 'warm'; labels are empathetic, neutral, indifferent"):
        EmpathyPairs(source, str(tmp_path / "out2")).run()
    assert EmpathyPairs(source, str(tmp_path / "out2"), labels=["warm", "cold"]).run()["pairs"] == 1


def test_candidates_may_be_turns_of_dialogues(tmp_path):
    make_dialogues(tmp_path / "talk", 3, rounds=2, seed=1)
    there = {d.id: d for d in read_dialogues(tmp_path / "talk")}
    answers = [{"dialogue": "dummy-0", "turn": 3, "score": 1}, {"dialogue": "dummy-1", "turn": 1, "score": 2}]
    path = manifest(tmp_path, {"id": "q", "dialogue": "dummy-0", "turns": 3, "mode": "S2M", "answers": answers})
    EmpathyPairs(ManifestCandidates(path, str(tmp_path / "talk")), str(tmp_path / "out")).run()
    (pair,) = pairs_of(tmp_path / "out")
    assert (pair.turns, pair.mode) == (3, "S2M")
    made = {d.id: d for d in read_dialogues(tmp_path / "out")}
    assert [t.text for t in made["empathy-q"].turns[:3]] == [t.text for t in there["dummy-0"].turns[:3]]
    np.testing.assert_array_equal(made["empathy-q"].turns[3].audio, there["dummy-1"].turns[1].audio)
    np.testing.assert_array_equal(made["empathy-q-rejected"].turns[0].audio, there["dummy-0"].turns[3].audio)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "x", "prompt": "?"}, r"line 2: no candidates \(KeyError: 'answers'\)"),
        ({"id": "x", "answers": []}, r"KeyError: 'prompt'"),
        ({"id": "x", "prompt": [], "answers": []}, r"a prompt ends with a turn of the user, this one has \[\]"),
        ({"id": "x", "dialogue": "d", "answers": []}, "the dialogue 'd' is named, but no dialogues folder is given"),
        ({"id": "x", "prompt": {"text": "?", "audio": "no.wav"}, "answers": []}, "the sound file 'no.wav' cannot be"),
        ({"id": "x", "prompt": {"text": "?", "role": "cat"}, "answers": []}, "the role 'cat' is neither"),
        (["x"], r"line 2: a list where a JSON object is due"),
    ],
)
def test_a_bad_line_is_told(tmp_path, record, message):
    source = ManifestCandidates(manifest(tmp_path, {"id": "ok", "prompt": "?", "answers": ["a"]}, record))
    with pytest.raises(ValueError, match=message):
        list(source.groups(None, lambda reason: None))


def test_best_and_worst():
    def ranked(*values, may_win=()):
        return [Ranked(None, v, v, i in may_win or not may_win) for i, v in enumerate(values)]

    best, worst = best_and_worst(ranked(1.0, 3.0, 2.0))
    assert (best.value, worst.value) == (3.0, 1.0)
    assert best_and_worst(ranked(1.0, 3.0, 2.0, may_win=(2,)))[0].value == 2.0
    for values, options, reason in (
        ((1.0,), {}, "fewer than two answers"),
        ((1.0, 1.0), {}, "tie"),
        ((1.0, 1.5), {"min_margin": 0.5}, "margin of 0.5 or less"),
    ):
        with pytest.raises(LeftOutError, match=reason):
            best_and_worst(ranked(*values), **options)
    with pytest.raises(LeftOutError, match="tie"):  # only the worst may win
        best_and_worst(ranked(1.0, 3.0, may_win=(0,)))


# pairs of files


def test_pairs_as_a_file_gives_them(tmp_path):
    warm = sound(tmp_path, "warm.wav", voice())
    lines = [
        {"id": "a", "prompt": {"text": "Well?", "audio": warm}, "system": "Be kind.", "why": "tone", "mode": "S2M",
         "chosen": {"text": "Lovely!", "audio": warm, "score": 4}, "rejected": {"text": "Bad.", "score": 1}},
        {"id": "b", "prompt": [{"role": "user", "text": "A"}, {"role": "assistant", "text": "B"}, "C"],
         "chosen": "yes", "rejected": "no"},
        {"id": "c", "prompt": "?", "chosen": "same", "rejected": "same"},
    ]  # fmt: skip
    summary = ManifestPairs(manifest(tmp_path, *lines), str(tmp_path / "out"), task="empathy").run()
    assert summary["pairs"] == 2
    assert summary["left_out"] == {"both answers are the same": 1}
    first, second = pairs_of(tmp_path / "out")
    assert (first.task, first.mode, first.custom["why"]) == ("empathy", "S2M", "tone")
    assert (first.custom["chosen"], first.custom["rejected"]) == (4.0, 1.0)
    assert second.turns == 3
    made = {d.id: d for d in read_dialogues(tmp_path / "out")}
    assert made["empathy-a"].system == "Be kind."
    assert made["empathy-a"].turns[1].audio is not None
    assert [t.text for t in made["empathy-b"].turns] == ["A", "B", "C", "yes"]


def test_llama_factory_pairs(tmp_path):
    file = sound(tmp_path, "q.wav", voice())
    lines = [
        {"instruction": "Add.", "input": "1 and 2", "history": [["Hi", "Hello"]], "chosen": "3", "rejected": "4"},
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "<audio>What is it?"},
            ],
            "chosen": {"from": "gpt", "value": "A voice."},
            "rejected": {"from": "gpt", "value": "A cat."},
            "audios": [file],
        },
    ]
    (tmp_path / "list.json").write_text(json.dumps(lines))
    assert LlamaFactoryPairs(str(tmp_path / "list.json"), str(tmp_path / "out")).run()["pairs"] == 2
    alpaca, sharegpt = (d for d in read_dialogues(tmp_path / "out"))
    assert [t.text for t in alpaca.turns] == ["Hi", "Hello", "Add.\n1 and 2", "3"]
    assert sharegpt.system == "Be brief."
    assert [t.text for t in sharegpt.turns] == ["What is it?", "A voice."]
    np.testing.assert_allclose(sharegpt.turns[0].audio, voice(), atol=1e-4)
    assert pairs_of(tmp_path / "out")[1].rejected == WrittenAnswer("A cat.")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"instruction": "<image>", "chosen": "a", "rejected": "b"}, "line 1: no pair .* shows pictures"),
        ({"instruction": "<audio>", "chosen": "a", "rejected": "b"}, "more <audio> marks than files"),
        ({"instruction": "x", "chosen": "a", "rejected": "b", "audios": ["f"]}, "'f' has no <audio> mark"),
        ({"instruction": "<audio><audio>", "chosen": "a", "rejected": "b"}, "2 <audio> marks"),
        ({"question": "x"}, "neither 'instruction'"),
    ],
)
def test_bad_llama_factory_lines_are_told(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        LlamaFactoryPairs(manifest(tmp_path, line), str(tmp_path / "out")).run()
    assert not (tmp_path / "out").exists()  # whole or not at all


# folders


def test_a_folder_is_there_whole_or_not_at_all_and_made_once(tmp_path, caplog):
    path = manifest(tmp_path, {"id": "a", "prompt": "?", "chosen": "yes", "rejected": "no"}, {"id": "b"})
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="line 2"):
        ManifestPairs(path, str(out)).run()
    assert not out.exists()
    manifest(tmp_path, {"id": "a", "prompt": "?", "chosen": "yes", "rejected": "no"})
    first = ManifestPairs(path, str(out)).run()  # over what the interrupted one left
    (tmp_path / "answers.jsonl").unlink()
    assert ManifestPairs(path, str(out)).run() == first
    with pytest.raises(ValueError, match="out was made with other task; choose another folder, or delete this one"):
        ManifestPairs(path, str(out), task="other").run()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(ValueError, match="mine holds no finished pairs"):
        ManifestPairs(path, str(tmp_path / "mine")).run()


def test_a_folder_without_pairs_is_told(tmp_path, caplog):
    path = manifest(tmp_path, {"id": "a", "prompt": "?", "chosen": "no", "rejected": "no"})
    assert ManifestPairs(path, str(tmp_path / "out")).run()["pairs"] == 0
    assert "out has no pair: both answers are the same: 1" in caplog.text


def test_scores_are_summed_up(tmp_path):
    user, good, bad = Turn("user", "?"), Turn("assistant", "a"), Turn("assistant", "b")
    with PairFolder(tmp_path / "out", "x", "points", {}) as folder:
        folder.write("1", (user,), good, bad, (3.0, 1.0))
        folder.write("2", (user,), good, bad, (4.0, 0.0))
        folder.leave_out("tie")
    summary = folder.summary()
    assert (summary["mean_chosen"], summary["mean_rejected"], summary["mean_margin"]) == (3.5, 0.5, 3.0)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


# measures


@pytest.mark.parametrize("rate", [8000, 16000, 24000])
@pytest.mark.parametrize("pitch", [75.0, 120.5, 220.0, 400.0])
def test_pitch_is_that_of_the_voice(rate, pitch):
    found = pitch_track(voice(pitch, rate=rate), rate)
    assert len(found) > 40
    assert np.abs(12 * np.log2(found / pitch)).max() < 0.1


def test_noise_and_silence_have_no_pitch():
    assert len(pitch_track(np.random.default_rng(0).standard_normal(RATE), RATE)) < 5
    assert len(pitch_track(np.zeros(RATE), RATE)) == 0
    assert len(pitch_track(np.zeros(10), RATE)) == 0


def test_level_and_rate_leave_silence_out():
    padded = np.concatenate([np.zeros(3000), voice(loudness=0.1), np.zeros(3000)])
    expected = 10 * np.log10(np.mean(np.square(voice(loudness=0.1))))
    assert level(padded, RATE) == pytest.approx(expected, abs=0.5)
    assert speaking_rate("Hello, 12!", padded, RATE) == pytest.approx(7 / 0.5, rel=0.15)
    assert level(np.zeros(100), RATE) == -np.inf
    assert speaking_rate("x", np.zeros(100), RATE) == 0


# the model itself


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tiny dialogues, a text tokenizer, and a run that can be loaded."""
    folder = tmp_path_factory.mktemp("pairs")
    make_dialogues(folder / "talk", 6, sample_rate=RATE)
    TextTokenizerTraining([str(folder / "talk")], 340, str(folder / "tokenizer")).run()
    text_tokenizer = load_text_tokenizer(str(folder / "tokenizer"))
    model = tiny_speech_lm(vocab_size=360)
    loaded = SimpleNamespace(
        model=model, tokenizer=SumTokenizer(), text_tokenizer=text_tokenizer, data={}, reply=FrameEnd(1)
    )
    return SimpleNamespace(folder=folder, loaded=loaded, load=lambda run: loaded, talk=str(folder / "talk"))


class Length(Recognizer):
    """Hears one word for every 700 samples."""

    sample_rate = RATE

    def __call__(self, audio):
        return [" ".join(["word"] * (len(clip) // 700)) for clip in audio]


def sampled(world, batch_size, out):
    both = {"text": Sampling(1.0), "speech": Sampling(1.0)}
    answers = ModelAnswers("run", max_positions=8, batch_size=batch_size, **both)
    source = SampledCandidates(world.talk, answers, num_samples=3, seed=7)
    return StabilityPairs(source, Length(), str(world.folder / out), max_wer=100.0)


def test_the_same_seed_gives_the_same_pairs_whatever_the_batch(world):
    class Always(StabilityPairs):
        """Unfinished answers may win: a model that learned nothing rarely ends by itself."""

        def rank(self, group):
            return [Ranked(one.candidate, one.value, one.goodness) for one in super().rank(group)]

    first = sampled(world, 16, "one")
    first, second = (
        Always(b.candidates, b.recognizer, b.out, max_wer=b.max_wer) for b in (first, sampled(world, 4, "two"))
    )
    assert first.run(world.load)["pairs"] == second.run(world.load)["pairs"] > 0
    for name in ("pairs.jsonl", "cuts.jsonl"):
        assert (world.folder / "one" / name).read_text() == (world.folder / "two" / name).read_text()


def test_training_takes_what_builders_leave(world, tmp_path):
    answers = ModelAnswers("run", max_positions=8)
    distorted = RobustnessPairs(world.talk, ColoredNoise(), str(tmp_path / "robustness"), answers)
    assert distorted.run(world.load)["pairs"] == 6  # it knows nothing
    chat, model = ChatFormat(world.loaded.text_tokenizer), world.loaded.model
    corpus = PairCorpus([tmp_path / "robustness"], chat, model.geometry, SumTokenizer(), reply=FrameEnd(1))
    assert corpus.describe() == {"robustness": 6}
    rows = corpus.pair(0)
    stored = {d.id: d for d in read_dialogues(tmp_path / "robustness")}
    said = stored[f"{rows.id}-rejected"].turns[0].codes
    assert isinstance(said, TurnCodes)
    labels = rows.rejected.row.speech_labels.reshape(-1)
    assert labels[: len(said.codes)].tolist() == said.codes[:, 0].tolist()
    data = PreferenceDataModule(
        str(tmp_path / "robustness"),
        str(world.folder / "tokenizer"),
        tokenizer=SumTokenizer(),
        geometry=model.geometry,
        lead_in=1,
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.task_names == ("robustness",)


# the command


def test_families_are_one_job_that_goes_on(tmp_path):
    path = manifest(tmp_path, {"id": "a", "prompt": "?", "chosen": "yes", "rejected": "no"})
    families = {name: ManifestPairs(path, str(tmp_path / name), task=name) for name in ("one", "two")}
    families["one"].run()
    summary = PairFamilies(families, str(tmp_path / "all")).run()
    assert [summary[name]["pairs"] for name in families] == [1, 1]
    assert json.loads((tmp_path / "all" / "summary.json").read_text()) == summary
    families["two"] = families["one"]
    with pytest.raises(ValueError, match="each with its own out"):
        PairFamilies(families, str(tmp_path / "all"))


def test_the_command_prints_a_table_per_family(tmp_path, capsys):
    path = manifest(tmp_path, {"id": "a", "prompt": "?", "chosen": "yes", "rejected": "no"},
                    {"id": "b", "prompt": "?", "chosen": "no", "rejected": "no"})  # fmt: skip
    recipe = tmp_path / "pairs.yaml"
    room = "fac_lightning.preferences"
    recipe.write_text(
        f"job: {{_target_: {room}.PairFamilies, out: {tmp_path}/all, families: {{mine: "
        f"{{_target_: {room}.ManifestPairs, path: {path}, out: {tmp_path}/all/mine}}}}}}\n"
    )
    assert main(["pairs", str(recipe)]) == 0
    shown = capsys.readouterr().out
    for word in ("mine", "pairs", "mean margin", "left out: both answers are the same"):
        assert word in shown
    recipe.write_text(f"job: {{_target_: {room}.ManifestPairs, path: {path}, out: {tmp_path}/alone, task: solo}}\n")
    assert list(make_pairs(recipe)) == ["solo"]
    assert main(["pairs", str(recipe), "job.out=" + str(tmp_path / "alone"), "job.task=duo"]) == 3
    assert "was made with other task" in capsys.readouterr().err


def test_the_command_makes_pairs_of_a_run(tmp_path, monkeypatch, world, capsys):
    from fac_lightning.cli import pairs_command

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(f"model: {{}}\ndata: {{train: {world.talk}}}\n")
    monkeypatch.setattr(pairs_command, "load_run", lambda run, allow: world.loaded)
    words = ["~families.stability", "families.robustness.limit=3", "families.robustness.answers.max_positions=4"]
    assert main(["pairs", str(tmp_path / "run"), *words]) == 0
    assert "robustness" in capsys.readouterr().out
    assert len(pairs_of(tmp_path / "run" / "pairs" / "robustness")) == 3
    assert main(["pairs", str(tmp_path / "run"), "families.robustness.limt=3"]) == 2
    assert "Did you mean 'limit'" in capsys.readouterr().err
    assert main(["pairs", str(tmp_path / "run"), "~families.robustness", "~families.stability"]) == 2
    assert "no family is left" in capsys.readouterr().err


def test_every_builder_and_distortion_is_listed(capsys):
    import fac_lightning.data.distortions as distortions
    import fac_lightning.preferences as preferences

    for room in (preferences, distortions):
        name = room.__name__.removeprefix("fac_lightning.")
        assert main(["list", name]) == 0
        shown = capsys.readouterr().out
        parts = [n for n in room.__all__ if n.endswith(("Pairs", "Candidates", "Noise", "Reverb", "Loss", "Limit"))]
        assert len(parts) > 5
        assert not [part for part in parts if f"{room.__name__}.{part}" not in shown]
