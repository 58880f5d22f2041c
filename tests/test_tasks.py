"""Tasks: the loss per token of a whole step, freezing, the optimizer and what is logged."""

import csv
import math
import multiprocessing
from dataclasses import fields, replace

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from fac_lightning.data.packing import share_totals
from fac_lightning.patterns import match_names
from fac_lightning.tasks import SpeechSFT, TextPretraining
from fac_lightning.tasks.metrics import LineMetrics, StreamMetrics
from fac_lightning.tasks.optimization import (
    cosine_with_warmup,
    parameter_groups,
    parameter_table,
    warmup_count,
)
from fac_lightning.testing.tiny import tiny_backbone, tiny_batch, tiny_speech_lm
from fac_lightning.types import IGNORE, Waveforms


class Loader:
    """Lines in order; endless when asked."""

    def __init__(self, lines, endless=False):
        self.lines, self.endless = lines, endless

    def __iter__(self):
        yield from self.lines
        while self.endless:
            yield from self.lines


class Lines(lightning.LightningDataModule):
    """Lines by rank, without end; and a text tokenizer to save."""

    def __init__(self, lines, val=()):
        super().__init__()
        self.lines, self.val = lines, list(val)

    def train_dataloader(self):
        return Loader(self.lines[self.trainer.global_rank :: self.trainer.world_size], endless=True)

    def val_dataloader(self):
        return Loader(self.val)

    def save_text_tokenizer(self, folder):
        (folder / "tokenizer.json").write_text("{}")


def fit(task, lines, folder, steps=2, val=(), **options):
    """Train; with ``val_every``, validate each so many lines."""
    every = options.pop("val_every", None)
    if every is not None:
        options |= {"val_check_interval": every, "check_val_every_n_epoch": None}
    settings = {
        "max_steps": steps,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
        "logger": CSVLogger(folder, name="logs", version=""),
        "limit_val_batches": len(val),
        **options,
    }
    trainer = lightning.Trainer(**settings)
    trainer.fit(task, datamodule=Lines(lines, val))
    return trainer


