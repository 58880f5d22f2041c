"""A step of the backbone whose shapes never change, captured as a CUDA graph where there is one.

Of a small step most of the time on a GPU goes into starting its kernels one by one; a graph starts them at once. The
step then goes over all slots and over all positions that have room, also where nothing is in use.

Not run on a GPU so far: the step itself is held to the plain one by tests on a CPU, the capture by a test that skips
where there is no CUDA device.

Legend: S slots, R rows in use, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fac_lightning.backbones.base import Backbone
from fac_lightning.slot_cache import SlotCache

__all__ = ["FixedStep"]

#: Runs before the capture, in which kernels are chosen and memory is reserved.
WARM_UPS = 3


class FixedStep:
    """``Backbone.step_slots`` of all rows in use, with fixed shapes.

    Args:
        backbone: Steps.
        slots: What it has seen. When their room grows, the step is captured anew.
        capture: As a CUDA graph; False runs it kernel by kernel.
    """

    def __init__(self, backbone: Backbone, slots: SlotCache, capture: bool) -> None:
        self.backbone, self.slots, self.capture = backbone, slots, capture
        device, dtype = slots.device, backbone.output_weight.dtype
        self._embeds = torch.zeros(slots.num_slots, 1, backbone.dim, dtype=dtype, device=device)
        self._positions = torch.zeros(slots.num_slots, 1, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._hidden = self._embeds
        self._captured = 0  # capacity of the slots then

    def __call__(self, embeds: Tensor) -> Tensor:
        """Hidden states ``(R, 1, D)`` of new positions ``(R, 1, D)``; the slots move on."""
        self.slots.reserve()
        lengths = self.slots.lengths
        self._embeds[: len(lengths)] = embeds
        self._positions[: len(lengths), 0] = torch.tensor(lengths, device=self._positions.device)
        if not self.capture:
            self._hidden = self._run()
        else:
            if self._graph is None or self._captured != self.slots.capacity:
                self._record()
            assert self._graph is not None
            self._graph.replay()
        self.slots.advance()
        return self._hidden[: len(lengths)].clone()

    def _run(self) -> Tensor:
        with self.slots.fixed_at(self._positions):
            return self.backbone.step_slots(self._embeds, self.slots)

    def _record(self) -> None:
        """Capture the step; running it more than once writes the same keys and values to the same places."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph, self._captured = torch.cuda.CUDAGraph(), self.slots.capacity
        with torch.cuda.graph(self._graph):
            self._hidden = self._run()
