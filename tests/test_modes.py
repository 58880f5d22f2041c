"""Chains of modality: text before speech, in rows and in generation; and the schedule that mixes modes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import fac_lightning.generation.generator as generator_module
import fac_lightning.generation.session as session_module
from fac_lightning.adapters import FunAudioCodeGrouping, MeanFusion, MeanGrouping
from fac_lightning.cli import main
from fac_lightning.config import instantiate
from fac_lightning.data import Clip, LinearModes, SpokenTurn, fit_mode, lay_out
from fac_lightning.data.packing import collate_line
from fac_lightning.generation import Decoding, Generator, Sampling, UserTurn
from fac_lightning.generation.streams import SpeechStream, TextStream
from fac_lightning.heads import FunAudioHead
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import MODES, SPECIAL_TOKENS, SYSTEM_PROMPTS, ChatFormat, Mode
from fac_lightning.replies import FrameEnd, GroupEnd
from fac_lightning.testing.tiny import FrameEncoder, tiny_backbone, tiny_speech_lm
from fac_lightning.types import IGNORE, SpeechGeometry, bos_code, eos_code, pad_code

CHAINS = ("STC", "SAC", "SUC")
LETTERS = "\n abcdefghijklmnopqrstuvwxyz?.,"
SIZE, VOCAB = 12, len(SPECIAL_TOKENS) + len(LETTERS)
BOS, EOS, PAD = bos_code(SIZE), eos_code(SIZE), pad_code(SIZE)
WILD = Decoding(Sampling(5.0), Sampling(1.0), max_positions=40)


class Letters:
    """Every id is a letter or a mark, so that whatever a random model says can be laid out again."""

    def encode(self, text, add_special_tokens=False):
        ids = []
        while text:
            special = next((i for i, mark in enumerate(SPECIAL_TOKENS) if text.startswith(mark)), None)
            letter = text[0].lower() if text[0].lower() in LETTERS else " "
            ids.append(special if special is not None else len(SPECIAL_TOKENS) + LETTERS.index(letter))
            text = text[1 if special is None else len(SPECIAL_TOKENS[special]) :]
        return ids

    def decode(self, token_ids, skip_special_tokens=False):
        marks = [""] * len(SPECIAL_TOKENS) if skip_special_tokens else list(SPECIAL_TOKENS)
        return "".join([*marks, *LETTERS][i] for i in token_ids)

    def convert_tokens_to_ids(self, tokens):
        return SPECIAL_TOKENS.index(tokens)


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(Letters())


GEOMETRY = SpeechGeometry(1000, 200, 5, 1, SIZE, VOCAB)


def clip(samples, seed=0):
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.3


def heard(text, samples=300):
    return SpokenTurn("user", text, Clip(samples, clip(samples, samples).numpy))


def said(text, codes=range(7)):
    return SpokenTurn("assistant", text, codes=np.array(codes, dtype=np.int64).reshape(-1, 1))


def bias(monkeypatch, model, ids, bonus=1e4):
    """The text head wants some tokens most."""
    plain = model.backbone.logits

    def logits(hidden):
        scores = plain(hidden)
        scores[..., ids] += bonus
        return scores

    monkeypatch.setattr(model.backbone, "logits", logits)


def replies_of(row, chat):
    """What the assistant's turns hold, marks and all, from the last token of the opening to <|im_end|>."""
    text = chat.tokenizer.decode(row.text_ids.tolist())
    return [part.split("<|im_end|>")[0] for part in text.split("<|im_start|>assistant\n")[1:]]


# ---- rows


