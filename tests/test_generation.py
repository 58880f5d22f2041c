"""Talking: sampling against closed forms, decoding against teacher forcing, rows and sessions that stay apart."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fac_lightning.generation.generator as generator_module
import fac_lightning.generation.session as session_module
from fac_lightning.data.layout import Clip, SpokenTurn, lay_out
from fac_lightning.data.packing import collate_line
from fac_lightning.generation import Decoding, Generator, Sampling, UserTurn
from fac_lightning.generation.prompt import left_pad, prompt_batch, user_pieces
from fac_lightning.generation.sampling import draw, penalize_repetition, pick, shortlist, uniforms
from fac_lightning.generation.streams import SpeechStream, TextStream
from fac_lightning.heads import (
    DelayHead,
    DepthHead,
    MultiTokenHead,
    NestedRefinedHead,
    ParallelHead,
    RefinedHead,
    TextRefinedHead,
)
from fac_lightning.prompts import MODES, SPECIAL_TOKENS, ChatFormat
from fac_lightning.replies import close_group
from fac_lightning.testing.tiny import tiny_speech_lm
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechCodes, Waveforms, bos_code, eos_code, pad_code

INF = float("inf")
VOCAB, FIRST_CHAR = 48, 0x4E00


class CharTokenizer:
    """Every id is one character, so that whatever a random model says can be laid out again."""

    def encode(self, text, add_special_tokens=False):
        ids = []
        while text:
            special = next((i for i, s in enumerate(SPECIAL_TOKENS) if text.startswith(s)), None)
            if special is not None:
                ids.append(special)
                text = text[len(SPECIAL_TOKENS[special]) :]
                continue
            code = ord(text[0])
            ids.append(code - FIRST_CHAR if code >= FIRST_CHAR else 7 + code % (VOCAB - 7))
            text = text[1:]
        return ids

    def decode(self, token_ids, skip_special_tokens=False):
        return "".join(
            ("" if skip_special_tokens else SPECIAL_TOKENS[i]) if i < 7 else chr(FIRST_CHAR + i) for i in token_ids
        )

    def convert_tokens_to_ids(self, tokens):
        return SPECIAL_TOKENS.index(tokens)


class ToneTokenizer(SpeechTokenizer):
    """Codes are amplitudes; enough to see that a reply's waveform is that of its codes."""

    def __init__(self, codebook_size=32, num_codebooks=1):
        super().__init__()
        self.sample_rate, self.hop_length = 1000, 40
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks

    def encode(self, audio, lengths=None):
        return SpeechCodes(torch.zeros(len(audio), 0, 1, dtype=torch.int64), torch.zeros(len(audio)))

    def decode(self, codes, lengths=None):
        assert ((codes >= 0) & (codes < self.codebook_size)).all()
        audio = (codes[..., 0] / self.codebook_size).repeat_interleave(self.hop_length, dim=1)
        return Waveforms(audio, lengths * self.hop_length, self.sample_rate)


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(CharTokenizer())


@pytest.fixture(scope="module")
def model():
    return tiny_speech_lm(vocab_size=VOCAB, codebook_size=12).eval()


@pytest.fixture
def generator(model, chat):
    return Generator(model, chat, ToneTokenizer(12))


def clip(samples, seed=0):
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.3


RANDOM = Decoding(Sampling(temperature=1.0), Sampling(temperature=1.0), max_positions=24)


# ---- sampling


def test_greedy_is_the_default_and_ignores_randomness():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 1.9]])
    assert pick(logits, Sampling(), torch.tensor([0.999, 0.999])).tolist() == [1, 0]


def test_draws_follow_the_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -INF])
    u = (torch.arange(10000) + 0.5) / 10000  # a grid instead of chance: exact to the grid's width
    share = draw(*shortlist(logits.expand(10000, -1)), u).bincount(minlength=5) / 10000
    torch.testing.assert_close(share, logits.softmax(-1), atol=2e-4, rtol=0)


