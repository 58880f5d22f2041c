"""Fun-Audio-Chat's training JSON: what is in it comes out, what is wrong is told, and one can train on it."""

import json
import logging

import lightning
import numpy as np
import pytest
import soundfile
import torch

from fac_lightning.cli import main
from fac_lightning.data import (
    Dialogue,
    DialogueWriter,
    FunAudioChatImport,
    SpeechChatDataModule,
    Turn,
    TurnCodes,
    export_fun_audio_chat_json,
    load_turn_codes,
    read_cuts,
    read_dialogues,
    tokenizer_fingerprint,
)
from fac_lightning.prompts import (
    AUDIO,
    AUDIO_BOS,
    AUDIO_PAD,
    AUDIO_TEMPLATE,
    DEFAULT_SYSTEM_PROMPT,
    S2M_PROMPT,
    S2T_PROMPT,
    SPOKEN_S2M_PROMPT,
)
from fac_lightning.tasks import SpeechSFT
from fac_lightning.testing import make_dialogues, tiny_speech_lm
from fac_lightning.text_tokenizer import train_text_tokenizer
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechCodes

NAME = "speech_tokenizer_v3_25hz"


class StepTokenizer(SpeechTokenizer):
    """Codes of its own: the number of the frame."""

    sample_rate, hop_length, num_codebooks, codebook_size = 16000, 640, 1, 64

    def __init__(self, name=None):
        super().__init__()
        self.codes_name = name

    def encode(self, audio, lengths=None):
        frames = -(-audio.shape[1] // 640)
        return SpeechCodes((torch.arange(frames) % 64).expand(len(audio), -1)[..., None], -(-lengths // 640))

    def decode(self, codes, lengths=None):
        raise NotImplementedError


def hum(samples, pitch=0.05):
    return (0.4 * np.sin(pitch * np.arange(samples))).astype(np.float32)


def user(path, pads, **more):
    return json.dumps({"path": str(path), "token": AUDIO_PAD * pads, "text": "", **more})


def assistant(text, codes, delay=10, **more):
    token = AUDIO_BOS * delay + "".join(f"[AU{code:04d}]" for code in codes)
    return json.dumps({"path": "", "token": token, "text": text, **more}, ensure_ascii=False)


def record(*contents, audio=(), system=S2M_PROMPT, **more):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"system": system, "messages": messages, "audio": list(audio), **more}


def write_lines(path, *records):
    lines = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in records]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def run(folder, *records, **options):
    source = write_lines(folder / "train.jsonl", *records)
    options = {"codebook_size": 64, **options}
    return FunAudioChatImport(str(source), str(folder / "out"), **options).run()


@pytest.fixture
def waves(tmp_path):
    (tmp_path / "wav").mkdir()
    soundfile.write(tmp_path / "wav" / "a.wav", hum(24000), 16000)  # 37 tokens and a half
    soundfile.write(tmp_path / "wav" / "b.flac", np.stack([hum(22050), hum(22050)], 1), 22050)  # one second, stereo
    return tmp_path


SPOKEN = AUDIO_TEMPLATE


def test_what_is_in_the_lines_comes_out(waves):
    summary = run(
        waves,
        record(SPOKEN, SPOKEN, audio=[user("wav/a.wav", 37), assistant("Grüße.", range(23))], id="first"),
        record(
            SPOKEN,
            SPOKEN,
            "Written?",
            SPOKEN,
            AUDIO,
            "Also written.",
            audio=[
                user("wav/a.wav", 37, ref_path="x", ref_text="y"),
                assistant("One.", [63]),
                assistant("Two.", [5, 6]),
                json.dumps({"wav_path": str(waves / "wav" / "b.flac"), "token": "", "text": "", "transcript": "Said."}),
            ],
            system=SPOKEN_S2M_PROMPT,
        ),
        record("Hello.", "Hi.", system=S2T_PROMPT),
        record("Hello.", "Hi.", system=None),
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "x"}]},
    )
    first, second, third, fourth, fifth = read_dialogues(waves / "out")
    assert [d.id for d in (first, second, third)] == ["first", "train-2", "train-3"]
    assert [d.system for d in (first, second, third, fourth, fifth)] == [
        None,
        SPOKEN_S2M_PROMPT,
        None,
        DEFAULT_SYSTEM_PROMPT,
        "S",
    ]
    asked, answered = first.turns
    assert (asked.role, asked.text, asked.sample_rate, asked.codes) == ("user", "", 16000, None)
    np.testing.assert_allclose(asked.audio, hum(24000), atol=1e-4)
    assert (answered.role, answered.text, answered.audio) == ("assistant", "Grüße.", None)
    assert (answered.codes.tokenizer, answered.codes.frame_rate) == (NAME, 25.0)
    assert answered.codes.codes.tolist() == [[code] for code in range(23)]
    assert [t.text for t in second.turns] == ["", "One.", "Written?", "Two.", "Said.", "Also written."]
    assert [t.audio is not None for t in second.turns] == [True, False, False, False, True, False]
    assert len(second.turns[4].audio) == 16000
    assert [t.codes.codes[:, 0].tolist() if t.codes else None for t in second.turns[1::2]] == [[63], [5, 6], None]
    assert [(t.role, t.text) for t in third.turns] == [("user", "Hello."), ("assistant", "Hi.")]
    assert summary == json.loads((waves / "out" / "summary.json").read_text())
    assert summary == {
        "dialogues": 5,
        "turns": 13,
        "spoken_user_turns": 3,
        "spoken_assistant_turns": 3,
        "user_hours": pytest.approx((1.5 + 1.5 + 1) / 3600),
        "assistant_hours": pytest.approx(26 / 25 / 3600),
        "bad_lines": 0,
        "delay_tokens": 10,
    }


