"""Preference losses: what must be true of all of them, then each against plain scalar code."""

import math
from dataclasses import replace

import pytest
import torch

from fac_lightning import losses
from fac_lightning.losses import (
    BCOLoss,
    ConservativeDPOLoss,
    DPOLoss,
    EXOLoss,
    IPOLoss,
    JointStreams,
    KTOLoss,
    MixedPreferenceLoss,
    NormalizedDPOLoss,
    ORPOLoss,
    PairScores,
    RobustDPOLoss,
    SeparateStreams,
    SFTLoss,
    SimPOLoss,
    SpeechStream,
    TextStream,
    answer_counts,
    answer_logprobs,
)
from fac_lightning.testing.tiny import tiny_batch, tiny_speech_lm
from fac_lightning.types import IGNORE, AnswerSums, PreferenceBatch

LOG2 = math.log(2)
COMPARING = [DPOLoss, NormalizedDPOLoss, ConservativeDPOLoss, RobustDPOLoss]
MODES = [TextStream(), SpeechStream(), JointStreams(), JointStreams(0.3, 1.7), SeparateStreams(0.4, 0.6)]


def sums(text, speech):
    return AnswerSums(torch.tensor(text, dtype=torch.float32), torch.tensor(speech, dtype=torch.float32))


@pytest.fixture
def scores():
    """Three pairs of unequal lengths, not close to each other."""
    return PairScores(
        policy=sums([[-3.0, -9.0, -2.5], [-4.0, -2.0, -6.5]], [[-40.0, -80.0, -31.0], [-44.0, -20.0, -35.0]]),
        counts=sums([[4.0, 6.0, 2.0], [3.0, 5.5, 2.0]], [[20.0, 30.0, 11.0], [26.0, 9.0, 12.0]]),
        reference=sums([[-3.5, -8.0, -2.5], [-3.0, -2.5, -6.0]], [[-42.0, -79.0, -30.5], [-41.0, -22.0, -36.0]]),
    )


def sigma(x):
    return 1 / (1 + math.exp(-x))


def scalar(name, text_weight, speech_weight, beta, nu, scores, pair, label_smoothing=None):
    """The table of the dossier (B.4) for one pair, in plain Python."""
    p, r, n = scores.policy, scores.reference, scores.counts
    weights = {"text": text_weight, "speech": speech_weight}

    def joined(values, power):
        return sum(w * values(stream) / getattr(n, stream)[side, pair].item() ** power for stream, w in weights.items())

    ratios, means = [], []
    for side in (0, 1):
        ratios.append(joined(lambda s, side=side: (getattr(p, s) - getattr(r, s))[side, pair].item(), nu))
        means.append(joined(lambda s, side=side: getattr(p, s)[side, pair].item(), 1))
    (dw, dl), (lw, ll) = ratios, means
    delta, e = beta * (dw - dl), label_smoothing
    logsigma = lambda x: math.log(sigma(x))  # noqa: E731
    match name:
        case "DPOLoss" | "NormalizedDPOLoss":
            return -logsigma(delta)
        case "HingeLoss":
            return max(0.0, 1 - delta)
        case "IPOLoss":
            return (dw - dl - 1 / (2 * beta)) ** 2
        case "RobustDPOLoss":
            return (-(1 - e) * logsigma(delta) + e * logsigma(-delta)) / (1 - 2 * e)
        case "ConservativeDPOLoss":
            return -(1 - e) * logsigma(delta) - e * logsigma(-delta)
        case "EXOLoss":
            win, lose = sigma(delta), sigma(-delta)
            return win * (math.log(win) - math.log(1 - e)) + lose * (math.log(lose) - math.log(e))
        case "NCALoss":
            return -logsigma(beta * dw) - 0.5 * logsigma(-beta * dw) - 0.5 * logsigma(-beta * dl)
        case "BCOLoss":
            return -logsigma(beta * dw) - logsigma(-beta * dl)
        case "KTOLoss":
            return (1 - sigma(beta * dw)) + (1 - sigma(-beta * dl))
        case "SPPOLoss":
            return (dw - 0.5 / beta) ** 2 + (dl + 0.5 / beta) ** 2
        case "APOZeroLoss":
            return 1 - sigma(beta * dw) + sigma(beta * dl)
        case "APODownLoss":
            return sigma(beta * dw) + 1 - sigma(delta)
        case "DiscoPOPLoss":
            u = sigma(delta / 0.05)
            return (1 - u) * -logsigma(delta) + u * math.exp(-delta)
        case "SimPOLoss":
            return -logsigma(beta * (lw - ll - 0.5 / beta))
        case "ORPOLoss":
            odds = (lw - ll) - (math.log1p(-math.exp(lw)) - math.log1p(-math.exp(ll)))
            return -lw - beta * logsigma(odds)
        case "SFTLoss":
            return -lw
    raise AssertionError(name)


