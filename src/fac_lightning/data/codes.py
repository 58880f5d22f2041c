"""Speech codes of the assistant's turns: computed once per tokenizer, kept beside the manifest."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fac_lightning.data.audio import Span, check_sources, read_span
from fac_lightning.data.dialogue import turn_span
from fac_lightning.tokenizers.base import SpeechTokenizer

__all__ = ["CodeStore", "tokenizer_fingerprint"]

log = logging.getLogger(__name__)

SECONDS_PER_BATCH = 60.0
MAX_BATCH = 64
SECONDS_BETWEEN_SAVES = 20.0


def tokenizer_fingerprint(tokenizer: SpeechTokenizer) -> str:
    """Hex name of a tokenizer: its class, sizes and weights. Two tokenizers that share it give the same codes."""
    digest = hashlib.blake2b(digest_size=8)
    sizes = (tokenizer.sample_rate, tokenizer.hop_length, tokenizer.num_codebooks, tokenizer.codebook_size)
    digest.update(f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__} {sizes}".encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        if isinstance(value, torch.Tensor):
            data = value.detach().cpu().contiguous()
            digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
            digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class CodeStore:
    """Codes of spoken turns, in parts under ``<manifest folder>/codes/<tokenizer fingerprint>/``.

    Turns are found again by the content of their audio, so names and folders may change, equal audio is tokenised
    once, and another tokenizer makes its own codes beside the old ones.

    Args:
        folder: The manifest's folder.
        tokenizer: What makes the codes.
    """

    def __init__(self, folder: Path, tokenizer: SpeechTokenizer) -> None:
        self.tokenizer = tokenizer
        self.folder = folder / "codes" / tokenizer_fingerprint(tokenizer)
        self._codes: dict[str, np.ndarray] = {}
        for part in sorted(self.folder.glob("*.npz")):
            with np.load(part) as data:
                pieces = np.split(data["codes"], data["lengths"].cumsum()[:-1])
                self._codes.update(zip(data["keys"].tolist(), pieces, strict=True))

    def __len__(self) -> int:
        """Turns whose codes are known."""
        return len(self._codes)

    def complete(self, cuts: Iterable[Any], progress: bool = True) -> dict[tuple[str, int], np.ndarray]:
        """Codes ``(T, Q)`` of every spoken assistant turn, by cut id and turn number; makes those that are missing.

        What is made is saved every few seconds: an interrupted call is continued by the next.
        """
        keys: dict[tuple[str, int], str] = {}
        missing: dict[str, Span] = {}
        files: dict[str, bytes] = {}
        for cut in cuts:
            for i, supervision in enumerate(cut.supervisions):
                span = turn_span(cut, i) if supervision.speaker == "assistant" else None
                if span is not None:
                    key = _content_key(span, files)
                    keys[cut.id, i] = key
                    if key not in self._codes:
                        missing.setdefault(key, span)
        if missing:
            self._make(missing, progress)
        return {turn: self._codes[key] for turn, key in keys.items()}

    def _make(self, missing: dict[str, Span], progress: bool) -> None:
        """Tokenise turns in batches of similar length, equal audio once."""
        from rich.console import Console
        from rich.progress import track

        seconds = {key: span.count / span.recording.sampling_rate for key, span in missing.items()}
        batches = list(_batches(seconds))
        seen: dict[bytes, str] = {}
        fresh: dict[str, np.ndarray] = {}
        saved = time.monotonic()
        console = Console(stderr=True)
        device = _device(self.tokenizer)
        home = next((p.device for p in self.tokenizer.parameters()), device)
        training = self.tokenizer.training
        self.tokenizer.to(device).eval()
        try:
            for batch in track(
                batches, "Speech codes", transient=True, disable=not (progress and console.is_terminal), console=console
            ):
                twins, firsts, audio = {}, [], []
                for key in batch:
                    samples = read_span(missing[key], self.tokenizer.sample_rate)
                    content = hashlib.blake2b(samples.tobytes(), digest_size=16).digest()
                    first = seen.setdefault(content, key)
                    if first == key:
                        firsts.append(key)
                        audio.append(samples)
                    else:
                        twins[key] = first
                for key, codes in zip(firsts, self._encode(audio, device), strict=True):
                    self._codes[key] = fresh[key] = codes
                for key, first in twins.items():
                    self._codes[key] = fresh[key] = self._codes[first]
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    self._save(fresh)
                    fresh, saved = {}, time.monotonic()
        finally:
            self.tokenizer.to(home).train(training)
            self._save(fresh)

    def _encode(self, audio: list[np.ndarray], device: torch.device) -> list[np.ndarray]:
        """Codes ``(T, Q)`` of waveforms ``(S,)``."""
        if not audio:
            return []
        lengths = torch.tensor([len(x) for x in audio])
        batch = torch.zeros(len(audio), int(lengths.max()))
        for i, samples in enumerate(audio):
            batch[i, : len(samples)] = torch.from_numpy(samples)
        with torch.inference_mode():
            out = self.tokenizer.encode(batch.to(device), lengths.to(device))
        codes, frames = out.codes.cpu(), out.lengths.tolist()
        expected = [self.tokenizer.num_frames(len(x)) for x in audio]
        wrong = next((i for i, n in enumerate(frames) if n != expected[i]), None)
        if wrong is not None or codes.min() < 0 or codes.max() >= self.tokenizer.codebook_size:
            i = wrong or 0
            raise ValueError(
                f"{type(self.tokenizer).__name__} gave {frames[i]} frames for {len(audio[i])} samples, and codes "
                f"{int(codes.min())} to {int(codes.max())}; {expected[i]} frames and codes below "
                f"{self.tokenizer.codebook_size} are due. fac_lightning.testing.check_tokenizer shows the contract"
            )
        return [codes[i, :n].numpy().astype(np.int32) for i, n in enumerate(frames)]

    def _save(self, fresh: dict[str, np.ndarray]) -> None:
        if not fresh:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Several processes may save at once: each writes its own part, and renames it when it is whole.
            name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
            with (self.folder / f"{name}.part").open("wb") as file:
                np.savez(
                    file,
                    keys=np.array(list(fresh)),
                    codes=np.concatenate(list(fresh.values())),
                    lengths=np.array([len(x) for x in fresh.values()]),
                )
            os.replace(self.folder / f"{name}.part", self.folder / f"{name}.npz")
        except OSError as error:
            log.warning(
                "Speech codes cannot be kept in %s (%s); they are computed again next time.", self.folder, error
            )


def _batches(seconds: dict[str, float]) -> Iterator[list[str]]:
    """Keys, longest first, so that no padded batch exceeds ``SECONDS_PER_BATCH``."""
    order = sorted(seconds, key=lambda key: -seconds[key])
    while order:
        size = min(MAX_BATCH, max(1, int(SECONDS_PER_BATCH / max(seconds[order[0]], 1e-3))))
        yield order[:size]
        order = order[size:]


def _content_key(span: Span, files: dict[str, bytes]) -> str:
    """Hash of the bytes that hold a turn's audio, and its place in them; ``files`` remembers hashes of files."""
    source = span.recording.sources[0]
    if source.type != "file" or span.recording.transforms:
        return hashlib.blake2b(read_span(span).tobytes(), digest_size=16).hexdigest()
    if source.source not in files:
        check_sources(span.recording)
        try:
            files[source.source] = hashlib.blake2b(Path(source.source).read_bytes(), digest_size=16).digest()
        except OSError as error:
            raise ValueError(f"recording {span.recording.id!r}: its audio cannot be read ({error})") from error
    return hashlib.blake2b(files[source.source] + f"{span.first}+{span.count}".encode(), digest_size=16).hexdigest()


def _device(tokenizer: SpeechTokenizer) -> torch.device:
    """Where to tokenise: on a GPU when there is one, else where the tokenizer is."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return next((p.device for p in tokenizer.parameters()), torch.device("cpu"))
