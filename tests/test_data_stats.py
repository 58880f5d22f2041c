"""Figures of dialogues are right to the last turn, and what is denser than speech is named."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import soundfile

from fac_lightning.cli import main
from fac_lightning.data import Dialogue, DialogueSharding, DialogueWriter, Turn, TurnCodes, read_dialogues
from fac_lightning.data.layout import SpokenTurn, lay_out
from fac_lightning.data.stats import DensestReplies, DialogueStats, Histogram
from fac_lightning.data.stats.histogram import growing_edges, whole_edges
from fac_lightning.data.stats.tally import MAX_NAMES, OTHERS
from fac_lightning.prompts import ChatFormat
from fac_lightning.replies import GroupEnd
from fac_lightning.testing import FrameEncoder
from fac_lightning.text_tokenizer import load_text_tokenizer, train_text_tokenizer
from fac_lightning.types import SpeechGeometry
from tokenize_parts import LoggedTokenizer

NASTY = "<script>alert('x')</script>"


def tone(seconds, rate=16000):
    return (0.1 * np.sin(np.arange(round(seconds * rate)) / 9)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two spoken dialogues, one of them dense, one of codes, one of text."""
    folder = tmp_path_factory.mktemp("stats")
    rate, ann, bob = 24000, {"voice": "ann"}, {"voice": "bob"}
    with DialogueWriter(folder / "d") as writer:
        writer.write(
            Dialogue(
                "plain",
                (
                    Turn("user", "abcd", tone(1.0), 16000, ann),
                    Turn("assistant", "ab", tone(2.0, rate), rate, bob),
                    Turn("user", "abc", tone(0.5), 16000, ann),
                    Turn("assistant", "", tone(0.75, rate), rate, bob),
                ),
            )
        )
        turns = (Turn("user", "", tone(3.0), 16000, ann), Turn("assistant", "abcdefghij" * 5, tone(4.01), 16000))
        writer.write(Dialogue(NASTY, turns, system="x", custom={"speaker": 7}))
        codes = TurnCodes("s3", np.arange(50).reshape(-1, 1), 25.0)
        writer.write(Dialogue("codes", (Turn("user", "hi"), Turn("assistant", "ho", codes=codes))))
        writer.write(Dialogue("text", (Turn("user", "hi"), Turn("assistant", "ho"))))
    train_text_tokenizer(["a"], 263, folder / "bytes")  # a token per letter
    return folder


@pytest.fixture(scope="module")
def figures(folder):
    return DialogueStats(str(folder / "d"), str(folder / "out"), str(folder / "bytes")).run()


def test_every_figure_is_right(figures):
    assert (figures["dialogues"], figures["turns"]) == (4, 10)
    user, assistant = figures["sides"]["user"], figures["sides"]["assistant"]
    assert (user["turns"], user["spoken"], user["spoken_without_text"]) == (5, 3, 1)
    assert (assistant["turns"], assistant["spoken"], assistant["spoken_without_text"]) == (5, 4, 1)
    assert user["hours"] == pytest.approx(4.5 / 3600)
    assert assistant["hours"] == pytest.approx((2.0 + 0.75 + 4.01 + 2.0) / 3600)
    assert figures["hours"] == pytest.approx(user["hours"] + assistant["hours"])
    assert user["sample_rates"] == {"16000": 2}
    assert assistant["sample_rates"] == {"16000": 1, "24000": 1}
    assert user["containers"] == assistant["containers"] == {"flac": 2}
    assert (user["codes"], assistant["codes"]) == ({}, {"s3": 1})
    assert (user["voices"], assistant["voices"]) == ({"ann": 3}, {"bob": 2, "7": 1})
    seconds = assistant["seconds"]
    assert (seconds["count"], seconds["least"], seconds["greatest"]) == (4, 0.75, pytest.approx(4.01))
    assert sum(count for *_, count in seconds["bins"]) == 4
    assert (user["characters"]["count"], user["characters"]["mean"]) == (5, (4 + 3 + 0 + 2 + 2) / 5)
    assert user["tokens"]["mean"] == user["characters"]["mean"]
    assert (figures["turns_per_dialogue"]["greatest"], figures["turns_per_dialogue"]["mean"]) == (4, 2.5)


def test_modes_are_those_that_dialogues_serve_as_they_are(figures):
    # "plain" serves all; NASTY hears what nobody wrote down; "codes" says and "text" writes only
    expected = {"S2M": 2, "S2T": 2, "T2M": 2, "T2T": 3, "STC": 1, "SAC": 2, "SUC": 1, "ASR": 1, "TTS": 3}
    assert figures["modes"] == expected


def test_text_denser_than_speech_is_flagged(figures):
    dense = figures["density"]
    assert (dense["replies"], dense["flagged"], dense["lost_tokens"]) == (4, 1, 50 - 23)
    first = dense["densest"][0]
    # 4.01 s are 101 frames, with 10 of lead-in 111, in groups of 5
    assert (first["id"], first["turn"], first["tokens"], first["positions"], first["lost"]) == (NASTY, 1, 50, 23, 27)
    assert first["seconds"] == pytest.approx(4.01)
    densities = [reply["density"] for reply in dense["densest"]]
    assert densities == sorted(densities, reverse=True)
    assert dense["tokens_per_second"]["greatest"] == pytest.approx(50 / 4.01)