def test_a_recorded_answer_is_kept_for_our_own_tokenizer(waves):
    answer = json.dumps({"path": "wav/b.flac", "token": AUDIO_PAD * 25, "text": "Hum."})
    run(waves, record(SPOKEN, SPOKEN, audio=[user("wav/a.wav", 37), answer]))
    (dialogue,) = read_dialogues(waves / "out")
    assert dialogue.turns[1].codes is None
    assert len(dialogue.turns[1].audio) == 16000


def test_a_waveform_beside_codes_is_left_out(waves):
    run(waves, record("x", SPOKEN, audio=[assistant("Hi.", [1], path="gone.wav")]))
    (dialogue,) = read_dialogues(waves / "out")
    assert dialogue.turns[1].audio is None
    assert dialogue.turns[1].codes.codes.tolist() == [[1]]


def test_paths_may_start_elsewhere_and_the_delay_may_differ(waves):
    lines = [record(SPOKEN, SPOKEN, audio=[user("a.wav", 38), assistant("Hi.", [1], delay=0)])]
    assert run(waves, *lines, audio_root=str(waves / "wav"), delay_tokens=0)["delay_tokens"] == 0


# ---- bad lines

GOOD = record("Hello.", "Hi.")
BAD = {
    "{": r"line = .*: not JSON",
    "3": "line = 3: a JSON object is due",
    '{"messages": []}': r"messages = \[\]: a list of messages is due",
    '{"messages": ["x"]}': r"messages\[0\] = 'x': a message has the role",
    '{"messages": [{"role": "tool", "content": "x"}]}': r"messages\[0\] = .*'tool'.*: a message has the role 'user' or",
    '{"messages": [{"role": "user", "content": " "}]}': r"messages\[0\].content = ' ': a text is due",
    '{"messages": [{"role": "user", "content": "x"}], "system": 3}': "system = 3: a text is due",
    '{"messages": [{"role": "user", "content": "x"}], "audio": "y"}': "audio = 'y': a list is due",
    json.dumps(record(SPOKEN, "x", audio=["{"])): r"audio\[0\] = '\{': not JSON",
    json.dumps(record(SPOKEN, "x", audio=["[]"])): r"audio\[0\] = \[\]: a JSON object is due",
    json.dumps(record(SPOKEN, "x", audio=['{"path": 3}'])): r"audio\[0\].path = 3: a text is due",
    json.dumps(record(SPOKEN, "x")): r"audio = '0 entries': the messages have 1 <\|AUDIO\|>",
    json.dumps(record("x", "y", audio=[assistant("z", [1])])): r"audio = '1 entries': the messages have 0 <\|AUDIO\|>",
    json.dumps(record("x", f"well: {SPOKEN}", audio=[assistant("z", [1])])): r"messages\[1\].content = .*alone",
    json.dumps(
        record("x", SPOKEN, audio=[assistant("z", [1, 64])])
    ): r"audio\[0\].token = '\[AU0064\]': an unknown speech token: there are 64",
    json.dumps(
        record("x", SPOKEN, audio=[assistant("z", [1]).replace("AU", "AV")])
    ): r"audio\[0\].token = .*: an unknown speech token at '\[AV0001\]'",
    json.dumps(
        record("x", SPOKEN, audio=[assistant("z", [])])
    ): r"audio\[0\].token = .*: no speech token behind the delay",
    json.dumps(
        record("x", SPOKEN, audio=[assistant("z", [1], 5)])
    ): r"audio\[0\].token = '5 x <\|audio_bos\|>.*: 10 are due",
    json.dumps(
        record("x", SPOKEN, audio=[assistant(" ", [1])])
    ): r"audio\[0\].text = ' ': the assistant's speech needs the text",
    json.dumps(record(SPOKEN, "y", audio=[user("", 3)])): r"audio\[0\].path = '': there is no waveform",
    json.dumps(
        record(SPOKEN, "y", audio=[user("gone.wav", 3)])
    ): r"audio\[0\].path = 'gone.wav': there is no file .*gone.wav",
    json.dumps(record(SPOKEN, "y", audio=[user("train.jsonl", 3)])): r"audio\[0\].path = .*train.jsonl': no audio file",
    json.dumps(
        record(SPOKEN, "y", audio=[user("wav/a.wav", 75)])
    ): r"audio\[0\].token = '75 x <\|audio_pad\|>': .* lasts 1.50 s, which are 37",
    json.dumps(
        record(SPOKEN, "y", audio=[assistant("z", [1])])
    ): r"audio\[0\].token = .*: the user's speech is a waveform",
}


