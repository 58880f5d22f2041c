"""Shards: Lhotse's own layout, every sample and code back, one shard or none, and rows as from a dialogues folder."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fac_lightning.bench import BenchSettings
from fac_lightning.bench.data import DataBenchmark
from fac_lightning.cli import main
from fac_lightning.data import (
    Corpus,
    Dialogue,
    DialogueSharding,
    DialogueWriter,
    IntakeLimits,
    ShardCorpus,
    SpeechChatDataModule,
    Turn,
    TurnCodes,
    read_cuts,
    read_dialogues,
    read_shards,
)
from fac_lightning.data.errors import BadData
from fac_lightning.data.lhotse_setup import import_lhotse
from fac_lightning.data.shards import ShardFolder, open_source
from fac_lightning.data.shards.shard_writer import ShardWriter
from fac_lightning.data.shards.storage import LocalFolder, RemoteFolder
from fac_lightning.prompts import MODES, ChatFormat
from fac_lightning.text_tokenizer import load_text_tokenizer, train_text_tokenizer
from fac_lightning.types import SpeechGeometry
from tokenize_parts import LoggedTokenizer

GEOMETRY = SpeechGeometry(8000, 1600, 5, 2, 50, 400)
ALL = dict.fromkeys(MODES, 1.0)
SHORT = IntakeLimits(min_seconds=0)  # the turns here are shorter than a group


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    return np.round(rng.normal(0, 3000, samples)).astype(np.int16).astype(np.float32) / 32768


def write(folder: Path, n: int = 7) -> Path:
    """Dialogues of two rounds; question and answer have other lengths, one has no sound, one an own prompt."""
    rng = np.random.default_rng(0)
    with DialogueWriter(folder) as writer:
        for i in range(n):
            turns = (
                Turn("user", f"Say {i}." if i != 4 else "", noise(rng, 1700 + 71 * i), 8000, {"voice": "noise"}),
                Turn("assistant", f"It is {i}.", noise(rng, 2500 + 13 * i), 8000),
                Turn("user", "And in writing?"),
                Turn("assistant", "The same.", noise(rng, 1600), 8000),
            )
            turns = tuple(Turn(t.role, t.text) for t in turns) if i == 2 else turns
            writer.write(Dialogue(f"tag/d.{i}", turns, "Be brief." if i == 5 else None, {"number": i}))
    return folder


def tokenizer() -> LoggedTokenizer:
    return LoggedTokenizer("/dev/null", num_codebooks=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Dialogues, and shards of them with codes."""
    root = tmp_path_factory.mktemp("world")
    folder = write(root / "dialogues")
    DialogueSharding(str(folder), str(root / "shards"), 3, codes=tokenizer).run()
    return root


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    train_text_tokenizer(["say it is the same and in writing"] * 9, 330, str(folder))
    return ChatFormat(load_text_tokenizer(str(folder)))