EVERY = {
    "DPOLoss": {"beta": 0.2},
    "NormalizedDPOLoss": {"beta": 0.3},
    "HingeLoss": {"beta": 0.2},
    "IPOLoss": {"beta": 0.4},
    "RobustDPOLoss": {"beta": 0.2, "label_smoothing": 0.2},
    "ConservativeDPOLoss": {"beta": 0.2, "label_smoothing": 0.2},
    "EXOLoss": {"beta": 0.2, "label_smoothing": 0.01},
    "NCALoss": {"beta": 0.2},
    "BCOLoss": {"beta": 0.2},
    "KTOLoss": {"beta": 0.2},
    "SPPOLoss": {"beta": 0.2},
    "APOZeroLoss": {"beta": 0.2},
    "APODownLoss": {"beta": 0.2},
    "DiscoPOPLoss": {"beta": 0.2},
    "SimPOLoss": {"beta": 2.0},
    "ORPOLoss": {"beta": 0.3},
    "SFTLoss": {},
}


def test_every_public_loss_is_in_the_table():
    classes = {n for n in losses.__all__ if n.endswith("Loss")} - {"PreferenceLoss", "MixedPreferenceLoss"}
    assert classes == EVERY.keys()


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, 0.4)])
@pytest.mark.parametrize("name", EVERY)
def test_each_loss_is_its_formula(scores, name, weights):
    loss = getattr(losses, name)(**EVERY[name])
    found = JointStreams(*weights)(loss, scores)
    want = [scalar(name, *weights, loss.beta, loss.nu, scores, i, EVERY[name].get("label_smoothing")) for i in range(3)]
    assert found.tolist() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("nu", [0.5, 1.0])
@pytest.mark.parametrize(
    "name", [n for n in EVERY if n not in ("IPOLoss", "NormalizedDPOLoss", "SimPOLoss", "ORPOLoss", "SFTLoss")]
)
def test_lengths_normalise_as_far_as_asked(scores, name, nu):
    loss = getattr(losses, name)(**EVERY[name], nu=nu)
    want = [scalar(name, 1.0, 1.0, loss.beta, nu, scores, i, EVERY[name].get("label_smoothing")) for i in range(3)]
    assert JointStreams()(loss, scores).tolist() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("mode", MODES, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("kind", COMPARING)
def test_equal_logprobs_cost_log_2_in_every_mode(scores, kind, mode):
    loss = kind() if kind is not RobustDPOLoss else kind(label_smoothing=0.2)
    torch.testing.assert_close(mode(loss, replace(scores, policy=scores.reference)), torch.full((3,), LOG2))


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("SFTLoss", "APODownLoss", "DiscoPOPLoss")])
def test_learning_raises_chosen_and_lowers_rejected_answers(scores, name):
    policy = scores.reference.text.clone().requires_grad_()  # where training starts
    start = replace(scores, policy=AnswerSums(policy, scores.reference.speech))
    TextStream()(getattr(losses, name)(**EVERY[name]), start).sum().backward()
    assert (policy.grad[1] > 0).all()
    assert (policy.grad[0] < 0).all() or name == "NCALoss"  # NCA starts balanced on the chosen side
    assert (policy.grad[0] <= 0).all()


