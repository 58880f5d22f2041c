"""Training a codec: the corpus, the crops, and a loss that falls."""

import json

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fac_lightning.data.codec_data import CodecDataModule, CodecDataset
from fac_lightning.data.sentences import dictionary_words, make_sentences, spoken_number
from fac_lightning.synthesizers import Synthesizer, ToneSynthesizer
from fac_lightning.tasks import CodecTraining
from fac_lightning.tasks.codec_training import masked_l1
from fac_lightning.tokenizers import FSQTokenizer
from fac_lightning.types import CodecBatch, SpeechFeatures

SMALL = {"encoder_dim": 16, "encoder_blocks": 1, "dim": 32, "num_blocks": 1, "mel_dim": 32, "mel_blocks": 1}


class Bands(nn.Module):
    """Ten spectral bands every 20 ms, from a frozen weight: a stand-in for a speech encoder."""

    sample_rate, hop_length, dim = 16000, 320, 10

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.calls = 0

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        self.calls += 1
        audio = nn.functional.pad(audio, (0, -audio.shape[1] % 320)).unflatten(1, (-1, 320))
        bands = torch.fft.rfft(audio).abs()[..., 1:].unflatten(2, (10, 16)).mean(-1)
        frames = torch.full((len(audio),), audio.shape[1]) if lengths is None else -(-lengths // 320)
        return SpeechFeatures(torch.log1p(bands) * self.scale, frames)


class Listener(nn.Module):
    """Two frozen layers that hear a mel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(80, 12, 3, stride=2, padding=1)
        self.linear = nn.Linear(12, 12)

    def forward_mel(self, mel: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        first = self.conv(mel).transpose(1, 2).tanh()
        return [first, self.linear(first).tanh()]


def tone_data(folder, **changes) -> CodecDataModule:
    settings = {"num_sentences": 12, "num_validation": 2, "batch_size": 4, "crop_seconds": 0.4}
    data = CodecDataModule(str(folder), ToneSynthesizer(letter_seconds=0.02), **{**settings, **changes})
    data.prepare_data()
    data.setup("fit")
    return data


def test_sentences_are_many_and_repeatable():
    sentences = make_sentences(500, seed=3)
    assert len(set(sentences)) == 500
    assert sentences[:100] == make_sentences(100, seed=3)
    assert sentences[:100] != make_sentences(100, seed=4)
    assert not any("{" in sentence for sentence in sentences)
    assert len({word for sentence in sentences for word in sentence.lower().split()}) > 700
    assert any("zyzzyva" in sentence for sentence in make_sentences(200, extra_words=["zyzzyva"]))


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "zero"), (13, "thirteen"), (40, "forty"), (99, "ninety nine"), (300, "three hundred"), (
        71_016, "seventy one thousand sixteen"
    )],
)  # fmt: skip
def test_numbers_are_written_out(value, words):
    assert spoken_number(value) == words


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="0 to 999999"):
        spoken_number(1_000_000)


def test_dictionary_words_are_plain(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"zebra": 1, "don't": 1, "Paris": 1, "abacus": 1, "ok": 1}))
    assert dictionary_words(str(path)) == ["abacus", "zebra"]
    assert CodecDataModule(str(tmp_path), ToneSynthesizer(), word_list=str(path)).corpus.sentences
    with pytest.raises(ValueError, match="cannot be read"):
        dictionary_words("no_such_package:words.json")
    path.write_text("{}")
    with pytest.raises(ValueError, match="no word"):
        dictionary_words(str(path))


def test_corpus_goes_on_where_it_stopped_and_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr("fac_lightning.data.codec_data.SHARD", 5)

    class Failing(ToneSynthesizer):
        left = 7

        def __call__(self, text: str, seed: int = 0) -> np.ndarray:
            if self.left == 0:
                raise RuntimeError("power cut")
            self.left -= 1
            return super().__call__(text, seed)

    settings = {"num_sentences": 12, "num_validation": 2}
    stopped = CodecDataModule(str(tmp_path / "a"), Failing(letter_seconds=0.02), **settings)
    with pytest.raises(RuntimeError):
        stopped.prepare_data()
    assert [file.name for file in sorted((tmp_path / "a").glob("*.npz"))] == ["shard-00000.npz"]
    kept = (tmp_path / "a" / "shard-00000.npz").stat().st_mtime_ns
    resumed, whole = tone_data(tmp_path / "a"), tone_data(tmp_path / "b")
    assert (tmp_path / "a" / "shard-00000.npz").stat().st_mtime_ns == kept
    for shard in range(3):
        for one, other in zip(resumed.corpus.audio(shard), whole.corpus.audio(shard), strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"num_sentences": 13}])
def test_folder_of_another_corpus_is_refused(tmp_path, changes):
    tone_data(tmp_path)
    with pytest.raises(ValueError, match="another corpus"):
        tone_data(tmp_path, **changes)


def test_other_voices_are_other_corpora(tmp_path):
    tone_data(tmp_path)
    other: Synthesizer = ToneSynthesizer(letter_seconds=0.03)
    with pytest.raises(ValueError, match="another corpus"):
        CodecDataModule(str(tmp_path), other, num_sentences=12, num_validation=2).prepare_data()


def test_features_are_computed_once_and_cut_where_the_audio_is_cut(tmp_path):
    extractor = Bands()
    data = tone_data(tmp_path, features=extractor)
    calls = extractor.calls
    assert calls == 12
    batch = next(iter(data.train_dataloader()))
    assert batch.audio.shape == (4, 6400)
    assert batch.features.shape == (4, 20, 10)
    expected = extractor(batch.audio).features.detach()
    torch.testing.assert_close(batch.features, expected, atol=2e-2, rtol=1e-2)  # kept at half precision
    again = tone_data(tmp_path, features=Bands())
    assert again.extractor.calls == 0
    changed = tone_data(tmp_path, features=Bands(scale=2.0))
    assert changed.extractor.calls == 12


def test_crops_of_short_sentences_are_padded():
    short = np.full(1000, 3000, dtype=np.int16)
    dataset = CodecDataset([short], None, crop=1920, hop_length=640, feature_hop=640)
    batch = dataset.collate([dataset[0]])
    assert batch.lengths.tolist() == [1000]
    assert batch.audio[0, 999] > 0
    assert not batch.audio[0, 1000:].any()
    assert batch.features is None


def test_crops_reach_both_ends():
    audio = np.arange(6400, dtype=np.int16)
    dataset = CodecDataset([audio], None, crop=1280, hop_length=640, feature_hop=640)
    starts = {round(float(dataset[0][0][0]) * 32768) for _ in range(200)}
    assert starts == {640 * frame for frame in range(9)}


def test_masked_l1_counts_kept_frames_only():
    prediction, target = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 3.0], [2.0, 2.0], [100.0, 100.0]]])
    assert masked_l1(prediction, target, torch.tensor([[[1.0], [1.0], [0.0]]])) == 2.0
    assert masked_l1(prediction, target, torch.zeros(1, 3, 1)) == 0.0


@pytest.mark.parametrize("features", [None, Bands()], ids=["log-mel", "features"])
def test_loss_falls(tmp_path, features):
    data = tone_data(tmp_path, features=features)
    task = CodecTraining(FSQTokenizer(features, weights=None, **SMALL), Listener(), lr=5e-3, listener_rows=2)
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        before = task.losses(batch)
    assert set(before) == {"mel", "delta", "semantic", "listener", "loss"}
    trainer = lightning.Trainer(
        max_steps=30, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    with torch.no_grad():
        after = task.losses(batch)
    assert after["loss"] < 0.7 * before["loss"]
    assert "val/mel" in trainer.callback_metrics


def test_decoder_training_changes_no_code(tmp_path):
    model = FSQTokenizer(weights=None, **SMALL)
    task = CodecTraining(model, decoder_only=True, lr=1e-2)
    assert task.foretell is None
    task.on_train_epoch_start()
    batch = CodecBatch(torch.randn(2, 3200) * 0.1, torch.tensor([3200, 2000]))
    codes = model.eval().encode(batch.audio, batch.lengths).codes
    state = {name: value.clone() for name, value in model.state_dict().items()}
    task.train()
    task.on_train_epoch_start()
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    task.losses(batch)["loss"].backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert changed
    assert all(name.startswith(("decoder", "upsample", "mel_")) for name in changed)
    assert torch.equal(model.eval().encode(batch.audio, batch.lengths).codes, codes)


def test_listener_and_extractor_stay_frozen():
    model = FSQTokenizer(Bands(), weights=None, **SMALL)
    listener = Listener()
    task = CodecTraining(model, listener)
    task.train()
    task.on_train_epoch_start()
    assert not listener.training
    assert not model.features.training
    batch = CodecBatch(torch.randn(2, 3200) * 0.1, torch.tensor([3200, 3200]))
    task.losses(batch)["loss"].backward()
    assert all(p.grad is None for part in (listener, model.features) for p in part.parameters())
    assert model.encoder_in.weight.grad.abs().sum() > 0
