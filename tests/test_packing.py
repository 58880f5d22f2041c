"""Packing: nothing is lost, lines are full and within budget, and a line holds what its rows hold."""

from itertools import count, islice

import numpy as np
import pytest
import torch

from fac_lightning.data import Budget, Clip, Row, collate_line, pack_lines, share_totals
from fac_lightning.types import IGNORE


def row(name, length, groups=0, samples=(), seed=0):
    """A row with random content; ``groups`` of 5 codes to say, clips of ``samples``."""
    rng = np.random.default_rng([seed, length, groups])
    clips = tuple(Clip(n, lambda n=n: (np.arange(n) % 7 - 3).astype(np.int16)) for n in samples)
    return Row(
        id=str(name),
        text_ids=rng.integers(0, 99, length),
        text_mask=rng.random(length) < 0.5,
        text_labels=np.where(rng.random(length) < 0.5, rng.integers(0, 99, length), IGNORE),
        codes=rng.integers(0, 99, (groups, 5, 1)),
        code_positions=np.arange(groups),
        speech_positions=np.arange(groups) + 1,
        speech_labels=rng.integers(0, 99, (groups, 5, 1)),
        reply_lengths=np.array([groups] if groups else [], dtype=np.int64),
        feature_positions=np.arange(len(samples)),
        clips=clips,
        audio_seconds=sum(samples) / 1000,
        seconds=sum(samples) / 1000,
    )


def lengths(median, spread, n=4000, seed=0):
    values = np.random.default_rng(seed).lognormal(np.log(median), spread, n)
    return np.clip(values, 20, 2048).astype(int).tolist()


@pytest.mark.parametrize(("median", "spread"), [(60, 0.4), (120, 0.8), (180, 0.7)])
def test_lines_are_99_percent_full(median, spread):
    lines = pack_lines((row(i, n) for i, n in enumerate(lengths(median, spread))), Budget(2048), look_ahead=64)
    sizes = [sum(map(len, line)) for line in lines][:-64]  # the stream's end leaves open lines
    assert max(sizes) <= 2048
    assert np.mean(sizes) >= 0.99 * 2048


def test_long_rows_leave_a_little_more():
    lines = pack_lines((row(i, n) for i, n in enumerate(lengths(450, 0.7))), Budget(2048))
    assert np.mean([sum(map(len, line)) for line in lines][:-64]) >= 0.98 * 2048


@pytest.mark.parametrize("seed", range(12))
def test_any_rows_keep_to_any_budgets(seed):
    rng = np.random.default_rng(seed)
    budget = Budget(*(int(n) for n in rng.integers([200, 5, 100], [2000, 40, 900])))
    made = (
        row(i, n, int(rng.integers(0, 20)), (int(rng.integers(1, 5000)),))
        for i, n in enumerate(lengths(90, 0.5, 300, seed))
    )
    rows = [r for r in made if budget.fits(r)]
    look_ahead, most = int(rng.integers(1, 30)), int(rng.integers(1, 60))
    lines = list(pack_lines(rows, budget, look_ahead))
    assert sorted(int(r.id) for line in lines for r in line) == sorted(int(r.id) for r in rows)
    for line in lines:
        total = np.array([r.cost for r in line]).sum(0)
        assert (total <= np.array(budget.limits) + 1e-9).all()
    first = list(pack_lines(iter(rows), budget, look_ahead, most))
    if len(lines) > most:
        taken = {int(r.id) for line in first for r in line}
        assert len(first) == most
        assert [int(r.id) for r in rows[: len(taken)]] == sorted(taken), "what is taken are the first rows, all of them"


def test_every_row_comes_out_once_and_every_time_in_the_same_line():
    rows = [row(i, n) for i, n in enumerate(lengths(180, 0.7, 500))]
    first, second = ([[r.id for r in line] for line in pack_lines(rows, Budget(2048))] for _ in range(2))
    assert first == second
    assert sorted(int(i) for line in first for i in line) == list(range(500))


