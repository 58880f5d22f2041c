"""A row whose audio cannot be read is left out, counted and told; too many stop the run, and none crashes it."""

import logging
import re
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fac_lightning.data import Clip, SpeechChatDataModule, StreamTally, TextTokenizerTraining
from fac_lightning.data.errors import BadData
from fac_lightning.data.stream import FixedLines
from fac_lightning.testing.dialogues import make_dialogues
from fac_lightning.testing.tiny import tiny_speech_lm
from fac_lightning.types import IGNORE, SpeechGeometry


def broken():
    raise BadData("FAC-A05", "cut in half", "user.wav", "8000 samples", "16000", "Fetch it again.")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_dialogues(folder / "d", 40)
    TextTokenizerTraining([str(folder / "d")], 310, str(folder / "t")).run()
    return folder


def build(world, bad=lambda i: i % 4 == 0, load=broken, **changes):
    """A module of which the dialogues that ``bad`` picks have a clip that cannot be read."""
    module = SpeechChatDataModule(
        str(world / "d"), str(world / "t"), geometry=SpeechGeometry(16000, 3200, 5, 2, 50, 400), modes={"S2T": 1.0},
        capacity=256, look_ahead=4, **{"max_bad_share": 1.0, **changes},
    )  # fmt: skip
    module.setup("fit")
    items = module.train_corpus.items
    for i, item in enumerate(items):
        if bad(i):
            turns = [
                replace(turn, clip=Clip(turn.clip.num_samples, load)) if turn.clip else turn for turn in item.turns
            ]
            items[i] = replace(item, turns=tuple(turns))
    return module


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_rows_are_left_out_and_the_others_stay_as_they_are(world, num_workers, caplog):
    with caplog.at_level(logging.WARNING):
        found = list(islice(build(world, num_workers=num_workers).train_dataloader(), 12))
    whole = list(islice(build(world, bad=lambda i: False).train_dataloader(), 12))
    bad = {f"dummy-{i}/S2T" for i in range(0, 40, 4)}
    for line, good in zip(found, whole, strict=True):
        assert line.ids == tuple(name for name in good.ids if name not in bad)
        assert len(line.left_out) == len(good.ids) - len(line.ids)
        assert len(line.sources) == len(line.ids) == len(line.audio.lengths)
        assert line.text_token_total == int((line.text_labels != IGNORE).sum())
    (source, reason), *_ = [one for line in found for one in line.left_out]
    assert source == "train"
    assert reason == str(BadData("FAC-A05", "cut in half", "user.wav", "8000 samples", "16000", "Fetch it again."))
    assert caplog.text.count("left out of training: FAC-A05: cut in half in user.wav") == 10, "the first ten are told"


def test_a_line_of_bad_rows_stands_with_nothing_to_learn(world):
    module = build(world, bad=lambda i: True)
    (line, other) = next(iter(module._stream(2)))
    assert (line.text_token_total, line.speech_token_total, line.sources) == (0, 0, ())
    assert bool((line.text_labels == IGNORE).all())
    assert len(line.audio.lengths) == 1
    assert line.audio.audio.abs().max() == line.seconds == 0
    assert len(line.left_out) > 3
    good = next(iter(build(world, bad=lambda i: False)._stream(2)))
    mixed = module._stream(2).share([line, replace(good[1], text_token_total=7)])
    assert {each.text_token_total for each in mixed} == {7}, "what is left alone counts in the step"
    model = tiny_speech_lm(vocab_size=400, codebook_size=50, num_codebooks=2, sample_rate=16000, hop_length=640)
    output = model(line)
    output.text_loss_sum.backward()
    assert output.text_count == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert len(other.left_out) > 0


def test_a_clip_of_another_length_is_bad(world):
    module = build(world, load=lambda: np.zeros(5, np.int16))
    reasons = [why for line in islice(module.train_dataloader(), 6) for _, why in line.left_out]
    assert re.search(r"FAC-A09: .* in row 'dummy-\d+/S2T': got 5 samples, want \d{4}\. Make the manifest", reasons[0])


def test_bad_rows_of_validation_are_told_once(world, caplog):
    lines = FixedLines(next(iter(build(world).train_planners.values())), 0)
    with caplog.at_level(logging.WARNING):
        names = [[name for line in lines for name in line.ids] for _ in range(2)]
    assert len(names[0]) == 30
    assert names[0] == names[1]
    assert caplog.text.count("left out of validation: FAC-A05") == 1


def test_what_is_no_bad_data_is_raised(world):
    def fails():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(islice(build(world, load=fails).train_dataloader(), 6))


def test_too_many_stop_the_run_in_one_line(world):
    module = build(world, max_bad_share=0.2)
    with pytest.raises(BadData, match=r"too many rows .*\(\d+ of train\): got \d+ of 1\d\d rows") as stop:
        list(islice(module.train_dataloader(), 500))
    text = str(stop.value)
    assert "\n" not in text
    assert "want at most 20.00%" in text
    assert "raise data.max_bad_share. The first: FAC-A05: cut in half in user.wav" in text
    assert len(list(islice(build(world, max_bad_share=0.3).train_dataloader(), 60))) == 60
    with pytest.raises(ValueError, match="max_bad_share must lie between 0 and 1, got 2"):
        build(world, max_bad_share=2.0)


def test_a_few_rows_do_not_say_enough():
    tally = StreamTally(0.01, {"a": ()})
    tally.add(SimpleNamespace(sources=("a",) * 90, left_out=(("a", "x"),) * 9))
    with pytest.raises(BadData, match="10 of 100 rows"):
        tally.add(SimpleNamespace(sources=(), left_out=(("a", "x"),)))
    assert tally.metrics() == {"data/rows/a": 90.0, "data/bad_rows": 10.0}
