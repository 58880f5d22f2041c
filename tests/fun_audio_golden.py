"""The released code's own numbers on tiny checkpoints, for the tests that compare with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "dev"
CHECKPOINT = GOLDEN / "ckpt"

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the released code's numbers (shared/golden) are not here"
)


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def golden_json(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with ``prefix.``, without it."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def close(left: Tensor, right: Tensor, atol: float = 2e-4, rtol: float = 1e-4) -> None:
    import torch

    torch.testing.assert_close(left, right, atol=atol, rtol=rtol)