def test_an_endless_stream_gives_lines_soon():
    drawn = []
    stream = (drawn.append(i) or row(i, 100) for i in count())
    list(islice(pack_lines(stream, Budget(1000), look_ahead=4), 3))
    assert len(drawn) <= 30


def test_no_budget_is_exceeded_and_none_is_ignored():
    rng = np.random.default_rng(0)
    rows = [row(i, n, int(rng.integers(0, 30)), (int(rng.integers(1, 5000)),)) for i, n in enumerate(lengths(60, 0.5))]
    lines = list(pack_lines(rows, Budget(2048, audio_seconds=30, speech_tokens=600)))
    assert sum(map(len, lines)) == len(rows)
    audio = [sum(r.audio_seconds for r in line) for line in lines]
    tokens = [sum(r.speech_labels.size for r in line) for line in lines]
    assert max(audio) <= 30
    assert max(tokens) <= 600
    assert max(tokens) > 500, "the budget on speech tokens bounds nothing here"
    free = list(pack_lines(rows, Budget(2048)))
    assert len(free) < len(lines)
    assert max(sum(r.audio_seconds for r in line) for line in free) > 30


def test_rows_and_budgets_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"row 'x' needs .* \[11, 0.0, 0\], a line takes \[10, inf, inf\]"):
        list(pack_lines([row("x", 11)], Budget(10)))
    with pytest.raises(ValueError, match="every budget of a line must be positive"):
        Budget(10, audio_seconds=0)
    assert Budget(10).fits(row("x", 10))
    assert not Budget(10, speech_tokens=9).fits(row("x", 10, groups=2))


def test_a_line_holds_what_its_rows_hold():
    rows = [row("a", 7, 2, (30, 10)), row("b", 5), row("c", 6, 1, (20,))]
    line = collate_line(rows, 64, 1000)
    starts = [0, 7, 12]
    assert line.ids == ("a", "b", "c")
    assert line.lengths.tolist() == [7, 5, 6]
    assert line.position_ids.tolist() == [*range(7), *range(5), *range(6)]
    assert line.reply_lengths.tolist() == [2, 1]
    for name in ("text_ids", "text_mask", "text_labels", "codes", "speech_labels"):
        assert torch.equal(getattr(line, name), torch.from_numpy(np.concatenate([getattr(r, name) for r in rows])))
    for name in ("code_positions", "speech_positions", "feature_positions"):
        expected = np.concatenate([getattr(r, name) + s for r, s in zip(rows, starts, strict=True)])
        assert getattr(line, name).tolist() == expected.tolist()
    assert line.audio.audio.shape == (3, 30)
    assert line.audio.lengths.tolist() == [30, 10, 20]
    assert line.audio.sample_rate == 1000
    torch.testing.assert_close(line.audio.audio[1, :10] * 32768, torch.arange(10).float() % 7 - 3)
    assert line.audio.audio[1, 10:].abs().max() == 0
    assert line.seconds == pytest.approx(0.06)
    assert (line.capacity, line.text_token_total) == (64, int((line.text_labels != IGNORE).sum()))
    assert line.speech_token_total == 15


def test_a_line_of_text_has_empty_streams_of_the_right_shape():
    line = collate_line([row("a", 7)], 8)
    assert line.codes.shape == (0, 5, 1)
    assert line.audio.audio.shape == (0, 0)
    assert (len(line.speech_positions), len(line.feature_positions), line.speech_token_total) == (0, 0, 0)


def test_a_step_shares_its_totals():
    lines = [collate_line([row("a", 40, 2)], 64), collate_line([row("b", 30, 3)], 64)]
    shared = share_totals(lines)
    assert {x.text_token_total for x in shared} == {sum(x.text_token_total for x in lines)}
    assert {x.speech_token_total for x in shared} == {25}
    assert lines[0].speech_token_total == 10


def test_a_clip_must_be_as_long_as_it_says():
    broken = row("a", 7, 0, (30,))
    clip = Clip(30, lambda: np.zeros(29, np.float32))
    broken = Row(**{**vars(broken), "clips": (clip,)})
    with pytest.raises(ValueError, match="29 samples where 30 were promised"):
        collate_line([broken], 8, 1000)