@pytest.fixture
def shards(world, tmp_path):
    """A copy that a test may break."""
    return Path(shutil.copytree(world / "shards", tmp_path / "shards"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def without_index(folder: Path) -> Path:
    """As somebody else would have written them."""
    for file in [*folder.glob("*.index.json"), folder / "cuts.summary.json"]:
        file.unlink()
    return folder


def assert_same(found: Dialogue, wanted: Dialogue, exact: bool = True) -> None:
    assert (found.id, found.system, found.custom) == (wanted.id, wanted.system, wanted.custom)
    for one, other in zip(found.turns, wanted.turns, strict=True):
        assert (one.role, one.text, one.custom, one.sample_rate) == (
            other.role,
            other.text,
            other.custom,
            other.sample_rate,
        )
        assert (one.audio is None) == (other.audio is None)
        if one.audio is not None:
            assert np.array_equal(one.audio, other.audio) if exact else len(one.audio) == len(other.audio)
        assert (one.codes is None) == (other.codes is None)
        if one.codes is not None:
            assert (one.codes.tokenizer, one.codes.frame_rate) == (other.codes.tokenizer, other.codes.frame_rate)
            assert np.array_equal(one.codes.codes, other.codes.codes)


def opened_by_lhotse(folder: Path) -> list:
    """Cuts of a folder; lhotse leaves its files to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        cuts = list(import_lhotse().CutSet.from_shar(in_dir=folder))
        gc.collect()
    return cuts


def test_lhotse_opens_the_folder_and_both_sides_have_their_own_length(world):
    cuts = opened_by_lhotse(world / "shards")
    for cut, dialogue in zip(cuts, read_dialogues(world / "dialogues"), strict=True):
        assert cut.id == dialogue.id
        sides = {
            role: [t.audio for t in dialogue.turns if t.role == role and t.audio is not None]
            for role in ("user", "assistant")
        }
        if not sides["user"]:
            assert not cut.has_recording
            continue
        assert np.array_equal(cut.load_audio()[0], np.concatenate(sides["user"]))
        assert np.array_equal(cut.load_target_audio()[0], np.concatenate(sides["assistant"]))
        assert cut.target_audio.duration != cut.duration
        frames = [s.custom.get("code_frames", 0) for s in cut.supervisions]
        assert cut.load_codes().shape == (sum(frames), 2)
        assert cut.load_codes().dtype == np.uint8  # 50 codes


@pytest.mark.parametrize("audio", ["flac", "wav", "opus"])
def test_dialogues_come_back_as_they_went_in(world, tmp_path, audio):
    DialogueSharding(str(world / "dialogues"), str(tmp_path / "shards"), 4, audio=audio).run()
    assert main(["data", "shard", str(tmp_path / "shards"), "--out", str(tmp_path / "back"), "--back"]) == 0
    back = list(read_dialogues(tmp_path / "back"))
    for found, wanted in zip(back, read_dialogues(world / "dialogues"), strict=True):
        assert_same(found, wanted, exact=audio != "opus")


def test_codes_that_come_with_turns_are_kept_and_come_back(tmp_path):
    codes = [TurnCodes("theirs", np.arange(n)[:, None] * 300, 12.5) for n in (4, 9)]
    dialogue = Dialogue("d", (Turn("user", "a"), *(Turn("assistant", "b", codes=one) for one in codes)))
    with DialogueWriter(tmp_path / "d") as writer:
        writer.write(dialogue)
    summary = DialogueSharding(str(tmp_path / "d"), str(tmp_path / "s"), audio=None).run()
    assert summary["codes_of"]["tokenizer"] == "theirs"
    assert list(summary["bytes"]) == ["codes"]
    (found,) = read_shards(str(tmp_path / "s"))
    assert_same(found, dialogue)
    with pytest.raises(ValueError, match="codes of 'theirs', but the tokenizer is"):
        DialogueSharding(str(tmp_path / "d"), str(tmp_path / "t"), codes=tokenizer).run()
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("modes", [ALL, {"S2T": 1.0}, {"T2T": 1.0}, {"TTS": 1.0}, {"S2M": 1.0}])
def test_rows_are_those_of_the_dialogues_folder(world, chat, modes):
    corpus = Corpus([world / "dialogues"], chat, GEOMETRY, tokenizer(), modes, progress=False, limits=SHORT)
    shards = ShardCorpus([str(world / "shards")], chat, GEOMETRY, tokenizer(), modes)
    assert len(shards) == len(corpus) == 7
    for i in range(len(corpus)):
        one, other = shards.row(i, 1, 0, 0.0), corpus.row(i, 1, 0, 0.0)
        if other is None:
            assert one is None
            continue
        for name in ("text_ids", "text_labels", "codes", "code_positions", "speech_labels", "feature_positions"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert (one.id, one.seconds, one.audio_seconds) == (other.id, other.seconds, other.audio_seconds)
        for clip, source in zip(one.clips, other.clips, strict=True):
            assert clip.num_samples == source.num_samples
            assert np.array_equal(clip.load(), source.load())
        plan = shards.lay_out(shards.sketch(i), one.id.rpartition("/")[2])
        assert (len(plan), plan.audio_seconds, plan.speech_labels.shape) == (
            len(one),
            one.audio_seconds,
            one.speech_labels.shape,
        )


def test_another_rate_is_heard_as_from_the_dialogues_folder(world, chat):
    geometry = SpeechGeometry(16000, 3200, 5, 2, 50, 400)
    corpus = Corpus([world / "dialogues"], chat, geometry, tokenizer(), {"S2T": 1.0}, progress=False, limits=SHORT)
    shards = ShardCorpus([str(world / "shards")], chat, geometry, tokenizer(), {"S2T": 1.0})
    (one,), (other,) = shards.row(0, 0, 0).clips, corpus.row(0, 0, 0).clips
    assert one.num_samples == len(one.load()) == 3400
    assert np.array_equal(one.load(), other.load())


def test_rows_read_no_sound_and_planning_no_codes(world, chat, monkeypatch):
    read: list[str] = []
    for name in ("read", "read_range"):
        real = getattr(LocalFolder, name)
        monkeypatch.setattr(
            LocalFolder, name, lambda self, file, *a, real=real: read.append(file) or real(self, file, *a)
        )
    corpus = ShardCorpus([str(world / "shards")], chat, GEOMETRY, tokenizer(), {"S2M": 1.0})
    for i in range(len(corpus)):
        corpus.sketch(i)
    assert not any(name.endswith(".tar") for name in read)
    rows = [corpus.row(i, 0, 0) for i in range(len(corpus))]
    assert {name.split(".")[0] for name in read} == {"cuts", "codes"}
    assert Counter(read)["codes.000000.tar"] == 1
    rows[0].clips[0].load()
    assert read[-1] == "recording.000000.tar"


def test_order_goes_through_few_shards_at_a_time_and_memory_stays_bounded(tmp_path, chat, monkeypatch):
    monkeypatch.setattr("fac_lightning.data.shards.corpus.KEPT", 20)
    with DialogueWriter(tmp_path / "d") as writer:
        for i in range(60):
            writer.write(Dialogue(f"{i}", (Turn("user", "say"), Turn("assistant", "it"))))
    DialogueSharding(str(tmp_path / "d"), str(tmp_path / "s"), 5).run()
    corpus = ShardCorpus([str(tmp_path / "s")], chat, None, None, {"T2T": 1.0}, window=2)
    orders = [list(corpus.order(3, epoch)) for epoch in range(2)]
    assert list(corpus.order(3, 0)) == orders[0] != orders[1]
    assert sorted(orders[0]) == list(range(60))
    assert all(len({i // 5 for i in orders[0][first : first + 10]}) == 2 for first in range(0, 60, 10))
    assert orders[0][:10] != sorted(orders[0][:10])
    for i in orders[0]:
        corpus.item(i)
    assert len(corpus._open) == 6
    with pytest.raises(IndexError):
        corpus.item(60)


def test_equal_dialogues_give_equal_bytes_in_a_worker_too(world, tmp_path):
    settings = {"shard_size": 3, "codes": tokenizer}
    DialogueSharding(str(world / "dialogues"), str(tmp_path / "again"), num_workers=1, **settings).run()
    assert bytes_of(tmp_path / "again") == bytes_of(world / "shards")


def test_a_stopped_run_goes_on_and_keeps_the_shards_that_it_has(world, tmp_path, monkeypatch, chat):
    out, job = tmp_path / "s", DialogueSharding(str(world / "dialogues"), str(tmp_path / "s"), 3, codes=tokenizer)
    written: list[int] = []
    real = ShardWriter._write

    def stop_at_the_third(self, task):
        if task.number == 2 and not written.count(2):
            written.append(2)
            raise KeyboardInterrupt
        written.append(task.number)
        return real(self, task)

    monkeypatch.setattr(ShardWriter, "_write", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        job.run()
    with pytest.raises(BadData, match=r"FAC-D14.*finished: false.*fac data shard"):
        ShardFolder(str(out))
    (out / "cuts.000001.index.json").rename(out / "cuts.cuts.000001.index.json.part")  # killed before the last rename
    summary = job.run()
    assert written == [0, 1, 2, 1, 2]
    assert bytes_of(out).keys() - bytes_of(world / "shards").keys() <= {"cuts.cuts.000001.index.json.part"}
    assert {k: v for k, v in bytes_of(out).items() if not k.endswith(".part")} == bytes_of(world / "shards")
    assert job.run() == summary
    assert written == [0, 1, 2, 1, 2]
    with pytest.raises(ValueError, match="holds shards with other shard_size; choose another folder"):
        DialogueSharding(str(world / "dialogues"), str(out), 2, codes=tokenizer).run()
    with pytest.raises(ValueError, match="holds something else than shards"):
        DialogueSharding(str(world / "dialogues"), str(world / "dialogues"), 2).run()


def rewrite(tar: Path, change) -> None:
    """A tar with its members, name by name, as ``change`` gives them back."""
    with tarfile.open(tar) as file:
        members = [(info, file.extractfile(info).read()) for info in file]
    with tarfile.open(tar, "w") as file:
        for info, data in change(members):
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def linked(members):
    info = tarfile.TarInfo(members[0][0].name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return [(info, b""), *members[1:]]


@pytest.mark.parametrize(
    ("code", "told", "change"),
    [
        ("FAC-D11", "recording.000000.tar", lambda f: rewrite(f / "recording.000000.tar", lambda m: m[:-2])),
        ("FAC-D11", "without its .json", lambda f: rewrite(f / "recording.000000.tar", lambda m: m[:-1])),
        ("FAC-D12", "tag/d.1", lambda f: rewrite(f / "codes.000000.tar", lambda m: m[2:4] + m[:2] + m[4:])),
        ("FAC-D13", "a link to '/etc/passwd'", lambda f: rewrite(f / "recording.000000.tar", linked)),
        ("FAC-D11", "", lambda f: (f / "codes.000001.tar").write_bytes((f / "codes.000001.tar").read_bytes()[:700])),
        ("FAC-D14", "codes.000001 stands alone", lambda f: (f / "codes.000001.tar").unlink()),
        ("FAC-D14", "field 'extra'", lambda f: (f / "extra.000001.tar").write_bytes(b"")),
        ("FAC-D14", "no cuts", lambda f: [file.unlink() for file in f.glob("cuts.*.gz")]),
        (
            "FAC-D03",
            "cuts.000000",
            lambda f: (f / "cuts.000000.jsonl.gz").write_bytes((f / "cuts.000000.jsonl.gz").read_bytes()[:90]),
        ),
    ],
)
def test_shards_that_do_not_go_together_are_refused(shards, chat, code, told, change):
    change(without_index(shards))
    with pytest.raises(BadData) as caught:
        ShardCorpus([str(shards)], chat, GEOMETRY, None, {"S2M": 1.0})
    assert caught.value.code == code
    assert told in str(caught.value)
    assert str(shards) in str(caught.value)


@pytest.mark.parametrize(
    ("code", "name", "keep"),
    [
        ("FAC-D11", "recording.000001.tar", 900),
        ("FAC-D11", "codes.000002.tar", 0),
        ("FAC-D14", "codes.000002.tar", None),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_found_by_its_size(shards, chat, code, name, keep):
    data = (shards / name).read_bytes()
    (shards / name).unlink()
    if keep is not None:
        (shards / name).write_bytes(data[:keep])
    with pytest.raises(BadData, match=name.split(".")[0]) as caught:
        ShardCorpus([str(shards)], chat, GEOMETRY, None, {"S2M": 1.0})
    assert caught.value.code == code


def test_a_member_above_the_cap_is_refused_before_it_is_read(shards):
    from fac_lightning.data.intake import IntakeLimits

    without_index(shards)
    with pytest.raises(BadData, match=r"FAC-D13.*at most 1000"):
        ShardFolder(str(shards), IntakeLimits(max_member_bytes=1000)).rows()


def test_sound_that_is_not_what_the_manifest_says_is_refused_when_it_is_read(shards, chat):
    import soundfile

    def other(rate: int, samples: int):
        out = io.BytesIO()
        soundfile.write(out, np.zeros(samples, np.int16), rate, format="FLAC")
        return out.getvalue()

    for data, code in ((other(16000, 1700), "FAC-A08"), (other(8000, 1699), "FAC-A09"), (b"no sound", "FAC-A06")):
        rewrite(shards / "recording.000000.tar", lambda m, data=data: [(m[0][0], data), *m[1:]])
        for file in shards.glob("cuts.*.json"):
            file.unlink()
        corpus = ShardCorpus([str(shards)], chat, GEOMETRY, None, {"S2T": 1.0})
        with pytest.raises(BadData, match=r"recording\.000000\.tar, 'tag/d\.0'") as caught:
            corpus.row(0, 0, 0).clips[0].load()
        assert caught.value.code == code


def lhotse_shards(folder: Path, cuts, monkeypatch) -> Path:
    """As lhotse's own writer makes them, told that answers have a length of their own."""
    import lhotse.shar.writers.shar as writers

    real = writers.to_shar_placeholder
    monkeypatch.setattr(
        writers,
        "to_shar_placeholder",
        lambda value, cut=None: real(value, None if value is getattr(cut, "target_audio", None) else cut),
    )
    folder.mkdir()
    with writers.SharWriter(str(folder), {"recording": "flac", "target_audio": "flac"}, shard_size=3) as writer:
        for cut in cuts:
            writer.write(cut)
    return folder


@pytest.mark.parametrize("writable", [True, False])
def test_shards_that_lhotse_wrote_are_indexed_once(world, tmp_path, chat, monkeypatch, writable):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = lhotse_shards(tmp_path / "theirs", read_cuts(world / "dialogues"), monkeypatch)
    if not writable:
        real = os.replace
        monkeypatch.setattr(
            os,
            "replace",
            lambda a, b: real(a, b) if folder not in Path(b).parents else (_ for _ in ()).throw(PermissionError()),
        )
    corpus = ShardCorpus([str(folder)], chat, GEOMETRY, None, {"S2T": 1.0})
    assert len(list(folder.glob("cuts.*.index.json"))) == (3 if writable else 0)
    assert len(list((tmp_path / "cache").rglob("*.json"))) == (0 if writable else 3)
    ours = ShardCorpus([str(world / "shards")], chat, GEOMETRY, None, {"S2T": 1.0})
    for i in range(7):
        for one, other in zip(corpus.row(i, 0, 0).clips, ours.row(i, 0, 0).clips, strict=True):
            assert np.array_equal(one.load(), other.load())
    monkeypatch.setattr("fac_lightning.data.shards.folder.survey_tar", lambda *a: pytest.fail("went through again"))
    assert len(ShardCorpus([str(folder)], chat, GEOMETRY, None, {"S2T": 1.0})) == 7
    assert len(opened_by_lhotse(folder)) == 7  # the index is not in lhotse's way
    with pytest.raises(ValueError, match=r"a spoken reply without codes.*--codes"):
        ShardCorpus([str(folder)], chat, GEOMETRY, None, {"S2M": 1.0}).row(0, 0, 0)


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_remote_shards_give_the_same_rows_by_ranges(world, chat, scheme, monkeypatch):
    import fsspec

    local = ShardCorpus([str(world / "shards")], chat, GEOMETRY, tokenizer(), {"S2M": 1.0})
    url = f"file://{world}/shards"
    if scheme == "memory":
        url, fs = "memory://bucket/shards", fsspec.filesystem("memory")
        for file in (world / "shards").iterdir():
            fs.pipe(f"/bucket/shards/{file.name}", file.read_bytes())
    ranges: list[tuple[str, int]] = []
    real = RemoteFolder.read_range
    monkeypatch.setattr(
        RemoteFolder, "read_range", lambda self, name, at, n: ranges.append((name, n)) or real(self, name, at, n)
    )
    remote = open_source([url], chat, GEOMETRY, tokenizer(), {"S2M": 1.0})
    assert remote.fingerprint() == local.fingerprint()
    for i in range(len(local)):
        one, other = remote.row(i, 0, 0), local.row(i, 0, 0)
        assert np.array_equal(one.speech_labels, other.speech_labels)
        assert all(np.array_equal(a.load(), b.load()) for a, b in zip(one.clips, other.clips, strict=True))
    assert len(ranges) == 6  # a read for each recording
    assert max(n for _, n in ranges) < 6000
    pattern = open_source([f"{url}/cuts.00000[12].jsonl.gz"], chat, GEOMETRY, tokenizer(), {"S2M": 1.0})
    assert [pattern.item(i).id for i in range(len(pattern))] == [local.item(i).id for i in range(3, 7)]


def test_a_remote_read_that_fails_is_tried_again(world, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr("fac_lightning.data.shards.storage.time.sleep", waits.append)
    storage = RemoteFolder(f"file://{world}/shards")
    fs, _ = storage._system()
    failures = iter([OSError("reset"), TimeoutError("slow")])
    real = type(fs).cat_file

    def flaky(path, **where):
        for failure in failures:
            raise failure
        return real(fs, path, **where)

    monkeypatch.setattr(fs, "cat_file", flaky)
    assert len(storage.read("cuts.summary.json")) > 100
    assert waits == [0.5, 1.0]
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize("cache", ["filecache", "simplecache"])
def test_a_cached_url_keeps_what_was_read_on_this_machine(world, chat, cache):
    import fsspec

    fs = fsspec.filesystem("memory")
    for file in (world / "shards").iterdir():
        fs.pipe(f"/{cache}/shards/{file.name}", file.read_bytes())
    local = ShardCorpus([str(world / "shards")], chat, GEOMETRY, tokenizer(), {"S2M": 1.0})
    url = f"{cache}::memory://{cache}/sh*"
    corpus = open_source([url], chat, GEOMETRY, tokenizer(), {"S2M": 1.0})
    assert corpus.folders[0].where.startswith(f"{cache}::memory://")
    rows = [corpus.row(i, 0, 0) for i in range(len(corpus))]
    sound = [clip.load() for row in rows for clip in row.clips]
    fs.rm(f"/{cache}", recursive=True)
    corpus.close()
    for i, row in enumerate(rows):
        again, other = corpus.row(i, 0, 0), local.row(i, 0, 0)
        assert np.array_equal(again.speech_labels, row.speech_labels)
        assert np.array_equal(again.speech_labels, other.speech_labels)
    again = [clip.load() for i in range(len(corpus)) for clip in corpus.row(i, 0, 0).clips]
    there = [clip.load() for i in range(len(local)) for clip in local.row(i, 0, 0).clips]
    assert len(there) == 6
    assert all(map(np.array_equal, again, sound))
    assert all(map(np.array_equal, again, there))


class Ranges(SimpleHTTPRequestHandler):
    """Serves pieces of files, as object stores do; the library's own serves whole files alone."""

    def do_GET(self):
        path, asked = Path(self.translate_path(self.path)), self.headers.get("Range")
        if path.is_dir() or asked is None:
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}")
        self.send_header("Content-Length", str(len(data[first : last + 1])))
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def log_message(self, *_):
        """Nothing on the screen."""


class WholeFiles(Ranges):
    do_GET = SimpleHTTPRequestHandler.do_GET


@contextmanager
def served(folder: Path, handler: type[Ranges]):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def training(world, text: Path, train: str, **more) -> SpeechChatDataModule:
    made = SpeechChatDataModule(
        train, str(text), tokenizer=tokenizer(), geometry=GEOMETRY, capacity=512, look_ahead=1, **more
    )
    made.setup("fit")
    return made


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_workers_read_a_url_by_connections_of_their_own(world, tmp_path, scheme):
    train_text_tokenizer(["say it is the same and in writing"] * 9, 330, str(tmp_path / "text"))
    here = list(islice(training(world, tmp_path / "text", str(world / "shards")).train_dataloader(), 8))
    with ExitStack() as stack:
        url = f"file://{world}"
        if scheme == "http":
            pytest.importorskip("aiohttp")
            url = stack.enter_context(served(world, Ranges))
        module = training(world, tmp_path / "text", f"{url}/shards", num_workers=2)
        lines = list(islice(module.train_dataloader(), 8))
        sent = pickle.loads(pickle.dumps(module._stream()))  # as a worker that is spawned gets it
        lines += list(islice((line for window in sent for line in window), 8))
    for line, other in zip(lines, [*here, *here], strict=True):
        assert line.ids == other.ids
        assert line.left_out == ()
        assert np.array_equal(line.audio.audio, other.audio.audio)
        assert np.array_equal(line.codes, other.codes)
    assert sum(len(line.audio.lengths) for line in lines) > 8


def test_a_server_that_knows_no_ranges_is_told(world, chat):
    pytest.importorskip("aiohttp")
    with served(world, WholeFiles) as url:
        corpus = open_source([f"{url}/shards"], chat, GEOMETRY, tokenizer(), {"S2M": 1.0})
        with pytest.raises(ValueError, match=r"its server gives whole files alone.* put filecache:: before"):
            corpus.row(0, 0, 0).clips[0].load()
        corpus = open_source([f"filecache::{url}/shards"], chat, GEOMETRY, tokenizer(), {"S2M": 1.0})
        local = ShardCorpus([str(world / "shards")], chat, GEOMETRY, tokenizer(), {"S2M": 1.0})
        assert np.array_equal(corpus.row(0, 0, 0).clips[0].load(), local.row(0, 0, 0).clips[0].load())


def test_limits_leave_out_what_they_leave_out_of_the_dialogues_folder(world, chat):
    limits = IntakeLimits(min_seconds=0, max_seconds=0.515)
    folder = Corpus([world / "dialogues"], chat, GEOMETRY, tokenizer(), ALL, limits=limits, max_bad_share=1.0)
    corpus = open_source([world / "shards"], chat, GEOMETRY, tokenizer(), ALL, limits=limits)
    rows = [corpus.row(i, 0, 0) for i in range(len(corpus))]
    assert corpus.bad.keys() == folder.bad_ids == {f"tag/d.{i}" for i in (3, 4, 5, 6)}
    assert [row.id.rsplit("/", 1)[0] for row in rows if row is not None] == [item.id for item in folder.items]
    assert str(corpus.bad["tag/d.3"]).startswith("FAC-A15: too long audio in dialogue 'tag/d.3', side 'assistant'")
    assert corpus.describe()["bad_dialogues"] == 4
    short = open_source([world / "shards"], chat, GEOMETRY, None, {"S2T": 1.0}, limits=IntakeLimits(min_seconds=0.25))
    assert [i for i in range(7) if short.row(i, 0, 0) is not None] == [2, 5, 6]
    assert str(short.bad["tag/d.4"]).startswith("FAC-A14: too short audio in dialogue 'tag/d.4', turn 0: got 0.2480 s")
    free = open_source([world / "shards"], chat, GEOMETRY, tokenizer(), ALL)
    assert len({free.fingerprint(), corpus.fingerprint(), short.fingerprint()}) == 3
    assert free.bad == {}


def test_training_counts_what_limits_leave_out_of_shards(world, tmp_path, caplog):
    train_text_tokenizer(["say it is the same and in writing"] * 9, 330, str(tmp_path / "text"))
    settings = {"train": str(world / "shards"), "limits": IntakeLimits(max_seconds=0.515, resample=True)}
    with pytest.raises(BadData, match=r"FAC-A00.*4 bad ones of 7 dialogues \(FAC-A15: 4\)"):
        training(world, tmp_path / "text", **settings)
    assert "are held against min_seconds, max_seconds, max_member_bytes alone; resample is about the" in caplog.text
    module = training(world, tmp_path / "text", **settings, max_bad_share=0.6)
    assert "4 bad ones of 7 dialogues (FAC-A15: 4) are left out" in caplog.text
    seen = {name for line in islice(module.train_dataloader(), 9) for name in line.ids}
    assert {name.rsplit("/", 1)[0] for name in seen} == {"tag/d.0", "tag/d.1", "tag/d.2"}
    small = IntakeLimits(max_member_bytes=100)
    with pytest.raises(BadData, match="FAC-D13"):
        ShardCorpus(
            [str(without_index(Path(shutil.copytree(world / "shards", tmp_path / "s"))))],
            None,
            None,
            None,
            {"T2T": 1.0},
            limits=small,
        )


def test_a_path_says_what_is_opened(world, chat, tmp_path):
    settings = (chat, GEOMETRY, tokenizer(), {"S2M": 1.0})
    assert isinstance(open_source([world / "dialogues"], *settings, progress=False, limits=SHORT), Corpus)
    twice = open_source([world / "shards", f"{world}/shar*"], *settings)
    assert isinstance(twice, ShardCorpus)
    assert len(twice) == 14
    with pytest.raises(ValueError, match="one source is of one kind"):
        open_source([world / "shards", world / "dialogues"], *settings)
    with pytest.raises(FileNotFoundError, match="nothing fits"):
        open_source([f"{tmp_path}/none*"], *settings)


def test_codes_of_another_tokenizer_or_size_are_refused(world, chat):
    other = LoggedTokenizer("/dev/null", num_codebooks=2)
    other.scale += 1
    with pytest.raises(ValueError, match="the same numbers mean other sounds"):
        ShardCorpus([str(world / "shards")], chat, GEOMETRY, other, {"S2M": 1.0})
    small = SpeechGeometry(8000, 1600, 5, 2, 9, 400)
    with pytest.raises(ValueError, match="the model 2 with codes below 9"):
        ShardCorpus([str(world / "shards")], chat, small, None, {"S2M": 1.0}).row(0, 0, 0)
    with pytest.raises(ValueError, match="there is no geometry"):
        ShardCorpus([str(world / "shards")], chat, None, None, {"S2T": 1.0})


def test_what_cannot_be_stored_ends_the_job_or_is_left_out_and_listed(world, tmp_path, capsys):
    folder = Path(shutil.copytree(world / "dialogues", tmp_path / "d"))
    audio = next(iter((folder / "audio").glob("*d.1-user.flac")))
    audio.write_bytes(audio.read_bytes()[:500])
    words = ["data", "shard", str(folder), "--shard-size", "3", "--out"]
    assert main([*words, str(tmp_path / "s")]) == 3
    assert "d.1" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "t"), "--skip-bad"]) == 3
    shown = capsys.readouterr()
    assert "left out: dialogue 'tag/d.1'" in shown.err
    summary = json.loads((tmp_path / "t" / "cuts.summary.json").read_text())
    assert [one["id"] for one in summary["left_out"]] == ["tag/d.1"]
    assert [d.id for d in read_shards(str(tmp_path / "t"))] == [f"tag/d.{i}" for i in (0, 2, 3, 4, 5, 6)]


