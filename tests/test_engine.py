"""Many replies at once: each is what it would be alone, whoever joins, leaves, is cancelled or waits."""

import copy
import random
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fac_lightning.generation import Decoding, EngineChunk, Generator, Sampling, SpeechEngine, UserTurn, packed_linear
from fac_lightning.generation.fixed_positions import FixedPositions
from fac_lightning.generation.fixed_step import FixedStep
from fac_lightning.generation.packed_linear import PackedLinears
from fac_lightning.generation.picking import pick_rows
from fac_lightning.generation.sampling import pick
from fac_lightning.heads import (
    DelayHead,
    DepthHead,
    FunAudioHead,
    MultiTokenHead,
    NestedRefinedHead,
    ParallelHead,
    RefinedHead,
    TextRefinedHead,
)
from fac_lightning.prompts import MODES, ChatFormat
from fac_lightning.replies import FrameEnd, GroupEnd
from fac_lightning.slot_cache import SlotCache
from fac_lightning.testing import tiny_backbone
from fac_lightning.testing.families import BACKBONE_FAMILIES
from fac_lightning.testing.tiny import tiny_speech_lm
from test_generation import VOCAB, CharTokenizer, ToneTokenizer, clip
from test_streaming import Running, joined

LIVELY, FUSSY = Sampling(1.0), Sampling(0.9, top_k=9, top_p=0.9, repetition_penalty=1.3)
QWEN3 = {"model_type": "qwen3", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
QWEN3 |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


@pytest.fixture(autouse=True)
def _pack_all(monkeypatch):
    """Tiny matrices are packed too."""
    monkeypatch.setattr(packed_linear, "LEAST", 0)


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(CharTokenizer())


@pytest.fixture(scope="module")
def model():
    return tiny_speech_lm(vocab_size=VOCAB, codebook_size=12, seed=2).eval()


class Opening(nn.Module):
    """A backbone that ends its chains and replies sooner or later."""

    def __init__(self, backbone, bonus=2.5):
        super().__init__()
        self.backbone, self.bonus = backbone, torch.zeros(VOCAB)
        for mark in ("<|audio_bos|>", "<|audio_eos|>", "<|im_end|>"):
            self.bonus[CharTokenizer().convert_tokens_to_ids(mark)] = bonus

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.backbone, name)

    def logits(self, hidden):
        return self.backbone.logits(hidden) + self.bonus


@pytest.fixture(scope="module")
def whole():
    """A model whose head reads the whole sequence."""
    torch.manual_seed(1)
    return tiny_speech_lm(VOCAB, codebook_size=12, head=head_of(FunAudioHead, 1), seed=2).eval()


@pytest.fixture(scope="module", params=["reply", "whole sequence"])
def either(request):
    """A model whose head sees the reply, and one whose head reads the whole sequence."""
    return request.getfixturevalue("model" if request.param == "reply" else "whole")


@pytest.fixture(scope="module")
def opening(either):
    other = copy.deepcopy(either)
    other.backbone = Opening(other.backbone)
    return other


def jobs(count, modes=tuple(MODES), seed=0, longest=20):
    """Turns of any mode, length and sampling."""
    chance = random.Random(seed)
    return [
        (
            UserTurn("hey " * chance.randint(0, 4), clip(chance.randint(50, 900), i)),
            chance.choice(modes),
            Decoding(*chance.choices([Sampling(), LIVELY, FUSSY], k=2), chance.randint(1, longest), seed=i),
        )
        for i in range(count)
    ]


def same(one, other):
    if one.codes is None or other.codes is None:
        codes = one.codes is other.codes
    else:
        codes = torch.equal(one.codes, other.codes)
    fields = ("text", "text_ids", "finished", "chain", "transcript", "draft")
    return codes and all(getattr(one, f) == getattr(other, f) for f in fields)


def drain(engine, asked, order):
    """Submit jobs as ``order`` has it, a number of them before each step; the requests in the order of the jobs."""
    requests, coming = [], iter(asked)
    for count in order:
        requests += [engine.submit(*job) for job in islice(coming, count)]
        engine.step()
    requests += [engine.submit(*job) for job in coming]
    list(engine.run())
    return requests


# ---- identity with single runs


