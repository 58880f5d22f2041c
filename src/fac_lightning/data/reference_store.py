"""Log-probabilities of a reference model, computed once and kept with the pairs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fac_lightning.data.preference_rows import PairRows
from fac_lightning.types import AnswerSums

__all__ = ["ReferenceStore"]

REFERENCE_FILE = "reference.npz"


class ReferenceStore:
    """Summed log-probabilities in float32, found by what the rows of a pair hold.

    A pair whose layout, masks or answers changed is another pair, so stale values cannot be taken for it. What the
    hash does not see is the model and the sound of the user's speech: compute again when those change.

    Args:
        path: File, or folder with ``reference.npz``.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = reference_file(path)
        if not self.file.is_file():
            raise FileNotFoundError(
                f"{self.file} does not exist; fac_lightning.tasks.ReferenceLogprobs computes and writes it"
            )
        with np.load(self.file) as data:
            self._places = {digest: place for place, digest in enumerate(data["digests"].tolist())}
            self._text, self._speech = data["text"], data["speech"]  # (pairs, 2) float32

    def __len__(self) -> int:
        """Pairs."""
        return len(self._places)

    def __call__(self, pairs: Sequence[PairRows]) -> AnswerSums:
        """Log-probabilities ``(2, P)`` of pairs.

        Raises:
            ValueError: A pair is not there.
        """
        digests = [pair.digest for pair in pairs]
        for digest, pair in zip(digests, pairs, strict=True):
            if digest not in self._places:
                raise ValueError(
                    f"pair {pair.id!r} has no log-probabilities in {self.file}: it is new, or its answers, layout or "
                    "masks are not those they were computed for. Compute them again (ReferenceLogprobs)"
                )
        places = [self._places[digest] for digest in digests]
        return AnswerSums(
            torch.from_numpy(self._text[places].T.copy()), torch.from_numpy(self._speech[places].T.copy())
        )

    @staticmethod
    def save(path: str | Path, pairs: Sequence[PairRows], sums: AnswerSums) -> Path:
        """Write log-probabilities ``(2, P)`` of pairs, whole or not at all; returns the file."""
        file = reference_file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        with part.open("wb") as handle:
            np.savez(
                handle,
                digests=np.array([pair.digest for pair in pairs]),
                text=sums.text.float().cpu().numpy().T,
                speech=sums.speech.float().cpu().numpy().T,
            )
        os.replace(part, file)
        return file


def reference_file(path: str | Path) -> Path:
    """The file that a folder or file means."""
    path = Path(path)
    return path if path.suffix else path / REFERENCE_FILE