def test_the_command_line_names_its_mistakes(world, tmp_path, capsys):
    words = ["data", "shard", str(world / "dialogues"), "--out", str(tmp_path / "s")]
    for more, told, code in (
        (["--audio", "none"], "nothing would be left of 12 spoken replies", 3),
        (["--shard-size", "lots"], "such as 500MB; got 'lots'", 3),
        (["tokenizer.x=1"], "--codes names none", 2),
        (["--workers", "-1"], "--workers must be at least 0", 2),
    ):
        assert main([*words, *more]) == code
        assert told in capsys.readouterr().err
        assert not (tmp_path / "s").exists()
    assert main(["data", "shard", str(tmp_path / "none"), "--out", str(tmp_path / "s")]) == 3
    assert main([*words[:2], str(tmp_path), "--out", str(tmp_path / "s"), "--back"]) == 3
    node = json.dumps({"_target_": "tokenize_parts.LoggedTokenizer", "log": "/dev/null"})
    more = ["--codes", node, "tokenizer.num_codebooks=2", "--audio", "none", "--shard-size", "1MB"]
    assert main([*words, *more]) == 0
    assert "codes of" in capsys.readouterr().out
    corpus_files = {file.name.split(".")[0] for file in (tmp_path / "s").iterdir()}
    assert corpus_files == {"cuts", "codes"}


