"""The contract of adapters and fusions, to run on a part of your own."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor

from fac_lightning.adapters import CodeAdapter, FeatureAdapter, Fusion
from fac_lightning.types import SpeechFeatures, bos_code, eos_code, pad_code

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
    if part.composed_places:
        _same(part.compose()(codes), out, atol, "composed tables must give what the adapter gives")


def _check_features(part: FeatureAdapter, generator: torch.Generator, atol: float) -> None:
    k = part.group_size
    most = 8 if part.variable_rate else 3  # enough positions that some fire
    lengths = torch.tensor([(most - 1) * k + 1, k, 0, most * k])
    size, shape = part.codebook_size, (4, most * k, part.in_dim)
    if size is None:
        features = torch.randn(shape, generator=generator)
    else:  # frames are codes
        features = torch.randint(size, shape, generator=generator).float()
    features = features.masked_fill((torch.arange(most * k) >= lengths[:, None])[..., None], 0)
    out = part(features, lengths)
    want = (4, most, part.dim)
    assert out.features.shape == want, f"expected {want}, got {tuple(out.features.shape)}"
    assert out.lengths.tolist() == [most, 1, 0, most], (
        f"{lengths.tolist()} frames give {out.lengths.tolist()} positions"
    )
    _check_present(part, out)
    for row, (frames, positions) in enumerate(zip(lengths.tolist(), out.lengths.tolist(), strict=True)):
        alone = part(features[row : row + 1, :frames], lengths[row : row + 1])
        _same_positions(_some(out, row, slice(positions)), _some(alone, 0), atol, "padding a row must change nothing")
        assert not out.features[row, positions:].any(), "positions after a row's length must be zero"
    _check_context(part, features, lengths, out, atol)
    if size is not None:
        _check_each_code(part, features[3:], size)
    _check_stream(part, torch.cat([features[3:], features[3:].flip(1)]), atol)
    assert part(features[:0], lengths[:0]).features.shape == (0, *want[1:]), "no clips must give no positions"
    assert part(features[:0, :0], lengths[:0]).features.shape == (0, 0, part.dim), "no frames must give no positions"


def _check_present(part: FeatureAdapter, out: SpeechFeatures) -> None:
    if not part.variable_rate:
        assert out.present is None, "present is for adapters of a variable_rate; this one fills every position"
        return
    assert out.present is not None, "an adapter of a variable_rate must say which positions are present"
    assert out.present.shape == out.features.shape[:2], "present must be (B, positions)"
    assert out.present.dtype == torch.bool, "present must be bool"
    inside = torch.arange(out.present.shape[1]) < out.lengths[:, None]
    assert not (out.present & ~inside).any(), "nothing is present after a row's length"
    assert not out.features[~out.present].any(), "positions at which nothing is present must be zero"


def _check_context(
    part: FeatureAdapter, features: Tensor, lengths: Tensor, before: SpeechFeatures, atol: float
) -> None:
    """Change the frames of the second group, and look at which positions change."""
    k = part.group_size
    changed = features.clone()
    changed[3, k : 2 * k] += 1
    if part.codebook_size is not None:
        changed %= part.codebook_size
    after = part(changed, lengths)
    assert part.context in ("group", "past"), f"context must be 'group' or 'past', got {part.context!r}"
    _same_positions(_some(before, 3, slice(1)), _some(after, 3, slice(1)), atol, "a position must see no later group")
    if part.context == "group":
        rest = slice(2, None)
        promise = "a position must see its group alone (context 'group')"
        _same_positions(_some(before, 3, rest), _some(after, 3, rest), atol, promise)
    seen = slice(1, None) if part.variable_rate else slice(1, 2)
    assert not torch.equal(before.features[3, seen], after.features[3, seen]), "a position must see its group"


def _check_stream(part: FeatureAdapter, frames: Tensor, atol: float) -> None:
    """Frames ``(2, T, in_dim)`` bit by bit."""
    k, longest = part.group_size, frames.shape[1]
    for length in sorted({1, 2 * k, longest - 1}):
        whole = part(frames[:, :length], torch.full((2,), length))
        for sizes in ((1,), (k + 1,), (3, 1, 2), (length,)):
            streamed = _stream(part, frames[:, :length], sizes)
            promise = f"a stream in pieces of {', '.join(map(str, sizes))} must give what {length} frames give at once"
            _same_positions(streamed, whole, atol, promise)


def _stream(part: FeatureAdapter, frames: Tensor, sizes: tuple[int, ...]) -> SpeechFeatures:
    state, other = part.new_state(2), part.new_state(2)
    pieces: list[SpeechFeatures] = []
    at, given = 0, 0
    for size in itertools.cycle(sizes):
        piece = frames[:, at : at + size]
        part.step(piece.flip(0), other)  # must not be felt: state lives in what new_state gave
        pieces.append(part.step(piece, state))
        at, given = at + piece.shape[1], given + pieces[-1].features.shape[1]
        due = (at - 1) // part.group_size
        assert given >= due, f"after {at} frames {due} positions are due, a stream gave {given}"
        if at == frames.shape[1]:
            break
    pieces.append(part.finish(state))
    for out in pieces:
        count = out.features.shape[1]
        assert out.lengths.tolist() == [count] * 2, f"a step gave {count} positions and the lengths {out.lengths}"
        _check_present(part, out)
    there = [piece.present for piece in pieces if piece.present is not None]
    joined = torch.cat([piece.features for piece in pieces], dim=1)
    lengths = torch.full((2,), joined.shape[1])
    return SpeechFeatures(joined, lengths, torch.cat(there, dim=1) if there else None)


def _check_each_code(part: FeatureAdapter, frames: Tensor, size: int) -> None:
    lengths = torch.tensor([frames.shape[1]])
    for frame in range(part.group_size):
        for codebook in range(part.in_dim):
            changed = frames.clone()
            changed[0, frame, codebook] = (changed[0, frame, codebook] + 1) % size
            assert not torch.equal(part(changed, lengths).features, part(frames, lengths).features), (
                f"the code at frame {frame}, codebook {codebook} must matter"
            )


def _some(out: SpeechFeatures, row: int, positions: slice = slice(None)) -> SpeechFeatures:
    """Some positions of a row."""
    present = None if out.present is None else out.present[row : row + 1, positions]
    return SpeechFeatures(out.features[row : row + 1, positions], out.lengths[row : row + 1], present)


def _same_positions(left: SpeechFeatures, right: SpeechFeatures, atol: float, promise: str) -> None:
    _same(left.features, right.features, atol, promise)
    if left.present is not None and right.present is not None:
        assert torch.equal(left.present, right.present), f"{promise}: other positions are present"


def _same(left: Tensor, right: Tensor, atol: float, promise: str) -> None:
    assert left.shape == right.shape, f"{promise}: shapes {tuple(left.shape)} and {tuple(right.shape)}"
    gap = (left - right).abs().max().item() if left.numel() else 0.0
    assert gap <= atol, f"{promise}: differs by {gap:.2e}"
