"""QLoRA: with the library where it is installed, with a stand-in that keeps its interface elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import nn

import fac_lightning.backbones.four_bit as four_bit_file
from fac_lightning.backbones import FourBitBackbone, HFBackbone, LoRABackbone
from fac_lightning.cli.build import load_run
from fac_lightning.models import SpeechLM
from fac_lightning.testing import check_backbone, tiny_backbone

IDS = torch.arange(9)


class Params4bit(nn.Parameter):
    """Sixteen values per row; what the library keeps beside a weight is ``quant_state``."""

    def __new__(cls, data, compress_statistics=True, quant_type="fp4", module=None, quant_state=None):
        if quant_state is None:
            quant_state = data.abs().amax(1, keepdim=True) / 7
            data = (data / quant_state).round().to(torch.uint8)  # wraps below zero, as signed bytes do
        made = torch.Tensor._make_subclass(cls, data, False)
        made.quant_state = quant_state
        return made

    def __deepcopy__(self, memo):
        return Params4bit(self.data.clone(), quant_state=self.quant_state.clone())


def dequantize_4bit(data, quant_state):
    return data.view(torch.int8) * quant_state


class Linear4bit(nn.Linear):
    def __init__(
        self, inputs, outputs, bias=True, compute_dtype=None, compress_statistics=True, quant_type="fp4", device=None
    ):
        super().__init__(inputs, outputs, bias, device)
        self.compute_dtype = compute_dtype

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.absmax"] = self.weight.quant_state

    def forward(self, x):
        return nn.functional.linear(x, dequantize_4bit(self.weight.data, self.weight.quant_state), self.bias)


REAL = four_bit_file._library


@pytest.fixture(autouse=True)
def library(monkeypatch):
    if importlib.util.find_spec("bitsandbytes") is None:
        stand_in = SimpleNamespace(
            nn=SimpleNamespace(Linear4bit=Linear4bit, Params4bit=Params4bit),
            functional=SimpleNamespace(dequantize_4bit=dequantize_4bit),
        )
        monkeypatch.setattr(four_bit_file, "_library", lambda: stand_in)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    tiny_backbone(dim=32, family="gemma2").save_pretrained(folder)
    return folder


def four_bit(folder, **options):
    return FourBitBackbone(name=str(folder), dtype="float32", **options)


@torch.no_grad()
def hidden(backbone):
    return backbone(backbone.embed(IDS), IDS, torch.tensor([9]))


def trained(folder, **options):
    """QLoRA after some steps away from where it started."""
    pytest.importorskip("peft", reason="the extra 'qlora' is not installed")
    backbone = LoRABackbone(four_bit(folder), rank=2, **options)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        backbone(backbone.embed(IDS), IDS, torch.tensor([9]))[:, 0].sum().backward()
        optimizer.step()
    return backbone


def test_linear_layers_alone_are_packed_and_the_outputs_are_near(folder):
    backbone, full = four_bit(folder), HFBackbone(name=str(folder))
    packed = {name for name, p in backbone.named_parameters() if p.dtype == torch.uint8}
    assert packed == {
        f"model.{name}.weight" for name, part in full.model.named_modules() if isinstance(part, nn.Linear)
    }
    assert {p.dtype for name, p in backbone.named_parameters() if name not in packed} == {torch.float32}
    near, far = (hidden(backbone) - hidden(full)).norm(), hidden(full).norm()
    assert 0 < near < 0.7 * far


def test_it_keeps_the_contract(folder):
    check_backbone(four_bit(folder), atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_updates_train_on_packed_weights_and_merge_into_weights_in_full(options, folder, tmp_path):
    if "use_dora" in options:  # peft reads packed weights with the library itself
        pytest.importorskip("bitsandbytes", reason="the extra 'qlora' is not installed")
    backbone = trained(folder, **options).eval()
    want = hidden(backbone)
    assert (want - hidden(four_bit(folder))).abs().max() > 1e-2
    merged = backbone.merged()
    assert type(merged) is HFBackbone
    assert merged.state_dict().keys() == tiny_backbone(dim=32, family="gemma2").state_dict().keys()
    torch.testing.assert_close(hidden(merged), want, atol=1e-4, rtol=1e-4)
    backbone.save_pretrained(tmp_path)
    torch.testing.assert_close(hidden(HFBackbone(name=str(tmp_path))), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hidden(backbone), want)  # as it was


def test_a_folder_of_the_packed_model_holds_its_weights_in_full(folder, tmp_path):
    backbone = four_bit(folder)
    backbone.save_pretrained(tmp_path)
    torch.testing.assert_close(hidden(HFBackbone(name=str(tmp_path))), hidden(backbone), atol=1e-4, rtol=1e-4)


def test_a_run_keeps_the_updates_and_takes_the_packed_weights_from_their_folder(folder, tmp_path):
    backbone = trained(folder)
    state = backbone.state_dict()
    assert not any(tensor.dtype == torch.uint8 or "absmax" in name for name, tensor in state.items())
    again = LoRABackbone(four_bit(folder), rank=2)
    again.load_state_dict(state)
    torch.testing.assert_close(hidden(again), hidden(backbone))

    save_model(SpeechLM(backbone), str(tmp_path / "model.safetensors"))
    assert not any(tensor.dtype == torch.uint8 for tensor in load_file(tmp_path / "model.safetensors").values())
    (tmp_path / "recipe.yaml").write_text(
        "model:\n  _target_: fac_lightning.models.SpeechLM\n  backbone:\n"
        "    _target_: fac_lightning.backbones.LoRABackbone\n    rank: 2\n    backbone:\n"
        f"      _target_: fac_lightning.backbones.FourBitBackbone\n      name: {folder}\n      dtype: float32\n"
    )
    loaded = load_run(tmp_path).model.backbone
    torch.testing.assert_close(hidden(loaded), hidden(backbone.eval()))


def test_a_grown_vocabulary_is_not_packed(folder):
    assert four_bit(folder, vocab_size=321, vocab_multiple=8).vocab_size == 328


def test_a_mixture_whose_experts_cannot_be_packed_is_refused(tmp_path):
    tiny_backbone(family="qwen3_moe").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds its experts in stacks \(.*experts.*\), which bitsandbytes does not"):
        four_bit(tmp_path)


def test_wrong_kinds_of_values_are_refused(folder):
    with pytest.raises(ValueError, match="quant_type must be 'nf4' or 'fp4', got 'int3'"):
        four_bit(folder, quant_type="int3")


def test_the_missing_extra_is_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(four_bit_file, "_library", REAL)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"bitsandbytes: pip install 'fac-lightning\[qlora\]'"):
        FourBitBackbone(name="not/there")
