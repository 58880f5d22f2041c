"""Reply rules: rows as the released code labels them, and generation that says what the rows hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import fac_lightning.generation.generator as generator_module
import fac_lightning.generation.session as session_module
from fac_lightning.adapters import FunAudioCodeGrouping, MeanFusion, MeanGrouping
from fac_lightning.data.layout import Clip, SpokenTurn, lay_out
from fac_lightning.data.packing import collate_line
from fac_lightning.generation import Decoding, Generator, Sampling, UserTurn
from fac_lightning.generation.prompt import prompt_batch, user_pieces
from fac_lightning.generation.streams import SpeechStream, TextStream
from fac_lightning.heads import FunAudioHead, ParallelHead, SpeechHead, TextRefinedHead
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import SPECIAL_TOKENS, ChatFormat
from fac_lightning.replies import FrameEnd, GroupEnd, reply_rule
from fac_lightning.testing.tiny import FrameEncoder, tiny_backbone, tiny_speech_lm
from fac_lightning.text_tokenizer import load_text_tokenizer
from fac_lightning.types import IGNORE, SpeechGeometry, bos_code, eos_code, pad_code
from fun_audio_golden import CHECKPOINT, golden, needs_golden

I = IGNORE  # noqa: E741
SIZE, VOCAB, FIRST_CHAR = 12, 48, 0x4E00
BOS, EOS, PAD = bos_code(SIZE), eos_code(SIZE), pad_code(SIZE)
LIVELY = Decoding(Sampling(5.0), Sampling(1.0), max_positions=60)


class Characters:
    """Every id is one character, so that whatever a random model says can be laid out again."""

    def encode(self, text, add_special_tokens=False):
        ids = []
        while text:
            special = next((i for i, s in enumerate(SPECIAL_TOKENS) if text.startswith(s)), None)
            code = ord(text[0])
            ids.append(
                special if special is not None else code - FIRST_CHAR if code >= FIRST_CHAR else 7 + code % (VOCAB - 7)
            )
            text = text[1 if special is None else len(SPECIAL_TOKENS[special]) :]
        return ids

    def decode(self, token_ids, skip_special_tokens=False):
        return "".join(
            ("" if skip_special_tokens else SPECIAL_TOKENS[i]) if i < 7 else chr(FIRST_CHAR + i) for i in token_ids
        )

    def convert_tokens_to_ids(self, tokens):
        return SPECIAL_TOKENS.index(tokens)


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(Characters())


def geometry(group_size=5, num_codebooks=1, **changes):
    return SpeechGeometry(1000, 200, group_size, num_codebooks, SIZE, VOCAB, **changes)


def clip(samples, seed=0):
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.3


def heard(text, samples):
    return SpokenTurn("user", text, Clip(samples, lambda: np.zeros(samples, np.float32)))


def said(text, codes):
    return SpokenTurn("assistant", text, codes=np.asarray(codes, dtype=np.int64).reshape(-1, 1))


# -- layout ------------------------------------------------------------------------------------------------------------


@needs_golden
@pytest.mark.parametrize(("row", "mode", "system"), [(0, "S2M", "S2S!"), (1, "T2M", "S2S!"), (2, "S2T", "S2T.")])
def test_golden_d_train_mixed_labels(row, mode, system):
    """The released code's labels stand at the position they are of; ours at the one before, that they are said from."""
    fixture, chat = golden("d_train_mixed"), ChatFormat(load_text_tokenizer(str(CHECKPOINT)))
    length, k = int(fixture["in.attention_mask"][row].sum()), 5
    audios = {0: (0, 1), 1: (None, 2), 2: (3, None)}[row]
    user, assistant = (None if a is None else fixture["in.speech_ids"][a] for a in audios)
    frames = 0 if user is None else int(fixture["in.speech_attention_mask"][audios[0]].sum())
    question = SpokenTurn("user", "What?", Clip(640 * frames, np.zeros) if frames else None)
    answer = SpokenTurn("assistant", "Rain.")
    if assistant is not None:
        codes = assistant[10 : fixture["in.speech_attention_mask"][audios[1]].sum()]  # behind the lead-in
        words = [t for t in fixture["in.text_ids"][audios[1]].tolist() if t != chat.pad]
        answer = SpokenTurn("assistant", chat.decode(words), codes=codes[:, None].numpy())
    sizes = SpeechGeometry(16000, 3200, k, 1, codebook_size=64, vocab_size=272)
    laid = lay_out("golden", [question, answer], chat, sizes, mode, system=system, reply=GroupEnd(10))

    text = fixture["mid.merged_text_labels"][row, 1:length].numpy()
    assert laid.text_labels[:-1].tolist() == text.tolist()
    assert laid.text_labels[-1] == IGNORE
    speech = np.full((length, k), IGNORE)
    speech[laid.speech_positions + 1] = laid.speech_labels[..., 0]
    assert speech.tolist() == fixture["mid.speech_labels"][row].view(-1, k)[:length].tolist()
    held = np.flatnonzero((speech != IGNORE).any(1) & (laid.text_ids != chat.audio_eos))
    assert laid.code_positions.tolist() == held.tolist()
    inputs = fixture["in.input_ids"][row, :length].numpy()
    placeholders = np.concatenate([laid.code_positions, laid.feature_positions])
    assert sorted(placeholders.tolist()) == np.flatnonzero(inputs == chat.audio).tolist()
    elsewhere = np.delete(np.arange(length), laid.code_positions)
    assert laid.text_ids[elsewhere].tolist() == inputs[elsewhere].tolist()


