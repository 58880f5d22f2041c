"""A run that goes on draws what it would have drawn."""

from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from fac_lightning.callbacks import RandomState


class Noisy(lightning.LightningModule):
    """Its loss has dropout and NumPy's noise in it."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.drawn = []

    def training_step(self, batch, index):
        noise = float(np.random.random())
        self.drawn.append(noise)
        return torch.nn.functional.dropout(self.layer(torch.ones(4, 8)), 0.5).pow(2).mean() * (1 + noise)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(folder, callbacks, start=None):
    lightning.seed_everything(3, verbose=False)
    model = Noisy()
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=6, callbacks=[keep, *callbacks], logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(torch.zeros(6, 1)), ckpt_path=start)
    return model


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")
@pytest.mark.filterwarnings("ignore:The dirpath has changed|Be aware that when using .ckpt_path.")
@pytest.mark.parametrize("step", [2, 4])
def test_dropout_goes_on_where_it_was(tmp_path, step):
    whole = train(tmp_path / "whole", [RandomState()])
    start = str(tmp_path / "whole" / f"step={step}.ckpt")
    resumed = train(tmp_path / "resumed", [RandomState()], start)
    assert resumed.drawn == whole.drawn[step:]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    without = train(tmp_path / "without", [], start)
    assert not torch.equal(without.layer.weight, whole.layer.weight), "the test must see the difference"


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")
def test_another_number_of_processes_sets_nothing(tmp_path):
    callback = RandomState()
    callback.load_state_dict({"ranks": callback.state_dict()["ranks"] * 2})
    torch.manual_seed(9)
    before = torch.get_rng_state()
    callback.on_train_batch_start(SimpleNamespace(accumulate_grad_batches=1), None, None, 0)
    assert torch.equal(torch.get_rng_state(), before)
