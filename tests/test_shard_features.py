"""Features in shards: what training reads of them is what the model's encoder says of the sound."""

from __future__ import annotations

import gc
import shutil
import warnings
from dataclasses import replace
from itertools import islice
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

from fac_lightning.cli import main
from fac_lightning.data import (
    Clip,
    Dialogue,
    DialogueSharding,
    DialogueWriter,
    ShardCorpus,
    SpeechChatDataModule,
    Turn,
    read_dialogues,
    read_shards,
)
from fac_lightning.data.distortions import Volume
from fac_lightning.data.errors import BadData
from fac_lightning.data.lhotse_setup import import_lhotse
from fac_lightning.data.packing import collate_line
from fac_lightning.data.shards.features import FeatureMaker, FeaturesOf, encoder_fingerprint
from fac_lightning.encoders import CachedEncoder
from fac_lightning.tasks import SpeechSFT
from fac_lightning.testing import FrameEncoder, tiny_speech_lm
from fac_lightning.text_tokenizer import train_text_tokenizer
from fac_lightning.types import to_device
from tokenize_parts import LoggedTokenizer


def encoder(seed: int = 3) -> FrameEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FrameEncoder(8000, 320)


def tokenizer() -> LoggedTokenizer:
    return LoggedTokenizer("/dev/null", num_codebooks=2)


def model(heard_by=None):
    return tiny_speech_lm(
        vocab_size=400, codebook_size=50, num_codebooks=2, sample_rate=8000, encoder=heard_by or encoder()
    )


def write(folder: Path, rate: int = 8000) -> Path:
    rng = np.random.default_rng(0)

    def noise(samples):
        return np.round(rng.normal(0, 3000, samples)).astype(np.int16).astype(np.float32) / 32768

    with DialogueWriter(folder) as writer:
        for i in range(6):
            turns = (
                Turn("user", f"Say {i}.", noise(1700 + 371 * i), rate),
                Turn("assistant", f"It is {i}.", noise(2500 + 13 * i), 8000),
                Turn("user", "And again?", noise(1650) if i % 2 else None, rate if i % 2 else None),
                Turn("assistant", "The same.", noise(1600), 8000),
            )
            turns = tuple(Turn(t.role, t.text) for t in turns) if i == 2 else turns
            writer.write(Dialogue(f"d.{i}", turns))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    folder = str(write(root / "dialogues"))
    train_text_tokenizer(["say it is the same and again"] * 9, 330, str(root / "text"))
    DialogueSharding(folder, str(root / "plain"), 2, codes=tokenizer).run()
    for name, audio, dtype in (("exact", "flac", "float32"), ("half", "flac", "float16"), ("silent", None, "float32")):
        DialogueSharding(
            folder, str(root / name), 2, audio, codes=tokenizer, features=encoder, feature_dtype=dtype
        ).run()
    return root


def module(world, train: str, features: bool = True, **more) -> SpeechChatDataModule:
    made = SpeechChatDataModule(
        train=str(world / train),
        text_tokenizer=str(world / "text"),
        tokenizer=tokenizer(),
        geometry=model().geometry,
        capacity=512,
        look_ahead=1,
        features=features,
        **more,
    )
    made.setup("fit")
    return made


def lines(data: SpeechChatDataModule, count: int = 3):
    return list(islice(data.train_dataloader(), count))


