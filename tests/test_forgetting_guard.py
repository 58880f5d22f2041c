"""The guard measures what a plain reading measures, disturbs nothing, and its curves survive stops and restarts."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

import fac_lightning.text_probe as probe
from fac_lightning.callbacks import ForgettingGuard, WeightMerging
from fac_lightning.cli.build import build_trainer
from fac_lightning.config import load
from fac_lightning.merging import LinearMerge
from fac_lightning.prompts import ChatFormat
from fac_lightning.tasks import SpeechSFT, TextPretraining
from fac_lightning.testing import make_dialogues, tiny_backbone, tiny_batch, tiny_speech_lm
from fac_lightning.text_probe import (
    WrittenDialogue,
    lay_out_texts,
    read_texts,
    score_texts,
    set_digest,
    take_baseline,
)
from fac_lightning.text_tokenizer import load_text_tokenizer, train_text_tokenizer

FACTS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What comes after six?", "Seven comes after six."),
    ("Is the sun hot?", "Yes."),
    ("What do cows drink?", "Cows drink water."),
    ("Who sings?", "Birds sing."),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A text tokenizer and a text set."""
    folder = tmp_path_factory.mktemp("world")
    train_text_tokenizer([text for fact in FACTS for text in fact], 300, folder / "tokenizer")
    lines = [json.dumps({"prompt": question, "answer": answer}) for question, answer in FACTS]
    (folder / "facts.jsonl").write_text("\n".join(lines) + "\n")
    return SimpleNamespace(
        folder=folder,
        tokenizer=str(folder / "tokenizer"),
        facts=str(folder / "facts.jsonl"),
        chat=ChatFormat(load_text_tokenizer(folder / "tokenizer")),
    )


def laid_out(world, capacity=2048, system="Write."):
    return lay_out_texts(read_texts(world.facts), world.chat, system, capacity)


def plainly(world, backbone, base=None):
    """The same figures, dialogue by dialogue, from what the written words are."""
    chat, correct, exact, loss, kl, tokens = world.chat, 0, 0, 0.0, 0.0, 0
    for question, answer in FACTS:
        written = f"<|im_start|>system\nWrite.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        head = chat.encode(f"{written}<|im_start|>assistant\n")
        ids = torch.tensor(head + chat.encode(answer) + [chat.im_end])

        def read(model, ids=ids, head=head):
            places, length = torch.arange(len(ids)), torch.tensor([len(ids)])
            return model.logits(model(model.embed(ids), places, length)).log_softmax(1)[len(head) - 1 : -1]

        with torch.no_grad():
            now, labels = read(backbone), ids[len(head) :]
            hits = now.argmax(1) == labels
            correct, exact, tokens = correct + hits.sum().item(), exact + hits.all().item(), tokens + len(labels)
            loss -= now.gather(1, labels[:, None]).sum().item()
            if base is not None:
                before = read(base)
                kl += (before.exp() * (before - now[:, : before.shape[1]])).sum().item()
    return correct / tokens, exact / len(FACTS), loss / tokens, kl / tokens


# the text set


def test_dialogue_folders_and_json_lines_are_read(world, tmp_path):
    assert read_texts(world.facts)[0] == WrittenDialogue((("user", FACTS[0][0]), ("assistant", FACTS[0][1])))
    make_dialogues(tmp_path / "spoken", 4, rounds=2)
    found = read_texts(tmp_path / "spoken")
    assert len(found) == 4
    assert [role for role, _ in found[0].turns] == ["user", "assistant"] * 2
    assert read_texts(tmp_path / "spoken" / "cuts.jsonl") == found
    with gzip.open(tmp_path / "facts.jsonl.gz", "wt") as file:
        file.write('{"prompt": "a", "answer": "b", "system": "Shout."}\n\n')
    assert read_texts(tmp_path / "facts.jsonl.gz") == [WrittenDialogue((("user", "a"), ("assistant", "b")), "Shout.")]


