"""The contract of tokenizers, to run on one of your own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fac_lightning.testing.samples import same_samples
from fac_lightning.tokenizers import SpeechTokenizer

__all__ = ["check_tokenizer"]


def check_tokenizer(tokenizer: SpeechTokenizer, num_frames: int = 7, atol: float = 2e-3) -> None:
    """Hold a speech tokenizer to its slot's contract, with noise bursts of several lengths.

    Where it says that it is ``causal``, chunks must give what the whole gives; where not, it must refuse them.

    Args:
        tokenizer: Must encode and decode; it is copied and set to ``eval``.
        num_frames: Frames of the longest test row, at least 3.
        atol: Largest difference of samples that must be equal, relative to the loudest.

    Raises:
        AssertionError: Says which promise is broken.
    """
    part = copy.deepcopy(tokenizer).eval()
    hop, codebook_size = part.hop_length, part.codebook_size
    for name in ("sample_rate", "hop_length", "num_codebooks", "codebook_size"):
        value = getattr(part, name)
        valid = isinstance(value, int) and value > 0
        assert valid, f"{name} must be a positive int, got {value!r}"
    assert part.frame_rate * hop == part.sample_rate, "frame_rate must be sample_rate / hop_length"
    assert part.output_rate * hop % part.sample_rate == 0, (
        f"a frame must be a whole number of samples at output_rate {part.output_rate}"
    )

    generator = torch.Generator().manual_seed(0)
    samples = torch.tensor([num_frames * hop, (num_frames - 2) * hop + 1, hop - 1, 1])
    audio = torch.randn(len(samples), num_frames * hop, generator=generator) * 0.1
    audio *= torch.arange(audio.shape[1]) < samples[:, None]

    given = audio.clone()
    encoded = part.encode(audio, samples)
    codes, frames = encoded.codes, encoded.lengths
    assert torch.equal(audio, given), "encode must leave the audio as it is"
    expected = -(-samples // hop)
    assert frames.tolist() == expected.tolist(), (
        f"{samples.tolist()} samples must give ceil(n / {hop}) = {expected.tolist()} frames, got {frames.tolist()}"
    )
    shape = (len(samples), num_frames, part.num_codebooks)
    assert codes.shape == shape, f"codes must be (B, T, Q) = {shape}, got {tuple(codes.shape)}"
    assert codes.dtype == torch.int64, f"codes must be int64, got {codes.dtype}"
    low, high = int(codes.min()), int(codes.max())
    assert 0 <= low <= high < codebook_size, f"codes must lie in [0, {codebook_size}), got {low} to {high}"
    beyond = torch.arange(num_frames) >= frames[:, None]
    assert not codes[beyond].any(), "codes after a row's length must be zero"

    for row, (count, length) in enumerate(zip(samples.tolist(), frames.tolist(), strict=True)):
        alone = part.encode(audio[row : row + 1, :count])
        assert alone.lengths.tolist() == [length], "without lengths every row is as long as the batch"
        assert torch.equal(alone.codes[0], codes[row, :length]), f"padding changed codes of row {row} ({count} samples)"
    noisy = torch.where(torch.arange(audio.shape[1]) < samples[:, None], audio, 0.5)
    assert torch.equal(part.encode(noisy, samples).codes, codes), "what stands after a row's length changed codes"
    assert torch.equal(part.encode(audio, samples).codes, codes), "encoding twice must give the same codes"

    _check_decoding(part, frames, generator, atol)
    _check_streaming(part, generator, atol)
    _check_silence(part)


def _check_decoding(part: SpeechTokenizer, frames: Tensor, generator: torch.Generator, atol: float) -> None:
    num_frames = int(frames.max())
    hop = part.hop_length * part.output_rate // part.sample_rate  # samples given per frame
    codes = torch.randint(part.codebook_size, (len(frames), num_frames, part.num_codebooks), generator=generator)
    given = codes.clone()
    decoded = part.decode(codes, frames)
    assert torch.equal(codes, given), "decode must leave the codes as they are"
    assert decoded.sample_rate == part.output_rate, f"decode must give output_rate (sample_rate), {part.output_rate} Hz"
    assert decoded.lengths.tolist() == (frames * hop).tolist(), "T frames must decode to T * hop_length samples"
    shape = (len(frames), num_frames * hop)
    assert decoded.audio.shape == shape, (
        f"audio must be (B, T * hop_length) = {shape}, got {tuple(decoded.audio.shape)}"
    )
    assert decoded.audio.is_floating_point(), f"audio must be floating point, got {decoded.audio.dtype}"
    assert decoded.audio.isfinite().all(), "decoded audio must be finite"
    assert not decoded.audio.requires_grad, "decode must run without gradients"
    beyond = torch.arange(shape[1]) >= decoded.lengths[:, None]
    assert not decoded.audio[beyond].any(), "samples after a row's length must be zero"
    for row, length in enumerate(frames.tolist()):
        alone = part.decode(codes[row : row + 1, :length])
        assert alone.lengths.tolist() == [length * hop], "without lengths every row of codes is as long as the batch"
        promise = f"padding changed the samples of row {row}"
        same_samples(alone.audio[0], decoded.audio[row, : length * hop], decoded.audio, atol, promise)
    other = torch.where((torch.arange(num_frames) < frames[:, None])[..., None], codes, part.codebook_size - 1)
    promise = "codes after a row's length changed its samples"
    same_samples(part.decode(other, frames).audio, decoded.audio, decoded.audio, atol, promise)
    assert torch.equal(part.decode(codes, frames).audio, decoded.audio), "decoding twice must give the same samples"
    empty = part.decode(codes[:, :0]).audio
    assert empty.shape == (len(frames), 0), f"no frames must decode to no samples, got {tuple(empty.shape)}"


def _check_streaming(part: SpeechTokenizer, generator: torch.Generator, atol: float) -> None:
    """Chunks of a causal codec are what ``decode`` gives; any other says that it cannot."""
    if not part.causal:
        codes = torch.zeros(1, 1, part.num_codebooks, dtype=torch.int64)
        for refused in (lambda: part.new_decoder_state(1), lambda: part.decode_chunk(codes, None)):
            try:
                refused()
            except ValueError:
                continue
            raise AssertionError("a codec that is not causal must refuse to decode chunks, with a ValueError")
        return
    hop, first = part.hop_length * part.output_rate // part.sample_rate, part.first_chunk_frames
    total = first + 6
    codes = torch.randint(part.codebook_size, (2, total, part.num_codebooks), generator=generator)
    whole = part.decode(codes).audio
    for sizes in ([first, *[1] * 6], [total], [first + 1, 0, 3, 2]):
        state, said = part.new_decoder_state(len(codes)), []
        for chunk in codes.split(sizes, dim=1):
            samples = part.decode_chunk(chunk, state)
            shape, found = (len(codes), chunk.shape[1] * hop), tuple(samples.shape)
            assert found == shape, f"a chunk must give (B, t * hop_length) = {shape}, got {found}"
            assert not samples.requires_grad, "decode_chunk must run without gradients"
            said.append(samples)
        promise = f"chunks of {sizes} gave other samples than decode"
        same_samples(torch.cat(said, dim=1), whole, whole, atol, promise)
    states, both = (part.new_decoder_state(1), part.new_decoder_state(1)), []
    for chunk in codes.split([first, 3, 3], dim=1):
        both.append(torch.cat([part.decode_chunk(chunk[row : row + 1], states[row]) for row in (0, 1)]))
    same_samples(torch.cat(both, dim=1), whole, whole, atol, "two streams at once disturbed each other")


def _check_silence(part: SpeechTokenizer) -> None:
    for count in (3, 1, 0):
        codes = part.silence_codes(count)
        shape = (count, part.num_codebooks)
        assert codes.shape == shape, f"silence_codes must be (T, Q) = {shape}, got {tuple(codes.shape)}"
        assert codes.dtype == torch.int64, f"silence_codes must be int64, got {codes.dtype}"
        inside = not codes.numel() or 0 <= int(codes.min()) <= int(codes.max()) < part.codebook_size
        assert inside, f"silence_codes must lie in [0, {part.codebook_size})"
    assert torch.equal(part.silence_codes(3), part.silence_codes(3)), "silence_codes must be the same each time"
