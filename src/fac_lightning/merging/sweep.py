"""Merge with several alphas, evaluate each merge, and show what is paid in text for what is won in speech."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.files import REPORT_FILE, merge_files
from fac_lightning.merging.job import print_notes
from fac_lightning.merging.linear import LinearMerge
from fac_lightning.merging.plan import GROWING

__all__ = ["MergeSweep", "SweepPoint", "pareto_front"]

SWEEP_FILE = "sweep.json"
PLOT_FILE = "sweep.png"
BEST = "best"  # link to the folder of the best merge
SIDES = ("text", "speech")
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class SweepPoint:
    """One merge and what it is worth."""

    alpha: float
    text: float  # higher is better, as speech
    speech: float
    value: float  # what the best one has most of
    front: bool  # no other is at least as good in both and better in one


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of these pairs no other pair beats: at least as high in both numbers and higher in one."""
    return [not any(other[0] >= one[0] and other[1] >= one[1] and other != one for other in points) for one in points]


class MergeSweep:
    """Evaluate merges of a base and a tuned model over alpha and draw their text against their speech.

    ``out`` gets a merged run ``alpha_<alpha>`` for each alpha, what the evaluations gave (``evaluation/``),
    ``sweep.json`` with all figures, ``sweep.png`` with the Pareto front, and ``best``, a link to the best merge, from
    which a next stage may start. The best one has the highest
    ``text_weight * text score + (1 - text_weight) * speech score``; of equals the higher alpha.

    What is evaluated is stored at once: a sweep that was interrupted goes on, and more alphas may be asked for later.

    Args:
        base: Model before training, as for ``WeightMerge``.
        tuned: Model after training, or several.
        out: Folder to write.
        speech: Makes the evaluation of speech: an evaluation job with ``_partial_: true``, which gets ``run``, ``out``
            and ``load_run`` and whose ``run()`` returns its results.
        text: Makes the evaluation of text, in the same way.
        load_run: Rebuilds a run (``fac_lightning.cli.build.load_run``); the command line passes it.
        alphas: What to try; None means 0, 0.25, 0.5, 0.75 and 1.
        method: Makes the merge from ``alpha``: a method with ``_partial_: true``; None is ``LinearMerge``.
        speech_score: Path of the score in the results, ``*`` the mean over what is there; ``-`` before it where lower
            is better (``-sets/*/asr_wer``).
        text_score: The same for text.
        text_weight: Of the text score in the choice of the best, between 0 and 1.
        keep: Merged runs that stay: ``all``, the ``best``, or ``none``; figures always stay.
        include: Patterns of tensors to merge; None means all. The others are copied from the tuned model.
        exclude: Patterns of tensors not to merge.
        base_prefix: Stands before the base's names in the tuned model, such as ``backbone.``; None finds it.
        growing: Patterns of tensors that may have more rows in the tuned model; None means vocabularies.
    """

    def __init__(
        self,
        base: str,
        tuned: str | list[str],
        out: str,
        speech: Callable[..., Any],
        text: Callable[..., Any],
        load_run: Callable[[str], Any],
        alphas: list[float] | None = None,
        method: Callable[..., MergeMethod] | None = None,
        speech_score: str = "sets/*/text_exact",
        text_score: str = "sets/*/text_exact",
        text_weight: float = 0.5,
        keep: Literal["all", "best", "none"] = "all",
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        base_prefix: str | None = None,
        growing: list[str] | None = None,
    ) -> None:
        self.alphas = sorted({float(alpha) for alpha in (ALPHAS if alphas is None else alphas)})
        if not self.alphas or not all(math.isfinite(alpha) for alpha in self.alphas):
            raise ValueError(f"alphas must be one number or more, got {alphas}")
        if not 0 <= text_weight <= 1:
            raise ValueError(f"text_weight must be between 0 (speech alone) and 1 (text alone), got {text_weight}")
        if keep not in ("all", "best", "none"):
            raise ValueError(f"keep must be 'all', 'best' or 'none', got {keep!r}")
        self.base, self.out = Path(base), Path(out)
        self.tuned = [tuned] if isinstance(tuned, str) else list(tuned)
        self.method: Callable[..., MergeMethod] = LinearMerge if method is None else method
        self.jobs = {"text": text, "speech": speech}
        self.scores = {"text": text_score, "speech": speech_score}
        self.text_weight, self.keep = text_weight, keep
        self.include, self.exclude = tuple(include or ()), tuple(exclude or ())
        self.base_prefix, self.growing = base_prefix, GROWING if growing is None else tuple(growing)
        # text and speech of one merge are judged from one model in memory
        self.load_run = functools.lru_cache(maxsize=1)(load_run)
        self._console, self._noted = Console(stderr=True), False

    def run(self) -> dict[str, Any]:
        """Merge and evaluate what is not stored yet, draw, and give the figures.

        Raises:
            ValueError: ``out`` holds another sweep or something else, or a score is not in the results.
        """
        self._open()
        points: list[SweepPoint] = []
        for alpha in self.alphas:
            results = {side: self._result(alpha, side) for side in SIDES}
            text, speech = (_score(results[side], self.scores[side], f"the {side} evaluation") for side in SIDES)
            value = self.text_weight * text + (1 - self.text_weight) * speech
            points.append(SweepPoint(alpha, text, speech, value, front=True))
            if self.keep != "all":
                self._drop(points)
        self.load_run.cache_clear()
        front = pareto_front([(point.text, point.speech) for point in points])
        points = [replace(point, front=on) for point, on in zip(points, front, strict=True)]
        best = _best(points)
        self._keep(best)
        self._write(points, best)
        self._draw(points, best)
        self._console.print(self._table(points, best))
        return {"out": str(self.out), "best": best.alpha, "points": [asdict(point) for point in points]}

    def _open(self) -> None:
        """Find out whether what stands in ``out`` is this sweep."""
        settings, file = self._settings(), self.out / SWEEP_FILE
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))["settings"]
            other = [name for name in settings if settings[name] != stored.get(name)]
            if other:
                raise ValueError(
                    f"{self.out} holds a sweep with other {', '.join(other)}, which is not overwritten; take another "
                    "folder, or remove it"
                )
        elif self.out.exists() and any(self.out.iterdir()):
            raise ValueError(f"{self.out} exists and holds no sweep; take a folder that does not exist")
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            _write_json(file, {"settings": settings, "best": None, "points": []})

    def _settings(self) -> dict[str, Any]:
        """All that the stored results depend on; scores and the choice among them are made anew every time."""
        method = self.method(alpha=0.0).describe()
        del method["alpha"]
        settings = {
            "base": str(self.base),
            "tuned": self.tuned,
            "weights": [_mark(path) for path in (self.base, *map(Path, self.tuned))],
            "method": method,
            "include": self.include,
            "exclude": self.exclude,
            "base_prefix": self.base_prefix,
            "growing": self.growing,
            **{side: _described(job) for side, job in self.jobs.items()},
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings, default=_described))
        return plain

    def _folder(self, alpha: float) -> Path:
        return self.out / f"alpha_{alpha:g}"

    def _result(self, alpha: float, side: str) -> Any:
        """What an evaluation of a merge gave: stored, or now."""
        folder = self.out / "evaluation" / self._folder(alpha).name
        file = folder / f"{side}.json"
        if not file.is_file():
            merged = self._merge(alpha)
            self._console.print(f"alpha {alpha:g}: {side}", highlight=False)
            job = self.jobs[side](run=str(merged), out=str(folder / side), load_run=self.load_run)
            _write_json(file, job.run())
        return json.loads(file.read_text(encoding="utf-8"))

    def _merge(self, alpha: float) -> Path:
        folder = self._folder(alpha)
        if not (folder / REPORT_FILE).is_file():  # written last, and always by these settings: see _open
            self._console.print(f"alpha {alpha:g}: merging", highlight=False)
            report = merge_files(
                self.base,
                self.tuned,
                folder,
                self.method(alpha=alpha),
                self.include,
                self.exclude,
                self.base_prefix,
                self.growing,
            )
            if not self._noted:  # they are the same for every alpha
                print_notes(report, self._console, folder / REPORT_FILE)
                self._noted = True
        return folder

    def _drop(self, points: Sequence[SweepPoint]) -> None:
        """Remove merged runs that do not stay."""
        stays = {_best(points).alpha} if self.keep == "best" else set()
        for point in points:
            folder = self._folder(point.alpha)
            if point.alpha not in stays and (folder / REPORT_FILE).is_file():
                shutil.rmtree(folder)

    def _keep(self, best: SweepPoint) -> None:
        """Make again what is to stay and is not there, and link the best."""
        for alpha in {"all": self.alphas, "best": [best.alpha], "none": []}[self.keep]:
            self._merge(alpha)
        link = self.out / BEST
        link.unlink(missing_ok=True)
        if self.keep != "none":
            link.symlink_to(self._folder(best.alpha).name, target_is_directory=True)

    def _write(self, points: Sequence[SweepPoint], best: SweepPoint) -> None:
        content = {
            "settings": self._settings(),
            "scores": self.scores,
            "text_weight": self.text_weight,
            "best": best.alpha,
            "points": [asdict(point) for point in points],
        }
        _write_json(self.out / SWEEP_FILE, content)

    def _table(self, points: Sequence[SweepPoint], best: SweepPoint) -> Table:
        table = Table("alpha", "text", "speech", "value", "")
        for column in table.columns[:4]:
            column.justify = "right"
        for point in points:
            said = "best" if point == best else "front" if point.front else ""
            figures = (point.alpha, point.text, point.speech, point.value)
            table.add_row(*(f"{figure:.4g}" for figure in figures), said)
        return table

    def _draw(self, points: Sequence[SweepPoint], best: SweepPoint) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 4.4), layout="constrained")
        axis = figure.subplots()
        front = sorted((point for point in points if point.front), key=lambda point: point.text)
        axis.plot([p.text for p in front], [p.speech for p in front], "C0-", linewidth=1.3, label="Pareto front")
        for on, style in ((True, "C0o"), (False, "C7o")):
            chosen = [point for point in points if point.front == on]
            axis.plot([p.text for p in chosen], [p.speech for p in chosen], style, markersize=5)
        axis.plot(best.text, best.speech, "C3o", markersize=11, fillstyle="none", label=f"best, alpha {best.alpha:g}")
        for point in points:
            axis.annotate(f"{point.alpha:g}", (point.text, point.speech), (5, 5), textcoords="offset points")
        axis.set(xlabel=f"text: {self.scores['text']}", ylabel=f"speech: {self.scores['speech']}")
        axis.margins(0.12)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        figure.savefig(self.out / PLOT_FILE, dpi=110)