@pytest.mark.parametrize("order", [[], [1] * 16, [2, 0, 0, 3, 0, 1, 0, 0, 4]])
def test_every_reply_is_what_it_is_alone(opening, chat, order):
    asked, generator = jobs(14, seed=len(order), longest=16), Generator(opening, chat)
    engine = SpeechEngine(opening, chat, num_slots=4, capacity=3)
    requests = drain(engine, asked, order)
    alone = [generator.generate([turn], mode, decoding)[0] for turn, mode, decoding in asked]
    assert all(same(request.reply, reply) for request, reply in zip(requests, alone, strict=True))
    assert all(request.over and not request.running and not request.cancelled for request in requests)
    assert engine.running == engine.waiting == 0
    chained = [reply for reply in alone if reply.chain is not None]
    assert {reply.codes.numel() > 0 for reply in chained} == {True, False}, "chains that open, and that are cut"
    assert {reply.finished for reply in alone} == {True, False}


def opinionated(head):
    """Weights so large that codes depend on all that was read, and not on chance alone."""
    for weight in head.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=0.4)
    return head


def head_of(kind, num_codebooks, reply=None):
    if issubclass(kind, FunAudioHead):
        return opinionated(kind(16, 5, 12, QWEN3))
    sizes = {} if kind is ParallelHead else {"width": 16, "num_layers": 2, "num_heads": 2}
    return kind(16, 5, 12, num_codebooks, **sizes)


class Slotless(RefinedHead):
    """A head of somebody else, which knows nothing of slots."""

    def new_slots(self, num_slots):
        return None


class SlotlessWhole(FunAudioHead):
    """The same, and it reads the whole sequence."""

    new_slots = Slotless.new_slots


@pytest.mark.parametrize(
    ("kind", "num_codebooks", "reply"),
    [
        (RefinedHead, 2, FrameEnd(2)),
        (RefinedHead, 1, GroupEnd(0)),
        (TextRefinedHead, 1, FrameEnd(1)),
        (ParallelHead, 1, FrameEnd()),
        (DepthHead, 2, FrameEnd()),
        (DelayHead, 3, FrameEnd(1)),
        (MultiTokenHead, 2, FrameEnd()),
        (NestedRefinedHead, 2, FrameEnd()),
        (Slotless, 2, FrameEnd(2)),
        (FunAudioHead, 1, GroupEnd(10)),
        (FunAudioHead, 1, FrameEnd(1)),
        (SlotlessWhole, 1, GroupEnd(5)),
        (SlotlessWhole, 1, FrameEnd(1)),
    ],
)
def test_heads_and_reply_rules(chat, kind, num_codebooks, reply):
    torch.manual_seed(1)
    head = head_of(kind, num_codebooks)
    model = tiny_speech_lm(VOCAB, codebook_size=12, num_codebooks=num_codebooks, head=head, seed=3).eval()
    model.backbone = Opening(model.backbone)
    asked, generator = jobs(6, ("S2M", "T2M", "T2T", "SAC"), seed=1, longest=12), Generator(model, chat, reply=reply)
    asked = [
        (turn, mode, replace(d, speech=Sampling(1.5))) if i % 2 else (turn, mode, d)
        for i, (turn, mode, d) in enumerate(asked)
    ]
    requests = drain(SpeechEngine(model, chat, reply=reply, num_slots=3), asked, [2, 0, 1, 0, 2])
    for request, (turn, mode, decoding) in zip(requests, asked, strict=True):
        assert same(request.reply, generator.generate([turn], mode, decoding)[0])


@pytest.mark.parametrize("family", BACKBONE_FAMILIES)
def test_backbone_families(chat, family):
    model = tiny_speech_lm(VOCAB, codebook_size=12).eval()
    model.backbone = tiny_backbone(VOCAB, family=family).eval()
    asked, generator = jobs(3, ("S2M", "T2T"), longest=8), Generator(model, chat)
    requests = drain(SpeechEngine(model, chat, num_slots=2), asked, [1, 1, 1])
    for request, (turn, mode, decoding) in zip(requests, asked, strict=True):
        assert same(request.reply, generator.generate([turn], mode, decoding)[0])