def test_discopop_is_not_monotonous_around_zero(scores):
    """Found by search, and so it is: it pulls towards 0 there, and away from it further out."""
    slopes = []
    for margin in (0.0, 1.0):
        chosen = torch.tensor([margin], requires_grad=True)
        losses.preference.discopop_loss(chosen, torch.zeros(1)).sum().backward()
        slopes.append(chosen.grad.item())
    assert slopes[0] > 0 > slopes[1]


def test_sft_moves_the_chosen_answer_alone_and_apo_down_widens_the_gap(scores):
    for name, sign in (("SFTLoss", 0), ("APODownLoss", 1)):
        policy = scores.reference.text.clone().requires_grad_()
        start = replace(scores, policy=AnswerSums(policy, scores.reference.speech))
        TextStream()(getattr(losses, name)(), start).sum().backward()
        assert (policy.grad[1].sign() == sign).all()


def test_golden_values():
    one = PairScores(
        sums([[-1.0], [-5.0]], [[0.0], [0.0]]),
        sums([[2.0], [4.0]], [[0.0], [0.0]]),
        sums([[-3.0], [-3.0]], [[0.0], [0.0]]),
    )
    # ratios +2 and -2, per token +1 and -0.5; log-probabilities per token -0.5 and -1.25
    assert DPOLoss(beta=0.5)(one).item() == pytest.approx(math.log1p(math.exp(-2)))
    assert NormalizedDPOLoss(beta=2.0)(one).item() == pytest.approx(math.log1p(math.exp(-3)))
    assert IPOLoss(beta=0.5)(one).item() == pytest.approx(0.25)
    assert SimPOLoss(beta=2.0, gamma=0.5)(one).item() == pytest.approx(math.log1p(math.exp(-1)))
    assert SFTLoss()(one).item() == pytest.approx(0.5)
    assert DPOLoss(beta=0.5).rewards(one).tolist() == [[1.0], [-1.0]]


def test_mixed_losses_add_up(scores):
    parts = [DPOLoss(), BCOLoss(), SFTLoss()]
    mixed = MixedPreferenceLoss(parts, [0.8, 0.2, 1.0])
    want = sum(w * part(scores) for w, part in zip([0.8, 0.2, 1.0], parts, strict=True))
    torch.testing.assert_close(mixed(scores), want)
    torch.testing.assert_close(mixed.rewards(scores), parts[0].rewards(scores))
    assert mixed.needs_reference
    assert not MixedPreferenceLoss([SimPOLoss(), SFTLoss()], [1.0, 0.1]).needs_reference


def test_separate_streams_are_two_comparisons(scores):
    loss, other = DPOLoss(beta=0.2), NormalizedDPOLoss(beta=1.0)
    text, speech = TextStream()(loss, scores), SpeechStream()(loss, scores)
    torch.testing.assert_close(SeparateStreams(0.4, 0.6)(loss, scores), 0.4 * text + 0.6 * speech)
    own = SeparateStreams(0.4, 0.6, speech_loss=other)
    torch.testing.assert_close(own(loss, scores), 0.4 * text + 0.6 * SpeechStream()(other, scores))
    assert own.needs_reference(SimPOLoss())
    assert not SeparateStreams().needs_reference(SimPOLoss())


@pytest.mark.parametrize("name", EVERY)
def test_a_pair_without_speech_drops_the_term(scores, name):
    """Also one whose second answer alone has none: that tells nothing about speech."""
    loss = getattr(losses, name)(**EVERY[name])
    counts = scores.counts.speech.clone()
    counts[:, 0] = counts[1, 1] = 0
    policy = AnswerSums(scores.policy.text.clone().requires_grad_(), scores.policy.speech.clone().requires_grad_())
    without = replace(scores, policy=policy, counts=replace(scores.counts, speech=counts))
    text = TextStream()(loss, scores)
    joint, separate, speech = (m(loss, without) for m in (JointStreams(), SeparateStreams(), SpeechStream()))
    alike = slice(0, 1 if name == "SFTLoss" else 2)  # the likelihood of an answer does not ask the other one
    torch.testing.assert_close(joint[alike], text[alike])
    torch.testing.assert_close(separate[:2], text[:2])
    assert speech[:2].tolist() == [0, 0]
    torch.testing.assert_close(joint[2], JointStreams()(loss, scores)[2])
    (joint + separate + speech).sum().backward()
    assert policy.speech.grad[:, alike].abs().sum() == 0
    assert policy.speech.grad.isfinite().all()
    assert policy.text.grad.isfinite().all()


