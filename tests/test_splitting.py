"""A dialogue too long for a line becomes several rows, cut between turns; nothing is learned twice or lost unsaid."""

import logging
from itertools import islice

import numpy as np
import pytest

from fac_lightning.data import (
    Budget,
    Clip,
    CorpusItem,
    Dialogue,
    DialogueWriter,
    RowPlanner,
    RowSource,
    SpeechChatDataModule,
    SpokenTurn,
    TextTokenizerTraining,
    Turn,
)
from fac_lightning.prompts import MODES, ChatFormat
from fac_lightning.testing.dialogues import make_dialogues
from fac_lightning.text_tokenizer import load_text_tokenizer
from fac_lightning.types import IGNORE, SpeechGeometry


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    make_dialogues(folder / "d", 20, spoken=False)
    TextTokenizerTraining([str(folder / "d")], 340, str(folder / "t")).run()
    return ChatFormat(load_text_tokenizer(folder / "t"))


def spoken(rounds, seconds=1.0):
    """A dialogue of questions and answers, each with a number of its own in words and codes."""
    turns = []
    for i in range(rounds):
        turns.append(SpokenTurn("user", f"what {i}", Clip(int(8000 * seconds), lambda: np.zeros(8000, np.int16))))
        codes = np.full((int(25 * seconds), 1), i % 30, dtype=np.int16)
        turns.append(SpokenTurn("assistant", f"so {i}", codes=codes, seconds=seconds))
    return CorpusItem("talk", tuple(turns), "Be kind.")


class One(RowSource):
    """One dialogue."""

    def __init__(self, chat, item, mode):
        super().__init__(chat, SpeechGeometry(8000, 1600, 5, 1, 32, 400), {mode: 1.0})
        self.it = item

    def __len__(self):
        return 1

    def item(self, index):
        return self.it

    def fingerprint(self):
        return "one"


def rows(chat, item, mode, budget, context_turns=0):
    planner = RowPlanner(One(chat, item, mode), budget, context_turns)
    parts, left_out = planner.split(0, mode)
    return parts, [planner.row(0, part) for part in parts], left_out


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("context_turns", [0, 2, 3])
def test_every_answer_is_learned_once_in_every_mode(chat, mode, context_turns):
    item = spoken(9)
    whole = One(chat, item, mode).row(0, 0, 0)
    budget = Budget(len(whole) // 2)
    parts, found, left_out = rows(chat, item, mode, budget, context_turns)
    assert left_out == 0
    assert len(parts) >= 2
    assert all(budget.fits(row) and row.cost == part.cost for part, row in zip(parts, found, strict=True))
    assert sum(row.num_text_labels for row in found) == whole.num_text_labels
    assert sum(row.num_speech_labels for row in found) == whole.num_speech_labels
    learned = [int(code) for row in found for code in row.speech_labels[row.speech_labels != IGNORE] if code < 30]
    said = whole.speech_labels[whole.speech_labels != IGNORE]
    assert learned == [int(code) for code in said if code < 30], "in the order of the dialogue"
    prompt = chat.system("Be kind.")
    assert all(row.text_ids[: len(prompt)].tolist() == prompt for row in found)
    if context_turns >= 2 and mode not in ("ASR", "TTS"):
        spans = [part.span for part in parts[1:]]
        assert all(span.first - span.context == 2 for span in spans), "context begins with a turn of the user"
        assert sum(len(row) for row in found) > len(whole) + (len(parts) - 1) * len(prompt)
    else:
        assert all(part.span.first == part.span.context for part in parts)
    assert len({row.id for row in found}) == len(found)


def test_a_part_begins_where_the_user_speaks(chat):
    item = spoken(4)
    turns = (SpokenTurn("assistant", "hello"), *item.turns[:1], *item.turns)  # two turns of the user in a row
    parts, _, _ = rows(chat, CorpusItem("talk", turns, None), "S2M", Budget(90))
    assert [turns[part.span.first].role for part in parts] == ["assistant", *["user"] * (len(parts) - 1)]
    assert all(part.span.first == 0 or turns[part.span.first - 1].role == "assistant" for part in parts)
    assert [part.span.first for part in parts[1:]] == [part.span.last for part in parts[:-1]]


def test_every_budget_splits(chat):
    item = spoken(6)
    for budget in (Budget(10_000, audio_seconds=2.5), Budget(10_000, speech_tokens=70)):
        parts, found, left_out = rows(chat, item, "S2M", budget)
        assert [part.span[1:] for part in parts] == [(0, 4), (4, 8), (8, 12)]
        assert left_out == 0
        assert all(budget.fits(row) for row in found)


def test_turns_that_fit_no_line_are_left_out_and_counted(chat):
    short, long = spoken(2), spoken(1, seconds=60.0)
    item = CorpusItem("talk", (*short.turns, *long.turns, *short.turns), None)
    parts, _, left_out = rows(chat, item, "S2M", Budget(200))
    assert left_out == 2
    assert [part.span[1:] for part in parts] == [(0, 4), (6, 10)]
    assert rows(chat, long, "S2M", Budget(200)) == ((), [], 2)


def test_a_part_without_speech_is_laid_out_as_text(chat):
    written = tuple(SpokenTurn(role, "so") for role in ("user", "assistant"))
    item = CorpusItem("talk", (*spoken(2).turns, *written), "Be kind.")
    spoken_alone = One(chat, spoken(2), "S2M").row(0, 0, 0)
    _, found, _ = rows(chat, item, "S2M", Budget(len(spoken_alone)))
    assert [row.id.split("/")[1] for row in found] == ["S2M", "T2T"]
    assert [row.id for row in found][1] == "talk#4/T2T"


def test_the_data_module_splits_and_says_so(tmp_path, caplog):
    make_dialogues(tmp_path / "d", 30, spoken=False)
    with DialogueWriter(tmp_path / "d") as writer:
        turns = [Turn(role, f"well {i}") for i in range(40) for role in ("user", "assistant")]
        writer.write(Dialogue("long", tuple(turns)))
    TextTokenizerTraining([str(tmp_path / "d")], 340, str(tmp_path / "t")).run()
    module = SpeechChatDataModule(str(tmp_path / "d"), str(tmp_path / "t"), modes={"T2T": 1.0}, capacity=200)
    with caplog.at_level(logging.INFO):
        module.setup("fit")
    assert "1 of 31 dialogues" in caplog.text
    assert "are split between turns; 0 turns fit no line" in caplog.text
    stream = module._stream()
    drawn = [stream.load(plan).row_id for plan in islice(stream.plans(0), 120)]
    long = [name for name in drawn if name.startswith("long#")]
    assert long[0] == "long#0/T2T"
    assert len(set(long)) > 2
    with pytest.raises(ValueError, match="context_turns must not be negative, got -1"):
        RowPlanner(module.train_corpus, Budget(10), -1)
