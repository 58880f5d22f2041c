"""FLOPs of a call, by torch's counter and what it does not know.

The counter of torch 2.13 leaves out attention on CPUs, the experts of a mixture and products that add to a matrix in
place. They are taught to it by its own rules (``estimate.FLOP_FORMULAS``): a product of (m, k) and (k, n) is
``2 m k n``, and masked attention counts in full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from fac_lightning.estimate import FLOP_FORMULAS

__all__ = ["count_flops", "flops_by_module"]


def count_flops(call: Callable[[], Any]) -> int:
    """FLOPs of one call."""
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        call()
    return int(counter.get_total_flops())


def flops_by_module(call: Callable[[], Any]) -> Mapping[str, int]:
    """FLOPs of one call by the class path of the module that they happened in; ``Global`` is all of them."""
    with FlopCounterMode(display=False, depth=8, custom_mapping=FLOP_FORMULAS) as counter:
        call()
    return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