def test_generate_answers_as_the_generator_does(model, chat):
    turns = [UserTurn(text="a" * i) for i in range(5)]
    decoding = Decoding(LIVELY, LIVELY, 12, seed=7)
    tokenizer = ToneTokenizer(12)
    engine = SpeechEngine(model, chat, tokenizer, num_slots=2, system_prompts={"T2M": "be brief"})
    generator = Generator(model, chat, tokenizer, system_prompts={"T2M": "be brief"})
    pairs = zip(engine.generate(turns, "T2M", decoding), generator.generate(turns, "T2M", decoding), strict=True)
    for one, other in pairs:
        assert same(one, other)
        torch.testing.assert_close(one.audio, other.audio)
        assert one.sample_rate == 1000
    assert engine.generate([]) == []


# ---- streams


@pytest.mark.parametrize("mode", ["T2M", "T2T", "SUC"])
def test_chunks_in_a_row_are_the_reply(opening, chat, mode):
    engine = SpeechEngine(opening, chat, Running(), num_slots=3)
    decoding = Decoding(LIVELY, LIVELY, 24)
    requests = [engine.submit(UserTurn("hey" * i, clip(300, i)), mode, replace(decoding, seed=i)) for i in range(4)]
    chunks = list(engine.run())
    assert all(isinstance(chunk, EngineChunk) for chunk in chunks)
    for request in requests:
        mine = [c.chunk for c in chunks if c.request is request]
        text, codes, audio = joined(mine)
        reply = request.reply
        assert mine[-1].reply is reply
        assert all(chunk.reply is None for chunk in mine[:-1])
        assert text == reply.text
        assert mode == "T2T" or (torch.equal(codes, reply.codes) and torch.equal(audio, reply.audio))
    first = [chunks.index(next(c for c in chunks if c.request is request)) for request in requests]
    last = [chunks.index(next(c for c in reversed(chunks) if c.request is request)) for request in requests]
    assert mode == "SUC" or max(first[:3]) < min(last[:3]), "replies under way are said side by side"


def test_cancelling_frees_the_slot_and_disturbs_nobody(either, chat):
    model = either
    asked = jobs(6, ("T2M", "S2M"), longest=20)
    asked = [(turn, mode, replace(decoding, max_positions=20)) for turn, mode, decoding in asked]
    engine, generator = SpeechEngine(model, chat, num_slots=2), Generator(model, chat)
    requests = [engine.submit(*job) for job in asked]
    for _ in range(3):
        engine.step()
    engine.cancel(requests[0])
    engine.cancel(requests[4])  # waits still
    assert requests[0].over
    assert requests[0].cancelled
    assert requests[4].reply is None
    assert requests[4].over
    assert engine.running == 1
    assert engine.waiting == 3
    list(engine.run())
    engine.cancel(requests[1])  # is over: nothing happens
    assert not requests[1].cancelled
    for i, (turn, mode, decoding) in enumerate(asked):
        if i != 4:
            decoding = replace(decoding, max_positions=3) if i == 0 else decoding
            assert same(requests[i].reply, generator.generate([turn], mode, decoding)[0])
    assert not requests[0].reply.finished


def test_requests_beyond_the_slots_wait_in_their_order(model, chat):
    engine = SpeechEngine(model, chat, num_slots=2, max_waiting=1)
    ask = lambda: engine.submit(UserTurn("a"), "T2T", Decoding(max_positions=4))  # noqa: E731
    requests = [ask() for _ in range(3)]  # two find free slots, one waits
    with pytest.raises(ValueError, match=r"3 requests wait for 2 free slots and max_waiting is 1: step\(\) until"):
        ask()
    engine.step()
    assert [request.running for request in requests] == [True, True, False]
    with pytest.raises(ValueError, match="1 requests wait for 0 free slots"):
        ask()
    list(engine.run())
    assert all(request.reply is not None for request in requests)
    assert engine.step() == []


