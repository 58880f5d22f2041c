"""The page that shows figures of dialogues: tables, and bars of how long and how dense they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fac_lightning.html_page import page, picture, table

__all__ = ["SIDE_ROWS", "lengths", "stats_page"]

MAX_SHOWN = 20  # names of a list, such as voices
COLORS = {"user": "#2f6fab", "assistant": "#c8722c"}

#: rows of the table of sides: what is told -> how it reads off the record of a side
SIDE_ROWS = (
    ("hours", lambda side: f"{side['hours']:.2f}"),
    ("turns", lambda side: side["turns"]),
    ("spoken", lambda side: side["spoken"]),
    ("spoken, without text", lambda side: side["spoken_without_text"]),
    ("seconds a spoken turn", lambda side: lengths(side["seconds"])),
    ("characters a turn", lambda side: lengths(side["characters"])),
    ("text tokens a turn", lambda side: lengths(side["tokens"])),
    ("sample rates, Hz", lambda side: _names(side["sample_rates"])),
    ("files", lambda side: _names(side["containers"])),
    ("codes", lambda side: _names(side["codes"])),
    ("voices", lambda side: _names(side["voices"])),
)


def stats_page(figures: Mapping[str, Any]) -> str:
    """The page of what ``DialogueStats`` counted; all that comes from data is escaped."""
    sides, dense = figures["sides"], figures["density"]
    parts = [
        table(("", *sides), [(name, *(read(side) for side in sides.values())) for name, read in SIDE_ROWS]),
        f"<p>{figures['dialogues']:,} dialogues, {figures['turns']:,} turns, {figures['hours']:.2f} hours. "
        "Least, median and greatest length; medians are right to the width of a bar.</p>",
        "<h2>Lengths</h2>",
        picture(_bars(_panels(figures)), "histograms of lengths"),
        "<h2>Modes that dialogues serve as they are</h2>",
        table(("mode", "dialogues"), list(figures["modes"].items())),
        "<h2>Text against speech</h2>",
    ]
    if dense is None:
        parts.append("<p>Positions and density of text were not counted: no text tokenizer was given.</p>")
    else:
        rate = dense["group_rate"]
        parts += [
            f"<p class={'no' if dense['flagged'] else 'ok'}>{dense['flagged']:,} of {dense['replies']:,} spoken "
            f"replies have more text tokens than speech has positions at {rate:g} Hz; {dense['lost_tokens']:,} tokens "
            "have none.</p><p>The released Fun-Audio-Chat cuts these off and says nothing. The reply rule FrameEnd "
            "keeps them, as a text that goes on behind the speech.</p>",
            picture(_density(dense), "text tokens per second of reply"),
            table(
                ("dialogue", "turn", "tokens", "positions", "seconds", "without a position"),
                [
                    (r["id"], r["turn"], r["tokens"], r["positions"], f"{r['seconds']:.2f}", r["lost"])
                    for r in dense["densest"]
                ],
            ),
        ]
    return page(f"Dialogues of {', '.join(map(str, figures['paths']))}", parts)


def _panels(figures: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Title and histograms by name of each plot that has something to show."""
    sides = figures["sides"]
    found: list[tuple[str, dict[str, Any]]] = [
        (title, {name: side[key] for name, side in sides.items() if side[key]["count"]})
        for title, key in (
            ("seconds a spoken turn", "seconds"),
            ("characters a turn", "characters"),
            ("text tokens a turn", "tokens"),
        )
    ]
    found.append(("turns a dialogue", {"": figures["turns_per_dialogue"]}))
    found.append(("positions a dialogue", {"": figures["positions"] or {"count": 0}}))
    return [(title, kept) for title, one in found if (kept := {k: v for k, v in one.items() if v["count"]})]


def _bars(panels: Sequence[tuple[str, dict[str, Any]]]) -> Any:
    from matplotlib.figure import Figure

    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(9.6, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for axis, (title, histograms) in zip(axes, panels, strict=False):
        for name, record in histograms.items():
            _draw(axis, record, name)
        _scale(axis, list(histograms.values()))
        axis.set(title=title, ylabel="count")
        if any(histograms):
            axis.legend(fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def _density(dense: Mapping[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 2.8), layout="constrained")
    axis = figure.subplots()
    _draw(axis, dense["tokens_per_second"], "assistant")
    axis.axvline(dense["group_rate"], color="#a40e26", linestyle="--", label="positions a second")
    _scale(axis, [dense["tokens_per_second"]])
    axis.set(xlabel="text tokens per second of reply", ylabel="replies")
    axis.legend(fontsize=8)
    return figure


def _draw(axis: Any, record: Mapping[str, Any], name: str) -> None:
    for i, (first, last, count) in enumerate(record["bins"]):
        first, color = _first(first, last), COLORS.get(name, "#5a6b7b")
        label = (name or None) if i == 0 else None
        axis.bar(first, count, last - first, align="edge", alpha=0.6, color=color, label=label)


def _scale(axis: Any, records: Sequence[Mapping[str, Any]]) -> None:
    """A logarithmic axis with plain numbers, where the values differ by more than a few times."""
    from matplotlib.ticker import LogLocator, NullLocator

    bins = [record["bins"] for record in records if record["bins"]]
    if bins and max(one[-1][1] for one in bins) > 8 * min(_first(*one[0][:2]) for one in bins):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")


def _first(first: float, last: float) -> float:
    """Where a bar begins: that from 0 on has no beginning on a logarithmic axis."""
    return max(first, last / 2)


def lengths(record: Mapping[str, Any]) -> str:
    """Least, median and greatest value."""
    if not record["count"]:
        return "-"
    return " / ".join(f"{record[key]:.4g}" for key in ("least", "median", "greatest"))


def _names(counts: Mapping[str, int]) -> str:
    shown = [f"{name}: {count:,}" for name, count in list(counts.items())[:MAX_SHOWN]]
    return ", ".join(shown + ([f"and {len(counts) - MAX_SHOWN} more"] if len(counts) > MAX_SHOWN else [])) or "-"
