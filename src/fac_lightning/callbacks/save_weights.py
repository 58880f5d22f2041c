"""Leave the trained model as one safetensors file, and read such a file back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_warn
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

__all__ = ["LoadedWeights", "SaveWeights", "load_weights"]

WEIGHTS_FILE = "model.safetensors"


class SaveWeights(Callback):
    """Write ``model.safetensors`` into the run folder when training has ended.

    It holds ``pl_module.model`` without optimizer, so it can be shared and is read without unpickling anything.
    A tensor that two modules share is written once. Where a strategy spreads the weights over processes (FSDP, tensor
    parallel, DeepSpeed's stage 3) no process holds them whole: nothing is written, and a warning says so at the start.
    """

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say so early when there will be no file."""
        if spreads_weights(trainer.strategy):
            rank_zero_warn(
                f"{type(trainer.strategy).__name__} spreads the weights over processes, so {WEIGHTS_FILE} will not be "
                "written: they stay in the checkpoints. With ddp or deepspeed_stage_2 it is written"
            )

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write beside and rename: the file is the old one or the new one, never half of one."""
        if not trainer.is_global_zero or spreads_weights(trainer.strategy):
            return
        model = getattr(pl_module, "model", None)
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"SaveWeights saves 'model' of the task, but {type(pl_module).__name__} has no such module"
            )
        path = Path(trainer.default_root_dir) / WEIGHTS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.part")
        save_model(model, str(draft), metadata={"format": "pt"})
        draft.replace(path)


def spreads_weights(strategy: Strategy) -> bool:
    """Whether no process holds the whole weights."""
    if isinstance(strategy, DeepSpeedStrategy):
        return bool(strategy.zero_stage_3)
    return isinstance(strategy, FSDPStrategy | ModelParallelStrategy)


@dataclass(frozen=True)
class LoadedWeights:
    """Names of tensors: what came from a file and what did not."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # in the module, not in the file
    unexpected: tuple[str, ...]  # in the file, not in the module
    mismatched: tuple[str, ...]  # in both, with other sizes: "name (4, 8) in the file, (4, 16) here"

    def __str__(self) -> str:
        rest = ((self.missing, "missing"), (self.unexpected, "unexpected"), (self.mismatched, "of another size"))
        return ", ".join(
            [f"{len(self.loaded)} tensors loaded", *(f"{len(names)} {what}" for names, what in rest if names)]
        )


def load_weights(module: nn.Module, path: str | Path, strict: bool = True) -> LoadedWeights:
    """Load a safetensors file, or that of a run folder, into a module.

    Args:
        module: Gets the weights in place.
        path: File, or folder with ``model.safetensors``.
        strict: Refuse when a tensor is missing, unexpected or of another size; else leave those as they are.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Strict, and the names or sizes do not fit; or not one tensor fits.
    """
    path = Path(path)
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        why = f": has the run ended? Its weights are written last, {WEIGHTS_FILE}" if path.is_dir() else ""
        raise FileNotFoundError(f"there are no weights at {file}{why}")
    stored, own = load_file(str(file)), module.state_dict()
    shapes = {name: (tuple(stored[name].shape), tuple(own[name].shape)) for name in own if name in stored}
    fitting = {name for name, (there, here) in shapes.items() if there == here}
    places = {_place(own[name]) for name in shapes}  # a tied tensor is stored under one of its names
    result = LoadedWeights(
        loaded=tuple(sorted(fitting)),
        missing=tuple(sorted(name for name in own if name not in stored and _place(own[name]) not in places)),
        unexpected=tuple(sorted(stored.keys() - own.keys())),
        mismatched=tuple(
            f"{name} {shapes[name][0]} in the file, {shapes[name][1]} here" for name in sorted(shapes.keys() - fitting)
        ),
    )
    if (strict and (result.missing or result.unexpected or result.mismatched)) or not fitting:
        problem = "do not fit" if fitting else "have nothing in common with"
        raise ValueError(f"the weights of {file} {problem} this {type(module).__name__}: {_listed(result)}")
    module.load_state_dict({name: stored[name] for name in fitting}, strict=False)
    return result


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...], int]:
    # Tensors without elements all lie at address 0: their id keeps them apart.
    return tensor.data_ptr(), tuple(tensor.shape), 0 if tensor.numel() else id(tensor)


def _listed(result: LoadedWeights, most: int = 5) -> str:
    parts = []
    for what in ("missing", "unexpected", "mismatched"):
        names = getattr(result, what)
        if names:
            more = f" and {len(names) - most} more" if len(names) > most else ""
            parts.append(f"{len(names)} {what}: {', '.join(names[:most])}{more}")
    return "; ".join(parts)
