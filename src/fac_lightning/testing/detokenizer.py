"""The contract of detokenizers, to run on one of your own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fac_lightning.detokenizers import SpeechDetokenizer
from fac_lightning.testing.samples import same_samples

__all__ = ["check_detokenizer"]


def check_detokenizer(
    detokenizer: SpeechDetokenizer, num_frames: int = 37, exact: bool = False, atol: float = 2e-3
) -> None:
    """Hold a detokenizer to its slot's contract, with random codes of several lengths.

    Args:
        detokenizer: Runs in ``eval`` mode and is left as it was.
        num_frames: Frames of the longest test row, at least 5; more than the part's own chunks, look-ahead included.
        exact: Streamed samples must be those of ``decode``, not only as many.
        atol: Largest difference of samples that must be equal, relative to the loudest.

    Raises:
        AssertionError: Says which promise is broken.
    """
    modes = [(module, module.training) for module in detokenizer.modules()]
    detokenizer.eval()
    try:
        for name in ("sample_rate", "hop_length", "num_codebooks", "codebook_size"):
            value = getattr(detokenizer, name)
            assert isinstance(value, int), f"{name} must be a positive int, got {value!r}"
            assert value > 0, f"{name} must be a positive int, got {value!r}"
        hop = detokenizer.hop_length
        assert detokenizer.frame_rate * hop == detokenizer.sample_rate, "frame_rate must be sample_rate / hop_length"
        generator = torch.Generator().manual_seed(0)
        frames = torch.tensor([num_frames, num_frames - 2, 1, 0])
        shape = (len(frames), num_frames, detokenizer.num_codebooks)
        codes = torch.randint(detokenizer.codebook_size, shape, generator=generator)
        codes *= (torch.arange(num_frames) < frames[:, None])[..., None]
        audio = _check_decoding(detokenizer, codes, frames, atol)
        _check_streaming(detokenizer, codes[0], audio[0], exact, atol)
    finally:
        for module, training in modes:
            module.training = training


def _check_decoding(part: SpeechDetokenizer, codes: Tensor, frames: Tensor, atol: float) -> Tensor:
    hop, before = part.hop_length, codes.clone()
    decoded = part.decode(codes, frames)
    audio = decoded.audio
    assert torch.equal(codes, before), "decode must leave the codes as they are"
    assert decoded.sample_rate == part.sample_rate, "decode must give sample_rate"
    assert decoded.lengths.tolist() == (frames * hop).tolist(), (
        f"{frames.tolist()} frames must give T * hop_length = {(frames * hop).tolist()} samples, "
        f"got {decoded.lengths.tolist()}"
    )
    shape = (codes.shape[0], codes.shape[1] * hop)
    assert audio.shape == shape, f"audio must be (B, T * hop_length) = {shape}, got {tuple(audio.shape)}"
    assert audio.is_floating_point(), f"audio must be floating point, got {audio.dtype}"
    assert audio.isfinite().all(), "audio must be finite"
    assert not audio.requires_grad, "decode must run without gradients"
    assert not audio[torch.arange(shape[1]) >= decoded.lengths[:, None]].any(), (
        "samples after a row's length must be zero"
    )
    for row, length in enumerate(frames.tolist()):
        alone = part.decode(codes[row : row + 1, :length])
        assert alone.lengths.tolist() == [length * hop], "without lengths every row is as long as the batch"
        promise = f"padding changed the samples of row {row}"
        same_samples(alone.audio[0], audio[row, : length * hop], audio, atol, promise)
    other = torch.where((torch.arange(codes.shape[1]) < frames[:, None])[..., None], codes, part.codebook_size - 1)
    promise = "what stands after a row's length changed samples"
    same_samples(part.decode(other, frames).audio, audio, audio, atol, promise)
    return audio


def _check_streaming(part: SpeechDetokenizer, codes: Tensor, audio: Tensor, exact: bool, atol: float) -> None:
    """``audio`` ``(S,)`` is what ``decode`` gives for ``codes`` ``(T, Q)``."""
    total = len(codes)
    for sizes in ([1] * total, [5] * (total // 5) + [total % 5], [total], [0, total - 2, 0, 2]):
        for closing in (False, True):  # the last codes come with `final`, or before it
            said = torch.cat(_stream(part, codes, sizes, closing))
            assert len(said) == len(audio), (
                f"{total} frames in chunks of {_few(sizes)} gave {len(said)} samples, not {len(audio)}: "
                "what is held back must be spoken when final, and nothing twice"
            )
            if exact:
                same_samples(said, audio, audio, atol, f"chunks of {_few(sizes)} gave other samples than one piece")
    for short in (0, 1, 2):
        count = sum(map(len, _stream(part, codes[:short], [short], True)))
        assert count == short * part.hop_length, (
            f"an utterance of {short} frames streamed to {count} samples, not {short * part.hop_length}"
        )
    alone = _stream(part, codes, [3] * (total // 3) + [total % 3], True)
    states = (part.new_state(), part.new_state())
    turned = codes.flip(0)
    both = []
    for start in range(0, total + 1, 3):
        both.append(part.stream(codes[start : start + 3], states[0], start + 3 > total))
        part.stream(turned[start : start + 3], states[1], start + 3 > total)
    assert [len(x) for x in both] == [len(x) for x in alone], "two utterances at once must not disturb each other"
    if exact:
        same_samples(torch.cat(both), audio, audio, atol, "two utterances at once disturbed each other")


def _stream(part: SpeechDetokenizer, codes: Tensor, sizes: Sequence[int], closing: bool) -> list[Tensor]:
    """The chunks that a stream of ``codes`` ``(T, Q)`` gives; with ``closing`` the last one comes with ``final``."""
    state, ends, said = part.new_state(), [0], []
    for size in sizes:
        ends.append(ends[-1] + size)
    for chunk, (start, stop) in enumerate(pairwise(ends), 1):
        said.append(part.stream(codes[start:stop], state, closing and chunk == len(sizes)))
    if not closing:
        said.append(part.stream(codes[:0], state, True))
    for samples in said:
        assert samples.dim() == 1, f"stream must give samples (S,), got {tuple(samples.shape)}"
        assert samples.is_floating_point(), f"stream must give floating point, got {samples.dtype}"
        assert not samples.requires_grad, "stream must run without gradients"
    return said


def _few(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes[:4])) + (", ..." if len(sizes) > 4 else "")
