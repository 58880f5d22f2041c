"""Waveforms that must be equal."""

from __future__ import annotations

from torch import Tensor

__all__ = ["same_samples"]


def same_samples(left: Tensor, right: Tensor, scale: Tensor, atol: float, broken: str) -> None:
    """Differ by at most ``atol`` of the loudest sample of ``scale``.

    Raises:
        AssertionError: Says which promise is ``broken``, and by how much.
    """
    gap = float((left - right).abs().max() / scale.abs().max().clamp(min=1e-6)) if left.numel() else 0.0
    assert gap <= atol, f"{broken} by {gap:.1e} of the loudest"
