"""Estimates against what really happens: operations by PyTorch's counter, memory by its allocator, on a CPU."""

from __future__ import annotations

import gc
import json
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fac_lightning.adapters import ConcatCodeGrouping, MeanGrouping, SumFusion
from fac_lightning.backbones import HFBackbone, LoRABackbone
from fac_lightning.encoders import FunAudioEncoder
from fac_lightning.estimate import (
    FLOP_FORMULAS,
    MACHINES,
    Conversation,
    LineBudget,
    LineCost,
    RateVariant,
    Setting,
    ShapesOnly,
    StoredFeatures,
    assess,
    cheapest,
    compare_rates,
    conversation_batch,
    fewer_positions,
    frozen_slot,
    hollow,
    low_rank_slot,
    machine_named,
    packed_batch,
    sharding_named,
    smaller_slot,
    trace_group,
    trace_line,
)
from fac_lightning.estimate.remedies import Remedy
from fac_lightning.heads import ParallelHead, RefinedHead
from fac_lightning.models import SpeechLM

RATE = 25.0
SHORT = Conversation(prompt_tokens=20, user_seconds=1.2, reply_seconds=2.4)


def qwen(dim: int, layers: int, heads: int, vocab: int, kind: str = "qwen3", **more) -> dict:
    return {
        "model_type": kind,
        "vocab_size": vocab,
        "hidden_size": dim,
        "intermediate_size": 3 * dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "head_dim": dim // heads,
        "tie_word_embeddings": False,
        **more,
    }


def model(group: int = 5, refined: bool = True, checkpointing: bool = False, **backbone) -> SpeechLM:
    """Tiny in all sizes."""
    config = qwen(64, 3, 4, 500) | backbone
    head = (
        RefinedHead(64, group, 100, width=64, num_layers=2, num_heads=4, gradient_checkpointing=checkpointing)
        if refined
        else ParallelHead(64, group, 100)
    )
    return SpeechLM(
        HFBackbone(config=config, gradient_checkpointing=checkpointing),
        head,
        FunAudioEncoder(n_mels=80, d_model=32, num_layers=2, num_heads=2, ffn_dim=64, dim=64),
        MeanGrouping(64, group, 64),
        ConcatCodeGrouping(100, group, 64),
        SumFusion(),
    ).train()


def small(group: int, refined: bool) -> SpeechLM:
    """The size at which the released code was measured: backbone 8 x 512, head 4 x 512, encoder 4 x 256."""
    head = RefinedHead(512, group, 6565) if refined else ParallelHead(512, group, 6565)
    return SpeechLM(
        HFBackbone(config=qwen(512, 8, 8, 32000)),
        head,
        FunAudioEncoder(d_model=256, num_layers=4, num_heads=4, ffn_dim=1024, dim=512),
        MeanGrouping(512, group, 512),
        ConcatCodeGrouping(6565, group, 512),
        SumFusion(),
    ).train()


def step(trained: SpeechLM, batch) -> None:
    output = trained(batch)
    (output.text_loss_sum + output.speech_loss_sum).backward()