def test_a_forbidden_token_is_never_drawn_even_at_the_edges():
    logits = torch.tensor([[-INF, 0.0, -INF, 0.0, -INF]]).expand(3, -1)
    assert set(draw(*shortlist(logits), torch.tensor([0.0, 0.5, 1 - 2**-24])).tolist()) <= {1, 3}


def test_temperature_scales_the_logits():
    logits, u = torch.tensor([1.0, 0.0]), (torch.arange(1000) + 0.5) / 1000
    share = (pick(logits.expand(1000, -1), Sampling(temperature=0.5), u) == 0).float().mean()
    assert share.item() == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-3)


def test_top_k_keeps_the_k_largest():
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    ordered, ids = shortlist(logits, 2)
    assert ordered.tolist() == [[4.0, 3.0]]
    assert ids.tolist() == [[1, 3]]
    for everything in (0, 4, 9):
        assert shortlist(logits, everything)[1].tolist() == [[1, 3, 2, 0]]


@pytest.mark.parametrize(("top_p", "kept"), [(0.49, 1), (0.7, 2), (0.81, 3), (0.97, 4), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, kept):
    ordered, ids = shortlist(torch.tensor([[0.15, 0.5, 0.3, 0.05]]).log(), top_p=top_p)
    assert ids.tolist() == [[1, 2, 0, 3]]
    assert ordered.isfinite().sum() == kept
    assert ordered[0, :kept].isfinite().all()


def test_top_p_counts_within_the_top_k():
    ordered, _ = shortlist(torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log(), top_k=2, top_p=0.57)
    assert ordered.isfinite().tolist() == [[True, False]]  # 0.4 of 0.7 is 0.571


def test_repetition_penalty_moves_seen_tokens_down_on_both_sides_of_zero():
    logits, seen = torch.tensor([[2.0, -2.0, 1.0]]), torch.tensor([[True, True, False]])
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 1.0]]
    sampling = Sampling(repetition_penalty=4.0)
    assert pick(logits, sampling, torch.zeros(1), seen).item() == 2
    assert pick(logits, sampling, torch.zeros(1), torch.zeros_like(seen)).item() == 0


def test_a_seed_gives_its_row_the_same_numbers_in_every_batch():
    assert torch.equal(uniforms([3, 7, 11], (5, 2))[1], uniforms([7], (5, 2))[0])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": -1}, "temperature must be 0 .* got -1"),
        ({"top_k": -2}, "top_k must be 0 .* got -2"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0, got 0"),
    ],
)
def test_senseless_sampling_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**bad)


def test_a_reply_of_no_positions_is_refused():
    with pytest.raises(ValueError, match="max_positions must be at least 1, got 0"):
        Decoding(max_positions=0)


# ---- prompts


@pytest.mark.parametrize("mode", sorted(MODES))
def test_prompt_is_the_beginning_of_the_training_row(mode, chat, model):
    audio = clip(530)
    turns = [
        SpokenTurn("user", "hello", Clip(530, audio.numpy)),
        SpokenTurn("assistant", "hi", codes=np.zeros((7, 1), np.int64)),
    ]
    row = collate_line([lay_out("d", turns, chat, model.geometry, mode)], 1000, 1000)
    pieces = user_pieces(chat, UserTurn("hi" if mode == "TTS" else "hello", audio), mode)
    prompt = prompt_batch([[chat.system(Generator(model, chat).system_prompts[mode]), *pieces]], chat, model.geometry)
    n = len(prompt.text_ids)
    assert torch.equal(prompt.text_ids, row.text_ids[:n])
    assert torch.equal(prompt.text_mask, row.text_mask[:n])
    assert torch.equal(prompt.position_ids, row.position_ids[:n])
    assert torch.equal(prompt.feature_positions, row.feature_positions)
    assert row.text_labels[n - 1] != -100  # the last prompt position says the first token of the reply
    assert (row.text_labels[: n - 1] == -100).all()
    torch.testing.assert_close(model.embed(prompt), model.embed(row)[:n])