@pytest.mark.parametrize(
    ("group_size", "codes", "labels"),
    [
        (5, [[BOS] * 5, [1, 2, 3, 4, 5], [6, PAD, PAD, PAD, PAD]], [[BOS] * 5, [1, 2, 3, 4, 5], [6, I, I, I, I]]),
        (3, [[BOS] * 3, [BOS, BOS, 1], [2, 3, 4], [5, 6, PAD]], [[BOS] * 3, [BOS, BOS, 1], [2, 3, 4], [5, 6, I]]),
    ],
)
def test_group_end_learns_the_lead_in_the_codes_and_a_group_of_eos(chat, group_size, codes, labels):
    row = lay_out("d", [heard("", 1), said("ok", range(1, 7))], chat, geometry(group_size), reply=GroupEnd(5))
    opens = int(np.flatnonzero(row.text_ids == chat.audio_bos)[-1])
    groups = len(codes)
    assert row.codes[..., 0].tolist() == codes
    assert row.code_positions.tolist() == list(range(opens + 1, opens + 1 + groups))
    assert row.speech_labels[..., 0].tolist() == [*labels, [EOS] * group_size]
    assert row.speech_positions.tolist() == list(range(opens, opens + 1 + groups))
    assert row.reply_lengths.tolist() == [groups + 1]
    assert row.text_ids[opens + 1 + groups] == chat.audio_eos
    assert row.text_labels[-2] == row.text_ids[-1]  # the newline is learned
    assert row.lost_text == 0


def test_group_end_cuts_text_that_is_longer_than_speech_and_counts_it(chat):
    turns = [heard("", 1), said("a long answer", [1, 2, 3])]
    row = lay_out("d", turns, chat, geometry(), reply=GroupEnd(10))
    opens = int(np.flatnonzero(row.text_ids == chat.audio_bos)[-1])
    assert row.text_ids[opens + 1 : opens + 4].tolist() == chat.encode("a long answer")[:3]
    assert row.text_ids[opens + 4] == chat.audio_eos
    assert row.lost_text == len(chat.encode("a long answer")) - 3
    assert lay_out("d", turns, chat, geometry(), reply=FrameEnd()).lost_text == 0


@pytest.mark.parametrize("lead_in", [0, 2])
def test_lead_in_is_short_for_frame_end(chat, lead_in):
    turns = [heard("", 500), said("four", range(9)), heard("", 1), said("a long answer", [1])]
    one, two = (
        lay_out("d", turns, chat, geometry(), **how) for how in ({"lead_in": lead_in}, {"reply": FrameEnd(lead_in)})
    )
    for name, value in vars(one).items():
        assert np.array_equal(value, getattr(two, name)), name


