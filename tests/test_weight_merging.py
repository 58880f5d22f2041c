"""A training that merges its weights with a base: at the right steps, once each, also across a checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

from fac_lightning.callbacks import SaveWeights, WeightMerging
from fac_lightning.merging import LinearMerge, TiesMerge
from fac_lightning.weights import CheckpointError


class Task(lightning.LightningModule):
    """Any LightningModule: two layers that learn to give back what they get."""

    def __init__(self, optimizer: str = "SGD") -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
        self.optimizer = optimizer

    def training_step(self, batch, index):
        return (self.model(batch) - batch).square().mean()

    def configure_optimizers(self):
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=0.1)

    def train_dataloader(self):
        rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        return DataLoader(rows.repeat(16, 1), batch_size=4)  # equal batches: it does not matter where one goes on


class Watch(Callback):
    """Keeps the weights after every batch, as the callbacks before it left them."""

    def __init__(self) -> None:
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(weights(pl_module))


def weights(task):
    return {name: p.detach().clone() for name, p in task.named_parameters()}


def task(seed=0, optimizer="SGD"):
    torch.manual_seed(seed)
    return Task(optimizer)


def fit(module, callbacks, steps=4, folder=None, ckpt_path=None, **more):
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        default_root_dir=folder,
        **more,
    )
    with warnings.catch_warnings():
        for expected in (
            "treespec", "val_dataloader", "training batches", "exists and is not empty", "before the epoch ended",
            "callbacks used to create",
        ):  # fmt: skip
            warnings.filterwarnings("ignore", f".*{expected}.*")
        trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def plain(steps):
    """Weights of a training without merging."""
    module = task()
    fit(module, [], steps)
    return weights(module)


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_end_is_merged_with_the_start():
    module = task()
    start = weights(module)
    callback = WeightMerging(LinearMerge(0.25))
    fit(module, [callback])
    expected = {name: torch.lerp(start[name], tensor, 0.25) for name, tensor in plain(4).items()}
    assert equal(weights(module), expected)
    assert callback.report.rules == {"merged": 4}
    assert callback.report.total()["delta_norm"][0] > 0


@pytest.mark.parametrize(("alpha", "same"), [(0.0, "start"), (1.0, "end")])
def test_both_ends_bit_for_bit(alpha, same):
    module = task()
    start = weights(module)
    fit(module, [WeightMerging(LinearMerge(alpha))])
    assert equal(weights(module), start if same == "start" else plain(4))


def test_every_n_steps_merges_then_and_once_at_the_end():
    watch, module = Watch(), task()
    start = weights(module)
    callback = WeightMerging(LinearMerge(0.0), every_n_steps=2)  # alpha 0 goes back to the start
    fit(module, [callback, watch], steps=5)
    assert [equal(seen, start) for seen in watch.seen] == [False, True, False, True, False]
    assert equal(weights(module), start)
    assert callback.last_step == 5


def test_a_merge_at_the_last_step_is_not_done_twice():
    module = task()
    fit(module, [WeightMerging(LinearMerge(0.5), every_n_steps=4)])
    start = weights(task())
    assert equal(weights(module), {name: torch.lerp(start[name], tensor, 0.5) for name, tensor in plain(4).items()})


def test_micro_batches_of_one_step_merge_once():
    steps = []

    class Counting(LinearMerge):
        def merge(self, name, base, tuned):
            steps.append(name)
            return super().merge(name, base, tuned)

    fit(task(), [WeightMerging(Counting(0.5), every_n_steps=1, at_end=False)], steps=2, accumulate_grad_batches=3)
    assert len(steps) == 2 * 4


def test_it_need_not_merge_at_the_end():
    module = task()
    fit(module, [WeightMerging(LinearMerge(0.0), every_n_steps=3, at_end=False)], steps=4)
    assert not equal(weights(module), weights(task()))


def test_a_base_on_disk_stands_behind_a_prefix(tmp_path):
    base = {"0.weight": torch.zeros(4, 3), "1.weight": torch.zeros(3, 4)}
    save_file(base, tmp_path / "base.safetensors")
    module = task()
    fit(module, [WeightMerging(LinearMerge(0.5), base=str(tmp_path / "base.safetensors"))])
    trained = plain(4)
    assert torch.equal(module.model[0].weight, trained["model.0.weight"] / 2)
    assert torch.equal(module.model[1].bias, trained["model.1.bias"])  # the base has no biases


def test_whole_tensor_methods_and_patterns():
    module = task()
    callback = WeightMerging(TiesMerge(density=0.5), include=["model.0"], exclude=["*.bias"])
    fit(module, [callback])
    trained = plain(4)
    changed = {name for name, tensor in weights(module).items() if not torch.equal(tensor, trained[name])}
    assert changed == {"model.0.weight"}
    assert [tensor.name for tensor in callback.report.tensors] == ["model.0.weight"]


def test_frozen_parameters_are_neither_kept_nor_merged():
    module = task()
    module.model[0].requires_grad_(False)
    callback = WeightMerging()
    fit(module, [callback])
    assert set(callback.state_dict()["start"]) == {"model.1.weight", "model.1.bias"}


def test_the_optimizer_forgets_what_was_merged():
    module = task(optimizer="Adam")
    callback = WeightMerging(every_n_steps=2, at_end=False, include=["model.1"], reset_optimizer=True)
    trainer = fit(module, [callback])
    state = trainer.optimizers[0].state
    assert module.model[0].weight in state
    assert module.model[1].weight not in state
    kept = fit(module, [WeightMerging(every_n_steps=2, at_end=False)])
    assert module.model[1].weight in kept.optimizers[0].state


def test_a_run_that_goes_on_merges_with_the_same_base(tmp_path):
    whole = task()
    fit(whole, [WeightMerging(every_n_steps=3)], steps=8)
    saved = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=4, save_top_k=-1)
    fit(task(), [WeightMerging(every_n_steps=3, at_end=False), saved], steps=4)
    resumed = task(seed=1)
    fit(resumed, [WeightMerging(every_n_steps=3)], steps=8, ckpt_path=tmp_path / "last.ckpt")
    assert equal(weights(resumed), weights(whole))


def test_what_is_saved_at_a_merge_is_not_merged_again(tmp_path):
    """The last checkpoint of a run that has ended, from which it goes on with more steps."""
    module = task()
    trainer = fit(module, [WeightMerging(LinearMerge(0.5))], steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    merged = weights(module)
    callback = WeightMerging(LinearMerge(0.5))
    again = task(seed=1)
    fit(again, [callback], steps=2, ckpt_path=tmp_path / "last.ckpt")
    assert equal(weights(again), merged)
    assert set(callback.state_dict()["start"]) == set(merged)


def test_saved_weights_are_merged_ones(tmp_path):
    module = task()
    fit(module, [WeightMerging(LinearMerge(0.0)), SaveWeights()], folder=tmp_path)
    start = weights(task())
    saved = load_file(Path(tmp_path) / "model.safetensors")
    assert all(torch.equal(saved[name.removeprefix("model.")], tensor) for name, tensor in start.items())


def test_two_such_callbacks_keep_their_states_apart():
    first, second = WeightMerging(include=["model.0"]), WeightMerging(include=["model.1"])
    assert first.state_key != second.state_key
    module = task()
    fit(module, [first, second])
    assert equal(weights(module), {n: torch.lerp(weights(task())[n], t, 0.5) for n, t in plain(4).items()})


def test_bfloat16_parameters_are_merged_in_float32():
    def trained(callbacks):
        module = task().bfloat16()
        module.train_dataloader = lambda: DataLoader(torch.ones(16, 3, dtype=torch.bfloat16), batch_size=4)
        fit(module, callbacks)
        return weights(module)

    start, end, merged = weights(task().bfloat16()), trained([]), trained([WeightMerging(LinearMerge(0.3))])
    for name, tensor in merged.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, torch.lerp(start[name].float(), end[name].float(), 0.3).bfloat16())


# refused at the start


def test_what_never_merges_is_refused():
    with pytest.raises(ValueError, match="this would never merge: set every_n_steps, or at_end=True"):
        WeightMerging(at_end=False)
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        WeightMerging(every_n_steps=0)


def test_sharded_parameters_are_refused_with_the_way_out():
    trainer = SimpleNamespace(strategy=object.__new__(FSDPStrategy))
    with pytest.raises(
        ValueError, match=r"but FSDPStrategy splits them .* or merge when training has ended \(fac merge\)"
    ):
        WeightMerging().setup(trainer, None, "fit")


def test_patterns_that_match_nothing_are_refused_before_a_step():
    watch = Watch()
    with pytest.raises(ValueError, match=r"include: 'modl\.0' matches no tensor .* did you mean model\.0"):
        fit(task(), [WeightMerging(include=["modl.0"]), watch])
    with pytest.raises(ValueError, match="nothing is left to merge: include and exclude leave none of 4"):
        fit(task(), [WeightMerging(exclude=["model"]), watch])
    assert watch.seen == []


def test_a_base_that_does_not_fit_is_refused_before_a_step(tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no weights at"):
        fit(task(), [WeightMerging(base=str(tmp_path / "nothing"))])
    save_file({"0.weight": torch.zeros(5, 3)}, tmp_path / "base.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.0\.weight is \(5, 3\) in .* but \(4, 3\) in Task"):
        fit(task(), [WeightMerging(base=str(tmp_path / "base.safetensors"))])