@pytest.mark.parametrize(
    ("mode", "chain"), [("STC", "why so?\nas is.\n"), ("SAC", "as is.\n"), ("SUC", "why so?\n"), ("S2M", "")]
)
@pytest.mark.parametrize("rule", [FrameEnd(1), GroupEnd(10)], ids=str)
def test_golden_row(chat, mode, chain, rule):
    """The chain stands as text before <|audio_bos|>, learned from the opening's last token on."""
    row = lay_out("d", [heard("why so?", 401), said("as is.")], chat, GEOMETRY, mode, reply=rule)
    plain = lay_out("d", [heard("why so?", 401), said("as is.")], chat, GEOMETRY, "S2M", reply=rule)
    written = chat.encode(chain)
    assert row.id == f"d/{mode}"
    system = chat.system(SYSTEM_PROMPTS[mode])
    prompt = [*system, *plain.text_ids[len(chat.system(SYSTEM_PROMPTS["S2M"])) :]]
    opens = len(prompt) - prompt[::-1].index(chat.audio_bos) - 1  # of the plain row in this row's system prompt
    assert row.text_ids.tolist() == [*prompt[:opens], *written, *prompt[opens:]]
    moved = opens + len(written)
    assert row.text_labels[opens - 1 : moved].tolist() == [*written, chat.audio_bos]
    assert (row.text_labels[: opens - 1] == IGNORE).all()
    assert row.text_mask[opens:].all()
    # speech lies behind the chain as it lies behind the opening without one
    assert row.speech_positions[0] == moved + (1 if isinstance(rule, FrameEnd) else 0)
    assert row.code_positions[0] == moved + 1
    for name in ("codes", "speech_labels", "reply_lengths"):
        assert np.array_equal(getattr(row, name), getattr(plain, name))
    assert row.seconds == plain.seconds
    assert len(row) == len(plain) - len(chat.system(SYSTEM_PROMPTS["S2M"])) + len(system) + len(written)


def test_a_transcript_is_one_line_and_texts_keep_their_tokens(chat):
    row = lay_out("d", [heard(" why\n  so? "), said("one.\ntwo.")], chat, GEOMETRY, "STC")
    spoken = "<|audio_bos|>one.\ntwo.<|audio_eos|>"
    assert replies_of(row, chat) == [f"why so?\none.\ntwo.\n{spoken}"]
    assert MODES["STC"].read_chain("why so?\none.\ntwo.\n") == ("why so?", "one.\ntwo.")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("STC", ["why\nso.\n<|audio_bos|>", "yes.\n<|audio_bos|>", "noted.", "and\nthen.\n<|audio_bos|>"]),
        ("SAC", ["so.\n<|audio_bos|>", "yes.\n<|audio_bos|>", "noted.", "then.\n<|audio_bos|>"]),
        ("SUC", ["why\n<|audio_bos|>", "<|audio_bos|>", "noted.", "and\n<|audio_bos|>"]),
    ],
)
def test_only_what_is_heard_is_transcribed_and_only_speech_has_a_chain(chat, mode, expected):
    written = [SpokenTurn("user", "typed"), said("yes."), heard("hm"), SpokenTurn("assistant", "noted.")]
    row = lay_out("d", [heard("why"), said("so."), *written, heard("and"), said("then.")], chat, GEOMETRY, mode)
    for reply, opening in zip(replies_of(row, chat), expected, strict=True):
        assert reply.startswith(opening)
        assert reply.count("<|audio_bos|>") == opening.count("<|audio_bos|>")
    assert len(row.reply_lengths) == 3


@pytest.mark.parametrize(
    ("mode", "user", "assistant", "expected"),
    [
        ("STC", "heard", "said", "STC"),
        ("STC", "unwritten", "said", "SAC"),
        ("SUC", "unwritten", "said", "S2M"),
        ("SAC", "unwritten", "said", "SAC"),
        ("STC", "typed", "said", "T2M"),
        ("SAC", "typed", "said", "T2M"),
        ("SUC", "heard", "written", "S2T"),
        ("STC", "typed", "written", "T2T"),
        ("S2M", "unwritten", "said", "S2M"),
    ],
)
def test_a_dialogue_serves_the_nearest_mode(chat, mode, user, assistant, expected):
    users = {"heard": heard("x"), "unwritten": heard(" "), "typed": SpokenTurn("user", "x")}
    turns = [users[user], said("y") if assistant == "said" else SpokenTurn("assistant", "y")]
    assert fit_mode(mode, turns) == expected
    assert lay_out("d", turns, chat, GEOMETRY, expected).id == f"d/{expected}"
    if expected != mode:
        with pytest.raises(ValueError, match=f"no speech for mode {mode}, or no text of it; take the mode fit_mode"):
            lay_out("d", turns, chat, GEOMETRY, mode)


def test_modes_say_what_they_are():
    assert {name for name, mode in MODES.items() if mode.chains} == set(CHAINS)
    assert set(SYSTEM_PROMPTS) == set(MODES)
    assert MODES["STC"] == Mode(hears=True, speaks=True, transcribes=True, drafts=True)
    assert MODES["STC"].given(heard=False) == Mode(hears=False, speaks=True, drafts=True)
    assert MODES["SUC"].read_chain("why\n") == ("why", None)
    assert MODES["SAC"].read_chain("so.\n") == (None, "so.")
    assert MODES["STC"].read_chain("wh") == ("wh", "")
    assert MODES["S2M"].read_chain("") == (None, None)


