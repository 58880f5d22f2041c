"""Channels are standardised by statistics that are learned once and then stand still."""

import pytest
import torch

from fac_lightning.adapters import ConcatGrouping, StandardizedGrouping
from fac_lightning.adapters.jitter import start_late
from fac_lightning.testing import check_adapter


def batch(seed, rows=4, frames=50, dim=3):
    torch.manual_seed(seed)
    scale, offset = torch.tensor([5.0, 0.1, 1.0]), torch.tensor([30.0, -2.0, 0.0])
    return torch.randn(rows, frames, dim) * scale + offset, torch.tensor([frames, frames, frames - 7, 0])


def test_it_holds_the_adapter_contract():
    check_adapter(StandardizedGrouping(in_dim=6, group_size=4, dim=8))


def test_statistics_are_those_of_the_frames_kept():
    adapter = StandardizedGrouping(3, 5, 8, warm_frames=10_000)
    kept = []
    for seed in range(3):
        features, lengths = batch(seed)
        adapter(features, lengths)
        kept += [row[:n] for row, n in zip(features, lengths.tolist(), strict=True)]
    frames = torch.cat(kept)
    assert adapter.count == len(frames)
    torch.testing.assert_close(adapter.mean, frames.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(adapter.square, frames.var(0, unbiased=False), rtol=1e-4, atol=1e-5)


def test_it_is_concat_grouping_on_standardised_frames():
    adapter, plain = StandardizedGrouping(3, 5, 8), ConcatGrouping(3, 5, 8)
    plain.load_state_dict({k: v for k, v in adapter.state_dict().items() if k.startswith("proj")})
    features, lengths = batch(0)
    found = adapter(features, lengths).features
    scaled = (features - adapter.mean) / adapter.square.sqrt()
    torch.testing.assert_close(found, plain(scaled, lengths).features)


def test_statistics_stand_still_after_warm_frames_and_in_eval():
    adapter = StandardizedGrouping(3, 5, 8, warm_frames=100)
    adapter.eval()
    adapter(*batch(0))
    assert adapter.count == 0
    adapter.train()
    adapter(*batch(0))
    learned = {k: v.clone() for k, v in adapter.state_dict().items()}
    adapter(*batch(1))
    assert all(torch.equal(v, learned[k]) for k, v in adapter.state_dict().items())


def test_no_speech_changes_nothing():
    adapter = StandardizedGrouping(3, 5, 8)
    adapter(torch.zeros(0, 0, 3), torch.zeros(0, dtype=torch.long))
    assert adapter.count == 0


def test_warm_frames_must_be_positive():
    with pytest.raises(ValueError, match="warm_frames must be at least 1, got 0"):
        StandardizedGrouping(3, 5, 8, warm_frames=0)


def test_dropout_and_jitter_touch_training_only():
    torch.manual_seed(0)
    plain = StandardizedGrouping(3, 5, 8)
    noisy = StandardizedGrouping(3, 5, 8, dropout=0.5, jitter=4)
    noisy.load_state_dict(plain.state_dict())
    features, lengths = batch(0)
    wanted = plain.eval()(features, lengths).features
    torch.testing.assert_close(noisy.eval()(features, lengths).features, wanted)
    assert not torch.allclose(noisy.train()(features, lengths).features, wanted)


def test_jitter_moves_clips_and_keeps_their_lengths():
    frames = torch.arange(10.0).reshape(1, 10, 1).repeat(2, 1, 1)
    late = start_late(frames, torch.tensor([10, 4]), 3)
    assert late[0, :, 0].tolist() == [3, 4, 5, 6, 7, 8, 9, 9, 9, 9]
    assert late[1, :4, 0].tolist() == [3, 3, 3, 3]


def test_jitter_must_stay_within_a_group():
    with pytest.raises(ValueError, match=r"between 0 and group_size - 1 \(4\), got 5"):
        StandardizedGrouping(3, 5, 8, jitter=5)
