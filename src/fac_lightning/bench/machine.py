"""The machine that was measured on, in numbers that belong under every table."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

__all__ = ["check_device", "machine_line", "peak_flops"]

#: FLOP a second of dense bf16 matrix products, by what the device calls itself; from the makers' data sheets
_PEAKS = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("RTX 4090", 165e12),
    ("T4", 65e12),
)


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: Torch does not know it, or sees no such device here.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"--device {device}: torch knows no such device; take cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch sees no CUDA device here; leave it out for the CPU")


def machine_line(device: str, threads: int) -> dict[str, Any]:
    """Versions, processor, threads, load and device."""
    line: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "device": device,
    }
    if torch.device(device).type == "cuda":
        line["gpu"] = torch.cuda.get_device_name(device)
        line["cuda"] = torch.version.cuda
    return line


def peak_flops(device: str) -> float | None:
    """FLOP a second of bf16 that the maker gives for the device; None where we know none, as for a CPU."""
    if torch.device(device).type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for word, peak in _PEAKS if word in name), None)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
