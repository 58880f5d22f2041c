"""Strategies and precisions of Lightning that want to change batches and losses."""

from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, FSDPPrecision

from fac_lightning.tasks import SpeechSFT
from fac_lightning.tasks.strategies import keep_batches, loss_divisor
from fac_lightning.testing import tiny_batch, tiny_speech_lm


class Loader:
    """The same line again and again."""

    def __init__(self, line):
        self.line = line

    def __iter__(self):
        while True:
            yield self.line


class Seen(SpeechSFT):
    """Remembers what arrived."""

    def training_step(self, batch, batch_idx):
        self.arrived = batch
        return super().training_step(batch, batch_idx)

    validation_step = lightning.LightningModule.validation_step  # none: Lightning would ask for its data


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_trains_with_clipping_and_leaves_waveforms_alone(tmp_path, precision):
    model = tiny_speech_lm()
    batch, task = tiny_batch(model), Seen(model, lr=1e-2, min_lr=0.0, warmup_steps=1)
    trainer = lightning.Trainer(
        max_steps=2,
        precision=precision,
        gradient_clip_val=1.0,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = task.model.backbone.output_weight.clone()
    trainer.fit(task, Loader(batch))
    after = task.model.backbone.output_weight
    assert after.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    assert not torch.equal(before.to(after.dtype), after)
    assert batch.audio.audio.numel()
    assert torch.equal(task.arrived.audio.audio, batch.audio.audio)


@pytest.mark.parametrize("precision", [DeepSpeedPrecision, FSDPPrecision])
def test_batches_pass_sharded_strategies_as_they_are(precision):
    plugin, batch = precision("bf16-mixed"), tiny_batch(tiny_speech_lm())
    with pytest.raises(ValueError, match="frozen dataclass"):
        plugin.convert_input(batch)
    for _ in range(2):  # a trainer may fit twice
        keep_batches(SimpleNamespace(precision_plugin=plugin))
        assert plugin.convert_input(batch) is batch
    other = torch.zeros(1, dtype=torch.float64)  # somebody else's data
    assert plugin.convert_input(other).dtype != other.dtype


@pytest.mark.parametrize(("own", "divisor"), [(False, 12), (True, 72)])
def test_who_accumulates_by_itself_divides_once_more(own, divisor):
    strategy = SimpleNamespace(handles_gradient_accumulation=own)
    assert loss_divisor(SimpleNamespace(accumulate_grad_batches=6, world_size=2, strategy=strategy)) == divisor
