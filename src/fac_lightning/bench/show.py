"""A report as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table

from fac_lightning.bench.base import BenchReport, CellResult
from fac_lightning.bench.machine import peak_flops

__all__ = ["report_dict", "report_lines", "report_table"]


def report_dict(report: BenchReport) -> dict[str, Any]:
    """Everything of a report, as JSON takes it."""
    peak = peak_flops(report.settings.device)
    return {
        "benchmark": report.benchmark,
        "settings": {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(report.settings).items()
        },
        "machine": dict(report.machine),
        "cells": [cell.as_dict(peak) for cell in report.cells],
        "findings": dict(report.findings),
    }


def report_table(report: BenchReport) -> Table:
    """One row a cell; columns that no cell fills are left out."""
    peak = peak_flops(report.settings.device)
    first = report.cells[0]
    table = Table(title=f"fac bench {report.benchmark} --config {report.settings.config}")
    rows = [dict(_columns(report, cell, first, peak)) for cell in report.cells]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table.add_column("cell", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    for cell, row in zip(report.cells, rows, strict=True):
        table.add_row(cell.name, *(row.get(name, "") for name in columns))
    return table


def report_lines(report: BenchReport) -> list[str]:
    """Findings, then the machine, each in a line."""
    lines = [f"{name}: {_number(value)}" for name, value in report.findings.items()]
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    settings = report.settings
    return [*lines, f"{machine}; medians over {settings.rounds} round(s) of {settings.reps}"]


def _columns(report: BenchReport, cell: CellResult, first: CellResult, peak: float | None) -> Iterator[tuple[str, str]]:
    yield "ms", _number(1000 * cell.median)
    if report.settings.rounds > 1:
        yield "IQR", _number(1000 * cell.spread, 2)
    yield f"x {first.name}", f"{report.ratio(cell.name, first.name):.2f}"
    for unit in cell.work:
        yield f"{unit}/s", _number(cell.rate(unit))
    if cell.memory is not None:
        yield "peak MB", f"{cell.memory / 1e6:,.0f}"
    if cell.resident is not None:
        yield "process MB", f"{cell.resident / 1e6:,.0f}"
    if cell.flops:
        yield "GFLOP", _number(cell.flops / 1e9)
        if peak:
            yield "MFU", f"{100 * cell.flops / cell.median / peak:.1f} %"
    for name, value in cell.values.items():
        yield name, _number(value)


def _number(value: float, digits: int = 4) -> str:
    """So many digits, and no exponent for large numbers."""
    large = math.isfinite(value) and abs(value) >= 10**digits - 0.5
    return f"{value:,.0f}" if large else f"{value:,.{digits}g}"
