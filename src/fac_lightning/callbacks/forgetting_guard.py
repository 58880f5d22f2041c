"""Follow what the text LLM knew before speech, through every stage, and stop a stage that forgets too much."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from fac_lightning.backbones.base import Backbone
from fac_lightning.prompts import SYSTEM_PROMPTS, ChatFormat
from fac_lightning.text_probe import (
    TextBaseline,
    TextLine,
    TextScores,
    lay_out_texts,
    read_texts,
    score_texts,
    set_digest,
    take_baseline,
)
from fac_lightning.text_tokenizer import load_text_tokenizer

__all__ = ["ForgettingGuard"]

BASELINE_FILE = "baseline.safetensors"
HISTORY_FILE = "forgetting.json"
PLOT_FILE = "forgetting.png"
FIGURES = ("accuracy", "exact", "loss", "kl")

log = logging.getLogger(__name__)


class ForgettingGuard(Callback):
    """Measure a fixed text set when a stage starts, on the way and when it ends, against the base LLM.

    The set is answered in text (mode T2T) by teacher forcing, through the backbone alone, in packed lines: share of
    answer tokens that are the most likely one (``guard/accuracy``), share of answers of which all are, as greedy
    decoding would say them (``guard/exact``), nats per token (``guard/loss``), and how far the distributions of the
    answer tokens are from the base's, ``KL(base || now)`` in nats per token (``guard/kl``).

    ``folder`` is shared by the stages of a program. The first of them leaves what the base says there
    (``baseline.safetensors``: whole distributions up to 64 MiB, else the ``top_k`` most likely tokens and the rest as
    one, which makes the divergence a lower bound); all compare with it. Every stage adds its curve to
    ``forgetting.json`` and draws ``forgetting.png`` when it ends. A stage that goes on from a checkpoint continues its
    curve, one that starts anew begins it again, and if it is the one that left the baseline, that too.

    Args:
        text: Dialogues folder, or file of JSON lines with ``prompt`` and ``answer``.
        text_tokenizer: Hub id or folder of the text tokenizer.
        folder: Where baseline, curves and plot are kept.
        every_n_steps: Measure whenever so many optimizer steps are done; None measures at start and end alone.
        max_rows: Dialogues taken from the set, evenly; None takes all.
        stop_below: Stop the stage when the accuracy falls more than so many points (hundredths) below; None never
            does.
        against: Below what: the ``base``, or the model at the ``start`` of the stage.
        system: System prompt; that of mode T2T when None. Take that of the training data.
        stage: Name of the stage in the curves; the name of the run folder when None.
        capacity: Positions of a packed line.
        top_k: Tokens kept of the base's distributions where whole ones are too large.
    """

    def __init__(
        self,
        text: str,
        text_tokenizer: str,
        folder: str,
        every_n_steps: int | None = None,
        max_rows: int | None = 256,
        stop_below: float | None = None,
        against: Literal["base", "start"] = "base",
        system: str | None = None,
        stage: str | None = None,
        capacity: int = 2048,
        top_k: int = 128,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}; None measures at start and end")
        if stop_below is not None and stop_below < 0:
            raise ValueError(f"stop_below is a drop in points and cannot be negative, got {stop_below}")
        if stop_below is not None and every_n_steps is None:
            raise ValueError("stop_below needs every_n_steps: a stage is stopped where it is measured on the way")
        if against not in ("base", "start"):
            raise ValueError(f"against must be 'base' or 'start', got {against!r}")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self.text, self.text_tokenizer, self.folder = text, text_tokenizer, Path(folder)
        self.every_n_steps, self.max_rows, self.capacity, self.top_k = every_n_steps, max_rows, capacity, top_k
        self.stop_below, self.against, self.stage = stop_below, against, stage
        self.system = SYSTEM_PROMPTS["T2T"] if system is None else system
        self.scores: TextScores | None = None  # the last ones
        self.last_step = -1  # optimizer step at which they were measured
        self._start: float | None = None  # accuracy at the start of the stage
        self._goes_on = False  # from a checkpoint
        self._backbone: Backbone | None = None
        self._lines: list[TextLine] = []
        self._base: TextBaseline | None = None

    @property
    def state_key(self) -> str:
        """Tells guards of several sets apart."""
        return self._generate_state_key(text=self.text, folder=str(self.folder))

    def state_dict(self) -> dict[str, Any]:
        """Where the stage began, and when it was last measured."""
        return {"last_step": self.last_step, "start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.last_step, self._start = state_dict["last_step"], state_dict["start"]
        self._goes_on = True

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Find the text LLM and lay the set out.

        Raises:
            ValueError: The task trains no text LLM, the strategy splits it, or the set cannot be read.
            FileNotFoundError: There is no such set.
        """
        if stage != "fit":
            return
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
            raise ValueError(
                f"ForgettingGuard runs the backbone outside of a training step, but "
                f"{type(trainer.strategy).__name__} may split its parameters; train with strategy 'ddp', or measure "
                "the run when it has ended (fac_lightning.evaluation.TextQAEvaluation)"
            )
        self._backbone = _backbone(pl_module)
        chat = ChatFormat(load_text_tokenizer(self.text_tokenizer))
        self._lines = lay_out_texts(read_texts(self.text, self.max_rows), chat, self.system, self.capacity)
        highest = max(int(line.text_ids.max()) for line in self._lines)
        if highest >= self._backbone.vocab_size:
            raise ValueError(
                f"the text tokenizer {self.text_tokenizer} gives token {highest}, but the backbone has "
                f"{self._backbone.vocab_size}; take the text tokenizer of the training data"
            )

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the baseline, if this is the first stage, and measure where the stage begins."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not self._goes_on:
            self.last_step, self._start = -1, None
        goes_on = self._goes_on or trainer.global_step > 0  # also from a checkpoint that knows no guard
        self._goes_on = False
        self._base = self._baseline(trainer, goes_on)
        if trainer.is_global_zero:
            self._begin_curve(trainer, goes_on)
        if self._start is None:
            self._start = self._measure(trainer).accuracy

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure when enough optimizer steps are done, and stop the stage if it forgot too much."""
        step = trainer.global_step
        due = self.every_n_steps is not None and step and step % self.every_n_steps == 0
        if not due or self._base is None or self.last_step == step:  # micro-batches of one step
            return
        scores = self._measure(trainer)
        figures = {f"guard/{name}": getattr(scores, name) for name in FIGURES}
        pl_module.log_dict(figures, logger=False)  # for other callbacks; the loggers have them already
        self._stop_if_lost(trainer, scores)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure what the stage leaves: also where it was just measured, since a merge may have changed it."""
        if self._base is not None:
            self._measure(trainer)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw the curves of all stages so far."""
        if self._base is not None and trainer.is_global_zero:
            _draw(self.folder / HISTORY_FILE, self.folder / PLOT_FILE)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Let set and baseline go."""
        if stage == "fit":
            self._backbone, self._lines, self._base = None, [], None

    def _name(self, trainer: lightning.Trainer) -> str:
        return self.stage or Path(trainer.default_root_dir).resolve().name

    def _baseline(self, trainer: lightning.Trainer, goes_on: bool) -> TextBaseline:
        assert self._backbone is not None
        path, name = self.folder / BASELINE_FILE, self._name(trainer)
        if path.is_file():
            base, notes = TextBaseline.load(path)
            if base.digest != set_digest(self._lines) and (goes_on or notes.get("stage") != name):
                raise ValueError(
                    f"{path} was taken of another text set than {self.text} is now: texts, max_rows, system prompt or "
                    "text tokenizer differ; set them as in the stages before, or take another folder"
                )
            if goes_on or notes.get("stage") != name:
                return base
        elif goes_on:
            raise ValueError(
                f"there is no {path}: this run goes on from a checkpoint, so the base LLM is no longer at hand; put "
                "the file back, or start the stage anew"
            )
        base = take_baseline(self._backbone, self._lines, self.top_k)
        trainer.strategy.barrier()  # every rank has looked before one writes
        if trainer.is_global_zero:
            base.save(path, stage=name)
            (self.folder / HISTORY_FILE).unlink(missing_ok=True)  # its divergences are from another base
        return base

    def _measure(self, trainer: lightning.Trainer) -> TextScores:
        """Scores now: measured, logged and added to the curve."""
        assert self._backbone is not None
        self.scores, self.last_step = score_texts(self._backbone, self._lines, self._base), trainer.global_step
        figures = {name: getattr(self.scores, name) for name in FIGURES}
        for logger in trainer.loggers:  # at this very step, whatever log_every_n_steps is
            logger.log_metrics({f"guard/{name}": value for name, value in figures.items()}, step=self.last_step)
        if trainer.is_global_zero:
            history = self._history()
            points = _curve(history, self._name(trainer))["points"]
            points[:] = [point for point in points if point["step"] != self.last_step]
            points.append({"step": self.last_step, **figures})
            self._write(history)
        return self.scores

    def _stop_if_lost(self, trainer: lightning.Trainer, scores: TextScores) -> None:
        assert self._base is not None
        before = self._base.scores.accuracy if self.against == "base" else self._start
        if self.stop_below is None or before is None:
            return
        lost = 100 * (before - scores.accuracy)
        if trainer.strategy.reduce_boolean_decision(lost > self.stop_below, all=False):
            trainer.should_stop = True
            if trainer.is_global_zero:
                whose = "the base LLM" if self.against == "base" else "the start of the stage"
                log.warning(
                    "ForgettingGuard stops %s at step %d: text accuracy %.1f %% is %.1f points below that of %s "
                    "(%.1f %%), and stop_below is %g",
                    self._name(trainer),
                    self.last_step,
                    100 * scores.accuracy,
                    lost,
                    whose,
                    100 * before,
                    self.stop_below,
                )

    def _begin_curve(self, trainer: lightning.Trainer, goes_on: bool) -> None:
        """Drop what this stage wrote and will measure again."""
        history = self._history()
        curve = _curve(history, self._name(trainer))
        kept = trainer.global_step if goes_on else -1
        curve["points"] = [point for point in curve["points"] if point["step"] <= kept]
        self._write(history)

    def _history(self) -> dict[str, Any]:
        assert self._base is not None
        path = self.folder / HISTORY_FILE
        if path.is_file():
            history: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return history
        kept = "all" if self._base.ids is None else self._base.ids.shape[1]
        return {"text": self.text, "base": {**asdict(self._base.scores), "kept": kept}, "stages": []}

    def _write(self, history: dict[str, Any]) -> None:
        draft = self.folder / f".{HISTORY_FILE}.part"
        draft.write_text(json.dumps(history, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        draft.replace(self.folder / HISTORY_FILE)


def _backbone(pl_module: lightning.LightningModule) -> Backbone:
    model = getattr(pl_module, "model", None)
    backbone = model if isinstance(model, Backbone) else getattr(model, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"ForgettingGuard follows a text LLM, but the model of {type(pl_module).__name__} "
            f"({type(model).__name__}) neither is nor has a backbone; take the guard out of this stage"
        )
    return backbone


def _curve(history: dict[str, Any], name: str) -> dict[str, Any]:
    """Curve of a stage; a new one stands behind those there are."""
    stages: list[dict[str, Any]] = history["stages"]
    found = next((stage for stage in stages if stage["name"] == name), None)
    if found is None:
        found = {"name": name, "points": []}
        stages.append(found)
    return found


def _draw(history: Path, plot: Path) -> None:
    """Draw the curves of all stages, one behind the other.

    Args:
        history: ``forgetting.json``.
        plot: PNG file.
    """
    from matplotlib.figure import Figure

    content = json.loads(history.read_text(encoding="utf-8"))
    stages = [stage for stage in content["stages"] if stage["points"]]
    figure = Figure(figsize=(max(6.0, 2.2 * len(stages)), 5.2), layout="constrained")
    shares, nats = figure.subplots(2, 1, sharex=True)
    begin = 0
    for stage in stages:
        steps = [begin + point["step"] for point in stage["points"]]
        for axis, name, colour, scale in (
            (shares, "accuracy", "C0", 100),
            (shares, "exact", "C1", 100),
            (nats, "kl", "C3", 1),
        ):
            values = [scale * point[name] for point in stage["points"]]
            axis.plot(steps, values, colour, marker="o", markersize=3, linewidth=1.3)
        for axis in (shares, nats):
            axis.axvline(begin, color="0.7", linewidth=0.8)
        shares.annotate(stage["name"], (begin, 1), (3, 2), ("data", "axes fraction"), "offset points", fontsize=8)
        begin = steps[-1]
    for name, colour in (("accuracy", "C0"), ("exact", "C1")):
        shares.axhline(100 * content["base"][name], color=colour, linestyle=":", linewidth=1, label=f"{name}, base")
        shares.plot([], [], colour, label=name)
    shares.set(ylabel="text answers, %", ylim=(-3, 103))
    shares.legend(fontsize=7, ncols=2)
    nats.set(xlabel="steps, stage after stage", ylabel="KL(base || now), nats per token")
    for axis in (shares, nats):
        axis.grid(alpha=0.3)
    figure.savefig(plot, dpi=110)
