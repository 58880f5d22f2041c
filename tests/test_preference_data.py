"""Preference pairs: on disk, laid out, weighed, drawn by task, packed, and their stored reference."""

import json
import logging
import pickle
from dataclasses import replace
from itertools import islice

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fac_lightning.config import RecipeError, ensure, load
from fac_lightning.data import (
    Clip,
    Dialogue,
    DialogueWriter,
    PairCorpus,
    PreferenceDataModule,
    PreferencePair,
    PreferenceWriter,
    ReferenceStore,
    SwappedAnswers,
    TextTokenizerTraining,
    Turn,
    TurnAnswer,
    WrittenAnswer,
    read_dialogues,
    read_pairs,
)
from fac_lightning.data.errors import BadData
from fac_lightning.data.intake import IntakeLimits
from fac_lightning.data.mixing import mixing_shares
from fac_lightning.data.preference_rows import PairCollator
from fac_lightning.data.preference_stream import FixedPairs, PairStream, plan_pairs
from fac_lightning.data.stream import StreamPlace
from fac_lightning.data.turn_codes import TurnCodes
from fac_lightning.losses import answer_counts
from fac_lightning.prompts import ChatFormat
from fac_lightning.replies import GroupEnd
from fac_lightning.testing.dialogues import make_dialogues
from fac_lightning.text_tokenizer import load_text_tokenizer
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import IGNORE, AnswerSums, SpeechCodes, SpeechGeometry
from fac_lightning.weights import CheckpointError

GEOMETRY = SpeechGeometry(16000, 3200, 5, 1, 50, 400)


