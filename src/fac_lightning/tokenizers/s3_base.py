"""What all S3 tokenizers share: how clips are cut and read, and that somebody else must speak."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from fac_lightning.tokenizers.detokenized import DetokenizedTokenizer
from fac_lightning.tokenizers.s3_mel import S3LogMel
from fac_lightning.types import SpeechCodes

__all__ = ["NAMES", "S3Base"]

NAMES = {"v2": "speech_tokenizer_v2_25hz", "v3": "speech_tokenizer_v3_25hz"}  # the released ones; their codes differ

LONGEST = 30 * 16000  # samples that the model reads at once
SHORTEST = 16000  # a last piece below this is joined with the one before it, and both are halved
BATCH_SAMPLES = 16 * LONGEST  # of one call of the model, padding included


class S3Base(DetokenizedTokenizer):
    """Supervised semantic speech tokens of CosyVoice 2 and 3: 25 codes a second out of 6561, from 16 kHz.

    Clips longer than 30 s are cut into pieces of 30 s that do not see each other; if the last would be shorter than
    1 s, the last two share their length evenly. Two details differ from the released scripts, so that ``n`` samples
    always give ``ceil(n / 640)`` codes: that middle lies on a whole code, and a rest of less than 10 ms, which makes no
    mel frame and is dropped there, is filled with silence to one.

    Args:
        detokenizer: Speaks the codes, for S3 has no decoder of its own; ``None`` leaves encoding only.
        weights: Name or path of the weights; says whether they are v2 or v3.
    """

    sample_rate = 16000
    hop_length = 640
    num_codebooks = 1
    codebook_size = 6561
    kind = "S3"
    example = "CosyVoice3Detokenizer"

    def __init__(self, detokenizer: nn.Module | None = None, weights: str | None = None) -> None:
        super().__init__()
        self.log_mel = S3LogMel()
        versions = [name for version, name in NAMES.items() if weights and version in Path(weights).name]
        self.codes_name = versions[0] if len(versions) == 1 else None
        self.take_detokenizer(detokenizer, f"weights {weights!r}")

    @abstractmethod
    def quantize(self, mels: Tensor, lengths: Tensor) -> Tensor:
        """Codes ``(B, ceil(M / 4))`` of log-mels ``(B, 128, M)`` of at most 30 s; ``lengths`` ``(B,)`` in frames."""

    @torch.no_grad()
    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechCodes:
        """Codes ``(B, T, 1)`` of waveforms ``(B, S)`` at 16 kHz; ``lengths`` ``(B,)`` in samples.

        Raises:
            ValueError: If this tokenizer was built without weights.
        """
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        hop = self.hop_length
        codes = torch.zeros(audio.shape[0], self.num_frames(audio.shape[1]), 1, dtype=torch.long, device=audio.device)
        pieces = [  # (length, row, first sample)
            (stop - start, row, start)
            for row, length in enumerate(lengths.tolist())
            for start, stop in pairwise(_cuts(length, hop))
        ]
        pieces.sort(reverse=True)  # neighbours of similar length: little padding
        while pieces:
            size = max(1, BATCH_SAMPLES // pieces[0][0])
            batch, pieces = pieces[:size], pieces[size:]
            counts = [_filled(length, hop) for length, _, _ in batch]
            clips = torch.zeros(len(batch), max(counts), device=audio.device)
            for i, (length, row, start) in enumerate(batch):
                clips[i, :length] = audio[row, start : start + length]
            with torch.autocast(audio.device.type, enabled=False):  # half precision would move numbers across a level
                found = self.quantize(*self.log_mel(clips, torch.tensor(counts, device=audio.device)))
            for i, (length, row, start) in enumerate(batch):
                count = self.num_frames(length)
                codes[row, start // hop : start // hop + count, 0] = found[i, :count]
        return SpeechCodes(codes, -(-lengths // hop))


def _cuts(num_samples: int, hop: int) -> list[int]:
    """Where pieces of a clip begin, and its end."""
    starts = list(range(0, num_samples, LONGEST))
    if len(starts) > 1 and num_samples - starts[-1] < SHORTEST:
        starts[-1] = starts[-2] + round((num_samples - starts[-2]) / 2 / hop) * hop
    return [*starts, num_samples]


def _filled(num_samples: int, hop: int) -> int:
    """Samples of a piece with the silence that a last code needs: one mel frame, and something to mirror."""
    if num_samples <= S3LogMel.n_fft // 2:
        return hop // 2
    rest = num_samples % hop
    return num_samples - rest + S3LogMel.hop_length if 0 < rest < S3LogMel.hop_length else num_samples
