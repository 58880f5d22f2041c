"""The contract of speech encoders, to run on one of your own."""

from __future__ import annotations

import copy

import torch

from fac_lightning.encoders import SpeechEncoder

__all__ = ["check_encoder"]


def check_encoder(encoder: SpeechEncoder, num_frames: int = 7, atol: float = 1e-4) -> None:
    """Hold a speech encoder to its slot's contract, with noise of several lengths.

    Args:
        encoder: Any encoder; it is copied and set to ``eval``.
        num_frames: Frames of the longest test row, at least 3.
        atol: Largest difference of features that must be equal, relative to the largest feature.

    Raises:
        AssertionError: Says which promise is broken.
    """
    part = copy.deepcopy(encoder).eval()
    for name in ("sample_rate", "hop_length", "dim"):
        value = getattr(part, name, None)
        positive = isinstance(value, int) and value > 0
        assert positive, f"{name} must be a positive int, got {value!r}"
    hop = part.hop_length
    assert part.frame_rate * hop == part.sample_rate, "frame_rate must be sample_rate / hop_length"

    generator = torch.Generator().manual_seed(0)
    counts = [num_frames * hop, (num_frames - 1) * hop + 1, 2 * hop - 1, hop, 1, 0]
    samples = torch.tensor(counts)
    audio = torch.randn(len(counts), max(counts), generator=generator) * 0.1
    audio *= torch.arange(max(counts)) < samples[:, None]
    with torch.no_grad():
        together = part(audio, samples)
        expected = [-(-count // hop) for count in counts]
        features, frames = together.features, together.lengths
        assert frames.dtype == torch.int64, f"lengths must be int64, got {frames.dtype}"
        assert frames.tolist() == expected, (
            f"{counts} samples must give ceil(n / {hop}) = {expected} frames, got {frames}"
        )
        shape = (len(counts), num_frames, part.dim)
        assert features.shape == shape, f"features must be (B, T, dim) = {shape}, got {tuple(features.shape)}"
        assert features.is_floating_point(), f"features must be floats, got {features.dtype}"
        assert features.isfinite().all(), "features must be finite, also beside a row without samples"
        beyond = torch.arange(num_frames) >= frames[:, None]
        assert not features[beyond].any(), "features after a row's length must be zero"

        tolerance = atol * float(features.abs().max())
        if part.codebook_size is not None:  # frames are codes
            tolerance = 0.0
            low, high = float(features.min()), float(features.max())
            whole = torch.equal(features, features.round()) and 0 <= low <= high < part.codebook_size
            assert whole, f"codes must be whole numbers in [0, {part.codebook_size}), got {low:g} to {high:g}"
        for row, (count, length) in enumerate(zip(counts, expected, strict=True)):
            if count == 0:
                continue
            alone = part(audio[row : row + 1, :count])
            assert alone.lengths.tolist() == [length], "without lengths every row is as long as the batch"
            change = float((alone.features[0] - features[row, :length]).abs().max())
            assert change <= tolerance, f"padding changed frames of row {row} ({count} samples) by {change:.2g}"
        noisy = torch.where(torch.arange(max(counts)) < samples[:, None], audio, 0.5)
        change = float((part(noisy, samples).features - features).abs().max())
        assert change <= tolerance, f"what stands after a row's length changed features by {change:.2g}"

        silence = part(torch.zeros(1, 2 * hop))
        assert silence.features.isfinite().all(), "features of digital silence must be finite"
        nothing = part(audio[:2], torch.tensor([0, 0]))
        assert nothing.lengths.tolist() == [0, 0], "rows without samples must have no frames"
        assert not nothing.features.any(), "rows without samples must be zero"