@pytest.mark.parametrize(("name", "tolerance"), [("exact", 1e-6), ("silent", 1e-6), ("half", 2e-3)])
def test_the_loss_of_stored_features_is_that_of_the_sound(world, name, tolerance):
    whole = model().eval()
    for heard, given in zip(lines(module(world, "plain", False)), lines(module(world, name)), strict=True):
        assert heard.ids == given.ids
        assert heard.heard is None
        assert heard.audio.audio.shape[0] > 0
        assert given.heard is not None
        assert given.audio.audio.shape[0] == 0
        assert torch.equal(heard.feature_positions, given.feature_positions)
        assert heard.seconds == given.seconds
        said = whole.encoder(heard.audio.audio, heard.audio.lengths)
        assert torch.equal(said.lengths, given.heard.lengths)
        torch.testing.assert_close(given.heard.features, said.features, rtol=tolerance, atol=tolerance)
        one, other = whole(heard), whole(given)
        torch.testing.assert_close(other.text_logprobs, one.text_logprobs, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(other.speech.logprobs, one.speech.logprobs, rtol=tolerance, atol=tolerance)


def test_the_encoder_does_not_run_and_batches_move_whole(world, monkeypatch):
    def never(*_):
        raise AssertionError("the encoder ran")

    whole = model()
    monkeypatch.setattr(whole.encoder, "forward", never)
    (line,) = lines(module(world, "half"), 1)
    assert whole(line).text_count > 0
    assert to_device(line, "meta").heard.features.is_meta


def test_turns_are_heard_many_at_a_time_and_as_if_alone(monkeypatch):
    monkeypatch.setattr("fac_lightning.data.shards.features.BATCH_SECONDS", {"cpu": 1})
    rng, batches = np.random.default_rng(1), []
    turns = [(rng.integers(-9000, 9000, n).astype(np.int16), 8000) for n in (900, 4000, 0, 2500, 8000, 3900, 16000)]
    maker = FeatureMaker(encoder, "float32")
    maker.encoder.register_forward_pre_hook(lambda _, given: batches.append(tuple(given[1].tolist())))
    found = maker(turns)
    assert batches == [(16000,), (8000,), (4000, 3900), (2500, 900)]
    assert [samples for _, samples in found] == [len(sound) for sound, _ in turns]
    for (features, _), turn in zip(found, turns, strict=True):
        ((alone, _),) = maker([turn])
        assert features.shape == alone.shape
        np.testing.assert_allclose(features, alone, rtol=1e-6, atol=1e-6)


def test_sound_of_another_rate_becomes_what_training_would_hear(world, tmp_path):
    folder = str(write(tmp_path / "dialogues", 16000))
    for name, features in (("plain", None), ("features", encoder)):
        made = DialogueSharding(folder, str(tmp_path / name), codes=tokenizer, features=features)
        made.run()
    shutil.copytree(world / "text", tmp_path / "text")
    (heard,), (given,) = (lines(module(tmp_path, n, n == "features"), 1) for n in ("plain", "features"))
    said = encoder()(heard.audio.audio, heard.audio.lengths)
    torch.testing.assert_close(given.heard.features, said.features, rtol=2e-3, atol=2e-3)


def test_loader_workers_give_the_same_lines(world):
    alone, workers = lines(module(world, "half"), 4), lines(module(world, "half", num_workers=1), 4)
    for one, other in zip(alone, workers, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.heard.features, other.heard.features)


def test_lhotse_opens_the_folder_and_dialogues_come_back(world):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        cuts = {cut.id: cut for cut in import_lhotse().CutSet.from_shar(in_dir=world / "half")}
        features = cuts["d.1"].load_user_features()
        gc.collect()
    assert features.dtype == np.float16
    assert features.shape == (-(-2071 // 320) + -(-1650 // 320), 8)
    for one, other in zip(read_shards(str(world / "half")), read_dialogues(world / "dialogues"), strict=True):
        assert (one.id, one.custom) == (other.id, other.custom)
        assert [turn.custom for turn in one.turns] == [turn.custom for turn in other.turns]


def test_a_folder_without_summary_and_index_is_read_too(world, tmp_path):
    shutil.copytree(world / "half", tmp_path / "half")
    for file in [*(tmp_path / "half").glob("*.index.json"), tmp_path / "half" / "cuts.summary.json"]:
        file.unlink()
    shutil.copytree(world / "text", tmp_path / "text")
    (one,), (other,) = lines(module(world, "half"), 1), lines(module(tmp_path, "half"), 1)
    assert torch.equal(one.heard.features, other.heard.features)


def test_a_written_folder_is_taken_as_it_is_and_another_encoder_is_refused(world):
    def again(seed):
        make = lambda: encoder(seed)  # noqa: E731
        return DialogueSharding(str(world / "dialogues"), str(world / "half"), 2, codes=tokenizer, features=make).run()

    assert again(3)["features_of"]["encoder"] == "FrameEncoder"
    with pytest.raises(ValueError, match="holds shards with other features"):
        again(4)


def fit(world, heard_by, freeze=("encoder",), train="half"):
    task = SpeechSFT(model(heard_by), freeze=list(freeze), warmup_steps=1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=1,
        num_sanity_val_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, module(world, train, val=str(world / "dialogues"), val_lines=1))
    return trainer


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # as a CachedEncoder always is
def test_training_takes_features_of_the_frozen_encoder_it_has(world):
    assert fit(world, encoder()).global_step == 2
    assert fit(world, CachedEncoder(encoder())).global_step == 2


def test_an_encoder_that_is_trained_or_another_one_is_refused(world):
    with pytest.raises(ValueError, match="the model's encoder is trained: freeze it"):
        fit(world, encoder(), freeze=())
    with pytest.raises(ValueError, match=r"have features of FrameEncoder .* but the model's encoder is FrameEncoder"):
        fit(world, encoder(4))


def test_a_fingerprint_is_of_the_weights_in_the_precision_that_they_have():
    of = FeaturesOf.of(encoder())
    assert of.fingerprints["bfloat16"] == encoder_fingerprint(encoder().bfloat16(), torch.bfloat16)
    assert len({*of.fingerprints.values(), encoder_fingerprint(encoder(4))}) == 4


def test_what_is_asked_for_and_not_there_is_refused_in_one_line(world):
    for train in ("plain", "dialogues"):
        with pytest.raises(ValueError, match=r"data\.features asks for"):
            module(world, train)
    with pytest.raises(ValueError, match=r"no audio of the users: set data\.features to true"):
        module(world, "silent", False)
    with pytest.raises(ValueError, match="take one of the two"):
        module(world, "half", augment=Volume())
    with pytest.raises(ValueError, match="feature_dtype must be one of"):
        DialogueSharding("a", "b", features=encoder, feature_dtype="int8")


def test_a_line_of_features_and_samples_is_refused(world):
    data = module(world, "half")
    source = data.train_corpus
    assert isinstance(source, ShardCorpus)
    row = source.lay_out(source.item(0), "S2M")
    sound = replace(row, clips=(Clip(row.clips[0].num_samples, lambda: np.zeros(row.clips[0].num_samples)),))
    with pytest.raises(ValueError, match="clips with features beside clips with samples"):
        collate_line([row, sound], 512, 8000)


def test_features_that_are_not_the_model_s_width_or_the_turns_are_refused(world, tmp_path):
    (line,) = lines(module(world, "half"), 1)
    wide = replace(line.heard, features=torch.zeros(*line.heard.features.shape[:2], 9))
    with pytest.raises(ValueError, match="features of width 9, but the feature_adapter takes 8"):
        model()(replace(line, heard=wide))
    shutil.copytree(world / "text", tmp_path / "text")
    shutil.copytree(world / "half", tmp_path / "half")
    index = tmp_path / "half" / "cuts.000000.index.json"
    text = index.read_text()
    size = -(-1700 // 320) * 8 * 2
    assert f'"sizes":[{size},' in text
    index.write_text(text.replace(f'"sizes":[{size},', f'"sizes":[{size - 16},'))
    with pytest.raises(BadData, match=r"FAC-D14.*features"):
        module(tmp_path, "half")


def test_the_command_line_writes_features_and_names_its_mistakes(world, tmp_path, capsys):
    node = "{_target_: fac_lightning.testing.FrameEncoder, sample_rate: 8000, hop_length: 320}"
    words = ["data", "shard", str(world / "dialogues"), "--out", str(tmp_path / "out"), "--features", node]
    assert main(words) == 0
    assert "features of" in capsys.readouterr().out
    assert (tmp_path / "out" / "user_features.000000.tar").is_file()
    assert main(["data", "check", str(tmp_path / "out")]) == 0
    assert main([*words[:-1], "recipes/tiny/text_llm_that_is_not_there.yaml"]) == 2
    assert main([*words[:4], str(tmp_path / "new"), "--features", "fac_lightning.testing.NoEncoder"]) == 2


def test_a_worker_writes_the_same_bytes(world, tmp_path):
    folder = str(world / "dialogues")
    DialogueSharding(folder, str(tmp_path / "out"), 2, codes=tokenizer, num_workers=1, features=encoder).run()
    for file in (world / "half").glob("*.tar"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