def test_left_pad_puts_rows_side_by_side():
    rows, mask = left_pad(torch.arange(1.0, 6.0)[:, None], torch.tensor([2, 3]))
    assert rows[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert mask.tolist() == [[False, True, True], [True, True, True]]


@pytest.mark.parametrize(
    ("mode", "turn", "message"),
    [
        ("S2M", UserTurn(text="x"), "mode S2M hears the user, but the turn has no audio"),
        ("T2T", UserTurn(audio=np.zeros(9)), "mode T2T reads the user's text, but the turn has none"),
        ("S2S", UserTurn(text="x"), "unknown mode 'S2S'; choose one of S2M"),
        ("ASR", UserTurn(audio=np.zeros((2, 9))), r"audio must be a mono waveform .* got shape \(2, 9\)"),
        ("ASR", UserTurn(audio=np.zeros(0)), r"at least one sample, got shape \(0,\)"),
    ],
)
def test_a_turn_without_what_the_mode_needs_is_refused(generator, mode, turn, message):
    with pytest.raises(ValueError, match=message):
        generator.generate([turn], mode)


def test_unknown_system_prompts_are_refused(model, chat):
    with pytest.raises(ValueError, match=r"system_prompts has unknown modes \['S2S'\]"):
        Generator(model, chat, system_prompts={"S2S": "x"})


def test_a_model_without_a_head_says_what_is_missing(chat):
    silent = tiny_speech_lm(vocab_size=VOCAB).eval()
    silent.head = None
    with pytest.raises(ValueError, match="the model has no head, so it cannot speak"):
        Generator(silent, chat).generate([UserTurn("a")], "T2M")
    assert len(Generator(silent, chat).generate([UserTurn("a")], "T2T", Decoding(max_positions=3))) == 1


# ---- groups


def test_close_group_ends_at_the_first_special_frame():
    size = 10
    group = torch.tensor([[[1, 2], [3, eos_code(size)], [4, 4]], [[5, 6], [7, 8], [9, 9]]])
    closed, speech = close_group(group, size)
    e, p = eos_code(size), pad_code(size)
    assert closed.tolist() == [[[1, 2], [e, e], [p, p]], [[5, 6], [7, 8], [9, 9]]]
    assert speech.tolist() == [[True, False, False], [True, True, True]]


# ---- decoding


class Recorder:
    """Log-probabilities of what was picked, as the streams saw them before anything was forbidden."""

    def __init__(self, monkeypatch):
        self.clear()
        text_next, speech_pick = TextStream.next, SpeechStream._pick

        def next_text(stream, logits, due):
            token = text_next(stream, logits, due)
            self.text.append(logits.log_softmax(-1).gather(1, token[:, None]).squeeze(1))
            return token

        def pick_code(stream, logits):
            code = speech_pick(stream, logits)
            self.speech.append(logits.log_softmax(-1).gather(1, code[:, None]).squeeze(1))
            return code

        monkeypatch.setattr(TextStream, "next", next_text)
        monkeypatch.setattr(SpeechStream, "_pick", pick_code)

    def clear(self):
        self.text, self.speech = [], []


@pytest.mark.parametrize(
    ("kind", "num_codebooks", "lead_in"),
    [
        (RefinedHead, 1, 0),
        (RefinedHead, 1, 2),
        (RefinedHead, 2, 0),
        (RefinedHead, 2, 2),
        (TextRefinedHead, 1, 2),
        (ParallelHead, 1, 0),
        (NestedRefinedHead, 2, 2),
        (DepthHead, 2, 0),
        (DelayHead, 2, 2),
        (DelayHead, 3, 0),
        (MultiTokenHead, 2, 2),
    ],
)
def test_cached_generation_equals_teacher_forcing(monkeypatch, chat, kind, num_codebooks, lead_in):
    torch.manual_seed(0)
    size = 12 * num_codebooks**2
    options = {} if kind is ParallelHead else {"width": 16, "num_layers": 2, "num_heads": 2}
    head = kind(16, 5, size, num_codebooks, **options)
    model = tiny_speech_lm(vocab_size=VOCAB, codebook_size=size, num_codebooks=num_codebooks, head=head).eval()
    seen, kept, audio = Recorder(monkeypatch), [], clip(777)
    monkeypatch.setattr(generator_module, "build_replies", lambda decoded, *_: kept.append(decoded))
    for seed in range(40):  # the first reply that ends and is longer than a group
        seen.clear()
        decoding = Decoding(Sampling(5.0), Sampling(1.0), max_positions=100, seed=seed)
        Generator(model, chat, lead_in=lead_in).generate([UserTurn(audio=audio)], "S2M", decoding)
        decoded = kept[-1]
        if decoded.finished.item() and decoded.codes_kept.sum() > 5:
            break
    else:
        pytest.fail("no seed gave a reply that can be compared")
    tokens = decoded.text_ids[decoded.text_kept].tolist()
    codes = decoded.codes[decoded.codes_kept].numpy()
    turns = [
        SpokenTurn("user", "", Clip(777, audio.numpy)),
        SpokenTurn("assistant", chat.tokenizer.decode(tokens), codes=codes),
    ]
    row = lay_out("d", turns, chat, model.geometry, "S2M", lead_in)
    assert row.num_text_labels == len(tokens) + 3, "speech outlived the text: the row and the reply differ"
    with torch.inference_mode():
        out = model(collate_line([row], 1000, 1000))
    # labels: audio_bos (forced), the tokens, audio_eos, im_end (said by the session, not by the model)
    torch.testing.assert_close(torch.cat(seen.text), out.text_logprobs[1:-1], atol=1e-5, rtol=1e-4)
    labels = torch.from_numpy(row.speech_labels).flatten()
    forced = out.speech.logprobs.flatten()[labels >= 0]
    forced = forced[: len(forced) - num_codebooks + 1]  # of the eos frame the first code, which ends the reply
    asked = torch.cat(seen.speech).unflatten(0, (-1, 5 * num_codebooks))  # (groups, k * Q) as the head asked
    stepped = asked[:, torch.tensor(head.order).argsort()].flatten()[: len(forced)]
    torch.testing.assert_close(stepped, forced, atol=1e-5, rtol=1e-4)
    # groups were fed back as they are laid out
    groups = decoded.codes.unflatten(1, (-1, 5))[0, : len(row.codes)]
    assert torch.equal(groups, torch.from_numpy(row.codes))
    assert (decoded.codes.unflatten(1, (-1, 5))[0, len(row.codes) :] == pad_code(size)).all()


@pytest.mark.parametrize("mode", ["S2M", "S2T", "ASR"])
def test_a_row_gets_in_a_batch_what_it_gets_alone(generator, mode):
    turns = [UserTurn(audio=clip(n, n)) for n in (200, 950, 430, 201)]
    decoding = Decoding(max_positions=12)
    together = generator.generate(turns, mode, decoding)
    for turn, reply in zip(turns, together, strict=True):
        alone = generator.generate([turn], mode, decoding)[0]
        assert alone.text_ids == reply.text_ids
        assert alone.finished == reply.finished
        if MODES[mode][1]:
            assert torch.equal(alone.codes, reply.codes)
            torch.testing.assert_close(alone.audio, reply.audio)
    assert len({tuple(r.text_ids) for r in together}) > 1, "rows that all say the same prove nothing"


def test_rows_that_end_early_do_not_disturb_the_others(generator):
    turns = [UserTurn(text=t) for t in ("a", "some longer question", "why", "ok then")]
    together = generator.generate(turns, "T2M", RANDOM)
    lengths = {len(r.codes) for r in together}
    assert len(lengths) > 1
    for i, (turn, reply) in enumerate(zip(turns, together, strict=True)):
        seeded = Decoding(RANDOM.text, RANDOM.speech, RANDOM.max_positions, seed=RANDOM.seed + i)
        alone = generator.generate([turn], "T2M", seeded)[0]
        assert alone.text_ids == reply.text_ids
        assert torch.equal(alone.codes, reply.codes)


def test_sampling_is_reproducible_and_seeded(generator):
    turns = [UserTurn(text="hello")]
    first, again = (generator.generate(turns, "T2M", RANDOM)[0] for _ in range(2))
    other = generator.generate(turns, "T2M", Decoding(RANDOM.text, RANDOM.speech, 24, seed=99))[0]
    assert first.text_ids == again.text_ids
    assert torch.equal(first.codes, again.codes)
    assert first.text_ids != other.text_ids


def test_every_sampling_option_at_once_gives_valid_replies(generator):
    sampling = Sampling(temperature=0.8, top_k=9, top_p=0.9, repetition_penalty=1.2)
    replies = generator.generate([UserTurn("a"), UserTurn("b")], "TTS", Decoding(sampling, sampling, 16))
    for reply in replies:
        assert ((reply.codes >= 0) & (reply.codes < 12)).all()
        assert all(i >= 7 for i in reply.text_ids)
        assert len(reply.audio) == 40 * len(reply.codes)
        assert reply.sample_rate == 1000


def test_repetition_penalty_stops_a_greedy_loop(generator):
    plain = generator.generate([UserTurn("abc")], "T2T", Decoding(max_positions=30))[0]
    strong = Decoding(Sampling(repetition_penalty=1e9), max_positions=30)
    varied = generator.generate([UserTurn("abc")], "T2T", strong)[0]
    assert len(set(varied.text_ids)) == len(varied.text_ids)
    assert len(set(plain.text_ids)) < len(plain.text_ids)


def test_written_replies_have_no_codes_and_no_marks(generator):
    for mode, turn in (("T2T", UserTurn("hi")), ("ASR", UserTurn(audio=clip(300)))):
        reply = generator.generate([turn], mode, RANDOM)[0]
        assert reply.codes is None
        assert reply.audio is None
        assert reply.sample_rate is None
        assert reply.text_ids
        assert min(reply.text_ids) >= 7


def test_cut_replies_say_so(generator):
    reply = generator.generate([UserTurn("hi")], "T2M", Decoding(max_positions=2))[0]
    assert not reply.finished
    assert len(reply.codes) <= 10


def test_no_turns_give_no_replies(generator):
    assert generator.generate([]) == []


class Puppet(nn.Module):
    """Adds a bonus to chosen text tokens, so that a test decides what the text head wants to say."""

    def __init__(self, backbone, ids, bonus=1e4):
        super().__init__()
        self.backbone, self.ids, self.bonus = backbone, ids, bonus

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.backbone, name)

    def logits(self, hidden):
        logits = self.backbone.logits(hidden)
        logits[..., self.ids] += self.bonus
        return logits