# ---- generation


@pytest.fixture(scope="module")
def model():
    return tiny_speech_lm(vocab_size=VOCAB, codebook_size=SIZE).eval()


@pytest.fixture(scope="module")
def whole():
    """A model whose head reads every position, those of the chain too."""
    torch.manual_seed(0)
    layers = {"model_type": "qwen3", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    layers |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    encoder = FrameEncoder()
    model = SpeechLM(
        backbone=tiny_backbone(VOCAB),
        head=FunAudioHead(16, 5, SIZE, layers),
        encoder=encoder,
        feature_adapter=MeanGrouping(encoder.dim, 5, 16),
        code_adapter=FunAudioCodeGrouping(SIZE, 5, 16),
        fusion=MeanFusion(),
    )
    for parameter in [*model.head.parameters(), *model.code_adapter.parameters()]:
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # wide enough that a position's past can be seen
    return model.eval()


class Script:
    """Makes a model say given texts and codes, and keeps the log-probabilities that it gave them."""

    def __init__(self, monkeypatch):
        self.write([], [])
        text_next, speech_pick = TextStream.next, SpeechStream._pick

        def next_text(stream, logits, due):
            token = self.texts.pop(0)
            self.text.append(logits.log_softmax(-1)[0, token])
            picked = text_next(stream, logits.index_fill(1, torch.tensor([token]), 1e4), due)
            assert picked.item() == token, "what is to be said is forbidden"
            return picked

        def pick_code(stream, logits):
            code = self.codes.pop(0)
            self.speech.append(logits.log_softmax(-1)[0, code])
            return speech_pick(stream, logits.index_fill(1, torch.tensor([code]), 1e4))

        monkeypatch.setattr(TextStream, "next", next_text)
        monkeypatch.setattr(SpeechStream, "_pick", pick_code)

    def write(self, texts, codes):
        """The tokens and codes to say next."""
        self.texts, self.codes, self.text, self.speech = list(texts), list(codes), [], []


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("model", FrameEnd(2)),
        ("model", GroupEnd(0)),
        ("whole", FrameEnd()),
        ("whole", FrameEnd(2)),
        ("whole", GroupEnd(7)),
    ],
)
@pytest.mark.parametrize("mode", CHAINS)
def test_a_session_equals_one_teacher_forced_pass(monkeypatch, request, chat, mode, rule, kind):
    """Three turns, the second typed: what was written, said and closed is remembered as training would show it."""
    model = request.getfixturevalue(kind)
    codes = (11, 2, 8) if rule.text_goes_on else [n - rule.lead_in_codes for n in (30, 25, 15)]  # groups that are full
    turns = [heard("why so?", 410), said("as is.", np.arange(codes[0]) % SIZE)]
    turns += [SpokenTurn("user", "typed"), said("yes.", np.arange(codes[1]) % SIZE)]
    turns += [heard("and?", 777), said("no.", np.arange(codes[2]) % SIZE)]
    row = lay_out("d", turns, chat, model.geometry, mode, reply=rule)
    with torch.inference_mode():
        out = model(collate_line([row], 1000, 1000))
    labels = row.text_labels[row.text_labels != IGNORE].tolist()
    groups = np.cumsum([0, *row.reply_lengths])
    script, session, at = Script(monkeypatch), Generator(model, chat, reply=rule).session(mode), 0
    for number, (user, answer) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
        how = MODES[mode].given(user.clip is not None)
        end = labels.index(chat.im_end, at)  # put in, and so is <|audio_bos|> where there is no chain
        tokens, forced = labels[at:end][not how.chains :], out.text_logprobs[at:end][not how.chains :]
        at = end + (2 if rule.learns_newline else 1)
        if not rule.text_goes_on:  # the end of speech puts the mark in, whatever the text head says
            tokens[-1], forced = chat.sil, forced[:-1]
        to_say = torch.from_numpy(row.speech_labels[groups[number] : groups[number + 1]]).flatten()
        taught = out.speech.logprobs[groups[number] : groups[number + 1]].flatten()
        script.write(tokens, to_say.clamp_min(0).tolist())
        reply = session.send(text=user.text) if user.clip is None else session.send(audio=user.clip.load())
        assert (reply.finished, reply.text) == (True, answer.text)
        assert reply.codes.tolist() == answer.codes.tolist()
        assert reply.transcript == (user.text if how.transcribes else None)
        assert reply.draft == (answer.text if how.drafts else None)
        assert script.texts == script.codes == []
        torch.testing.assert_close(torch.stack(script.text)[: len(forced)], forced, atol=1e-5, rtol=1e-4)
        wanted = (to_say != IGNORE) & ((to_say == EOS).cumsum(0) <= 1)  # the first eos ends the reply
        torch.testing.assert_close(torch.stack(script.speech)[wanted], taught[wanted], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "rule"), [("model", FrameEnd(1)), ("whole", FrameEnd()), ("whole", GroupEnd(7))])