def _best(points: Sequence[SweepPoint]) -> SweepPoint:
    return max(points, key=lambda point: (point.value, point.alpha))


def _score(results: Any, path: str, what: str) -> float:
    """The number at a path of nested results, the mean where a step is ``*``; ``-`` before it turns the sign."""
    steps = path.removeprefix("-").split("/")
    found: list[Any] = [results]
    for done, step in enumerate(steps):
        nodes = [node for node in found if isinstance(node, Mapping)]
        found = [value for node in nodes for key, value in node.items() if step in ("*", str(key))]
        if not found:
            there = ", ".join(dict.fromkeys(str(key) for node in nodes for key in node)) or "nothing"
            where = "/".join(steps[:done]) or "the top"
            raise ValueError(f"{what} gave no {path.removeprefix('-')!r}: at {where} there is {there}")
    numbers = [value for value in found if isinstance(value, int | float) and math.isfinite(value)]
    if len(numbers) != len(found):
        raise ValueError(f"{what} gave no number at {path.removeprefix('-')!r} but {found}")
    mean = sum(numbers) / len(numbers)
    return -mean if path.startswith("-") else mean


def _described(item: Any) -> Any:
    """What makes something, as plain values: a class and its arguments where it is a partial, else its class."""
    if isinstance(item, functools.partial):
        return {"class": _name(item.func), **item.keywords}
    return _name(item if callable(item) and hasattr(item, "__qualname__") else type(item))


def _name(item: Any) -> str:
    return f"{item.__module__}.{item.__qualname__}"


def _mark(path: Path) -> dict[str, list[int]]:
    """Size and time of the weights of a model, to see when they were trained again."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)