@pytest.mark.parametrize(("line", "message"), BAD.items(), ids=range(len(BAD)))
def test_a_bad_line_is_told_by_file_line_field_value_and_reason(waves, line, message):
    with pytest.raises(ValueError, match=r"(?s)has 1 bad line.*\n.*train\.jsonl, line 3: " + message) as caught:
        run(waves, GOOD, "", line)
    assert len(str(caught.value).splitlines()) == 2
    assert not (waves / "out").exists()


def test_all_bad_lines_are_told_at_once(waves):
    with pytest.raises(ValueError, match=r"30 bad line\(s\); skip_bad=True") as caught:
        run(waves, GOOD, *["{"] * 30)
    assert str(caught.value).splitlines()[-1] == "and 10 more"


def test_bad_lines_may_be_left_out_and_are_counted(waves, caplog):
    with caplog.at_level(logging.WARNING):
        summary = run(waves, GOOD, *BAD, GOOD, skip_bad=True)
    assert (summary["dialogues"], summary["bad_lines"]) == (2, len(BAD))
    assert len(caplog.records) == len(BAD)
    assert all("\n" not in record.getMessage() for record in caplog.records)
    with pytest.raises(ValueError, match=r"has no good line \(1 bad\)"):
        FunAudioChatImport(str(write_lines(waves / "b.jsonl", "{")), str(waves / "b"), skip_bad=True).run()