def counted(trained: SpeechLM, batch) -> int:
    """Operations of a real step by PyTorch's counter; attention, which it leaves out on a CPU, by its own formulas."""
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        step(trained, batch)
    trained.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def allocated(trained: SpeechLM, batch, folder) -> int:
    """Most bytes that PyTorch's allocator held at a time in a real step, beyond what was there before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(trained, batch)
    seen.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    held = most = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def first_step(line: LineCost) -> int:
    """Most bytes of a step before which there were no gradients."""
    return max(sum(line.memory.forward.values()), line.memory.backward_total)


@pytest.mark.parametrize(
    "make",
    [
        model,
        lambda: model(1, refined=False),
        lambda: model(checkpointing=True),
        lambda: model(
            model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True
        ),
    ],
    ids=["refined", "parallel", "checkpointing", "experts"],
)
def test_operations_and_memory_are_those_of_a_real_step(make, tmp_path):
    torch.manual_seed(0)
    real = make()
    batch = conversation_batch(SHORT, real.geometry, RATE, count=3)
    line = trace_line(real, batch)
    assert line.total_flops == pytest.approx(counted(real, batch), rel=0.01)
    assert first_step(line) == pytest.approx(allocated(real, batch, tmp_path), rel=0.1)


@pytest.mark.parametrize(("group", "refined"), [(5, True), (1, False)], ids=["5 Hz", "25 Hz"])
def test_the_small_model_within_a_tenth(group, refined, tmp_path):
    real = small(group, refined)
    batch = conversation_batch(replace(SHORT, user_seconds=4.0), real.geometry, RATE)
    line = trace_line(real, batch)
    assert line.total_flops == pytest.approx(counted(real, batch), rel=0.01)
    assert first_step(line) == pytest.approx(allocated(real, batch, tmp_path), rel=0.1)


def test_frozen_parts_cost_no_gradient():
    whole, frozen = model(), model()
    frozen.backbone.requires_grad_(False)
    frozen.encoder.requires_grad_(False)
    batch = conversation_batch(SHORT, whole.geometry, RATE)
    all_trained, some = trace_line(whole, batch), trace_line(frozen, batch)
    assert some.total_flops == pytest.approx(counted(frozen, batch), rel=0.01)
    assert ("encoder", "backward") not in some.flops
    # what lies in front of the backbone is trained: activations have gradients, weights have none
    products = [line.flops["backbone", "backward"] / line.flops["backbone", "forward"] for line in (all_trained, some)]
    assert products[0] > 1.9
    assert 0.9 < products[1] < 1.4
    assert some.memory.gradients < all_trained.memory.gradients


def test_layers_computed_again_are_seen_and_save_memory():
    batch = conversation_batch(SHORT, model().geometry, RATE, count=4)
    plain, again = trace_line(model(), batch), trace_line(model(checkpointing=True), batch)
    assert plain.by_phase()["again"] == 0
    assert again.by_phase()["again"] > 0.5 * again.flops["backbone", "forward"]
    assert again.memory.activations < plain.memory.activations


def test_autocast_halves_what_products_keep():
    batch = conversation_batch(SHORT, model().geometry, RATE, count=8)
    single, half = trace_line(model(), batch), trace_line(model(), batch, autocast=torch.bfloat16)
    assert half.total_flops == single.total_flops
    assert half.memory.activations < 0.9 * single.memory.activations


def test_the_headline_of_the_small_model():
    """25 Hz without a head against 5 Hz with one: what was measured stands in ``docs/estimate.md``."""
    variants = {}
    for name, group, refined in (("25 Hz", 1, False), ("5 Hz", 5, True)):
        with ShapesOnly():
            made = small(group, refined)
        variants[name] = RateVariant(made, conversation_batch(Conversation(), made.geometry, RATE, count=2))
    found = compare_rates(variants, MACHINES["cpu"], frame_rate=RATE)
    assert found.train_ratio("25 Hz", "5 Hz") == pytest.approx(1.78, rel=0.05)
    assert found.flop_ratio("25 Hz", "5 Hz") == pytest.approx(1.91, rel=0.03)
    assert found.decode_ratio("25 Hz", "5 Hz") > 1.5
    group = found.costs["5 Hz"].group
    assert group.seconds == pytest.approx(0.2)
    head = variants["5 Hz"].model.head
    inside = sum(p.numel() * 4 for p in [*head.transformer.parameters(), head.output.weight])
    assert group.bytes["head"] == pytest.approx(5 * inside, rel=0.05)  # read once a code


def test_a_group_reads_the_whole_backbone_once():
    made = model()
    weights = sum(p.numel() * 4 for name, p in made.backbone.named_parameters() if "layers" in name and p.ndim == 2)
    near, far = (trace_group(made, RATE, context).bytes["backbone"] for context in (8, 64))
    assert near == pytest.approx(weights, rel=0.05)
    assert far - near == 56 * 3 * 2 * 2 * 16 * 4  # positions x layers x keys and values x heads x width x bytes


def test_hollow_copies_share_what_was_shared_and_leave_the_model_alone():
    made = model(tie_word_embeddings=True)
    made.encoder.requires_grad_(False)
    empty = hollow(made, torch.bfloat16)
    assert empty.backbone.output_weight is empty.backbone.model.get_input_embeddings().weight
    assert not any(p.requires_grad for p in empty.encoder.parameters())
    assert {p.dtype for p in empty.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    assert bool(torch.isfinite(made.backbone.output_weight).all())


def test_the_fullest_line_keeps_its_budget():
    geometry = model().geometry
    line = packed_batch(SHORT, geometry, LineBudget(100), RATE)
    assert int(line.lengths.sum()) == len(line.text_ids) == 100
    assert line.lengths.tolist() == [38, 38, 24]
    assert line.seconds == pytest.approx(3.6 * 100 / 38)
    heard = packed_batch(SHORT, geometry, LineBudget(1000, max_audio_seconds=3.0), RATE)
    assert heard.feature_positions.numel() == 2 * 6
    said = packed_batch(SHORT, geometry, LineBudget(1000, max_speech_tokens=120), RATE)
    assert said.speech_labels.shape[0] * 5 == 120
    text = packed_batch(replace(SHORT, heard=False, said=False), geometry, LineBudget(50), RATE)
    assert text.audio.audio.shape[0] == text.speech_positions.numel() == 0
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        Conversation(user_seconds=-1)


def line_cost() -> LineCost:
    return trace_line(model(), conversation_batch(SHORT, model().geometry, RATE))


def test_what_strategies_divide():
    line = line_cost()
    total = sum(slot.total for slot in line.slots.values())
    trained = sum(slot.trained for slot in line.slots.values())

    def memory(name: str, ranks: int):
        return assess(line, Setting(MACHINES["h100"], sharding_named(name, ranks), ranks, lines=2)).memory

    single, ddp = memory("auto", 1), memory("auto", 4)
    assert (single.weights, single.gradients, single.states) == (4 * total, 4 * trained, 8 * trained)
    assert (single.buffers, ddp.buffers) == (0, 4 * trained)
    zero = memory("deepspeed_stage_2", 4)
    assert (zero.weights, zero.gradients, zero.states) == (2 * total, 2 * trained // 4, 12 * trained // 4)
    assert memory("fsdp2", 4).weights == 4 * total // 4
    with pytest.raises(ValueError, match="strategy 'magic' is not one whose memory is known"):
        sharding_named("magic", 2)
    with pytest.raises(ValueError, match="no device 'abacus'"):
        machine_named("abacus")


def test_remedies_fit_and_what_disturbs_least_comes_first():
    line = line_cost()
    full = Setting(MACHINES["cpu"], sharding_named("auto", 1))
    needed = assess(line, full).memory.total
    tight = replace(full, machine=replace(full.machine, memory=needed - 1))
    frozen = Remedy("frozen", "", assess(frozen_slot(line, "encoder", stored=True), tight), disturbs=2)
    half = Remedy("half", "", assess(fewer_positions(line, 0.5), replace(tight, lines=2)), disturbs=0)
    same = Remedy("same", "", assess(line, tight), disturbs=0)
    assert not same.outcome.fits
    assert same.outcome.headroom == -1
    assert [way.name for way in cheapest([frozen, same, half])] == ["half", "frozen"]
    assert frozen.outcome.device_seconds < same.outcome.device_seconds


def test_remedies_save_what_they_say():
    """What a remedy is said to save against the model that its words make."""
    made = model()
    batch = conversation_batch(SHORT, made.geometry, RATE, count=8)
    line, setting = trace_line(made, batch), Setting(MACHINES["cpu"], sharding_named("auto", 1))

    half = conversation_batch(SHORT, made.geometry, RATE, count=4)
    same_as(fewer_positions(line, 0.5), trace_line(made, half), setting)
    smaller = model()
    del smaller.head.transformer.blocks[1:]
    share = 1 - sum(p.numel() for p in made.head.transformer.blocks[1].parameters()) / line.slots["head"].total
    same_as(smaller_slot(line, "head", share), trace_line(smaller, batch), setting, rel=0.25)
    low = model()
    low.backbone = LoRABackbone(low.backbone, rank=4)
    traced = trace_line(low.train(), batch)
    same_as(low_rank_slot(line, "backbone", traced.slots["backbone"].trained), traced, setting, rel=0.25)
    stored = model()
    stored.encoder = StoredFeatures(stored.encoder)
    same_as(frozen_slot(line, "encoder", stored=True), trace_line(stored, batch), setting)


def same_as(said: LineCost, traced: LineCost, setting: Setting, rel: float = 0.1) -> None:
    memory, real = assess(said, setting).memory, assess(traced, setting).memory
    assert said.total_flops == pytest.approx(traced.total_flops, rel=rel)
    assert (memory.weights, memory.states) == pytest.approx((real.weights, real.states), rel=0.02)
    assert memory.activations == pytest.approx(real.activations, rel=rel)


def test_a_reference_model_costs_a_forward_pass():
    line = line_cost()
    off, copied = line.with_reference(False), line.with_reference(True)
    assert off.total_flops == copied.total_flops == line.total_flops + line.by_phase()["forward"]
    setting = Setting(MACHINES["h100"], sharding_named("auto", 1))
    plain, twice = assess(line, setting).memory, assess(copied, setting).memory
    assert twice.weights == 2 * plain.weights
    assert twice.states == plain.states
