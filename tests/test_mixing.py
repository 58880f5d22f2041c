"""Several sources in one stream: by weight and temperature, each going round by itself, the same from any place."""

from collections import Counter
from itertools import islice

import lightning
import numpy as np
import pytest
import torch

from fac_lightning.callbacks import DataCounts
from fac_lightning.config import load
from fac_lightning.config.check import check
from fac_lightning.data import DataSource, SpeechChatDataModule, TextTokenizerTraining, draw_rows, mixing_shares
from fac_lightning.prompts import ASR_INSTRUCTION
from fac_lightning.testing.dialogues import make_dialogues


def order(size, seed=0):
    return lambda epoch: iter(np.random.default_rng([seed, epoch]).permutation(size).tolist())


def draws(count, sizes=(30, 7), shares=(0.5, 0.5), shard=0, num_shards=1, start=0, seed=0):
    orders = [order(size, i) for i, size in enumerate(sizes)]
    return list(islice(draw_rows(orders, sizes, np.array(shares), seed, shard, num_shards, start), count))


def test_shares_follow_weight_and_temperature():
    assert mixing_shares([80, 20], 1).tolist() == [0.8, 0.2]
    assert mixing_shares([81, 16], 2).tolist() == pytest.approx([9 / 13, 4 / 13])
    assert mixing_shares([1000, 10], 1, [1.0, 3.0]).tolist() == pytest.approx([0.25, 0.75])
    assert mixing_shares([10, 10], 1, [None, 30.0]).tolist() == pytest.approx([0.25, 0.75])
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        mixing_shares([1], 0)
    with pytest.raises(ValueError, match=r"weight of the source a must be above 0, got 0\.0; leave the source out"):
        DataSource("a", weight=0.0)


def test_sources_are_drawn_by_their_shares_and_each_goes_round_by_itself():
    drawn = draws(9000, shares=(0.7, 0.3))
    assert np.mean([d.source for d in drawn]) == pytest.approx(0.3, abs=0.02)
    for source, size in enumerate((30, 7)):
        own = [d for d in drawn if d.source == source]
        passes = [own[i : i + size] for i in range(0, len(own) - size, size)]
        assert all(sorted(d.row for d in one) == list(range(size)) for one in passes)
        assert [d.epoch for d in own[:: size + 1]][:3] == [0, 1, 2]
        assert [d.row for d in passes[0]] != [d.row for d in passes[1]]
        assert [d.way for d in passes[1]] == [i / size for i in range(size)]


@pytest.mark.parametrize("start", [0, 3, 4095, 4096, 10000])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_any_place_is_found_again_by_any_shard(start, num_shards):
    whole = draws(11000)
    shards = [draws(40, shard=shard, num_shards=num_shards, start=start) for shard in range(num_shards)]
    dealt = sorted(d for shard in shards for d in shard)
    assert dealt[: 30 * num_shards] == whole[start : start + 30 * num_shards]
    assert all(d.place % num_shards == shard for shard, own in enumerate(shards) for d in own)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mix")
    for seed, (name, size) in enumerate({"big": 60, "small": 12}.items()):
        make_dialogues(folder / name, size, seed=seed, spoken=False)
    TextTokenizerTraining([str(folder / "big")], 340, str(folder / "tokenizer")).run()
    return folder


def build(world, train, **changes):
    module = SpeechChatDataModule(train, str(world / "tokenizer"), modes={"T2T": 1.0}, capacity=256, **changes)
    module.setup("fit")
    return module


def sources(module, lines=120):
    return Counter(name for line in islice(module.train_dataloader(), lines) for name in line.sources)


def test_a_mix_of_folders(world):
    both = {"big": str(world / "big"), "small": str(world / "small")}
    module = build(world, both)
    assert module.shares() == pytest.approx({"big": 5 / 6, "small": 1 / 6})
    found = sources(module)
    assert found["small"] / found.total() == pytest.approx(1 / 6, abs=0.05)
    even = sources(build(world, both, temperature=1e9))
    assert even["small"] / even.total() == pytest.approx(0.5, abs=0.08)
    report = module.describe()
    assert report["train/big"]["dialogues"] == 60
    assert report["train/small"]["share"] == pytest.approx(1 / 6)
    line = next(iter(module.train_dataloader()))
    assert len(line.sources) == len(line.ids) > 3


def test_a_source_has_its_own_prompts_modes_and_tags(world):
    small = DataSource(str(world / "small"), 1.0, ["qa"], {"T2T": 2.0}, {"T2T": "Be short."})
    big = DataSource(str(world / "big"), 3.0, ["en", "qa"])
    module = build(world, {"big": big, "small": small}, look_ahead=2)
    prompts = {
        source: module.chat.decode(line.text_ids[first : first + 30].tolist()).split("\n")[1]
        for line in islice(module.train_dataloader(), 40)
        for source, first in zip(line.sources, (line.lengths.cumsum(0) - line.lengths).tolist(), strict=True)
    }
    assert prompts["small"] == "Be short."
    assert prompts["big"] != "Be short."
    counts = module.tally.metrics()
    assert counts["data/tags/en"] == counts["data/rows/big"] > 2 * counts["data/rows/small"] > 0
    assert counts["data/tags/qa"] == counts["data/rows/big"] + counts["data/rows/small"]
    assert ASR_INSTRUCTION not in prompts.values()


def test_counts_are_logged_beside_the_losses(world, tmp_path):
    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch):
            return self.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=4, log_every_n_steps=2, callbacks=[DataCounts()], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
        logger=lightning.pytorch.loggers.CSVLogger(tmp_path),
    )  # fmt: skip
    module = build(world, {"big": str(world / "big"), "small": str(world / "small")})
    trainer.fit(Task(), module)
    assert trainer.logged_metrics["data/rows/big"] > trainer.logged_metrics["data/rows/small"] > 0
    assert trainer.logged_metrics["data/bad_rows"] == 0


def test_a_mix_in_a_recipe(tmp_path):
    (tmp_path / "mix.yaml").write_text(
        """
model: {_target_: torch.nn.Identity}
data:
  _target_: fac_lightning.data.SpeechChatDataModule
  text_tokenizer: t
  temperature: 2.0
  train:
    plain: dialogues/plain
    songs: {_target_: fac_lightning.data.DataSource, path: dialogues/songs, weight: 0.5, tags: [en]}
""",
        encoding="utf-8",
    )
    problems = [str(problem) for problem in check(load(tmp_path / "mix.yaml"))]
    assert not [problem for problem in problems if "data" in problem], problems
    wrong = [str(p) for p in check(load(tmp_path / "mix.yaml", ["data.train.songs.wait=1"]))]
    assert any("wait" in problem and "weight" in problem for problem in wrong)


def test_an_empty_mix_is_refused(world):
    with pytest.raises(ValueError, match="train names no source; give a path, several, or a name and a DataSource"):
        build(world, {})
