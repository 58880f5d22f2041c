"""What makes training cheaper changes no number: recomputed and compiled layers, fused AdamW, CUDA's kernels."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision

from fac_lightning.bench import OurImplementation, make_conversations, peak_memory, sizes_of
from fac_lightning.callbacks import ActivationCheckpointing, RegionalCompilation, find_blocks
from fac_lightning.heads import RefinedHead
from fac_lightning.packed import packed_attention, packed_layout
from fac_lightning.tasks import SpeechSFT
from fac_lightning.tasks.strategies import fused_adamw
from fac_lightning.testing import tiny_backbone, tiny_batch, tiny_speech_lm

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: this path has not run")


def gradients(model, batch):
    model.zero_grad()
    output = model(batch)
    loss = output.text_loss_sum + output.speech_loss_sum + sum(output.auxiliary.values())
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.fixture
def task():
    return SpeechSFT(tiny_speech_lm()).train()


@pytest.mark.parametrize(("parts", "every", "count"), [(["head"], 1, 1), (["head", "backbone"], 1, 3), (["*"], 2, 2)])
def test_recomputed_layers_give_the_same_gradients(task, parts, every, count):
    batch = tiny_batch(task.model)
    wanted, names = gradients(task.model, batch), list(task.state_dict())
    callback = ActivationCheckpointing(parts, every)
    callback.setup(None, task, "fit")
    changed = [block for block in find_blocks(task.model).values() if "forward" in vars(block)]
    assert len(changed) == count
    assert list(task.state_dict()) == names
    assert_equal_gradients(gradients(task.model, batch), wanted)
    callback.teardown(None, task, "fit")
    assert not any("forward" in vars(block) for block in find_blocks(task.model).values())


def test_recomputed_layers_draw_the_same_random_numbers(task):
    batch = tiny_batch(task.model)
    for layer in task.model.backbone.model.layers:
        layer.self_attn.attention_dropout = 0.5
    torch.manual_seed(1)
    wanted = gradients(task.model, batch)
    ActivationCheckpointing(["backbone"]).setup(None, task, "fit")
    torch.manual_seed(1)
    assert_equal_gradients(gradients(task.model, batch), wanted)


def test_a_mixture_of_experts_recomputes_with_its_balance(task):
    task.model.backbone = tiny_backbone(family="qwen3_moe").train()
    batch = tiny_batch(task.model)
    wanted = gradients(task.model, batch)
    ActivationCheckpointing(["backbone"]).setup(None, task, "fit")
    assert_equal_gradients(gradients(task.model, batch), wanted)


def test_a_copy_of_recomputed_layers_is_a_model_of_its_own(task):
    batch = tiny_batch(task.model)
    wanted = gradients(task.model, batch)
    ActivationCheckpointing(["*"]).setup(None, task, "fit")
    other = copy.deepcopy(task.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert_equal_gradients(gradients(task.model, batch), wanted)


def test_recomputing_the_head_holds_less():
    ours = OurImplementation()
    ours.build(sizes_of("tiny"), "cpu")
    batch = ours.train_batch(make_conversations(sizes_of("tiny")))
    ours.train_step(batch)
    before = peak_memory(lambda: ours.train_step(batch))
    ActivationCheckpointing(["head"]).setup(None, ours.task, "fit")
    assert peak_memory(lambda: ours.train_step(batch)) < 0.85 * before


def test_a_part_that_recomputes_by_itself_is_not_told_twice():
    head = RefinedHead(16, 5, 32, width=16, num_layers=1, num_heads=2, gradient_checkpointing=True)
    with pytest.raises(ValueError, match=r"head\.transformer recomputes its layers already .*leave 'head' out"):
        ActivationCheckpointing().setup(None, SpeechSFT(tiny_speech_lm(head=head)), "fit")


@pytest.mark.parametrize("kind", [ActivationCheckpointing, RegionalCompilation])
def test_parts_without_layers_are_told(task, kind):
    with pytest.raises(ValueError, match=f"{kind.__name__}: 'haed' matches no block of layers; did you mean head"):
        kind(["haed"]).setup(None, task, "fit")
    with pytest.raises(ValueError, match="parts is empty"):
        kind([])
    with pytest.raises(ValueError, match="every must be at least 1"):
        ActivationCheckpointing(every=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_compiled_layers_give_the_same_gradients_and_lines_of_all_lengths_share_them(task):
    torch._dynamo.reset()
    batches = [tiny_batch(task.model), tiny_batch(task.model, rows=4, seed=3), tiny_batch(task.model, rows=5, seed=4)]
    wanted = [gradients(task.model, batch) for batch in batches]
    callbacks = [ActivationCheckpointing(["head"]), RegionalCompilation(["head"], backend="eager")]
    for callback in callbacks:
        callback.setup(None, task, "fit")
    stats = torch._dynamo.utils.counters["stats"]
    graphs = []
    for batch, expected in zip(batches, wanted, strict=True):
        assert_equal_gradients(gradients(task.model, batch), expected)
        graphs.append(stats["unique_graphs"])
    assert 0 < graphs[0] <= graphs[1] == graphs[2]
    for callback in reversed(callbacks):
        callback.teardown(None, task, "fit")
    assert not any("forward" in vars(block) for block in find_blocks(task.model).values())


class LearningOnly(SpeechSFT):
    """Without validation, for whose data Lightning would ask."""

    validation_step = lightning.LightningModule.validation_step


class Loader:
    """The same line again and again."""

    def __init__(self, line):
        self.line = line

    def __iter__(self):
        while True:
            yield self.line


def fitted(tmp_path, **options):
    """Weights after two steps."""
    model = tiny_speech_lm()
    batch = tiny_batch(model)
    task = LearningOnly(model, lr=1e-2, min_lr=0.0, warmup_steps=1)
    trainer = lightning.Trainer(
        max_steps=2,
        gradient_clip_val=0.1,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(task, Loader(batch))
    return {name: tensor.detach().float().cpu() for name, tensor in task.model.state_dict().items()}


def test_fused_adamw_is_adamw_also_under_autocast_with_clipping(tmp_path, monkeypatch):
    fused = fitted(tmp_path, accelerator="cpu", precision="bf16-mixed")
    plain = lambda groups, lr, betas, precision: torch.optim.AdamW(groups, lr=lr, betas=betas)  # noqa: E731
    monkeypatch.setattr("fac_lightning.tasks.base.fused_adamw", plain)
    wanted = fitted(tmp_path, accelerator="cpu", precision="bf16-mixed")
    for name, tensor in wanted.items():
        torch.testing.assert_close(fused[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("precision", "fused"),
    [
        (Precision(), True),
        (MixedPrecision("bf16-mixed", "cpu"), True),
        (MixedPrecision("16-mixed", "cpu", scaler=SimpleNamespace()), False),
    ],
)
def test_adamw_is_fused_where_gradients_can_be_clipped(precision, fused):
    optimizer = fused_adamw([{"params": [torch.nn.Parameter(torch.ones(2))]}], 0.1, (0.9, 0.95), precision)
    assert optimizer.defaults["fused"] is fused
    if isinstance(precision, MixedPrecision):
        assert not optimizer._step_supports_amp_scaling


@NO_CUDA
@pytest.mark.parametrize("window", [None, 5])
def test_variable_length_attention_on_cuda_is_the_attention_of_rows(window):
    lengths = torch.tensor([7, 40, 3, 40])
    query, key, value = (torch.randn(90, heads, 64, device="cuda") for heads in (8, 4, 4))
    layout = packed_layout(lengths, "cuda")
    wanted = packed_attention(query, key, value, layout, window=window)
    found = packed_attention(*(x.bfloat16() for x in (query, key, value)), layout, window=window)
    torch.testing.assert_close(found.float(), wanted, atol=2e-2, rtol=2e-2)


@NO_CUDA
def test_bf16_on_cuda_learns_in_float32_weights_what_the_cpu_learns(tmp_path):
    wanted = fitted(tmp_path, accelerator="cpu", precision="32-true")
    found = fitted(tmp_path, accelerator="gpu", devices=1, precision="bf16-mixed")
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-2, rtol=2e-2)


@NO_CUDA
def test_compiled_layers_on_cuda_have_the_loss_of_layers_as_they_are():
    task = SpeechSFT(tiny_speech_lm()).train().cuda()
    batch = tiny_batch(task.model).to("cuda")
    wanted = gradients(task.model, batch)
    RegionalCompilation().setup(None, task, "fit")
    found = gradients(task.model, batch)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3)
