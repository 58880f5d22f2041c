"""CIF: when a position fires, what it holds, and a model that leaves the other positions out."""

from dataclasses import replace

import pytest
import torch

from fac_lightning.adapters import AddFusion, CIFGrouping
from fac_lightning.adapters.cif import integrate
from fac_lightning.generation.memory import BackboneState
from fac_lightning.generation.stepping import read_prompt
from fac_lightning.models import SpeechLM
from fac_lightning.models.unheard import without_unheard
from fac_lightning.testing import FrameEncoder, check_adapter, tiny_batch, tiny_speech_lm
from fac_lightning.types import IGNORE


def by_hand(frames, weights, group_size):
    """One clip, frame after frame, as the paper puts it: what fires, by position, and what is left."""
    total, value, fired = 0.0, torch.zeros(frames.shape[1]), {}
    for step, (frame, weight) in enumerate(zip(frames, weights.double().tolist(), strict=True)):
        if total + weight >= 1:
            fired[step // group_size] = value + (1 - total) * frame
            total = total + weight - 1
            value = total * frame
        else:
            total, value = total + weight, value + weight * frame
    return fired, total, value


def test_integrating_is_what_the_paper_does_frame_by_frame():
    torch.manual_seed(0)
    frames, weights = torch.randn(3, 40, 5), torch.rand(3, 40) / 4
    done = integrate(frames, weights, 4, torch.zeros(3, dtype=torch.float64), torch.zeros(3, 5))
    for row in range(3):
        fired, weight, value = by_hand(frames[row], weights[row], 4)
        assert done.fired[row].nonzero().flatten().tolist() == sorted(fired)
        torch.testing.assert_close(done.values[row][done.fired[row]], torch.stack(list(fired.values())))
        assert done.weight[row].item() == pytest.approx(weight, abs=1e-6)
        torch.testing.assert_close(done.carry[row], value)


def test_integrating_has_the_gradient_of_the_paper():
    torch.manual_seed(0)
    frames, weights = torch.randn(24, 5), (torch.rand(24) / 4).requires_grad_()
    done = integrate(frames[None], weights[None], 4, torch.zeros(1, dtype=torch.float64), torch.zeros(1, 5))
    got = torch.autograd.grad(done.values[0][done.fired[0]].square().sum(), weights)[0]
    total, value, fired = torch.zeros(()), torch.zeros(5), []
    for frame, weight in zip(frames, weights, strict=True):
        if total + weight >= 1:
            fired.append(value + (1 - total) * frame)
            total = total + weight - 1
            value = total * frame
        else:
            total, value = total + weight, value + weight * frame
    want = torch.autograd.grad(torch.stack(fired).square().sum(), weights)[0]
    torch.testing.assert_close(got, want)


def test_equal_weights_fire_at_the_target_rate_and_what_is_left_fires_if_it_is_a_half():
    adapter = CIFGrouping(in_dim=3, group_size=4, dim=3, target_rate=0.5, kernel_size=1).eval()
    torch.nn.init.zeros_(adapter.weigh.weight)  # every frame weighs 0.5 / 4
    frames = torch.randn(3, 20, 3)
    out = adapter(frames, torch.tensor([20, 16, 13]))
    # eight frames, but for rounding, make one position; at the end 0.5, 1 and 0.625 are left
    assert out.present.tolist() == [
        [False, False, True, False, True],
        [False, False, True, True, False],
        [False, False, True, True, False],
    ]
    assert not out.features[~out.present].any()
    mean = frames[2, 9:13].mean(0)  # of the 0.625 that were left a little went to the frame before
    torch.testing.assert_close(out.features[2, 3], adapter.proj(mean), atol=0.2, rtol=0.2)


def test_the_quantity_loss_holds_the_rate_and_only_in_training():
    torch.manual_seed(0)
    adapter = CIFGrouping(in_dim=3, group_size=4, dim=3, target_rate=0.25, quantity_weight=2.0)
    frames, lengths = torch.randn(2, 40, 3), torch.tensor([40, 23])
    adapter.eval()(frames, lengths)
    assert adapter.auxiliary_loss() is None
    adapter.train()
    torch.nn.init.zeros_(adapter.weigh.weight)
    adapter(frames, lengths)
    assert adapter.auxiliary_loss().item() == pytest.approx(0, abs=1e-4)
    torch.nn.init.constant_(adapter.weigh.bias, 10.0)
    adapter(frames, lengths)
    assert adapter.auxiliary_loss().item() == pytest.approx(2 * 0.75, abs=1e-3)
    assert adapter.auxiliary_loss() is None
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.2)
    for _ in range(120):
        optimizer.zero_grad()
        adapter(frames, lengths)
        adapter.auxiliary_loss().backward()
        optimizer.step()
    assert adapter(frames, lengths).present.sum().item() in (3, 4, 5)  # of 16 positions


def test_no_group_fires_twice_however_heavy_its_frames():
    adapter = CIFGrouping(in_dim=3, group_size=3, dim=3).eval()
    torch.nn.init.constant_(adapter.weigh.bias, 1e4)
    out = adapter(torch.randn(1, 3000, 3), torch.tensor([3000]))
    assert out.present.sum() == 999  # of 1000: the first falls short of one by a millionth
    check_adapter(adapter)


def test_senseless_settings_are_refused():
    with pytest.raises(ValueError, match=r"target_rate must lie between 0 and 1.*got 1.0, 3 and 1.0"):
        CIFGrouping(3, 4, 8, target_rate=1.0)


