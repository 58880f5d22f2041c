"""The contract of adapters and fusions, to run on a part of your own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fac_lightning.adapters import CodeAdapter, FeatureAdapter, Fusion
from fac_lightning.types import bos_code, eos_code, pad_code

__all__ = ["check_adapter", "check_fusion"]


def check_adapter(adapter: CodeAdapter | FeatureAdapter, atol: float = 1e-5) -> None:
    """Hold an adapter of codes or of features to its slot's contract.

    Args:
        adapter: Small enough for a CPU; it is copied and set to ``eval``.
        atol: Largest difference between results that must be equal.

    Raises:
        AssertionError: Says which promise is broken.
    """
    part = copy.deepcopy(adapter).eval()
    generator = torch.Generator().manual_seed(0)
    if isinstance(part, CodeAdapter):
        _check_codes(part, generator, atol)
    else:
        _check_features(part, generator, atol)


def check_fusion(fusion: Fusion, dim: int = 8, atol: float = 1e-5) -> None:
    """Hold a fusion to its contract: positions are independent, absent streams add nothing, nothing is never NaN.

    Args:
        fusion: It is copied and set to ``eval``.
        dim: Width that it takes.
        atol: Largest difference between results that must be equal.

    Raises:
        AssertionError: Says which promise is broken.
    """
    part = copy.deepcopy(fusion).eval()
    generator = torch.Generator().manual_seed(0)
    for streams in (1, 2, 3):
        present = torch.rand(streams, 6, generator=generator) < 0.6
        present[:, 0] = False
        values = torch.randn(streams, 6, dim, generator=generator).masked_fill(~present[..., None], 0)
        fused = part(values, present)
        assert fused.shape == (6, dim), f"{streams} streams of (6, {dim}) give {tuple(fused.shape)}"
        assert bool(fused.isfinite().all()), "a position with no stream must be finite"
        alone = torch.cat([part(values[:, i : i + 1], present[:, i : i + 1]) for i in range(6)])
        _same(fused, alone, atol, "a position must depend on its own streams alone")
        wider = torch.cat([values, torch.zeros(1, 6, dim)]), torch.cat([present, torch.zeros(1, 6, dtype=torch.bool)])
        _same(fused, part(*wider), atol, "a stream that is absent everywhere must change nothing")
        assert part(values[:, :0], present[:, :0]).shape == (0, dim), "an empty line must give an empty line"


def _check_codes(part: CodeAdapter, generator: torch.Generator, atol: float) -> None:
    size, shape = part.codebook_size, (part.group_size, part.num_codebooks)
    codes = torch.randint(0, size, (6, *shape), generator=generator)
    codes[0], codes[1], codes[2] = bos_code(size), eos_code(size), pad_code(size)
    codes[3, -1] = pad_code(size)
    out = part(codes)
    assert out.shape == (6, part.dim), f"6 groups of codes must give (6, {part.dim}), not {tuple(out.shape)}"
    assert bool(out.isfinite().all()), "embeddings must be finite, special codes included"
    _same(out, torch.cat([part(group) for group in codes.split(1)]), atol, "groups must not see each other")
    pads = torch.full((3, *shape), pad_code(size))
    _same(part(pads), part(pads[:1]).expand(3, -1), atol, "a group of pad codes must embed to a constant")
    assert part(codes[:0]).shape == (0, part.dim), "no groups must give no embeddings"
    for frame in range(part.group_size):
        for codebook in range(part.num_codebooks):
            changed = codes[4:5].clone()
            changed[0, frame, codebook] = (changed[0, frame, codebook] + 1) % size
            assert not torch.equal(part(changed), part(codes[4:5])), (
                f"the code at frame {frame}, codebook {codebook} must matter"
            )


def _check_features(part: FeatureAdapter, generator: torch.Generator, atol: float) -> None:
    k = part.group_size
    lengths = torch.tensor([2 * k + 1, k, 0, 3 * k])
    size, shape = part.codebook_size, (4, 3 * k, part.in_dim)
    if size is None:
        features = torch.randn(shape, generator=generator)
    else:  # frames are codes
        features = torch.randint(size, shape, generator=generator).float()
    features = features.masked_fill((torch.arange(3 * k) >= lengths[:, None])[..., None], 0)
    out = part(features, lengths)
    assert out.features.shape == (4, 3, part.dim), f"expected (4, 3, {part.dim}), got {tuple(out.features.shape)}"
    assert out.lengths.tolist() == [3, 1, 0, 3], f"{lengths.tolist()} frames give {out.lengths.tolist()} positions"
    for row, (frames, positions) in enumerate(zip(lengths.tolist(), out.lengths.tolist(), strict=True)):
        alone = part(features[row : row + 1, :frames], lengths[row : row + 1]).features[0]
        _same(out.features[row, :positions], alone, atol, "padding a row must change none of its positions")
        assert not out.features[row, positions:].any(), "positions after a row's length must be zero"
    changed = features.clone()
    changed[3, k : 2 * k] += 1
    if size is not None:
        changed %= size
    same = torch.tensor([True, False, True])
    _same(out.features[3, same], part(changed, lengths).features[3, same], atol, "a position must see its group alone")
    assert not torch.equal(out.features[3, 1], part(changed, lengths).features[3, 1]), "a position must see its group"
    if size is not None:
        _check_each_code(part, features[3:], size)
    assert part(features[:0], lengths[:0]).features.shape == (0, 3, part.dim), "no clips must give no positions"
    assert part(features[:0, :0], lengths[:0]).features.shape == (0, 0, part.dim), "no frames must give no positions"


def _check_each_code(part: FeatureAdapter, frames: Tensor, size: int) -> None:
    lengths = torch.tensor([frames.shape[1]])
    for frame in range(part.group_size):
        for codebook in range(part.in_dim):
            changed = frames.clone()
            changed[0, frame, codebook] = (changed[0, frame, codebook] + 1) % size
            assert not torch.equal(part(changed, lengths).features, part(frames, lengths).features), (
                f"the code at frame {frame}, codebook {codebook} must matter"
            )


def _same(left: Tensor, right: Tensor, atol: float, promise: str) -> None:
    gap = (left - right).abs().max().item() if left.numel() else 0.0
    assert left.shape == right.shape, f"{promise}: shapes {tuple(left.shape)} and {tuple(right.shape)}"
    assert gap <= atol, f"{promise}: differs by {gap:.2e}"
