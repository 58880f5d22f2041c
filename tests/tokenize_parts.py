"""A tokenizer that writes down what it is asked for, also from other processes."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechCodes, Waveforms


class LoggedTokenizer(SpeechTokenizer):
    """Codes are the loudness of a frame; every clip leaves a line with the process and a hash of its samples.

    Args:
        log: File to append to.
        delay: Seconds that a batch takes.
        num_codebooks: Q.
    """

    sample_rate, hop_length, codebook_size = 8000, 80, 50

    def __init__(self, log: str, delay: float = 0.0, num_codebooks: int = 1) -> None:
        super().__init__()
        self.log, self.delay, self.num_codebooks = Path(log), delay, num_codebooks
        self.register_buffer("scale", torch.arange(1.0, 1 + num_codebooks))

    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechCodes:
        assert lengths is not None
        frames = -(-lengths // 80)
        loudness = torch.nn.functional.pad(audio, (0, -audio.shape[1] % 80)).unflatten(1, (-1, 80)).abs().sum(-1)
        codes = (loudness[..., None] * self.scale).long() % 50
        time.sleep(self.delay)
        clips = [row[:count].numpy().tobytes() for row, count in zip(audio, lengths.tolist(), strict=True)]
        with self.log.open("a") as file:
            file.writelines(f"{os.getpid()} {hashlib.sha1(clip).hexdigest()}\n" for clip in clips)
        return SpeechCodes(codes * (torch.arange(codes.shape[1]) < frames[:, None])[..., None], frames)

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        raise NotImplementedError
