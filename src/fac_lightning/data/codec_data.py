"""Speech to train a codec with, spoken by a synthesizer and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fac_lightning.data.sentences import dictionary_words, make_sentences
from fac_lightning.resampling import resample
from fac_lightning.synthesizers.base import Synthesizer
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import CodecBatch, to_device

__all__ = ["CodecDataModule", "CodecDataset", "SpeechCorpus"]

SHARD = 100  # sentences in a file


@dataclass(frozen=True)
class SpeechCorpus:
    """Sentences spoken by a synthesizer, in files of 100: ``shard-00000.npz`` and so on.

    Making it goes on where it was stopped. What stands in the folder is described by ``corpus.json``; a folder made
    from other sentences, voices or rates is refused.
    """

    folder: Path
    sentences: tuple[str, ...]
    synthesizer: Synthesizer
    sample_rate: int  # Hz of the stored samples
    seed: int  # the sentence's number is added to it

    def make(self) -> None:
        """Speak what is not there yet.

        Raises:
            ValueError: If the folder holds another corpus.
        """
        digest = hashlib.sha256("\n".join(self.sentences).encode()).hexdigest()[:16]
        card = {
            "sentences": digest,
            "voice": self.synthesizer.name,
            "settings": _settings(self.synthesizer),
            "sample_rate": self.sample_rate,
            "seed": self.seed,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "corpus.json"
        if path.exists() and json.loads(path.read_text()) != card:
            raise ValueError(
                f"{self.folder} holds another corpus: {path.name} differs from {card}; choose another folder or "
                "delete this one"
            )
        path.write_text(json.dumps(card, indent=1))
        for shard in range(self.num_shards):
            if not self._path(shard).exists():
                self._speak(shard)

    @property
    def num_shards(self) -> int:
        """Files of the corpus."""
        return -(-len(self.sentences) // SHARD)

    def audio(self, shard: int) -> list[np.ndarray]:
        """Waveforms ``(S,)`` int16 of a file, one per sentence."""
        with np.load(self._path(shard)) as file:
            return np.split(file["audio"], np.cumsum(file["lengths"])[:-1])

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.npz"

    def _speak(self, shard: int) -> None:
        first = shard * SHARD
        spoken = []
        for number, sentence in enumerate(self.sentences[first : first + SHARD], start=first):
            audio = self.synthesizer(sentence, seed=self.seed + number)
            audio = resample(audio, self.synthesizer.sample_rate, self.sample_rate)
            spoken.append(np.rint(np.clip(audio, -1, 1) * 32767).astype(np.int16))
        lengths = np.array([len(audio) for audio in spoken])
        _save(self._path(shard), lambda file: np.savez(file, audio=np.concatenate(spoken), lengths=lengths))


class CodecDataset(Dataset[tuple[Tensor, Tensor | None]]):
    """Random crops of waveforms, with the features of the whole sentence cut at the same place.

    Args:
        audio: Waveforms ``(S,)`` int16.
        features: ``(ceil(S / feature hop), D)`` per waveform, or ``None``.
        crop: Samples per crop, a whole number of code frames.
        hop_length: Samples per code frame; crops start on a frame.
        feature_hop: Samples per feature frame.
    """

    def __init__(
        self,
        audio: Sequence[np.ndarray],
        features: Sequence[np.ndarray] | None,
        crop: int,
        hop_length: int,
        feature_hop: int,
    ) -> None:
        self.audio, self.features = audio, features
        self.crop, self.hop_length, self.feature_hop = crop, hop_length, feature_hop

    def __len__(self) -> int:
        return len(self.audio)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None]:
        audio = self.audio[index]
        spare = max(-(-(len(audio) - self.crop) // self.hop_length), 0)
        # a few draws beyond either end, so that beginnings and ends are not rarer than the middle
        start = int(torch.randint(-6, spare + 7, ()).clamp(0, spare)) * self.hop_length
        cut = torch.from_numpy(audio[start : start + self.crop].astype(np.float32) / 32768)
        if self.features is None:
            return cut, None
        frames = slice(start // self.feature_hop, (start + self.crop) // self.feature_hop)
        return cut, torch.from_numpy(np.asarray(self.features[index][frames], dtype=np.float32))

    def collate(self, items: Sequence[tuple[Tensor, Tensor | None]]) -> CodecBatch:
        """Right pad crops to one length."""
        audio = torch.zeros(len(items), self.crop)
        for row, (cut, _) in enumerate(items):
            audio[row, : len(cut)] = cut
        lengths = torch.tensor([len(cut) for cut, _ in items])
        present = [frames for _, frames in items if frames is not None]
        if not present:
            return CodecBatch(audio, lengths)
        features = torch.zeros(len(items), self.crop // self.feature_hop, present[0].shape[1])
        for row, frames in enumerate(present):
            features[row, : len(frames)] = frames
        return CodecBatch(audio, lengths, features)


class CodecDataModule(lightning.LightningDataModule):
    """Have sentences spoken, compute the frozen features once, give random crops.

    Args:
        folder: Where speech and features are kept; a second run finds them there.
        synthesizer: The voice that the codec shall have.
        num_sentences: How many; about 3.3 seconds each.
        features: The codec's frozen extractor, to compute its frames once for whole sentences instead of every time
            for crops; ``None`` leaves that to the codec.
        word_list: JSON file (plain or gzip) whose keys are further words to be spoken, a path or
            "package:path inside it".
        crop_seconds: Length of a crop; rounded to whole code frames.
        batch_size: Crops per batch.
        num_validation: Sentences held out, the last ones.
        seed: Of sentences and voice.
        tokenizer: Rates of the codec to be trained. 16 kHz and 640 samples if ``None``.
    """

    def __init__(
        self,
        folder: str,
        synthesizer: Synthesizer,
        num_sentences: int = 4000,
        features: nn.Module | None = None,
        word_list: str | None = None,
        crop_seconds: float = 1.92,
        batch_size: int = 16,
        num_validation: int = 100,
        seed: int = 0,
        tokenizer: SpeechTokenizer | None = None,
    ) -> None:
        super().__init__()
        if not 0 < num_validation < num_sentences:
            raise ValueError(f"num_validation must be between 1 and {num_sentences - 1}, got {num_validation}")
        self.sample_rate, self.hop_length = 16000, 640
        if tokenizer is not None:
            self.sample_rate, self.hop_length = tokenizer.sample_rate, tokenizer.hop_length
        words = () if word_list is None else dictionary_words(word_list)
        sentences = tuple(make_sentences(num_sentences, seed, words))
        self.corpus = SpeechCorpus(Path(folder), sentences, synthesizer, self.sample_rate, seed)
        self.extractor = features
        self.crop = max(round(crop_seconds * self.sample_rate / self.hop_length), 1) * self.hop_length
        self.batch_size, self.num_validation = batch_size, num_validation
        self._train: CodecDataset | None = None
        self._validation: CodecDataset | None = None

    def prepare_data(self) -> None:
        """Speak and extract what is missing; runs on one process."""
        self.corpus.make()
        if self.extractor is not None:
            for shard in range(self.corpus.num_shards):
                if not self._feature_path(shard).exists():
                    self._extract(shard)

    def setup(self, stage: str) -> None:
        """Open the files."""
        audio: list[np.ndarray] = []
        features: list[np.ndarray] | None = None if self.extractor is None else []
        for shard in range(self.corpus.num_shards):
            spoken = self.corpus.audio(shard)
            audio += spoken
            if features is not None:
                frames = np.cumsum([-(-len(item) // self._feature_hop) for item in spoken])[:-1]
                features += np.split(np.load(self._feature_path(shard), mmap_mode="r"), frames)
        held = len(audio) - self.num_validation
        parts = [(audio[:held], features and features[:held]), (audio[held:], features and features[held:])]
        self._train, self._validation = (
            CodecDataset(a, f, self.crop, self.hop_length, self._feature_hop) for a, f in parts
        )

    def train_dataloader(self) -> Any:
        """Shuffled random crops."""
        return self._loader(self._train, shuffle=True)

    def val_dataloader(self) -> Any:
        """Crops of held-out sentences."""
        return self._loader(self._validation, shuffle=False)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; Lightning itself does not take frozen dataclasses apart."""
        if isinstance(batch, CodecBatch):
            return to_device(batch, device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _loader(self, dataset: CodecDataset | None, shuffle: bool) -> Any:
        assert dataset is not None
        return DataLoader(
            dataset, self.batch_size, shuffle=shuffle, collate_fn=dataset.collate, drop_last=shuffle and
            len(dataset) >= self.batch_size,
        )  # fmt: skip

    @property
    def _feature_hop(self) -> int:
        return self.hop_length if self.extractor is None else int(self.extractor.hop_length)  # type: ignore[arg-type]

    def _feature_path(self, shard: int) -> Path:
        assert self.extractor is not None
        return self.corpus.folder / f"features-{_module_digest(self.extractor)}-{shard:05d}.npy"

    @torch.no_grad()
    def _extract(self, shard: int) -> None:
        assert self.extractor is not None
        was_training, rows = self.extractor.training, []
        self.extractor.eval()
        for audio in self.corpus.audio(shard):  # row by row: nothing is spent on padding
            wave = torch.from_numpy(audio.astype(np.float32) / 32768)[None]
            rows.append(self.extractor(wave).features[0].half().numpy())
        self.extractor.train(was_training)
        _save(self._feature_path(shard), lambda file: np.save(file, np.concatenate(rows)))


def _save(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(path.name + ".tmp")
    with draft.open("wb") as file:
        write(file)
    os.replace(draft, path)


def _settings(part: Any) -> dict[str, Any]:
    """Plain public attributes of a part, which tell two settings of one class apart."""
    plain = (str, int, float, bool)
    return {k: v for k, v in sorted(vars(part).items()) if isinstance(v, plain) and not k.startswith("_")}


def _module_digest(module: nn.Module) -> str:
    """Tell one extractor from another: class, sizes and weights."""
    sizes = (module.sample_rate, module.hop_length, module.dim)
    digest = hashlib.sha256(f"{type(module).__qualname__} {sizes}".encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
