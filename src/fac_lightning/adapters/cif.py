"""Continuous integrate-and-fire: frames -> as many positions as the speech has to say.

Legend: B clips, T frames, P positions (``ceil(T / group_size)``), k frames per group, W width of a frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fac_lightning.adapters.base import FrameStream
from fac_lightning.adapters.grouping import Grouping
from fac_lightning.types import SpeechFeatures

__all__ = ["CIFGrouping", "Integrated", "integrate"]

#: What is left at the end of a clip fires if it weighs at least this much.
TAIL = 0.5


@dataclass(frozen=True)
class Integrated:
    """What fired, and what is left for the next frames."""

    fired: Tensor  # (B, P) bool
    values: Tensor  # (B, P, W) float32, the weighted sum of frames that fired there; anything elsewhere
    weight: Tensor  # (B,) float64 in [0, 1), integrated since the last fire
    carry: Tensor  # (B, W) float32, the weighted sum since the last fire


def integrate(frames: Tensor, weights: Tensor, group_size: int, weight: Tensor, carry: Tensor) -> Integrated:
    """Sum weighted frames and fire where the summed weights pass a whole number (https://arxiv.org/abs/1905.11235).

    The weight of the frame at which it fires is split: what fills the sum to one goes to the old sum, the rest begins
    the new one. The weights of a group sum to less than one, so no group fires twice.

    Args:
        frames: ``(B, P * group_size, W)``.
        weights: ``(B, P * group_size)`` in ``[0, 1 / group_size)``.
        group_size: Frames per position.
        weight: What was integrated since the last fire, ``(B,)`` float64.
        carry: The weighted sum since then, ``(B, W)``.
    """
    rows, width, positions = len(frames), frames.shape[-1], frames.shape[1] // group_size
    # in double precision: where it fires must not depend on how the frames came
    end = weight[:, None] + weights.double().cumsum(1)  # (B, T)
    start = torch.cat([weight[:, None], end[:, :-1]], dim=1)
    place = start.detach().floor()  # which sum a frame goes to
    fires = end.detach().floor() > place
    old = torch.where(fires, place + 1 - start, weights.double()).to(frames.dtype)
    new = torch.where(fires, end - place - 1, 0).to(frames.dtype)
    rooms = positions + 2
    index = place.long() + rooms * torch.arange(rows, device=frames.device)[:, None]
    sums = torch.zeros(rows * rooms, width, device=frames.device)
    sums = sums.index_add(0, index.flatten(), (old[..., None] * frames).flatten(0, 1).float())
    sums = sums.index_add(0, index.flatten() + 1, (new[..., None] * frames).flatten(0, 1).float())
    sums = sums.unflatten(0, (rows, rooms)) + F.pad(carry.float()[:, None], (0, 0, 0, rooms - 1))
    fired = fires.unflatten(1, (positions, group_size)).any(-1)
    order = (fired.cumsum(1) - 1).clamp_min(0)
    last = end[:, -1:].detach().floor()
    return Integrated(
        fired=fired,
        values=sums.gather(1, order[..., None].expand(-1, -1, width)),
        weight=(end[:, -1:] - last).squeeze(1),
        carry=sums.gather(1, last.long()[..., None].expand(-1, -1, width)).squeeze(1),
    )


@dataclass
class FireStream(FrameStream):
    """Frames that wait, behind those that their weights look back to, and what was integrated before."""

    weight: Tensor  # (B,) float64
    carry: Tensor  # (B, W) float32


class CIFGrouping(Grouping):
    """Fire a position when enough was heard, and leave the others out: a variable rate on the fixed grid.

    Every frame gets a weight; where the summed weights pass a whole number, the weighted sum of the frames since the
    last time is one position (Dong & Xu 2020, https://arxiv.org/abs/1905.11235). A weight is less than
    ``1 / group_size``, so at most one position fires in a group: it stands where the group's position would stand, and
    the model leaves out positions at which nothing fires. What is left at the end of a clip fires if it weighs at least
    a half and the last position is free; it is scaled to one.

    The number of words is not known here, so the quantity loss holds the mean rate: ``|sum(weights) - N|`` over all
    clips of a line, divided by the positions of the grid, with ``N`` = ``target_rate`` times these. A clip may say more
    than another. The model finds it by ``auxiliary_loss`` (``SpeechLM.auxiliary_losses``).

    Args:
        in_dim: Width of the encoder's frames.
        group_size: Frames per position of the grid; the highest rate.
        dim: Width of the backbone.
        target_rate: Part of the grid's positions that is to fire, between 0 and 1.
        kernel_size: Frames that a weight looks at: its own and those before.
        quantity_weight: Weight of the quantity loss.
    """

    context = "past"
    variable_rate = True

    def __init__(
        self,
        in_dim: int,
        group_size: int,
        dim: int,
        target_rate: float = 0.5,
        kernel_size: int = 3,
        quantity_weight: float = 1.0,
    ) -> None:
        super().__init__(in_dim, group_size, dim)
        if not 0 < target_rate < 1 or kernel_size < 1 or quantity_weight < 0:
            raise ValueError(
                "target_rate must lie between 0 and 1 (both left out), kernel_size be at least 1 and quantity_weight "
                f"not negative, got {target_rate}, {kernel_size} and {quantity_weight}"
            )
        self.target_rate, self.reach, self.quantity_weight = target_rate, kernel_size - 1, quantity_weight
        self.look = nn.Conv1d(in_dim, in_dim, kernel_size)
        self.weigh = nn.Linear(in_dim, 1)
        self.proj = nn.Linear(in_dim, dim)
        nn.init.constant_(self.weigh.bias, math.log(target_rate / (1 - target_rate)))  # starts near the target
        self._quantity: Tensor | None = None

    def auxiliary_loss(self) -> Tensor | None:
        """Quantity loss ``()`` of the last forward in training, handed out once."""
        loss, self._quantity = self._quantity, None
        return loss

    def forward(self, features: Tensor, lengths: Tensor) -> SpeechFeatures:
        """Positions ``(B, ceil(T / group_size), dim)`` of frames ``(B, T, in_dim)``; ``present`` where one fired."""
        groups, _, positions = self._groups(features, lengths)
        frames = groups.flatten(1, 2)
        if frames.shape[1] == 0:
            return self._nothing(len(frames))
        state = self.new_state(len(frames))
        weights = self._weights(torch.cat([state.frames.to(frames.dtype), frames], dim=1), lengths)
        if self.training and torch.is_grad_enabled() and len(frames):
            part = weights.sum() * self.group_size / lengths.sum().clamp_min(1)
            self._quantity = self.quantity_weight * (part - self.target_rate).abs()
        done = integrate(frames, weights, self.group_size, state.weight, state.carry)
        return self._close(done, positions)

    def new_state(self, batch_size: int) -> FireStream:
        """Before its first frame a clip is zero, and nothing was integrated."""
        like = self.proj.weight
        return FireStream(
            frames=like.new_zeros(batch_size, self.reach, self.in_dim),
            weight=torch.zeros(batch_size, dtype=torch.float64, device=like.device),
            carry=torch.zeros(batch_size, self.in_dim, device=like.device),
        )

    def step(self, features: Tensor, state: FireStream) -> SpeechFeatures:
        """Positions ``(B, P, dim)`` of the groups that the next frames ``(B, t, in_dim)`` leave behind.

        The last group waits for a frame after it: at the end of a clip what is left fires in it.
        """
        frames = torch.cat([state.frames, features], dim=1)
        whole = max(0, (frames.shape[1] - self.reach - 1) // self.group_size * self.group_size)
        state.frames = frames[:, whole:]
        if whole == 0:
            return self._nothing(len(frames))
        done = self._go_on(frames[:, : self.reach + whole], whole, state)
        state.weight, state.carry = done.weight, done.carry
        return self._out(done.fired, done.values)

    def finish(self, state: FireStream) -> SpeechFeatures:
        """Positions ``(B, P, dim)`` of the last group: the clips end here."""
        waiting = state.frames.shape[1] - self.reach
        if waiting == 0:
            return self._nothing(len(state.frames))
        frames = F.pad(state.frames, (0, 0, 0, self.group_size - waiting))
        done = self._go_on(frames, waiting, state)
        return self._close(done, torch.ones(len(frames), dtype=torch.long, device=frames.device))

    def _go_on(self, frames: Tensor, count: int, state: FireStream) -> Integrated:
        """Integrate ``count`` frames behind those that are looked back to."""
        weights = self._weights(frames, torch.full((len(frames),), count, device=frames.device))
        return integrate(frames[:, self.reach :], weights, self.group_size, state.weight, state.carry)

    def _weights(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Weights ``(B, T)`` of frames ``(B, reach + T, in_dim)``, zero after each length."""
        looked = F.gelu(self.look(frames.transpose(1, 2))).transpose(1, 2)  # (B, T, in_dim)
        # a little less than 1 / group_size, so that rounding never lets a group fire twice
        weights: Tensor = self.weigh(looked).squeeze(-1).float().sigmoid() * ((1 - 1e-6) / self.group_size)
        keep = torch.arange(weights.shape[1], device=weights.device) < lengths[:, None]
        return weights.masked_fill(~keep, 0)

    def _close(self, done: Integrated, positions: Tensor) -> SpeechFeatures:
        """The end of clips of ``positions`` ``(B,)``: what is left may fire at their last position."""
        last = torch.arange(done.fired.shape[1], device=positions.device) == positions[:, None] - 1  # (B, P)
        tail = last & ~done.fired & (done.weight >= TAIL)[:, None]
        rest = done.carry / done.weight.clamp_min(TAIL).to(done.carry.dtype)[:, None]
        return self._out(done.fired | tail, torch.where(tail[..., None], rest[:, None], done.values), positions)

    def _out(self, fired: Tensor, values: Tensor, positions: Tensor | None = None) -> SpeechFeatures:
        features = self.proj(values.to(self.proj.weight.dtype)).masked_fill(~fired[..., None], 0)
        if positions is None:
            positions = torch.full((len(fired),), fired.shape[1], device=fired.device)
        return SpeechFeatures(features, positions, fired)

    def _nothing(self, rows: int) -> SpeechFeatures:
        none = self.proj.weight.new_zeros(rows, 0, self.dim) + self._untouched()
        return SpeechFeatures(none, torch.zeros(rows, dtype=torch.long, device=none.device), none[..., 0].bool())
