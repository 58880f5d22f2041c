from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fac_lightning.backbones import HFBackbone
from fac_lightning.hf_packed import register_packed_attention
from fac_lightning.packed import LONG_ROW, packed_attention, packed_layout
from fac_lightning.testing import check_backbone, tiny_backbone

FAMILIES = ["qwen3", "llama"]


def line(sizes, dim=16):
    lengths = torch.tensor(sizes)
    return torch.randn(sum(sizes), dim), torch.cat([torch.arange(n) for n in sizes]), lengths


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_models_keep_the_contract(family, tied):
    check_backbone(tiny_backbone(family=family, tied=tied))


def test_the_check_finds_rows_that_see_each_other(monkeypatch):
    import fac_lightning.hf_packed as hf_packed

    one_row = lambda lengths, device, parents=None: packed_layout(lengths.sum()[None], device)  # noqa: E731
    monkeypatch.setattr(hf_packed, "packed_layout", one_row)
    with pytest.raises(AssertionError, match="rows packed in one line"):
        check_backbone(tiny_backbone())


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logits_and_gradients_equal_separate_ones(family):
    backbone, (embeds, positions, lengths) = tiny_backbone(family=family), line([3, 30, 1, 8, 29, 7])
    embeds.requires_grad_()
    packed = backbone.logits(backbone(embeds, positions, lengths))
    rows = zip(embeds.split(lengths.tolist()), positions.split(lengths.tolist()), strict=True)
    alone = torch.cat([backbone.logits(backbone(e, p, torch.tensor([len(e)]))) for e, p in rows])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(packed)
    grads = [torch.autograd.grad((x * weights).sum(), embeds, retain_graph=True)[0] for x in (packed, alone)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_saved_folder_gives_the_same_logits_here_and_in_plain_transformers(family, tied, tmp_path):
    from transformers import AutoModelForCausalLM

    backbone, ids = tiny_backbone(family=family, tied=tied), torch.arange(9)
    backbone.save_pretrained(tmp_path)
    want = backbone.logits(backbone(backbone.embed(ids), ids, torch.tensor([9])))
    again = HFBackbone(name=str(tmp_path))
    assert {n: p.shape for n, p in again.state_dict().items()} == {n: p.shape for n, p in backbone.state_dict().items()}
    torch.testing.assert_close(again.logits(again(again.embed(ids), ids, torch.tensor([9]))), want)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config._attn_implementation == "sdpa"
    torch.testing.assert_close(plain(ids[None]).logits[0], want, atol=1e-5, rtol=1e-5)


def test_a_tied_matrix_is_named_once_in_the_state_dict():
    tied, untied = tiny_backbone(tied=True), tiny_backbone(tied=False)
    assert not any("lm_head" in name for name in tied.state_dict())
    assert tied.output_weight is tied.model.get_input_embeddings().weight
    assert untied.output_weight is untied.lm_head.weight


@pytest.mark.parametrize("tied", [False, True])
def test_new_token_rows_start_as_the_mean(tied, tmp_path):
    small = tiny_backbone(vocab_size=20, tied=tied)
    small.save_pretrained(tmp_path)
    grown = HFBackbone(name=str(tmp_path), vocab_size=23)
    assert grown.vocab_size == 23
    for old, new in (
        (small.output_weight, grown.output_weight),
        (small.embed(torch.arange(20)), grown.embed(torch.arange(23))),
    ):
        torch.testing.assert_close(new[:20], old)
        torch.testing.assert_close(new[20:], old.mean(0).expand(3, -1))
    assert HFBackbone(name=str(tmp_path), vocab_size=10).vocab_size == 20  # never cut


def test_weights_that_come_later_need_only_the_config(tmp_path):
    tiny_backbone(vocab_size=20).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    shell = HFBackbone(name=str(tmp_path), pretrained=False, vocab_size=23)
    assert shell.embed(torch.tensor([22])).shape == (1, 16)


def test_the_callers_config_is_left_alone():
    config = {"model_type": "llama", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 8}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    before = copy.deepcopy(config)
    HFBackbone(config=config, vocab_size=30)
    assert config == before


def test_gradient_checkpointing_changes_memory_only(tmp_path):
    tiny_backbone().save_pretrained(tmp_path)
    embeds, positions, lengths = line([4, 9])
    grads = []
    for saving in (False, True):
        backbone = HFBackbone(name=str(tmp_path), gradient_checkpointing=saving).train()
        backbone(embeds, positions, lengths).square().sum().backward()
        grads.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


def test_half_precision_parameters(tmp_path):
    tiny_backbone().save_pretrained(tmp_path)
    backbone = HFBackbone(name=str(tmp_path), dtype="bfloat16")
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either name .* or config"),
        ({"config": {"hidden_size": 8}}, "config needs a model_type"),
        ({"config": {"model_type": "llama"}, "dtype": "float31"}, "'float31' is not a torch dtype"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HFBackbone(**arguments)


def test_models_that_shape_their_logits_are_refused():
    config = {"model_type": "granite", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 8}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "logits_scaling": 4.0}
    with pytest.raises(ValueError, match="granite puts logits_scaling on its logits"):
        HFBackbone(config=config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "lfm2", "pad_token_id": 0, "layer_types": ["conv", "full_attention"]},
            "lfm2 mixes positions by conv",
        ),
        ({"model_type": "bloom"}, "bloom mixes positions by code of its own"),
    ],
)
def test_models_whose_rows_would_leak_into_each_other_are_refused(config, message):
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    with pytest.raises(ValueError, match=message):
        HFBackbone(config=sizes | {"num_attention_heads": 2, "num_key_value_heads": 1} | config)


