"""Units of speech: the frames of any encoder, each named by the nearest of some centroids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from fac_lightning.tokenizers.detokenized import DetokenizedTokenizer
from fac_lightning.tokenizers.features import FeatureExtractor
from fac_lightning.tokenizers.mini_batch_kmeans import MiniBatchKMeans, nearest, spread_out
from fac_lightning.types import SpeechCodes, Waveforms
from fac_lightning.weights import CheckpointError

__all__ = ["KMeansStep", "KMeansTokenizer"]

FILE = "kmeans.safetensors"
START_FRAMES = 20  # per centroid, from which the first centroids are drawn
SETTLING = 0.8  # after this part of the batches no centroid moves to another place


@dataclass(frozen=True)
class KMeansStep:
    """What a batch was like when it came."""

    frames: int
    distance: float  # mean squared distance from the nearest centroid
    variance: float  # mean squared distance from the batch's mean
    used: Tensor  # (K,) int64 on CPU, frames of each code


class KMeansTokenizer(DetokenizedTokenizer):
    """Speech -> the number of the centroid nearest to each frame of a frozen encoder, as HuBERT's units are made.

    One codebook, at the encoder's frame rate. Encoders that learned to know words (HuBERT, WavLM, Whisper) give codes
    of what is said rather than of how it sounds. Such codes have no decoder of their own, so sound comes from a
    detokenizer. Centroids are fitted by ``fac_lightning.data.KMeansTraining``.

    Args:
        encoder: Frozen speech encoder whose frames are quantised.
        centroids: ``.safetensors`` file that :meth:`save` wrote, or the folder of a ``KMeansTraining``. ``None`` draws
            them at random around the encoder's frames of noise: to begin a training with, and for tests.
        codebook_size: Number of centroids; that of the file when None, and 500 where there is no file.
        detokenizer: A ``SpeechDetokenizer`` of these codes; ``None`` leaves encoding only.
        seed: Of random centroids, which are the same in every process.

    Raises:
        CheckpointError: The file is not there, is none of centroids, or was made for another encoder.

    Source: https://arxiv.org/abs/2106.07447
    """

    num_codebooks = 1
    kind = "KMeansTokenizer"
    example = "ToneDetokenizer"
    centroids: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        centroids: str | None,
        codebook_size: int | None = None,
        detokenizer: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        reads = cast(FeatureExtractor, encoder)
        self.sample_rate, self.hop_length, self.dim = reads.sample_rate, reads.hop_length, reads.dim
        if codebook_size is not None and codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {codebook_size}")
        table = self._draw(codebook_size or 500, seed) if centroids is None else self._read(centroids, codebook_size)
        self.register_buffer("centroids", table)
        self.codebook_size = len(table)
        self.take_detokenizer(detokenizer, f"centroids {centroids!r}")

    @torch.no_grad()
    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechCodes:
        """Codes ``(B, T, 1)`` of waveforms ``(B, S)`` at ``sample_rate``; ``lengths`` ``(B,)`` in samples."""
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        frames = -(-lengths // self.hop_length)
        codes = torch.zeros(audio.shape[0], self.num_frames(audio.shape[1]), 1, dtype=torch.long, device=audio.device)
        there = torch.arange(codes.shape[1], device=audio.device) < frames[:, None]
        if there.any():
            with torch.autocast(audio.device.type, enabled=False):  # half precision would move frames across a border
                codes[there] = nearest(self.read(audio, lengths), self.centroids.float())[0][:, None]
        return SpeechCodes(codes, frames)

    @torch.no_grad()
    def read(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """The encoder's frames ``(N, dim)`` of waveforms ``(B, S)``, row after row, those of padding left out."""
        with torch.autocast(audio.device.type, enabled=False):
            found = cast(FeatureExtractor, self.encoder)(audio.float(), lengths)
        there = torch.arange(found.features.shape[1], device=audio.device) < found.lengths[:, None]
        return found.features[there].float()

    @torch.no_grad()
    def learn(self, batches: Iterable[Waveforms], num_batches: int, seed: int = 0) -> Iterator[KMeansStep]:
        """Fit new centroids to speech, one step a batch; they are in place as it goes on.

        The first batches are kept until they hold 20 frames a centroid; the first centroids are drawn from them.

        Args:
            batches: Speech at ``sample_rate``.
            num_batches: How many there will be; in the last fifth no centroid moves to another place.
            seed: Of the draws.

        Raises:
            ValueError: There is too little speech for so many centroids.
        """
        generator = torch.Generator().manual_seed(seed)
        source = (self.read(batch.audio, batch.lengths) for batch in batches)
        first: list[Tensor] = []
        for frames in source:
            first.append(frames)
            if sum(map(len, first)) >= START_FRAMES * self.codebook_size:
                break
        held = torch.cat(first) if first else self.centroids[:0].float()
        if len(held) < self.codebook_size:
            raise ValueError(
                f"{len(held)} frames are too few for {self.codebook_size} centroids; give more speech, or take fewer"
            )
        learner = MiniBatchKMeans(spread_out(held, self.codebook_size, generator), generator)
        del held
        for number, frames in enumerate(chain(first, source)):
            codes, distances = learner.update(frames, feed=number < SETTLING * num_batches)
            self.centroids.copy_(learner.centroids)
            spread = (frames - frames.mean(0)).square().sum(1).mean()
            used = torch.bincount(codes, minlength=self.codebook_size).cpu()
            yield KMeansStep(len(frames), float(distances.mean()), float(spread), used)

    def save(self, path: str | Path) -> Path:
        """Write the centroids, whole or not at all, to a ``.safetensors`` file or into a folder; gives the file."""
        from safetensors.torch import save_file

        file = Path(path)
        file = file if file.suffix == ".safetensors" else file / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.part")
        told = {name: str(getattr(self, name)) for name in ("sample_rate", "hop_length")}
        save_file({"centroids": self.centroids.float().cpu().contiguous()}, draft, {"format": "pt", **told})
        os.replace(draft, file)
        return file

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this module; the encoder stays in ``eval``."""
        super().train(mode)
        self.encoder.eval()
        return self

    def _draw(self, count: int, seed: int) -> Tensor:
        """Centroids ``(K, D)`` around the frames that the encoder gives for noise."""
        generator = torch.Generator().manual_seed(seed)
        weight = next(chain(self.encoder.parameters(), self.encoder.buffers()), torch.zeros(()))
        if weight.is_meta:  # a model that is only measured has no frames
            return torch.empty(count, self.dim, device="meta")
        audio = torch.randn(1, 64 * self.hop_length, generator=generator, device="cpu").to(weight.device) * 0.1
        spread, mean = torch.std_mean(self.read(audio, torch.tensor([audio.shape[1]], device=weight.device)), 0)
        return torch.randn(count, self.dim, generator=generator, device="cpu").to(weight.device) * spread + mean

    def _read(self, name: str, codebook_size: int | None) -> Tensor:
        from safetensors import SafetensorError, safe_open

        path = Path(name)
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise CheckpointError(
                f"centroids {name!r}: there is no {path}; fit some with fac_lightning.data.KMeansTraining "
                "(recipes/tiny/kmeans.yaml), or give null for random ones"
            )
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                table: Tensor = file.get_tensor("centroids").float()
        except SafetensorError as error:
            raise CheckpointError(f"centroids {name!r} are no file that KMeansTokenizer.save wrote: {error}") from error
        sizes = {"sample_rate": self.sample_rate, "hop_length": self.hop_length, "dim": self.dim}
        found = {name: told.get(name) for name in ("sample_rate", "hop_length")} | {"dim": table.shape[-1]}
        wrong = [
            f"{key} {found[key]} (this one: {size})" for key, size in sizes.items() if str(found[key]) != str(size)
        ]
        if wrong:
            raise CheckpointError(
                f"centroids {name!r} were fitted to frames of another encoder: {', '.join(wrong)}; give the encoder "
                "that they were made with"
            )
        if codebook_size not in (None, len(table)):
            raise CheckpointError(
                f"centroids {name!r} are {len(table)}, and codebook_size says {codebook_size}; leave it out, or say so"
            )
        return table
