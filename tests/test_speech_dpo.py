"""Preference training: what the loss is, where the reference comes from, and that answers move apart."""

import copy
import csv
import math
import multiprocessing
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from fac_lightning.backbones import LoRABackbone
from fac_lightning.data import (
    Dialogue,
    DialogueWriter,
    PreferenceDataModule,
    PreferencePair,
    PreferenceWriter,
    SwappedAnswers,
    TextTokenizerTraining,
    Turn,
    TurnAnswer,
    WrittenAnswer,
)
from fac_lightning.data.preference_rows import PairCollator
from fac_lightning.data.preference_stream import share_pair_totals
from fac_lightning.heads import FunAudioHead
from fac_lightning.losses import (
    BCOLoss,
    DPOLoss,
    JointStreams,
    KTOLoss,
    MixedPreferenceLoss,
    NormalizedDPOLoss,
    ORPOLoss,
    SeparateStreams,
    SFTLoss,
    SimPOLoss,
    SpeechStream,
    TextStream,
    answer_logprobs,
)
from fac_lightning.replies import GroupEnd
from fac_lightning.tasks import (
    FrozenReference,
    LoRAOffReference,
    PreferenceSettings,
    ReferenceLogprobs,
    SpeechDPO,
    StoredReference,
)
from fac_lightning.testing.dialogues import make_dialogues
from fac_lightning.testing.tiny import tiny_speech_lm
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import AnswerSums, SpeechCodes

LOG2 = math.log(2)