def test_rules_of_nonsense_are_refused(chat):
    with pytest.raises(ValueError, match="lead_in must not be negative, got -1"):
        FrameEnd(-1)
    with pytest.raises(ValueError, match="lead_in_codes must not be negative, got -1"):
        GroupEnd(-1)
    with pytest.raises(ValueError, match=r"lead_in=2 and reply=GroupEnd\(lead_in_codes=10\) are both given"):
        reply_rule(2, GroupEnd())
    with pytest.raises(ValueError, match=r"shape \(3, 2\); the model has 1 codebooks"):
        GroupEnd().cut(np.zeros((3, 2), int), geometry())


@pytest.mark.parametrize("user_codes", [False, True])
def test_user_speech_may_carry_groups_of_pad(chat, user_codes):
    sizes = geometry(user_codes=user_codes)
    row = lay_out("d", [heard("", 500), said("ok", range(7))], chat, sizes, "S2M", system="s")
    prompt = prompt_batch([[chat.system("s"), *user_pieces(chat, UserTurn(audio=clip(500)), "S2M")]], chat, sizes)
    heard_at = prompt.feature_positions.tolist()
    assert row.feature_positions.tolist() == heard_at
    assert prompt.code_positions.tolist() == (heard_at if user_codes else [])
    assert prompt.codes.shape == ((3 if user_codes else 0), 5, 1)
    assert (prompt.codes == PAD).all()
    n = len(prompt.codes)
    assert row.code_positions[:n].tolist() == prompt.code_positions.tolist()
    assert (row.codes[:n] == PAD).all()
    assert len(row.codes) == n + 2


# -- heads that cannot say bos -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TextRefinedHead, ParallelHead])
def test_a_head_without_bos_refuses_a_learned_lead_in(chat, kind):
    options = {} if kind is ParallelHead else {"width": 16, "num_layers": 1, "num_heads": 2}
    model = tiny_speech_lm(VOCAB, codebook_size=SIZE, head=kind(16, 5, SIZE, **options)).eval()
    turns = [SpokenTurn("user", "why"), said("ok", range(7))]
    learned, plain = (
        collate_line([lay_out("d", turns, chat, model.geometry, "T2M", reply=GroupEnd(n))], 100) for n in (10, 0)
    )
    with pytest.raises(ValueError, match=r"speech label 12 .* it is bos, .* take the reply rule .*FrameEnd"):
        model(learned)
    with pytest.raises(ValueError, match=rf"{kind.__name__} cannot say bos, .* take the rule .*FrameEnd"):
        Generator(model, chat, reply=GroupEnd()).generate([UserTurn("why")], "T2M")
    # without a lead-in there is nothing that it cannot say
    assert model(plain).speech_count == 12
    assert Generator(model, chat, reply=GroupEnd(0)).generate([UserTurn("why")], "T2M", LIVELY)[0].codes is not None


# -- generation --------------------------------------------------------------------------------------------------------


class Scripted(SpeechHead):
    """Wants to say pad most, then bos, then what is written."""

    says_special = True

    def __init__(self, script, num_codebooks=1):
        super().__init__()
        self.dim, self.group_size, self.num_codebooks, self.codebook_size = 16, 5, num_codebooks, SIZE
        self.script = script

    def forward(self, hidden, labels, reply_lengths, text_embeds=None):
        raise NotImplementedError

    def new_state(self, batch_size):
        return iter(self.script)

    def step(self, hidden, state, sample, text_embeds=None):
        group = []
        for _ in range(self.group_size * self.num_codebooks):
            code = next(state)
            logits = torch.zeros(len(hidden), SIZE + 3)
            logits[:, code], logits[:, BOS], logits[:, PAD] = 2.0, 1.0 if code == BOS else 1.5, 3.0
            if code != BOS and code != EOS:
                logits[:, BOS] = 2.5 if code % 2 else 1.5
            group.append(sample(logits))
        return torch.stack(group, 1).view(len(hidden), self.group_size, self.num_codebooks)