def logged(folder):
    with (folder / "logs" / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def join(a, b):
    """Two lines as one."""
    n = len(a.text_ids)
    samples = max(a.audio.audio.shape[1], b.audio.audio.shape[1])
    grow = lambda x: nn.functional.pad(x, (0, samples - x.shape[1]))  # noqa: E731
    names = [f.name for f in fields(a) if isinstance(getattr(a, f.name), torch.Tensor)]
    shift = {name: n if name.endswith("_positions") else 0 for name in names}
    cat = {x: torch.cat([getattr(a, x), getattr(b, x) + shift[x] if shift[x] else getattr(b, x)]) for x in names}
    return replace(
        a,
        **cat,
        audio=Waveforms(
            torch.cat([grow(a.audio.audio), grow(b.audio.audio)]),
            torch.cat([a.audio.lengths, b.audio.lengths]),
            a.audio.sample_rate,
        ),
        capacity=a.capacity + b.capacity,
        seconds=a.seconds + b.seconds,
        text_token_total=a.text_token_total + b.text_token_total,
        speech_token_total=a.speech_token_total + b.speech_token_total,
    )


class KeepGradients(SpeechSFT):
    """Writes the gradients of the first optimizer step into a file."""

    file = None

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        if self.trainer.global_step == 0 and self.trainer.is_global_zero:
            torch.save({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}, self.file)


def gradients(lines, folder, **options):
    task = KeepGradients(tiny_speech_lm(), lr=1e-3, text_weight=0.7, speech_weight=1.3)
    task.file = folder / "gradients.pt"
    fit(task, lines, folder, steps=1, logger=False, **options)
    return torch.load(task.file)


@pytest.fixture(scope="module")
def lines():
    """Two lines of one optimizer step, with unequal numbers of tokens."""
    model = tiny_speech_lm()
    return share_totals([tiny_batch(model, rows=1, seed=1), tiny_batch(model, rows=3, seed=2)])


@pytest.fixture(scope="module")
def combined(lines, tmp_path_factory):
    one = gradients([replace_totals(join(*lines), lines[0])], tmp_path_factory.mktemp("one"))
    assert len(one) == len(list(tiny_speech_lm().parameters()))
    assert all(g.abs().sum() > 0 for name, g in one.items() if "embed" not in name)
    return one


def replace_totals(line, like):
    return replace(line, text_token_total=like.text_token_total, speech_token_total=like.speech_token_total)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_accumulating_two_lines_is_one_combined_line(lines, combined, tmp_path):
    assert_same(gradients(lines, tmp_path, accumulate_grad_batches=2), combined)


def test_a_mean_of_means_would_be_seen(lines, combined, tmp_path):
    own = [
        replace(
            x,
            text_token_total=int((x.text_labels != IGNORE).sum()),
            speech_token_total=int((x.speech_labels != IGNORE).sum()),
        )
        for x in lines
    ]
    wrong = gradients(own, tmp_path, accumulate_grad_batches=2)
    assert max((wrong[n] - combined[n]).abs().max() for n in wrong) > 1e-3


def train_on_rank(lines, folder):
    torch.set_num_threads(1)
    strategy = lightning.pytorch.strategies.DDPStrategy(start_method="fork", process_group_backend="gloo")
    gradients(lines, folder, devices=2, strategy=strategy)


def test_two_ranks_are_one_combined_line(lines, combined, tmp_path):
    alone = [
        replace(
            x,
            text_token_total=int((x.text_labels != IGNORE).sum()),
            speech_token_total=int((x.speech_labels != IGNORE).sum()),
        )
        for x in lines
    ]
    # in a process of its own: Lightning's launcher leaves environment variables behind
    process = multiprocessing.get_context("fork").Process(target=train_on_rank, args=(alone, tmp_path))
    process.start()
    process.join(60)
    if process.is_alive():
        process.terminate()
    assert process.exitcode == 0
    assert_same(torch.load(tmp_path / "gradients.pt"), combined)


def test_loss_falls_and_everything_is_logged(lines, tmp_path):
    model = tiny_speech_lm()
    task = SpeechSFT(model, lr=1e-2, min_lr=1e-4, warmup_steps=2)
    fit(
        task,
        lines,
        tmp_path,
        steps=30,
        val=lines,
        accumulate_grad_batches=2,
        val_check_interval=10,
        check_val_every_n_epoch=None,
    )
    rows = logged(tmp_path)
    train = [r for r in rows if "train/loss" in r]
    val = [r for r in rows if "val/loss" in r]
    assert len(train) == 30
    assert len(val) == 6  # every 10 lines, 5 steps
    assert train[-1]["train/loss"] < 0.5 * train[0]["train/loss"]
    assert val[-1]["val/loss"] < 0.5 * val[0]["val/loss"] * 1.5
    names = {f"{s}_{m}" for s in ("text", "speech") for m in ("loss", "perplexity", "accuracy")}
    names |= {"loss", "fill", "audio_seconds_per_second", "lr"}
    assert {f"train/{n}" for n in names} <= set(train[-1])
    assert {f"val/{n}" for n in names - {"fill", "audio_seconds_per_second", "lr"}} <= set(val[-1])
    for row in train:
        assert row["train/loss"] == pytest.approx(row["train/text_loss"] + row["train/speech_loss"], rel=1e-4)
        assert row["train/fill"] == pytest.approx(1.0)
        assert row["train/audio_seconds_per_second"] > 0
    assert max(r["train/lr"] for r in train) == pytest.approx(1e-2)


def test_logged_losses_are_means_over_tokens_of_the_window(lines, tmp_path):
    model = tiny_speech_lm()
    with torch.no_grad():
        outputs = [model(line) for line in lines]
    text = sum(o.text_loss_sum for o in outputs) / sum(o.text_count for o in outputs)
    speech = sum(o.speech_loss_sum for o in outputs) / sum(o.speech_count for o in outputs)
    task = SpeechSFT(model, lr=0.0, min_lr=0.0)
    fit(
        task,
        lines,
        tmp_path,
        steps=2,
        val=lines,
        log_every_n_steps=2,
        val_check_interval=2,
        check_val_every_n_epoch=None,
    )
    for row in logged(tmp_path):
        for prefix in ("train", "val"):
            if f"{prefix}/loss" in row:
                assert row[f"{prefix}/text_loss"] == pytest.approx(text.item(), rel=1e-5)
                assert row[f"{prefix}/speech_loss"] == pytest.approx(speech.item(), rel=1e-5)
                assert row[f"{prefix}/text_perplexity"] == pytest.approx(math.exp(text.item()), rel=1e-5)
    assert sum("train/loss" in row for row in logged(tmp_path)) == 1


def test_an_empty_stream_is_zero_and_never_nan(tmp_path):
    model = tiny_speech_lm()
    line = tiny_batch(model, speech=False)
    task = SpeechSFT(model, lr=1e-2, min_lr=0.0, warmup_steps=1)
    fit(task, [line], tmp_path, steps=2, val=[line])
    rows = logged(tmp_path)
    assert all(math.isfinite(v) for row in rows for v in row.values())
    assert not any("speech" in key for row in rows for key in row)
    assert all(p.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        mute = replace(line, text_labels=torch.full_like(line.text_labels, IGNORE))
        assert task.loss(model(mute), 0, 0).item() == 0
        assert task.loss(model(mute), torch.zeros(()), torch.zeros(())).item() == 0


def test_frozen_parts_do_not_move_and_stay_in_eval_mode(lines, tmp_path):
    model = tiny_speech_lm()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    modes = {}

    class Look(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            modes[index] = (model.backbone.training, model.encoder.training, model.head.training)

    task = SpeechSFT(model, lr=1e-2, warmup_steps=0, freeze=["backbone", "encoder.pro*"])
    fit(
        task,
        lines,
        tmp_path,
        steps=4,
        val=lines,
        callbacks=[Look()],
        val_check_interval=2,
        check_val_every_n_epoch=None,
    )
    assert set(modes.values()) == {(False, False, True)}
    assert len(modes) == 4
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (not name.startswith(("backbone", "encoder"))), name
        assert parameter.requires_grad, "the model is given back as it came"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ["backbon"]}, "freeze: 'backbon' matches no parameter; did you mean backbone"),
        (
            {"lr_factors": {"haed": 0.1}},
            r"lr_factors .*'haed' matches no parameter; did you mean head.* They begin with: backbone, ",
        ),
        ({"lr_factors": {"head": 0.1}, "freeze": ["head"]}, "'head' matches no parameter"),
        ({"freeze": ["*"]}, r"freeze \['\*'\] leaves nothing to train"),
        ({"freeze": ["backbon.*.bias"]}, r"'backbon\.\*\.bias' matches no parameter; did you mean backbone"),
        ({"lr_factors": {"head": -0.1}}, r"lr_factors: 'head' is -0\.1; a factor is 0 or above"),
    ],
)
def test_patterns_that_do_nothing_are_errors(lines, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fit(SpeechSFT(tiny_speech_lm(), **options), lines, tmp_path, logger=False)


def test_senseless_rates_are_refused(lines, tmp_path):
    with pytest.raises(ValueError, match=r"min_lr must be between 0 and lr \(0.001\), got 0.01"):
        SpeechSFT(tiny_speech_lm(), lr=1e-3, min_lr=1e-2)
    with pytest.raises(ValueError, match="betas must be two numbers"):
        SpeechSFT(tiny_speech_lm(), betas=[0.9])
    with pytest.raises(ValueError, match=r"set trainer\.max_steps, got -1"):
        fit(SpeechSFT(tiny_speech_lm()), lines, tmp_path, steps=-1, max_epochs=1, limit_train_batches=1, logger=False)


def test_patterns_mean_slots_modules_parameters_and_wildcards():
    names = ["a.b.weight", "a.b.bias", "a.c.weight", "ab.weight"]
    found = match_names(["a", "a.b", "*.weight", "ab.weight"], names, "x")
    assert found["a"] == names[:3]
    assert found["a.b"] == names[:2]
    assert found["*.weight"] == [names[0], names[2], names[3]]
    assert found["ab.weight"] == [names[3]]
    assert match_names(["mel"], names, "x", "parameter", empty=["mel"]) == {"mel": []}
    with pytest.raises(ValueError, match="x: 'mel' matches no parameter; They begin with: a, ab"):
        match_names(["mel"], names, "x", "parameter")


def test_groups_decay_matrices_only_and_scale_rates():
    parameters = {
        "a.weight": nn.Parameter(torch.zeros(2, 2)),
        "a.bias": nn.Parameter(torch.zeros(2)),
        "b.weight": nn.Parameter(torch.zeros(2, 2)),
    }
    groups = parameter_groups(parameters, lr=1.0, weight_decay=0.5, lr_factors={"a.bias": 3.0, "a": 0.1})
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found[id(parameters["a.weight"])] == (0.1, 0.5)
    assert found[id(parameters["a.bias"])] == (3.0, 0.0)
    assert found[id(parameters["b.weight"])] == (1.0, 0.5)
    assert sum(len(g["params"]) for g in groups) == 3


def test_schedule_rises_linearly_and_falls_as_a_cosine():
    factors = [cosine_with_warmup(step, 4, 12, 0.2) for step in range(14)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[8] == pytest.approx(0.6)  # half way
    assert factors[12] == factors[13] == pytest.approx(0.2)
    assert cosine_with_warmup(0, 0, 10, 0.0) == 1.0


@pytest.mark.parametrize(
    ("warmup", "steps", "count"),
    [(0, 50, 0), (20, 50, 20), (80, 50, 50), (0.02, 1000, 20), (0.02, 60, 2), (0.5, 3, 2), (1.0, 50, 1)],
)
def test_warm_up_is_a_number_of_steps_or_a_part_of_all(warmup, steps, count):
    assert warmup_count(warmup, steps) == count


@pytest.mark.parametrize("warmup", [-1, 1.5, -0.02])
def test_a_senseless_warm_up_is_refused(warmup):
    with pytest.raises(ValueError, match=rf"whole number of steps, or a part of all steps below 1 .*, got {warmup}"):
        SpeechSFT(tiny_speech_lm(), warmup_steps=warmup)


def test_rates_of_the_report_at_known_steps(tmp_path):
    """1e-4 to 1e-5 with 2 % warm-up (arXiv 2512.20156), and a slot that learns at a tenth of it."""
    seen = []

    class Rates(lightning.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
            seen.append([rates[id(next(getattr(module.model, slot).parameters()))] for slot in ("head", "backbone")])

    model = tiny_speech_lm()
    task = SpeechSFT(model, lr=1e-4, min_lr=1e-5, warmup_steps=0.02, lr_factors={"backbone": 0.1})
    line = share_totals([tiny_batch(model, rows=1)])[0]
    fit(task, [line], tmp_path, steps=100, callbacks=[Rates()], log_every_n_steps=50)
    head, backbone = map(list, zip(*seen, strict=True))
    assert head[:3] == pytest.approx([5e-5, 1e-4, 1e-4])
    assert head[51] == pytest.approx(5.5e-5)  # half way between the end of the warm-up and the last step
    assert head[99] == pytest.approx(1e-5, rel=5e-3)
    assert head[2:] == sorted(head[2:], reverse=True)
    assert backbone == pytest.approx([rate / 10 for rate in head])
    assert [row["train/lr"] for row in logged(tmp_path)] == pytest.approx([head[49], head[99]]), "of factor 1"


def test_parameter_table_counts_slots():
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(2, 2)})
    model["a"].requires_grad_(False)
    cells = [line.split() for line in parameter_table(model).splitlines()[1:]]
    assert cells == [["a", "0", "16"], ["b", "6", "6"], ["total", "6", "22"]]


def test_stream_metrics_are_sums_over_counts():
    metric = StreamMetrics()
    metric.update(torch.tensor([-1.0, -2.0]), torch.tensor([True, False]), torch.tensor([True, True]))
    metric.update(torch.tensor([-6.0, -9.0]), torch.tensor([True, True]), torch.tensor([True, False]))
    values = metric.compute()
    assert values["loss"] == pytest.approx(3.0)
    assert values["perplexity"] == pytest.approx(math.exp(3.0), rel=1e-5)
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert not metric.state_dict()


def test_line_metrics_measure_fill(lines):
    metric = LineMetrics()
    metric.resume()
    metric.update(replace(lines[0], capacity=2 * len(lines[0].text_ids)))
    assert metric.compute()["fill"] == pytest.approx(0.5)
    assert metric.compute()["audio_seconds_per_second"] > 0


def test_text_pretraining_learns_and_leaves_an_llm_folder(tmp_path):
    from fac_lightning.backbones import HFBackbone

    backbone = tiny_backbone()
    line = tiny_batch(tiny_speech_lm(), rows=3, speech=False)
    fit(TextPretraining(backbone, lr=1e-2, min_lr=1e-3, warmup_steps=1), [line], tmp_path, steps=12, val=[line])
    train = [r["train/loss"] for r in logged(tmp_path) if "train/loss" in r]
    assert train[-1] < 0.7 * train[0]
    again = HFBackbone(name=str(tmp_path / "llm"))
    ids = torch.arange(7)
    args = backbone.embed(ids), torch.arange(7), torch.tensor([7])
    torch.testing.assert_close(again(again.embed(ids), *args[1:]), backbone(*args))
    torch.testing.assert_close(again.output_weight, backbone.output_weight)
    assert (tmp_path / "llm" / "tokenizer.json").is_file()
    assert not list(tmp_path.glob(".llm*"))


def test_text_pretraining_says_when_the_llm_cannot_be_saved():
    backbone = tiny_backbone()
    plain = type("Plain", (nn.Module,), {})()
    with pytest.raises(ValueError, match="Plain has no save_pretrained"):
        TextPretraining(plain)
    assert TextPretraining(plain, save_llm=False).save_llm is False
    assert TextPretraining(backbone).save_llm
