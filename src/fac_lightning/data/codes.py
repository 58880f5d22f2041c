"""Speech codes of the assistant's turns: computed once per tokenizer, kept beside the manifest."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fac_lightning.data.audio import Span, check_sources, read_span
from fac_lightning.data.clip_codes import code_spans
from fac_lightning.data.dialogue import turn_span
from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.tokenizers.base import SpeechTokenizer

__all__ = ["CodeStore", "SpokenTurns", "tokenizer_fingerprint"]

log = logging.getLogger(__name__)

PART_BYTES = 8_000_000  # codes in a file; the file that is being filled is written anew after every batch
SECONDS_UNTIL_LEFT = 3600.0  # after which a draft that nobody renamed was left behind by a killed process

Turn = tuple[str, int]  # cut id, number of the turn


def tokenizer_fingerprint(tokenizer: SpeechTokenizer) -> str:
    """Hex name of a tokenizer: its class, sizes and weights. Two tokenizers that share it give the same codes.

    The weights of its ``detokenizer`` stay out: who speaks codes has no say in which they are.
    """
    digest = hashlib.blake2b(digest_size=8)
    sizes = (tokenizer.sample_rate, tokenizer.hop_length, tokenizer.num_codebooks, tokenizer.codebook_size)
    digest.update(f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__} {sizes}".encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        if isinstance(value, torch.Tensor) and not name.startswith("detokenizer."):
            data = value.detach().cpu().contiguous()
            digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
            digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class SpokenTurns:
    """The assistant's turns that have audio."""

    keys: dict[Turn, str]  # content of the audio; turns that sound alike may share one
    spans: dict[str, Span]  # where each content is
    problems: dict[Turn, BadData]  # turns whose audio cannot be found, and why

    @property
    def bad(self) -> dict[Turn, str]:
        """Problems as text."""
        return {turn: str(problem) for turn, problem in self.problems.items()}


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
        self._part: dict[str, np.ndarray] = {}  # what the file that is being filled holds
        self._name = ""
        for part in sorted(self.folder.glob("*.npz")):
            with np.load(part) as data:
                pieces = np.split(data["codes"], data["lengths"].cumsum()[:-1])
                self._codes.update(zip(data["keys"].tolist(), pieces, strict=True))

    def __len__(self) -> int:
        """Turns whose codes are known."""
        return len(self._codes)

    def __contains__(self, key: str) -> bool:
        """Whether the codes of a content are known."""
        return key in self._codes

    def __getitem__(self, key: str) -> np.ndarray:
        """Codes ``(T, Q)`` of a content."""
        return self._codes[key]

    def complete(self, cuts: Iterable[Any], progress: bool = True) -> dict[Turn, np.ndarray]:
        """Codes ``(T, Q)`` of every spoken assistant turn, by cut id and turn number; makes those that are missing.

        What is made is saved batch by batch: an interrupted call is continued by the next.

        Raises:
            BadData: The audio of a turn cannot be used.
        """
        codes, bad = self.complete_good(cuts, progress)
        for problem in bad.values():
            raise problem
        return codes

    def complete_good(
        self, cuts: Iterable[Any], progress: bool = True
    ) -> tuple[dict[Turn, np.ndarray], dict[Turn, BadData]]:
        """As ``complete``, of the turns whose audio is good, and what is wrong with the others."""
        turns = self.survey(cuts)
        missing = {key: span for key, span in turns.spans.items() if key not in self}
        keeps, bad = True, dict[str, BadData]()
        with closing(code_spans(self.tokenizer, missing, progress)) as batches:
            for made in batches:
                bad |= made.problems
                self._codes.update(made.codes)
                try:
                    if keeps:
                        self.add(made.codes)
                except OSError as error:
                    keeps = False
                    log.warning(
                        "Speech codes cannot be kept in %s (%s); they are computed again next time.", self.folder, error
                    )
        codes = {turn: self._codes[key] for turn, key in turns.keys.items() if key not in bad}
        return codes, turns.problems | {turn: bad[key] for turn, key in turns.keys.items() if key in bad}

    def survey(self, cuts: Iterable[Any], num_threads: int = 1, progress: bool = False) -> SpokenTurns:
        """Content of every spoken assistant turn; reads all audio files once, ``num_threads`` at a time."""
        spans: dict[Turn, Span] = {}
        for cut in cuts:
            for i, supervision in enumerate(cut.supervisions):
                span = turn_span(cut, i) if supervision.speaker == "assistant" else None
                if span is not None:
                    spans[cut.id, i] = span
        hashes = _hash_files(spans.values(), num_threads, progress)
        turns = SpokenTurns({}, {}, {})
        for turn, span in spans.items():
            try:
                key = _content_key(span, hashes)
            except BadData as error:
                turns.problems[turn] = error
            else:
                turns.keys[turn] = key
                turns.spans.setdefault(key, span)
        return turns

    def add(self, codes: Mapping[str, np.ndarray]) -> None:
        """Take codes ``(T, Q)`` in; they are on disk when this returns.

        Raises:
            OSError: They cannot be written; they are known to this object only.
        """
        self._codes.update(codes)
        if not codes:
            return
        if not self._name:
            self.folder.mkdir(parents=True, exist_ok=True)
            _drop_left_drafts(self.folder)
            # Several processes may write at once: each has parts of its own.
            self._name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
        self._part.update(codes)
        draft = self.folder / f"{self._name}.part"
        with draft.open("wb") as file:
            np.savez(
                file,
                keys=np.array(list(self._part)),
                codes=np.concatenate(list(self._part.values())),
                lengths=np.array([len(x) for x in self._part.values()]),
            )
        os.replace(draft, self.folder / f"{self._name}.npz")  # a part that is there is whole
        if sum(x.nbytes for x in self._part.values()) >= PART_BYTES:
            self._part, self._name = {}, ""


def _drop_left_drafts(folder: Path) -> None:
    for draft in folder.glob("*.part"):
        try:
            if time.time() - draft.stat().st_mtime > SECONDS_UNTIL_LEFT:
                draft.unlink()
        except FileNotFoundError:  # another process was faster: renamed or removed
            continue


def _hash_files(spans: Iterable[Span], num_threads: int, progress: bool) -> dict[str, bytes | BadData]:
    """Hash of the bytes of every file, or why it cannot be read."""
    from rich.console import Console
    from rich.progress import track

    files: dict[str, Any] = {}
    for span in spans:
        source = span.recording.sources[0]
        if source.type == "file" and not span.recording.transforms:
            files.setdefault(source.source, span.recording)

    def read(item: tuple[str, Any]) -> bytes | BadData:
        path, recording = item
        try:
            check_sources(recording)
            return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
        except BadData as error:
            return error
        except OSError as error:
            return bad_data("FAC-A01", f"{path}, recording {recording.id!r}", error.strerror or str(error))

    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    pool = ThreadPoolExecutor(max(1, num_threads))  # hashing holds no lock of Python's
    try:
        read_all = pool.map(read, files.items())
        shown = track(read_all, "Audio files", len(files), transient=True, disable=hidden, console=console)
        return dict(zip(files, shown, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted survey does not read on


def _content_key(span: Span, hashes: Mapping[str, bytes | BadData]) -> str:
    """Hash of the bytes that hold a turn's audio, and its place in them."""
    source = span.recording.sources[0]
    if source.type != "file" or span.recording.transforms:
        return hashlib.blake2b(read_span(span).tobytes(), digest_size=16).hexdigest()
    found = hashes[source.source]
    if isinstance(found, BadData):
        raise found
    return hashlib.blake2b(found + f"{span.first}+{span.count}".encode(), digest_size=16).hexdigest()