def decode(monkeypatch, model, chat, reply, decoding=None):
    kept = []
    monkeypatch.setattr(generator_module, "build_replies", lambda decoded, *_: kept.append(decoded))
    Generator(model, chat, reply=reply).generate([UserTurn("a")], "T2M", decoding or Decoding(max_positions=20))
    return kept[0]


def test_group_end_keeps_the_codes_before_eos_and_ends_the_reply(monkeypatch, chat):
    """Lead-in of 7 codes; odd codes tempt to say bos again, and pad is wanted always."""
    script = [BOS] * 7 + [2, 1, 3] + [4, 5, 6, 7, 8] + [9, 0, EOS, 5, 5]
    model = tiny_speech_lm(VOCAB, codebook_size=SIZE, head=Scripted(script)).eval()
    fed = []
    adapter = model.code_adapter.forward
    monkeypatch.setattr(model.code_adapter, "forward", lambda codes: fed.append(codes) or adapter(codes))
    decoded = decode(monkeypatch, model, chat, GroupEnd())
    assert decoded.codes[0, :, 0].tolist() == [*script[:-2], EOS, EOS]
    assert decoded.codes[decoded.codes_kept][:, 0].tolist() == [2, 1, 3, 4, 5, 6, 7, 8, 9, 0]
    assert decoded.finished.all()
    assert decoded.text_kept.tolist() == [[True] * 3 + [False]]
    assert decoded.text_ids[0, -1] == chat.audio_eos
    # the position that ends the reply is that of <|audio_eos|> alone
    mark = model.backbone.embed(torch.tensor([[chat.audio_eos]]))
    torch.testing.assert_close(decoded.pending, mark)
    torch.testing.assert_close(decoded.pending_text, mark)


def test_bos_leads_in_whole_frames_and_is_never_said_after_a_code(monkeypatch, chat):
    head = Scripted([BOS, 4] * 3 + [2, 4, BOS, BOS] + [6, 8] * 3 + [EOS] * 4, num_codebooks=2)
    model = tiny_speech_lm(VOCAB, codebook_size=SIZE, num_codebooks=2, head=head).eval()
    decoded = decode(monkeypatch, model, chat, GroupEnd())
    frames = decoded.codes[0].tolist()
    assert frames[:4] == [[BOS, BOS]] * 3 + [[2, 4]]
    assert not (decoded.codes[0, 4:] == BOS).any()
    assert decoded.codes_kept[0, :3].tolist() == [False] * 3


def test_text_cannot_end_the_reply_while_speech_leads_in(monkeypatch, chat):
    model = tiny_speech_lm(VOCAB, codebook_size=SIZE, head=Scripted([BOS] * 15 + [EOS] * 5)).eval()
    eager = model.backbone.logits

    def marks_first(hidden):
        logits = eager(hidden)
        logits[..., [chat.audio_eos, chat.im_end]] += 1e4
        return logits

    monkeypatch.setattr(model.backbone, "logits", marks_first)
    decoded = decode(monkeypatch, model, chat, GroupEnd())
    assert decoded.text_kept.tolist() == [[True] * 3 + [False]]
    assert not decoded.codes_kept.any()


# -- heads that read the whole sequence --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    """A model whose head reads every position, text included, and shares the code adapter's table."""
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


