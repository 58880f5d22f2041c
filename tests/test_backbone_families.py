"""Every family of language models that we name: packed, stepped, alone, on disk, grown, recomputed and merged."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fac_lightning.adapters import SumFusion
from fac_lightning.backbones import HFBackbone
from fac_lightning.backbones.mixture import load_balancing_loss
from fac_lightning.data.corpus import Corpus
from fac_lightning.losses import chunked_logprobs
from fac_lightning.merging import LinearMerge
from fac_lightning.merging.plan import plan_merge
from fac_lightning.merging.source import FileSource, StateSource
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ChatFormat
from fac_lightning.tasks import TextPretraining
from fac_lightning.testing import (
    BACKBONE_FAMILIES,
    check_backbone,
    family_config,
    make_dialogues,
    tiny_backbone,
    tiny_batch,
)
from fac_lightning.text_tokenizer import train_text_tokenizer
from fac_lightning.weights import CheckpointError

FAMILIES = sorted(BACKBONE_FAMILIES)
MIXTURES = ["qwen3_moe", "qwen3_vl_moe"]
VISION = ["qwen3_vl", "qwen3_vl_moe"]
SIZES = [9, 2, 6]


def published(folder, family, tied=False, seed=1):
    """A random model of the family as transformers itself builds it, and its folder as transformers writes it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    entries = family_config(family, tied=tied)
    config = AutoConfig.for_model(entries.pop("model_type"), **entries)
    kind = AutoModelForImageTextToText if "vision_config" in entries else AutoModelForCausalLM
    torch.manual_seed(seed)
    model = kind.from_config(config, attn_implementation="eager").eval()  # older SDPA paths forget soft capping
    model.save_pretrained(folder)
    return model


def rows(sizes=tuple(SIZES)):
    """Token ids of rows, their positions and lengths."""
    ids = torch.randint(0, 320, (sum(sizes),), generator=torch.Generator().manual_seed(0))
    return ids, torch.cat([torch.arange(n) for n in sizes]), torch.tensor(sizes)


def logits(backbone, ids, positions, lengths):
    return backbone.logits(backbone(backbone.embed(ids), positions, lengths))


def alone(model, ids, sizes=tuple(SIZES)):
    """Transformers' own logits, row after row."""
    return torch.cat([model(row[None]).logits[0] for row in ids.split(list(sizes))])