def test_attention_with_sinks_is_refused():
    from transformers import AttentionInterface

    register_packed_attention()
    heads = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="shapes its attention with s_aux"):
        AttentionInterface()["fac_packed"](nn.Identity(), heads, heads, heads, None, s_aux=torch.zeros(2))


def test_a_model_that_drops_the_layout_is_found_out():
    from transformers import AttentionInterface

    register_packed_attention()
    attention = AttentionInterface()["fac_packed"]
    heads = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="does not hand keyword arguments on"):
        attention(nn.Identity(), heads, heads, heads, torch.ones(1, 1, 1, 1, dtype=torch.bool))


def test_sliding_windows_hold_in_packed_rows(tmp_path):
    config = json.loads((_save(tmp_path) / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": 3, "layer_types": ["sliding_attention"] * 2}
    backbone = HFBackbone(config=config)
    embeds, positions, lengths = line([9, 5])
    packed = backbone(embeds, positions, lengths)
    cache = backbone.new_cache()
    mask = torch.ones(1, 9, dtype=torch.bool)
    stepped = backbone.step(embeds[None, :9], mask, positions[None, :9], cache)[0]
    torch.testing.assert_close(packed[:9], stepped, atol=1e-5, rtol=1e-5)
    changed = embeds.clone()
    changed[0] += 1  # two layers of window 3 carry it to position 4 and no further
    moved = (backbone(changed, positions, lengths) - packed).abs().sum(1) > 1e-6
    assert moved[:5].all()
    assert not moved[5:].any()


def _save(folder):
    tiny_backbone().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("sizes", [[5], [4, 4, 4], [1, 9, 2, 30, 28, 3, 8], [LONG_ROW + 1, LONG_ROW, 2], [3, 0, 2]])
def test_packed_attention_equals_attention_row_by_row(sizes):
    total = sum(sizes)
    query, key, value = (torch.randn(total, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    got = packed_attention(query, key, value, packed_layout(torch.tensor(sizes), "cpu"))
    rows = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in row), is_causal=True, enable_gqa=True).transpose(
            0, 1
        )
        for row in zip(*(x.split([s for s in sizes if s]) for x in (query, key, value)), strict=True)
    ]
    want = torch.cat(rows)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(got)
    for left, right in zip(
        torch.autograd.grad(got, (query, key, value), upstream),
        torch.autograd.grad(want, (query, key, value), upstream),
        strict=True,
    ):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_an_empty_line_keeps_the_graph():
    empty = torch.zeros(0, 2, 8, requires_grad=True)
    out = packed_attention(empty, empty, empty, packed_layout(torch.zeros(0, dtype=torch.long), "cpu"))
    assert out.shape == (0, 2, 8)
    assert out.requires_grad


def test_lengths_must_agree_with_the_line():
    heads = torch.randn(5, 2, 8)
    with pytest.raises(ValueError, match="5 positions but its row lengths sum to 4"):
        packed_attention(heads, heads, heads, packed_layout(torch.tensor([4]), "cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_the_variable_length_kernel_agrees(heads):
    sizes, scale = [5, 130, 64], 0.3
    many, few = heads
    shapes = (many, few, few)
    tensors = [torch.randn(sum(sizes), h, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in shapes]
    layout = packed_layout(torch.tensor(sizes), "cuda")
    fast = packed_attention(*tensors, layout, scale=scale)
    slow = packed_attention(*(x.float() for x in tensors), layout, scale=scale)
    torch.testing.assert_close(fast.float(), slow, atol=2e-2, rtol=2e-2)


def continued(sizes, parents):
    """Position ids of rows that continue other rows, and the line positions that each row sees."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    own = [list(range(a, a + n)) for a, n in zip(starts, sizes, strict=True)]
    seen = [(own[p] if p >= 0 else []) + mine for p, mine in zip(parents, own, strict=True)]
    ahead = [sizes[p] if p >= 0 else 0 for p in parents]
    return torch.cat([torch.arange(n) + a for n, a in zip(sizes, ahead, strict=True)]), seen


@pytest.mark.parametrize(
    ("sizes", "parents"),
    [
        ([5, 3, 4], [-1, 0, 0]),
        ([6, 2, 7, 4, 3, 3, 1], [-1, 0, 0, -1, 3, 3, -1]),
        ([3, 0, 4, 9], [-1, 0, 0, -1]),
        ([400, 30, 390], [-1, 0, 0]),
    ],
)
@pytest.mark.parametrize("window", [None, 4])
def test_rows_that_continue_a_row_see_it_and_not_each_other(sizes, parents, window):
    torch.manual_seed(0)
    query, key, value = (torch.randn(sum(sizes), heads, 8) for heads in (4, 2, 2))
    layout = packed_layout(torch.tensor(sizes), "cpu", torch.tensor(parents))
    got = packed_attention(query, key, value, layout, window=window)
    assert layout.total == sum(sizes)
    _, seen = continued(sizes, parents)
    for size, positions in zip(sizes, seen, strict=True):
        if size:
            alone = packed_layout(torch.tensor([len(positions)]), "cpu")
            want = packed_attention(query[positions], key[positions], value[positions], alone, window=window)
            torch.testing.assert_close(got[positions[-size:]], want[-size:])
    # what the variable-length kernel is given: whole rows, of which the own positions are taken
    spread = [i for size, positions in zip(sizes, seen, strict=True) if size for i in positions]
    assert layout.spread.tolist() == spread
    assert layout.spread[layout.own].tolist() == list(range(sum(sizes)))
    assert layout.offsets.tolist() == [
        0,
        *torch.tensor([len(p) for n, p in zip(sizes, seen, strict=True) if n]).cumsum(0),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prompt_gives_what_two_whole_rows_give(family):
    backbone = tiny_backbone(family=family)
    sizes, parents = [6, 2, 7, 4], [-1, 0, 0, -1]
    position_ids, seen = continued(sizes, parents)
    embeds = torch.randn(sum(sizes), 16, requires_grad=True)
    shared = backbone(embeds, position_ids, torch.tensor(sizes), torch.tensor(parents))
    (gradient,) = torch.autograd.grad(shared.square().sum(), embeds)
    apart = [
        backbone(embeds[p], torch.arange(len(p)), torch.tensor([len(p)]))[-n:] for n, p in zip(sizes, seen, strict=True)
    ]
    torch.testing.assert_close(shared, torch.cat(apart), atol=1e-5, rtol=1e-5)
    (want,) = torch.autograd.grad(torch.cat(apart).square().sum(), embeds)
    torch.testing.assert_close(gradient, want, atol=1e-4, rtol=1e-4)


def test_the_check_finds_rows_that_do_not_see_their_parent(monkeypatch):
    import fac_lightning.hf_packed as hf_packed

    alone = lambda lengths, device, parents: packed_layout(lengths, device)  # noqa: E731
    monkeypatch.setattr(hf_packed, "packed_layout", alone)
    with pytest.raises(AssertionError, match="rows that continue a row must give what whole rows give"):
        check_backbone(tiny_backbone())


@pytest.mark.parametrize("parents", [[0, -1], [1, -1], [-1, 0, 1]])
def test_parents_are_earlier_rows_without_parents(parents):
    with pytest.raises(ValueError, match="a parent must be an earlier row that has no parent itself"):
        packed_layout(torch.full((len(parents),), 2), "cpu", torch.tensor(parents))


@pytest.mark.gpu
def test_the_kernel_keeps_to_parents():
    sizes, parents = [60, 20, 70, 40], torch.tensor([-1, 0, 0, -1])
    query, key, value = (torch.randn(sum(sizes), heads, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2))
    layout = packed_layout(torch.tensor(sizes), "cuda", parents)
    fast = packed_attention(query, key, value, layout)
    slow = packed_attention(query.float(), key.float(), value.float(), layout)
    torch.testing.assert_close(fast.float(), slow, atol=2e-2, rtol=2e-2)
