"""The models that training begins with, gathered in our names."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from fac_lightning.backbones import HFBackbone
from fac_lightning.callbacks import load_weights
from fac_lightning.interop.fun_audio_chat import StartingWeights
from fac_lightning.interop.fun_audio_chat.config import build_model, part_arguments
from fac_lightning.weights import CheckpointError
from fun_audio_tiny import tiny_config

TEXT = {
    "vocab_size": 264,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 24}


def dense():
    return Qwen3ForCausalLM(Qwen3Config(**TEXT))


def experts():
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**TEXT, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, moe_intermediate_size=12)
    )


def with_vision():
    vision = {**VISION, "deepstack_visual_indexes": [0]}
    text = {
        **TEXT,
        "rope_parameters": {**TEXT["rope_parameters"], "mrope_section": [2, 1, 1], "mrope_interleaved": True},
    }
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision))


def whisper():
    return WhisperForConditionalGeneration(
        WhisperConfig(
            d_model=16,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=16,
            num_mel_bins=16,
            vocab_size=64,
            pad_token_id=0,
            max_source_positions=20,
        )
    )


def small():
    sizes = tiny_config()["audio_config"]["crq_transformer_config"]
    return Qwen3ForCausalLM(Qwen3Config(**{name: value for name, value in sizes.items() if name != "model_type"}))


@pytest.fixture(scope="module")
def origins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("origins")
    made = {"dense": dense, "experts": experts, "vision": with_vision, "whisper": whisper, "small": small}
    for seed, (name, make) in enumerate(made.items()):
        torch.manual_seed(seed)
        make().save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("llm", ["dense", "experts", "vision"])
def test_every_tensor_of_the_origins_finds_its_place(origins, tmp_path, llm):
    result = StartingWeights(
        str(origins / llm), str(tmp_path / "start"), str(origins / "whisper"), str(origins / "small")
    ).run()
    model = build_model(part_arguments(tiny_config(experts=4 if llm == "experts" else 0)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = load_weights(model, tmp_path / "start", strict=False)
    assert not loaded.unexpected
    assert not loaded.mismatched
    assert sum(result["tensors"].values()) == len(loaded.loaded)
    assert set(loaded.missing) == {
        "code_adapter.proj.weight",
        "code_adapter.table",
        "encoder.audio_bos_eos_token.weight",
        "encoder.proj.weight",
        "encoder.proj.bias",
        "feature_adapter.proj.weight",
        "head.split.weight",
        "head.split.bias",
        "head.input.weight",
        "head.output.weight",
        "head.table",  # the same as the code adapter's
    }
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in loaded.missing)

    ids = torch.randint(64, (7,))
    lm = {"dense": dense, "experts": experts, "vision": with_vision}[llm]().from_pretrained(origins / llm).eval()
    with torch.no_grad():
        want = lm(ids[None]).logits[0]
        backbone = model.backbone.eval()
        got = backbone.logits(backbone(backbone.embed(ids), torch.arange(7), torch.tensor([7])))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    encoder = load_file(origins / "whisper" / "model.safetensors")
    assert torch.equal(model.encoder.conv1.weight, encoder["model.encoder.conv1.weight"])
    assert torch.equal(model.encoder.ln_post.bias, encoder["model.encoder.layer_norm.bias"])
    head = load_file(origins / "small" / "model.safetensors")
    assert torch.equal(model.head.transformer.norm.weight, head["model.norm.weight"])


def test_an_llm_alone_is_what_the_backbone_would_load(origins, tmp_path):
    StartingWeights(str(origins / "experts"), str(tmp_path), encoder=None, head=None).run()
    start = load_file(tmp_path / "model.safetensors")
    own = HFBackbone(str(origins / "experts")).state_dict()
    assert start.keys() == {f"backbone.{name}" for name in own}
    assert all(torch.equal(start[f"backbone.{name}"], tensor) for name, tensor in own.items())


def test_models_without_what_is_looked_for_are_refused(origins, tmp_path):
    with pytest.raises(CheckpointError, match="holds nothing for the encoder, but lm_head"):
        StartingWeights(str(origins / "dense"), str(tmp_path / "out"), str(origins / "dense")).run()
    tensors = load_file(origins / "experts" / "model.safetensors")
    tensors.pop("model.layers.1.mlp.experts.2.up_proj.weight")
    (tmp_path / "broken").mkdir()
    save_file(tensors, tmp_path / "broken" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"broken does not hold the experts of backbone\.model\.layers\.1"):
        StartingWeights(str(tmp_path / "broken"), str(tmp_path / "out"), None, None).run()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="there are no weights"):
        StartingWeights(str(tmp_path / "empty"), str(tmp_path / "out"), None, None).run()
    assert not (tmp_path / "out").exists()
