"""Frozen parts: no gradient, nothing kept for a backward pass, eval mode; and what is trained still learns."""

from __future__ import annotations

import logging

import lightning
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from fac_lightning.callbacks.module_freezing import ModuleFreezing
from fac_lightning.data.packing import share_totals
from fac_lightning.tasks import SpeechSFT
from fac_lightning.tasks.optimization import silent_modules
from fac_lightning.testing.tiny import tiny_batch, tiny_speech_lm


class Kept:
    """Counts the tensors that modules keep for a backward pass while they run, by name."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        self.counts = dict.fromkeys(names, 0)
        self.outputs: dict[str, bool] = {}
        for name in names:
            module = model.get_submodule(name)
            module.register_forward_pre_hook(lambda *_, name=name: self.enter(name))
            module.register_forward_hook(lambda _module, _args, output, name=name: self.leave(name, output))

    def enter(self, name: str) -> None:
        def keep(tensor: torch.Tensor) -> torch.Tensor:
            self.counts[name] += 1
            return tensor

        self.hooks = saved_tensors_hooks(keep, lambda tensor: tensor)
        self.hooks.__enter__()

    def leave(self, name: str, output: object) -> None:
        self.hooks.__exit__(None, None, None)
        output = output[0] if isinstance(output, tuple) else output
        self.outputs[name] = getattr(output, "features", output).requires_grad


def step(freeze: list[str], *watched: str, speech: bool = True):
    """One training step of a tiny model; what the watched modules kept, and the model with its gradients."""
    model = tiny_speech_lm()
    kept = Kept(model, *watched)
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    line = share_totals([tiny_batch(model, rows=2, speech=speech)])[0]

    class Look(lightning.Callback):
        gradients: dict[str, bool]

        def on_before_optimizer_step(self, trainer, task, optimizer):
            grads = {name: p.grad for name, p in task.model.named_parameters()}
            self.gradients = {n: g is not None and bool(g.abs().sum() > 0) for n, g in grads.items()}
            self.none = {n for n, g in grads.items() if g is None}

    look = Look()
    trainer.callbacks.append(look)
    loader = torch.utils.data.DataLoader([line], batch_size=None)
    trainer.fit(SpeechSFT(model, freeze=freeze, warmup_steps=0), loader)
    return kept, look


def slots(names) -> set[str]:
    return {name.split(".")[0] for name in names}


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*no `val_dataloader`", "ignore:.*smaller than the logging interval"
)


def test_a_frozen_encoder_keeps_nothing():
    kept, look = step([], "encoder")
    assert kept.counts["encoder"] > 0
    kept, look = step(["encoder"], "encoder")
    assert kept.counts == {"encoder": 0}
    assert kept.outputs == {"encoder": False}
    assert slots(look.none) == {"encoder"}


def test_a_frozen_backbone_hands_gradients_to_the_adapters_in_front_of_it():
    kept, look = step(["backbone", "encoder"], "backbone")
    assert kept.outputs == {"backbone": True}
    assert slots(look.none) == {"backbone", "encoder"}
    learning = slots(name for name, there in look.gradients.items() if there)
    assert {"feature_adapter", "code_adapter", "head"} <= learning


@pytest.mark.parametrize("speech", [True, False])
def test_with_all_but_the_head_frozen_no_graph_goes_through_the_backbone(speech):
    kept, look = step(["backbone", "encoder", "feature_adapter", "code_adapter"], "backbone", speech=speech)
    assert kept.counts == {"backbone": 0}
    assert kept.outputs == {"backbone": False}
    assert slots(look.none) == slots(look.gradients) - {"head"}


def test_a_frozen_prefix_of_the_backbone_keeps_nothing():
    first, second = "backbone.model.layers.0", "backbone.model.layers.1"
    frozen = ["encoder", "feature_adapter", "code_adapter", "backbone.*embed_tokens*", first]
    kept, look = step(frozen, first)
    assert kept.counts == {first: 0}
    assert first not in {name.rsplit(".", 2)[0] for name, there in look.gradients.items() if there}
    kept, look = step(frozen, second)
    assert kept.counts[second] > 0


def test_a_tensor_that_two_slots_share_is_frozen_with_either():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
            self.two.weight = self.one.weight

    for slot, other in (("one", "two"), ("two", "one")):
        task = SpeechSFT(Tied(), freeze=[slot])
        task.trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        task.setup("fit")
        assert not task.model.get_submodule(slot).weight.requires_grad
        assert task.model.get_submodule(other).bias.requires_grad
        task.teardown("fit")
        assert all(parameter.requires_grad for parameter in task.model.parameters())


def test_modules_without_parameters_are_silent_when_they_are_frozen():
    model = nn.ModuleDict(
        {
            "noise": nn.Dropout(0.5),
            "part": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)),
            "rest": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)),
        }
    )
    for parameter in model["part"][0].parameters():
        parameter.requires_grad_(False)

    def silent(*patterns: str) -> set[str]:
        found = {id(module) for module in silent_modules(model, patterns)}
        return {name for name, module in model.named_modules() if id(module) in found}

    assert silent() == {"part.0"}
    assert silent("noise", "part.0") == {"noise", "part.0"}
    assert silent("rest.*") == {"part.0", "rest.1"}, "what is trained is not silent"
    model["part"].requires_grad_(False)
    assert silent("part") == {"part", "part.0", "part.1", "part.2"}
    assert silent() == {"part", "part.0", "part.2"}


def test_what_is_trained_is_printed_by_slot(caplog):
    caplog.set_level(logging.INFO)
    step(["backbone", "encoder"])
    table = next(m for m in caplog.messages if m.startswith("slot"))
    rows = {cells[0]: cells[1:] for cells in map(str.split, table.splitlines())}
    assert set(rows) == {"slot", "backbone", "head", "encoder", "feature_adapter", "code_adapter", "total"}
    assert rows["backbone"][0] == rows["encoder"][0] == "0"
    assert rows["head"][0] == rows["head"][1] != "0"


class Plain(lightning.LightningModule):
    """A module of somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        self.head = nn.Linear(2, 1)
        self.modes: set[tuple[bool, bool]] = set()

    def training_step(self, batch, index):
        self.modes.add((self.encoder[1].training, self.head.training))
        hidden = self.encoder(batch)
        assert not hidden.requires_grad
        return self.head(hidden).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.1)


def fit_plain(*patterns: str) -> Plain:
    module = Plain()
    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ModuleFreezing(list(patterns))],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(6, 2), batch_size=2))
    return module


def test_the_callback_freezes_parts_of_any_module():
    torch.manual_seed(0)
    start = Plain().state_dict()
    torch.manual_seed(0)
    module = fit_plain("encoder")
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {"head.weight", "head.bias"}
    assert module.modes == {(False, True)}
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["encodr"], "ModuleFreezing: 'encodr' matches no parameter; did you mean encoder"),
        (["*"], r"ModuleFreezing: \['\*'\] leave nothing to train"),
        ([], "patterns is empty"),
    ],
)
def test_the_callback_refuses_what_does_nothing(patterns, message):
    with pytest.raises(ValueError, match=message):
        fit_plain(*patterns)
