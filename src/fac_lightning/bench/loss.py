"""``fac bench loss``: log-probabilities over a large vocabulary, forward and backward, 30 % of 2048 rows labelled.

Legend: M rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell, Trial
from fac_lightning.bench.sizes import sizes_of
from fac_lightning.losses import chunked_logprobs
from fac_lightning.types import IGNORE

__all__ = ["LossBenchmark", "LossInputs", "ways_to_loss"]

LABELLED = 0.3
ROWS = {"tiny": 256}
OTHER_ROWS = 2048
CHUNK_ROWS = 512  # of torch's own chunked loss


@dataclass(frozen=True)
class LossInputs:
    """Hidden states and output matrix, both of which want gradients, and labels."""

    hidden: Tensor  # (M, D)
    weight: Tensor  # (V, D)
    labels: Tensor  # (M,) int64 or IGNORE


class LossBenchmark(Benchmark):
    """Ours (labelled rows, in chunks) beside cross entropy over all rows, and halfway ways.

    ``gradient gap`` is the largest difference of a gradient to that of plain cross entropy, as a part of the largest
    gradient.
    """

    name = "loss"
    summary = "log-probabilities over the vocabulary, forward and backward, 30 % of the rows labelled"

    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        """See ``Benchmark.cells``."""
        inputs = cache(partial(_inputs, settings))
        wanted = cache(lambda: _gradients(plain_loss, inputs()))
        return [Cell(name, partial(_trial, way, inputs, wanted)) for name, way in ways_to_loss().items()]

    def findings(self, report: BenchReport) -> Mapping[str, float]:
        """How much longer plain cross entropy takes and how much more it holds."""
        ours, plain = report["ours"], report["plain"]
        found = {"plain / ours, time": report.ratio(plain.name, ours.name)}
        if ours.memory and plain.memory:
            found["plain / ours, peak memory"] = plain.memory / ours.memory
            found["ours, peak GB over inputs"] = ours.memory / 1e9
        return found


def ways_to_loss() -> dict[str, Callable[[LossInputs], Tensor]]:
    """Name -> mean loss per label of inputs, shape (); torch's own chunked loss where the installed torch has it."""
    ways: dict[str, Callable[[LossInputs], Tensor]] = {
        "ours": our_loss,
        "plain": plain_loss,
        "labelled rows, not in chunks": rows_loss,
    }
    if hasattr(F, "linear_cross_entropy"):
        ways["torch in chunks, all rows"] = torch_loss
    return ways


def our_loss(given: LossInputs) -> Tensor:
    """As ``SpeechLM`` does it."""
    rows = (given.labels != IGNORE).nonzero().squeeze(1)
    logprobs, _ = chunked_logprobs(given.hidden.index_select(0, rows), given.weight, given.labels[rows])
    return -logprobs.sum() / len(rows)


def plain_loss(given: LossInputs) -> Tensor:
    """As transformers does it."""
    return F.cross_entropy(F.linear(given.hidden, given.weight).float(), given.labels, ignore_index=IGNORE)


def rows_loss(given: LossInputs) -> Tensor:
    """Cross entropy of the labelled rows at once."""
    rows = (given.labels != IGNORE).nonzero().squeeze(1)
    return F.cross_entropy(F.linear(given.hidden.index_select(0, rows), given.weight).float(), given.labels[rows])


def torch_loss(given: LossInputs) -> Tensor:
    """Torch's own chunks; they do not leave rows without a label out."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK_ROWS)
    loss: Tensor = F.linear_cross_entropy(  # type: ignore[attr-defined]
        given.hidden, given.weight, given.labels, ignore_index=IGNORE, options=options
    )
    return loss


def _inputs(settings: BenchSettings) -> LossInputs:
    sizes, rows = sizes_of(settings.config), ROWS.get(settings.config, OTHER_ROWS)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(sizes.vocab_size, (rows,), generator=generator)
    labels = labels.masked_fill(torch.arange(rows) >= round(LABELLED * rows), IGNORE)
    labels = labels[torch.randperm(rows, generator=generator)]
    hidden = torch.randn(rows, sizes.dim, generator=generator)
    weight = 0.05 * torch.randn(sizes.vocab_size, sizes.dim, generator=generator)
    dtype = getattr(torch, sizes.dtype)
    hidden, weight = (x.to(settings.device, dtype).requires_grad_() for x in (hidden, weight))
    return LossInputs(hidden, weight, labels.to(settings.device))


def _gradients(way: Callable[[LossInputs], Tensor], given: LossInputs) -> tuple[Tensor, ...]:
    return torch.autograd.grad(way(given), (given.hidden, given.weight))


def _trial(
    way: Callable[[LossInputs], Tensor], inputs: Callable[[], LossInputs], wanted: Callable[[], tuple[Tensor, ...]]
) -> Trial:
    given = inputs()

    def gap() -> dict[str, float]:
        pairs = zip(_gradients(way, given), wanted(), strict=True)
        return {"gradient gap": max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)}

    rows = float(len(given.labels))
    labelled = float((given.labels != IGNORE).sum())
    return Trial(partial(_gradients, way, given), {"rows": rows, "labels": labelled}, gap)
