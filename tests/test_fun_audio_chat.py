"""The released model, number for number."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fac_lightning.interop import fun_audio_chat
from fac_lightning.interop.fun_audio_chat import names
from fac_lightning.interop.fun_audio_chat.inputs import merge
from fac_lightning.types import IGNORE
from fun_audio_golden import CHECKPOINT, close, golden, golden_json, needs_golden, part

pytestmark = needs_golden


@pytest.fixture(scope="module")
def released():
    return fun_audio_chat.load(CHECKPOINT)


def run(model, name):
    inputs = part(golden(name), "in")
    return model(**inputs), part(golden(name), "out"), inputs


@pytest.mark.parametrize("name", ["d_train_mixed", "d_train_t2t_only", "d_train_s2t_only"])
def test_d_train(released, name):
    kept = {key: tensor.clone() for key, tensor in part(golden(name), "in").items()}
    got, want, inputs = run(released, name)
    real = inputs["attention_mask"].bool()
    close(got.text_logits[real], want["text_logits"][real])
    close(got.text_loss, want["text_loss"].squeeze(), 1e-4)
    if name == "d_train_t2t_only":
        assert got.speech_loss is None
        assert got.loss == got.text_loss
        return
    k = released.ids.group_size
    shown = got.speech_logits.unflatten(1, (-1, k))[real]
    close(shown, want["speech_logits"].unflatten(1, (-1, k))[real])
    if name == "d_train_s2t_only":  # NaN in the released code: nothing to say is a loss of nothing
        assert got.speech_loss == 0
        close(got.loss, want["text_loss"].squeeze(), 1e-4)
    else:
        close(got.speech_loss, want["speech_loss"].squeeze(), 1e-4)
        close(got.loss, want["loss"].squeeze(), 1e-4)
    assert all(torch.equal(inputs[key], tensor) for key, tensor in kept.items())


def test_d_train_mixed_merged_inputs_and_labels(released):
    want, inputs = part(golden("d_train_mixed"), "mid"), part(golden("d_train_mixed"), "in")
    mask, positions = inputs.pop("attention_mask").bool(), inputs.pop("position_ids", None)
    assert positions is None
    merged = merge(released.model, released.ids, **inputs)
    assert torch.equal(merged.text_labels, want["merged_text_labels"])
    assert torch.equal(merged.speech_labels, want["speech_labels"])
    close(merged.embeds[mask], want["lm_inputs_embeds"][mask])
    hidden = released(**part(golden("d_train_mixed"), "in")).last_hidden_state
    close((hidden + merged.text_embeds)[mask], want["srh_inputs_embeds"][mask])
    labels = merged.speech_labels.masked_fill(merged.speech_labels == IGNORE, released.ids.speech_pad)
    embeds = (
        F.embedding(labels, released.model.code_adapter.table).unflatten(1, (-1, released.ids.group_size)).flatten(2)
    )
    close(embeds, want["srh_audio_embeds"])


def test_d_train_mixed_posids(released):
    inputs = {**part(golden("d_train_mixed"), "in"), **part(golden("d_train_mixed_posids"), "in")}
    got, want = released(**inputs), part(golden("d_train_mixed_posids"), "out")
    real = inputs["attention_mask"].bool()
    k = released.ids.group_size
    close(got.speech_logits.unflatten(1, (-1, k))[real], want["speech_logits"].unflatten(1, (-1, k))[real])
    for name in ("text_loss", "speech_loss", "loss"):
        close(got[name], want[name].squeeze(), 1e-4)


def test_d_train_mixed_gradients(released):
    released.zero_grad()
    run(released, "d_train_mixed")[0].loss.backward()
    state = released.model.state_dict(keep_vars=True)
    places = names.places({name: tensor.shape for name, tensor in state.items()})
    norms, full = golden_json("d_train_mixed_gradnorms"), golden("d_train_mixed_grads")
    assert norms.keys() - {"audio_invert_tower.lm_head.weight"} == places.keys()
    for name, place in places.items():
        gradient = state[place.name].grad
        if norms[name] is None:
            assert gradient is None, name
            continue
        close(place.of(gradient).norm(), torch.tensor(norms[name]), 1e-4, 1e-4)
    assert len(full) == 9
    for name, gradient in full.items():
        kept = name if name in places else names.ALIASES[name]
        close(state[places[kept].name].grad, gradient, 1e-4)
    released.zero_grad()


GENERATIONS = sorted(path.stem for path in CHECKPOINT.parent.glob("e_gen_s2*.safetensors"))


def answer(model, name, rows=slice(None)):
    inputs, meta = part(golden(name), "in"), golden_json("e_gen_meta")[name.removeprefix("e_gen_")]
    kept = {key: tensor.clone() for key, tensor in inputs.items()}
    said = model.generate(**inputs, sp_gen_kwargs=meta["sp_gen_kwargs"], **meta["generate_kwargs"])
    assert all(torch.equal(inputs[key], tensor) for key, tensor in kept.items())
    return said


@pytest.mark.parametrize("name", GENERATIONS)
def test_e_gen(released, name):
    want = part(golden(name), "out")
    ids, speech = answer(released, name)
    assert ids.tolist() == want["generate_ids"].tolist()
    assert speech.tolist() == want["speech_ids"].tolist()


def test_e_gen_batch2_leftpad_gives_each_row_what_it_gets_alone(released):
    # the released code mixes rows here (its head reads padding); a row alone is the reference
    name = "e_gen_batch2_leftpad_rp1.2"
    inputs, meta = part(golden(name), "in"), golden_json("e_gen_meta")["batch2_leftpad_rp1.2"]
    options = {"sp_gen_kwargs": meta["sp_gen_kwargs"], **meta["generate_kwargs"]}
    ids, speech = released.generate(**inputs, **options)
    pad, length = released.ids.speech_pad, inputs["input_ids"].shape[1]
    assert not bool(inputs["attention_mask"].all())
    for row in range(2):
        real = inputs["attention_mask"][row].bool()
        alone = {
            key: tensor[row : row + 1] if key not in ("input_ids", "attention_mask") else tensor[row : row + 1, real]
            for key, tensor in inputs.items()
        }
        want_ids, want_speech = released.generate(**alone, **options)
        new = want_ids[0, int(real.sum()) :].tolist()
        assert ids[row, length : length + len(new)].tolist() == new
        assert set(ids[row, length + len(new) :].tolist()) <= {meta["generate_kwargs"]["pad_token_id"]}
        said = want_speech[0].tolist()
        assert speech[row, : len(said)].tolist() == said
        assert set(speech[row, len(said) :].tolist()) <= {pad}


def test_g_moe_train_mixed(tmp_path):
    config, tensors = golden_json("g_moe_config"), load_file(CHECKPOINT / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if not name.startswith("language_model.")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({**kept, **golden("g_moe_language_model")}, tmp_path / "model.safetensors", {"format": "pt"})
    mixture = fun_audio_chat.load(tmp_path)
    got, want = mixture(**part(golden("d_train_mixed"), "in")), part(golden("g_moe_train_mixed"), "out")
    real = part(golden("d_train_mixed"), "in")["attention_mask"][0].bool()
    close(got.text_logits[0][real], want["text_logits_row0"][real])
    for name in ("text_loss", "speech_loss", "loss", "aux_loss"):
        close(got[name], want[name].squeeze(), 1e-4)
    fun_audio_chat.save(mixture, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