def variable_model(seed=0, **sizes):
    """A model that hears at a variable rate, one position in two."""
    torch.manual_seed(seed)
    model = tiny_speech_lm(encoder=FrameEncoder(hop_length=20), **sizes)
    model.feature_adapter = CIFGrouping(model.encoder.dim, 2, model.backbone.dim)
    return model.eval()


def test_the_backbone_runs_without_the_positions_at_which_nothing_fired():
    model = variable_model()
    batch = tiny_batch(model, rows=4)
    _, present = model._listen(batch.audio.audio, batch.audio.lengths)
    assert present.any()
    assert not present.all()
    read = model.read(batch)
    assert len(read.embeds) == len(batch.text_ids) - int((~present).sum()) == int(read.batch.lengths.sum())
    assert torch.equal(read.batch.text_ids, batch.text_ids[read.kept])
    assert torch.equal(batch.feature_positions[present], read.kept[read.batch.feature_positions])
    for name in ("code_positions", "speech_positions"):
        assert torch.equal(getattr(batch, name), read.kept[getattr(read.batch, name)])
    starts = (read.batch.lengths.cumsum(0) - read.batch.lengths).tolist()
    for start, length in zip(starts, read.batch.lengths.tolist(), strict=True):
        assert read.batch.position_ids[start : start + length].tolist() == list(range(length))


def test_scores_are_those_of_the_shorter_line_and_are_told_where_the_long_one_has_them():
    model = variable_model()
    batch = tiny_batch(model, rows=4)
    output, read = model(batch), model.read(batch)
    assert torch.equal(output.text_positions, (batch.text_labels != IGNORE).nonzero().squeeze(1))
    assert output.text_count == batch.text_token_total
    hidden = model.backbone(read.embeds, read.batch.position_ids, read.batch.lengths)
    labels = read.batch.text_labels
    full = model.backbone.logits(hidden).log_softmax(-1)[labels != IGNORE]
    torch.testing.assert_close(output.text_logprobs, full.gather(1, labels[labels != IGNORE][:, None]).squeeze(1))


def test_a_position_that_carries_anything_else_stays():
    model = variable_model()
    batch = tiny_batch(model, rows=4)
    _, present = model._listen(batch.audio.audio, batch.audio.lengths)
    silent = batch.feature_positions[~present]
    said = replace(batch, text_mask=batch.text_mask.index_fill(0, silent[:1], True))
    labelled = replace(batch, text_labels=batch.text_labels.index_fill(0, silent[:1], 7))
    spoken = replace(batch, code_positions=torch.cat([silent[:1], batch.code_positions[1:]]))
    for busy in (said, labelled, spoken):
        shorter, kept = without_unheard(busy, present)
        assert silent[0] in kept
        assert len(kept) == len(batch.text_ids) - len(silent) + 1
        assert len(shorter.feature_positions) == int(present.sum())


def test_rows_that_continue_another_row_count_on_from_it():
    model = variable_model()
    batch = tiny_batch(model, rows=3)
    first = int(batch.lengths[0])
    ids = torch.cat([torch.arange(first), first + torch.arange(int(batch.lengths[1:].sum()))])
    ids[first + int(batch.lengths[1]) :] -= int(batch.lengths[1])
    shared = replace(batch, parents=torch.tensor([-1, 0, 0]), position_ids=ids)
    present = torch.zeros(len(batch.feature_positions), dtype=torch.bool)
    shorter, _ = without_unheard(shared, present)
    one, two, three = shorter.lengths.tolist()
    want = [*range(one), *range(one, one + two), *range(one, one + three)]
    assert shorter.position_ids.tolist() == want


def test_a_prompt_is_read_without_them_too():
    model = variable_model()
    batch = tiny_batch(model, rows=4)
    none = torch.zeros(0, dtype=torch.long)
    prompt = replace(
        batch,
        codes=batch.codes[:0],
        code_positions=none,
        speech_positions=none,
        speech_labels=batch.speech_labels[:0],
        text_labels=torch.full_like(batch.text_labels, IGNORE),
    )
    with torch.inference_mode():
        last = read_prompt(model, prompt, BackboneState(model, 4))
        read = model.read(prompt)
        hidden = model.backbone(read.embeds, read.batch.position_ids, read.batch.lengths)
    assert len(read.embeds) < len(prompt.text_ids)
    torch.testing.assert_close(last, hidden[read.batch.lengths.cumsum(0) - 1], atol=1e-5, rtol=1e-5)


def test_everything_learns_also_what_weighs_the_frames():
    model = variable_model().train()
    batch = tiny_batch(model, rows=4)
    output = model(batch)
    (output.text_loss_sum + output.speech_loss_sum + output.auxiliary["feature_adapter"]).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.zero_grad()
    model(tiny_batch(model, speech=False)).text_loss_sum.backward()
    assert [n for n, p in model.feature_adapter.named_parameters() if p.grad is None] == []


def test_a_fusion_that_reads_codes_at_every_position_of_the_user_is_refused():
    model = variable_model()
    with pytest.raises(ValueError, match="CIFGrouping leaves positions of user speech out, but fusion AddFusion reads"):
        SpeechLM(
            model.backbone,
            encoder=model.encoder,
            feature_adapter=model.feature_adapter,
            code_adapter=model.code_adapter,
            fusion=AddFusion(),
        )
