"""Claims and the figures that show them, or do not: one page over many runs and seeds."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Claim", "Column", "Evidence", "Experiment"]


class Column:
    """One figure of every run.

    Args:
        source: Which of a row's files holds it.
        key: Path in the file, for example ``sets/unseen/text_exact``.
        scale: Factor, such as 100 for percent.
        digits: Decimals shown.
    """

    def __init__(self, source: str, key: str, scale: float = 1.0, digits: int = 1) -> None:
        self.source, self.key, self.scale, self.digits = source, key, scale, digits


class Claim:
    """What is expected of two rows. It counts as shown when their means differ by more than the spread.

    Args:
        text: The claim in words, with its source.
        column: Which figure decides.
        better: Row that is to be better.
        than: Row it is compared with.
        higher: Whether better is more.
        tie: A difference up to this, in the column's unit, also counts: "no worse than".
    """

    def __init__(
        self, text: str, column: str, better: str, than: str, higher: bool = True, tie: float | None = None
    ) -> None:
        self.text, self.column, self.better, self.than, self.higher, self.tie = text, column, better, than, higher, tie


class Experiment:
    """One comparison.

    Args:
        title: Heading.
        command: What makes its figures.
        rows: Label -> source -> pattern of JSON files, a file for each seed.
        columns: Heading -> figure.
        claims: What is expected.
        about: A few sentences on what is compared.
        plot: Two columns, drawn against each other with a point for each row; None for bars of the first column.
    """

    def __init__(
        self,
        title: str,
        command: str,
        rows: dict[str, dict[str, str]],
        columns: dict[str, Column],
        claims: list[Claim] | None = None,
        about: str = "",
        plot: list[str] | None = None,
    ) -> None:
        self.title, self.command, self.rows, self.columns = title, command, dict(rows), dict(columns)
        self.claims, self.about, self.plot = list(claims or ()), about, plot
        for claim in self.claims:
            for name, known, what in (
                (claim.better, self.rows, "row"),
                (claim.than, self.rows, "row"),
                (claim.column, self.columns, "column"),
            ):
                if name not in known:
                    raise ValueError(f"{title}: a claim names the {what} {name!r}; there are {', '.join(known)}")
        if plot is not None and (len(plot) != 2 or any(name not in self.columns for name in plot)):
            raise ValueError(f"{title}: plot takes two columns of {', '.join(self.columns)}, got {plot}")


@dataclass(frozen=True)
class Spread:
    """A figure over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float:
        """Sample standard deviation; 0 for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.deviation / math.sqrt(len(self.values))


class Evidence:
    """Job: read the results of many runs and write a page of tables, plots and verdicts.

    A row with several seeds shows mean and sample standard deviation. A claim is *shown* when the difference of means
    is more than twice its standard error, *opposite* when it is that much the other way, and else *not shown*; with one
    seed there is no spread, and the page says so. Missing runs are named; nothing is filled in.

    Args:
        out: Folder of ``evidence.md``, ``evidence.json`` and the plots.
        experiments: Name -> comparison.
        title: Heading of the page.
        about: First paragraph: sizes, data, machine.
    """

    def __init__(self, out: str, experiments: dict[str, Experiment], title: str = "Evidence", about: str = "") -> None:
        if not experiments:
            raise ValueError("experiments is empty: there is nothing to show")
        self.out, self.experiments, self.title, self.about = Path(out), dict(experiments), title, about

    def run(self) -> dict[str, Any]:
        """Write the page; returns all figures and verdicts."""
        self.out.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {}
        lines = [f"# {self.title}", ""] + ([self.about, ""] if self.about else [])
        lines += ["Figures are means over seeds ± their sample standard deviation.", ""]
        for name, experiment in self.experiments.items():
            table = _measure(experiment)
            verdicts = [_judge(claim, table) for claim in experiment.claims]
            picture = self._plot(name, experiment, table)
            lines += _section(experiment, table, verdicts, picture)
            found[name] = {
                "rows": {
                    label: {heading: list(spread.values) if spread else None for heading, spread in figures.items()}
                    for label, figures in table.items()
                },
                "claims": verdicts,
            }
        (self.out / "evidence.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
        (self.out / "evidence.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return {name: [verdict["verdict"] for verdict in one["claims"]] for name, one in found.items()}

    def _plot(self, name: str, experiment: Experiment, table: Mapping[str, Mapping[str, Spread | None]]) -> str | None:
        """File name of the plot; None where there is nothing to draw."""
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
        headings = experiment.plot or [next(iter(experiment.columns))]
        drawn = 0
        for place, (label, figures) in enumerate(table.items()):
            spreads = [figures[heading] for heading in headings]
            if any(spread is None for spread in spreads):
                continue
            drawn += 1
            if len(spreads) == 2:
                x, y = (s for s in spreads if s is not None)
                axes.errorbar(x.mean, y.mean, xerr=x.deviation, yerr=y.deviation, fmt="o", capsize=3)
                axes.annotate(label, (x.mean, y.mean), xytext=(5, 5), textcoords="offset points", fontsize=8)
            else:
                (spread,) = (s for s in spreads if s is not None)
                axes.bar(place, spread.mean, yerr=spread.deviation, capsize=3, color="tab:blue")
        if len(headings) == 2:
            axes.set_xlabel(headings[0])
            axes.set_ylabel(headings[1])
        else:
            axes.set_xticks(range(len(table)), list(table), rotation=20, ha="right", fontsize=8)
            axes.set_ylabel(headings[0])
        axes.set_title(experiment.title)
        if drawn:
            figure.savefig(self.out / f"evidence-{name}.png", dpi=120)
        plt.close(figure)
        return f"evidence-{name}.png" if drawn else None


def _measure(experiment: Experiment) -> dict[str, dict[str, Spread | None]]:
    table: dict[str, dict[str, Spread | None]] = {}
    for label, sources in experiment.rows.items():
        table[label] = {}
        for heading, column in experiment.columns.items():
            if column.source not in sources:
                raise ValueError(
                    f"{experiment.title}: column {heading!r} reads {column.source!r}, but row {label!r} has only "
                    f"{', '.join(sources)}"
                )
            files = sorted(glob.glob(sources[column.source]))
            values = [_figure(Path(file), column.key) * column.scale for file in files]
            table[label][heading] = Spread(tuple(values)) if values else None
    return table


def _figure(file: Path, key: str) -> float:
    value: Any = json.loads(file.read_text(encoding="utf-8"))
    for step in key.split("/"):
        if not isinstance(value, Mapping) or step not in value:
            has = ", ".join(value) if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"{file} has no {key}: at {step!r} there is only {has}")
        value = value[step]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{file}: {key} is {value!r}, which is no number")
    return float(value)


def _judge(claim: Claim, table: Mapping[str, Mapping[str, Spread | None]]) -> dict[str, Any]:
    one, other = table[claim.better][claim.column], table[claim.than][claim.column]
    said: dict[str, Any] = {"claim": claim.text, "column": claim.column, "better": claim.better, "than": claim.than}
    if one is None or other is None:
        return {**said, "verdict": "no figures yet"}
    sign = 1 if claim.higher else -1
    gain, error = sign * (one.mean - other.mean), math.hypot(one.error, other.error)
    said |= {"gain": gain, "error": error}
    seeds = min(len(one.values), len(other.values))
    if claim.tie is not None:
        verdict = "shown" if gain >= -claim.tie else "not shown"
    elif seeds < 2:
        verdict = "one seed only"
    else:
        verdict = "shown" if gain > 2 * error else "opposite" if gain < -2 * error else "not shown"
    return {**said, "verdict": verdict, "seeds": seeds}


def _section(
    experiment: Experiment,
    table: Mapping[str, Mapping[str, Spread | None]],
    verdicts: Sequence[Mapping[str, Any]],
    picture: str | None,
) -> list[str]:
    lines = [f"## {experiment.title}", ""] + ([experiment.about, ""] if experiment.about else [])
    lines += [f"| | {' | '.join(experiment.columns)} | seeds |", f"|---|{'---|' * (len(experiment.columns) + 1)}"]
    for label, figures in table.items():
        cells = [_cell(figures[heading], column.digits) for heading, column in experiment.columns.items()]
        seeds = max((len(spread.values) for spread in figures.values() if spread), default=0)
        lines.append(f"| {label} | {' | '.join(cells)} | {seeds} |")
    lines.append("")
    for verdict in verdicts:
        digits = experiment.columns[verdict["column"]].digits
        by = ""
        if "gain" in verdict:
            by = f" ({verdict['better']} against {verdict['than']}: {verdict['gain']:+.{digits}f} "
            by += f"± {verdict['error']:.{digits}f} in {verdict['column']})"
        lines.append(f"- {verdict['claim']} **{verdict['verdict'].capitalize()}**{by}.")
    lines += ["", *([f"![{experiment.title}]({picture})", ""] if picture else [])]
    return [*lines, "```bash", experiment.command, "```", ""]


def _cell(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "not run"
    if len(spread.values) == 1:
        return f"{spread.mean:.{digits}f}"
    return f"{spread.mean:.{digits}f} ± {spread.deviation:.{digits}f}"