# ---- conversations and prefixes


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        (RefinedHead, FrameEnd(1)),
        (FunAudioHead, GroupEnd(5)),
        (FunAudioHead, FrameEnd(2)),
        (Slotless, FrameEnd()),
        (SlotlessWhole, FrameEnd(2)),
    ],
)
@pytest.mark.parametrize("mode", ["S2M", "T2T", "STC"])
def test_conversations_are_what_they_are_alone(chat, mode, kind, reply):
    torch.manual_seed(1)
    model = tiny_speech_lm(VOCAB, codebook_size=12, head=head_of(kind, 1), seed=3).eval()
    model.backbone = Opening(model.backbone)
    decoding = Decoding(LIVELY, LIVELY, 9, seed=5)
    talks = [[{"audio": clip(410, i)}, {"text": "and " * i}, {"audio": clip(200 + 90 * i, i)}] for i in range(2)]
    engine, generator = SpeechEngine(model, chat, reply=reply, num_slots=1), Generator(model, chat, reply=reply)
    sessions = [engine.session(mode, "be brief", decoding) for _ in talks]
    for turn in range(3):
        requests = [session.submit(**talk[turn]) for session, talk in zip(sessions, talks, strict=True)]
        list(engine.run())
        for i, request in enumerate(requests):
            talks[i][turn]["reply"] = request.reply
    for talk in talks:
        alone = generator.session(mode, "be brief", decoding)
        for turn in talk:
            said = turn.pop("reply")
            assert same(said, alone.send(**turn))
    assert [session.turns for session in sessions] == [3, 3]


def test_a_conversation_goes_on_behind_a_reply_that_was_cut(either, chat):
    model = either
    engine, decoding = SpeechEngine(model, chat, num_slots=1), Decoding(LIVELY, LIVELY, 20)
    session, alone = engine.session("T2M", decoding=decoding), Generator(model, chat).session("T2M", decoding=decoding)
    request = session.submit(text="hey")
    with pytest.raises(ValueError, match=r"still being said: step\(\) until it is over, or cancel\(\) it"):
        session.submit(text="and")
    for _ in range(3):
        engine.step()
    engine.cancel(request)
    alone.decoding = replace(decoding, max_positions=3)
    assert same(request.reply, alone.send(text="hey"))
    alone.decoding = decoding
    waiting = session.submit(text="never said")
    engine.cancel(waiting)  # it had not begun: nothing of it is remembered
    request = session.submit(text="and")
    list(engine.run())
    assert same(request.reply, alone.send(text="and"))
    with pytest.raises(ValueError, match="nothing to answer"):
        session.submit()
    with pytest.raises(ValueError, match="unknown mode 'X'"):
        engine.session("X")


def test_what_was_said_and_a_system_prompt_are_read_once(monkeypatch, model, chat):
    engine = SpeechEngine(model, chat, num_slots=2)
    read, plain = [], model.backbone.step_slots

    def count(embeds, slots, row=None):
        read.append(embeds.shape[0] * embeds.shape[1])
        return plain(embeds, slots, row)

    monkeypatch.setattr(model.backbone, "step_slots", count)
    session = engine.session("T2T", "be brief", Decoding(max_positions=2))
    session.submit(text="hey")
    list(engine.run())
    user = [chat.user_open(), chat.encode("hey"), chat.close(), chat.assistant_open()]
    assert read == [len(chat.system("be brief")), sum(map(len, user)), 1]
    read.clear()
    session.submit(text="hey")  # the last token of the reply, what closes it, and the turn
    list(engine.run())
    assert read == [1 + len(chat.close()) + sum(map(len, user)), 1]
    read.clear()
    engine.session("T2T", "be brief", Decoding(max_positions=2)).submit(text="hey")
    list(engine.run())
    assert read == [sum(map(len, user)), 1]


def test_a_head_of_the_whole_sequence_reads_once_what_was_there_before(monkeypatch, whole, chat):
    engine, read, plain = SpeechEngine(whole, chat, num_slots=2), [], whole.head.read

    def count(hidden, *rest, **options):
        read.append(hidden.shape[1])
        plain(hidden, *rest, **options)

    monkeypatch.setattr(whole.head, "read", count)
    decoding = Decoding(max_positions=2)
    session = engine.session("T2M", "be brief", decoding)
    said = session.submit(text="hey")
    list(engine.run())
    user = [chat.user_open(), chat.encode("hey"), chat.close(), chat.assistant_open(), [chat.audio_bos]]
    turn = sum(map(len, user))  # of its last position the head says a group
    assert read == [len(chat.system("be brief")), turn - 1]
    assert len(said.reply.codes) == 2 * 5, "both positions were said, and are not read"
    read.clear()
    session.submit(text="hey")  # the last position of the reply, what closes it, and the turn
    list(engine.run())
    assert read == [1 + len([chat.audio_eos, *chat.close()]) + turn - 1]
    read.clear()
    engine.submit(UserTurn("hey"), "T2T", decoding)  # never speaks
    engine.session("T2M", "be brief", decoding).submit(text="hey")
    list(engine.run())
    assert read == [turn - 1]


