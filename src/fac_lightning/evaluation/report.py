"""The page a run leaves behind: figures, curves, a spectrogram and playable answers."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fac_lightning.html_page import escape, page, table

__all__ = ["RunReport", "read_curves"]


class RunReport:
    """Write ``report/index.html`` and ``metrics.json`` of a pipeline run.

    Args:
        run: Folder of the pipeline run, which holds ``stages/``.
        out: Folder of the page.
        results: ``results.json`` of the evaluation stage.
        fits: Stage name -> folder of its training run, for the loss curves.
        headline: Metric key -> path into the results, for example ``sets/unseen/text_exact``.
        recipe: Run folder whose resolved ``recipe.yaml`` is shown.
        title: Heading of the page.
        metrics: Where the figures go as JSON.
    """

    def __init__(
        self,
        run: str,
        out: str,
        results: str,
        fits: dict[str, str],
        headline: dict[str, str],
        recipe: str,
        metrics: str,
        title: str = "Report",
    ) -> None:
        self.run_folder, self.out, self.results, self.fits = Path(run), Path(out), Path(results), dict(fits)
        self.headline, self.recipe, self.title, self.metrics = dict(headline), Path(recipe), title, Path(metrics)

    def run(self) -> dict[str, Any]:
        """Write page and figures; returns the figures."""
        started = time.perf_counter()
        results = json.loads(self.results.read_text(encoding="utf-8"))
        self.out.mkdir(parents=True, exist_ok=True)
        curves = {name: read_curves(Path(folder)) for name, folder in self.fits.items()}
        stages = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in self._stage_files()}
        figures: dict[str, Any] = {key: _dig(results, path) for key, path in self.headline.items()}
        plots = [self._plot_losses(curves)]
        examples = self._copy_examples(results)
        plots += self._plot_spectrogram(examples)
        figures["stages"] = {
            name: {
                "seconds": round(state["seconds"], 1),
                "peak_rss_mb": round(state["peak_rss_mb"]),
                **({"losses": _last_losses(curves[name])} if name in curves else {}),
            }
            for name, state in stages.items()
            if state["done"]
        }
        figures["peak_rss_mb"] = max((s["peak_rss_mb"] for s in figures["stages"].values()), default=0)
        spent = sum(s["seconds"] for s in figures["stages"].values()) + time.perf_counter() - started
        figures["wall_seconds"] = round(spent, 1)
        self.metrics.write_text(json.dumps(figures, indent=2), encoding="utf-8")
        (self.out / "index.html").write_text(self._page(figures, results, plots, examples), encoding="utf-8")
        return figures

    def _stage_files(self) -> list[Path]:
        return sorted((self.run_folder / "stages").glob("*.json"), key=lambda p: p.stat().st_mtime)

    def _plot_losses(self, curves: dict[str, dict[str, list[tuple[int, float]]]]) -> str:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.2 * max(len(curves), 1), 3.2), layout="constrained")
        axes = figure.subplots(1, max(len(curves), 1), squeeze=False)[0]
        for axis, (name, curve) in zip(axes, curves.items(), strict=False):
            for key, points in sorted(curve.items()):
                if "loss" in key and points:
                    axis.plot(*zip(*points, strict=True), label=key, linewidth=1.3)
            axis.set(title=name, xlabel="step", ylabel="nats per token", yscale="log")
            axis.grid(alpha=0.3)
            if axis.get_legend_handles_labels()[1]:
                axis.legend(fontsize=7)
        figure.savefig(self.out / "losses.png", dpi=110)
        return "losses.png"

    def _copy_examples(self, results: dict[str, Any]) -> list[dict[str, Any]]:
        examples = []
        for name, scored in results["sets"].items():
            for answer in scored["answers"]:
                if not answer["files"]:
                    continue
                copied = {}
                for kind, file in answer["files"].items():
                    target = self.out / "audio" / Path(file).name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.results.parent / file, target)
                    copied[kind] = f"audio/{target.name}"
                examples.append({**answer, "set": name, "files": copied})
        return examples

    def _plot_spectrogram(self, examples: Sequence[dict[str, Any]]) -> list[str]:
        """Spectrograms of one spoken answer and of the recording it should resemble."""
        import soundfile
        from matplotlib.figure import Figure

        example = next((e for e in examples if {"answer", "truth"} <= set(e["files"])), None)
        if example is None:
            return []
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        for axis, kind in zip(figure.subplots(2, 1), ("answer", "truth"), strict=True):
            audio, rate = soundfile.read(self.out / example["files"][kind], dtype="float32")
            if len(audio) < 400:
                audio = np.pad(audio, (0, 400 - len(audio)))
            axis.specgram(audio + 1e-7, NFFT=400, noverlap=240, Fs=rate, cmap="magma", vmin=-110)
            said = f"the model says: {example['text']}"
            title = said if kind == "answer" else f"recording of the true answer: {example['reference']}"
            axis.set(title=title, ylabel="Hz", ylim=(0, 8000))
        axis.set_xlabel("seconds")
        figure.savefig(self.out / "spectrogram.png", dpi=110)
        return ["spectrogram.png"]

    def _page(
        self, figures: dict[str, Any], results: dict[str, Any], plots: list[str], examples: list[dict[str, Any]]
    ) -> str:
        recipe = self.recipe / "recipe.yaml"
        text = recipe.read_text(encoding="utf-8") if recipe.exists() else "(no recipe found)"
        rows = [(key, _show(figures[key])) for key in (*self.headline, "wall_seconds", "peak_rss_mb")]
        sets = [
            (name, s["count"], _show(s["text_exact"]), _show(s.get("asr_wer")), _voices(s["text_exact_by_voice"]))
            for name, s in results["sets"].items()
        ]
        stages = [
            (name, s["seconds"], s["peak_rss_mb"], ", ".join(f"{k} {v:.3f}" for k, v in s.get("losses", {}).items()))
            for name, s in figures["stages"].items()
        ]
        talks = [
            (
                e["set"],
                e["voice"],
                _player(e["files"].get("question")) + escape(e["question"]),
                _player(e["files"].get("answer")) + escape(e["text"]) + (" &#10003;" if e["exact"] else " &#10007;"),
                escape(e["transcript"] or ""),
            )
            for e in examples
        ]
        parts = [
            "<h2>Figures</h2>",
            table(("figure", "value"), rows),
            "<p>Shares and error rates are between 0 and 1. <code>asr_wer_*</code>: word error rate of an independent "
            "recogniser on the spoken answer against the model's own text, and on the tokenizer's reconstruction of "
            "the true answer.</p>",
            "<h2>Evaluation sets</h2>",
            table(("set", "questions", "text exact", "spoken answer WER", "text exact by voice"), sets),
            "<h2>Listen</h2>",
            table(("set", "voice", "question", "answer", "the recogniser heard"), talks, raw=True),
            "<h2>Stages</h2>",
            table(("stage", "seconds", "peak MB", "last losses"), stages),
            *[f"<h2>{escape(Path(p).stem.capitalize())}</h2><img src='{p}' alt='{p}'>" for p in plots],
            f"<h2>Resolved recipe</h2><details><summary>{escape(str(recipe))}</summary><pre>{escape(text)}</pre>"
            "</details>",
        ]
        return page(self.title, parts)


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Logged values of a training run by name: ``(step, value)`` pairs out of its ``metrics.csv`` files."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.rglob("metrics.csv"), key=lambda p: p.stat().st_mtime):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    if key not in ("step", "epoch") and value:
                        curves.setdefault(key, []).append((int(float(row["step"])), float(value)))
    return curves


def _last_losses(curve: dict[str, list[tuple[int, float]]]) -> dict[str, float]:
    return {key: points[-1][1] for key, points in sorted(curve.items()) if "loss" in key and points}


def _dig(node: Any, path: str) -> Any:
    for step in path.split("/"):
        if not isinstance(node, dict) or step not in node:
            return None  # not measured in this run; shown as a dash
        node = node[step]
    return node


def _show(value: Any) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _voices(shares: dict[str, float]) -> str:
    return ", ".join(f"{voice} {share:.0%}" for voice, share in shares.items())


def _player(file: str | None) -> str:
    return f"<audio controls preload=none src='{escape(file)}'></audio><br>" if file else ""
