"""Parts of a third party for the tests of recipes: the package knows none of them, a dotted path is enough."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

BUILT: list[str] = []  # names of the parts built, to prove that nothing is built before all is checked


class Adapter(nn.Module):
    """An adapter of the old kind."""

    def __init__(self, dim: int, group_size: int = 5, codebook_size: int = 64) -> None:
        super().__init__()
        BUILT.append("Adapter")
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class QueryAdapter(nn.Module):
    """Another adapter with other arguments."""

    def __init__(self, dim: int, num_queries: int = 32, kind: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, got {num_queries}")
        self.num_queries, self.kind = num_queries, kind
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Inherits(QueryAdapter):
    """No constructor of its own."""


class Silent(nn.Module):
    """Takes nothing."""


class Model(nn.Module):
    """Holds one slot."""

    def __init__(self, adapter: nn.Module, dim: int = 4, options: dict[str, int] | None = None) -> None:
        super().__init__()
        self.adapter, self.options = adapter, options
        self.embed = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.out.weight = self.embed.weight  # tied

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.adapter(self.embed(x)))


class Task(lightning.LightningModule):
    """Learns to give back what it gets."""

    def __init__(self, model: nn.Module, optimizer: partial, scale: float = 1.0) -> None:
        super().__init__()
        self.model, self.make_optimizer, self.scale = model, optimizer, scale

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss = (self.model(batch) - batch).square().mean() * self.scale
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.model.parameters())


@dataclass(frozen=True)
class Geometry:
    """Fields as arguments."""

    dim: int
    rate: float = 1.0
    names: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    area: int = field(default=0, init=False)


@dataclass(frozen=True)
class Wider(Geometry):
    """Inherits fields."""

    width: int = 0


class Data(lightning.LightningDataModule):
    """Random vectors."""

    def __init__(self, dim: int, batch_size: int = 2) -> None:
        super().__init__()
        self.rows = torch.randn(16, dim, generator=torch.Generator().manual_seed(0))
        self.batch_size = batch_size

    @classmethod
    def small(cls, dim: int) -> Data:
        """Another way to make one."""
        return cls(dim, batch_size=1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, self.batch_size)


class Job:
    """Writes a file."""

    def __init__(self, out: str, text: str = "done") -> None:
        self.out, self.text = Path(out), text

    def run(self) -> dict[str, str]:
        """Work."""
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "work.txt").open("a") as file:
            file.write(f"{self.text}\n")
        return {"text": self.text}


def needs_keyword(*, steps: int, rate: float | None = None) -> tuple[int, float | None]:
    """A function as a target."""
    return steps, rate
