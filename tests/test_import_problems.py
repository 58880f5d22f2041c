"""What is wrong with other people's data is told with its place and what to do; the rest comes in."""

import contextlib
import gzip
import io
import json
import logging
import re
import sys
import tarfile
import types

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from fac_lightning.cli import main
from fac_lightning.data import (
    COLUMN_MAPS,
    ColumnMap,
    Dialogue,
    DialogueWriter,
    HuggingFaceImport,
    ImportOptions,
    KaldiImport,
    LhotseImport,
    MoshiImport,
    NemoImport,
    ShareGPTImport,
    SlamOmniImport,
    SoundFolderImport,
    Turn,
    guess_format,
    read_dialogues,
)
from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.code_cells import parse_codes
from foreign_data import RATE, codes, flac_bytes, heard, kaldi, lhotse_shar, lines, moshi, nemo_tarred, said, wav


def imported(job):
    """Dialogues of a job's folder by id, whatever was bad."""
    with contextlib.suppress(ValueError):
        job.run()
    return {dialogue.id: dialogue for dialogue in read_dialogues(job.out)}


def bad_lines(folder):
    return [json.loads(line) for line in (folder / "bad.jsonl").read_text(encoding="utf-8").splitlines()]


def nemo_line(path="a.wav", text="hello", **more):
    return {"audio_filepath": path, "text": text, **more}


@pytest.fixture
def folder(tmp_path):
    wav(tmp_path / "a.wav", heard(0))
    wav(tmp_path / "b.wav", heard(1))
    return tmp_path


def one_bad(folder, line, **options):
    """The one bad item of a NeMo manifest with a good line before and one behind."""
    source = folder / "m.jsonl"
    lines(source, nemo_line("a.wav"))
    with source.open("ab") as file:
        file.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
    job = NemoImport(str(source), str(folder / "out"), options=ImportOptions(**options))
    head = r"1 bad item\(s\) are left out, see .*bad\.jsonl; 1 good dialogues are in"
    with pytest.raises(ValueError, match=head) as told:
        job.run()
    (bad,) = bad_lines(folder / "out")
    assert bad["text"] in str(told.value)
    assert [dialogue.id for dialogue in read_dialogues(folder / "out")] == ["a"]
    assert job.options.skip_bad is False
    kept = NemoImport(str(source), str(folder / "out"), options=ImportOptions(**options, skip_bad=True))
    assert kept.run()["bad"] == 1
    return bad["code"], bad["text"]


def noise(folder, name, content):
    (folder / name).write_bytes(content)
    return nemo_line(name)


def odd_wave(folder, name, samples, subtype="FLOAT", rate=RATE):
    soundfile.write(folder / name, samples, rate, subtype=subtype)
    return nemo_line(name)


