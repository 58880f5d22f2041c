"""The data module: codes once per tokenizer, an endless seeded stream, split without overlap, resumed exactly."""

import logging
import re
from itertools import islice

import lightning
import numpy as np
import pytest
import torch

from fac_lightning.data import (
    CodeStore,
    Dialogue,
    DialogueWriter,
    LinearModes,
    SpeechChatDataModule,
    TextTokenizerTraining,
    Turn,
    read_cuts,
    read_dialogues,
    tokenizer_fingerprint,
)
from fac_lightning.data.stream import FixedLines, StreamPlace
from fac_lightning.prompts import MODES, SPECIAL_TOKENS, SYSTEM_PROMPTS, ChatFormat
from fac_lightning.replies import FrameEnd, GroupEnd
from fac_lightning.testing.dialogues import make_dialogues
from fac_lightning.text_tokenizer import load_text_tokenizer, train_text_tokenizer
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import IGNORE, SpeechCodes, SpeechGeometry
from fac_lightning.weights import CheckpointError


class LoudnessTokenizer(SpeechTokenizer):
    """Codes are the loudness of a frame; counts the clips that it is asked for."""

    def __init__(self, scale=1.0, broken=False):
        super().__init__()
        self.sample_rate, self.hop_length, self.num_codebooks, self.codebook_size = 8000, 320, 2, 50
        self.scale = torch.nn.Parameter(torch.tensor([scale, 2 * scale]))
        self.broken, self.clips = broken, 0

    def encode(self, audio, lengths=None):
        assert not self.training
        self.clips += len(audio)
        frames = torch.nn.functional.pad(audio, (0, -audio.shape[1] % 320)).unflatten(1, (-1, 320)).abs().sum(-1)
        codes = (frames[..., None] * self.scale).long() % 50
        return SpeechCodes(codes, -(-lengths // 320) + self.broken)

    def decode(self, codes, lengths=None):
        raise NotImplementedError


GEOMETRY = SpeechGeometry(16000, 3200, 5, 2, 50, 400)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_dialogues(folder / "train", 40, rounds=2)
    make_dialogues(folder / "val", 9, seed=1)
    make_dialogues(folder / "text", 12, seed=2, spoken=False)
    TextTokenizerTraining([str(folder / "train")], 360, str(folder / "tokenizer")).run()
    return folder


@pytest.fixture
def build(world):
    def build(**changes):
        arguments = {
            "train": str(world / "train"),
            "text_tokenizer": str(world / "tokenizer"),
            "val": str(world / "val"),
            "tokenizer": LoudnessTokenizer(),
            "geometry": GEOMETRY,
            "capacity": 512,
            "look_ahead": 4,
        }
        module = SpeechChatDataModule(**{**arguments, **changes})
        module.setup("fit")
        return module

    return build


def ids(lines):
    return [line.ids for line in lines]


def rows(module, count, shard=0, num_shards=1):
    """Ids of the first rows of a shard, in the order in which they are drawn."""
    stream = module._stream(1, shard, num_shards)
    return [stream.load(plan).row_id for plan in islice(stream.plans(0), count)]


def test_lines_hold_speech_and_text_within_budget(build):
    module = build(max_audio_seconds=6.0, max_speech_tokens=200)
    for line in islice(module.train_dataloader(), 20):
        assert line.lengths.sum() == len(line.text_ids) <= line.capacity == 512
        assert line.audio.lengths.sum() / 16000 <= 6.0
        assert line.speech_labels.shape[0] * 5 <= 200
        assert line.speech_labels.shape[1:] == (5, 2)
        assert line.audio.audio.abs().max() > 0.2
        assert all(name.endswith("/S2M") for name in line.ids)
        assert line.seconds > line.audio.lengths.sum() / 16000


def test_same_seed_same_lines_and_another_seed_others(build):
    modes = {"S2M": 1.0, "T2T": 1.0}
    first, second, other = (ids(islice(build(modes=modes, seed=seed).train_dataloader(), 12)) for seed in (0, 0, 1))
    assert first == second != other


def test_an_epoch_sees_every_dialogue_once_in_a_new_order(build):
    drawn = rows(build(), 120)
    epochs = [drawn[:40], drawn[40:80], drawn[80:]]
    assert all(len(set(epoch)) == 40 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("shards", [2, 3, 64])
def test_shards_never_share_a_row_of_an_epoch(build, shards):
    module = build()
    streams = [rows(module, 6, shard, shards) for shard in range(shards)]
    assert [stream[i] for i in range(6) for stream in streams] == rows(module, 6 * shards)


def test_modes_are_drawn_by_weight_and_change_with_the_epoch(build):
    corpus = build(modes={"S2M": 3.0, "ASR": 1.0, "T2T": 0.0}).train_corpus
    drawn = [corpus.draw_mode(item, 0, epoch) for epoch in range(50) for item in corpus.items]
    assert set(drawn) == {"S2M", "ASR"}
    assert drawn.count("S2M") / len(drawn) == pytest.approx(0.75, abs=0.03)
    assert drawn[:40] != drawn[40:80]


def test_every_mode_gives_its_rows(build):
    module = build(modes=dict.fromkeys(MODES, 1.0), lead_in=1, val=None)
    report = module.describe()["train"]
    assert set(report["rows"]) == set(MODES)
    assert sum(report["rows"].values()) == report["dialogues"] == 40
    assert report["turns"] == 160
    assert 0.9 < report["fill"] <= 1
    hours = sum(
        len(t.audio) for d in read_dialogues(module.sources["train"].paths[0]) for t in d.turns if t.role == "user"
    )
    assert report["user_hours"] == pytest.approx(hours / 16000 / 3600)
    assert report["assistant_hours"] > 0


def test_a_schedule_changes_the_mix_as_the_data_go_by(build):
    module = build(modes={"S2M": 1.0, "S2T": 1.0}, mode_schedule=LinearModes({"STC": 1.0, "SUC": 3.0}, epochs=10.0))
    drawn = [name.split("/")[1] for name in rows(module, 40 * 14)]
    early, middle, late = drawn[:40], drawn[40 * 3 : 40 * 7], drawn[40 * 10 :]
    assert early.count("S2M") + early.count("S2T") >= 35
    assert middle.count("STC") + middle.count("SUC") == pytest.approx(0.5 * len(middle), rel=0.2)
    assert set(late) == {"STC", "SUC"}
    assert late.count("SUC") / len(late) == pytest.approx(0.75, abs=0.08)
    report = module.describe()
    assert set(report["train"]["rows"]) == {"S2M", "S2T"}
    assert set(report["train"]["rows_at_end"]) == {"STC", "SUC"} >= set(report["val"]["rows"])
    lines = [name for line in module.val_dataloader() for name in line.ids]
    assert len(lines) == 9
    assert all(name.endswith(("/STC", "/SUC")) for name in lines), "validation takes the weights of the end"


@pytest.mark.parametrize("shards", [2, 3])
def test_a_schedule_is_the_same_for_any_number_of_shards(build, shards):
    module = build(modes={"S2M": 1.0}, mode_schedule=LinearModes({"STC": 1.0}, epochs=3.0))
    whole = rows(module, 120)
    streams = [rows(module, 120 // shards, shard, shards) for shard in range(shards)]
    assert [stream[i] for i in range(120 // shards) for stream in streams] == whole
    assert len({name.split("/")[1] for name in whole[40:80]}) == 2


def test_rows_that_a_schedule_makes_too_long_later_are_told_at_once(build):
    short = {"modes": {"S2M": 1.0}, "capacity": 90, "val": None}
    build(**short)
    with pytest.raises(ValueError, match=r"40 of 40 dialogues .* 40 do not fit a line .* Raise capacity"):
        build(**short, mode_schedule=LinearModes({"STC": 1.0}, epochs=1.0))
    with pytest.raises(ValueError, match="unknown modes STS; choose from S2M"):
        build(mode_schedule=LinearModes({"STS": 1.0}, epochs=1.0))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_lines(build, num_workers):
    alone, workers = (islice(build(num_workers=n).train_dataloader(), 9) for n in (0, num_workers))
    for one, other in zip(alone, workers, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.speech_labels, other.speech_labels)
        assert torch.equal(one.audio.audio, other.audio.audio)


def test_a_window_shares_its_totals(build):
    windows = list(islice(build()._stream(2), 4))
    assert all(len(w) == 2 and w[0].text_token_total == w[1].text_token_total for w in windows)
    assert windows[0][0].text_token_total == sum(int((x.text_labels != IGNORE).sum()) for x in windows[0])
    resumed = next(iter(build()._stream(2, start=StreamPlace(windows=3))))
    assert ids(resumed) == ids(windows[3])


def test_codes_are_made_once_per_tokenizer_and_equal_audio_once(world):
    cuts = list(read_cuts(world / "train"))
    tokenizer = LoudnessTokenizer(scale=0.5)
    codes = CodeStore(world / "train", tokenizer).complete(cuts, progress=False)
    replies = [t.audio for d in read_dialogues(world / "train") for t in d.turns if t.role == "assistant"]
    distinct = len({audio.tobytes() for audio in replies})
    assert len(codes) == len(replies) == 80
    assert tokenizer.clips == distinct < 80
    again = LoudnessTokenizer(scale=0.5)
    found = CodeStore(world / "train", again).complete(cuts, progress=False)
    assert again.clips == 0
    assert all(np.array_equal(found[turn], codes[turn]) for turn in codes)
    other = LoudnessTokenizer(scale=0.7)
    changed = CodeStore(world / "train", other).complete(cuts, progress=False)
    assert other.clips == distinct
    assert any(not np.array_equal(changed[turn], codes[turn]) for turn in codes)
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(again) != tokenizer_fingerprint(other)


def test_interrupted_codes_are_continued(world, monkeypatch):
    monkeypatch.setattr("fac_lightning.data.clip_codes.MAX_BATCH", 8)
    cuts = list(read_cuts(world / "train"))
    tokenizer, encode = LoudnessTokenizer(scale=0.3), LoudnessTokenizer.encode

    def tired(self, audio, lengths=None):
        if self.clips > 10:
            raise KeyboardInterrupt
        return encode(self, audio, lengths)

    monkeypatch.setattr(LoudnessTokenizer, "encode", tired)
    with pytest.raises(KeyboardInterrupt):
        CodeStore(world / "train", tokenizer).complete(cuts, progress=False)
    monkeypatch.setattr(LoudnessTokenizer, "encode", encode)
    done = tokenizer.clips
    assert len(CodeStore(world / "train", tokenizer)) >= done > 0
    whole = LoudnessTokenizer(scale=0.2)
    CodeStore(world / "train", whole).complete(cuts, progress=False)
    assert len(CodeStore(world / "train", tokenizer).complete(cuts, progress=False)) == 80
    assert done < tokenizer.clips < done + whole.clips


def test_codes_are_those_of_the_turn_alone(world):
    tokenizer = LoudnessTokenizer(scale=0.9)
    codes = CodeStore(world / "train", tokenizer).complete(read_cuts(world / "train"), progress=False)
    for dialogue in islice(read_dialogues(world / "train", sample_rate=8000), 5):
        for i, turn in enumerate(dialogue.turns):
            if turn.role == "assistant":
                audio = torch.from_numpy(turn.audio)[None]
                alone = tokenizer.eval().encode(audio, torch.tensor([audio.shape[1]])).codes[0]
                assert np.array_equal(codes[dialogue.id, i], alone.numpy())


def test_a_broken_tokenizer_is_named(world):
    with pytest.raises(ValueError, match=r"LoudnessTokenizer gave 15 frames for 4480 samples, .* 14 frames"):
        CodeStore(world / "train", LoudnessTokenizer(0.1, broken=True)).complete(read_cuts(world / "train"), False)


def test_text_alone_needs_neither_speech_tokenizer_nor_geometry(build, world):
    module = build(
        train=[str(world / "train"), str(world / "text")], val=None, tokenizer=None, geometry=None, modes={"T2T": 1.0}
    )
    line = next(iter(module.train_dataloader()))
    assert line.audio.audio.numel() == line.codes.numel() == 0
    assert all(name.endswith("/T2T") for name in line.ids)
    assert module.val_dataloader is None


def test_what_is_missing_is_named(build, world):
    with pytest.raises(ValueError, match="there is no speech tokenizer; give one, or leave the modes S2M"):
        build(tokenizer=None)
    with pytest.raises(ValueError, match="there is no geometry; give SpeechLM"):
        build(geometry=None, modes={"S2T": 1.0})
    with pytest.raises(ValueError, match="unknown modes M2S; choose from S2M"):
        build(modes={"M2S": 1.0})
    with pytest.raises(ValueError, match="no mode a positive weight"):
        build(modes={"S2M": 0.0})
    with pytest.raises(ValueError, match=r"360 tokens, the backbone's embedding 300 rows"):
        build(geometry=SpeechGeometry(16000, 3200, 5, 2, 50, 300))
    with pytest.raises(ValueError, match=r"\(codebooks, codes\) = \(2, 50\), the model \(1, 50\)"):
        build(geometry=SpeechGeometry(16000, 3200, 5, 1, 50, 400))
    with pytest.raises(ValueError, match=r"40 of 40 dialogues .* 40 do not fit a line .* Raise capacity"):
        build(capacity=24)
    with pytest.raises(ValueError, match="12 have no speech for the modes ASR"):
        build(train=str(world / "text"), modes={"ASR": 1.0})
    with pytest.raises(ValueError, match="lead_in must not be negative"):
        build(lead_in=-1)


def test_text_that_the_reply_rule_cuts_is_counted_once(build, caplog):
    with caplog.at_level(logging.WARNING):
        kept = build(reply=FrameEnd(1))
    assert "more text than speech" not in caplog.text
    assert kept.train_corpus.row(0, 0, 0).lost_text == 0
    with caplog.at_level(logging.WARNING):
        cut = build(reply=GroupEnd(0), val=None)
    rows = [cut.train_corpus.row(i, 0, 0) for i in range(40)]
    lost = [row.lost_text for row in rows if row.lost_text]
    assert sum(lost) > 0
    message = f"{len(lost)} of 40 dialogues .* GroupEnd\\(lead_in_codes=0\\) cuts it: {sum(lost)} text tokens"
    assert len(re.findall(message, caplog.text)) == 1
    with pytest.raises(ValueError, match=r"lead_in=1 and reply=FrameEnd.* are both given"):
        build(lead_in=1, reply=FrameEnd(1))


def test_a_few_long_dialogues_are_left_out_and_counted(build, tmp_path, caplog):
    folder = make_dialogues(tmp_path / "d", 30, spoken=False)
    with DialogueWriter(folder) as writer:
        writer.write(Dialogue("long", (Turn("user", "why " * 1000), Turn("assistant", "so"))))
    with caplog.at_level(logging.WARNING):
        module = build(train=str(folder))
    assert "1 of 31 dialogues" in caplog.text
    drawn = rows(module, 60)
    assert len(set(drawn)) == 30
    assert "long/T2T" not in drawn


def test_validation_is_one_pass_in_fixed_order_equal_on_all_ranks(build):
    module = build(capacity=128)
    lines = list(module.val_dataloader())
    assert sorted(n for line in lines for n in line.ids) == sorted(f"dummy-{i}/S2M" for i in range(9))
    assert ids(module.val_dataloader()) == ids(lines)
    assert len(lines) == len(module.val_dataloader()) > 3
    split = [FixedLines(module.val_planner, 0, 4, None, rank, 2) for rank in range(2)]
    assert len(split[0]) == len(split[1]) == -(-len(lines) // 2)
    assert {n for half in split for line in half for n in line.ids} == {n for line in lines for n in line.ids}
    assert len(build(val_lines=2, capacity=128).val_dataloader()) == 2


def test_a_dialogues_own_prompt_comes_before_the_modules(build, tmp_path):
    with DialogueWriter(tmp_path) as writer:
        writer.write(Dialogue("a", (Turn("user", "x"), Turn("assistant", "y")), system="Mine."))
        writer.write(Dialogue("b", (Turn("user", "x"), Turn("assistant", "y"))))
    module = build(train=str(tmp_path), val=None, modes={"T2T": 1.0}, system_prompts={"T2T": "Ours."})
    texts = [module.chat.decode(module.train_corpus.row(i, 0, 0).text_ids.tolist()) for i in range(2)]
    assert texts[0].startswith("system\nMine.\n")
    assert texts[1].startswith("system\nOurs.\n")


class Recorder(lightning.LightningModule):
    """Remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.validated = [], []

    def training_step(self, batch):
        self.seen.append((batch.ids, batch.text_token_total))
        return self.weight.sum()

    def validation_step(self, batch):
        self.validated.append(batch.ids)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, folder, max_steps, ckpt_path=None):
    recorder = Recorder()
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=max_steps,
        accumulate_grad_batches=2,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(recorder, module, ckpt_path=ckpt_path, weights_only=False)
    trainer.save_checkpoint(folder / f"{max_steps}.ckpt")
    return recorder


def test_lightning_trains_on_it_and_a_resumed_run_goes_on_where_it_stopped(build, tmp_path):
    modes = {"S2M": 1.0, "T2T": 1.0}
    whole = fit(build(modes=modes), tmp_path, 6)
    assert len(whole.seen) == 12
    assert len(whole.validated) == 3 * len(build(modes=modes).val_dataloader())
    totals = [total for _, total in whole.seen]
    assert totals[::2] == totals[1::2], "both micro-batches of a step share their total"
    assert len(set(totals)) > 1
    fit(build(modes=modes), tmp_path, 2)
    resumed = fit(build(modes=modes), tmp_path, 6, tmp_path / "2.ckpt")
    assert resumed.seen == whole.seen[4:]


def test_a_resumed_run_goes_on_in_the_schedule_where_it_stopped(build, tmp_path):
    how = {"modes": {"S2M": 1.0}, "mode_schedule": LinearModes({"STC": 1.0, "T2T": 1.0}, epochs=0.5)}
    whole = fit(build(**how), tmp_path, 5)
    fit(build(**how), tmp_path, 2)
    resumed = fit(build(**how), tmp_path, 5, tmp_path / "2.ckpt")
    assert resumed.seen == whole.seen[4:]
    names = [name.split("/")[1] for names, _ in whole.seen for name in names]
    assert set(names) == {"S2M", "STC", "T2T"}
    assert set(names[-10:]) == {"STC", "T2T"}


def test_without_validation_data_lightning_runs_none(build):
    recorder = Recorder()
    with pytest.warns(UserWarning, match="Skipping val loop"):
        trainer(max_steps=1).fit(recorder, build(val=None))
    assert len(recorder.seen) == 1
    assert recorder.validated == []


def test_a_changed_stream_is_refused_when_a_run_is_resumed(build, caplog):
    state = build().state_dict()
    build(num_workers=2).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"cannot go on exactly \(seed: 0 -> 3\)\. Put that back, .* 'continue'"):
        build(seed=3).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"modes: \{'S2M': 1.0\} -> \{'S2M': 1.0\} by LinearModes\(end="):
        build(mode_schedule=LinearModes({"STC": 1.0}, epochs=2.0)).load_state_dict(state)
    with caplog.at_level(logging.WARNING):
        build(seed=3, resume_changed="continue").load_state_dict(state)
    assert "not those of the checkpoint (seed: 0 -> 3): the run goes on at the same number of steps" in caplog.text


def trainer(**arguments):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(accelerator="cpu", num_sanity_val_steps=0, **quiet, **arguments)


def test_a_training_without_end_is_refused(build):
    with pytest.raises(ValueError, match="the training stream has no end; set trainer"):
        trainer(max_epochs=1).fit(Recorder(), build())


def test_a_validation_that_never_runs_is_told(build, caplog):
    with caplog.at_level(logging.WARNING):
        recorder = Recorder()
        trainer(max_steps=1).fit(recorder, build())
    assert recorder.validated == []
    assert "Validation never runs" in caplog.text


def test_a_trained_text_tokenizer_knows_every_text(world):
    tokenizer = load_text_tokenizer(world / "tokenizer")
    for text in ("What follows red?", "Zürich, 東京 🙂\n\ttabs", " lead and  double "):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert [tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert len(tokenizer.encode("What follows red?", add_special_tokens=False)) <= 5


def test_a_text_tokenizer_learns_the_prompts_of_the_modes_it_is_told(world, tmp_path):
    sizes = {}
    for modes in (None, ["STC"]):
        job = TextTokenizerTraining([str(world / "train")], 500, str(tmp_path / str(modes)), modes=modes)
        sizes[str(modes)] = len(load_text_tokenizer(job.run()).encode(SYSTEM_PROMPTS["STC"]))
    assert sizes["['STC']"] < 0.8 * sizes["None"]
    with pytest.raises(ValueError, match="unknown modes STS; choose from S2M"):
        TextTokenizerTraining([str(world / "train")], 500, "t", modes=["STS"])


def test_training_a_text_tokenizer_twice_gives_the_same(tmp_path):
    texts = ["one two three", "two three four"] * 5
    for name in "ab":
        train_text_tokenizer(texts, 280, tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
    with pytest.raises(ValueError, match="vocab_size must be at least 263"):
        train_text_tokenizer(texts, 100, tmp_path / "c")


def test_missing_special_tokens_are_added_behind_the_vocabulary(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<|im_end|>": 1}, unk_token="a"))
    )
    plain.save_pretrained(tmp_path)
    tokenizer = load_text_tokenizer(tmp_path)
    assert len(tokenizer) == 2 + len(SPECIAL_TOKENS) - 1
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 1
    assert tokenizer.encode("<|sil|>", add_special_tokens=False) == [tokenizer.convert_tokens_to_ids("<|sil|>")]
    with pytest.raises(ValueError, match=r"does not know .*<\|sil\|> as single tokens; load it with"):
        ChatFormat(plain)
    with pytest.raises(ValueError, match="no text tokenizer can be loaded"):
        load_text_tokenizer(tmp_path / "nothing")


def test_a_copy_of_the_text_tokenizer(build, tmp_path):
    module = build()
    module.save_text_tokenizer(tmp_path / "copy")
    assert load_text_tokenizer(tmp_path / "copy").get_vocab() == module.chat.tokenizer.get_vocab()
