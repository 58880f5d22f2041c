"""The evaluation counts what is there: replies with known mistakes give known figures."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fac_lightning.evaluation.spoken_qa as module
from fac_lightning.data import Dialogue, DialogueWriter, Turn
from fac_lightning.evaluation import SpokenQAEvaluation
from fac_lightning.generation import Reply, Sampling, SpeechEngine
from fac_lightning.recognizers.base import Recognizer
from fac_lightning.replies import FrameEnd
from fac_lightning.testing.tiny import tiny_speech_lm
from fac_lightning.types import SpeechCodes, Waveforms
from test_generation import VOCAB, CharTokenizer, ToneTokenizer

pytest.importorskip("jiwer", reason="the extra eval is not installed")
pytest.importorskip("whisper_normalizer", reason="the extra eval is not installed")

RATE = 8000
TRUTH = ["the cat is big", "the dog is old", "the sun is red", "the sea is blue"]
SAID = ["the cat is big", "the dog is new", "the sun is red", "the sea is blue"]


def wave(index):
    """A clip whose length says which answer it is."""
    return np.full(400 * (index + 1), 0.1, dtype=np.float32)


class LengthRecognizer(Recognizer):
    """Knows each clip by its length; mishears one word of the last."""

    sample_rate = RATE

    def __call__(self, audio):
        heard = [SAID[round(len(a) / 400) - 1] for a in audio]
        return [text.replace("blue", "glue") for text in heard]


class EchoTokenizer:
    sample_rate = RATE

    def encode(self, audio, lengths=None):
        return SpeechCodes(torch.full((1, audio.shape[1], 1), 3), torch.tensor([audio.shape[1]]))

    def decode(self, codes, lengths=None):
        return Waveforms(torch.full(codes.shape[:2], 0.1), torch.tensor([codes.shape[1]]), RATE)


class FixedGenerator:
    """Says the fixed answers in order, whatever batch they come in."""

    def __init__(self, model, chat, tokenizer=None, lead_in=0, system_prompts=None, reply=None):
        self.model, self.tokenizer, self.said = model, tokenizer, 0
        assert (reply, system_prompts) == (FrameEnd(2), {"S2M": "Speak."})

    def generate(self, turns, mode, decoding):
        assert mode == "S2M"
        replies = []
        for turn in turns:
            assert len(turn.audio) == 1600  # the question, at the model's rate
            audio = torch.from_numpy(wave(self.said))
            replies.append(Reply(SAID[self.said], [1], None, audio, RATE, finished=self.said != 1))
            self.said += 1
        return replies


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Generator", FixedGenerator)
    monkeypatch.setattr(module, "ChatFormat", lambda tokenizer: tokenizer)
    with DialogueWriter(tmp_path / "set") as writer:
        for i, text in enumerate(TRUTH):
            question = Turn("user", f"question {i}", np.zeros(800, np.float32), RATE, {"voice": "ab"[i % 2]})
            writer.write(Dialogue(f"d{i}", (question, Turn("assistant", text, wave(i), RATE))))
    loaded = SimpleNamespace(
        model=SimpleNamespace(
            geometry=SimpleNamespace(sample_rate=2 * RATE), head=SimpleNamespace(new_slots=lambda num_slots: None)
        ),
        tokenizer=EchoTokenizer(),
        text_tokenizer=None,
        data={"system_prompts": {"S2M": "Speak."}},
        reply=FrameEnd(2),
    )
    return lambda **options: SpokenQAEvaluation(
        "run", {"heard": str(tmp_path / "set")}, str(tmp_path / "out"), lambda run: loaded, batch_size=3, **options
    )


def test_text_is_counted_by_answer_and_by_voice(evaluation, tmp_path):
    scores = evaluation().run()["sets"]["heard"]
    assert scores["count"] == 4
    assert scores["text_exact"] == 0.75
    assert scores["text_exact_by_voice"] == {"a": 1.0, "b": 0.5}
    assert scores["text_wer"] == pytest.approx(1 / 16)
    assert scores["finished"] == 0.75
    assert "asr_wer" not in scores
    assert scores["answers"][1]["exact"] is False


def test_speech_is_judged_against_the_models_own_text(evaluation, tmp_path):
    result = evaluation(recognizer=LengthRecognizer(), num_examples=2).run()
    scores = result["sets"]["heard"]
    assert scores["asr_wer"] == pytest.approx(1 / 16)  # glue for blue
    assert scores["asr_wer_to_reference"] == pytest.approx(2 / 16)  # and new for old
    assert scores["silent_count"] == 0
    assert result["reconstruction"]["asr_wer"] == pytest.approx(2 / 16)
    assert result["reconstruction"]["count"] == 4
    kept = [a for a in scores["answers"] if a["files"]]
    assert len(kept) == 2
    assert all((tmp_path / "out" / file).exists() for a in kept for file in a["files"].values())
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == result


def test_a_chain_is_measured_beside_the_answer(evaluation, monkeypatch):
    """Transcripts of the questions, of which one has a wrong word, and drafts, of which one is not the reference."""

    class Writing(FixedGenerator):
        def generate(self, turns, mode, decoding):
            assert mode == "STC"
            first = self.said
            plain = super().generate(turns, "S2M", decoding)
            told = [("question 0", SAID[0]), ("quest 1", SAID[1]), ("question 2", SAID[2]), ("question 3", SAID[3])]
            return [replace(r, transcript=t, draft=d) for r, (t, d) in zip(plain, told[first:], strict=False)]

    monkeypatch.setattr(module, "Generator", Writing)
    scores = evaluation(mode="STC").run()["sets"]["heard"]
    assert scores["heard_wer"] == pytest.approx(1 / 8)
    assert scores["draft_exact"] == 0.75
    assert scores["answers"][1]["heard"] == "quest 1"
    assert scores["answers"][1]["draft"] == SAID[1]
    monkeypatch.setattr(module, "Generator", FixedGenerator)
    assert not {"heard_wer", "draft_exact"} & set(evaluation().run()["sets"]["heard"])


def test_limits_spread_over_the_set(evaluation):
    scores = evaluation(limit=2).run()["sets"]["heard"]
    assert [a["id"] for a in scores["answers"]] == ["d0", "d3"]


def test_no_set_is_refused():
    with pytest.raises(ValueError, match="name at least one dialogues folder"):
        SpokenQAEvaluation("run", {}, "out", lambda run: None)


def test_answers_are_drawn_by_seed_and_place_whatever_the_batch(evaluation, monkeypatch):
    asked = []

    class Listening(FixedGenerator):
        def generate(self, turns, mode, decoding):
            asked.append((decoding, len(turns)))
            return super().generate(turns, mode, decoding)

    monkeypatch.setattr(module, "Generator", Listening)
    evaluation(speech=Sampling(1.3), seed=5).run()
    assert [(d.text.temperature, d.speech.temperature, d.seed, count) for d, count in asked] == [
        (0.0, 1.3, 5, 3),
        (0.0, 1.3, 8, 1),
    ]
    asked.clear()
    evaluation(text=Sampling(0.7)).run()
    assert [(d.text.temperature, d.speech.temperature, d.seed) for d, _ in asked] == [(0.7, 0.0, 0), (0.7, 0.0, 3)]


def test_the_engine_answers_as_the_generator_does(tmp_path, monkeypatch):
    with DialogueWriter(tmp_path / "set") as writer:
        for i in range(7):
            question = Turn("user", f"question {i}", 0.1 * np.ones(100 + 200 * i, np.float32), 1000)
            writer.write(Dialogue(f"d{i}", (question, Turn("assistant", "yes", wave(0), RATE))))
    loaded = SimpleNamespace(
        model=tiny_speech_lm(VOCAB, codebook_size=12).eval(),
        tokenizer=ToneTokenizer(12),
        text_tokenizer=CharTokenizer(),
        data={},
        reply=FrameEnd(1),
    )
    lively, told = Sampling(1.0), []
    for suits in (True, False):
        if not suits:
            monkeypatch.setattr(SpeechEngine, "suits", lambda model: False)
        sets, options = {"heard": str(tmp_path / "set")}, {"batch_size": 2, "max_positions": 8, "num_examples": 0}
        out = str(tmp_path / "out")
        run = SpokenQAEvaluation("run", sets, out, lambda run: loaded, text=lively, speech=lively, **options).run()
        del run["sets"]["heard"]["seconds"]
        told.append(run)
    assert told[0] == told[1]
    assert len({answer["text"] for answer in told[0]["sets"]["heard"]["answers"]}) > 3
