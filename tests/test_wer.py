"""Word error rates: what counts as the same word, what happens at the edges."""

import math
import sys

import pytest
import torch

pytest.importorskip("jiwer", reason="needs the extra eval")
pytest.importorskip("whisper_normalizer", reason="needs the extra eval")

from fac_lightning import wer
from fac_lightning.evaluation import NormalizedWER
from fac_lightning.wer import count_word_errors, normalize_english, word_error_rate


def test_spelling_of_the_same_words_is_no_error() -> None:
    assert word_error_rate(["Seven plus five is twelve!"], ["7 plus 5 is 12"]) == 0.0
    assert normalize_english("The COLOUR, um, of money.") == normalize_english("the color of money")


def test_each_kind_of_error_is_counted_once() -> None:
    counts = count_word_errors(
        ["the cat sat down", "a big dog", "birds sing"], ["the bat sat down", "a dog", "birds sing well"]
    )
    assert (counts.substitutions, counts.deletions, counts.insertions, counts.words) == (1, 1, 1, 9)
    assert counts.rate == pytest.approx(3 / 9)


def test_texts_are_compared_one_by_one() -> None:
    """Words of one text cannot pay for those missing in its neighbour."""
    assert word_error_rate(["red green", "blue"], ["red", "green blue"]) == pytest.approx(2 / 3)


def test_silence_is_measured_too() -> None:
    assert word_error_rate(["red green"], [""]) == 1.0
    said_into_silence = count_word_errors([""], ["red green"])
    assert (said_into_silence.insertions, said_into_silence.words) == (2, 0)
    assert math.isnan(said_into_silence.rate)
    assert math.isnan(word_error_rate([], []))


def test_uneven_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        word_error_rate(["a", "b"], ["a"])


def test_metric_over_batches_equals_all_at_once() -> None:
    references, hypotheses = ["one two three", "four", "five six"], ["one two", "four", "five sick"]
    metric = NormalizedWER()
    metric.update(hypotheses[:1], references[:1])
    metric.update(hypotheses[1:], references[1:])
    torch.testing.assert_close(metric.compute(), torch.tensor(word_error_rate(references, hypotheses)))
    metric.reset()
    metric.update("good morning", "good evening")
    assert metric.compute() == 0.5


@pytest.mark.parametrize("module", ["jiwer", "whisper_normalizer.english"])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    wer._normalizer.cache_clear()
    with pytest.raises(ImportError, match=r"fac-lightning\[eval\]"):
        word_error_rate(["a"], ["a"])