def optimum(loss, share, steps=3000):
    """Log-ratio margin at which gradient descent on two answers ends, of which one wins a ``share`` of the pairs."""
    logits = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.02)
    zeros, ones = torch.zeros(2, 2), torch.ones(2, 2)
    for _ in range(steps):
        logprobs = logits.log_softmax(0)
        both = torch.stack([logprobs, logprobs.flip(0)], 1)  # (2, P): pair 0 wins, pair 1 is swapped
        reference = torch.full((2, 2), -LOG2)
        each = TextStream()(
            loss, PairScores(AnswerSums(both, zeros), AnswerSums(ones, zeros), AnswerSums(reference, zeros))
        )
        optimizer.zero_grad()
        (share * each[0] + (1 - share) * each[1]).backward()
        optimizer.step()
    return (logits[0] - logits[1]).item()


@pytest.mark.parametrize(
    ("loss", "share", "want"),
    [
        (DPOLoss(beta=0.5), 0.8, math.log(4) / 0.5),  # Bradley-Terry: the margin is the log-odds over beta
        (IPOLoss(beta=0.5), 1.0, 1.0),  # 1 / (2 beta)
        (ConservativeDPOLoss(beta=0.5, label_smoothing=0.2), 1.0, math.log(4) / 0.5),
        (RobustDPOLoss(beta=0.5, label_smoothing=0.1), 0.74, math.log(4) / 0.5),  # 0.74 = 0.8 seen through the noise
    ],
)
def test_a_closed_form_toy_reaches_its_optimum(loss, share, want):
    assert optimum(loss, share, 600) == pytest.approx(want, abs=0.02)


@pytest.mark.parametrize("kind", [BCOLoss, KTOLoss])
def test_a_baseline_moves_with_the_step_and_not_before(scores, kind):
    loss, half = kind(momentum=0.5), kind(momentum=0.5)
    first = JointStreams()(loss, scores)
    assert loss.baseline == 0
    torch.testing.assert_close(JointStreams()(loss, scores), first)
    loss.end_step()
    mean = loss.rewards(scores).mean()
    torch.testing.assert_close(loss.baseline, 0.5 * mean)
    for i in range(3):  # the same pairs one by one
        JointStreams()(half, scores.take(torch.tensor([i])))
    MixedPreferenceLoss([half], [1.0]).end_step()
    torch.testing.assert_close(half.baseline, loss.baseline)
    half.end_step()  # a step without pairs
    torch.testing.assert_close(half.baseline, loss.baseline)
    separate = SeparateStreams(speech_loss=half)
    before = half.baseline.clone()
    separate(DPOLoss(), scores)
    separate.end_step()
    assert half.baseline != before
    half.eval()
    before = half.baseline.clone()
    JointStreams()(half, scores)
    half.end_step()
    assert half.baseline == before
    assert "baseline" in half.state_dict()