def test_an_id_that_no_tar_can_hold_is_refused(tmp_path):
    with DialogueWriter(tmp_path / "d") as writer:
        writer.write(Dialogue("a//b", (Turn("user", "a"), Turn("assistant", "b"))))
    with pytest.raises(BadData, match="FAC-D12"):
        DialogueSharding(str(tmp_path / "d"), str(tmp_path / "s")).run()


def test_training_takes_shards_by_their_name_and_trains_on_the_same_rows(world, tmp_path):
    train_text_tokenizer(["say it is the same and in writing"] * 9, 330, str(tmp_path / "text"))
    seen: dict[str, Counter[str]] = {}
    for train in ("dialogues", "shards"):
        module = SpeechChatDataModule(
            train=str(world / train),
            text_tokenizer=str(tmp_path / "text"),
            tokenizer=tokenizer(),
            geometry=GEOMETRY,
            capacity=512,
            look_ahead=1,
        )
        module.setup("fit")
        seconds: dict[str, float] = {}
        for batch in islice(module.train_dataloader(), 20):
            seconds[str(sorted(batch.ids))] = round(batch.seconds, 6)
            seen.setdefault(train, Counter()).update(batch.ids)
        assert all(seconds.values())
    assert seen["dialogues"].keys() == seen["shards"].keys() != set()


def test_the_benchmark_reads_every_dialogue_and_so_does_lhotse():
    trials = [cell.setup() for cell in DataBenchmark().cells(BenchSettings())]
    ours, theirs, codes, from_texts, padded, *_ = trials
    assert ours.work["audio_s"] == pytest.approx(theirs.work["audio_s"], rel=0.15)  # but for what the last line lacks
    assert codes.work["audio_s"] == pytest.approx(padded.work["audio_s"], rel=0.15)
    assert codes.work["audio_s"] == from_texts.work["audio_s"]
    assert codes.values()["fill"] > 0.95
    ours.call()
    for trial in trials:
        trial.close()
