"""What every encoder keeps: the contract, windows that lose nothing, half precision, freezing, the cache."""

import copy

import pytest
import torch
from torch import Tensor

from fac_lightning.encoders import CachedEncoder
from fac_lightning.encoders.windowed import WindowedEncoder
from fac_lightning.testing import ENCODER_KINDS, check_encoder, tiny_encoder

KINDS = sorted(ENCODER_KINDS)
WINDOWED = sorted(kind for kind in KINDS if isinstance(tiny_encoder(kind), WindowedEncoder))
PER_CLIP = {"w2v_bert", "wav2vec2"}  # levels are the whole clip's


def noise(rows: int, samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_contract(kind):
    encoder = tiny_encoder(kind)
    assert encoder.dim == 16
    check_encoder(encoder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_contract_over_several_windows(kind):
    encoder = tiny_encoder(kind)
    check_encoder(encoder, num_frames=int(2.3 * encoder.frame_rate))


@pytest.mark.parametrize("kind", WINDOWED)
def test_audio_beyond_the_limit_is_cut_into_windows_and_nothing_is_left_out(kind):
    """2.3 times the limit: as many frames as ever, every one from sound of its own window, all windows in one batch."""
    encoder = tiny_encoder(kind)
    window = encoder.max_frames * encoder.hop_length
    assert window == 16000
    batches = []
    encode = encoder.encode
    encoder.encode = lambda inputs, lengths: (batches.append(lengths.tolist()), encode(inputs, lengths))[1]
    audio = noise(2, 36800)
    changed = audio.clone()
    changed[0, -1600:] = noise(1, 1600, seed=1)
    with torch.no_grad():
        before, after = (encoder(clips, torch.tensor([36800, 9000])) for clips in (audio, changed))
    assert batches == [[16000, 16000, 4800, 9000]] * 2
    assert before.lengths.tolist() == [-(-36800 // encoder.hop_length), -(-9000 // encoder.hop_length)]
    difference = (before.features - after.features).abs().amax(2)[0]
    last = 2 * encoder.max_frames
    assert difference[last:].min() > 0, "every frame of the last window hears the last samples"
    if kind not in PER_CLIP:
        assert difference[:last].max() == 0, "and no other window does"
        alone = [encoder(audio[:1, start : start + window]).features for start in range(0, 36800, window)]
        torch.testing.assert_close(before.features[:1], torch.cat(alone, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_weights_give_half_precision_features(kind):
    encoder = tiny_encoder(kind)
    audio, lengths = noise(2, 20000), torch.tensor([20000, 7000])
    with torch.no_grad():
        exact = encoder(audio, lengths).features
        half = copy.deepcopy(encoder).bfloat16()(audio, lengths).features
        with torch.autocast("cpu", torch.bfloat16):
            mixed = encoder(audio, lengths).features
    assert half.dtype == torch.bfloat16
    for found in (half, mixed):
        assert not found[1, -(-7000 // encoder.hop_length) :].any()
        assert (found - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns_and_a_frozen_encoder_does_not(kind):
    encoder = tiny_encoder(kind).train()
    out = encoder(noise(2, 20000), torch.tensor([20000, 7000])).features
    out.square().sum().backward()
    silent = [name for name, weight in encoder.named_parameters() if weight.requires_grad and weight.grad is None]
    assert silent == []
    encoder.requires_grad_(False).eval()
    first, second = encoder(noise(1, 3000)), encoder(noise(1, 3000))
    assert not first.features.requires_grad
    assert torch.equal(first.features, second.features)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_remembered_by_the_cache(kind):
    encoder = CachedEncoder(tiny_encoder(kind).train())
    audio, lengths = noise(3, 20000), torch.tensor([20000, 0, 7000])
    first = encoder(audio, lengths)
    again = encoder(audio.flip(0), lengths.flip(0))
    assert (encoder.misses, encoder.hits) == (3, 3)
    assert torch.equal(first.features, again.features.flip(0))
    assert torch.equal(copy.deepcopy(encoder)(audio, lengths).features, first.features)


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no kind 'whsiper'; choose from fun_audio, .*whisper"):
        tiny_encoder("whsiper")
