"""The contract of distortions, to run on one of your own."""

from __future__ import annotations

import numpy as np

from fac_lightning.data.distortions import Distortion, sample_rng
from fac_lightning.data.distortions.base import PEAK

__all__ = ["check_distortion"]


def check_distortion(distortion: Distortion, sample_rate: int = 16000) -> None:
    """Hold a distortion to its contract, with noise bursts of several lengths and levels.

    Args:
        distortion: To be checked.
        sample_rate: Hz of the clips.

    Raises:
        AssertionError: Says which promise is broken.
    """
    for i, samples in enumerate((sample_rate, sample_rate // 3 + 1, 7, 1, 0)):
        burst = np.random.default_rng(i).uniform(-1, 1, samples).astype(np.float32)
        burst[: samples // 4] = 0
        for level in (0.99, 0.05, 0.0):
            clip = burst * np.float32(level)
            given = clip.copy()
            changed = distortion(clip, sample_rate, sample_rng(3, "clip"))
            assert np.array_equal(given, clip), "the caller's samples were changed"
            assert not np.shares_memory(changed, clip), "the caller's samples were handed back"
            assert changed.dtype == np.float32, f"samples must be float32, got {changed.dtype}"
            assert changed.ndim == 1, f"a clip must be (S,), got {changed.shape}"
            if distortion.keeps_length:
                assert len(changed) == samples, f"{samples} samples must stay as many, got {len(changed)}"
            assert np.isfinite(changed).all(), "samples must be finite"
            assert np.abs(changed).max(initial=0.0) <= PEAK + 1e-6, "a clip may not be louder than a sample can be"
            settled, same = _settled(distortion), _settled(distortion)
            told, shown = settled.num_samples(samples), len(settled(clip, sample_rate, sample_rng(3, "clip")))
            assert told == shown, f"{told} samples were announced, {shown} came out"
            assert told == same.num_samples(samples), "the same generator must settle the same length"
            again = distortion(clip, sample_rate, sample_rng(3, "clip"))
            assert np.array_equal(changed, again), "the same generator must give the same samples"


def _settled(distortion: Distortion) -> Distortion:
    try:
        return distortion.settle(sample_rng(5, "length"))
    except NotImplementedError as error:
        raise AssertionError(str(error)) from error
