"""A job: log-probabilities of a reference model, computed once and stored with the pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fac_lightning.losses import answer_logprobs
from fac_lightning.types import AnswerSums

__all__ = ["ReferenceLogprobs"]


class ReferenceLogprobs:
    """Ask a trained run for the log-probabilities of all pairs and write them to ``out/reference.npz``, in float32.

    Preference training then needs neither a second model nor a second forward: name the folder as ``data.reference``
    and take ``StoredReference``. Layout and masks must be those of the training; pairs laid out otherwise are refused.

    Args:
        run: Folder of the trained run that is the reference: the one that training starts from.
        data: Makes the data module; ``PreferenceDataModule`` with ``_partial_: true`` and the arguments of the
            training. Tokenizer and geometry are those of the run.
        out: Folder for ``reference.npz``.
        load_run: Rebuilds a run (``fac_lightning.cli.build.load_run``); the command line passes it.
        device: Where to compute; a GPU when there is one.
    """

    def __init__(
        self,
        run: str,
        data: Callable[..., Any],
        out: str,
        load_run: Callable[[str], Any],
        device: str | None = None,
    ) -> None:
        self.run_folder, self.data, self.out, self.load_run = run, data, Path(out), load_run
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    def run(self) -> dict[str, Any]:
        """Compute and write; returns the number of pairs and the file."""
        loaded = self.load_run(self.run_folder)
        model = loaded.model.to(self.device).eval()
        data = self.data(tokenizer=loaded.tokenizer, geometry=model.geometry)
        data.setup("fit")
        found: list[AnswerSums] = []
        with torch.inference_mode():
            for batch in data.every_pair():
                batch = batch.to(self.device)
                found.append(answer_logprobs(model(batch.line), batch))
        sums = AnswerSums(torch.cat([each.text for each in found], 1), torch.cat([each.speech for each in found], 1))
        return {"pairs": sums.text.shape[1], "file": str(data.save_reference(self.out, sums))}