@pytest.mark.parametrize("mode", CHAINS)
def test_rows_whose_chains_differ_in_length_get_what_they_get_alone(monkeypatch, request, chat, mode, kind, rule):
    model = request.getfixturevalue(kind)
    bias(monkeypatch, model, [chat.audio_bos, chat.audio_eos], 6.0)
    generator = Generator(model, chat, reply=rule)
    turns = [UserTurn(audio=clip(200 + 90 * i, i)) for i in range(6)]
    together = generator.generate(turns, mode, WILD)
    assert len({len(reply.chain) for reply in together}) > 2, "chains of one length prove nothing"
    assert any(reply.finished for reply in together)
    for i, (turn, reply) in enumerate(zip(turns, together, strict=True)):
        alone = generator.generate([turn], mode, replace(WILD, seed=WILD.seed + i))[0]
        assert (alone.chain, alone.text_ids, alone.finished) == (reply.chain, reply.text_ids, reply.finished)
        assert (alone.transcript, alone.draft) == (reply.transcript, reply.draft)
        assert torch.equal(alone.codes, reply.codes)


@pytest.mark.parametrize("rule", [FrameEnd(1), GroupEnd(0)], ids=str)
def test_max_positions_counts_the_chain_and_cuts_what_would_have_come(monkeypatch, model, chat, rule):
    """A shorter limit gives each row the beginning of what a longer one gives it, and says that it cut."""
    kept, build = [], generator_module.build_replies
    monkeypatch.setattr(generator_module, "build_replies", lambda *a: kept.append(a[0]) or build(*a))
    bias(monkeypatch, model, [chat.audio_bos, chat.audio_eos], 15.0)
    turns = [UserTurn(audio=clip(200 + 90 * i, i)) for i in range(5)]
    generator = Generator(model, chat, reply=rule)
    whole = generator.generate(turns, "SUC", replace(WILD, max_positions=100))
    assert all(reply.finished for reply in whole)
    written, spoken = (x.text_kept.sum(1) + 1 for x in (kept[0].chain, kept[0]))  # and their marks
    needed = (written + spoken).tolist()
    for longest in sorted({1, *written.tolist(), min(needed) - 1, *needed}):
        cut = generator.generate(turns, "SUC", replace(WILD, max_positions=longest))
        used = kept[-1].chain.text_kept.sum(1) + kept[-1].chain.opened + kept[-1].text_kept.sum(1)
        for i, (short, long) in enumerate(zip(cut, whole, strict=True)):
            assert short.finished == (needed[i] <= longest)
            assert used[i] == min(needed[i] - 1, longest)  # of a whole one the last is <|audio_eos|>
            assert long.chain.startswith(short.chain)
            assert long.text_ids[: len(short.text_ids)] == short.text_ids
            assert long.codes[: len(short.codes)].tolist() == short.codes.tolist()


def test_a_chain_ends_with_audio_bos_alone(monkeypatch, model, chat):
    with monkeypatch.context() as patch:
        bias(patch, model, [chat.im_end, chat.audio_eos, chat.sil, chat.audio, chat.pad])
        reply = Generator(model, chat).generate([UserTurn(audio=clip(300))], "STC", Decoding(max_positions=9))[0]
    assert len(reply.chain) <= 9
    assert not set(SPECIAL_TOKENS) & set(reply.chain.split())
    bias(monkeypatch, model, [chat.audio_bos])
    reply = Generator(model, chat).generate([UserTurn(audio=clip(300))], "STC", Decoding(max_positions=9))[0]
    assert (reply.chain, reply.transcript, reply.draft) == ("", "", "")
    assert len(reply.text_ids) == 8