def test_rows_of_a_head_of_the_whole_sequence_step_together(monkeypatch, whole, chat):
    engine, rows, plain = SpeechEngine(whole, chat, num_slots=3), [], whole.head.step
    monkeypatch.setattr(whole.head, "step", lambda hidden, *rest: rows.append(len(hidden)) or plain(hidden, *rest))
    for i in range(3):
        engine.submit(UserTurn("hey " * i), "T2M", Decoding(max_positions=4))
    list(engine.run())
    assert rows[0] == 3
    assert 1 < len(rows) <= 4, "one call a position"


def test_the_head_runs_only_where_speech_is_due(monkeypatch, model, chat):
    engine, rows, plain = SpeechEngine(model, chat, num_slots=3), [], model.head.step
    monkeypatch.setattr(model.head, "step", lambda hidden, *rest: rows.append(len(hidden)) or plain(hidden, *rest))
    engine.submit(UserTurn("a"), "T2T", Decoding(max_positions=6))
    engine.step()
    assert rows == []
    spoken = engine.submit(UserTurn("b"), "T2M", Decoding(speech=LIVELY, max_positions=40, seed=3))
    list(engine.run())
    groups = -(-(len(spoken.reply.codes) + 1) // 5)
    assert rows == [1] * groups
    assert spoken.reply.finished


# ---- what is refused, and what is left as it was


def test_what_cannot_be_done_is_refused_when_it_is_asked(model, chat):
    silent, deaf = copy.deepcopy(model), copy.deepcopy(model)
    silent.head, deaf.encoder, deaf.feature_adapter = None, None, None
    with pytest.raises(ValueError, match="the model has no head, so it cannot speak"):
        SpeechEngine(silent, chat).submit(UserTurn("a"), "T2M")
    assert SpeechEngine(silent, chat).generate([UserTurn("a")], "T2T", Decoding(max_positions=2))
    with pytest.raises(ValueError, match="no encoder and feature_adapter, so it hears nothing"):
        SpeechEngine(deaf, chat).submit(UserTurn(audio=clip(90)), "S2M")
    deaf.code_adapter = None
    with pytest.raises(ValueError, match="no code_adapter, so it cannot speak"):
        SpeechEngine(deaf, chat).submit(UserTurn("a"), "T2M")
    with pytest.raises(ValueError, match="mode S2M hears the user, but the turn has no audio"):
        SpeechEngine(model, chat).submit(UserTurn("a"))
    with pytest.raises(ValueError, match=r"system_prompts has unknown modes \['S2S'\]"):
        SpeechEngine(model, chat, system_prompts={"S2S": "x"})
    with pytest.raises(ValueError, match="num_slots must be at least 1 and max_waiting at least 0, got 0 and None"):
        SpeechEngine(model, chat, num_slots=0)
    with pytest.raises(ValueError, match="RefinedHead cannot say bos"):
        SpeechEngine(model, chat, reply=GroupEnd())


def test_a_backbone_without_slots_is_refused(model, chat):
    class Plain(type(model.backbone)):
        def new_slots(self, num_slots, capacity):
            return super(type(model.backbone), self).new_slots(num_slots, capacity)

    other = copy.deepcopy(model)
    other.backbone.__class__ = Plain
    with pytest.raises(ValueError, match="Plain has no new_slots and step_slots, which many streams at a time need"):
        SpeechEngine(other, chat)


def test_the_engine_leaves_the_model_as_it_was(model, chat):
    own = copy.deepcopy(model).train()
    before = copy.deepcopy(own.state_dict())
    attributes = {name: set(vars(m)) for name, m in own.named_modules()}
    engine = SpeechEngine(own, chat, num_slots=2)
    for _ in range(3):
        engine.submit(UserTurn(audio=clip(300)), "S2M", Decoding(max_positions=4))
    for _ in engine.run():
        assert all(m.training for m in own.modules())
        assert not torch.is_inference_mode_enabled()
    assert {name: set(vars(m)) for name, m in own.named_modules()} == attributes
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())


