"""Tokenizers keep their contract."""

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fac_lightning.testing import check_tokenizer
from fac_lightning.tokenizers import (
    EncodecTokenizer,
    FiniteScalarQuantizer,
    FSQTokenizer,
    LogMel,
    griffin_lim,
)
from fac_lightning.tokenizers.mel import mel_filters
from fac_lightning.types import SpeechFeatures

SMALL = {"encoder_dim": 16, "encoder_blocks": 1, "dim": 24, "num_blocks": 1, "mel_dim": 16, "mel_blocks": 1}
TINY_ENCODEC = {
    "upsampling_ratios": [8, 5, 4, 2],
    "hidden_size": 16,
    "num_filters": 4,
    "num_lstm_layers": 1,
    "codebook_size": 32,
    "target_bandwidths": [1.5],
}


class Envelope(nn.Module):
    """Loudness of every 20 ms as a stand-in for a speech encoder."""

    sample_rate, hop_length, dim = 16000, 320, 1

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        audio = nn.functional.pad(audio, (0, -audio.shape[1] % self.hop_length))
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1])
        audio = audio * (torch.arange(audio.shape[1]) < lengths[:, None])
        return SpeechFeatures(audio.unflatten(1, (-1, self.hop_length)).std(-1, keepdim=True), -(-lengths // 320))


def small_fsq(**changes: object) -> FSQTokenizer:
    return FSQTokenizer(**{"weights": None, "griffin_lim_steps": 4, **SMALL, **changes})


TOKENIZERS = {
    "fsq on log-mel": small_fsq,
    "fsq on features": lambda: small_fsq(features=Envelope()),
    "encodec": lambda: EncodecTokenizer(pretrained=False, num_codebooks=3, config=TINY_ENCODEC),
}


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizer_keeps_the_contract(make):
    check_tokenizer(make())


def test_every_code_survives_the_round_trip():
    quantizer = FiniteScalarQuantizer(8, 3)
    codes = torch.arange(6561)
    points = quantizer.from_codes(codes)
    assert torch.equal(quantizer.to_codes(points), codes)
    assert points.unique(dim=0).shape == (6561, 8)
    assert torch.equal(quantizer(torch.atanh(points * 0.99)), points)
    assert quantizer.from_codes(torch.tensor(1))[0] == 0  # 1 = lowest digit up by one level from -1
    assert points[0].tolist() == [-1.0] * 8


def test_quantiser_passes_gradients_straight_through():
    latents = torch.randn(5, 8, requires_grad=True)
    FiniteScalarQuantizer()(latents).sum().backward()
    torch.testing.assert_close(latents.grad, 1 - torch.tanh(latents.detach()).square())


@pytest.mark.parametrize("num_levels", [2, 4, 1])
def test_quantiser_refuses_levels_without_zero(num_levels):
    with pytest.raises(ValueError, match="odd"):
        FiniteScalarQuantizer(8, num_levels)


@pytest.mark.parametrize("tokenizer", [small_fsq(), TOKENIZERS["encodec"]()], ids=["fsq", "encodec"])
def test_special_codes_are_refused(tokenizer):
    codes = torch.full((1, 2, tokenizer.num_codebooks), tokenizer.codebook_size)
    with pytest.raises(ValueError, match="special codes"):
        tokenizer.decode(codes)


def test_mel_filters_are_whispers():
    whisper = pytest.importorskip("transformers").WhisperFeatureExtractor()
    torch.testing.assert_close(mel_filters(80, 400, 16000), torch.from_numpy(whisper.mel_filters).T.float())


def test_log_mel_frames_see_only_their_surroundings():
    log_mel, audio = LogMel(), torch.randn(1, 3200) * 0.1
    alone, loud_later = log_mel(audio), log_mel(torch.cat([audio, torch.ones(1, 3200)], dim=1))
    assert alone.shape == (1, 20, 80)
    torch.testing.assert_close(loud_later[:, :18], alone[:, :18])
    assert log_mel(torch.zeros(1, 1)).tolist() == torch.full((1, 1, 80), log_mel.floor).tolist()


def test_griffin_lim_gives_back_the_magnitudes():
    log_mel = LogMel()
    time = torch.arange(8000) / 16000
    audio = (0.3 * torch.sin(2 * torch.pi * (200 * time + 400 * time**2)))[None]
    mel = log_mel(audio)
    rebuilt = griffin_lim(log_mel.magnitudes(mel), torch.tensor([8000]), log_mel.window, 160, num_steps=32)
    assert rebuilt.shape == audio.shape
    assert (log_mel(rebuilt) - mel)[:, 2:-2].abs().mean() < 0.05  # 0.2 in log10 power
    few = griffin_lim(log_mel.magnitudes(mel), torch.tensor([8000]), log_mel.window, 160, num_steps=1)
    assert (log_mel(few) - mel).abs().mean() > (log_mel(rebuilt) - mel).abs().mean()


@pytest.mark.parametrize("seed", [0, 1])
def test_random_encodec_is_the_same_in_every_process(seed):
    first, second = (EncodecTokenizer(pretrained=False, num_codebooks=2, config=TINY_ENCODEC, seed=seed) for _ in "ab")
    audio = torch.randn(1, 3200)
    assert torch.equal(first.encode(audio).codes, second.encode(audio).codes)
    assert first.encode(audio).codes.unique().numel() > 3
    other = EncodecTokenizer(pretrained=False, num_codebooks=2, config=TINY_ENCODEC, seed=seed + 7)
    assert not torch.equal(first.encode(audio).codes, other.encode(audio).codes)


def test_encodec_counts_codebooks_and_bandwidth():
    tokenizer = EncodecTokenizer(pretrained=False, num_codebooks=4, config=TINY_ENCODEC)
    assert (tokenizer.frame_rate, tokenizer.bandwidth) == (75.0, 4 * 5 * 75 / 1000)
    with pytest.raises(ValueError, match="between 1 and 4"):
        EncodecTokenizer(pretrained=False, num_codebooks=5, config=TINY_ENCODEC)
    with pytest.raises(ValueError, match="pretrained"):
        EncodecTokenizer(config=TINY_ENCODEC)
    with pytest.raises(ValueError, match="mono"):
        EncodecTokenizer(pretrained=False, config={**TINY_ENCODEC, "audio_channels": 2})


def test_weights_travel_through_a_file(tmp_path):
    trained = small_fsq(features=Envelope())
    path = tmp_path / "codec.safetensors"
    save_file({name: value.half() for name, value in trained.codec_state().items()}, path)
    loaded = FSQTokenizer(Envelope(), weights=str(path), griffin_lim_steps=4, **SMALL)
    for name, value in loaded.codec_state().items():
        torch.testing.assert_close(value, trained.codec_state()[name].half().float())
    decoder = FSQTokenizer(weights=str(path), griffin_lim_steps=4, **SMALL)
    codes = torch.randint(6561, (1, 3, 1))
    torch.testing.assert_close(decoder.decode(codes).audio, loaded.decode(codes).audio)
    with pytest.raises(ValueError, match="no feature extractor"):
        decoder.encode(torch.zeros(1, 640))
    with pytest.raises(ValueError, match="do not fit"):
        FSQTokenizer(Envelope(), weights=str(path), **{**SMALL, "dim": 32})
    with pytest.raises(ValueError, match="no such file"):
        FSQTokenizer(weights="no_such_voice")


def test_encoding_learns_nothing_in_training_mode():
    tokenizer, audio = small_fsq().eval(), torch.randn(2, 6400) * 0.1
    expected, state = tokenizer.encode(audio).codes, tokenizer.codec_state()
    before = {name: value.clone() for name, value in state.items()}
    assert torch.equal(tokenizer.train().encode(audio).codes, expected)
    assert all(torch.equal(before[name], value) for name, value in tokenizer.codec_state().items())


def test_half_precision_around_it_changes_no_code():
    tokenizer, audio = small_fsq(), torch.randn(1, 12800) * 0.1
    expected = tokenizer.encode(audio).codes
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(audio).codes, expected)
        assert tokenizer.decode(expected).audio.dtype == torch.float32


def test_features_of_another_rate_are_refused():
    class Slow(Envelope):
        hop_length = 500

    with pytest.raises(ValueError, match="divides 640"):
        small_fsq(features=Slow())


def test_feature_extractor_is_frozen_and_left_out_of_weights():
    class Learned(Envelope):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    tokenizer = small_fsq(features=Learned())
    assert not tokenizer.features.scale.requires_grad
    assert "features.scale" in tokenizer.state_dict()
    assert not any(name.startswith("features.") for name in tokenizer.codec_state())


def test_shipped_weights_decode_without_an_extractor():
    from fac_lightning.tokenizers.fsq import SHIPPED

    files = sorted(SHIPPED.glob("*.safetensors"))
    assert [file.stem for file in files] == ["fsq_heart"]
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    tokenizer = FSQTokenizer()
    waves = tokenizer.decode(torch.randint(6561, (2, 10, 1)), torch.tensor([10, 4]))
    assert waves.audio.shape == (2, 6400)
    assert waves.audio[0].std() > 1e-3
    with pytest.raises(ValueError, match="WhisperLayers"):
        tokenizer.encode(torch.zeros(1, 640))
