"""Token ids in shards: rows are those of tokenised texts, and nothing is tokenised on the way."""

from __future__ import annotations

import json
import logging
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fac_lightning.cli import main
from fac_lightning.data import Dialogue, DialogueSharding, DialogueWriter, ShardCorpus, Turn, read_shards
from fac_lightning.data.errors import BadData
from fac_lightning.data.shards.texts import TextMaker
from fac_lightning.data.text import CachedChatFormat
from fac_lightning.data.turn_codes import TurnCodes
from fac_lightning.prompts import MODES, ChatFormat
from fac_lightning.text_tokenizer import load_text_tokenizer, text_fingerprint, train_text_tokenizer
from fac_lightning.types import SpeechGeometry
from test_shards import opened_by_lhotse, without_index

GEOMETRY = SpeechGeometry(8000, 1600, 5, 1, 50, 400)
ROW = ("text_ids", "text_mask", "text_labels", "codes", "speech_labels", "speech_positions")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Dialogues, two text tokenizers, shards with and without token ids."""
    root, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    train_text_tokenizer(["how old is the world and why"] * 9, 330, root / "text")
    train_text_tokenizer(["quite another one"] * 9, 320, root / "other")
    with DialogueWriter(root / "dialogues") as writer:
        for i in range(5):
            codes = TurnCodes("ours", rng.integers(0, 50, (20 + i, 1)), 25.0)
            sound = None if i == 3 else (rng.normal(0, 0.1, 1700).astype(np.float32))
            turns = (
                Turn(
                    "user", f"How old is {i}?" if i != 4 else "How  old\nis 4?", sound, None if sound is None else 8000
                ),
                Turn("assistant", f"The world\nis  {i} and é.", codes=codes),
                Turn("user", "" if i == 2 else "And why?"),
                Turn("assistant", "It is."),
            )
            writer.write(Dialogue(f"d{i}", turns, "Be brief." if i == 1 else None))
    for name, text in (("plain", None), ("ids", str(root / "text"))):
        DialogueSharding(str(root / "dialogues"), str(root / name), 2, text_tokenizer=text).run()
    return root


def corpus(world: Path, name: str, text: str = "text", chat: type[ChatFormat] = ChatFormat) -> ShardCorpus:
    tokenizer = load_text_tokenizer(world / text)
    return ShardCorpus([str(world / name)], chat(tokenizer), GEOMETRY, None, dict.fromkeys(MODES, 1.0))


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_those_of_texts_and_of_sketches(world, mode):
    plain, ids = corpus(world, "plain"), corpus(world, "ids")
    laid_out = 0
    for index in range(len(plain)):
        item = plain.item(index)
        given = ids.item(index)
        assert all(turn.ids is None for turn in item.turns)
        assert all(turn.ids is not None for turn in given.turns)
        if (fitted := plain.served(item).get(mode)) is None:
            assert mode not in ids.served(given)
            continue
        laid_out += 1
        wanted, found = plain.lay_out(item, fitted), ids.lay_out(given, fitted)
        for name in ROW:
            assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
        assert ids.lay_out(ids.sketch(index), fitted).cost == wanted.cost
    assert laid_out >= 3


def test_texts_of_turns_are_not_tokenised(world, monkeypatch):
    source = corpus(world, "ids", chat=CachedChatFormat)
    told = []
    encode = ChatFormat.encode
    monkeypatch.setattr(ChatFormat, "encode", lambda self, text: told.append(text) or encode(self, text))
    for index in range(len(source) - 1):  # a transcript of several lines is made one line, and tokenised
        for mode in sorted(set(source.served(item := source.item(index)).values()) - {"TTS"}):
            source.lay_out(item, mode)
    assert told
    assert not any("old" in text or "world" in text or "why" in text.lower() for text in told)


def test_another_tokenizer_reads_the_texts_and_says_so(world, caplog):
    with caplog.at_level(logging.WARNING):
        other, plain = corpus(world, "ids", "other"), corpus(world, "plain", "other")
    assert caplog.text.count("texts are tokenised as they are read") == 1
    assert str(world / "text") in caplog.text
    for index in range(len(plain)):
        assert other.item(index).turns[1].ids is None
        mode = plain.served(plain.item(index))["T2M"]
        one, two = (source.lay_out(source.item(index), mode) for source in (other, plain))
        assert np.array_equal(one.text_ids, two.text_ids)


def test_a_fingerprint_is_of_what_decides_about_tokens(world, tmp_path):
    tokenizer = load_text_tokenizer(world / "text")
    name = text_fingerprint(tokenizer)
    assert name != text_fingerprint(load_text_tokenizer(world / "other"))
    tokenizer(["one", "and two"], padding=True, truncation=True, max_length=3)  # leaves traces in the tokenizer
    assert text_fingerprint(tokenizer) == name
    tokenizer.save_pretrained(tmp_path / "again")
    assert text_fingerprint(load_text_tokenizer(tmp_path / "again")) == name
    tokenizer.add_tokens(["world"])
    assert text_fingerprint(tokenizer) != name
    assert text_fingerprint(object()) is None


def test_a_tokenizer_without_a_fingerprint_is_refused(monkeypatch):
    class InPython:
        def get_vocab(self):
            return {"a": 0}

    monkeypatch.setattr("fac_lightning.data.shards.texts.load_text_tokenizer", lambda name: InPython())
    with pytest.raises(ValueError, match=r"'mine' is written in Python.*no --text-tokenizer"):
        TextMaker("mine")


def test_lhotse_opens_ids_and_dialogues_come_back_without_them(world):
    for cut, row in zip(opened_by_lhotse(world / "ids"), range(5), strict=True):
        counts = [one.custom["text_ids"] for one in cut.supervisions]
        assert len(cut.load_text_tokens()) == sum(counts)
        assert counts[2] == (0 if row == 2 else counts[2])
    for one, other in zip(read_shards(str(world / "ids")), read_shards(str(world / "plain")), strict=True):
        assert (one.id, one.system, one.custom) == (other.id, other.system, other.custom)
        assert [turn.custom for turn in one.turns] == [turn.custom for turn in other.turns]


def test_shards_without_our_index_are_read_as_well(world, tmp_path):
    copy = without_index(Path(shutil.copytree(world / "ids", tmp_path / "ids")))
    shutil.copytree(world / "text", tmp_path / "text")
    source, wanted = corpus(tmp_path, "ids"), corpus(world, "ids")
    for index in range(len(wanted)):
        assert [turn.ids for turn in source.item(index).turns] == [turn.ids for turn in wanted.item(index).turns]
    assert (copy / "cuts.000000.index.json").is_file()


def test_ids_that_do_not_go_with_their_turns_are_told(world, tmp_path):
    import gzip

    shutil.copytree(world / "ids", tmp_path / "ids")
    shutil.copytree(world / "text", tmp_path / "text")
    file = tmp_path / "ids" / "cuts.000000.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    lines[0]["supervisions"][1]["custom"]["text_ids"] += 1
    file.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    with pytest.raises(BadData, match=r"FAC-D14.*token ids that do not go with their turns.*'d0'.*text_ids"):
        corpus(tmp_path, "ids").item(0)


def test_the_command_keeps_ids_and_goes_on_with_the_same_tokenizer_alone(world, tmp_path, capsys):
    words = ["data", "shard", str(world / "dialogues"), "--out", str(tmp_path / "out"), "--shard-size", "2"]
    given = [*words, "--text-tokenizer", str(world / "text")]
    assert main([*given, "--workers", "2"]) == 0
    told = capsys.readouterr().out
    assert "text_tokens.*.tar" in told
    assert "token ids of" in told
    made = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.tar")}
    assert made == {file.name: file.read_bytes() for file in (world / "ids").glob("*.tar")}
    assert main(given) == 0
    assert main([*words, "--text-tokenizer", str(world / "other")]) != 0
    assert "texts" in capsys.readouterr().err


def test_ids_take_as_few_bytes_as_the_vocabulary_allows(world):
    maker = TextMaker(str(world / "text"))
    assert maker.dtype == "<u2"
    assert [len(ids) for ids in maker(["", "how old", "how old is the world"])] == sorted(
        len(load_text_tokenizer(world / "text").encode(text, add_special_tokens=False))
        for text in ("", "how old", "how old is the world")
    )
    fields = [one["fields"]["text_tokens"] for one in map(_index, sorted((world / "ids").glob("*.index.json")))]
    assert {field["dtype"] for field in fields} == {"<u2"}
    assert all(a < b for field in fields for a, b in pairwise(field["offsets"]))


def _index(file: Path) -> dict:
    return json.loads(file.read_text())