def test_positions_and_lost_text_are_those_of_layout(folder, figures):
    chat, geometry = ChatFormat(load_text_tokenizer(folder / "bytes")), SpeechGeometry(16000, 3200, 5, 1, 4, 300)
    lengths, lost = [], 0
    for dialogue in read_dialogues(folder / "d"):
        turns = []
        for turn in dialogue.turns:
            said = turn.codes.codes if turn.codes else None
            if turn.audio is not None and turn.role == "assistant":
                said = np.zeros((int(np.ceil(round(len(turn.audio) / turn.sample_rate * 25, 6))), 1), int)
            heard = turn.audio if turn.role == "user" else None
            turns.append(SpokenTurn(turn.role, turn.text, clip=None if heard is None else clip_of(heard), codes=said))
        mode = {"plain": "S2M", NASTY: "S2M", "codes": "T2M", "text": "T2T"}[dialogue.id]
        row = lay_out(dialogue.id, turns, chat, geometry, mode, system=dialogue.system, reply=GroupEnd(10))
        lengths.append(len(row))
        lost += row.lost_text
    record = figures["positions"]
    assert (record["count"], record["least"], record["greatest"]) == (4, min(lengths), max(lengths))
    assert record["mean"] == pytest.approx(np.mean(lengths))
    assert lost == figures["density"]["lost_tokens"]


def clip_of(audio):
    from fac_lightning.data import Clip

    return Clip(len(audio), lambda: audio)


def test_the_page_stands_alone_and_escapes_what_comes_from_data(folder, figures):
    page = (folder / "out" / "stats.html").read_text()
    assert NASTY not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in page
    pictures = re.findall(r"src='data:image/png;base64,([^']+)'", page)
    assert len(pictures) == 2
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data in pictures)
    assert "http" not in page
    assert "1 of 4 spoken replies" in re.sub(r"\s+", " ", page)
    assert json.loads((folder / "out" / "stats.json").read_text()) == figures
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["stats.html", "stats.json"]