def test_kto_knows_no_negative_baseline(scores):
    loss = KTOLoss()
    loss.baseline.fill_(-1.0)
    torch.testing.assert_close(loss(scores), KTOLoss()(scores))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DPOLoss(beta=0), "beta must be above 0, got 0"),
        (lambda: DPOLoss(nu=2), r"nu must lie between 0 \(sums over tokens\) and 1 \(means\), got 2"),
        (lambda: RobustDPOLoss(label_smoothing=0.5), r"label_smoothing must lie in \[0, 0.5\), got 0.5"),
        (lambda: EXOLoss(label_smoothing=0), "label_smoothing must be above 0"),
        (lambda: losses.DiscoPOPLoss(temperature=0), "temperature must be above 0, got 0"),
        (lambda: SimPOLoss(gamma=-1), "gamma must not be negative, got -1"),
        (lambda: KTOLoss(momentum=2), "momentum must lie between 0 and 1, got 2"),
        (lambda: KTOLoss(chosen_weight=-1), "weights must not be negative, got -1 and 1.0"),
        (lambda: MixedPreferenceLoss([DPOLoss()], [1, 2]), "1 losses and 2 weights"),
        (lambda: JointStreams(0, 0), r"weights of text \(0\) and speech \(0\) must not be negative, nor both 0"),
        (lambda: SeparateStreams(1, -1), r"speech \(-1\) must not be negative"),
    ],
)
def test_senseless_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_lengths_are_those_of_what_is_compared(scores):
    counts = scores.counts.speech.clone()
    counts[1, 0] = 0
    scores = replace(scores, counts=replace(scores.counts, speech=counts))
    torch.testing.assert_close(scores.weighted(0.5, 2.0).lengths()[:, 0], scores.counts.text[:, 0])
    torch.testing.assert_close(scores.lengths()[:, 1], scores.counts.text[:, 1] + counts[:, 1])
    torch.testing.assert_close(
        scores.weighted(0, 1).lengths(), counts.masked_fill(torch.tensor([True, False, False]), 0)
    )


def test_a_missing_reference_is_told(scores):
    with pytest.raises(ValueError, match="come without log-probabilities of one; name a reference"):
        DPOLoss()(replace(scores, reference=None))
    assert SimPOLoss()(replace(scores, reference=None)).isfinite().all()
    assert ORPOLoss()(replace(scores, reference=None)).isfinite().all()


def test_a_certain_answer_has_finite_odds():
    policy = torch.tensor([[0.0], [-1.0]], requires_grad=True)
    counts = AnswerSums(torch.ones(2, 1), torch.zeros(2, 1))
    ORPOLoss()(PairScores(AnswerSums(policy, torch.zeros(2, 1)), counts)).sum().backward()
    assert policy.grad.isfinite().all()


def preference_batch(line, answers):
    """All labels of a line weigh 1; ``answers`` of its rows."""
    rows = torch.arange(len(answers)).repeat_interleave(line.lengths)
    answers = torch.tensor(answers)
    pairs = len(answers) // 2
    return PreferenceBatch(
        line=line,
        text_answers=answers[rows],
        text_weights=(line.text_labels != IGNORE).float(),
        speech_answers=answers[rows[line.speech_positions]],
        speech_weights=(line.speech_labels != IGNORE).float(),
        tasks=torch.zeros(pairs, dtype=torch.long),
        weights=torch.ones(pairs),
        task_totals=torch.tensor([pairs]),
        task_names=("only",),
    )


def test_labels_are_summed_by_answer_with_their_weights():
    model = tiny_speech_lm(num_codebooks=2)
    line = tiny_batch(model, rows=4)
    batch = preference_batch(line, [0, 2, 1, 3])
    half = torch.rand(len(line.text_ids))
    batch = replace(batch, text_weights=batch.text_weights * half)
    with torch.no_grad():
        output = model(line)
    found, counts = answer_logprobs(output, batch), answer_counts(batch)
    starts = [0, *line.lengths.cumsum(0).tolist()]
    for row, answer in enumerate([0, 2, 1, 3]):
        mine = [i for i, p in enumerate(output.text_positions) if starts[row] <= p < starts[row + 1]]
        text = sum(output.text_logprobs[i] * half[output.text_positions[i]] for i in mine)
        said = (line.speech_positions >= starts[row]) & (line.speech_positions < starts[row + 1])
        torch.testing.assert_close(found.text.flatten()[answer], text)
        torch.testing.assert_close(found.speech.flatten()[answer], output.speech.logprobs[said].sum())
        assert counts.speech.flatten()[answer] == output.speech.mask[said].sum()
        assert counts.text.flatten()[answer] == pytest.approx(sum(half[output.text_positions[i]].item() for i in mine))
    assert found.text.dtype == torch.float32


def test_text_only_pairs_have_zero_speech():
    model = tiny_speech_lm()
    batch = preference_batch(tiny_batch(model, rows=2, speech=False), [0, 1])
    found = answer_logprobs(model(batch.line), batch)
    assert found.speech.tolist() == answer_counts(batch).speech.tolist() == [[0.0], [0.0]]