def half(folder, name):
    whole = (folder / "b.wav").read_bytes()
    return noise(folder, name, whole[: len(whole) // 2])


BAD = {
    "missing": (lambda f: nemo_line("bb.wav"), "FAC-A01", r"m.jsonl, line 2, audio_filepath.*nearest is 'b.wav'"),
    "empty": (lambda f: noise(f, "c.wav", b""), "FAC-A02", r"line 2, c.wav: got 0 bytes"),
    "text": (lambda f: noise(f, "c.wav", b"<html>" * 99), "FAC-A03", "no sound file in .*c.wav"),
    "not finite": (
        lambda f: odd_wave(f, "c.wav", np.array([0.1, np.nan] * 900, np.float32)),
        "FAC-A10",
        "got '?900 of 1800'?, want finite",
    ),
    "scale": (lambda f: odd_wave(f, "c.wav", np.full(900, 30000.0, np.float32)), "FAC-A12", "a peak of 30000"),
    "absurd": (
        lambda f: odd_wave(f, "c.wav", np.zeros((900, 12), np.float32), rate=300000),
        "FAC-A18",
        "got 300000 Hz, 12 channels",
    ),
    "stereo": (
        lambda f: odd_wave(f, "c.wav", np.zeros((900, 2), np.float32)),
        "FAC-A13",
        "got 2, want mono. .*mix_channels=true",
    ),
    "longer than told": (lambda f: nemo_line("b.wav", duration=0.3), "FAC-A09", "want the 0.500 s that there are"),
    "beyond its end": (lambda f: nemo_line("b.wav", offset=0.4, duration=0.3), "FAC-D08", "0.400 to 0.700 s"),
    "no duration": (lambda f: nemo_line("b.wav", duration=-1), "FAC-D07", r"line 2, duration: got '?-1"),
    "no text": (lambda f: nemo_line("b.wav", text=None), "FAC-I02", "line 2, text: got None, want what is said"),
    "a pipe": (lambda f: nemo_line("cat b.wav |"), "FAC-D10", "commands are not run here"),
    "NeMo's pipe": (lambda f: nemo_line("pipe:cat b.wav"), "FAC-D10", "commands are not run here"),
    "an address": (lambda f: nemo_line("https://x/b.wav"), "FAC-D10", "Download the data first"),
    "outside": (lambda f: nemo_line("/etc/hostname"), "FAC-D10", "want a file below .*trust_paths=true"),
    "outside by dots": (lambda f: nemo_line("../b.wav"), "FAC-D10", "want a file below"),
    "the same again": (lambda f: nemo_line("a.wav"), "FAC-D06", "want an id that .*line 1 does not have"),
    "no JSON": (lambda f: b"{]\n", "FAC-D15", "line 2: got '{]'"),
    "a list": (lambda f: [1], "FAC-D15", r"line 2: got \[1\], want a JSON object"),
    "half a line": (lambda f: b'{"audio_fil', "FAC-D02", "truncated last line in .*line 2"),
    "Latin": (lambda f: b'{"audio_filepath": "\xe4"}\n', "FAC-D05", "byte 0xe4 as byte 21"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_item_is_told_listed_and_left_out(folder, name):
    make, code, message = BAD[name]
    found, text = one_bad(folder, make(folder))
    assert found == code
    assert re.search(message, text), text
    assert "\n" not in text


def test_a_file_that_breaks_off_is_bad(folder):
    whole = flac_bytes(heard(1))
    code, text = one_bad(folder, noise(folder, "c.flac", whole[: len(whole) // 2]))
    assert code in ("FAC-A03", "FAC-A05")
    assert "c.flac" in text


def test_a_gzip_file_that_breaks_off_is_told(folder):
    whole = gzip.compress((json.dumps(nemo_line("a.wav")) + "\n").encode() + b"\n" * 9000 + np.random.bytes(9000))
    (folder / "m.jsonl.gz").write_bytes(whole[:-4000])
    assert "a" in imported(NemoImport(str(folder / "m.jsonl.gz"), str(folder / "out")))
    assert bad_lines(folder / "out")[-1]["code"] == "FAC-D03"


def test_nothing_good_is_an_error_and_a_mended_source_comes_in(folder):
    source = lines(folder / "m.jsonl", nemo_line("gone.wav"))
    job = NemoImport(str(source), str(folder / "out"))
    with pytest.raises(ValueError, match=r"has nothing that can be imported\nFAC-A01"):
        job.run()
    lines(source, nemo_line("a.wav"))
    assert job.run()["dialogues"] == 1


def test_another_source_or_argument_needs_another_folder(folder):
    source = lines(folder / "m.jsonl", nemo_line("a.wav"))
    NemoImport(str(source), str(folder / "out")).run()
    with pytest.raises(ValueError, match=r"made with another role .* choose another folder"):
        NemoImport(str(source), str(folder / "out"), role="assistant").run()
    with pytest.raises(ValueError, match="made with another sample_rate"):
        NemoImport(str(source), str(folder / "out"), options=ImportOptions(sample_rate=8000)).run()
    lines(source, nemo_line("b.wav"))
    with pytest.raises(ValueError, match="made with another source"):
        NemoImport(str(source), str(folder / "out")).run()
    with DialogueWriter(folder / "own") as writer:
        writer.write(Dialogue("d", (Turn("user", "x"),)))
    with pytest.raises(ValueError, match="holds dialogues that no import made"):
        NemoImport(str(source), str(folder / "own")).run()


def test_names_too_long_for_a_file_are_shortened(folder):
    deep = "/".join(["ä" * 20] * 6)
    wav(folder / deep / "a.wav", heard(0))
    wav(folder / deep / "b.wav", heard(1))
    source = lines(folder / "m.jsonl", nemo_line(f"{deep}/a.wav"), nemo_line(f"{deep}/b.wav"))
    found = imported(NemoImport(str(source), str(folder / "out")))
    assert [dialogue.custom["source_id"] for dialogue in found.values()] == [f"{deep}/a", f"{deep}/b"]
    assert all(len(name) < 40 for name in found)
    assert NemoImport(str(source), str(folder / "out")).run()["new"] == 0


# ---- options


def test_paths_are_followed_below_the_root_or_with_trust(folder):
    manifests = folder / "manifests"
    source = lines(manifests / "m.jsonl", nemo_line(str(folder / "a.wav")))
    with pytest.raises(ValueError, match="FAC-D10"):
        NemoImport(str(source), str(folder / "x")).run()
    assert NemoImport(str(source), str(folder / "y"), options=ImportOptions(trust_paths=True)).run()["dialogues"] == 1
    assert NemoImport(str(source), str(folder / "z"), options=ImportOptions(root=str(folder))).run()["dialogues"] == 1


def test_a_link_out_of_the_root_is_refused(folder):
    inner = folder / "inner"
    inner.mkdir()
    (inner / "x.wav").symlink_to(folder / "a.wav")
    source = lines(inner / "m.jsonl", nemo_line("x.wav"))
    with pytest.raises(ValueError, match="FAC-D10"):
        NemoImport(str(source), str(folder / "out")).run()


def test_sound_is_resampled_mixed_and_clipped_only_as_told(folder):
    stereo = np.stack([heard(2), heard(2)], 1)
    soundfile.write(folder / "c.wav", stereo, RATE)
    loud = (2 * np.ones(800)).astype(np.float32)
    loud[100:] = 0.5
    soundfile.write(folder / "d.wav", loud, RATE, subtype="FLOAT")
    source = lines(folder / "m.jsonl", nemo_line("c.wav"), nemo_line("d.wav"))
    NemoImport(str(source), str(folder / "out"), options=ImportOptions(mix_channels=True, sample_rate=8000)).run()
    mixed, clipped = read_dialogues(folder / "out")
    assert (mixed.turns[0].sample_rate, len(mixed.turns[0].audio)) == (8000, len(heard(2)) // 2)
    assert clipped.turns[0].custom["clipped_samples"] > 0
    with pytest.raises(ValueError, match=r"FAC-A15.*want at most 0.1 s"):
        NemoImport(str(source), str(folder / "two"), options=ImportOptions(max_seconds=0.1)).run()
    with pytest.raises(ValueError, match="limit must be above 0, got 0"):
        ImportOptions(limit=0)


def test_rates_that_differ_within_a_side_are_told(tmp_path):
    data = tmp_path / "data"
    wav(data / "t-0-user.wav", heard(0))
    wav(data / "t-1-user.wav", heard(0), rate=8000)
    wav(data / "a.wav", heard(0))
    (data / "a.txt").write_text("a")
    job = SoundFolderImport(str(data), str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"FAC-A08: .*got 8000 Hz, 16000 Hz, want one rate .*user's.*Set sample_rate"):
        job.run()
    job = SoundFolderImport(str(data), str(tmp_path / "new"), options=ImportOptions(sample_rate=16000))
    assert job.run()["dialogues"] == 2


def test_a_limit_stops_and_more_may_follow(folder):
    source = lines(folder / "m.jsonl", nemo_line("a.wav"), nemo_line("b.wav"))
    assert NemoImport(str(source), str(folder / "out"), options=ImportOptions(limit=1)).run()["dialogues"] == 1
    assert NemoImport(str(source), str(folder / "out")).run()["dialogues"] == 2


# ---- tables


def table(folder, **columns):
    file = folder / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return str(file)


def test_wrong_columns_say_which_and_suggest_the_map(folder):
    source = table(folder, question=["q"], answer=["a"], question_audio=[flac_bytes(heard(0))])
    with pytest.raises(BadData, match=r"(?s)FAC-I01: missing columns.*got columns 'question', 'answer'") as told:
        HuggingFaceImport(source, str(folder / "out"), column_map="spoken-alpaca-gpt4").run()
    text = str(told.value)
    assert "'input_audio' (user_audio), 'speech_input' (user_text)" in text
    assert "--column user_audio=NAME" in text
    assert not (folder / "out").exists()
    other = {"split_name": ["s"], "index": ["1"], "round": ["1"], "answer_snac": ["# 1 2 3 4 5 6 7"]}
    source = table(folder, question=["q"], answer=["a"], question_audio=[flac_bytes(heard(0))], **other)
    with pytest.raises(BadData, match="Take the map that fits: --map voice-assistant-400k"):
        HuggingFaceImport(source, str(folder / "out"), column_map="spoken-alpaca-gpt4").run()
    source = table(folder, sound=[flac_bytes(heard(0))], words=["hi"])
    with pytest.raises(BadData, match="the nearest of spoken-alpaca-gpt4, voice-assistant-400k"):
        HuggingFaceImport(source, str(folder / "out")).run()
    with pytest.raises(ValueError, match=r"no map 'spoken-alpaca'. The nearest is 'spoken-alpaca-gpt4'"):
        HuggingFaceImport(source, str(folder / "out"), column_map="spoken-alpaca")
    with pytest.raises(ValueError, match=r"no field 'user_sound' of a column map. The nearest is 'user_audio'"):
        HuggingFaceImport(source, str(folder / "o"), "spoken-alpaca-gpt4", {"user_sound": "sound"}).run()


def test_columns_may_be_mapped_by_hand(folder):
    rows = {
        "sound": [flac_bytes(heard(0)), None],
        "words": ["hi", "ho"],
        "reply": ["yes", "no"],
        "units": [codes(1), codes(2)],
        "rules": ["Be brief.", None],
        "wer": [0.5, 0.0],
        "emb": [[0.1], [0.2]],
    }
    columns = {
        "user_audio": "sound",
        "user_text": "words",
        "assistant_text": "reply",
        "assistant_codes": "units",
        "system": "rules",
        "codes_tokenizer": "mine",
        "codes_frame_rate": 25.0,
    }
    job = HuggingFaceImport(table(folder, **rows), str(folder / "out"), columns=columns)
    first, second = imported(job).values()
    assert (first.system, second.system) == ("Be brief.", None)
    assert first.custom == {"wer": 0.5}
    assert second.turns[0].audio is None
    assert first.turns[1].codes.tokenizer == "mine"
    with pytest.raises(ValueError, match="the codes in 'units' need codes_tokenizer"):
        HuggingFaceImport(job.written, str(folder / "b"), columns={**columns, "codes_tokenizer": None}).run()
    with pytest.raises(ValueError, match="columns names no user_audio, user_text"):
        HuggingFaceImport(job.written, str(folder / "b"), columns={"system": "rules"}).run()


def test_what_is_left_out_of_a_row_is_told(folder, caplog):
    source = table(folder, words=["hi"], reply=["yes"], emb=[[0.1, 0.2]])
    with caplog.at_level(logging.WARNING):
        HuggingFaceImport(source, str(folder / "o"), columns={"user_text": "words", "assistant_text": "reply"}).run()
    assert "left out, being no texts or numbers: emb" in caplog.text


CELLS = {
    "array": ({"array": heard(0), "sampling_rate": RATE}, True),
    "two channels": ({"array": np.stack([heard(0)] * 2), "sampling_rate": RATE}, "FAC-A13"),
    "no rate": ({"array": heard(0), "sampling_rate": None}, "FAC-I02"),
    "path": ({"bytes": None, "path": "a.wav"}, True),
    "plain path": ("a.wav", True),
    "bytes": (flac_bytes(heard(0)), True),
    "number": (3, "FAC-I02"),
    "text": (b"<html>", "FAC-A03"),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells_of_audio(folder, name):
    cell, due = CELLS[name]
    job = HuggingFaceImport(table(folder, a=["x"]), str(folder / "out"))
    if due is True:
        np.testing.assert_array_equal(job._sound(cell, "here").samples, heard(0))
    else:
        with pytest.raises(BadData, match=f"{due}.* in here"):
            job._sound(cell, "here")


@pytest.mark.parametrize(
    ("cell", "books", "due"),
    [
        ([1, 2, 3], 1, [[1], [2], [3]]),
        ("[1, 2, 3]", 1, [[1], [2], [3]]),
        ("# 1 2 # 3 4", 2, [[1, 2], [3, 4]]),
        ([[1, 2], [3, 4]], 2, [[1, 2], [3, 4]]),
        ("1 2 x", 1, "want numbers, with blanks"),
        ([1, 2, 3], 2, "3 numbers"),
        ([], 1, "at least one"),
        ([0.5], 1, "a list of integers"),
        ([-1], 1, "integers from 0 up"),
        ([[1], [2, 3]], 1, "a list of numbers"),
    ],
)
def test_codes_of_a_cell(cell, books, due):
    if isinstance(due, list):
        assert parse_codes(cell, "here", "x", 25.0, books).codes.tolist() == due
    else:
        with pytest.raises(BadData, match=f"FAC-I05.*{due}"):
            parse_codes(cell, "here", "x", 25.0, books)


def test_splits_must_be_chosen(folder):
    (folder / "data").mkdir()
    for split in ("train", "test"):
        one = pyarrow.table({"words": [split], "reply": ["yes"]})
        pyarrow.parquet.write_table(one, folder / "data" / f"{split}-00000-of-00001.parquet")
    columns = {"user_text": "words", "assistant_text": "reply"}
    with pytest.raises(ValueError, match="has the splits test, train; choose one"):
        HuggingFaceImport(str(folder), str(folder / "out"), columns=columns).run()
    (found,) = imported(HuggingFaceImport(str(folder), str(folder / "out"), columns=columns, split="test")).values()
    assert found.turns[0].text == "test"
    with pytest.raises(ValueError, match="has no split 'dev'; it has test, train"):
        HuggingFaceImport(str(folder), str(folder / "out"), columns=columns, split="dev").run()


def test_a_damaged_table_is_told(folder):
    (folder / "t.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(BadData, match=r"FAC-D15: file that is no table in .*t.parquet"):
        HuggingFaceImport(str(folder / "t.parquet"), str(folder / "out")).run()
    (folder / "none").mkdir()
    with pytest.raises(ValueError, match="holds no parquet, arrow or JSON files"):
        HuggingFaceImport(str(folder / "none"), str(folder / "out")).run()


def test_without_pyarrow_one_line_names_the_extra(folder, monkeypatch):
    source = table(folder, a=["x"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"need pyarrow: pip install 'fac-lightning\[hf\]'"):
        HuggingFaceImport(source, str(folder / "out")).run()


def test_a_dataset_of_the_hub_is_streamed(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs datasets: pip install 'fac-lightning\[hub\]'"):
        HuggingFaceImport("someone/set", str(folder / "out")).run()

    class Audio:
        def __init__(self, decode):
            self.decode = decode

    cast = []

    class Streamed:
        features = types.MappingProxyType({"input_audio": Audio(True), "speech_input": "text"})
        rows = tuple(
            {
                "input_audio": {"bytes": flac_bytes(heard(i)), "path": None},
                "speech_input": f"q{i}",
                "output_audio": None,
                "output": f"a{i}",
            }
            for i in range(2)
        )
        column_names = tuple(rows[0])

        def cast_column(self, name, feature):
            cast.append((name, feature.decode))
            return self

        def select_columns(self, names):
            return ({name: row[name] for name in names} for row in self.rows)

    fake = types.ModuleType("datasets")
    asked = []
    fake.Audio = Audio
    fake.load_dataset = lambda name, split, streaming: asked.append((name, split, streaming)) or Streamed()
    monkeypatch.setitem(sys.modules, "datasets", fake)
    found = imported(HuggingFaceImport("someone/set", str(folder / "out"), split="dev"))
    assert asked == [("someone/set", "dev", True)]
    assert cast == [("input_audio", False)]
    np.testing.assert_array_equal(found["set-1"].turns[0].audio, heard(1))


def test_rounds_that_say_nothing_or_stand_twice_are_bad(folder):
    row = {"split_name": "s", "source_text": "<USER>: q", "target_text": "a", "target_token": codes(1)}
    rows = [
        {**row, "index": 1, "round": 1, "source_wav": "a.wav"},
        {**row, "index": 1, "round": 1, "source_wav": "a.wav"},
        {**row, "index": 2, "round": "x", "source_wav": "a.wav"},
        {**row, "index": 3, "round": 2, "source_wav": "a.wav", "source_text": "USER: ASSISTANT: x <USER>: q"},
        {**row, "index": 4, "round": 1, "source_wav": "a.wav", "target_token": "x y"},
    ]
    found = imported(SlamOmniImport(str(lines(folder / "r.jsonl", *rows)), str(folder / "out")))
    assert list(found) == ["s-1"]
    assert sorted(bad["code"] for bad in bad_lines(folder / "out")) == ["FAC-D06", "FAC-I02", "FAC-I02", "FAC-I05"]


def test_every_map_makes_turns_and_names_its_codes():
    for one in COLUMN_MAPS.values():
        assert one.user_text
        assert one.assistant_text
        assert bool(one.assistant_codes) == bool(one.codes_tokenizer)
    with pytest.raises(ValueError, match="needs one of user_audio"):
        ColumnMap(system="x")


# ---- messages


def share(folder, *records, **arguments):
    (folder / "d.json").write_text(json.dumps(list(records)))
    return ShareGPTImport(str(folder / "d.json"), str(folder / "out"), **arguments)


def talk(*texts, audios=(), **more):
    roles = ("human", "gpt")
    return {
        "conversations": [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)],
        "audios": list(audios),
        **more,
    }


def test_what_the_user_says_beside_audio_may_be_its_transcript(folder):
    found = imported(share(folder, talk("<audio>hello", "Yes.", audios=["a.wav"], id="x"), user_text_is_said=True))
    assert [(turn.text, turn.audio is not None) for turn in found["x"].turns] == [("hello", True), ("Yes.", False)]


def test_sound_and_texts_of_the_user_keep_their_order(folder):
    found = imported(share(folder, talk("One <audio> two<audio>", "Yes.", audios=["a.wav", "b.wav"])))
    assert [turn.text for turn in found["d-0"].turns] == ["One", "", "two", "", "Yes."]


BAD_TALKS = {
    "number": (talk("<audio>x", "y"), "FAC-I03: .*got 0 audios, want 1"),
    "too many": (talk("x", "y", audios=["a.wav"]), "FAC-I03: .*got 1 audios, want 0"),
    "role": ({"conversations": [{"from": "observation", "value": "x"}]}, "FAC-I04: unknown role .*tags.user_tag"),
    "no content": (talk(" ", "y"), "want a text under 'value'"),
    "no messages": (talk(), "want a list of messages"),
    "no object": ({"conversations": ["x"]}, "an object with a role and a content"),
    "audios": ({**talk("x", "y"), "audios": 3}, "audios: got 3, want a list of paths"),
    "a mute answer": (talk("x", "<audio>", audios=["a.wav"]), "the text that is said beside <audio>"),
    "two in one": (talk("x", "<audio>y<audio>", audios=["a.wav", "b.wav"]), "one <audio> in a message"),
    "outside": (talk("<audio>", "y", audios=["../a.wav"]), "FAC-D10"),
}


@pytest.mark.parametrize("name", BAD_TALKS)
def test_bad_messages_are_told(folder, name):
    record, message = BAD_TALKS[name]
    with pytest.raises(ValueError, match=message):
        share(folder, talk("x", "y"), record).run()
    assert len(list(read_dialogues(folder / "out"))) == 1


def test_dataset_info_is_followed(folder):
    lines(folder / "r.jsonl", {"talks": [{"who": "U", "what": "x"}, {"who": "A", "what": "y"}], "note": "n"})
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "A"}
    described = {"file_name": "r.jsonl", "formatting": "sharegpt", "columns": {"messages": "talks"}, "tags": tags}
    pairs = {**described, "ranking": True}
    info = {"one": described, "pairs": pairs, "flat": {"file_name": "r.jsonl"}, "gone": {**described, "file_name": "x"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))

    def job(name):
        return ShareGPTImport(str(folder), str(folder / "out"), dataset=name)

    (found,) = imported(job("one")).values()
    assert [turn.text for turn in found.turns] == ["x", "y"]
    assert found.custom == {"note": "n"}
    with pytest.raises(ValueError, match="has the datasets one, pairs, flat, gone; choose one: --set dataset=NAME"):
        job(None).run()
    with pytest.raises(ValueError, match=r"no dataset 'on'. The nearest is 'one'"):
        job("on").run()
    with pytest.raises(ValueError, match=r"'pairs' has preference pairs.* see LlamaFactoryPairs"):
        job("pairs").run()
    with pytest.raises(ValueError, match="'flat' is no local dataset of the formatting 'sharegpt'"):
        job("flat").run()
    with pytest.raises(FileNotFoundError, match=r"dataset_info.json names it"):
        job("gone").run()
    with pytest.raises(BadData, match=r"FAC-I01.*got columns 'talks', 'note', want 'messages'.*--set columns.messages"):
        ShareGPTImport(str(folder / "r.jsonl"), str(folder / "b"), columns={"messages": "messages"}).run()
    with pytest.raises(ValueError, match=r"tags has no 'usertag'. The nearest is 'user_tag'"):
        ShareGPTImport("x", "y", tags={"usertag": "U"})


# ---- stereo


def test_without_words_the_user_is_what_sounds_between_the_answers(folder):
    left, right = np.zeros(4 * RATE, np.float32), np.zeros(4 * RATE, np.float32)
    right[: RATE // 2], left[RATE : 2 * RATE] = 0.25, 0.5
    wav(folder / "s.wav", right, left)  # the assistant on the right
    words = {"alignments": [["Good", [1.0, 1.4], "SPEAKER_MAIN"], ["day.", [1.5, 2.0], "SPEAKER_MAIN"]]}
    (folder / "s.json").write_text(json.dumps(words))
    source = lines(folder / "d.jsonl", {"path": "s.wav", "duration": 4.0})
    found = imported(MoshiImport(str(source), str(folder / "out"), assistant_channel=1))["s"]
    assert [(turn.role, turn.text) for turn in found.turns] == [("user", ""), ("assistant", "Good day.")]
    asked, answered = found.turns
    np.testing.assert_array_equal(asked.audio, right[:RATE])
    assert (answered.custom["start"], answered.custom["end"]) == (0.9, 2.1)
    np.testing.assert_array_equal(answered.audio, left[round(0.9 * RATE) : round(2.1 * RATE)])


MOSHI = {
    "no alignments": (lambda f: (f / "stereo/1.json").unlink(), "FAC-D01: missing file .*1.json"),
    "no list": (lambda f: (f / "stereo/1.json").write_text("{}"), "FAC-I02.*1.json: got {}"),
    "no word": (
        lambda f: (f / "stereo/1.json").write_text('{"alignments": [["x", 3]]}'),
        r"alignments\[0\]: got \['x', 3\]",
    ),
    "backwards": (
        lambda f: (f / "stereo/1.json").write_text('{"alignments": [["x", [2, 1], "S"]]}'),
        "times that go forward",
    ),
    "beyond": (
        lambda f: (f / "stereo/1.json").write_text('{"alignments": [["x", [8, 9], "SPEAKER_MAIN"]]}'),
        "FAC-D09: turn outside its audio",
    ),
    "mono": (lambda f: wav(f / "stereo/1.wav", np.ones(3 * RATE, np.float32) / 4), "FAC-A13.*want channel 1"),
    "short": (lambda f: wav(f / "stereo/1.wav", *[np.zeros(RATE, np.float32)] * 2), "FAC-A09.*got 3.0, want the 1.000"),
}


@pytest.mark.parametrize("name", MOSHI)
def test_bad_stereo_is_told(tmp_path, name):
    sample = moshi(tmp_path)
    change, message = MOSHI[name]
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        MoshiImport(sample.source, str(tmp_path / "out")).run()
    assert [dialogue.id for dialogue in read_dialogues(tmp_path / "out")] == ["stereo/0"]


# ---- NeMo, Kaldi, lhotse


def test_nemo_answers_and_roles(folder):
    source = lines(folder / "m.jsonl", {**nemo_line("a.wav"), "answer": "Fine."})
    found = imported(NemoImport(str(source), str(folder / "out"), answer_field="answer"))["a"]
    assert [(turn.role, turn.text) for turn in found.turns] == [("user", "hello"), ("assistant", "Fine.")]
    spoken = imported(NemoImport(str(source), str(folder / "tts"), role="assistant"))["a"]
    assert [turn.role for turn in spoken.turns] == ["assistant"]
    with pytest.raises(BadData, match=r"FAC-I01: .*also 'transcript'. Say where the text stands: --set text_field"):
        NemoImport(str(source), str(folder / "b"), text_field="transcript").run()
    with pytest.raises(ValueError, match="role must be 'user' or 'assistant', got 'agent'"):
        NemoImport(str(source), str(folder / "b"), role="agent")
    with pytest.raises(FileNotFoundError, match=r"missing file .*nearest is 'm.jsonl'"):
        NemoImport(str(folder / "n.jsonl"), str(folder / "b")).run()


def test_tar_files_and_lines_that_do_not_fit_are_told(tmp_path):
    sample = nemo_tarred(tmp_path)
    with tarfile.open(tmp_path / "audio_0.tar", "a") as tar:
        info = tarfile.TarInfo("more.flac")
        tar.addfile(info, io.BytesIO(b""))
    extra = {"audio_filepath": "gone.flac", "text": "x", "duration": 1.0, "shard_id": 1}
    with (tmp_path / "sharded_manifests/manifest_1.json").open("a") as file:
        file.write(json.dumps(extra) + "\n")
    job = NemoImport(
        sample.source, str(tmp_path / "out"), tars="audio__OP_0..1_CL_.tar", options=ImportOptions(root=str(tmp_path))
    )
    assert len(imported(job)) == len(sample.dialogues)
    assert [(bad["code"], bad["value"]) for bad in bad_lines(tmp_path / "out")] == [
        ("FAC-D12", "more.flac"),
        ("FAC-D11", "gone.flac"),
    ]
    whole = (tmp_path / "audio_1.tar").read_bytes()
    (tmp_path / "audio_1.tar").write_bytes(whole[:2000])
    assert len(imported(NemoImport(sample.source, str(tmp_path / "two")))) >= 3
    assert "FAC-D11" in {bad["code"] for bad in bad_lines(tmp_path / "two")}
    (tmp_path / "audio_1.tar").unlink()
    with pytest.raises(BadData, match=r"FAC-D14: .*got tar files of the shards 0, want also shard 1"):
        NemoImport(sample.source, str(tmp_path / "three")).run()


def test_pipes_run_only_when_commands_are_trusted(tmp_path):
    sample = kaldi(tmp_path)
    (tmp_path / "wav.scp").write_text("rec-a echo x >> ran && cat wav/a.wav |\n")
    with pytest.raises(ValueError, match=r"FAC-D10: .*wav.scp, line 1: .*trust_commands=true"):
        KaldiImport(sample.source, str(tmp_path / "out")).run()
    assert not (tmp_path / "ran").exists()
    job = KaldiImport(sample.source, str(tmp_path / "out"), options=ImportOptions(trust_commands=True))
    assert job.run()["dialogues"] == 2
    assert (tmp_path / "ran").read_text() == "x\n"  # once for the two segments of the recording
    (tmp_path / "wav.scp").write_text("rec-a false |\n")
    with pytest.raises(ValueError, match=r"FAC-A01: command that failed"):
        KaldiImport(sample.source, str(tmp_path / "new"), options=ImportOptions(trust_commands=True)).run()


KALDI = {
    "segments": ("segments", "utt-1 rec-b 0 0.4\nutt-2 rec-a 0.4 -1\n", "a recording that .*wav.scp has too"),
    "no segment": ("segments", "utt-2 rec-a 0.4 -1\n", "an utterance that .*segments has too"),
    "backwards": ("segments", "utt-1 rec-a 0.4 0.2\nutt-2 rec-a 0.4 -1\n", "FAC-D08.*an end behind the start"),
    "no number": ("segments", "utt-1 rec-a x 0.2\nutt-2 rec-a 0.4 -1\n", "got 'x', want seconds"),
    "no text": ("text", "utt-1\nutt-2 zwei\n", "FAC-I02: .*text.*want what is said"),
    "untold": ("text", "utt-2 zwei\n", "want an utterance that text has too"),
    "blank": ("text", "\nutt-2 zwei\n", "FAC-D04: blank line in .*text, line 1"),
    "twice": ("text", "utt-2 zwei\nutt-2 drei\nutt-1 eins\n", "FAC-D06: .*text, line 2"),
}


@pytest.mark.parametrize("name", KALDI)
def test_bad_tables_of_kaldi_are_told(tmp_path, name):
    sample = kaldi(tmp_path)
    file, content, message = KALDI[name]
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        KaldiImport(sample.source, str(tmp_path / "out")).run()
    assert "utt-2" in {dialogue.id for dialogue in read_dialogues(tmp_path / "out")}


def test_kaldi_lengths_are_compared(tmp_path):
    sample = kaldi(tmp_path)
    (tmp_path / "segments").unlink()
    (tmp_path / "text").write_text("rec-a all of it\n")
    (tmp_path / "reco2dur").write_text("rec-a 1.9\n")
    with pytest.raises(ValueError, match=r"FAC-A09: .*reco2dur, line 1: got 1.9, want the 0.900 s"):
        KaldiImport(sample.source, str(tmp_path / "out")).run()
    (tmp_path / "text").unlink()
    with pytest.raises(FileNotFoundError, match=r"a Kaldi directory has wav.scp and text"):
        KaldiImport(sample.source, str(tmp_path / "out")).run()


def cut(folder, name="a", **changes):
    """A cut as lhotse writes it."""
    source = {"type": "file", "channels": [0], "source": f"{name}.wav"}
    frames = soundfile.info(folder / f"{name}.wav").frames
    recording = {
        "id": name,
        "sources": [source],
        "sampling_rate": RATE,
        "num_samples": frames,
        "duration": frames / RATE,
    }
    said_ = {"id": "s", "recording_id": name, "start": 0.0, "duration": 0.2, "channel": 0, "text": "hello"}
    whole = {"id": name, "start": 0.0, "duration": frames / RATE, "channel": 0, "supervisions": [said_]}
    return {**whole, "recording": recording, "type": "MonoCut", **changes}


def supervised(folder, *changes, **more):
    base = cut(folder)["supervisions"][0]
    return cut(folder, supervisions=[{**base, **change} for change in changes], **more)


def test_cuts_without_dialogues_are_recognition_or_synthesis(folder):
    words = {"word": [["he", 0.0, 0.1], ["llo", 0.1, 0.1, 0.9]]}
    source = lines(folder / "c.jsonl", supervised(folder, {"speaker": "anna", "alignment": words, "language": "en"}))
    (turn,) = imported(LhotseImport(str(source), str(folder / "out")))["a"].turns
    assert (turn.role, turn.text) == ("user", "hello")
    assert turn.custom["words"] == [["he", 0.0, 0.1], ["llo", 0.1, 0.2]]
    assert (turn.custom["speaker"], turn.custom["language"]) == ("anna", "en")
    np.testing.assert_array_equal(turn.audio, heard(0)[: round(0.2 * RATE)])
    (turn,) = imported(LhotseImport(str(source), str(folder / "tts"), role="assistant"))["a"].turns
    assert turn.role == "assistant"


def test_speakers_are_mapped(folder):
    source = lines(folder / "c.jsonl", supervised(folder, {"speaker": "anna"}, {"speaker": "bert", "start": 0.2}))
    job = LhotseImport(str(source), str(folder / "out"), speakers={"anna": "user", "bert": "assistant"})
    assert [turn.role for turn in imported(job)["a"].turns] == ["user", "assistant"]
    with pytest.raises(ValueError, match=r"FAC-I04: unknown speaker .*got 'bert'.*--set speakers.NAME=user"):
        LhotseImport(str(source), str(folder / "b"), speakers={"anna": "user"}).run()
    with pytest.raises(ValueError, match="a role is 'user' or 'assistant', got 'agent'"):
        LhotseImport(str(source), str(folder / "b"), speakers={"anna": "agent"})


def test_a_piece_of_a_long_recording_is_a_cut(folder):
    source = lines(folder / "c.jsonl", cut(folder, start=0.1, duration=0.2))
    (turn,) = imported(LhotseImport(str(source), str(folder / "out")))["a"].turns
    np.testing.assert_array_equal(turn.audio, heard(0)[round(0.1 * RATE) : round(0.3 * RATE)])


def recorded(folder, **changes):
    base = cut(folder)
    return {**base, "recording": {**base["recording"], **changes}}


CUTS = {
    "command": (
        lambda f: recorded(f, sources=[{"type": "command", "channels": [0], "source": "cat a.wav"}]),
        "FAC-D10: .*trust_commands=true",
    ),
    "url": (lambda f: recorded(f, sources=[{"type": "url", "channels": [0], "source": "http://x"}]), "FAC-D10"),
    "rate": (lambda f: recorded(f, sampling_rate=8000), "FAC-A08: .*got 16000, want the manifest's 8000"),
    "length": (lambda f: recorded(f, num_samples=16000), "FAC-A09: .*got 0.400 s, want the manifest's 1.000 s"),
    "transforms": (lambda f: recorded(f, transforms=[{"name": "Speed"}]), "recording with transforms"),
    "sources": (lambda f: recorded(f, sources=[]), "want one source"),
    "kind": (lambda f: cut(f, type="MixedCut"), "cut of another kind .*save_audios"),
    "no text": (lambda f: supervised(f, {"text": None}), "FAC-D09: turn without text"),
    "outside": (lambda f: supervised(f, {"duration": 3.0}), "FAC-D09: turn outside its audio"),
    "duration": (lambda f: cut(f, duration=float("nan")), "FAC-D07: bad duration"),
    "no turns": (lambda f: cut(f, supervisions=[]), "want one turn at least"),
    "ours": (lambda f: supervised(f, {"custom": {"spoken": True}}), "this is a dialogues folder already"),
    "no id": (lambda f: {**cut(f), "id": None}, "want the cut's id"),
    "mute answer": (
        lambda f: cut(f, custom={"target_audio": cut(f, "b")["recording"], "topic": "x"}),
        "answer without text .*--set answer_field=NAME; custom has topic",
    ),
}


@pytest.mark.parametrize("name", CUTS)
def test_bad_cuts_are_told(folder, name):
    make, message = CUTS[name]
    wav(folder / "a.wav", heard(0))
    source = lines(folder / "c.jsonl", {**cut(folder, "b"), "id": "good"}, make(folder))
    with pytest.raises(ValueError, match=message):
        LhotseImport(str(source), str(folder / "out")).run()
    assert [dialogue.id for dialogue in read_dialogues(folder / "out")] == ["good"]


def rewrite(tar, change):
    """A tar file with other members."""
    with tarfile.open(tar) as content:
        members = [(info, content.extractfile(info).read()) for info in content]
    with tarfile.open(tar, "w") as content:
        for info, data in change(members):
            info.size = len(data)
            content.addfile(info, io.BytesIO(data))


def linked(info):
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/hosts"
    return info


SHARS = {
    "fewer": (
        lambda f: rewrite(f / "target_audio.000000.tar", lambda m: m[:2]),
        "FAC-D11: too few items",
        {"q0", "q2"},
    ),
    "order": (
        lambda f: rewrite(f / "target_audio.000000.tar", lambda m: m[2:] + m[:2]),
        "FAC-D12: items in another order",
        {"q2"},
    ),
    "cut": (
        lambda f: (f / "recording.000000.tar").write_bytes((f / "recording.000000.tar").read_bytes()[:700]),
        "FAC-D11: shard that breaks off",
        {"q2"},
    ),
    "link": (
        lambda f: rewrite(f / "recording.000000.tar", lambda m: [(linked(m[0][0]), b""), *m[1:]]),
        "FAC-D13: tar member that is not taken in .*: got a link to '/etc/hosts', want regular files",
        {"q2"},
    ),
}


@pytest.mark.parametrize("name", SHARS)
def test_a_shard_that_does_not_fit_is_told_and_the_others_come_in(tmp_path, name):
    sample = lhotse_shar(tmp_path)
    change, message, left = SHARS[name]
    change(tmp_path / "shar")
    job = LhotseImport(sample.source, str(tmp_path / "out"), answer_field="answer")
    with pytest.raises(ValueError, match=message):
        job.run()
    assert {dialogue.id for dialogue in read_dialogues(tmp_path / "out")} == left


def test_shards_that_do_not_go_together_are_refused(tmp_path, caplog):
    sample = lhotse_shar(tmp_path)
    with tarfile.open(tmp_path / "shar" / "units.000000.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("q0.npy"))
    with pytest.raises(BadData, match=r"FAC-D14: .*field 'units': got 1 shards: lacks shard 000001, want the 2 shards"):
        LhotseImport(sample.source, str(tmp_path / "out"), answer_field="answer").run()


# ---- folders and guesses


def test_a_folder_tells_what_lacks_its_other_half(folder):
    (folder / "a.txt").write_text("hello")
    (folder / "c.txt").write_text("no sound")
    (folder / "t-0-user.txt").write_text("Hi.")
    (folder / "t-3-assistant.txt").write_text("Ho.")
    (folder / "u-0-assistant.txt").write_text(" ")
    (folder / "l.wav").write_bytes((folder / "a.wav").read_bytes())
    (folder / "l.txt").write_bytes(b"\xe4")
    found = imported(SoundFolderImport(str(folder), str(folder / "out")))
    assert list(found) == ["a"]
    told = {bad["code"] + " " + bad["where"].rsplit("/", 1)[-1] for bad in bad_lines(folder / "out")}
    assert told == {"FAC-D01 b.wav", "FAC-A01 c.txt", "FAC-I02 t", "FAC-I02 u-0-assistant.txt", "FAC-D05 l.txt"}
    with pytest.raises(ValueError, match="is no folder"):
        SoundFolderImport(str(folder / "a.wav"), str(folder / "b")).run()


def test_nothing_known_is_told(folder):
    (folder / "none").mkdir()
    with pytest.raises(ValueError, match="looks like none of fun-audio-chat, sharegpt"):
        guess_format(folder / "none", "none")
    with pytest.raises(FileNotFoundError, match=r"gone.jsonl does not exist"):
        guess_format(folder / "gone.jsonl", "gone.jsonl")
    assert guess_format(folder / "some/set", "some/set")[0] == "hf"


# ---- the command


def test_exit_codes_and_words_of_the_command(folder, capsys):
    source = str(lines(folder / "m.jsonl", nemo_line("a.wav"), nemo_line("gone.wav")))
    out = str(folder / "out")
    assert main(["data", "import", "nemo", source, "--out", out]) == 3
    assert "FAC-A01" in capsys.readouterr().err
    assert main(["data", "import", "nemo", source, "--out", out, "--skip-bad", "--limit", "5"]) == 0
    assert "bad" in capsys.readouterr().out
    assert main(["data", "import", "nemos", source, "--out", out]) == 2
    assert "no format 'nemos'. Did you mean 'nemo'?" in capsys.readouterr().err
    assert main(["data", "import", "nemo", source, "--out", out, "--set", "rol=user"]) == 2
    assert "takes no 'rol'. Did you mean 'role'?" in capsys.readouterr().err
    assert main(["data", "import", "nemo", source, "--out", out, "--set", "role"]) == 2
    assert "'role' sets nothing; write key=value" in capsys.readouterr().err
    assert main(["data", "import", "nemo", source, "--out", out, "--set", "role=agent"]) == 2
    assert main(["data", "import", "nemo", source, "--out", out, "--limit", "0"]) == 2
    assert main(["data", "import", "auto", str(folder / "gone.jsonl"), "--out", out]) == 3
    assert main(["data", "import", "nemo"]) == 2
    assert "needed" in capsys.readouterr().err


def test_the_command_lists_formats_and_maps(capsys):
    assert main(["data", "import", "--list"]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("nemo", "voice-assistant-400k", "answer_snac", "trust_paths", "text_field"))
    assert main(["data"]) == 0
    assert "fac data import" in capsys.readouterr().out


def test_the_command_maps_columns(folder):
    source = table(folder, sound=[flac_bytes(said(0))], words=["hi"], reply=["yes"], output_audio=[None])
    words = [f"--column={word}" for word in ("user_audio=sound", "user_text=words", "assistant_text=reply")]
    out = str(folder / "out")
    assert main(["data", "import", "hf", source, "--out", out, "--map", "spoken-alpaca-gpt4", *words]) == 0
    (found,) = read_dialogues(out)
    assert [turn.text for turn in found.turns] == ["hi", "yes"]
    assert main(["data", "import", "hf", source, "--out", str(folder / "b"), *words]) == 0
    assert main(["data", "import", "hf", source, "--out", str(folder / "c")]) == 3


def test_a_recipe_runs_an_import(folder):
    source = lines(folder / "m.jsonl", nemo_line("a.wav"))
    recipe = folder / "import.yaml"
    recipe.write_text(
        "job:\n  _target_: fac_lightning.data.NemoImport\n"
        f"  source: {source}\n  out: {folder}/out\n"
        "  options: {_target_: fac_lightning.data.ImportOptions, sample_rate: 8000}\n"
    )
    assert main(["check", str(recipe)]) == 0
    assert main(["run", str(recipe)]) == 0
    (found,) = read_dialogues(folder / "out")
    assert found.turns[0].sample_rate == 8000