def test_another_rate_of_positions_and_of_frames(folder):
    class Fast:
        frame_rate = 75.0

    dense = DialogueStats(str(folder / "d"), text_tokenizer=str(folder / "bytes"), tokenizer=Fast(), group_rate=12.5)
    record = dense.run()["density"]
    assert (record["frame_rate"], record["group_rate"]) == (75.0, 12.5)
    assert record["densest"][0]["positions"] == -(-(301 + 10) // 6)
    with pytest.raises(
        ValueError, match=r"a rate that divides the 25 Hz of the speech tokens, got 4 Hz; for example 5"
    ):
        DialogueStats("d", group_rate=4.0)
    with pytest.raises(ValueError, match="got 0 Hz"):
        DialogueStats("d", group_rate=0.0)


def test_no_audio_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(soundfile, "SoundFile", None)
    monkeypatch.setattr(soundfile, "read", None)
    manifest = tmp_path / "elsewhere.jsonl"
    manifest.write_text((folder / "d" / "cuts.jsonl").read_text())  # the recordings are not beside it
    figures = DialogueStats([str(manifest), str(folder / "d")]).run()
    assert figures["dialogues"] == 8
    assert figures["density"] is figures["positions"] is None


def test_shards_have_the_figures_of_their_dialogues(folder, tmp_path, monkeypatch):
    source = tmp_path / "d"
    with DialogueWriter(source) as writer:  # the id that is markup cannot be the name of a file in a tar
        for dialogue in read_dialogues(folder / "d"):
            writer.write(replace(dialogue, id=dialogue.id.replace("/", "-")))
    DialogueSharding(str(source), str(tmp_path / "s"), 3).run()
    monkeypatch.setattr(soundfile, "SoundFile", None)
    expected = DialogueStats(str(source), text_tokenizer=str(folder / "bytes")).run()
    found = DialogueStats(str(tmp_path / "s"), text_tokenizer=str(folder / "bytes")).run()
    for figures in (expected, found):
        del figures["paths"]
        for side in figures["sides"].values():
            assert set(side.pop("containers").values()) == {2}
    assert found == expected
    both = DialogueStats([str(tmp_path / "s"), str(source)]).run()
    assert both["dialogues"] == 8


def test_features_stand_for_what_users_say(folder, tmp_path):
    source = tmp_path / "d"
    with DialogueWriter(source) as writer:
        for dialogue in read_dialogues(folder / "d"):
            if dialogue.id != "codes":  # of another tokenizer
                writer.write(replace(dialogue, id=dialogue.id.replace("/", "-")))
    codes, encoder = partial(LoggedTokenizer, "/dev/null"), partial(FrameEncoder, 8000, 320)
    DialogueSharding(str(source), str(tmp_path / "s"), 2, None, codes, features=encoder).run()
    expected = DialogueStats(str(source), text_tokenizer=str(folder / "bytes")).run()
    found = DialogueStats(str(tmp_path / "s"), text_tokenizer=str(folder / "bytes")).run()
    user, spoken = (figures["sides"]["user"] for figures in (found, expected))
    assert spoken["spoken"] == 3
    assert (user.pop("sample_rates"), user.pop("containers")) == ({"8000": 2}, {"features": 2})
    del spoken["sample_rates"], spoken["containers"]
    assert user == spoken
    for key in ("hours", "modes", "positions", "density"):
        assert found[key] == expected[key], key


def test_histograms_count_exactly_and_tell_quantiles_to_a_bin():
    values = np.random.default_rng(0).lognormal(1.0, 1.0, 5000)
    histogram = Histogram(growing_edges(0.1, 100.0))
    for value in values:
        histogram.add(float(value))
    record = histogram.to_record()
    assert record["mean"] == pytest.approx(values.mean())
    assert (record["least"], record["greatest"]) == (values.min(), values.max())
    assert record["median"] == pytest.approx(np.median(values), rel=0.13)
    assert record["p95"] == pytest.approx(np.quantile(values, 0.95), rel=0.13)
    for first, last, count in record["bins"][1:-1]:
        assert count == ((values >= first) & (values < last)).sum()
    whole = Histogram(whole_edges(1000), whole=True)
    for value in (3, 7, 7, 7, 40):
        whole.add(value)
    assert (whole.quantile(0.0), whole.quantile(0.5), whole.quantile(1.0)) == (3, 7, 40)
    assert [[first, last] for first, last, _ in whole.to_record()["bins"][:2]] == [[3.0, 4.0], [7.0, 8.0]]
    few = Histogram([0.0, 1.0, 2.0])
    assert few.to_record() == {"count": 0, "bins": []}
    few.add(7.0)
    assert (few.quantile(0.5), few.counts) == (7.0, [0, 1])


def test_memory_does_not_grow_with_replies_and_voices(folder, tmp_path):
    dense = DensestReplies(kept=3)
    for i in range(100):
        dense.add(f"d{i}", 1, (i * 37) % 100, 10, 2.0)
    assert [reply.tokens for reply in dense.densest] == [99, 98, 97]
    assert (dense.replies, dense.flagged, dense.lost) == (100, 89, sum(range(1, 90)))
    line = (folder / "d" / "cuts.jsonl").read_text().splitlines()[0]
    (tmp_path / "many.jsonl").write_text(
        "".join(line.replace('"ann"', f'"voice-{i}"') + "\n" for i in range(MAX_NAMES + 5))
    )
    voices = DialogueStats(str(tmp_path / "many.jsonl")).run()["sides"]["user"]["voices"]
    assert len(voices) == MAX_NAMES + 1
    assert voices[OTHERS] == 10


def test_the_command_prints_and_writes(folder, tmp_path, capsys):
    words = [
        "data",
        "stats",
        str(folder / "d"),
        "--out",
        str(tmp_path / "o"),
        "--text-tokenizer",
        str(folder / "bytes"),
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "4 dialogues, 10 turns" in printed
    assert "1 of 4 replies, 27 tokens without a position" in printed
    assert f"{NASTY}, turn 1: 50 tokens, 23 positions, 4.01 s" in printed
    assert (tmp_path / "o" / "stats.html").is_file()
    assert main(["data", "stats", str(folder / "d")]) == 0
    assert "name a --text-tokenizer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 3, "nowhere/cuts.jsonl does not exist; name a dialogues folder"),
        (["broken.jsonl"], 3, r"not a JSON object with 'id' in broken.jsonl, line 1"),
        (["empty.jsonl"], 3, "there is no dialogue in empty.jsonl"),
        (["roles.jsonl"], 3, "cut 'text', turn 0, field 'speaker': got 'narrator'"),
        (["empty.jsonl", "--group-rate", "4"], 2, "--group-rate: positions come at a rate that divides the 25 Hz"),
        (["empty.jsonl", "--text-tokenizer", "none"], 3, "no text tokenizer can be loaded from 'none'"),
        ([], 2, "the following arguments are required: PATH"),
    ],
    ids=str,
)
def test_bad_input_is_told_in_a_line(folder, tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jsonl").write_text("{\n")
    (tmp_path / "empty.jsonl").write_text("")
    last = (folder / "d" / "cuts.jsonl").read_text().splitlines()[-1]
    (tmp_path / "roles.jsonl").write_text(last.replace('"user"', '"narrator"') + "\n")
    assert main(["data", "stats", *words, "--out", "o"]) == code
    assert re.search(re.escape(message), capsys.readouterr().err.replace("\\", ""))
    assert not (tmp_path / "o").exists()


def test_fac_data_knows_it(capsys):
    assert main(["data"]) == 0
    assert "fac data stats" in capsys.readouterr().out
