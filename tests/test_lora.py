from __future__ import annotations

import sys

import pytest
import torch

from fac_lightning.backbones import HFBackbone, LoRABackbone
from fac_lightning.testing import check_backbone, tiny_backbone

IDS = torch.arange(9)
KINDS = [{}, {"use_dora": True}, {"use_rslora": True}]


def hidden(backbone):
    return backbone(backbone.embed(IDS), IDS, torch.tensor([9]))


def trained(kind=None, **options):
    """A LoRA backbone after one step away from where it started."""
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    backbone = LoRABackbone(tiny_backbone(**options), rank=2, **(kind or {}))
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 0.5)
    for _ in range(2):  # the first step moves one of the two thin matrices only
        optimizer.zero_grad()
        hidden(backbone).square().mean().backward()
        optimizer.step()
    return backbone


@pytest.mark.parametrize("family", ["gemma2", "llama", "qwen3", "qwen3_moe"])
def test_keeps_the_contract(family):
    check_backbone(trained(family=family))


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_updates_keep_the_contract(kind):
    check_backbone(trained(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_backbone_it_was_given(kind):
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    torch.testing.assert_close(hidden(LoRABackbone(tiny_backbone(), **kind)), hidden(tiny_backbone()))


@pytest.mark.parametrize("kind", KINDS)
def test_without_updates_it_is_the_backbone_it_was_given(kind):
    backbone = trained(kind)
    with backbone.without_updates():
        torch.testing.assert_close(hidden(backbone), hidden(tiny_backbone()))
    assert not torch.allclose(hidden(backbone), hidden(tiny_backbone()))


def test_rank_stabilised_updates_are_scaled_by_the_root_of_the_rank():
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    plain, stable = (
        LoRABackbone(tiny_backbone(), rank=4, alpha=6.0, use_rslora=on).backbone.model.layers[0].self_attn.q_proj
        for on in (False, True)
    )
    assert plain.scaling["default"] == 6.0 / 4
    assert stable.scaling["default"] == 6.0 / 2


def test_the_lengths_of_dora_train_and_are_found_again():
    backbone = trained({"use_dora": True})
    lengths = [n for n, p in backbone.named_parameters() if "magnitude" in n and p.requires_grad]
    assert len(lengths) == 14
    assert {id(p) for p in backbone.update_parameters()} == {id(p) for p in backbone.parameters() if p.requires_grad}
    again = LoRABackbone(tiny_backbone(), rank=2, use_dora=True)
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(hidden(again), hidden(backbone))


def test_what_the_model_caps_and_adds_is_handed_on():
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    capped = LoRABackbone(tiny_backbone(family="gemma2"))
    torch.testing.assert_close(capped.logits(hidden(capped)), capped.backbone.logits(hidden(capped)))
    assert capped.logit_softcap == 3.0
    mixture = LoRABackbone(tiny_backbone(family="qwen3_moe")).train()
    hidden(mixture)
    mixture.auxiliary_loss().backward()
    # through the layer below the last router
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in mixture.update_parameters())


def test_only_the_updates_train():
    names = [n for n, p in trained().named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in n for n in names)
    assert any("q_proj" in n for n in names)
    assert any("down_proj" in n for n in names)


def test_embeddings_and_targets_can_be_chosen():
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    backbone = LoRABackbone(tiny_backbone(), targets=["v_proj"], train_embeddings=True)
    names = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert {n for n in names if "lora_" not in n} == {"backbone.model.embed_tokens.weight", "backbone.lm_head.weight"}
    assert all("v_proj" in n for n in names if "lora_" in n)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_gives_a_plain_model_with_the_same_outputs(kind, tmp_path):
    backbone = trained(kind)
    before = {n: p.clone() for n, p in backbone.state_dict().items()}
    want = hidden(backbone)
    assert not torch.allclose(want, hidden(tiny_backbone()))
    merged = backbone.merged()
    assert merged.state_dict().keys() == tiny_backbone().state_dict().keys()
    torch.testing.assert_close(hidden(merged), want, atol=1e-5, rtol=1e-5)
    backbone.save_pretrained(tmp_path)
    torch.testing.assert_close(hidden(HFBackbone(name=str(tmp_path))), want, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before[n], p) for n, p in backbone.state_dict().items())


def test_targets_that_match_nothing_are_refused():
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    with pytest.raises(ValueError, match=r"targets \['query'\] match no linear layer; choose from .*q_proj"):
        LoRABackbone(tiny_backbone(), targets=["query"])


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'fac-lightning\[lora\]'"):
        LoRABackbone(tiny_backbone())
