"""Augmentation: other sound in every epoch, the same for any number of workers and after a resume, length known."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch

from fac_lightning.cli import main
from fac_lightning.cli.build import ensure_forgetful
from fac_lightning.config import UserError
from fac_lightning.data import Clip, DialogueSharding, SpeechChatDataModule, SpokenTurn, TextTokenizerTraining
from fac_lightning.data.augmentation import Augmentation, refuse_remembering
from fac_lightning.data.distortions import Chain, ColoredNoise, Sometimes, Speed, Volume
from fac_lightning.data.row_source import CorpusItem
from fac_lightning.encoders import CachedEncoder, MelEncoder
from fac_lightning.testing.dialogues import make_dialogues
from fac_lightning.types import SpeechGeometry

RATE = 16000
NOISY = Chain([Speed((0.8, 1.25)), ColoredNoise(snr=(0.0, 10.0))])


def item(name="d"):
    wave = (0.3 * np.sin(np.arange(4000) / 7)).astype(np.float32)
    pcm = np.round(wave * 32768).astype(np.int16)
    said = np.zeros((5, 1), np.int64)
    turns = (
        SpokenTurn("user", "a", clip=Clip(4000, lambda: pcm)),
        SpokenTurn("assistant", "b", codes=said),
        SpokenTurn("user", "c"),
        SpokenTurn("user", "a", clip=Clip(4000, lambda: wave)),
    )
    return CorpusItem(name, turns, "system")


def heard(augmentation, name="d", seed=0, epoch=0):
    return [turn.clip.load() for turn in augmentation(item(name), seed, epoch).turns if turn.clip]


def test_what_happens_depends_on_seed_epoch_dialogue_and_turn_alone():
    augmentation = Augmentation(NOISY, RATE)
    first = heard(augmentation)
    heard(augmentation, "other")
    for again, clip in zip(heard(augmentation), first, strict=True):
        assert np.array_equal(again, clip)
    others = [heard(augmentation, seed=1), heard(augmentation, epoch=1), heard(augmentation, "e"), first[::-1]]
    for changed in others:
        assert not any(np.array_equal(a, b) for a, b in zip(changed, first, strict=True))


def test_clips_are_as_long_as_announced_and_the_rest_stays():
    lengths = set()
    for epoch in range(10):
        made = Augmentation(NOISY, RATE)(item(), 0, epoch)
        clips = [turn.clip for turn in made.turns if turn.clip]
        assert all(len(clip.load()) == clip.num_samples for clip in clips)
        lengths |= {clip.num_samples for clip in clips}
        assert [turn.text for turn in made.turns] == ["a", "b", "c", "a"]
        assert made.turns[1] is not None
        assert made.turns[2].clip is None
        assert (made.id, made.system) == ("d", "system")
    assert len(lengths) > 5
    assert min(lengths) < 4000 < max(lengths)


def test_samples_of_both_kinds_are_taken_at_their_level():
    halved = heard(Augmentation(Volume((-6.0, -6.0)), RATE))
    for clip in halved:
        assert clip.dtype == np.float32
        assert np.abs(clip).max() == pytest.approx(0.3 * 10**-0.3, rel=1e-3)


def test_lengths_stay_where_nothing_changes_them():
    assert Augmentation(Sometimes(Volume()), RATE).keeps_length
    assert not Augmentation(NOISY, RATE).keeps_length
    assert all(len(clip) == 4000 for clip in heard(Augmentation(Sometimes(Volume()), RATE)))


def test_an_encoder_that_remembers_every_clip_is_refused():
    plain = MelEncoder(dim=8, num_layers=1)
    refuse_remembering(plain)
    with pytest.raises(ValueError, match=r"the model is a CachedEncoder, which keeps the features of every clip"):
        refuse_remembering(CachedEncoder(plain))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_dialogues(folder / "train", 12, rounds=2)
    make_dialogues(folder / "val", 5, seed=1)
    TextTokenizerTraining([str(folder / "train")], 330, str(folder / "tokenizer")).run()
    return folder


@pytest.fixture
def build(world):
    def build(**changes):
        arguments = {
            "train": str(world / "train"),
            "text_tokenizer": str(world / "tokenizer"),
            "val": str(world / "val"),
            "geometry": SpeechGeometry(RATE, 3200, 5, 2, 50, 400),
            "modes": {"S2T": 1.0},
            "capacity": 512,
            "look_ahead": 4,
            "augment": NOISY,
        }
        module = SpeechChatDataModule(**{**arguments, **changes})
        module.setup("fit")
        return module

    return build


def rows(module, count, shard=0, num_shards=1):
    """Place in the endless sequence -> id, clips and positions, of the first rows of a shard."""
    stream = module._stream(1, shard, num_shards)
    found = {}
    for plan in islice(stream.plans(0), count):
        row = stream.planners[plan.source].row(plan.row, plan.part)
        assert row.cost == plan.cost
        found[plan.place] = row
    return found


def same(first, other):
    return all(np.array_equal(a.load(), b.load()) for a, b in zip(first.clips, other.clips, strict=True))


def test_positions_are_those_of_the_changed_clips_and_budgets_hold(build):
    module = build(max_audio_seconds=4.0, num_workers=0)
    for line in islice(module.train_dataloader(), 12):
        lengths = line.audio.lengths.numpy()
        assert len(line.feature_positions) == (-(-lengths // 3200)).sum()
        assert line.audio.lengths.sum() / RATE <= 4.0
        assert line.lengths.sum() == len(line.text_ids) <= 512
        per_row = [line.text_mask[begin:end] for begin, end in spans(line.lengths.tolist())]
        heard = [int((~mask).sum()) for mask in per_row]  # positions without text are those that hear
        clips = (-(-lengths // 3200)).reshape(-1, 2).sum(1)
        assert heard == clips.tolist()


def spans(lengths):
    ends = np.cumsum(lengths)
    return zip(ends - lengths, ends, strict=True)


def test_no_two_epochs_sound_alike_and_validation_sounds_as_recorded(build):
    augmented, plain = build(), build(augment=None)
    found = list(rows(augmented, 36).values())
    by_name = {}
    for row in found:
        by_name.setdefault(row.id, []).append(row)
    assert {len(takes) for takes in by_name.values()} == {3}
    recorded = {row.id: row for row in rows(plain, 12).values()}
    for name, takes in by_name.items():
        assert not any(same(a, b) for a, b in zip(takes, [*takes[1:], recorded[name]], strict=True))
    for line, other in zip(augmented.val_dataloader(), plain.val_dataloader(), strict=True):
        assert line.ids == other.ids
        assert torch.equal(line.audio.audio, other.audio.audio)


def test_any_number_of_workers_and_ranks_hears_the_same(build):
    alone, workers = (list(islice(build(num_workers=n).train_dataloader(), 6)) for n in (0, 2))
    for line, other in zip(alone, workers, strict=True):
        assert line.ids == other.ids
        assert torch.equal(line.audio.audio, other.audio.audio)
        assert torch.equal(line.feature_positions, other.feature_positions)
    whole = rows(build(), 30)
    halves = rows(build(), 15, 0, 2) | rows(build(), 15, 1, 2)
    assert whole.keys() == halves.keys()
    assert all(whole[place].id == halves[place].id and same(whole[place], halves[place]) for place in whole)


def test_dialogues_sound_alike_from_shards(build, world, tmp_path):
    DialogueSharding(str(world / "train"), str(tmp_path / "shards"), 5).run()
    heard = []
    for train in (str(world / "train"), str(tmp_path / "shards")):
        planner = build(train=train).train_planners["train"]
        planned = [(i, part) for i in range(12) for part in planner.plan(i, 0, 3, 0.0)]
        heard.append({row.id: row for i, part in planned if (row := planner.row(i, part))})
        assert all(planner.row(i, part).cost == part.cost for i, part in planned)
    assert heard[0].keys() == heard[1].keys()
    assert all(same(heard[0][name], heard[1][name]) for name in heard[0])


class Listener(lightning.LightningModule):
    """Remembers what it heard."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.heard = []

    def training_step(self, batch):
        self.heard.append((batch.ids, batch.audio.audio.numpy().tobytes()))
        return self.weight.sum()

    def validation_step(self, batch):
        """Not asked for."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, folder, max_steps, ckpt_path=None, listener=None):
    listener = listener or Listener()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = lightning.Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=max_steps, enable_model_summary=False, **quiet
    )
    trainer.fit(listener, module, ckpt_path=ckpt_path, weights_only=False)
    trainer.save_checkpoint(folder / f"{max_steps}.ckpt")
    return listener.heard


def test_a_resumed_run_hears_what_it_would_have_heard(build, tmp_path):
    whole = fit(build(), tmp_path, 6)
    assert fit(build(), tmp_path, 2) == whole[:2]
    assert fit(build(), tmp_path, 6, tmp_path / "2.ckpt") == whole[2:]
    with pytest.raises(ValueError, match=r"augment: .*Speed\(factor=\(0.8, 1.25\)\).* -> None"):
        fit(build(augment=None), tmp_path, 6, tmp_path / "2.ckpt")


def test_a_dialogue_that_slower_speech_makes_too_long_is_taken_as_recorded(build):
    plain = build(augment=None)
    longest = max(row.audio_seconds for row in rows(plain, 12).values())
    slow = build(augment=Speed((0.7, 0.7)), max_audio_seconds=longest)
    names, seconds = set(), []
    for row in rows(slow, 24).values():
        names.add(row.id.split("#")[0].split("/")[0])
        seconds.append(row.audio_seconds)
    assert names == {f"dummy-{i}" for i in range(12)}
    assert max(seconds) <= longest
    parts = [part for i in range(12) for part in slow.train_planners["train"].plan(i, 0, 0, 0.0)]
    assert any(part.span is not None for part in parts), "some are split"
    assert all(part.take for part in parts)
    tight = build(augment=Speed((0.5, 0.5)), max_audio_seconds=longest)
    parts = [part for i in range(12) for part in tight.train_planners["train"].plan(i, 0, 0, 0.0)]
    assert {part.take for part in parts} == {None, (0, 0)}


def test_data_that_change_and_an_encoder_that_remembers_do_not_go_together(build, tmp_path):
    remembering = Listener()
    remembering.encoder = CachedEncoder(MelEncoder(dim=8, num_layers=1))
    with pytest.raises(ValueError, match="encoder is a CachedEncoder, which keeps the features of every clip"):
        fit(build(), tmp_path, 1, listener=remembering)
    with pytest.raises(UserError, match="Use the encoder inside it alone, or leave augment out"):
        ensure_forgetful(remembering, build())
    ensure_forgetful(remembering, build(augment=None))
    ensure_forgetful(remembering, SimpleNamespace())


def test_the_recipe_trains_and_refuses_an_encoder_that_remembers(world, tmp_path, capsys):
    frames = "{_target_: fac_lightning.testing.FrameEncoder, sample_rate: 16000, hop_length: 320, dim: 8}"
    words = [
        "fit",
        "tiny/augmented",
        f"vars.world={world}",
        f"vars.text_tokenizer={world / 'tokenizer'}",
        f"data.val={world / 'val'}",
        f"trainer.default_root_dir={tmp_path / 'run'}",
        "~init_from",
        "tokenizer=null",
        "vars.dim=16",
        "vars.codebook_size=32",
        "model.backbone={_target_: fac_lightning.testing.tiny_backbone, dim: 16, vocab_size: 400}",
        "model.feature_adapter={_target_: fac_lightning.adapters.MeanGrouping, in_dim: 8, group_size: 10, dim: 16}",
        "model.head.width=16",
        "model.head.num_layers=1",
        "~data.modes.S2M",
        "~data.modes.T2M",
        "trainer.max_steps=3",
        "trainer.val_check_interval=2",
        "trainer.enable_progress_bar=false",
    ]
    wrapped = f"{{_target_: fac_lightning.encoders.CachedEncoder, encoder: {frames}}}"
    assert main([*words, f"model.encoder={wrapped}"]) == 2
    told = capsys.readouterr().err
    assert "data.augment changes the users' speech anew every epoch, and encoder is a CachedEncoder" in told
    assert not (tmp_path / "run").exists()
    assert main([*words, f"model.encoder={frames}"]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()