class LoudnessTokenizer(SpeechTokenizer):
    """Codes are the loudness of a frame."""

    def __init__(self):
        super().__init__()
        self.sample_rate, self.hop_length, self.num_codebooks, self.codebook_size = 8000, 320, 1, 32

    def encode(self, audio, lengths=None):
        frames = nn.functional.pad(audio, (0, -audio.shape[1] % 320)).unflatten(1, (-1, 320)).abs().sum(-1)
        return SpeechCodes(frames.long()[..., None] % 32, -(-lengths // 320))

    def decode(self, codes, lengths=None):
        raise NotImplementedError


def tiny(lora=False):
    model = tiny_speech_lm(vocab_size=400)
    if lora:
        pytest.importorskip("peft", reason="the extra 'lora' is not installed")
        torch.manual_seed(0)
        model.backbone = LoRABackbone(model.backbone, rank=2)
    return model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Spoken pairs of the task "answer", and of the task "style" some whose second answer is written."""
    folder = tmp_path_factory.mktemp("dpo")
    make_dialogues(folder / "talk", 6)
    SwappedAnswers(str(folder / "talk"), str(folder / "answer"), task="answer").run()
    with PreferenceWriter(folder / "style", folder / "talk") as writer:
        for i in range(3):
            first = TurnAnswer(f"dummy-{i}", 1)
            writer.write(PreferencePair(f"style-{i}", f"dummy-{i}", 1, first, WrittenAnswer("no"), "style", weight=0.5))
    TextTokenizerTraining([str(folder / "talk")], 360, str(folder / "tokenizer")).run()
    return folder


@pytest.fixture(scope="module")
def build(world):
    def build(**changes):
        arguments = {
            "train": [str(world / "answer"), str(world / "style")],
            "text_tokenizer": str(world / "tokenizer"),
            "val": str(world / "style"),
            "tokenizer": LoudnessTokenizer(),
            "geometry": tiny().geometry,
            "capacity": 512,
            "look_ahead": 2,
        }
        return PreferenceDataModule(**{**arguments, **changes})

    return build


@pytest.fixture(scope="module")
def ready(build):
    module = build()
    module.setup("fit")
    return module


@pytest.fixture(scope="module")
def pairs(ready):
    """Laid-out pairs: two of answers, one of style, whose rejected answer is not spoken."""
    names = [pair.id for _, pair in ready.train_corpus.pairs]
    return [ready.train_corpus.pair(i) for i in (0, 1, names.index("style-0"))]


@pytest.fixture(scope="module")
def collate(ready):
    return PairCollator(ready.train_corpus.task_names, 512, ready.geometry.sample_rate)


def settings(loss=None, streams=None, weight=1.0):
    return PreferenceSettings(loss or NormalizedDPOLoss(beta=1.0), streams or JointStreams(), weight)


def dpo(model=None, reference=None, **options):
    default = {"default": settings()} if "settings" not in options else {}
    return SpeechDPO(
        model or tiny(), reference=reference, **{**{"sft_weight": 0.0, "lr": 3e-3}, "settings": default, **options}
    )


class Lines(lightning.LightningDataModule):
    """The same lines again and again; by rank, where there are several."""

    def __init__(self, lines, val=()):
        super().__init__()
        self.lines, self.val = lines, list(val)

    def train_dataloader(self):
        return Endless(self.lines[self.trainer.global_rank :: self.trainer.world_size])

    def val_dataloader(self):
        return self.val


class Endless:
    def __init__(self, lines):
        self.lines = lines

    def __iter__(self):
        while True:
            yield from self.lines


def fit(task, data, folder, steps=1, val=(), ckpt_path=None, **options):
    defaults = {
        "max_steps": steps,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
        "logger": CSVLogger(folder, name="logs", version=""),
        "limit_val_batches": len(val),
        "num_sanity_val_steps": 0,
    }
    trainer = lightning.Trainer(**{**defaults, **options})
    trainer.fit(task, datamodule=Lines(data, val) if isinstance(data, list) else data, ckpt_path=ckpt_path)
    return trainer


def logged(folder):
    with (folder / "logs" / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "streams",
    [TextStream(), SpeechStream(), JointStreams(), JointStreams(0.3, 2.0), SeparateStreams(0.25, 0.75)],
    ids=["text", "speech", "joint", "weighted", "separate"],
)
def test_the_first_loss_is_log_2_in_every_mode(pairs, collate, tmp_path, streams):
    task = dpo(reference=FrozenReference(), settings={"default": settings(DPOLoss(), streams)}, lr=0.0)
    fit(task, [collate(pairs[:2])], tmp_path)
    first = logged(tmp_path)[0]
    assert first["train/loss"] == pytest.approx(LOG2, abs=1e-6)
    assert first["train/rewards/margins"] == first["train/rewards/accuracies"] == 0
    assert first["train/kl"] == pytest.approx(0, abs=1e-6)


def test_twenty_steps_move_the_answers_apart(build, tmp_path):
    model = tiny()
    own = {"answer": settings(), "style": settings(weight=0.5)}
    task = dpo(model, FrozenReference(), sft_weight=0.1, settings=own, lr=5e-3, warmup_steps=2)
    fit(task, build(), tmp_path, 20, val=[0] * 4, check_val_every_n_epoch=None, val_check_interval=10)
    train = [row for row in logged(tmp_path) if "train/loss" in row]
    val = [row for row in logged(tmp_path) if "val/loss" in row]
    assert len(train) == 20
    assert len(val) == 2
    first, last = train[0], train[-1]
    late = lambda name: sum(row[name] for row in train[-4:]) / 4  # noqa: E731 lines are small: one pair is a fifth
    assert first["train/rewards/accuracies"] == 0
    assert late("train/rewards/accuracies") > 0.75
    for stream in ("", "/text", "/speech"):
        assert first[f"train/rewards/margins{stream}"] == pytest.approx(0, abs=1e-5)
        assert late(f"train/rewards/margins{stream}") > 0.02
        assert last[f"train/kl{stream}"] > 0
    assert last["train/answer/rewards/margins"] > 0
    assert last["train/loss"] < first["train/loss"]
    assert val[-1]["val/rewards/margins"] > 0
    assert val[-1]["val/loss"] < val[0]["val/loss"]
    assert {"train/fill", "train/lr", "train/nll", "train/lengths/chosen/speech", "train/logps/chosen"} <= last.keys()
    assert all(math.isfinite(v) for row in train + val for v in row.values())


def test_logged_values_are_means_over_pairs(pairs, collate, tmp_path):
    """Two tasks of unequal weight, computed again by hand."""
    model, other = tiny(), copy.deepcopy(tiny())
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.01)
    batch = collate(pairs)
    with torch.no_grad():
        policy, reference = (answer_logprobs(m(batch.line), batch) for m in (model, other))
    batch = replace(batch, reference=reference)
    own = {"answer": settings(DPOLoss(0.1), TextStream(), 2.0), "default": settings(DPOLoss(0.3), JointStreams(), 0.5)}
    fit(dpo(model, StoredReference(), settings=own, lr=0.0, sft_weight=0.2), [batch], tmp_path)
    row = logged(tmp_path)[0]
    ratio = policy.text - reference.text
    answer = [0.1 * (ratio[0, i] - ratio[1, i]).item() for i in (0, 1)]
    style = 0.3 * (ratio[0, 2] - ratio[1, 2]).item()  # one answer has no speech, so text alone is compared
    cost = lambda margin: math.log1p(math.exp(-margin))  # noqa: E731
    assert row["train/answer/loss"] == pytest.approx(sum(map(cost, answer)) / 2, rel=1e-4)
    assert row["train/default/loss"] == pytest.approx(0.5 * cost(style), rel=1e-4)  # the pair's weight
    losses = 2.0 * row["train/answer/loss"] + 0.5 * row["train/default/loss"]
    assert row["train/loss"] == pytest.approx(losses + 0.2 * row["train/nll"], rel=1e-4)
    assert row["train/answer/rewards/margins"] == pytest.approx(sum(answer) / 2, rel=1e-3)
    assert row["train/rewards/margins"] == pytest.approx((sum(answer) + style) / 3, rel=1e-3)
    assert row["train/rewards/accuracies"] == pytest.approx(sum(m > 0 for m in [*answer, style]) / 3)
    speech = sum(row.speech_labels.size for row in pairs[2].rows[:1])
    assert row["train/default/lengths/chosen"] == pytest.approx(
        batch.text_weights[batch.text_answers == 2].sum().item()
    )
    assert speech
    assert "train/default/lengths/chosen/speech" not in row
    spoken = batch.speech_weights.sum((1, 2))
    nll = [
        -(policy.text[0, i] / batch.text_weights[batch.text_answers == i].sum())
        - policy.speech[0, i] / spoken[batch.speech_answers == i].sum()
        for i in range(3)
    ]
    assert row["train/nll"] == pytest.approx(torch.stack(nll).mean().item(), rel=1e-4)


class KeepGradients(SpeechDPO):
    file = None

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        if self.trainer.global_step == 0 and self.trainer.is_global_zero:
            torch.save({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}, self.file)


def gradients(lines, folder, **options):
    own = {
        "answer": settings(DPOLoss(), JointStreams(), 0.7),
        "style": settings(MixedPreferenceLoss([DPOLoss(), BCOLoss(), SFTLoss()], [0.8, 0.2, 1.0]), SeparateStreams()),
    }
    task = KeepGradients(tiny(), own, StoredReference(), sft_weight=0.1, lr=1e-3)
    task.file = folder / "gradients.pt"
    fit(task, lines, folder, logger=False, **options)
    return torch.load(task.file)


@pytest.fixture(scope="module")
def with_reference():
    model = tiny()

    def add(batch):
        with torch.no_grad():
            return replace(batch, reference=answer_logprobs(model(batch.line), batch))

    return add


@pytest.fixture(scope="module")
def combined(pairs, collate, with_reference, tmp_path_factory):
    found = gradients([with_reference(collate(pairs))], tmp_path_factory.mktemp("one"))
    assert sum(g.abs().sum() for g in found.values()) > 0
    return found


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_accumulating_two_lines_is_one_line_with_both(pairs, collate, with_reference, combined, tmp_path):
    lines = share_pair_totals([with_reference(collate([pairs[0], pairs[2]])), with_reference(collate([pairs[1]]))])
    assert_same(gradients(lines, tmp_path, accumulate_grad_batches=2), combined)


def train_on_rank(lines, folder):
    torch.set_num_threads(1)
    strategy = lightning.pytorch.strategies.DDPStrategy(start_method="fork", process_group_backend="gloo")
    gradients(lines, folder, devices=2, strategy=strategy)


def test_two_ranks_are_one_line_with_both(pairs, collate, with_reference, combined, tmp_path):
    lines = [with_reference(collate([pairs[0], pairs[2]])), with_reference(collate([pairs[1]]))]
    # in a process of its own: Lightning's launcher leaves environment variables behind
    process = multiprocessing.get_context("fork").Process(target=train_on_rank, args=(lines, tmp_path))
    process.start()
    process.join(60)
    if process.is_alive():
        process.terminate()
    assert process.exitcode == 0
    assert_same(torch.load(tmp_path / "gradients.pt"), combined)


@pytest.fixture(scope="module")
def twice(world, tmp_path_factory):
    """The same pairs of two rounds, each prompt in its own row and shared: two batches."""
    folder = tmp_path_factory.mktemp("twice")
    make_dialogues(folder / "talk", 4, rounds=2)
    SwappedAnswers(str(folder / "talk"), str(folder / "pairs")).run()
    with PreferenceWriter(folder / "pairs", folder / "talk") as writer:
        writer.write(PreferencePair("one-sided", "dummy-0", 3, WrittenAnswer("yes"), TurnAnswer("dummy-0", 1)))
    found = []
    for share_prompt in (False, True):
        module = PreferenceDataModule(
            str(folder / "pairs"), str(world / "tokenizer"), tokenizer=LoudnessTokenizer(),
            geometry=tiny().geometry, capacity=2048, share_prompt=share_prompt,
        )  # fmt: skip
        module.setup("fit")
        found += list(module.every_pair())
    return found


@pytest.mark.parametrize("lora", [False, True])
def test_a_shared_prompt_changes_no_logprob_and_no_gradient(twice, lora):
    apart, shared = twice
    assert apart.ids == shared.ids
    assert len(shared.line.text_ids) < 0.65 * len(apart.line.text_ids)
    assert len(shared.line.audio.lengths) == len(apart.line.audio.lengths) / 2
    model = tiny(lora).eval()
    found = []
    for batch in twice:
        model.zero_grad()
        sums = answer_logprobs(model(batch.line), batch)
        (sums.text[0] - sums.text[1] + sums.speech[0] - sums.speech[1]).sum().backward()
        found.append((sums, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (one, first), (two, second) = found
    torch.testing.assert_close(two.text, one.text, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(two.speech, one.speech, atol=1e-5, rtol=1e-6)
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_a_shared_prompt_is_refused_by_what_cannot_do_it(twice, monkeypatch):
    model = tiny()
    monkeypatch.setattr(type(model.head), "whole_sequence", True)
    with pytest.raises(ValueError, match="rows share their prompt, but RefinedHead reads whole rows; give every row"):
        model(twice[1].line)
    monkeypatch.setattr(type(model.backbone), "takes_parents", False)
    with pytest.raises(ValueError, match="but HFBackbone takes no parents"):
        model(twice[1].line)


def moved(task, data, folder, steps=4, **options):
    fit(task, data, folder, steps, **options)
    return [row["train/loss"] for row in logged(folder) if "train/loss" in row]


def load_tiny(run):
    assert run == "some/run"
    return SimpleNamespace(model=tiny(), tokenizer=LoudnessTokenizer(), text_tokenizer=None, data={})


def stored(build, folder):
    """A data module with log-probabilities that the job computed."""
    known = build()
    data = partial(
        PreferenceDataModule, train=known.train_paths, val=known.val_path, text_tokenizer=known.text_tokenizer,
        capacity=512, look_ahead=2,
    )  # fmt: skip
    result = ReferenceLogprobs("some/run", data, str(folder), load_tiny, device="cpu").run()
    assert result == {"pairs": 12, "file": str(folder / "reference.npz")}
    return build(reference=str(folder))


def test_stored_and_frozen_reference_agree(build, tmp_path):
    kept = stored(build, tmp_path / "reference")
    live = moved(dpo(reference=FrozenReference()), build(), tmp_path / "live")
    cached = moved(dpo(reference=StoredReference()), kept, tmp_path / "cached")
    assert cached == pytest.approx(live, abs=1e-6)
    assert live[-1] < LOG2 - 0.01
    batch = next(iter(kept.train_dataloader()))
    frozen = FrozenReference()
    frozen.prepare(tiny())
    now = frozen(tiny(), batch)
    torch.testing.assert_close(batch.reference.text, now.text, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(batch.reference.speech, now.speech, atol=1e-6, rtol=1e-6)


def test_lora_off_is_the_frozen_copy_also_when_updates_have_moved(ready, pairs, collate, tmp_path):
    others = ["head", "encoder", "feature_adapter", "code_adapter"]
    batch = collate(pairs)
    frozen = moved(dpo(tiny(lora=True), FrozenReference(), freeze=others), [batch], tmp_path / "frozen", 6)
    task = dpo(tiny(lora=True), LoRAOffReference(), freeze=others)
    off = moved(task, [batch], tmp_path / "off", 6)
    assert off == pytest.approx(frozen, abs=1e-6)
    assert off[-1] < off[0] - 1e-3
    with torch.no_grad():
        plain = answer_logprobs(tiny().eval()(batch.line), batch)
    now = task.reference(task.model, batch)
    torch.testing.assert_close((now.text, now.speech), (plain.text, plain.speech))
    assert (answer_logprobs(task.model(batch.line), batch).text - plain.text).abs().max() > 1e-3
    assert all(p.requires_grad for p in task.model.backbone.update_parameters())


def test_lora_off_is_refused_where_it_would_not_be_the_start(pairs, collate, tmp_path):
    with pytest.raises(ValueError, match=r"LoRAOffReference: .* are trained beside the updates.*freeze them"):
        fit(dpo(tiny(lora=True), LoRAOffReference(), freeze=["head"]), [collate(pairs)], tmp_path)
    with pytest.raises(ValueError, match=r"but HFBackbone has none; take fac_lightning.backbones.LoRABackbone"):
        fit(dpo(tiny(), LoRAOffReference()), [collate(pairs)], tmp_path)


def test_a_resumed_run_keeps_its_reference(pairs, collate, tmp_path):
    lines = [collate(pairs)]
    whole = moved(dpo(reference=FrozenReference()), lines, tmp_path / "whole", 4, max_epochs=-1)
    half = dpo(reference=FrozenReference())
    # the schedule of four steps, stopped after two
    trainer = fit(half, lines, tmp_path / "half", 4, limit_train_batches=2, max_epochs=1)
    assert trainer.global_step == 2
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    other = tiny()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)  # what the resuming process starts with does not matter
    resumed = dpo(other, FrozenReference())
    fit(resumed, lines, tmp_path / "resumed", 4, ckpt_path=tmp_path / "two.ckpt", max_epochs=-1)
    last = [row["train/loss"] for row in logged(tmp_path / "resumed") if "train/loss" in row]
    assert last == pytest.approx(whole[2:], abs=1e-5)


@pytest.fixture(scope="module")
def written(world, build):
    """A line of pairs without any speech in the answers (S2T)."""
    module = build(mode="S2T", val=None)
    module.setup("fit")
    return next(iter(module.train_dataloader()))


@pytest.mark.parametrize("streams", [TextStream(), JointStreams(), SeparateStreams()])
def test_pairs_without_speech_learn_from_text(written, tmp_path, streams):
    assert not written.line.speech_labels.numel()
    task = dpo(reference=FrozenReference(), settings={"default": settings(None, streams)}, sft_weight=0.1)
    losses = moved(task, [written], tmp_path, 6)
    assert losses[-1] < losses[0]
    rows = logged(tmp_path)
    assert not any("/speech" in key for row in rows for key in row)
    assert all(math.isfinite(v) for row in rows for v in row.values())


def test_speech_of_pairs_without_speech_costs_nothing_and_is_no_nan(written, tmp_path):
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    task = dpo(model, FrozenReference(), settings={"default": settings(None, SpeechStream())})
    assert moved(task, [written], tmp_path, 2) == [0.0, 0.0]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_empty_answer_is_an_answer(world, build, tmp_path):
    """The end is predicted, and that alone."""
    with DialogueWriter(tmp_path / "pairs") as writer:
        writer.write(Dialogue("d", (Turn("user", "Hi."), Turn("assistant", "Hello."))))
    with PreferenceWriter(tmp_path / "pairs") as writer:
        writer.write(PreferencePair("p", "d", 1, TurnAnswer("d", 1), WrittenAnswer("")))
    data = build(train=str(tmp_path / "pairs"))
    losses = moved(dpo(reference=FrozenReference()), data, tmp_path / "run", 5)
    assert losses[-1] < losses[0]
    assert logged(tmp_path / "run")[0]["train/lengths/rejected"] == 1


@pytest.mark.parametrize(
    "loss",
    [
        SimPOLoss(),
        ORPOLoss(),
        KTOLoss(beta=1.0, nu=1.0),
        MixedPreferenceLoss([DPOLoss(), BCOLoss(), SFTLoss()], [0.8, 0.2, 1.0]),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_other_losses_train_too(pairs, collate, tmp_path, loss):
    reference = FrozenReference() if loss.needs_reference else None
    task = dpo(reference=reference, settings={"default": settings(loss)}, lr=1e-2)
    losses = moved(task, [collate(pairs[:2])], tmp_path, 8)
    assert losses[-1] < losses[0]
    row = logged(tmp_path)[-1]
    assert row["train/rewards/accuracies"] == 1
    assert ("train/kl" in row) == loss.needs_reference
    if isinstance(loss, KTOLoss):
        assert loss.baseline != 0
        assert "losses.0.baseline" in task.state_dict()


def test_a_loss_without_need_may_still_be_measured_against_a_reference(pairs, collate, tmp_path):
    task = dpo(reference=FrozenReference(), settings={"default": settings(SimPOLoss())})
    fit(task, [collate(pairs[:2])], tmp_path)
    assert logged(tmp_path)[0]["train/kl"] == pytest.approx(0, abs=1e-6)


def test_the_model_runs_without_noise_and_recomputes_layers(pairs, collate, tmp_path):
    model = tiny()
    model.head.transformer.gradient_checkpointing = True
    seen = []

    class Look(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            seen.append({name for name, part in module.model.named_modules() if part.training})

    fit(dpo(model, FrozenReference()), [collate(pairs)], tmp_path, 2, callbacks=[Look()], logger=False)
    assert seen == [{"head.transformer"}] * 2


def test_frozen_parts_do_not_move(pairs, collate, tmp_path):
    model = tiny()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit(dpo(model, FrozenReference(), freeze=["encoder", "backbone"]), [collate(pairs)], tmp_path, 3, logger=False)
    still = {n.split(".")[0] for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert still == {"encoder", "backbone"}


def test_the_released_head_and_rule_are_trained_like_any(world, build, tmp_path):
    """It reads whole rows and says its lead-in, which counts in no answer."""
    transformer = {
        "model_type": "qwen3", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    head = FunAudioHead(16, 5, 32, transformer)
    model = tiny_speech_lm(vocab_size=400, head=head)
    data = build(reply=GroupEnd(5), train=str(world / "answer"))
    own = {"default": settings(None, SeparateStreams())}
    losses = moved(dpo(model, FrozenReference(), settings=own), data, tmp_path, 8)
    assert losses[0] == pytest.approx(2 * LOG2, abs=1e-5)
    assert losses[-1] < losses[0]
    assert logged(tmp_path)[0]["train/kl/speech"] == pytest.approx(0, abs=1e-6)


def test_a_reference_of_another_model_is_told(pairs, collate, tmp_path):
    batch = collate(pairs)
    zeros = torch.zeros(2, 3)
    with pytest.warns(UserWarning, match="differ by .* nats a label: the reference is not the model that training"):
        fit(dpo(reference=StoredReference(), lr=0.0), [replace(batch, reference=AnswerSums(zeros, zeros))], tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {}}, "settings is empty"),
        ({}, "the loss of task 'default' compares with a reference, but there is none; set task.reference to Stored"),
        ({"settings": {"default": settings(SimPOLoss())}, "sft_weight": -1}, "sft_weight must not be negative, got -1"),
        ({"settings": {"a": settings(SimPOLoss(), SeparateStreams(speech_loss=DPOLoss()))}}, "the loss of task 'a'"),
    ],
)
def test_senseless_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dpo(**options)
    with pytest.raises(ValueError, match="weight must not be negative, got -1"):
        settings(weight=-1)


def test_missing_settings_and_references_are_told(pairs, collate, tmp_path):
    task = dpo(reference=FrozenReference(), settings={"answer": settings()})
    with pytest.raises(ValueError, match="there are pairs of the task 'style' but settings for answer"):
        fit(task, [collate(pairs)], tmp_path, logger=False)
    with pytest.raises(ValueError, match="without stored log-probabilities of the reference; compute them"):
        fit(dpo(reference=StoredReference()), [collate(pairs)], tmp_path, logger=False)


def test_lines_of_the_data_module_reach_the_task(build):
    module = build()
    module.setup("fit")
    task = dpo(reference=FrozenReference())
    task.reference.prepare(task.model)
    for batch in islice(module.train_dataloader(), 2):
        moved_batch = module.transfer_batch_to_device(batch, torch.device("cpu"), 0)
        scores = task.scores(moved_batch)
        torch.testing.assert_close(scores.log_ratios(1), torch.zeros(2, batch.num_pairs))


STAGES = """
vars: {run: RUN, world: WORLD}
stages:
  sft: {recipe: sft.yaml}
  pairs: {recipe: pairs.yaml}
  reference: {recipe: reference.yaml}
  dpo: {recipe: dpo.yaml}
"""
PAIRS = """
job: {_target_: fac_lightning.data.SwappedAnswers, dialogues: WORLD/train, out: RUN/pairs, limit: 6}
"""
DATA = """
data: {_target_: fac_lightning.data.PreferenceDataModule, train: RUN/pairs, text_tokenizer: WORLD/tokenizer,
  val: null, mode: S2T, capacity: 256, share_prompt: true}  # random codec: its codes differ from build to build
"""
REFERENCE = """
base: data.yaml
data: {_partial_: true}
job: {_target_: fac_lightning.tasks.ReferenceLogprobs, run: RUN/sft, data: "${data}", out: RUN/reference, device: cpu}
"""
DPO = """
base: [sft.yaml, data.yaml]
init_from: RUN/sft
task:
  _target_: fac_lightning.tasks.SpeechDPO
  settings:
    default:
      _target_: fac_lightning.tasks.PreferenceSettings
      loss: {_target_: fac_lightning.losses.NormalizedDPOLoss, beta: 1.0}
      streams: {_target_: fac_lightning.losses.JointStreams, speech_weight: 0.5}
  reference: {_target_: fac_lightning.tasks.StoredReference}
  lr: 2e-2
data: {reference: RUN/reference}
trainer: {max_steps: 6, default_root_dir: RUN/dpo}
"""


def test_fac_run_goes_from_dialogues_to_a_preferred_answer(tmp_path, capsys):
    from fac_lightning.cli import load_run, main
    from test_cli_talk import RECIPE

    world, run = tmp_path / "world", tmp_path / "run"
    make_dialogues(world / "train", 8)
    TextTokenizerTraining([str(world / "train")], 360, str(world / "tokenizer")).run()
    recipe = RECIPE.replace("max_steps: 20", "max_steps: 1").replace("  val: ${vars.world}/val\n", "")
    recipe = recipe.replace('"${vars.run}"', f"{run}/sft")
    texts = {"sft": recipe, "pairs": PAIRS, "data": DATA, "reference": REFERENCE, "dpo": DPO, "all": STAGES}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("WORLD", str(world)).replace("RUN", str(run)))
    assert main(["run", str(tmp_path / "all.yaml")]) == 0
    train = [row for row in logged(run / "dpo") if "train/loss" in row]
    assert train[0]["train/rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert train[-1]["train/rewards/margins"] > 0.01
    assert load_run(run / "dpo").model.geometry.codebook_size == 6561
    assert len((run / "pairs" / "pairs.jsonl").read_text().splitlines()) == 6
    capsys.readouterr()
    assert main(["run", str(tmp_path / "all.yaml")]) == 0
    assert "starts" not in capsys.readouterr().out  # all was done before
