"""A merge as the job of a recipe, so that a stage of a pipeline can be one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.files import REPORT_FILE, merge_files
from fac_lightning.merging.linear import LinearMerge
from fac_lightning.merging.plan import GROWING
from fac_lightning.merging.report import MergeReport

__all__ = ["WeightMerge", "print_notes"]

NOTES = 5  # notes on single tensors that the screen shows


class WeightMerge:
    """Merge a base model with one or more models tuned from it; the result is used like the tuned run.

    The output folder can be given to ``init_from``, ``fac chat`` and ``fac eval``. Beside the weights it has
    ``merge.json``: alpha, norms and cosine of every tensor and module. See ``merge_files`` for what happens to tensors
    that only one side has.

    Args:
        base: Model before training: safetensors file, transformers folder or run folder; the text LLM alone will do.
        tuned: Model after training, or several.
        out: Folder to write.
        method: How tensors are merged; None is ``LinearMerge(alpha=0.5)``, the report's Core-Cocktail.
        include: Patterns of tensors to merge; None means all. The others are copied from the tuned model.
        exclude: Patterns of tensors not to merge.
        base_prefix: Stands before the base's names in the tuned model, such as ``backbone.``; None finds it.
        growing: Patterns of tensors that may have more rows in the tuned model; None means vocabularies.
    """

    #: ``recipe.yaml`` of the output is that of the tuned run, which rebuilds its model; the job's own goes here.
    recipe_file = "job.yaml"

    def __init__(
        self,
        base: str,
        tuned: str | list[str],
        out: str,
        method: MergeMethod | None = None,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        base_prefix: str | None = None,
        growing: list[str] | None = None,
    ) -> None:
        self.base, self.out = Path(base), Path(out)
        self.tuned: Sequence[str] = [tuned] if isinstance(tuned, str) else list(tuned)
        self.method = LinearMerge() if method is None else method
        self.include, self.exclude = tuple(include or ()), tuple(exclude or ())
        self.base_prefix, self.growing = base_prefix, GROWING if growing is None else tuple(growing)

    def run(self) -> dict[str, Any]:
        """Merge, show the modules, and give the counts of each rule."""
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("merging", total=None)
            report = merge_files(
                self.base,
                self.tuned,
                self.out,
                self.method,
                self.include,
                self.exclude,
                self.base_prefix,
                self.growing,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        print_notes(report, console, self.out / REPORT_FILE)
        console.print(report.table())
        return {"out": str(self.out), "report": str(self.out / REPORT_FILE), "rules": report.rules}


def print_notes(report: MergeReport, console: Console, file: Path) -> None:
    """What is to be known of a merge beyond its figures; of the notes on single tensors the first few."""
    noted = [f"{tensor.name}: {tensor.note}" for tensor in report.tensors if tensor.note]
    for note in (*report.notes, *noted[:NOTES]):
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    if len(noted) > NOTES:
        console.print(f"note: {len(noted) - NOTES} more in {file}", highlight=False)