def test_a_waveform_that_breaks_off_is_a_bad_line(waves, caplog):
    whole = (waves / "wav" / "b.flac").read_bytes()
    (waves / "wav" / "b.flac").write_bytes(whole[: len(whole) // 2])
    line = record(SPOKEN, "y", audio=[user("wav/b.flac", 25)])
    with pytest.raises(ValueError, match=r"line 2: audio\[0\].path = .*b.flac': cannot be read"):
        run(waves, GOOD, line)
    assert run(waves, GOOD, line, skip_bad=True)["bad_lines"] == 1


def test_ids_must_be_unique(waves):
    with pytest.raises(ValueError, match="line 2: id = 'a': line 1 has it too"):
        run(waves, {**GOOD, "id": "a"}, {**GOOD, "id": "a"})


def test_arguments_and_the_file_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match="name a JSON-lines file"):
        FunAudioChatImport(str(tmp_path / "x.jsonl"), str(tmp_path / "out")).run()
    with pytest.raises(ValueError, match="delay_tokens must be at least 0, got -1"):
        FunAudioChatImport("x", "y", delay_tokens=-1)


# ---- going on, and back


def test_a_killed_import_goes_on_and_other_data_are_refused(waves):
    lines = [record(SPOKEN, SPOKEN, audio=[user("wav/a.wav", 37), assistant("Hi.", [i])]) for i in range(4)]
    whole = run(waves, *lines)
    manifest = waves / "out" / "cuts.jsonl"
    done = manifest.read_bytes()
    manifest.write_bytes(done[: len(done) // 2])
    assert run(waves, *lines) == whole
    assert manifest.read_bytes() == done
    with pytest.raises(ValueError, match=r"made with another codes .* choose another folder"):
        run(waves, *lines, tokenizer="other")
    with pytest.raises(ValueError, match="made with another source"):
        run(waves, *lines[:2])


def test_a_round_trip_keeps_every_line(waves):
    lines = [
        record(SPOKEN, SPOKEN, audio=[user("wav/a.wav", 37), assistant("Grüße.", range(23))], id="a/b"),
        record(SPOKEN, "Written.", "And?", SPOKEN, audio=[user("wav/b.flac", 25), assistant("Two.", [5, 63])], id="c"),
        record("Hello.", "Hi.", system=S2T_PROMPT, id="d"),
        record("Hello.", "Hi.", system="Be brief.", id="e"),
    ]
    run(waves, *lines)
    assert export_fun_audio_chat_json(waves / "out", waves / "back" / "again.jsonl") == 4
    again = [json.loads(line) for line in (waves / "back" / "again.jsonl").read_text(encoding="utf-8").splitlines()]
    ignored = ("path", "transcript")
    for old, new in zip(lines, again, strict=True):
        plain = [
            {**one, "audio": [{k: v for k, v in json.loads(x).items() if k not in ignored} for x in one["audio"]]}
            for one in (old, new)
        ]
        assert plain[0] == plain[1]
    back = FunAudioChatImport(str(waves / "back" / "again.jsonl"), str(waves / "second"), codebook_size=64)
    assert back.run()["dialogues"] == 4
    for old, new in zip(read_dialogues(waves / "out"), read_dialogues(waves / "second"), strict=True):
        assert (old.id, old.system) == (new.id, new.system)
        for a, b in zip(old.turns, new.turns, strict=True):
            assert (a.role, a.text, a.sample_rate) == (b.role, b.text, b.sample_rate)
            assert (a.codes is None) == (b.codes is None)
            np.testing.assert_array_equal(a.audio, b.audio)
            if a.codes is not None:
                np.testing.assert_array_equal(a.codes.codes, b.codes.codes)


def test_recorded_dialogues_are_exported_with_a_tokenizer(tmp_path):
    make_dialogues(tmp_path / "ours", 2)
    with pytest.raises(ValueError, match=r"dialogue 'dummy-0', turn 1 is recorded, .* give the tokenizer"):
        export_fun_audio_chat_json(tmp_path / "ours", tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()
    export_fun_audio_chat_json(tmp_path / "ours", tmp_path / "x.jsonl", StepTokenizer(), delay_tokens=5)
    back = FunAudioChatImport(str(tmp_path / "x.jsonl"), str(tmp_path / "back"), codebook_size=64, delay_tokens=5)
    assert back.run()["spoken_assistant_turns"] == 2
    for old, new in zip(read_dialogues(tmp_path / "ours"), read_dialogues(tmp_path / "back"), strict=True):
        assert [turn.text for turn in new.turns] == [turn.text for turn in old.turns]
        np.testing.assert_array_equal(new.turns[0].audio, old.turns[0].audio)
        assert len(new.turns[1].codes.codes) == -(-len(old.turns[1].audio) // 640)


def test_the_format_has_room_for_one_codebook(tmp_path):
    codes = TurnCodes("x", np.ones((3, 2), np.int64), 25.0)
    with DialogueWriter(tmp_path / "a") as writer:
        writer.write(Dialogue("d", (Turn("user", "x"), Turn("assistant", "y", codes=codes))))
    with pytest.raises(ValueError, match="turn 1 has 2 codebooks; the format has room for one"):
        export_fun_audio_chat_json(tmp_path / "a", tmp_path / "x.jsonl")


# ---- codes that come with turns


def stored(*codes, tokenizer="x"):
    return TurnCodes(tokenizer, np.array(codes)[:, None], 25.0)


@pytest.mark.parametrize("largest", [3, 65535, 65536, 2**31 - 1])
def test_codes_come_back_as_they_were_written(tmp_path, largest):
    codes = TurnCodes("x", np.array([[0, 1], [largest, 2], [3, 0]]), 12.5)
    with DialogueWriter(tmp_path) as writer:
        writer.write(Dialogue("d", (Turn("user", "x"), Turn("assistant", "y", custom={"a": 1}, codes=codes))))
    (dialogue,) = read_dialogues(tmp_path)
    found = dialogue.turns[1]
    assert found.codes.codes.tolist() == codes.codes.tolist()
    assert (found.codes.tokenizer, found.codes.frame_rate, found.codes.seconds) == ("x", 12.5, 3 / 12.5)
    assert found.custom == {"a": 1}


def test_lhotse_opens_dialogues_with_codes(waves):
    from lhotse import CutSet
    from lhotse.qa import validate

    run(waves, record(SPOKEN, SPOKEN, audio=[user("wav/a.wav", 37), assistant("Hi.", range(60))]))
    (cut,) = read_cuts(waves / "out")
    validate(cut, read_data=True)
    assert cut.supervisions[1].duration == 60 / 25
    assert len(load_turn_codes(cut, 1).codes) == 60
    assert len(CutSet.from_file(waves / "out" / "cuts.jsonl")) == 1


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (lambda: Turn("assistant", "y", hum(9), 8000, codes=stored(1)), "turn 0: codes are for .* has audio too"),
        (lambda: Turn("user", "y", codes=stored(1)), "turn 0: codes are for assistant's turns .* is the user's"),
        (lambda: Turn("user", "y", custom={"codes": 1}), r"turn 0: custom keys \['codes'\] are reserved"),
        (lambda: stored(-1), r"codes of 'x' have the shape \(1, 1\) and the type int64; give integers from 0 up"),
        (lambda: TurnCodes("x", np.zeros(3, int), 25.0), r"the shape \(3,\) .* give integers .* of the shape \(T, Q\)"),
        (lambda: TurnCodes("x", np.zeros((0, 1), int), 25.0), "at least one"),
        (lambda: TurnCodes("x", np.zeros((1, 1)), 25.0), "the type float64"),
        (lambda: TurnCodes("", np.zeros((1, 1), int), 25.0), "need the name of their tokenizer"),
        (lambda: TurnCodes("x", np.zeros((1, 1), int), 0.0), "a frame rate above 0 Hz, got 'x' and 0.0"),
    ],
)
def test_codes_that_cannot_be_stored_are_refused(tmp_path, turn, message):
    with DialogueWriter(tmp_path) as writer, pytest.raises(ValueError, match=message):
        writer.write(Dialogue("d", (turn(),)))


def test_damaged_codes_are_told(tmp_path):
    with DialogueWriter(tmp_path) as writer:
        writer.write(Dialogue("d", (Turn("assistant", "y", codes=stored(1, 2)),)))
    manifest = tmp_path / "cuts.jsonl"
    for old, new in (('"data": "', '"data": "?'), ('"<u2"', '"<O8"'), ("[2, 1]", "[3, 1]")):
        text = manifest.read_text()
        manifest.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=r"FAC-D15: damaged codes in cut 'd', turn 0: .* Write the dialogue again"):
            list(read_dialogues(tmp_path))
        manifest.write_text(text)


# ---- training


@pytest.fixture
def folder(waves):
    """Imported dialogues: spoken on both sides, the user's words unknown."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(12):
        answer = assistant("red one." if i % 2 else "blue.", rng.integers(0, 64, 9 + i))
        lines.append(record(SPOKEN, SPOKEN, audio=[user("wav/a.wav", 37), answer]))
    run(waves, *lines)
    train_text_tokenizer(["red one. blue. What?", S2M_PROMPT, S2T_PROMPT], 360, waves / "tokenizer")
    return waves


def module_of(folder, geometry, out="out", **changes):
    arguments = {"modes": {"S2M": 1.0}, "capacity": 600, "look_ahead": 4, "geometry": geometry, **changes}
    return SpeechChatDataModule(train=str(folder / out), text_tokenizer=str(folder / "tokenizer"), **arguments)


@pytest.fixture
def model():
    return tiny_speech_lm(vocab_size=400, codebook_size=64, sample_rate=16000, hop_length=640)


@pytest.mark.parametrize("tokenizer", [None, StepTokenizer(NAME)])
def test_one_trains_on_imported_codes(folder, model, tokenizer):
    module = module_of(folder, model.geometry, tokenizer=tokenizer, lead_in=2, val=str(folder / "out"))
    task = SpeechSFT(model, lr=1e-2, warmup_steps=1)
    trainer = lightning.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(task, datamodule=module)
    assert trainer.global_step == 4
    (line,) = (line for line, _ in zip(module.train_dataloader(), range(1), strict=False))
    said = {tuple(t.codes.codes[:, 0].tolist()) for d in read_dialogues(folder / "out") for t in d.turns if t.codes}
    replies = torch.split(line.speech_labels.flatten(), (line.reply_lengths * 5).tolist())
    assert all(tuple(reply[(reply >= 0) & (reply < 64)].tolist()) in said for reply in replies)
    report = module.describe()["train"]
    assert report["spoken_assistant_turns"] == 12
    assert report["assistant_hours"] == pytest.approx(sum(9 + i for i in range(12)) / 25 / 3600)


def test_codes_of_another_tokenizer_are_refused(folder, model):
    for tokenizer in (StepTokenizer(), StepTokenizer("other")):
        with pytest.raises(ValueError, match=f"has codes of '{NAME}', but the speech tokenizer StepTokenizer is"):
            module_of(folder, model.geometry, tokenizer=tokenizer).setup("fit")
    module_of(folder, model.geometry, tokenizer=StepTokenizer(), modes={"S2T": 1.0}).setup("fit")  # says nothing


def test_the_fingerprint_names_codes_too(folder, model):
    tokenizer = StepTokenizer()
    with DialogueWriter(folder / "own") as writer:
        codes = stored(1, 2, tokenizer=tokenizer_fingerprint(tokenizer))
        writer.write(Dialogue("d", (Turn("user", "What?", hum(9000), 16000), Turn("assistant", "red.", codes=codes))))
        writer.write(Dialogue("e", (Turn("user", "What?"), Turn("assistant", "red.", hum(9000), 16000))))
    module = module_of(folder, model.geometry, "own", tokenizer=tokenizer)
    module.setup("fit")
    (said,), (made,) = ([t.codes for t in item.turns if t.codes is not None] for item in module.train_corpus.items)
    assert said[:, 0].tolist() == [1, 2]
    assert made[:, 0].tolist() == list(range(15))


def test_codes_that_do_not_fit_the_model_are_refused(folder, model):
    small = tiny_speech_lm(vocab_size=400, codebook_size=32, sample_rate=16000, hop_length=640)
    with pytest.raises(
        ValueError, match=r"turn 1 has 1 codebook\(s\) with codes up to .*, the model 1 with codes below 32"
    ):
        module_of(folder, small.geometry).setup("fit")
    with pytest.raises(ValueError, match="has codes that S2M say, but there is no geometry"):
        module_of(folder, None).setup("fit")
    with DialogueWriter(folder / "out") as writer:
        writer.write(Dialogue("d", (Turn("user", "x"), Turn("assistant", "red.", codes=stored(1, tokenizer="y")))))
    with pytest.raises(ValueError, match=f"cut 'd', turn 1 has codes of 'y', turns before it of '{NAME}'"):
        module_of(folder, model.geometry).setup("fit")


def test_modes_that_read_the_users_words_leave_out_who_has_none(folder, model):
    module = module_of(folder, model.geometry, modes={"S2M": 1.0, "T2M": 1.0, "ASR": 1.0, "TTS": 1.0, "T2T": 1.0})
    assert set(module.describe()["train"]["rows"]) == {"S2M", "TTS"}
    with pytest.raises(ValueError, match="12 have no speech for the modes T2M, or no text of it where these need that"):
        module_of(folder, model.geometry, modes={"T2M": 1.0}).setup("fit")


def test_a_recipe_runs_the_import(waves, capsys):
    write_lines(waves / "train.jsonl", GOOD)
    recipe = waves / "import.yaml"
    recipe.write_text(
        "job:\n  _target_: fac_lightning.data.FunAudioChatImport\n"
        f"  source: {waves}/train.jsonl\n  out: {waves}/folder\n"
    )
    assert main(["check", str(recipe)]) == 0
    assert main(["run", str(recipe)]) == 0
    assert (waves / "folder" / "recipe.yaml").is_file()
    assert [d.id for d in read_dialogues(waves / "folder")] == ["train-1"]
    (waves / "train.jsonl").write_text("{")
    assert main(["run", str(recipe), f"job.out={waves}/other"]) == 3
    assert "line 1: line = '{': not JSON" in capsys.readouterr().err
