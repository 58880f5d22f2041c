"""Other checkpoints of the released format against a plain reading of its rules, one row and one token at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from fac_lightning.interop.fun_audio_chat import load
from fun_audio_tiny import tiny_config, write_checkpoint

VARIANTS = {
    "added features, groups of 3": {"mode": "add"},
    "replaced features, groups of 3": {},
    "groups of 4, tied text": {"group_size": 4, "tied": True, "n_window": 8},
    "special rows first": {"special": (2, 0, 1), "group_size": 2, "mode": "add"},
    "a mixture": {"experts": 4},
}


class Plain:
    """The released rules without batches: everything for one row."""

    def __init__(self, folder, config):
        self.w, self.config = load_file(folder / "model.safetensors"), config
        self.audio, text = config["audio_config"], copy.deepcopy(config["text_config"])
        self.k, self.pad = self.audio["group_size"], self.audio["pad_token_id"]
        self.table = self.w["audio_tower.embed_tokens.weight"]
        self.lm = self._model(text, "language_model.")
        crq = {**self.audio["crq_transformer_config"], "vocab_size": 1}
        self.crq = self._model(crq, "audio_invert_tower.crq_", causal=False)

    def _model(self, entries, prefix, causal=True):
        kind = entries.pop("model_type")
        config = AutoConfig.for_model(kind, **entries)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        state = {n.removeprefix(prefix): t for n, t in self.w.items() if n.startswith(prefix)}
        if not causal:
            state = {f"model.{n.removeprefix('transformer.')}": t for n, t in state.items()}
        stacked = {}
        for name in list(state):
            if ".experts." in name:
                stem, expert, piece, _ = name.rsplit(".", 3)
                stacked.setdefault(stem, {}).setdefault(int(expert), {})[piece] = state.pop(name)
        for stem, experts in stacked.items():
            each = [experts[i] for i in range(len(experts))]
            state[f"{stem}.gate_up_proj"] = torch.stack([torch.cat([e["gate_proj"], e["up_proj"]]) for e in each])
            state[f"{stem}.down_proj"] = torch.stack([e["down_proj"] for e in each])
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(n in ("lm_head.weight", "model.embed_tokens.weight") for n in missing)
        model.tie_weights()
        return model

    def row(self, input_ids, labels, speech, features, texts, halve):
        """Logits and labels of text and speech; the lists hold one entry for each audio of the row."""
        config, k = self.config, self.k
        embed = self.lm.get_input_embeddings()
        x, told = embed(input_ids), embed(input_ids)
        text_labels, speech_labels = labels.clone(), torch.full((len(labels), k), -100)
        place = [i for i, t in enumerate(input_ids.tolist()) if t == config["audio_token_index"]]
        for codes, heard, words in zip(speech, features, texts, strict=True):
            groups = -(-len(codes) // k)
            for group in range(groups):
                position = place.pop(0)
                taken = codes[group * k : (group + 1) * k]
                ids = taken + [self.pad] * (k - len(taken))
                vector = self.table[ids].mean(0) @ self.w["audio_tower.output_matching.weight"].T
                if heard is not None:
                    frames = torch.zeros(k, heard.shape[1])
                    real = heard[group * k : (group + 1) * k]
                    frames[: len(real)] = real
                    found = frames.mean(0) @ self.w["audio_tower.continual_output_matching.weight"].T
                    vector = vector + found if self.audio["continuous_features_mode"] == "add" else found
                if halve:
                    token = None
                    word = torch.zeros_like(vector)
                    if words is not None:
                        token = words[group] if group < len(words) else config["text_config"]["sil_index"]
                        word = embed(torch.tensor(token))
                    vector, told[position] = (vector + word) / 2, word
                x[position] = vector
                learned = labels[position] != -100
                text_labels[position] = token if halve and learned and words is not None else -100
                if learned:
                    speech_labels[position, : len(taken)] = torch.tensor(taken)
        speech_labels[labels == config["text_config"]["audio_eos_index"]] = self.audio["eos_token_id"]
        hidden = self.lm.model(inputs_embeds=x[None]).last_hidden_state[0]
        w = {n.removeprefix("audio_invert_tower."): t for n, t in self.w.items()}
        flat, states = speech_labels.flatten().tolist(), []
        for p in range(len(input_ids)):
            vectors = ((hidden[p] + told[p]) @ w["pre_matching.weight"].T + w["pre_matching.bias"]).view(k, -1)
            for i in range(k):
                before = p * k + i + k - 1
                code = flat[before] if before < len(flat) and flat[before] != -100 else self.pad
                states.append((vectors[i] + self.table[code]) @ w["input_matching.weight"].T)
        said = self.crq.model(inputs_embeds=torch.stack(states)[None]).last_hidden_state[0]
        logits = said @ w["output_matching.weight"].T @ self.table.T
        return self.lm.lm_head(hidden), logits, text_labels, speech_labels.flatten()


def batch(config, seed=0):
    """Two rows, right padded: speech asks and speech answers; text asks and speech answers."""
    rng = torch.Generator().manual_seed(seed)
    text, audio, k = config["text_config"], config["audio_config"], config["audio_config"]["group_size"]
    bos, eos, slot = text["audio_bos_index"], text["audio_eos_index"], config["audio_token_index"]
    special = {audio[f"{n}_token_id"] for n in ("bos", "eos", "pad")}
    codes = [row for row in range(audio["codebook_size"]) if row not in special]
    draw = lambda n: [codes[i] for i in torch.randint(len(codes), (n,), generator=rng).tolist()]  # noqa: E731
    speech = [[audio["pad_token_id"]] * 8, [audio["bos_token_id"]] * 4 + draw(7), [audio["bos_token_id"]] * 4 + draw(3)]
    slots = [[slot] * -(-len(s) // k) for s in speech]
    rows = [
        ([5, 6, bos, *slots[0], eos, 7], [bos, *slots[1], eos, 8]),
        ([5, 9, 9, 7], [bos, *slots[2], eos, 8]),
    ]
    length = max(len(p) + len(a) for p, a in rows)
    ids, labels, mask = [], [], []
    for prompt, answer in rows:
        fill = length - len(prompt) - len(answer)
        ids.append([*prompt, *answer, *[text["eos_token_id"]] * fill])
        labels.append([-100] * len(prompt) + answer + [-100] * fill)
        mask.append([1] * (length - fill) + [0] * fill)
    longest = max(map(len, speech))
    mel = torch.randn(1, audio["num_mel_bins"], 40, generator=rng)
    words = [None, [11, 12], [13]]
    return (
        speech,
        words,
        {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "attention_mask": torch.tensor(mask),
            "speech_ids": torch.tensor([s + [audio["pad_token_id"]] * (longest - len(s)) for s in speech]),
            "speech_attention_mask": torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in speech]),
            "input_features": mel,
            "feature_attention_mask": (torch.arange(40) < 33)[None].long(),
            "feature_exist_mask": torch.tensor([True, False, False]),
            "text_ids": torch.tensor([[text["eos_token_id"]] * 2, [11, 12], [13, text["eos_token_id"]]]),
            "text_attention_mask": torch.tensor([False, True, True]),
        },
    )


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_forward_equals_a_plain_reading_of_the_released_rules(tmp_path, variant):
    config = tiny_config(**VARIANTS[variant])
    folder = write_checkpoint(tmp_path, config, tokenizers=False)
    chat, plain = load(folder), Plain(folder, config)
    speech, words, inputs = batch(config)
    got = chat(**inputs)
    heard = chat.model.encoder.forward_mel(inputs["input_features"][..., :33], torch.tensor([33])).features[0]
    groups, texts, spoken = config["audio_config"]["group_size"], [], []
    for row, audios in enumerate(([0, 1], [2])):
        real = inputs["attention_mask"][row].bool()
        want = plain.row(
            inputs["input_ids"][row][real],
            inputs["labels"][row][real],
            [speech[i] for i in audios],
            [heard if i == 0 else None for i in audios],
            [words[i] for i in audios],
            halve=True,
        )
        torch.testing.assert_close(got.text_logits[row][real], want[0], atol=2e-4, rtol=1e-4)
        logits = got.speech_logits[row].unflatten(0, (-1, groups))[real].flatten(0, 1)
        torch.testing.assert_close(logits, want[1], atol=2e-4, rtol=1e-4)
        texts.append((want[0][:-1], want[2][1:]))
        spoken.append((want[1][:-groups], want[3][groups:]))
    text_loss, speech_loss = (
        F.cross_entropy(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])) for pairs in (texts, spoken)
    )
    torch.testing.assert_close(got.speech_loss, speech_loss, atol=1e-4, rtol=1e-4)
    if got.aux_loss is None:
        torch.testing.assert_close(got.text_loss, text_loss, atol=1e-4, rtol=1e-4)
    else:
        coefficient = config["text_config"]["router_aux_loss_coef"]
        torch.testing.assert_close(got.text_loss, text_loss + coefficient * got.aux_loss, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dialogues_that_share_a_row_do_not_see_each_other(tmp_path):
    # the released trainer's neat packing: numbers in the mask tell dialogues apart, positions start anew
    config = tiny_config()
    chat = load(write_checkpoint(tmp_path, config, tokenizers=False))
    *_, inputs = batch(config)
    apart = chat(**inputs)
    lengths = inputs["attention_mask"].sum(1).tolist()
    together = dict(inputs)
    for name in ("input_ids", "labels"):
        together[name] = torch.cat([inputs[name][row, :n] for row, n in enumerate(lengths)])[None]
    together["attention_mask"] = torch.tensor([[1] * lengths[0] + [2] * lengths[1]])
    together["position_ids"] = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = chat(**together)
    for row, start in enumerate((0, lengths[0])):
        span = slice(start, start + lengths[row])
        torch.testing.assert_close(packed.text_logits[0, span], apart.text_logits[row, : lengths[row]])
    torch.testing.assert_close(packed.speech_loss, apart.speech_loss)


def test_inputs_that_do_not_agree_are_told(tmp_path):
    config = tiny_config()
    chat = load(write_checkpoint(tmp_path, config, tokenizers=False))
    *_, inputs = batch(config)
    fewer = {**inputs, "speech_attention_mask": inputs["speech_attention_mask"].clone()}
    fewer["speech_attention_mask"][1, 4:] = 0
    with pytest.raises(ValueError, match=r"input_ids hold 10 audio positions but speech_ids need 8"):
        chat(**fewer)
    with pytest.raises(ValueError, match="come without feature_attention_mask"):
        chat(**{**inputs, "feature_attention_mask": None})
    with pytest.raises(ValueError, match="feature_exist_mask names 2 audios with features, input_features has 1"):
        chat(**{**inputs, "feature_exist_mask": torch.tensor([True, True, False])})
    with pytest.raises(ValueError, match=r"attention_mask must be \(B, S\)"):
        chat(**{**inputs, "attention_mask": torch.ones(2, 1, 3, 3)})
    with pytest.raises(ValueError, match="keeps neither caches nor"):
        chat(**inputs, output_attentions=True)
    with pytest.raises(ValueError, match="has no processor"):
        _ = chat.text_tokenizer
    prompt = {"input_ids": inputs["input_ids"][1:, :4], "eos_token_id": 8, "max_new_tokens": 3}
    with pytest.raises(ValueError, match="generate does not know beams"):
        chat.generate(**prompt, beams=3)
    with pytest.raises(ValueError, match="num_beams 4 is not offered"):
        chat.generate(**prompt, num_beams=4)
    with pytest.raises(ValueError, match="sp_gen_kwargs does not know greedy"):
        chat.generate(**prompt, sp_gen_kwargs={"greedy": True})
    with pytest.raises(ValueError, match="padded on the right"):
        chat.generate(**prompt, attention_mask=torch.tensor([[1, 1, 1, 0]]))
    with pytest.raises(ValueError, match="text_ids belongs to training"):
        chat.generate(**prompt, text_ids=torch.zeros(1, 1))


class Heard:
    """A streamer that writes down what it is given."""

    def __init__(self):
        self.seen, self.ended = [], False

    def put(self, value):
        self.seen.append(value)

    def end(self):
        self.ended = True


def test_sampled_answers_follow_the_seed_row_by_row(tmp_path):
    config = tiny_config(group_size=4)
    chat = load(write_checkpoint(tmp_path, config, tokenizers=False))
    prompt, streamer = torch.tensor([[5, 6, 7]]), Heard()
    options = {"eos_token_id": 8, "pad_token_id": 9, "max_new_tokens": 5, "do_sample": True, "temperature": 1.3}
    switches = {"force_text_abos": True}
    one = chat.generate(prompt, switches, **options, seed=3, streamer=streamer)
    two = chat.generate(prompt.expand(2, -1), switches, **options, seed=3)
    other = chat.generate(prompt, switches, **options, seed=4)
    assert two[0][0, : one[0].shape[1]].tolist() == one[0][0].tolist()
    assert two[1][0, : one[1].shape[1]].tolist() == one[1][0].tolist()
    assert one[0].tolist() != other[0].tolist()
    assert two[0][1, : other[0].shape[1]].tolist() == other[0][0].tolist()  # row 1 draws from seed + 1
    torch.manual_seed(7)
    first = chat.generate(prompt, switches, **options)
    torch.manual_seed(7)
    assert chat.generate(prompt, switches, **options)[0].tolist() == first[0].tolist()
    assert streamer.ended
    told, *later = streamer.seen
    assert torch.cat([told[0], *(x for x in later if x.ndim == 1)]).tolist() == one[0][0].tolist()
    assert torch.cat([x[0] for x in later if x.ndim == 2]).tolist() == one[1][0].tolist()
    again = chat.generate(prompt, {**switches, "only_crq_sampling": False}, **{**options, "do_sample": False})
    assert again[1].tolist() == chat.generate(prompt, switches, **{**options, "do_sample": False})[1].tolist()


def test_generation_leaves_no_state_on_the_model(tmp_path):
    config = tiny_config()
    chat = load(write_checkpoint(tmp_path, config, tokenizers=False))
    *_, inputs = batch(config)
    before = chat(**inputs).loss
    kept = {name: list(vars(module)) for name, module in chat.named_modules()}
    prompt = torch.tensor([[5, 6, 7]])
    options = {"eos_token_id": 8, "max_new_tokens": 4, "sp_gen_kwargs": {"force_text_abos": True}}
    first = chat.generate(prompt, **options)
    chat.generate(torch.tensor([[5, 9]]), **options)
    assert [x.tolist() for x in chat.generate(prompt, **options)] == [x.tolist() for x in first]
    assert {name: list(vars(module)) for name, module in chat.named_modules()} == kept
    assert torch.equal(chat(**inputs).loss, before)
