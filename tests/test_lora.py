from __future__ import annotations

import sys

import pytest
import torch

from fac_lightning.backbones import HFBackbone, LoRABackbone
from fac_lightning.testing import check_backbone, tiny_backbone

IDS = torch.arange(9)


def hidden(backbone):
    return backbone(backbone.embed(IDS), IDS, torch.tensor([9]))


def trained(**options):
    """A LoRA backbone after one step away from where it started."""
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    backbone = LoRABackbone(tiny_backbone(**options), rank=2)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 0.5)
    for _ in range(2):  # the first step moves one of the two thin matrices only
        optimizer.zero_grad()
        hidden(backbone).square().mean().backward()
        optimizer.step()
    return backbone


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_keeps_the_contract(family):
    check_backbone(trained(family=family))


def test_starts_as_the_backbone_it_was_given():
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    torch.testing.assert_close(hidden(LoRABackbone(tiny_backbone())), hidden(tiny_backbone()))


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


def test_merging_gives_a_plain_model_with_the_same_outputs(tmp_path):
    backbone = trained()
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