def change(folder, edit):
    """Exchange the weights of a folder for what ``edit`` makes of them."""
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_contract(family):
    check_backbone(tiny_backbone(family=family, seed=3))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_packed_rows_of_a_published_folder_give_what_transformers_gives_each_alone(family, tied, tmp_path):
    from transformers import AutoModelForCausalLM

    model = published(tmp_path / "published", family, tied)
    backbone = HFBackbone(name=str(tmp_path / "published"))
    line = rows()
    want = alone(model, line[0])
    torch.testing.assert_close(logits(backbone, *line), want, atol=1e-5, rtol=1e-5)
    assert any("lm_head" in name for name in backbone.state_dict()) is not tied
    backbone.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(HFBackbone(name=str(tmp_path / "saved")), *line), want, atol=1e-5, rtol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager").eval()
    torch.testing.assert_close(alone(plain, line[0]), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", VISION)
def test_of_a_vision_language_checkpoint_the_text_tower_alone_is_read(family, tmp_path):
    published(tmp_path, family)
    stored = load_file(tmp_path / "model.safetensors")
    seen = [name for name in stored if ".visual." in name]
    assert seen
    change(tmp_path, lambda state: {name: tensor for name, tensor in state.items() if name not in seen})
    backbone = HFBackbone(name=str(tmp_path))
    table = stored["model.language_model.embed_tokens.weight"]
    torch.testing.assert_close(backbone.embed(torch.arange(320)), table)
    assert sum(p.numel() for p in backbone.parameters()) == sum(stored[n].numel() for n in stored.keys() - seen)
    shell = HFBackbone(name=str(tmp_path), pretrained=False)
    assert shell.state_dict().keys() == backbone.state_dict().keys()


TOWERS = {
    "gemma3": {"text_config": {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}},
    "mistral3": {"text_config": {"model_type": "mistral", "sliding_window": 3}},
    "qwen2_5_vl": {"text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}},
    "qwen2_audio": {
        "text_config": {"model_type": "qwen2"},
        "audio_config": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16},
    },
}


@pytest.mark.parametrize("kind", TOWERS)
@torch.no_grad()
def test_towers_of_other_families_are_found_too(kind, tmp_path):
    from transformers import AutoConfig, AutoModelForMultimodalLM

    entries = {**TOWERS[kind]}
    sizes = {key: value for key, value in family_config("llama").items() if key != "model_type"} | {"pad_token_id": 0}
    entries["text_config"] = sizes | entries["text_config"]
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"depth": 1, "num_heads": 2, "out_hidden_size": 16, "patch_size": 4, "image_size": 16}
    if kind != "qwen2_audio":
        entries["vision_config"] = vision | ({"model_type": "pixtral", "head_dim": 8} if kind == "mistral3" else {})
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, tie_word_embeddings=False, **entries)
    model = AutoModelForMultimodalLM.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    line = rows()
    torch.testing.assert_close(logits(HFBackbone(name=str(tmp_path)), *line), alone(model, line[0]))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "qwen3_vl"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(family, tmp_path):
    published(tmp_path, family)
    change(tmp_path, lambda state: {name: t for name, t in state.items() if "layers.1.input_layernorm" not in name})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors of its language model \(.*layers.1.input_layernorm"):
        HFBackbone(name=str(tmp_path))


def test_soft_capping_is_felt_in_attention_and_logits():
    line = rows()
    given = family_config("gemma2")
    with torch.no_grad():
        capped = logits(tiny_backbone(family="gemma2"), *line)
        states = tiny_backbone(family="gemma2").state_dict()
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            free = HFBackbone(config={**given, key: None})
            free.load_state_dict(states)
            assert (logits(free, *line) - capped).abs().max() > 1e-3
    assert capped.abs().max() < given["final_logit_softcapping"]


@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_capped_log_probabilities_are_those_of_capped_logits(chunk_rows):
    torch.manual_seed(0)
    hidden, weight = torch.randn(8, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    targets, grad = torch.randint(0, 11, (8,)), torch.randn(8)
    got, correct = chunked_logprobs(hidden, weight, targets, chunk_rows, softcap=2.0)
    plain = 2.0 * torch.tanh(hidden @ weight.T / 2.0)
    want = plain.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(got, want)
    assert torch.equal(correct, plain.argmax(1) == targets)
    for one, other in zip(*(torch.autograd.grad(x, (hidden, weight), grad) for x in (got, want)), strict=True):
        torch.testing.assert_close(one, other)


def test_the_text_loss_is_that_of_capped_logits():
    model = SpeechLM(tiny_backbone(family="gemma2"), fusion=SumFusion())
    batch = tiny_batch(model, rows=3, speech=False)
    output = model(batch)
    where = output.text_positions
    said = logits(model.backbone, batch.text_ids, batch.position_ids, batch.lengths).index_select(0, where)
    want = said.log_softmax(-1).gather(1, batch.text_labels[where, None]).squeeze(1)
    torch.testing.assert_close(output.text_logprobs, want)


@pytest.mark.parametrize("family", ["gemma2", "mistral"])
def test_gradients_of_packed_rows_are_those_of_each_alone(family):
    backbone, (ids, positions, lengths) = tiny_backbone(family=family), rows()
    embeds = backbone.embed(ids).detach().requires_grad_()
    weights = torch.randn(len(ids), backbone.dim, generator=torch.Generator().manual_seed(1))
    packed = backbone(embeds, positions, lengths)
    apart = [backbone(row, torch.arange(len(row)), torch.tensor([len(row)])) for row in embeds.split(SIZES)]
    got, want = (torch.autograd.grad((x * weights).sum(), embeds)[0] for x in (packed, torch.cat(apart)))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe"])
def test_recomputed_layers_give_the_same_gradients(family):
    line, grads = rows(), []
    for saving in (False, True):
        backbone = HFBackbone(config=BACKBONE_FAMILIES[family], gradient_checkpointing=saving).train()
        backbone.load_state_dict(tiny_backbone(family=family).state_dict())
        loss = logits(backbone, *line).square().mean()
        balance = backbone.auxiliary_loss()
        (loss if balance is None else loss + balance).backward()
        grads.append({name: p.grad for name, p in backbone.named_parameters()})
    assert all(grad is not None for grad in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


# Mixtures of experts


@pytest.mark.parametrize("family", MIXTURES)
def test_the_balance_of_one_row_is_transformers_own(family, tmp_path):
    from transformers import AutoModelForCausalLM

    backbone = tiny_backbone(family=family).train()
    backbone.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = rows()[0]
    backbone(backbone.embed(ids), torch.arange(len(ids)), torch.tensor([len(ids)]))
    want = plain(ids[None], output_router_logits=True).aux_loss
    torch.testing.assert_close(backbone.auxiliary_loss(), plain.config.router_aux_loss_coef * want)


def test_the_balance_of_a_packed_line_is_that_of_padded_rows_without_their_padding(tmp_path):
    from transformers import AutoModelForCausalLM

    backbone = tiny_backbone(family="qwen3_moe").train()
    backbone.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids, positions, lengths = rows()
    padded = torch.nn.utils.rnn.pad_sequence(ids.split(SIZES), batch_first=True)
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    want = plain(padded, attention_mask=mask, output_router_logits=True).aux_loss
    backbone(backbone.embed(ids), positions, lengths)
    got = backbone.auxiliary_loss()
    torch.testing.assert_close(got, plain.config.router_aux_loss_coef * want)
    ours, theirs = (dict(model.named_parameters())["model.layers.0.mlp.gate.weight"] for model in (backbone, plain))
    (gradient,), (their,) = torch.autograd.grad(got, ours), torch.autograd.grad(want, theirs)
    torch.testing.assert_close(gradient, plain.config.router_aux_loss_coef * their)


def test_an_even_router_costs_its_experts_per_position_and_nothing_costs_nothing():
    torch.testing.assert_close(load_balancing_loss([torch.zeros(6, 4)], top_k=4), torch.tensor(4.0))
    assert load_balancing_loss([torch.zeros(0, 4)] * 2, top_k=2) == 0


def test_the_balance_is_handed_out_once_and_only_of_training():
    backbone, line = tiny_backbone(family="qwen3_moe").train(), rows()
    logits(backbone, *line)
    assert backbone.auxiliary_loss() is not None
    assert backbone.auxiliary_loss() is None
    logits(backbone, *line)
    assert copy.deepcopy(backbone).auxiliary_loss() is None
    logits(backbone.eval(), *line)
    assert backbone.auxiliary_loss() is None
    dense = tiny_backbone().train()
    logits(dense, *line)
    assert dense.auxiliary_loss() is None


def test_a_speech_model_hands_the_balance_on():
    model = SpeechLM(tiny_backbone(family="qwen3_moe"), fusion=SumFusion()).train()
    losses = model(tiny_batch(model, speech=False)).auxiliary
    assert set(losses) == {"backbone"}
    assert losses["backbone"].requires_grad


# Growth of the vocabulary


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe", "qwen3_vl"])
@torch.no_grad()
def test_a_grown_vocabulary_leaves_old_tokens_alone_and_starts_new_ones_as_the_mean(family, tied, tmp_path):
    published(tmp_path, family, tied)
    old, grown = HFBackbone(name=str(tmp_path)), HFBackbone(name=str(tmp_path), vocab_size=321, vocab_multiple=8)
    assert grown.vocab_size == 328
    line = rows()
    torch.testing.assert_close(logits(grown, *line)[:, :320], logits(old, *line))
    new = grown.embed(torch.arange(320, 328))
    torch.testing.assert_close(new, old.embed(torch.arange(320)).mean(0).expand(8, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grown.output_weight[320:], old.output_weight.mean(0).expand(8, -1))
    assert (grown.lm_head is None) is tied
    shell = HFBackbone(name=str(tmp_path), vocab_size=321, vocab_multiple=8, pretrained=False)
    shell.load_state_dict(grown.state_dict())  # a run that goes on
    torch.testing.assert_close(logits(shell, *line), logits(grown, *line))
    grown.save_pretrained(tmp_path / "grown")
    torch.testing.assert_close(logits(HFBackbone(name=str(tmp_path / "grown")), *line), logits(grown, *line))


def test_rows_come_in_multiples_and_are_never_cut():
    config = family_config("llama", vocab_size=50)
    assert HFBackbone(config=config, vocab_multiple=16).vocab_size == 64
    assert HFBackbone(config=config, vocab_size=30, vocab_multiple=10).vocab_size == 50
    with pytest.raises(ValueError, match="vocab_multiple must be at least 1, got 0"):
        HFBackbone(config=config, vocab_multiple=0)


@pytest.fixture(scope="module")
def text_tokenizer(tmp_path_factory):
    return train_text_tokenizer(["a few words"], 300, tmp_path_factory.mktemp("tokenizer"))


def test_a_text_tokenizer_with_more_ids_than_rows_is_refused_with_both_numbers(text_tokenizer, tmp_path):
    ids = len(text_tokenizer)
    few = SpeechLM(tiny_backbone(vocab_size=ids - 1))
    modes, chat, path = {"T2T": 1.0}, ChatFormat(text_tokenizer), make_dialogues(tmp_path, n=1, spoken=False)
    with pytest.raises(ValueError, match=rf"has {ids} tokens.* {ids - 1} rows; give .* vocab_size of at least {ids}"):
        Corpus([path], chat, few.geometry, None, modes)
    enough = SpeechLM(HFBackbone(config=family_config("qwen3", vocab_size=ids - 1), vocab_size=ids))
    assert len(Corpus([path], chat, enough.geometry, None, modes)) == 1


def test_a_bare_llm_is_checked_against_its_text_tokenizer_before_it_trains(text_tokenizer):
    task = TextPretraining(tiny_backbone(vocab_size=30), save_llm=False)
    task.trainer = SimpleNamespace(datamodule=SimpleNamespace(chat=ChatFormat(text_tokenizer)))
    with pytest.raises(ValueError, match=r"the backbone's embedding 30 rows"):
        task.on_fit_start()


@pytest.mark.parametrize("tied", [False, True])
def test_a_grown_model_merges_with_the_llm_it_grew_from(tied, tmp_path):
    published(tmp_path, "llama", tied)
    model = SpeechLM(HFBackbone(name=str(tmp_path), vocab_size=330))
    with FileSource(tmp_path) as base:
        plan = plan_merge(base, [StateSource(dict(model.named_parameters()))], LinearMerge())
    assert plan.prefix == "backbone."
    assert {planned.rule for planned in plan.tensors.values()} == {"merged"}
    assert plan.tensors["backbone.model.embed_tokens.weight"].note == "10 new rows copied"


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("qwen3_moe", r"holds its experts one by one .* and the tuned model stacks them"),
        ("qwen3_vl", r"is a whole multimodal checkpoint .* save its language model as a folder of its own"),
    ],
)
def test_a_base_whose_tensors_lie_otherwise_is_refused_and_not_half_merged(family, message, tmp_path):
    published(tmp_path, family)
    tuned = StateSource(dict(SpeechLM(HFBackbone(name=str(tmp_path))).named_parameters()))
    with FileSource(tmp_path) as base, pytest.raises(CheckpointError, match=message):
        plan_merge(base, [tuned], LinearMerge())


# What is refused


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "gemma3_text looks ahead"),
        ({"model_type": "gemma3n_text"}, "gemma3n_text looks token ids up in every layer"),
        ({"model_type": "gpt_oss"}, "gpt_oss shapes its attention with sinks"),
        ({"model_type": "qwen3", "quantization_config": {"quant_method": "gptq"}}, "qwen3 comes quantised"),
        ({"model_type": "vit"}, "vit is no causal LM of transformers"),
        ({"model_type": "emu3"}, "emu3_text_model, the text tower of emu3, is no causal LM"),
    ],
)
def test_what_packed_rows_cannot_do_is_refused_in_one_line(config, message):
    small = family_config("llama", num_layers=2) | {"pad_token_id": 0, "num_local_experts": 2, "num_experts_per_tok": 1}
    with pytest.raises(ValueError, match=message) as caught:
        HFBackbone(config=small | config)
    assert "\n" not in str(caught.value)


def test_an_unknown_family_names_the_known_ones():
    with pytest.raises(ValueError, match="there is no family 'gemma9'; choose from gemma2, gemma3, llama"):
        tiny_backbone(family="gemma9")
