"""``fac bench merge``: two models of a configuration, in bf16 on disk, merged into a third."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell, Trial
from fac_lightning.bench.sizes import build_model, sizes_of
from fac_lightning.merging import LinearMerge, linear_merge, merge_files

__all__ = ["MergeBenchmark"]

ALPHA = 0.5


@dataclass(frozen=True)
class _Pair:
    """Two models on disk and room for the result."""

    folder: Path
    base: Path
    tuned: Path
    size: int  # bytes of both

    def streamed(self) -> Path:
        out = self.folder / "streamed"
        shutil.rmtree(out, ignore_errors=True)
        merge_files(self.base, self.tuned, out, LinearMerge(ALPHA))
        return out / "model.safetensors"

    def naive(self) -> Path:
        """Load both, compute in float32, save."""
        out = self.folder / "naive.safetensors"
        base, tuned = load_file(self.base), load_file(self.tuned)
        merged = {
            name: linear_merge(base[name].float(), tensor.float(), ALPHA).to(tensor.dtype)
            for name, tensor in tuned.items()
        }
        save_file(merged, out)
        return out

    def equal(self) -> Mapping[str, float]:
        """1 where both ways give the same file, bit for bit."""
        one, two = load_file(self.streamed()), load_file(self.naive())
        return {"equal": float(one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one))}

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class MergeBenchmark(Benchmark):
    """Streamed block by block beside loading everything; both read the pair from disk and write the result.

    Peak memory counts tensors, so not the files that are mapped; ``--isolate`` tells what the whole process takes.
    """

    name = "merge"
    summary = "two models of the configuration in bf16, merged on disk"

    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        """See ``Benchmark.cells``."""
        pair = cache(partial(_make_pair, settings.config))

        def trial(way: str) -> Trial:
            work = {"GB": pair().size / 1e9}
            return Trial(getattr(pair(), way), work, pair().equal, count_flops=False, close=pair().remove)

        return [Cell("ours, streamed", partial(trial, "streamed")), Cell("load all", partial(trial, "naive"))]

    def findings(self, report: BenchReport) -> Mapping[str, float]:
        """How much longer loading everything takes."""
        return {"load all / ours, time": report.ratio("load all", "ours, streamed")}


def _make_pair(config: str) -> _Pair:
    folder = Path(tempfile.mkdtemp(prefix="fac-bench-merge-"))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build_model(sizes_of(config), "meta").state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    files = []
    for name in ("base", "tuned"):
        tensors = {key: torch.randn(shape, generator=generator).bfloat16() for key, shape in shapes.items()}
        files.append(folder / f"{name}.safetensors")
        save_file(tensors, files[-1])
    return _Pair(folder, files[0], files[1], sum(file.stat().st_size for file in files))
