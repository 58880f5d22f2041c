"""What devices can do: vendors' figures, and the share of them that training reaches.

Peaks are dense products in bfloat16 with sums in float32, without sparsity. Memory is what the driver reports. Sources:
NVIDIA's data sheets of H100, H200, B200, A100, L40S, L4 and the white paper of Ada; for the CPU one thread of an x86-64
machine with AVX2 as measured by ``docs/estimate.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MACHINES", "Machine", "machine_named"]

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """One device."""

    name: str
    bf16_flops: float  # products in bfloat16, FLOP/s
    fp32_flops: float  # products in float32, FLOP/s
    bandwidth: float  # of its memory, bytes/s
    memory: int  # bytes
    link: float  # to the next device of the same machine, bytes/s in one direction
    utilisation: float = 0.40  # share of the peak that forward and backward reach (MFU)
    reserve: int = 1 * GIB  # what the driver, the kernels and the communication library hold

    def flops(self, half: bool) -> float:
        """FLOP/s at the peak, in bfloat16 or float32."""
        return self.bf16_flops if half else self.fp32_flops


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("b200", 2250e12, 75e12, 8.0e12, 179 * GIB, 900e9),
        Machine("h200", 989e12, 67e12, 4.8e12, 139 * GIB, 450e9),
        Machine("h100", 989e12, 67e12, 3.35e12, 79 * GIB, 450e9),
        Machine("a100-80", 312e12, 19.5e12, 2.039e12, 79 * GIB, 300e9),
        Machine("a100-40", 312e12, 19.5e12, 1.555e12, 39 * GIB, 300e9),
        Machine("l40s", 362e12, 91.6e12, 0.864e12, 44 * GIB, 25e9),
        Machine("l4", 121e12, 30.3e12, 0.30e12, 22 * GIB, 25e9),
        Machine("4090", 165e12, 82.6e12, 1.008e12, 23 * GIB, 25e9),
        Machine("3090", 71e12, 35.6e12, 0.936e12, 23 * GIB, 25e9),
        # one thread; bfloat16 without units for it is emulated
        Machine("cpu", 0.6e9, 70e9, 10e9, 16 * GIB, 1e9, utilisation=1.0, reserve=GIB // 2),
    )
}


def machine_named(name: str) -> Machine:
    """A machine of the table.

    Raises:
        ValueError: There is none of that name.
    """
    found = MACHINES.get(name.lower())
    if found is None:
        raise ValueError(f"there is no device {name!r} in the table; --gpu takes {', '.join(MACHINES)}")
    return found
