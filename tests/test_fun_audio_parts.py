"""The code grouping and the refined head of the released Fun-Audio-Chat against its own numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file

from fac_lightning.adapters import FunAudioCodeGrouping, MeanGrouping
from fac_lightning.heads import FunAudioHead
from fac_lightning.testing import check_adapter, check_head
from fac_lightning.types import IGNORE, bos_code, eos_code, pad_code
from fun_audio_golden import CHECKPOINT, close, golden, golden_json, needs_golden, part

QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.mark.parametrize("group_size", [1, 3, 5])
def test_released_code_grouping_keeps_the_contract(group_size):
    check_adapter(FunAudioCodeGrouping(16, group_size, 8))


@pytest.mark.parametrize("group_size", [1, 3, 5])
def test_released_head_keeps_the_contract(group_size):
    check_head(FunAudioHead(24, group_size, 32, QWEN3))


def test_released_head_may_learn_the_lead_in_but_not_pads():
    head = FunAudioHead(24, 2, 32, QWEN3)
    hidden, text = torch.randn(2, 24), torch.zeros(2, 24)
    labels = torch.tensor([[[bos_code(32)], [bos_code(32)]], [[3], [eos_code(32)]]])
    assert head(hidden, labels, torch.tensor([2]), text).logprobs.lt(0).all()
    with pytest.raises(ValueError, match="speech label 34 cannot be said"):
        head(hidden, torch.full_like(labels, pad_code(32)), torch.tensor([2]), text)


def test_the_text_embedding_of_the_released_head_is_not_trained_by_it():
    head, text = FunAudioHead(24, 2, 32, QWEN3), torch.randn(2, 24, requires_grad=True)
    labels = torch.zeros(2, 2, 1, dtype=torch.long)
    head(torch.randn(2, 24), labels, torch.tensor([2]), text).logprobs.sum().backward()
    assert text.grad is None


def test_gradient_checkpointing_of_the_released_head_changes_no_gradient_and_warns_of_nothing(monkeypatch):
    told = []
    monkeypatch.setattr("transformers.modeling_utils.logger.warning_once", told.append)
    torch.manual_seed(0)
    hidden, text, labels = torch.randn(3, 24), torch.randn(3, 24), torch.randint(0, 32, (3, 2, 1))
    grads = []
    for saving in (False, True):
        torch.manual_seed(1)
        head = FunAudioHead(24, 2, 32, QWEN3, gradient_checkpointing=saving).train()
        head(hidden, labels, torch.tensor([2, 1]), text).logprobs.sum().backward()
        grads.append([p.grad for p in head.parameters()])
    assert told == []
    assert any(layer.gradient_checkpointing for layer in copy.deepcopy(head).transformer.layers)
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_reading_positions_and_then_stepping_equals_one_pass():
    # two rows, the first left padded: what is shown with `read` counts like what was said
    head, k = FunAudioHead(24, 3, 32, QWEN3).eval(), 3
    hidden, text = torch.randn(2, 4, 24), torch.randn(2, 4, 24)
    groups = torch.randint(0, 32, (2, 4, k, 1))
    groups[:, 0] = pad_code(32)
    mask = torch.tensor([[False, True, True, True], [True, True, True, True]])
    state, seen = head.new_state(2), []
    with torch.no_grad():
        head.read(hidden[:, :3], groups[:, :3], state, mask[:, :3], text[:, :3])

        def sample(logits):
            code = groups[:, 3, len(seen), 0]
            seen.append(logits.log_softmax(-1).gather(1, code[:, None]).squeeze(1))
            return code

        head.step(hidden[:, 3], state, sample, text[:, 3])
        for row in range(2):
            kept = mask[row]
            labels = groups[row][kept].clone()
            labels[labels == pad_code(32)] = IGNORE
            forced = head(hidden[row][kept], labels, torch.tensor([int(kept.sum())]), text[row][kept]).logprobs[
                -1, :, 0
            ]
            torch.testing.assert_close(torch.stack(seen, 1)[row], forced, atol=1e-5, rtol=1e-5)


def released() -> tuple[dict, FunAudioCodeGrouping, MeanGrouping, FunAudioHead]:
    """Config and parts of the tiny checkpoint, filled from its file by name."""
    config = golden_json("ckpt/config")
    audio, dim = config["audio_config"], config["text_config"]["hidden_size"]
    tensors = load_file(CHECKPOINT / "model.safetensors")
    rows = {
        "table_rows": audio["codebook_size"],
        "bos_row": audio["bos_token_id"],
        "eos_row": audio["eos_token_id"],
        "pad_row": audio["pad_token_id"],
    }
    k, codes = audio["group_size"], min(audio[f"{name}_token_id"] for name in ("bos", "eos", "pad"))
    adapter = FunAudioCodeGrouping(codes, k, dim, **rows)
    grouping = MeanGrouping(dim, k, dim)
    head = FunAudioHead(dim, k, codes, audio["crq_transformer_config"], **rows)
    tower, inverse = part(tensors, "audio_tower"), part(tensors, "audio_invert_tower")
    names = {"pre_matching": "split", "input_matching": "input", "output_matching": "output"}
    renamed = {
        ".".join([names.get(n.split(".")[0], n.split(".")[0]), *n.split(".")[1:]]): t for n, t in inverse.items()
    }
    renamed = {name.replace("crq_transformer", "transformer"): t for name, t in renamed.items()}
    adapter.load_state_dict({"table": tower["embed_tokens.weight"], "proj.weight": tower["output_matching.weight"]})
    grouping.load_state_dict({"proj.weight": tower["continual_output_matching.weight"]})
    head.load_state_dict({**renamed, "table": tower["embed_tokens.weight"]})
    head.tie(adapter.code_table)
    return config, adapter.eval(), grouping.eval(), head.eval()


@needs_golden
def test_b_discrete_encoder():
    _, adapter, grouping, _ = released()
    want = golden("b_discrete_encoder")
    rows = want["audio_ids"].unflatten(1, (-1, adapter.group_size))
    with torch.no_grad():
        plain = adapter.embed_rows(rows)
        close(plain, want["none.last_hidden_state"])
        features = want["continuous_audio_features"]
        heard = grouping(features, torch.full((len(features),), features.shape[1])).features
    close(heard, want["replace.continuous_hidden_states"])
    exist = want["feature_exist_mask"].bool()
    replaced, added = plain.clone(), plain.clone()
    replaced[exist], added[exist] = heard, plain[exist] + heard
    close(replaced, want["replace.last_hidden_state"])
    close(added, want["add.last_hidden_state"])


@needs_golden
@pytest.mark.parametrize("variant", ["mask", "mask_pos", "plain", "reset_pos", "noaudio"])
def test_c_srh(variant):
    _, _, _, head = released()
    want, k = golden("c_srh"), head.group_size
    inputs, labels = want["inputs_embeds"], want["labels"]
    batch, length = inputs.shape[:2]
    mask = (
        want["attention_mask"].bool() if variant in ("mask", "mask_pos", "noaudio") else torch.ones(batch, length) > 0
    )
    steps = torch.arange(length).expand(batch, -1)
    positions = {"mask_pos": want["position_ids"], "reset_pos": want.get("reset_pos.position_ids")}.get(variant, steps)
    padded = labels.where(labels != IGNORE, head.pad_row).unflatten(1, (-1, k))
    previous = torch.roll(padded.flatten(1), -(k - 1), 1).unflatten(1, (-1, k))
    with torch.no_grad():
        before = None if variant == "noaudio" else previous[mask]
        logits = head.states(inputs[mask], before, positions[mask], mask.sum(1)) @ head.table.T  # (N, k, V)
    shown = want[f"{variant}.logits"].unflatten(1, (length, k))[mask]
    if variant == "reset_pos":  # the released code takes zeros at the end of a row for padding
        padding = (positions.flip(1).cumsum(1) == 0).flip(1)[mask]
        assert padding.sum() == batch
        logits, shown = logits[~padding], shown[~padding]
    close(logits, shown)