@pytest.mark.parametrize("fixed", [False, True])
def test_a_prompt_that_fails_leaves_the_others(either, chat, fixed):
    model = either
    engine = fixed_engine(model, chat, num_slots=2) if fixed else SpeechEngine(model, chat, num_slots=2)
    decoding = Decoding(LIVELY, LIVELY, 12, seed=3)
    other = engine.submit(UserTurn("a"), "T2M", decoding)
    engine.step()
    broken = engine.submit(UserTurn("b"), "T2M")
    broken.pieces[1] = [VOCAB + 5]  # no such token
    with pytest.raises(IndexError):
        engine.step()
    assert broken.over
    list(engine.run())
    assert same(other.reply, Generator(model, chat).generate([UserTurn("a")], "T2M", decoding)[0])


# ---- its parts


def test_rows_are_picked_by_their_own_sampling():
    logits, uniform = torch.randn(6, 20), torch.rand(6)
    seen = torch.rand(6, 20) > 0.5
    kinds = [Sampling(), LIVELY, FUSSY, LIVELY, Sampling(), FUSSY]
    alone = [pick(logits[i : i + 1], kinds[i], uniform[i : i + 1], seen[i : i + 1]) for i in range(6)]
    assert torch.equal(pick_rows(logits, kinds, uniform, seen), torch.cat(alone))


def test_room_grows_and_a_row_that_leaves_is_replaced_by_the_last():
    slots, kept = SlotCache(3, 2), torch.randn(3, 2, 70, 4)
    for row in range(3):
        assert slots.join() == row
        slots.open(60 + row, row)
        part = kept[row : row + 1, :, : 60 + row]
        slots.attend(0, part, part, part)
        slots.close()
    assert slots.capacity == 64
    slots.leave(0)
    assert slots.lengths == [62, 61]
    for row, number in enumerate((2, 1)):
        keys, values = slots.copied(row).layers[0]
        assert torch.equal(keys, kept[number, :, : slots.lengths[row]])
        assert torch.equal(values, keys)
    slots.open()
    slots.close()
    assert slots.lengths == [63, 62]
    wide = SlotCache(1, 8, piece=10)
    wide.make_room(8)
    assert wide.capacity == 8
    wide.make_room(21)
    assert wide.capacity == 30
    with pytest.raises(ValueError, match="at least one slot and one position, got 0 and 5"):
        SlotCache(0, 5)


