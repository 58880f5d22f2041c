"""Losses that parts add by themselves: collected once, weighed by labelled tokens, logged by slot."""

import csv
from dataclasses import replace

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from fac_lightning.adapters import ConcatGrouping
from fac_lightning.tasks import SpeechSFT, TextPretraining
from fac_lightning.testing.tiny import tiny_backbone, tiny_batch, tiny_speech_lm


class Costly(ConcatGrouping):
    """A grouping that wants to be small: its positions cost what they measure, on average."""

    cost = None

    def forward(self, features, lengths):
        out = super().forward(features, lengths)
        self.cost = out.features.square().mean() if out.features.numel() else None
        return out

    def auxiliary_loss(self):
        cost, self.cost = self.cost, None
        return cost


def costly():
    model = tiny_speech_lm()
    plain = model.feature_adapter
    model.feature_adapter = Costly(plain.in_dim, plain.group_size, plain.dim)
    model.feature_adapter.load_state_dict(plain.state_dict())
    return model


class Lines(lightning.LightningDataModule):
    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def train_dataloader(self):
        return iter(self.lines)

    def val_dataloader(self):
        return iter(())


def fit(task, lines, folder, **options):
    trainer = lightning.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        logger=CSVLogger(folder, name="logs", version=""),
        limit_val_batches=0,
        **options,
    )
    trainer.fit(task, datamodule=Lines(lines))
    with (folder / "logs" / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_a_part_s_loss_is_in_the_output_once_and_keeps_no_graph():
    model = costly()
    batch = tiny_batch(model)
    heard = model.hear(batch.audio.audio, batch.audio.lengths)
    want = model.auxiliary_losses()["feature_adapter"]
    output = model(batch)
    torch.testing.assert_close(output.auxiliary["feature_adapter"], want)
    assert heard.requires_grad
    assert want.requires_grad
    assert model.auxiliary_losses() == {}  # handed out, forgotten
    assert model(tiny_batch(model, speech=False)).auxiliary == {}  # nothing was heard
    assert tiny_speech_lm()(batch).auxiliary == {}


def test_a_line_weighs_by_its_labelled_tokens():
    model = costly()
    task, plain = SpeechSFT(model, auxiliary_weight=3.0), SpeechSFT(model, auxiliary_weight=0.0)
    output = model(tiny_batch(model))
    counted = output.text_count + int(output.speech_count)
    for text_total, speech_total in ((output.text_count, output.speech_count), (2 * counted, 2 * counted)):
        added = task.loss(output, text_total, speech_total) - plain.loss(output, text_total, speech_total)
        share = counted / (text_total + int(speech_total))
        torch.testing.assert_close(added, 3.0 * share * output.auxiliary["feature_adapter"])


def test_training_lowers_the_loss_of_a_part_and_logs_it_by_slot(tmp_path):
    model = costly()
    line = replace(tiny_batch(model), text_token_total=10**9, speech_token_total=10**9)  # next to no other loss
    task = SpeechSFT(model, lr=1e-2, min_lr=1e-2, warmup_steps=0, weight_decay=0.0, auxiliary_weight=1e9)
    rows = fit(task, [line] * 8, tmp_path, max_steps=8)
    costs = [row["train/feature_adapter_auxiliary"] for row in rows]
    assert costs[-1] < 0.9 * costs[0]
    assert rows[0]["train/loss"] < 1e3  # the labels' alone


def test_a_bare_backbone_has_its_loss_too(tmp_path, monkeypatch):
    backbone = tiny_backbone()
    monkeypatch.setattr(type(backbone), "auxiliary_loss", lambda self: self.output_weight.square().mean())
    line = tiny_batch(tiny_speech_lm(), speech=False)
    rows = fit(TextPretraining(backbone, save_llm=False), [line], tmp_path, max_steps=1)
    assert rows[0]["train/backbone_auxiliary"] > 0


def test_parts_without_a_loss_of_their_own_cost_and_log_nothing(tmp_path):
    model = tiny_speech_lm()
    assert model(tiny_batch(model)).auxiliary == {}  # a backbone without experts has none to give
    rows = fit(SpeechSFT(model), [tiny_batch(model)], tmp_path, max_steps=1)
    assert not any("auxiliary" in name for name in rows[0])


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="auxiliary_weight must not be negative, got -1"):
        SpeechSFT(tiny_speech_lm(), auxiliary_weight=-1.0)