def test_rows_are_taken_from_the_whole_set(world):
    assert [row.turns[0][1] for row in read_texts(world.facts, 3)] == [FACTS[i][0] for i in (0, 2, 4)]
    assert len(read_texts(world.facts, 99)) == len(FACTS)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: a list make no dialogue"),
        ('{"question": "a"}', r"line 1: the keys \['question'\] make no dialogue; give"),
        ('{"prompt": "a", "answer": null}', "turn 1 is said by 'assistant' and its text is None"),
        ('{"supervisions": [{"speaker": "user", "text": "a"}]}', "nobody answers"),
        ("", "is empty; a text set needs"),
    ],
)
def test_lines_that_are_no_dialogue_are_told(tmp_path, line, told):
    (tmp_path / "set.jsonl").write_text(line)
    with pytest.raises(ValueError, match=told):
        read_texts(tmp_path / "set.jsonl")


def test_a_missing_set_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no text set at .*cuts.jsonl"):
        read_texts(tmp_path)
    with pytest.raises(ValueError, match="max_rows must be at least 1, got 0"):
        read_texts(tmp_path, 0)


# scores


def memorised(world, steps=40):
    """A backbone that knows some of the facts by heart."""
    backbone = tiny_backbone()
    lines = laid_out(world)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=2e-2)
    for _ in range(steps):
        hidden = backbone(backbone.embed(lines[0].text_ids), lines[0].position_ids, lines[0].lengths)
        logits = backbone.logits(hidden[lines[0].positions])
        nn.functional.cross_entropy(logits, lines[0].targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return backbone


@pytest.mark.parametrize("steps", [0, 25, 60])
def test_scores_are_those_of_a_plain_reading(world, steps):
    backbone, base = memorised(world, steps), tiny_backbone(seed=1)
    lines = laid_out(world)
    scores = score_texts(backbone, lines, take_baseline(base, lines))
    assert (scores.accuracy, scores.exact, scores.loss, scores.kl) == pytest.approx(
        plainly(world, backbone, base), abs=2e-5
    )
    assert scores.answers == len(FACTS)
    assert steps < 60 or scores.exact == 1


def test_packing_and_chunks_change_nothing(world, monkeypatch):
    backbone = memorised(world, 10)
    whole = laid_out(world)
    base = take_baseline(tiny_backbone(), whole)
    expected = score_texts(backbone, whole, base)
    assert len(whole) == 1
    monkeypatch.setattr(probe, "CHUNK_ELEMENTS", 3 * 320)
    for capacity, count in ((100, 3), (1, 5)):
        lines = laid_out(world, capacity)
        assert len(lines) == count
        assert set_digest(lines) == set_digest(whole)
        found = score_texts(backbone, lines, base)
        assert (found.accuracy, found.exact) == (expected.accuracy, expected.exact)
        assert (found.loss, found.kl) == pytest.approx((expected.loss, expected.kl), rel=1e-4)


def test_equal_models_do_not_diverge(world):
    lines = laid_out(world)
    for top_k in (4, 400):
        assert score_texts(tiny_backbone(), lines, take_baseline(tiny_backbone(), lines, top_k)).kl < 1e-6


def test_kept_tokens_bound_the_divergence_from_below(world, monkeypatch):
    lines, backbone = laid_out(world), memorised(world, 10)
    whole = score_texts(backbone, lines, take_baseline(tiny_backbone(), lines)).kl
    monkeypatch.setattr(probe, "WHOLE_ELEMENTS", 0)
    parts = []
    for top_k in (1, 16, 319):
        base = take_baseline(tiny_backbone(), lines, top_k)
        assert base.logprobs.shape[1] == top_k
        assert (base.logprobs.exp().sum(1) + base.rest.exp()).allclose(torch.ones(()))
        parts.append(score_texts(backbone, lines, base).kl)
    assert 0 < parts[0] < parts[1] < parts[2] == pytest.approx(whole, rel=1e-4)


def test_a_vocabulary_may_grow_and_not_shrink(world):
    lines = laid_out(world)
    small, large = tiny_backbone(310), tiny_backbone(320)
    scores = score_texts(large, lines, take_baseline(small, lines))
    assert scores.kl == pytest.approx(plainly(world, large, small)[3], rel=1e-4)
    with pytest.raises(ValueError, match="knows 320 tokens and this model 310: a vocabulary may grow"):
        score_texts(small, lines, take_baseline(large, lines))


def test_a_baseline_is_read_back_as_it_was(world, tmp_path, monkeypatch):
    lines = laid_out(world)
    for elements in (2**24, 0):
        monkeypatch.setattr(probe, "WHOLE_ELEMENTS", elements)
        base = take_baseline(tiny_backbone(), lines, 5)
        base.save(tmp_path / "base.safetensors", stage="one")
        found, notes = probe.TextBaseline.load(tmp_path / "base.safetensors")
        assert notes == {"stage": "one"}
        assert (found.scores, found.digest) == (base.scores, base.digest)
        assert torch.equal(found.logprobs, base.logprobs)
        assert elements or torch.equal(found.ids, base.ids)
    (tmp_path / "base.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is no baseline of a text set"):
        probe.TextBaseline.load(tmp_path / "base.safetensors")


def test_a_baseline_of_other_rows_is_refused(world):
    base = take_baseline(tiny_backbone(), laid_out(world))
    with pytest.raises(ValueError, match="the baseline was taken of another text set"):
        score_texts(tiny_backbone(), laid_out(world, system="Speak."), base)


def test_every_module_keeps_its_mode(world):
    backbone = tiny_backbone().train()
    backbone.model.layers[0].eval()
    before = [module.training for module in backbone.modules()]
    score_texts(backbone, laid_out(world))
    assert [module.training for module in backbone.modules()] == before


# in a training


class Lines(lightning.LightningDataModule):
    """One line again and again."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def train_dataloader(self):
        return Repeat(self.batch)


class Repeat:
    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        while True:
            yield self.batch


def text_task(seed=0):
    return TextPretraining(tiny_backbone(seed=seed), lr=1e-2, warmup_steps=1, save_llm=False)


def line(seed=0):
    return tiny_batch(tiny_speech_lm(), 4, seed=seed, speech=False)


def guarded(world, folder, **options):
    given = {"every_n_steps": 2, "system": "Write.", **options}
    return ForgettingGuard(world.facts, world.tokenizer, str(folder / "guard"), **given)


def fit(task, callbacks, folder, steps=5, ckpt_path=None, batch=None, **more):
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        default_root_dir=folder,
        **{"logger": False, "log_every_n_steps": 1, **more},
    )
    with warnings.catch_warnings():
        for expected in (
            "treespec", "val_dataloader", "training batches", "exists and is not empty", "in eval mode",
            "callbacks used to create",
        ):  # fmt: skip
            warnings.filterwarnings("ignore", f".*{expected}.*")
        trainer.fit(task, datamodule=Lines(line() if batch is None else batch), ckpt_path=ckpt_path)
    return trainer


def history(folder):
    return json.loads((folder / "guard" / "forgetting.json").read_text())


def steps_of(folder):
    return {stage["name"]: [point["step"] for point in stage["points"]] for stage in history(folder)["stages"]}


def test_a_stage_is_measured_from_its_start_to_its_end(world, tmp_path):
    task = text_task()
    before = plainly(world, task.model)
    guard = guarded(world, tmp_path)
    trainer = fit(task, [guard], tmp_path / "llm", logger=CSVLogger(tmp_path, "logs", ""))
    found = history(tmp_path)
    assert steps_of(tmp_path) == {"llm": [0, 2, 4, 5]}
    first, last = (found["stages"][0]["points"][i] for i in (0, -1))
    assert (first["accuracy"], first["exact"], first["loss"]) == pytest.approx(before[:3], abs=1e-5)
    assert first["kl"] < 1e-6
    assert found["base"]["accuracy"] == first["accuracy"]
    assert found["base"]["kept"] == "all"
    after = plainly(world, task.model, tiny_backbone())
    assert [last[name] for name in ("accuracy", "exact", "loss", "kl")] == pytest.approx(after, abs=2e-5)
    assert last["kl"] > 0.01
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("guard/kl")]
    assert [int(row["step"]) for row in rows] == [0, 2, 4, 5]
    assert float(rows[-1]["guard/kl"]) == pytest.approx(last["kl"])
    assert float(trainer.callback_metrics["guard/kl"]) == pytest.approx(found["stages"][0]["points"][2]["kl"])
    picture = tmp_path / "guard" / "forgetting.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size > 5000


def test_a_training_is_the_same_with_and_without_it(world, tmp_path):
    def trained(callbacks):
        task = text_task()
        fit(task, callbacks, tmp_path / "llm")
        return list(task.model.state_dict().values()), torch.rand(1)

    torch.manual_seed(0)
    plain, draw = trained([])
    torch.manual_seed(0)
    watched, same_draw = trained([guarded(world, tmp_path, every_n_steps=1)])
    assert all(map(torch.equal, plain, watched))
    assert torch.equal(draw, same_draw)


def test_micro_batches_of_one_step_are_measured_once(world, tmp_path, monkeypatch):
    counted = []
    module = "fac_lightning.callbacks.forgetting_guard.score_texts"
    monkeypatch.setattr(module, lambda *given: counted.append(1) or score_texts(*given))
    fit(text_task(), [guarded(world, tmp_path, every_n_steps=1)], tmp_path / "llm", 2, accumulate_grad_batches=3)
    assert len(counted) == 4  # start, twice, end


def test_a_speech_model_is_followed_through_its_backbone(world, tmp_path):
    model = tiny_speech_lm()
    task = SpeechSFT(model, lr=1e-2, warmup_steps=1, freeze=["encoder"])
    fit(task, [guarded(world, tmp_path, every_n_steps=None)], tmp_path / "sft", 2, batch=tiny_batch(model, 3))
    assert steps_of(tmp_path) == {"sft": [0, 2]}
    expected = plainly(world, model.backbone, tiny_backbone())
    assert history(tmp_path)["stages"][0]["points"][-1]["kl"] == pytest.approx(expected[3], abs=2e-5)


def test_later_stages_compare_with_the_base_of_the_first(world, tmp_path):
    one = text_task()
    fit(one, [guarded(world, tmp_path)], tmp_path / "one", 4)
    two = TextPretraining(one.model, lr=1e-2, warmup_steps=1, save_llm=False)
    fit(two, [guarded(world, tmp_path, stage="second")], tmp_path / "two", 4)
    assert steps_of(tmp_path) == {"one": [0, 2, 4], "second": [0, 2, 4]}
    first, second = (stage["points"] for stage in history(tmp_path)["stages"])
    assert second[0] == {**first[-1], "step": 0}
    assert second[-1]["kl"] == pytest.approx(plainly(world, two.model, tiny_backbone())[3], abs=2e-5)


def test_a_stage_that_starts_anew_draws_its_curve_anew(world, tmp_path):
    fit(text_task(), [guarded(world, tmp_path)], tmp_path / "one", 4)
    later = lambda steps: fit(text_task(3), [guarded(world, tmp_path)], tmp_path / "two", steps)  # noqa: E731
    later(4)
    later(3)
    assert steps_of(tmp_path) == {"one": [0, 2, 4], "two": [0, 2, 3]}
    base = (tmp_path / "guard" / "baseline.safetensors").read_bytes()
    # the stage that made the baseline makes it anew: its LLM may be another, and the later curves are void
    fit(text_task(5), [guarded(world, tmp_path)], tmp_path / "one", 2)
    assert steps_of(tmp_path) == {"one": [0, 2]}
    assert (tmp_path / "guard" / "baseline.safetensors").read_bytes() != base
    assert history(tmp_path)["stages"][0]["points"][0]["kl"] < 1e-6


class Crash(Callback):
    """The power fails."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            raise RuntimeError("the power failed")


def test_a_run_that_goes_on_has_no_point_twice(world, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(text_task(), [guarded(world, whole)], whole / "llm", 7)
    saved = ModelCheckpoint(parts, filename="last", every_n_train_steps=3, save_top_k=-1)
    with pytest.raises(RuntimeError, match="the power failed"):
        fit(text_task(), [guarded(world, parts), saved, Crash()], parts / "llm", 7)
    assert steps_of(parts) == {"llm": [0, 2, 4]}  # saved at 3: step 4 comes again
    guard = guarded(world, parts)
    fit(text_task(1), [guard], parts / "llm", 7, ckpt_path=parts / "last.ckpt")
    assert history(parts)["stages"] == history(whole)["stages"]
    assert steps_of(parts) == {"llm": [0, 2, 4, 6, 7]}
    assert guard.state_dict() == {"last_step": 7, "start": history(whole)["base"]["accuracy"]}


def test_what_goes_on_needs_its_baseline(world, tmp_path):
    saved = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=2)
    fit(text_task(), [guarded(world, tmp_path), saved], tmp_path / "llm", 2)
    (tmp_path / "guard" / "baseline.safetensors").unlink()
    for state in (True, False):
        if not state:  # a checkpoint of a training without a guard
            content = torch.load(tmp_path / "last.ckpt", weights_only=False)
            content["callbacks"] = {}
            torch.save(content, tmp_path / "last.ckpt")
        with pytest.raises(ValueError, match="goes on from a checkpoint, so the base LLM is no longer at hand"):
            fit(text_task(), [guarded(world, tmp_path)], tmp_path / "llm", 4, ckpt_path=tmp_path / "last.ckpt")


def forgetting(world, folder, **options):
    """Knows all, then learns nonsense."""
    task = TextPretraining(memorised(world, 60), lr=3e-2, min_lr=3e-2, warmup_steps=0, save_llm=False)
    return fit(task, [guarded(world, folder, **options)], folder / "stage", 30)


@pytest.mark.parametrize(("against", "whose"), [("base", "the base LLM"), ("start", "the start of the stage")])
def test_a_stage_that_forgets_is_stopped(world, tmp_path, caplog, against, whose):
    with caplog.at_level(logging.INFO, "fac_lightning"):
        trainer = forgetting(world, tmp_path, stop_below=20, against=against)
    assert 0 < trainer.global_step < 30
    assert trainer.global_step % 2 == 0
    said = [record.message for record in caplog.records if "ForgettingGuard" in record.message]
    assert len(said) == 1
    assert said[0].startswith(f"ForgettingGuard stops stage at step {trainer.global_step}: text accuracy ")
    assert said[0].endswith(f"points below that of {whose} (100.0 %), and stop_below is 20")
    points = history(tmp_path)["stages"][0]["points"]
    lost = [100 * (1 - point["accuracy"]) for point in points]
    assert lost[-1] > 20 >= max(point for point, last in zip(lost, points, strict=True) if last is not points[-1])


def test_against_the_start_a_loss_of_earlier_stages_does_not_count(world, tmp_path):
    base = TextPretraining(memorised(world, 60), warmup_steps=0, save_llm=False)
    fit(base, [guarded(world, tmp_path)], tmp_path / "one", 1)
    for against, steps in (("start", 4), ("base", 2)):
        task = text_task(4)  # knows nothing
        trainer = fit(task, [guarded(world, tmp_path, stop_below=50, against=against)], tmp_path / against, 4)
        assert trainer.global_step == steps


def test_without_a_limit_nothing_stops(world, tmp_path):
    assert forgetting(world, tmp_path).global_step == 30


def test_a_merge_at_the_end_is_measured(world, tmp_path):
    merge = WeightMerging(LinearMerge(0.0))
    fit(text_task(), [merge, guarded(world, tmp_path, every_n_steps=4)], tmp_path / "llm", 4)
    assert steps_of(tmp_path) == {"llm": [0, 4]}
    assert history(tmp_path)["stages"][0]["points"][-1]["kl"] < 1e-6  # alpha 0 is the base


def test_what_is_only_tried_leaves_nothing(world, tmp_path):
    fit(text_task(), [guarded(world, tmp_path)], tmp_path / "llm", fast_dev_run=True)
    assert not (tmp_path / "guard").exists()


# what it refuses


def test_another_set_in_the_same_folder_is_refused(world, tmp_path):
    fit(text_task(), [guarded(world, tmp_path)], tmp_path / "one", 1)
    with pytest.raises(ValueError, match=r"was taken of another text set than .*facts.jsonl is now"):
        fit(text_task(), [guarded(world, tmp_path, max_rows=2)], tmp_path / "two", 1)
    fit(text_task(), [guarded(world, tmp_path, max_rows=2)], tmp_path / "one", 1)  # its own may be another now


def test_a_task_without_a_text_llm_is_refused(world, tmp_path):
    guard = guarded(world, tmp_path)
    with pytest.raises(ValueError, match=r"follows a text LLM, but the model of SimpleNamespace \(Linear\) neither is"):
        guard.setup(SimpleNamespace(strategy=None), SimpleNamespace(model=nn.Linear(1, 1)), "fit")
    guard.setup(SimpleNamespace(strategy=None), SimpleNamespace(model=nn.Linear(1, 1)), "validate")


def test_sharded_parameters_are_refused(world, tmp_path):
    trainer = SimpleNamespace(strategy=object.__new__(FSDPStrategy))
    with pytest.raises(ValueError, match="FSDPStrategy may split its parameters; train with strategy 'ddp'"):
        guarded(world, tmp_path).setup(trainer, text_task(), "fit")


def test_the_tokenizer_of_another_model_is_refused(world, tmp_path):
    task = TextPretraining(tiny_backbone(290), save_llm=False)
    with pytest.raises(ValueError, match=r"gives token 29\d, but the backbone has 290"):
        guarded(world, tmp_path).setup(SimpleNamespace(strategy=None), task, "fit")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"stop_below": -1.0}, "cannot be negative, got -1.0"),
        ({"stop_below": 1.0, "every_n_steps": None}, "stop_below needs every_n_steps"),
        ({"against": "end"}, "against must be 'base' or 'start', got 'end'"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(world, tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        guarded(world, tmp_path, **options)


def test_guards_of_two_sets_keep_their_states_apart(world, tmp_path):
    keys = {guarded(world, tmp_path).state_key, guarded(world, tmp_path / "other").state_key}
    assert len(keys) == 2
    assert isinstance(guarded(world, tmp_path), Callback)


def test_scores_of_nothing_but_rounding_are_zero(world):
    lines = laid_out(world)
    base = take_baseline(tiny_backbone(), lines)
    nudged = replace(base, logprobs=base.logprobs - 1e-6)
    assert score_texts(tiny_backbone(), lines, nudged).kl == 0
    assert math.isfinite(score_texts(tiny_backbone(), lines, base).loss)


@pytest.mark.parametrize("stage", ["cocktail_1", "cocktail_2"])
def test_the_stages_of_core_cocktail_are_guarded_by_recipe(tmp_path, stage):
    recipe = load(f"tiny/{stage}", [f"vars.run={tmp_path}"])
    (guard,) = (one for one in build_trainer(recipe).callbacks if isinstance(one, ForgettingGuard))
    assert (guard.text, guard.folder) == (f"{tmp_path}/world/text", tmp_path / "guard")  # one curve for both
    assert guard.text_tokenizer == recipe.tree["data"]["text_tokenizer"]
    assert guard.system == recipe.tree["data"]["system_prompts"]["T2T"]
    assert 0 < guard.every_n_steps < recipe.tree["trainer"]["max_steps"]
    assert guard.stage is None  # the name of the run folder: that of the stage