def test_speech_decides_when_the_reply_ends(model, chat):
    eager = copy.deepcopy(model)
    eager.backbone = Puppet(eager.backbone, [chat.audio_eos, chat.im_end, chat.audio_bos, chat.audio])
    decoding = Decoding(Sampling(), Sampling(temperature=1.0), max_positions=200)
    reply = Generator(eager, chat).generate([UserTurn("a")], "T2M", decoding)[0]
    positions = -(-(len(reply.codes) + 1) // 5)
    assert reply.finished
    assert len(reply.codes) > 0
    # one token with every group, then <|audio_eos|> at once
    assert len(reply.text_ids) == positions


def test_silence_is_not_text_and_cannot_go_on_after_speech(monkeypatch, model, chat):
    quiet = copy.deepcopy(model)
    quiet.backbone = Puppet(quiet.backbone, [chat.sil])
    decoding = Decoding(Sampling(), Sampling(temperature=1.0), max_positions=200)
    decoded = []
    plain = generator_module.decode_reply
    monkeypatch.setattr(generator_module, "decode_reply", lambda *a: decoded.append(plain(*a)) or decoded[-1])
    reply = Generator(quiet, chat).generate([UserTurn("a")], "T2M", decoding)[0]
    tokens, spoken = decoded[0].text_ids[0].tolist(), -(-(len(reply.codes) + 1) // 5)
    assert tokens[:spoken] == [chat.sil] * spoken
    assert chat.sil not in tokens[spoken:]
    assert reply.text_ids == [t for t in tokens[spoken:] if t != chat.audio_eos]
    assert reply.text == chat.decode(reply.text_ids)


def test_lead_in_groups_are_bos_and_are_not_speech(monkeypatch, model, chat):
    kept = {}
    monkeypatch.setattr(generator_module, "build_replies", lambda d, *_: kept.update(decoded=d))
    Generator(model, chat, lead_in=3).generate([UserTurn("a")], "T2M", Decoding(max_positions=5))
    codes, real = kept["decoded"].codes[0, :, 0], kept["decoded"].codes_kept[0]
    assert (codes[:15] == bos_code(12)).all()
    assert not real[:15].any()
    assert real[15:].any()


def test_a_trained_model_says_what_it_was_taught(chat):
    """Layout, training and generation agree: text longer and shorter than the speech, written and transcribed."""
    torch.manual_seed(0)
    model = tiny_speech_lm(vocab_size=VOCAB, dim=32, codebook_size=12)
    rng = np.random.default_rng(0)
    taught, rows = [], []
    for i, (words, frames) in enumerate([(3, 23), (9, 12), (2, 4)]):
        answer, heard = "".join(chr(FIRST_CHAR + c) for c in rng.integers(7, VOCAB, words)), clip(500 + 100 * i, i)
        codes = rng.integers(0, 12, (frames, 1))
        taught.append((heard, answer, codes))
        question = SpokenTurn("user", f"say {i}", Clip(len(heard), heard.numpy))
        for mode in ("S2M", "T2M", "T2T"):
            rows.append(
                lay_out(str(i), [question, SpokenTurn("assistant", answer, codes=codes)], chat, model.geometry, mode, 1)
            )
    batch = collate_line(rows, 2000, 1000)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(90):
        out = model(batch)
        loss = out.text_loss_sum / out.text_count + out.speech_loss_sum / out.speech_count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    generator = Generator(model, chat, lead_in=1)
    for mode in ("S2M", "T2M", "T2T"):
        turns = [UserTurn(f"say {i}", heard) for i, (heard, _, _) in enumerate(taught)]
        for reply, (_, answer, codes) in zip(generator.generate(turns, mode), taught, strict=True):
            assert reply.finished
            assert reply.text == answer
            if mode != "T2T":
                assert reply.codes.tolist() == codes.tolist()


# ---- state


def test_generation_leaves_the_model_as_it_was(model, chat):
    own = copy.deepcopy(model).train()
    own.backbone.eval()  # a frozen part in a training model
    before = copy.deepcopy(own.state_dict())
    attributes = {name: set(vars(m)) for name, m in own.named_modules()}
    modes = {name: m.training for name, m in own.named_modules()}
    Generator(own, chat).generate([UserTurn(audio=clip(300))], "S2M", RANDOM)
    Generator(own, chat).session("S2M", decoding=RANDOM).send(audio=clip(300))
    assert {name: set(vars(m)) for name, m in own.named_modules()} == attributes
    assert {name: m.training for name, m in own.named_modules()} == modes
    for key, value in own.state_dict().items():
        assert torch.equal(value, before[key]), key
    own.backbone.embed(torch.tensor([8])).sum().backward()  # nothing was left in inference mode


def talk(session, turns):
    return [session.send(**turn) for turn in turns]


def same(a, b):
    return a.text_ids == b.text_ids and torch.equal(a.codes, b.codes) and a.finished == b.finished


def test_sessions_do_not_disturb_each_other(generator):
    first = [{"audio": clip(410, 1)}, {"audio": clip(200, 2)}, {"text": "and then"}]
    second = [{"text": "hello"}, {"audio": clip(333, 3)}, {"audio": clip(650, 4)}]
    alone = talk(generator.session(decoding=RANDOM), first), talk(generator.session(decoding=RANDOM), second)
    one, two = generator.session(decoding=RANDOM), generator.session(decoding=RANDOM)
    mixed = [(one.send(**a), two.send(**b)) for a, b in zip(first, second, strict=True)]
    for turn, (a, b) in enumerate(mixed):
        assert same(a, alone[0][turn])
        assert same(b, alone[1][turn])
    assert not same(alone[0][0], alone[1][0])


def test_first_turn_of_a_session_is_single_turn_generation(generator):
    turn = {"audio": clip(410, 1)}
    assert same(
        generator.session(decoding=RANDOM).send(**turn), generator.generate([UserTurn(**turn)], "S2M", RANDOM)[0]
    )


@pytest.mark.parametrize(
    ("mode", "lead_in", "longest"), [("S2M", 0, 100), ("S2M", 2, 100), ("S2M", 0, 1), ("T2T", 0, 100)]
)
def test_session_remembers_turns_as_training_lays_them_out(monkeypatch, model, chat, mode, lead_in, longest):
    """What the second turn's first token is picked from is what teacher forcing says of the whole dialogue."""
    decodings = []
    plain = session_module.decode_reply
    monkeypatch.setattr(
        session_module, "decode_reply", lambda *a: decodings.append((a[3], plain(*a))) or decodings[-1][1]
    )
    spoken = MODES[mode][1]
    asked = [{"audio": clip(410, 1)}, {"audio": clip(600, 2)}] if spoken else [{"text": "hello"}, {"text": "again"}]
    for seed in range(40):  # the first seed whose reply ends, or is cut behind a full group
        decodings.clear()
        decoding = Decoding(Sampling(5.0), Sampling(1.0), max_positions=longest, seed=seed)
        session = Generator(model, chat, lead_in=lead_in).session(mode, decoding=decoding)
        session.send(**asked[0])
        first = decodings[0][1]
        if first.finished.item() if longest > 1 else first.codes_kept.all():
            break
    else:
        pytest.fail("no seed gave a first reply that can be compared")
    session.send(**asked[1])
    hidden = decodings[1][0]
    user = [
        SpokenTurn("user", t.get("text", ""), Clip(len(t["audio"]), t["audio"].numpy) if "audio" in t else None)
        for t in asked
    ]
    tokens = first.text_ids[first.text_kept].tolist()
    answer = SpokenTurn(
        "assistant",
        chat.tokenizer.decode(tokens),
        codes=first.codes[first.codes_kept].numpy() if spoken else None,
    )
    dummy = SpokenTurn("assistant", "x", codes=np.zeros((1, 1), np.int64) if spoken else None)
    row = lay_out("d", [user[0], answer, user[1], dummy], chat, model.geometry, mode, lead_in)
    if longest == 1:  # the reply was cut behind a full group: its history has no frame of eos
        assert not first.finished
        row = drop_second_group(row)
    batch = collate_line([row], 1000, 1000)
    with torch.inference_mode():
        states = model.backbone(model.embed(batch), batch.position_ids, batch.lengths)
    opens = (batch.text_ids == (chat.audio_bos if spoken else chat.encode("<|im_start|>")[0])).nonzero().squeeze(1)
    at = opens[-1] if spoken else opens[-1] + len(chat.assistant_open()) - 1
    torch.testing.assert_close(hidden[0], states[at], atol=1e-5, rtol=1e-4)


def drop_second_group(row):
    """The row without the position of its second group."""
    position = row.code_positions[1]
    there, keep = np.arange(len(row.text_ids)) != position, np.arange(len(row.codes)) != 1
    return replace(
        row,
        text_ids=row.text_ids[there],
        text_mask=row.text_mask[there],
        text_labels=row.text_labels[there],
        codes=row.codes[keep],
        code_positions=row.code_positions[keep] - (row.code_positions[keep] > position),
        speech_positions=row.speech_positions - (row.speech_positions > position),
        feature_positions=row.feature_positions - (row.feature_positions > position),
    )


def test_session_needs_words_and_a_known_mode(generator):
    with pytest.raises(ValueError, match="nothing to answer"):
        generator.session().send()
    with pytest.raises(ValueError, match="unknown mode 'X'"):
        generator.session("X")


def test_custom_system_prompts_change_the_reply(model, chat):
    plain, other = Generator(model, chat), Generator(model, chat, system_prompts={"T2T": "be brief"})
    decoding = Decoding(max_positions=20)
    says = [g.generate([UserTurn("hi")], "T2T", decoding)[0].text_ids for g in (plain, other)]
    assert says[0] != says[1]
    assert plain.session("T2T", "be brief", decoding).send("hi").text_ids == says[1]