class Listener:
    """Says where each reply's lead-in and speech end, and keeps the log-probabilities of all that was said."""

    def __init__(self, monkeypatch, lead_in, ends):
        self.lead_in, self.ends, self.text, self.speech = lead_in, ends, [], []
        text_next, speech_pick = TextStream.next, SpeechStream._pick

        def next_text(stream, logits, due):
            token = text_next(stream, logits, due)
            self.text[-1].append(logits.log_softmax(-1).gather(1, token[:, None]).squeeze(1))
            return token

        def pick_code(stream, logits):
            place = 5 * len(stream.groups) + stream.asked
            want = BOS if place < self.lead_in else EOS if place >= self.ends[len(self.speech) - 1] else None
            bias = torch.zeros(SIZE + 3)
            bias[[BOS, EOS]] = -torch.inf
            if want is not None:
                bias[:] = -torch.inf
                bias[want] = 0
            code = speech_pick(stream, logits + bias)
            self.speech[-1].append(logits.log_softmax(-1).gather(1, code[:, None]).squeeze(1))
            return code

        monkeypatch.setattr(TextStream, "next", next_text)
        monkeypatch.setattr(SpeechStream, "_pick", pick_code)

    def open(self):
        self.text.append([])
        self.speech.append([])


@pytest.mark.parametrize(
    ("rule", "ends"),
    [(FrameEnd(), (11, 8)), (FrameEnd(2), (22, 15)), (GroupEnd(7), (20, 15)), (GroupEnd(0), (10, 5))],
    ids=str,
)
def test_a_session_whose_head_reads_all_equals_one_teacher_forced_pass(monkeypatch, whole, chat, rule, ends):
    """Two turns: what was heard, said and closed before is in the head's memory as training would show it."""
    listener, decoded = Listener(monkeypatch, getattr(rule, "lead_in_codes", 0), ends), []
    plain = session_module.decode_reply
    monkeypatch.setattr(session_module, "decode_reply", lambda *a: decoded.append(plain(*a)) or decoded[-1])
    session, turns = Generator(whole, chat, reply=rule).session("S2M", decoding=LIVELY), []
    for audio in (clip(410, 1), clip(777, 2)):
        listener.open()
        session.send(audio=audio)
        reply = decoded[-1]
        assert reply.finished.all()
        words = chat.tokenizer.decode(reply.text_ids[reply.text_kept].tolist())
        turns += [
            SpokenTurn("user", "", Clip(len(audio), audio.numpy)),
            SpokenTurn("assistant", words, codes=reply.codes[reply.codes_kept].numpy()),
        ]
    row = lay_out("d", turns, chat, whole.geometry, reply=rule)
    with torch.inference_mode():
        out = whole(collate_line([row], 1000, 1000))
    lengths = row.reply_lengths.tolist()
    labels = torch.from_numpy(row.speech_labels).split(lengths)
    for stepped, forced, mine in zip(listener.speech, out.speech.logprobs.split(lengths), labels, strict=True):
        there = mine.flatten() != IGNORE
        assert len(there) == len(stepped)
        torch.testing.assert_close(torch.cat(stepped)[there], forced.flatten()[there], atol=1e-5, rtol=1e-4)
    # text: <|audio_bos|> and <|im_end|> (and the newline) of each turn are put in, not said
    stops = (row.text_labels[row.text_labels != IGNORE] == chat.audio_eos).nonzero()[0]
    starts = (row.text_labels[row.text_labels != IGNORE] == chat.audio_bos).nonzero()[0]
    for stepped, start, stop in zip(listener.text, starts, stops, strict=True):
        forced = out.text_logprobs[start + 1 : stop + 1]
        if not rule.text_goes_on:  # the end of speech put the mark in
            stepped, forced = stepped[:-1], forced[:-1]
        torch.testing.assert_close(torch.cat(stepped), forced, atol=1e-5, rtol=1e-4)


def test_padding_is_hidden_from_a_head_that_reads_all(whole, chat):
    turns = [UserTurn(text=t) for t in ("a", "some longer question", "why", "ok then")]
    generator = Generator(whole, chat, reply=GroupEnd())
    together = generator.generate(turns, "T2M", LIVELY)
    assert len({len(r.codes) for r in together}) > 1
    for i, (turn, reply) in enumerate(zip(turns, together, strict=True)):
        alone = generator.generate([turn], "T2M", replace(LIVELY, seed=LIVELY.seed + i))[0]
        assert alone.text_ids == reply.text_ids
        assert torch.equal(alone.codes, reply.codes)
        assert alone.finished == reply.finished
