"""An estimate as numbers, for files, and as tables, for readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fac_lightning.estimate import Assessment, Conversation, LineCost, RateComparison, Remedy, Setting

__all__ = ["as_dict", "show"]

GB = 1e9


def as_dict(
    name: str,
    line: LineCost,
    setting: Setting,
    found: Assessment,
    ways: Sequence[Remedy],
    rates: RateComparison | None,
    conversation: Conversation,
    steps: float | None,
    price: float | None,
) -> dict[str, Any]:
    """All numbers of an estimate as JSON takes them: bytes, operations, seconds."""
    report: dict[str, Any] = {
        "recipe": name,
        "device": {
            "name": setting.machine.name,
            "count": setting.ranks,
            "strategy": setting.sharding.name,
            "peak_flops": setting.machine.flops(setting.half),
            "utilisation": setting.machine.utilisation if setting.utilisation is None else setting.utilisation,
            "bandwidth": setting.machine.bandwidth,
            "memory": setting.machine.memory,
        },
        "line": {
            "positions": line.positions,
            "conversation_seconds": line.seconds,
            "prompt_tokens": conversation.prompt_tokens,
            "user_seconds": conversation.user_seconds,
            "reply_seconds": conversation.reply_seconds,
            "lines_per_step": setting.lines,
        },
        "parameters": {
            slot: {"total": size.total, "trained": size.trained, "bytes": size.bytes}
            for slot, size in line.slots.items()
        },
        "memory": _memory(found),
        "flops": {
            "line": line.total_flops,
            "by_slot": line.by_slot(),
            "by_phase": line.by_phase(),
        },
        "step": {
            "seconds": found.time.total,
            "compute": found.time.compute,
            "optimizer": found.time.optimizer,
            "communication": found.time.communication,
            "conversation_seconds_per_second": found.conversation_seconds / found.time.total,
        },
        "fits": found.fits,
        "remedies": [
            {
                "name": way.name,
                "words": way.words,
                "total": way.outcome.memory.total,
                "headroom": way.outcome.headroom,
                "device_seconds_ratio": way.outcome.device_seconds / found.device_seconds,
            }
            for way in ways
        ],
    }
    if steps is not None:
        hours = found.hours(steps)
        report["training"] = {"steps": steps, "hours": hours, "device_hours": hours * setting.ranks}
        report["training"]["conversation_hours"] = steps * found.conversation_seconds / 3600
        if price is not None:
            report["training"]["cost"] = hours * setting.ranks * price
    if rates is not None:
        report["rates"] = {
            name: {
                "flops": cost.line.total_flops,
                "positions": cost.line.positions,
                "train_seconds": cost.train_seconds,
                "decode_bytes": cost.group.total_bytes if cost.group else None,
                "decode_ms_per_200ms": 1e3 * cost.decode_seconds,
            }
            for name, cost in rates.costs.items()
        }
    return report


def _memory(found: Assessment) -> dict[str, Any]:
    memory = found.memory
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.states,
        "buffers": memory.buffers,
        "activations": memory.activations,
        "activations_by_slot": dict(memory.by_slot),
        "update": memory.update,
        "reserve": memory.reserve,
        "total": memory.total,
        "room": found.room,
        "headroom": found.headroom,
    }


def show(report: Mapping[str, Any]) -> None:
    """Print the tables of a report."""
    from rich.console import Console

    console = Console()
    device, line = report["device"], report["line"]
    console.print(
        f"{report['recipe']} on {device['count']} x {device['name']}, {device['strategy']}: "
        f"{line['lines_per_step']} x {line['positions']} positions a rank and step "
        f"({line['conversation_seconds']:.0f} s of conversation a line: {line['prompt_tokens']} tokens of prompt, "
        f"{line['user_seconds']:g} s of question, {line['reply_seconds']:g} s of answer each)",
        highlight=False,
        soft_wrap=True,
    )
    for table in (_parts(report), _bytes(report)):
        console.print(table)
    for text in _verdict(report):
        console.print(text, highlight=False, soft_wrap=True)
    if "rates" in report:
        console.print(_rates(report["rates"]))


def _table(*columns: str, title: str | None = None) -> Any:
    from rich.table import Table

    table = Table(*columns, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _parts(report: Mapping[str, Any]) -> Any:
    table = _table("slot", "parameters", "trained", "GFLOP a line", "share")
    flops = report["flops"]["by_slot"]
    total = report["flops"]["line"]
    for slot in dict.fromkeys([*report["parameters"], *flops]):
        size = report["parameters"].get(slot)
        counts = (f"{size['total']:,}", f"{size['trained']:,}") if size else ("", "")
        work = flops.get(slot, 0)
        table.add_row(slot, *counts, f"{work / 1e9:,.1f}", f"{work / total:.0%}")
    sums = [sum(size[key] for size in report["parameters"].values()) for key in ("total", "trained")]
    table.add_section()
    table.add_row("total", f"{sums[0]:,}", f"{sums[1]:,}", f"{total / 1e9:,.1f}", "")
    return table


def _bytes(report: Mapping[str, Any]) -> Any:
    memory = report["memory"]
    table = _table("memory of a rank", "GB")
    for name in ("weights", "gradients", "optimizer", "buffers", "activations"):
        table.add_row(name, f"{memory[name] / GB:,.2f}")
        if name == "activations":
            held = memory["activations_by_slot"]
            more = memory["activations"] - sum(held.values())
            for slot, size in [*sorted(held.items(), key=lambda item: -item[1]), ("more in the backward pass", more)]:
                if size >= 0.01 * memory["activations"]:
                    table.add_row(f"  {slot}", f"[dim]{size / GB:,.2f}[/dim]")
    if memory["update"] > memory["activations"]:
        table.add_row("update (after activations are gone)", f"{memory['update'] / GB:,.2f}")
    table.add_row("reserve", f"{memory['reserve'] / GB:,.2f}")
    table.add_section()
    table.add_row("total", f"{memory['total'] / GB:,.2f}")
    return table


def _verdict(report: Mapping[str, Any]) -> list[str]:
    memory, step, device = report["memory"], report["step"], report["device"]
    if report["fits"]:
        lines = [f"fits: {memory['headroom'] / GB:.1f} of {memory['room'] / GB:.1f} GB are left"]
    else:
        missing, there = -memory["headroom"] / GB, memory["room"] / GB
        lines = [f"does not fit: {missing:.1f} GB more than the {there:.1f} GB there are"]
        for way in report["remedies"]:
            words = f" ({way['words']})" if way["words"] else ""
            lines.append(
                f"  {way['name']}: {way['total'] / GB:.1f} GB, "
                f"{way['device_seconds_ratio']:.2f} x the device time{words}"
            )
        if not report["remedies"]:
            lines.append("  no single change makes it fit; try several, for example more devices and shorter lines")
    lines.append(
        f"a step: {_seconds(step['seconds'])} (compute {_seconds(step['compute'])} at {device['utilisation']:.0%} of "
        f"{device['peak_flops'] / 1e12:g} TFLOP/s, update {_seconds(step['optimizer'])}, "
        f"waiting for other ranks {_seconds(step['communication'])}); "
        f"{step['conversation_seconds_per_second']:,.0f} s of conversation a second"
    )
    if "training" in report:
        training = report["training"]
        cost = f", cost {training['cost']:,.2f}" if "cost" in training else ""
        lines.append(
            f"the training: {training['steps']:,.0f} steps, {training['conversation_hours']:,.1f} h of conversation, "
            f"{training['hours']:,.2f} h, {training['device_hours']:,.2f} device hours{cost}"
        )
    return lines


def _rates(rates: Mapping[str, Any]) -> Any:
    table = _table("the same conversation", *rates)
    first = next(iter(rates.values()))

    def row(name: str, key: str, scale: float, digits: int) -> None:
        cells = [f"{cost[key] * scale:,.{digits}f}" for cost in rates.values()]
        table.add_row(name, *cells)

    def saved(name: str, key: str) -> None:
        table.add_row(name, *(f"{1 - cost[key] / first[key]:.0%}" for cost in rates.values()))

    row("positions", "positions", 1, 0)
    row("training, GFLOP", "flops", 1e-9, 1)
    row("training, ms", "train_seconds", 1e3, 2)
    saved("  time saved", "train_seconds")
    row("speaking 200 ms, ms", "decode_ms_per_200ms", 1, 3)
    saved("  time saved", "decode_ms_per_200ms")
    return table


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"