class HostWaits(TorchDispatchMode):
    """Notes operations that would make a host wait for a GPU, or whose shapes depend on values."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.seen, self.count = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if name in self.WAIT or by_mask or name == "lift_fresh":  # the last is what torch.tensor does
            self.seen.append(name)
        self.count += 1
        return func(*args, **(kwargs or {}))


def fixed_engine(model, chat, reply=None, backend=None, **sizes):
    """An engine whose steps are of fixed shapes, operation by operation or compiled."""
    engine = SpeechEngine(model, chat, reply=reply, **sizes)
    engine._positions = FixedPositions(model, chat, reply or FrameEnd(), engine.slots, compile_backend=backend)
    return engine


@pytest.mark.parametrize("kind", [FunAudioHead, SlotlessWhole])
def test_a_conversation_begins_anew_behind_a_prompt_that_failed(chat, kind):
    torch.manual_seed(1)
    model = tiny_speech_lm(VOCAB, codebook_size=12, head=head_of(kind, 1), seed=2).eval()
    engine, decoding = SpeechEngine(model, chat, num_slots=1), Decoding(LIVELY, LIVELY, 6)
    session = engine.session("T2M", decoding=decoding)
    session.submit(text="b").pieces[1] = [VOCAB + 5]  # no such token
    with pytest.raises(IndexError):
        engine.step()
    request = session.submit(text="hey")
    list(engine.run())
    assert same(request.reply, Generator(model, chat).session("T2M", decoding=decoding).send(text="hey"))


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mistral"])
def test_a_step_of_fixed_shapes_is_the_plain_one(model, chat, family):
    other = copy.deepcopy(model)
    other.backbone = Opening(tiny_backbone(VOCAB, family=family).eval())
    asked = jobs(9, seed=4, longest=14)
    engines = SpeechEngine(other, chat, num_slots=3, capacity=5), fixed_engine(other, chat, num_slots=3, capacity=5)
    pairs = zip(*(drain(engine, asked, [1, 2, 0, 1, 0, 1]) for engine in engines), strict=True)
    assert all(same(one.reply, another.reply) for one, another in pairs)


@pytest.mark.parametrize(
    ("kind", "num_codebooks", "reply"),
    [
        (RefinedHead, 2, FrameEnd(2)),
        (RefinedHead, 1, GroupEnd(0)),
        (TextRefinedHead, 1, FrameEnd(1)),
        (ParallelHead, 1, FrameEnd()),
        (DepthHead, 2, FrameEnd()),
        (DelayHead, 3, FrameEnd(1)),
        (MultiTokenHead, 2, FrameEnd()),
        (NestedRefinedHead, 2, FrameEnd()),
        (FunAudioHead, 1, FrameEnd(1)),
        (FunAudioHead, 1, GroupEnd(5)),
    ],
)
def test_a_whole_position_of_fixed_shapes_never_makes_the_host_wait(chat, monkeypatch, kind, num_codebooks, reply):
    torch.manual_seed(1)
    head = head_of(kind, num_codebooks)
    model = tiny_speech_lm(VOCAB, codebook_size=12, num_codebooks=num_codebooks, head=head, seed=3).eval()
    model.backbone = Opening(model.backbone)
    asked = [
        (turn, mode, replace(d, speech=Sampling(1.5) if i % 2 else FUSSY))
        for i, (turn, mode, d) in enumerate(jobs(7, ("S2M", "T2M", "T2T", "SAC"), seed=1, longest=16))
    ]
    waits, plain = HostWaits(), FixedStep.compute

    def compute(*args):
        with waits:
            return plain(*args)

    monkeypatch.setattr(FixedStep, "compute", compute)
    fixed = drain(fixed_engine(model, chat, reply, num_slots=3), asked, [2, 0, 1, 0, 2])
    assert waits.seen == []
    assert waits.count > 0
    one_by_one = drain(SpeechEngine(model, chat, reply=reply, num_slots=3), asked, [2, 0, 1, 0, 2])
    assert all(same(one.reply, another.reply) for one, another in zip(fixed, one_by_one, strict=True))
    assert any(request.reply.codes is not None and len(request.reply.codes) for request in fixed)


@pytest.mark.parametrize("kind", [RefinedHead, FunAudioHead])
def test_a_compiled_step_is_the_plain_one(chat, kind):
    sizes = (1, 16, 1, 2) if kind is RefinedHead else (QWEN3 | {"num_hidden_layers": 1},)
    model = tiny_speech_lm(VOCAB, group_size=2, codebook_size=12, head=kind(16, 2, 12, *sizes), seed=3)
    model.eval().backbone = Opening(model.backbone)
    turns = [UserTurn("hey " * i) for i in range(3)]
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for decoding in (Decoding(max_positions=7), Decoding(LIVELY, FUSSY, 7, seed=5)):
        engine = SpeechEngine(model, chat, num_slots=2, compile_step=True, compile_backend=keep)
        plain = SpeechEngine(model, chat, num_slots=2)
        pairs = zip(engine.generate(turns, "T2M", decoding), plain.generate(turns, "T2M", decoding), strict=True)
        assert all(same(one, other) for one, other in pairs)
    assert 2 <= len(graphs) <= 4, "of each sampling a whole graph, and one for when none speaks"


@pytest.mark.parametrize("fixed", [False, True])
def test_composed_codes_say_what_the_adapter_says(chat, fixed):
    model = tiny_speech_lm(VOCAB, codebook_size=12, seed=2).eval()
    asked = jobs(5, ("S2M", "T2M", "T2T"), seed=2, longest=12)
    engine = SpeechEngine(model, chat, num_slots=3, compose=True)
    if fixed:
        engine._positions = FixedPositions(model, chat, FrameEnd(), engine.slots, engine._positions.codes)
    plain = drain(SpeechEngine(model, chat, num_slots=3), asked, [1, 2])

    def empty(codes):
        assert len(codes) == 0, "the adapter itself is asked for prompts alone, which hold no codes"
        return torch.zeros(0, 16)

    model.code_adapter.forward = empty
    pairs = zip(plain, drain(engine, asked, [1, 2]), strict=True)
    assert all(same(one.reply, other.reply) for one, other in pairs)


def test_steps_of_fixed_shapes_are_refused_where_there_are_none(model, chat):
    with pytest.raises(ValueError, match="cuda_graph needs a model on a CUDA device, and it is on cpu; move it first"):
        SpeechEngine(model, chat, cuda_graph=True)
    for kind in (SlotlessWhole, Slotless):
        other = tiny_speech_lm(VOCAB, codebook_size=12, head=head_of(kind, 1)).eval()
        with pytest.raises(ValueError, match=f"step together with fixed shapes, and {kind.__name__} has none"):
            SpeechEngine(other, chat, compile_step=True)


def test_a_head_of_the_whole_sequence_has_room_for_all_positions_from_the_start(whole, chat):
    engine = fixed_engine(whole, chat, num_slots=1, capacity=200)
    assert [cache.capacity for cache in engine._positions._voices.slots] == [1280]  # 5 x 200, in pieces of 5 x 64


@pytest.mark.parametrize("mode", ["S2M", "STC"])
def test_a_conversation_goes_on_by_steps_of_fixed_shapes(opening, chat, mode):
    model = opening
    decoding = Decoding(LIVELY, FUSSY, 9, seed=5)
    plain, fixed = SpeechEngine(model, chat, num_slots=2), fixed_engine(model, chat, num_slots=2)
    replies = []
    for engine in (plain, fixed):
        talks = [engine.session(mode, decoding=replace(decoding, seed=i)) for i in range(3)]
        for turn in range(2):
            requests = [talk.submit(audio=clip(200 + 100 * i + turn, i)) for i, talk in enumerate(talks)]
            list(engine.run())
            replies += [request.reply for request in requests]
    assert all(same(one, other) for one, other in zip(replies[:6], replies[6:], strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the captured step cannot run")
def test_a_captured_step_is_the_plain_one(either, chat):
    other = copy.deepcopy(either).cuda()
    asked = jobs(6, ("S2M", "T2M", "T2T"), longest=12)
    plain, captured = (SpeechEngine(other, chat, num_slots=3, capacity=8, cuda_graph=graph) for graph in (False, True))
    pairs = zip(drain(plain, asked, [1, 1, 1]), drain(captured, asked, [1, 1, 1]), strict=True)
    assert all(same(one.reply, another.reply) for one, another in pairs)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_packed_weights_follow_the_parameters(monkeypatch):
    layer, inputs = nn.Linear(24, 40), torch.randn(2, 3, 24)
    packed, parameter = PackedLinears(layer), layer.weight
    with torch.inference_mode():
        for _ in range(2):
            with packed:
                assert layer.weight is not parameter
                product = layer(inputs)
                part = nn.functional.linear(inputs, layer.weight.unflatten(0, (5, 8))[1])
                other = nn.functional.linear(inputs, torch.ones(40, 24))  # no parameter
                assert type(layer.weight.sum()) is torch.Tensor
            assert layer.weight is parameter
            torch.testing.assert_close(product, layer(inputs))
            torch.testing.assert_close(part, inputs @ layer.weight[8:16].T)
            torch.testing.assert_close(other, inputs.sum(-1, keepdim=True).expand(-1, -1, 40))
            assert type(product) is torch.Tensor
            assert packed.copies == 2
            nn.init.normal_(layer.weight)  # in its place
        with PackedLinears(layer, enabled=False) as idle:
            assert layer.weight is parameter
        with packed, pytest.raises(RuntimeError):
            layer(inputs[..., :5])
        monkeypatch.setattr(packed_linear, "LEAST", 1000)
        with PackedLinears(layer) as small:
            layer(inputs)
    assert layer.weight is parameter
    assert idle.copies == small.copies == 0