@pytest.mark.parametrize("kind", ["model", "whole"])
def test_a_cut_chain_is_remembered_as_a_written_turn(monkeypatch, request, chat, kind):
    model, hiddens = request.getfixturevalue(kind), []
    plain = session_module.decode_reply
    monkeypatch.setattr(session_module, "decode_reply", lambda *a: hiddens.append(a[3]) or plain(*a))
    session = Generator(model, chat).session("STC", decoding=Decoding(max_positions=5))
    with monkeypatch.context() as patch:
        bias(patch, model, [chat.audio_bos], -1e4)
        first = session.send(audio=clip(410, 1))
    assert (first.finished, len(first.codes), first.text) == (False, 0, "")
    session.send(audio=clip(600, 2))
    users = [SpokenTurn("user", "x", Clip(n, clip(n, seed).numpy)) for n, seed in ((410, 1), (600, 2))]
    turns = [users[0], SpokenTurn("assistant", first.chain), users[1], said("x")]
    row = lay_out("d", turns, chat, model.geometry, "STC")
    batch = collate_line([row], 1000, 1000)
    with torch.inference_mode():
        states = model.backbone(model.embed(batch), batch.position_ids, batch.lengths)
    opens = int((batch.text_ids == chat.assistant_open()[0]).nonzero()[-1]) + len(chat.assistant_open()) - 1
    torch.testing.assert_close(hiddens[1][0], states[opens], atol=1e-5, rtol=1e-4)


def test_a_trained_model_writes_and_says_what_it_was_taught_and_the_prompt_chooses_the_mode(chat):
    torch.manual_seed(0)
    model = tiny_speech_lm(vocab_size=VOCAB, dim=32, codebook_size=SIZE)
    taught = [
        (heard("what is up", 500), said("the sky.", range(9))),
        (heard("and down", 900), said("the sea.", [5, 1])),
    ]
    modes = (*CHAINS, "S2M")
    rows = [lay_out("d", turns, chat, model.geometry, mode, 1) for turns in taught for mode in modes]
    batch = collate_line(rows, 3000, 1000)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(50):
        out = model(batch)
        loss = out.text_loss_sum / out.text_count + out.speech_loss_sum / out.speech_count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    generator = Generator(model, chat, lead_in=1)
    for mode in modes:
        turns = [UserTurn(audio=user.clip.load()) for user, _ in taught]
        for reply, (user, answer) in zip(generator.generate(turns, mode), taught, strict=True):
            assert (reply.finished, reply.text) == (True, answer.text)
            assert reply.codes.tolist() == answer.codes.tolist()
            assert reply.transcript == (user.text if MODES[mode].transcribes else None)
            assert reply.draft == (answer.text if MODES[mode].drafts else None)
            assert (reply.chain is None) == (mode == "S2M")


# ---- mixing


def test_linear_modes_go_from_the_start_to_the_end_in_shares():
    way = LinearModes(end={"STC": 3, "S2M": 1}, epochs=2.0, after=1.0)
    start = {"S2T": 10.0, "S2M": 10.0}
    assert way.modes == ("STC", "S2M")
    assert way.weights(start, 0.0) == way.weights(start, 1.0) == {"S2T": 0.5, "S2M": 0.5, "STC": 0.0}
    assert way.weights(start, 2.0) == {"S2T": 0.25, "S2M": 0.375, "STC": 0.375}
    assert way.weights(start, 3.0) == way.weights(start, math.inf) == {"S2T": 0.0, "S2M": 0.25, "STC": 0.75}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"end": {"STC": 1.0}, "epochs": 0}, "epochs must be above 0, got 0; leave the schedule out"),
        ({"end": {"STC": 1.0}, "epochs": 1, "after": -1}, "after must not be negative, got -1"),
        ({"end": {"STC": -1.0}, "epochs": 1}, "end gives STC the weight -1.0; weights are 0 or more"),
        ({"end": {"STC": 0.0}, "epochs": 1}, "end gives no mode a positive weight"),
    ],
)
def test_schedules_of_nonsense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearModes(**arguments)


def test_a_schedule_is_one_line_of_a_recipe():
    node = {"_target_": "fac_lightning.data.LinearModes", "end": {"STC": 1.0}, "epochs": 2}
    assert instantiate(node, "data.mode_schedule") == LinearModes({"STC": 1.0}, 2)


def test_list_shows_every_mode_and_schedule(capsys):
    assert main(["list", "modes"]) == 0
    shown = capsys.readouterr().out
    for name in MODES:
        assert f"\n  {name}  " in shown
        assert SYSTEM_PROMPTS[name] in shown
    assert "STC  speech -> transcript, then text, then text and speech" in shown
    assert main(["list", "data"]) == 0
    assert "fac_lightning.data.LinearModes\n" in capsys.readouterr().out
    assert main(["list", "mods"]) == 2
    assert "Did you mean 'modes'?" in capsys.readouterr().err