class LoudnessTokenizer(SpeechTokenizer):
    """Codes are the loudness of a frame."""

    def __init__(self):
        super().__init__()
        self.sample_rate, self.hop_length, self.num_codebooks, self.codebook_size = 8000, 320, 1, 50

    def encode(self, audio, lengths=None):
        frames = torch.nn.functional.pad(audio, (0, -audio.shape[1] % 320)).unflatten(1, (-1, 320)).abs().sum(-1)
        return SpeechCodes(frames.long()[..., None] % 50, -(-lengths // 320))

    def decode(self, codes, lengths=None):
        raise NotImplementedError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Spoken dialogues of two rounds, pairs of two tasks over them, and a text tokenizer."""
    folder = tmp_path_factory.mktemp("pairs")
    make_dialogues(folder / "talk", 12, rounds=2)
    SwappedAnswers(str(folder / "talk"), str(folder / "train"), task="answer").run()
    with PreferenceWriter(folder / "more", folder / "talk") as writer:
        for i in range(3):
            first = TurnAnswer(f"dummy-{i}", 1)
            writer.write(PreferencePair(f"style-{i}", f"dummy-{i}", 1, first, WrittenAnswer("no"), "style", weight=0.5))
    TextTokenizerTraining([str(folder / "talk")], 360, str(folder / "tokenizer")).run()
    return folder


@pytest.fixture
def build(world):
    def build(**changes):
        arguments = {
            "train": [str(world / "train"), str(world / "more")],
            "text_tokenizer": str(world / "tokenizer"),
            "val": str(world / "more"),
            "tokenizer": LoudnessTokenizer(),
            "geometry": GEOMETRY,
            "capacity": 512,
            "look_ahead": 4,
        }
        module = PreferenceDataModule(**{**arguments, **changes})
        module.setup("fit")
        return module

    return build


@pytest.fixture
def chat(world):
    return ChatFormat(load_text_tokenizer(str(world / "tokenizer")))


def test_pairs_come_back_as_they_were_written(tmp_path):
    pairs = [
        PreferencePair("a", "d", 1, TurnAnswer("d", 1), WrittenAnswer("no"), "x", "S2T", 0.5, {"judge": "wer"}),
        PreferencePair("b", "d", 3, WrittenAnswer("yes"), TurnAnswer("e", 1)),
    ]
    with PreferenceWriter(tmp_path / "pairs", tmp_path / "talk") as writer:
        writer.write(pairs[0])
    with (tmp_path / "pairs" / "pairs.jsonl").open("a") as file:
        file.write('{"id": "cut sho')  # a crash
    with PreferenceWriter(tmp_path / "pairs", tmp_path / "talk") as writer:
        assert writer.done == {"a"}
        writer.write(pairs[1])
        with pytest.raises(ValueError, match=r"pair 'a' is already in .*ids must be unique"):
            writer.write(pairs[0])
    found = list(read_pairs(tmp_path / "pairs"))
    assert [pair for _, pair in found] == pairs
    assert all(folder.resolve() == (tmp_path / "talk").resolve() for folder, _ in found)
    assert list(read_pairs(tmp_path / "pairs" / "pairs.jsonl")) == found
    with PreferenceWriter(tmp_path / "own") as writer:
        writer.write(pairs[0])
    assert next(read_pairs(tmp_path / "own"))[0].resolve() == (tmp_path / "own").resolve()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a"}', r"pairs.jsonl, line 1: no preference pair \(KeyError: 'prompt'\); a line is"),
        ('{"id": "a", "prompt": {"dialogue": "d", "turns": 1}, "chosen": {"text": "x"}, "rejected": {}}', "'text'"),
        ("nonsense", "FAC-D15: not a JSON object with 'id' in .*pairs.jsonl, line 1: got 'nonsense'"),
    ],
)
def test_a_bad_line_is_told(tmp_path, line, message):
    (tmp_path / "pairs.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        list(read_pairs(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"name a folder of preference pairs \(with pairs.jsonl\)"):
        list(read_pairs(tmp_path / "nowhere"))


def test_swapped_answers_prefer_the_own_answer_to_one_with_another_text(world, tmp_path):
    texts = {d.id: [t.text for t in d.turns] for d in read_dialogues(world / "talk", audio=False)}
    pairs = [pair for _, pair in read_pairs(world / "train")]
    assert len(pairs) == 12
    for pair in pairs:
        assert pair.chosen == TurnAnswer(pair.dialogue, 3)
        assert pair.turns == 3
        assert texts[pair.rejected.dialogue][3] != texts[pair.dialogue][3]
    first, again = (tmp_path / name for name in ("first", "again"))
    for out in (first, again, again):  # the second call finds its work done
        assert SwappedAnswers(str(world / "talk"), str(out), limit=4, seed=2).run() == {"pairs": 4}
    assert (first / "pairs.jsonl").read_text() == (again / "pairs.jsonl").read_text()
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        SwappedAnswers("x", "y", limit=0)


def test_swapping_needs_two_answers(tmp_path):
    with DialogueWriter(tmp_path / "talk") as writer:
        for i in range(2):
            writer.write(Dialogue(str(i), (Turn("user", "Hi."), Turn("assistant", "Hello."))))
    with pytest.raises(ValueError, match="has 1 different last answers to a user; swapping needs two or more"):
        SwappedAnswers(str(tmp_path / "talk"), str(tmp_path / "out")).run()


@pytest.mark.parametrize("reply", [None, GroupEnd(5)], ids=["frame_end", "group_end"])
def test_both_answers_stand_behind_one_prompt_and_only_they_weigh(build, chat, reply):
    corpus = build(reply=reply).train_corpus
    pair = corpus.pair(0)
    chosen, rejected = pair.chosen, pair.rejected
    assert chosen.start == rejected.start
    same = chosen.start + 1
    assert (chosen.row.text_ids[:same] == rejected.row.text_ids[:same]).all()
    folder, named = corpus.pairs[0]
    turns = next(d.turns for d in read_dialogues(folder, audio=False) if d.id == named.dialogue)
    for answer, text in ((chosen, turns[3].text), (rejected, None)):
        row = answer.row
        assert (row.text_labels[: answer.start] != IGNORE).any()  # the first round, which both share
        assert not answer.text_weights[: answer.start].any()
        assert not answer.speech_weights[row.speech_positions < answer.start].any()
        labels = row.text_labels[(answer.text_weights > 0) & (row.text_labels != chat.sil)]
        assert text is None or chat.decode(labels.tolist()).strip() == text
        assert set(labels.tolist()) >= {chat.audio_bos, chat.audio_eos, chat.im_end}
        weighed = row.speech_labels[answer.speech_weights > 0]
        assert 50 not in weighed  # the lead-in
        assert (weighed == 51).any()  # the end
        assert IGNORE not in weighed


def test_silence_after_the_words_counts_once_or_as_told(chat, tmp_path):
    time = np.arange(32000) / 16000
    hum = (0.1 * np.sin(900 * time)).astype(np.float32)
    with DialogueWriter(tmp_path) as writer:
        spoken = Turn("assistant", "red", hum, 16000)
        writer.write(Dialogue("d", (Turn("user", "What?"), spoken)))
    with PreferenceWriter(tmp_path) as writer:
        writer.write(PreferencePair("p", "d", 1, TurnAnswer("d", 1), WrittenAnswer("blue")))
    corpus = PairCorpus([tmp_path], chat, GEOMETRY, LoudnessTokenizer(), sil_weight=0.5)
    answer = corpus.pair(0).chosen
    weights = answer.text_weights[answer.row.text_labels == chat.sil]
    assert len(weights) > 3
    assert weights.tolist() == [1.0] + [0.5] * (len(weights) - 1)
    whole = PairCorpus([tmp_path], chat, GEOMETRY, LoudnessTokenizer()).pair(0).chosen.text_weights
    assert whole.sum() == answer.text_weights.sum() - 0.5 * (len(weights) - 1)


def test_a_pair_with_one_spoken_answer_has_one_system_prompt(build):
    corpus = build(train=build().val_path).train_corpus
    pair = corpus.pair(0)
    assert pair.chosen.row.id.endswith("/S2M")
    assert pair.rejected.row.id.endswith("/S2T")
    same = pair.chosen.start + 1
    assert (pair.chosen.row.text_ids[:same] == pair.rejected.row.text_ids[:same]).all()
    counts = answer_counts(build().train_dataloader().make_stream(1, 0, 1, 0).collate([pair]))
    assert counts.speech[0, 0] > 0
    assert counts.speech[1, 0] == 0
    assert counts.text.min() > 0


@pytest.mark.parametrize("mode", ["S2T", "T2M", "T2T"])
def test_other_modes(build, mode):
    module = build(mode=mode, geometry=None if mode == "T2T" else GEOMETRY)
    batch = next(iter(module.train_dataloader()))
    assert bool(batch.line.speech_labels.numel()) == mode.endswith("M")
    assert bool(len(batch.line.audio.lengths)) == mode.startswith("S")
    assert answer_counts(batch).text.min() > 0


def test_a_batch_names_the_answer_of_every_label(build):
    module = build()
    batch = next(iter(module.train_dataloader()))
    pairs = batch.num_pairs
    assert pairs == len(batch.ids) > 1
    assert len(batch.line.lengths) == 2 * pairs
    rows = torch.arange(2 * pairs).repeat_interleave(batch.line.lengths)
    order = torch.stack([torch.arange(pairs), pairs + torch.arange(pairs)], 1).flatten()  # chosen, rejected, chosen ..
    assert torch.equal(batch.text_answers, order[rows])
    assert torch.equal(batch.speech_answers, order[rows[batch.line.speech_positions]])
    assert batch.text_weights.shape == batch.line.text_ids.shape
    assert batch.speech_weights.shape == batch.line.speech_labels.shape
    assert [name.split("/")[0] for name in batch.line.ids] == [name for name in batch.ids for _ in "wl"]
    assert batch.task_names == ("answer", "style")
    assert batch.task_totals.tolist() == batch.tasks.bincount(minlength=2).tolist()
    assert batch.weights.tolist() == [0.5 if name.startswith("style") else 1.0 for name in batch.ids]
    assert batch.reference is None
    moved = batch.to("cpu")
    assert moved.line.lengths.device.type == "cpu"
    assert torch.equal(moved.line.text_ids, batch.line.text_ids)


def test_totals_are_those_of_the_whole_step(build):
    module = build()
    trainer = lightning.Trainer(accumulate_grad_batches=3, logger=False, enable_checkpointing=False, max_steps=1)
    module.trainer = trainer
    lines = list(islice(module.train_dataloader(), 3))
    totals = sum(line.tasks.bincount(minlength=2) for line in lines)
    assert all(torch.equal(line.task_totals, totals) for line in lines)


def test_tasks_are_drawn_by_temperature(build):
    assert mixing_shares([80, 20], 1).tolist() == [0.8, 0.2]
    assert mixing_shares([81, 16], 2).tolist() == pytest.approx([9 / 13, 4 / 13])
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        mixing_shares([1], 0)
    module = build()
    for temperature, share in ((1.0, 0.2), (1e6, 0.5)):
        drawn = [p.source for p in islice(plan_pairs(module.train_corpus, module.budget, 0, temperature), 400)]
        assert np.mean(drawn) == pytest.approx(share, abs=0.06)


def test_each_task_goes_round_in_a_new_order(build):
    module = build()
    drawn = [p.row for p in islice(plan_pairs(module.train_corpus, module.budget, 0), 60) if p.source == 0]
    assert len(set(drawn[:12])) == len(set(drawn[12:24])) == 12
    assert drawn[:12] != drawn[12:24]
    other = [p.row for p in islice(plan_pairs(module.train_corpus, module.budget, 1), 60) if p.source == 0]
    assert drawn[:12] != other[:12]


def test_shards_deal_out_one_sequence(build):
    module = build()
    whole = [p.row for p in islice(plan_pairs(module.train_corpus, module.budget, 0), 12)]
    shards = [plan_pairs(module.train_corpus, module.budget, 0, 1.0, shard, 3) for shard in range(3)]
    assert [next(shard).row for _ in range(4) for shard in shards] == whole


def test_lines_are_the_same_again_behind_a_skip_and_in_workers(build):
    module = build()
    stream = module._stream(2)
    first = [[line.ids for line in window] for window in islice(stream, 4)]
    again = [[line.ids for line in window] for window in islice(module._stream(2, start=StreamPlace(windows=2)), 2)]
    assert again == first[2:]
    loader = DataLoader(stream, batch_size=None, sampler=stream.windows(), num_workers=2)
    assert [[line.ids for line in window] for window in islice(loader, 4)] == first
    assert isinstance(pickle.loads(pickle.dumps(stream)), PairStream)


def test_a_resumed_run_goes_on_behind_the_last_line(build):
    module = build()
    ids = [line.ids for line in islice(module.train_dataloader(), 5)]
    module.trainer = lightning.Trainer(logger=False, enable_checkpointing=False, max_steps=9)
    module.trainer.fit_loop.epoch_loop.batch_progress.total.processed = 3
    assert [line.ids for line in islice(module.train_dataloader(), 2)] == ids[3:]


def test_a_changed_stream_is_refused_on_resuming(build):
    state = build().state_dict()
    build().load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"cannot go on exactly \(temperature: 1.0 -> 2.0\)"):
        build(temperature=2.0).load_state_dict(state)


def test_pairs_go_on_from_a_virtual_epoch(build):
    module = build(virtual_epoch=2)
    windows = list(islice(module._stream(2).windows(), 5))
    assert [w.virtual_epoch for w in windows] == [0, 0, 1, 1, 2]
    start = StreamPlace(windows[3].virtual_epoch, windows[3].number, *windows[3].begin)
    assert windows[3].begin > (0, 0)
    again = list(islice(module._stream(2, start=start).windows(), 2))
    assert again == windows[3:]


def test_a_pair_that_cannot_be_read_is_left_out(build):
    def broken():
        raise BadData("FAC-A05", "cut in half", "user.wav", "1", "2", "Fetch it again.")

    module = build(max_bad_share=1.0)
    whole = list(islice(module._stream(), 6))
    pair = module.train_corpus.pair
    name = whole[0][0].ids[0]

    def some(index):
        found = pair(index)
        if found.id != name:
            return found
        return replace(found, chosen=_bad(found.chosen, broken), rejected=_bad(found.rejected, broken))

    module.train_corpus.pair = some
    found = list(islice(module._stream(), 6))
    for (line,), (good,) in zip(found, whole, strict=True):
        assert line.ids == tuple(one for one in good.ids if one != name)
        assert int(line.task_totals.sum()) == len(line.ids) == len(line.line.sources)
        assert len(line.line.left_out) == len(good.ids) - len(line.ids)
    module.train_corpus.pair = lambda index: replace(pair(index), chosen=_bad(pair(index).chosen, broken))
    (muted,) = next(iter(module._stream()))
    assert muted.num_pairs == 1
    assert muted.weights.tolist() == [0.0]
    assert int(muted.task_totals.sum()) == 0
    assert muted.line.sources == ()
    assert muted.line.audio.audio.abs().max() == 0


def test_limits_hold_for_the_dialogues_of_pairs(build):
    with pytest.raises(BadData, match=r"FAC-A00.*1\.00"):
        build(limits=IntakeLimits(max_seconds=0.1))
    whole = build(limits=IntakeLimits(max_seconds=60.0))
    assert len(whole.train_corpus) == len(build().train_corpus) > 0


def _bad(answer, load):
    return replace(answer, row=replace(answer.row, clips=tuple(Clip(c.num_samples, load) for c in answer.row.clips)))


def test_validation_sees_every_pair_once(build):
    module = build()
    assert sorted(i for line in module.val_dataloader() for i in line.ids) == ["style-0", "style-1", "style-2"]
    everything = [i for line in module.every_pair() for i in line.ids]
    assert len(everything) == 15 + 3
    halves = [
        FixedPairs(module.val_corpus, module._collator(module.val_corpus), module.budget, 4, None, i, 2) for i in (0, 1)
    ]
    assert len(halves[0]) == len(halves[1])
    assert build(val=None).val_dataloader is None


def test_describe_counts_tasks(build):
    report = build(temperature=1e9).describe()
    assert report["train"]["pairs"] == {"answer": 12, "style": 3}
    assert report["train"]["shares"] == {"answer": 0.5, "style": 0.5}
    assert 0 < report["train"]["fill"] <= 1


def stored(module, folder):
    """Made-up log-probabilities of all pairs, by id."""
    ids = [i for line in module.every_pair() for i in line.ids]
    text, speech = torch.arange(2.0 * len(ids)).view(2, -1), -torch.arange(2.0 * len(ids)).view(2, -1)
    module.save_reference(folder, AnswerSums(text, speech))
    return {name: (text[:, i], speech[:, i]) for i, name in enumerate(ids)}


def test_a_stored_reference_comes_with_its_pairs(build, tmp_path):
    values = stored(build(), tmp_path)
    assert (tmp_path / "reference.npz").is_file()
    assert len(ReferenceStore(tmp_path)) == 15  # the pairs of validation are among those of training
    module = build(reference=str(tmp_path))
    for batch in [*islice(module.train_dataloader(), 3), *module.val_dataloader()]:
        assert batch.reference.text.dtype == torch.float32
        for i, name in enumerate(batch.ids):
            if not name.startswith("style"):
                torch.testing.assert_close(batch.reference.text[:, i], values[name][0])
                torch.testing.assert_close(batch.reference.speech[:, i], values[name][1])


@pytest.mark.parametrize("changes", [{"mode": "S2T"}, {"lead_in": 1}, {"system_prompts": {"S2M": "Speak."}}])
def test_a_stored_reference_of_other_rows_is_refused(build, tmp_path, changes):
    stored(build(), tmp_path)
    with pytest.raises(ValueError, match=r"pair 'answer-dummy-.*' has no log-probabilities in .*Compute them again"):
        build(reference=str(tmp_path / "reference.npz"), **changes)


def test_a_missing_reference_file_says_what_makes_it(build, tmp_path):
    with pytest.raises(FileNotFoundError, match="ReferenceLogprobs computes and writes it"):
        build(reference=str(tmp_path))


def test_pairs_that_fit_no_line_are_counted_or_refused(build, caplog):
    with pytest.raises(ValueError, match=r"15 of 15 pairs in .* do not fit a line .*Raise capacity"):
        build(capacity=20)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (PreferencePair("p", "x", 1, WrittenAnswer("a"), WrittenAnswer("b")), "'x', but .* has no such dialogue"),
        (PreferencePair("p", "d", 2, WrittenAnswer("a"), WrittenAnswer("b")), "a prompt ends with a turn of the user"),
        (PreferencePair("p", "d", 5, WrittenAnswer("a"), WrittenAnswer("b")), "its prompt is the first 5 turns"),
        (
            PreferencePair("p", "d", 1, TurnAnswer("d", 0), WrittenAnswer("b")),
            "turn 0 of dialogue 'd' .* is no turn of",
        ),
        (PreferencePair("p", "d", 1, TurnAnswer("e", 1), WrittenAnswer("b")), r"roles: no such dialogue"),
        (PreferencePair("p", "d", 1, WrittenAnswer("a"), WrittenAnswer("b"), mode="ASR"), "laid out in mode 'ASR'"),
    ],
)
def test_wrong_names_are_told_before_training(tmp_path, chat, pair, message):
    with DialogueWriter(tmp_path) as writer:
        writer.write(Dialogue("d", (Turn("user", "Hi."), Turn("assistant", "Hello."))))
    with PreferenceWriter(tmp_path) as writer:
        writer.write(pair)
    with pytest.raises(ValueError, match=message):
        PairCorpus([tmp_path], chat, GEOMETRY)


def test_a_spoken_question_without_a_text_cannot_be_read(tmp_path, chat):
    hum = (0.1 * np.sin(np.arange(8000) / 20)).astype(np.float32)
    with DialogueWriter(tmp_path) as writer:
        writer.write(Dialogue("d", (Turn("user", "", hum, 16000), Turn("assistant", "Hello."))))
    with PreferenceWriter(tmp_path) as writer:
        writer.write(PreferencePair("p", "d", 1, TurnAnswer("d", 1), WrittenAnswer("no")))
    assert PairCorpus([tmp_path], chat, GEOMETRY, mode="S2T").pair(0).chosen.row.clips
    with pytest.raises(ValueError, match="a user turn of dialogue 'd' is spoken without a text; take S2M or S2T"):
        PairCorpus([tmp_path], chat, GEOMETRY, mode="T2T")


def test_answers_may_come_as_codes(tmp_path, chat):
    """As samples of a model do: they are dialogues of one turn, and no tokenizer is asked."""
    with DialogueWriter(tmp_path) as writer:
        writer.write(Dialogue("d", (Turn("user", "Hi."), Turn("assistant", "Hello."))))
        for i in range(2):
            codes = TurnCodes("mine", np.full((7 + i, 1), i), 25.0)
            writer.write(Dialogue(f"sample-{i}", (Turn("assistant", f"Answer {i}.", codes=codes),)))
    with PreferenceWriter(tmp_path) as writer:
        writer.write(PreferencePair("p", "d", 1, TurnAnswer("sample-0", 0), TurnAnswer("sample-1", 0)))
    pair = PairCorpus([tmp_path], chat, GEOMETRY, mode="T2M").pair(0)
    assert [int((row.speech_labels == i).sum()) for i, row in enumerate(pair.rows)] == [7, 8]


def test_other_mistakes_are_told(build, tmp_path, chat, world):
    (tmp_path / "pairs.jsonl").write_text("")
    with pytest.raises(ValueError, match="there is no preference pair in"):
        PairCorpus([tmp_path], chat)
    with pytest.raises(ValueError, match="several pairs have the id 'style-0'"):
        build(train=[str(world / "more")] * 2)
    with pytest.raises(ValueError, match="sil_weight must lie between 0 and 1, got 2"):
        build(sil_weight=2)
    with pytest.raises(ValueError, match="look_ahead must be at least 1, got 0"):
        build(look_ahead=0)
    module = build()
    module.trainer = lightning.Trainer(logger=False, enable_checkpointing=False, max_epochs=1)
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        module.train_dataloader()


@pytest.mark.parametrize(
    ("name", "value"), [("features", True), ("augment", {"_target_": "fac_lightning.data.distortions.Volume"})]
)
def test_settings_that_pairs_do_not_have_are_refused_or_dropped_in_a_line(tmp_path, caplog, name, value):
    recipe = {"data": {"_target_": "fac_lightning.data.PreferenceDataModule", "train": "a", "text_tokenizer": "b"}}
    recipe["data"][name] = value
    (tmp_path / "own.yaml").write_text(json.dumps(recipe))
    with pytest.raises(RecipeError, match=rf"(?s)data\.{name}.*PreferenceDataModule takes no '{name}'.*It takes: "):
        ensure(load(tmp_path / "own.yaml"))
    recipe["data"]["_target_"] = "fac_lightning.data.SpeechChatDataModule"
    (tmp_path / "base.yaml").write_text(json.dumps(recipe))
    over = {"base": ["base.yaml"], "data": {"_target_": "fac_lightning.data.PreferenceDataModule"}}
    (tmp_path / "over.yaml").write_text(json.dumps(over))
    with caplog.at_level(logging.INFO):
        ensure(load(tmp_path / "over.yaml"))
    assert (
        f"data: SpeechChatDataModule -> fac_lightning.data.PreferenceDataModule drops {name} (it takes no"
        in caplog.text
    )


def test_a_shared_prompt_is_put_in_once(build):
    plain, shared = build(), build(share_prompt=True)
    for index in (0, 13):
        apart, once = plain.train_corpus.pair(index), shared.train_corpus.pair(index)
        start = apart.chosen.start
        assert len(once) == len(apart) - start
        assert once.cost.audio_seconds == pytest.approx(apart.cost.audio_seconds / 2)
        assert once.digest == apart.digest  # a stored reference serves both
        prompt, chosen, rejected = once.rows
        for tail, whole in ((chosen, apart.rows[0]), (rejected, apart.rows[1])):
            assert np.concatenate([prompt.text_ids, tail.text_ids]).tolist() == whole.text_ids.tolist()
            assert np.concatenate([prompt.codes, tail.codes]).tolist() == whole.codes.tolist()
            places = np.concatenate([prompt.code_positions, tail.code_positions + start])
            assert places.tolist() == whole.code_positions.tolist()
            assert [*prompt.reply_lengths, *tail.reply_lengths] == whole.reply_lengths.tolist()
            assert not tail.clips
            assert tail.text_labels[0] != IGNORE  # the first label of the answer
        batches = [module._collator(module.train_corpus)([pair]) for module, pair in ((plain, apart), (shared, once))]
        counts = [answer_counts(batch) for batch in batches]
        assert torch.equal(counts[0].text, counts[1].text)
        assert torch.equal(counts[0].speech, counts[1].speech)
        line = batches[1].line
        assert line.parents.tolist() == [-1, 0, 0]
        assert line.position_ids.tolist() == [
            i for a, row in zip((0, start, start), once.rows, strict=True) for i in range(a, a + len(row))
        ]
    batch = next(iter(shared.train_dataloader()))
    pairs = batch.num_pairs
    assert batch.line.parents.tolist() == [p for i in range(pairs) for p in (-1, 3 * i, 3 * i)]
    assert batch.num_pairs > next(iter(plain.train_dataloader())).num_pairs
    assert batch.to("cpu").line.parents is not None


def test_digests_see_what_makes_the_logprobs(build):
    pair = build().train_corpus.pair(0)
    assert pair.digest == build().train_corpus.pair(0).digest
    other = replace(pair, chosen=replace(pair.chosen, text_weights=pair.chosen.text_weights * 0.5))
    assert len({pair.digest, other.digest, replace(pair, id="other").digest}) == 3


def test_the_text_tokenizer_is_kept(build, tmp_path):
    build().save_text_tokenizer(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())


def test_a_collator_needs_no_data_module(build):
    corpus = build().train_corpus
    batch = PairCollator(corpus.task_names, 512, 16000)([corpus.pair(0)])
    assert batch.num_pairs == 1
