from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fac_lightning.adapters import (
    ConcatCodeGrouping,
    ConcatGrouping,
    MeanCodeGrouping,
    MeanFusion,
    MeanGrouping,
    SumFusion,
)
from fac_lightning.heads import ParallelHead, RefinedHead, TextRefinedHead
from fac_lightning.models import SpeechLM
from fac_lightning.testing import FrameEncoder, tiny_backbone, tiny_batch, tiny_speech_lm
from fac_lightning.types import IGNORE, Waveforms


def loss(output):
    return output.text_loss_sum + output.speech_loss_sum


def one_row(batch, row):
    """The row of a packed line as a line of its own."""
    start, size = int(batch.lengths[:row].sum()), int(batch.lengths[row])

    def inside(positions):
        return (positions >= start) & (positions < start + size)

    span, codes, said = slice(start, start + size), inside(batch.code_positions), inside(batch.speech_positions)
    clip = slice(row, row + 1)
    return replace(
        batch,
        text_ids=batch.text_ids[span],
        text_mask=batch.text_mask[span],
        position_ids=batch.position_ids[span],
        lengths=batch.lengths[clip],
        text_labels=batch.text_labels[span],
        codes=batch.codes[codes],
        code_positions=batch.code_positions[codes] - start,
        speech_positions=batch.speech_positions[said] - start,
        speech_labels=batch.speech_labels[said],
        reply_lengths=batch.reply_lengths[clip],
        audio=Waveforms(batch.audio.audio[clip], batch.audio.lengths[clip], batch.audio.sample_rate),
        feature_positions=batch.feature_positions[inside(batch.feature_positions)] - start,
    )


MODELS = {
    "refined": lambda: tiny_speech_lm(),
    "text": lambda: tiny_speech_lm(head=TextRefinedHead(16, 5, 32, width=16, num_layers=1, num_heads=2)),
    "parallel": lambda: tiny_speech_lm(head=ParallelHead(16, 5, 32)),
    "codebooks": lambda: tiny_speech_lm(group_size=2, num_codebooks=3),
}


@pytest.mark.parametrize("kind", MODELS)
def test_rows_packed_together_score_as_each_alone(kind):
    model = MODELS[kind]()
    batch = tiny_batch(model, rows=3)
    packed = model(batch)
    alone = [model(one_row(batch, row)) for row in range(3)]
    torch.testing.assert_close(packed.text_logprobs, torch.cat([o.text_logprobs for o in alone]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        packed.speech.logprobs, torch.cat([o.speech.logprobs for o in alone]), atol=1e-5, rtol=1e-5
    )
    assert packed.text_count == batch.text_token_total
    assert int(packed.speech_count) == batch.speech_token_total


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_learns(kind):
    model = MODELS[kind]()
    loss(model(tiny_batch(model))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_text_log_probabilities_are_those_of_the_full_logits():
    model = tiny_speech_lm()
    batch = tiny_batch(model)
    output = model(batch)
    hidden = model.backbone(model.embed(batch), batch.position_ids, batch.lengths)
    full = model.backbone.logits(hidden).log_softmax(-1)
    labelled = batch.text_labels != IGNORE
    want = full[labelled].gather(1, batch.text_labels[labelled][:, None]).squeeze(1)
    torch.testing.assert_close(output.text_logprobs, want)
    assert torch.equal(output.text_positions, labelled.nonzero().squeeze(1))
    assert torch.equal(output.text_correct, full[labelled].argmax(1) == batch.text_labels[labelled])


def test_what_is_no_label_changes_no_score_and_what_is_masked_is_not_read():
    model = tiny_speech_lm()
    batch = tiny_batch(model)
    ids = batch.text_ids.clone()
    ids[~batch.text_mask] = 10**6  # would be out of range if it were embedded
    torch.testing.assert_close(model(replace(batch, text_ids=ids)).text_logprobs, model(batch).text_logprobs)


def test_streams_meet_as_the_fusion_says():
    model = tiny_speech_lm()
    batch = tiny_batch(model)
    text = model.backbone.embed(batch.text_ids.masked_fill(~batch.text_mask, 0))
    codes, heard = model.code_adapter(batch.codes), model.hear(batch.audio.audio, batch.audio.lengths)
    added = model.embed(batch)
    torch.testing.assert_close(added[batch.code_positions], text[batch.code_positions] + codes)
    torch.testing.assert_close(added[batch.feature_positions], heard)
    model.fusion = MeanFusion()
    averaged = model.embed(batch)
    torch.testing.assert_close(averaged[batch.code_positions], (text[batch.code_positions] + codes) / 2)
    torch.testing.assert_close(averaged[batch.feature_positions], heard)


def test_all_three_streams_may_share_a_position():
    model = tiny_speech_lm()
    batch = tiny_batch(model)
    shared = replace(batch, text_mask=torch.ones_like(batch.text_mask), feature_positions=batch.code_positions[:3])
    text, heard = model.backbone.embed(batch.text_ids), model.hear(batch.audio.audio, batch.audio.lengths)
    want = text[batch.code_positions[:3]] + model.code_adapter(batch.codes)[:3] + heard
    torch.testing.assert_close(model.embed(shared)[batch.code_positions[:3]], want)


def test_the_same_clip_is_heard_alike_alone_and_in_a_batch():
    model = tiny_speech_lm()
    audio, lengths = torch.randn(3, 530), torch.tensor([530, 41, 200])
    together = model.hear(audio, lengths).split([3, 1, 1])
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(together[row], model.hear(audio[row : row + 1, :length], lengths[row : row + 1]))


def test_text_only_lines_have_zero_speech_loss_and_finite_gradients():
    model = tiny_speech_lm()
    output = model(tiny_batch(model, speech=False))
    assert output.speech_loss_sum.item() == 0
    assert int(output.speech_count) == 0
    loss(output).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is None or g.isfinite().all() for g in grads.values())
    # every trained slot takes part, as distributed training wants; the encoder does not run without audio
    assert {n.split(".")[0] for n, g in grads.items() if g is None} == {"encoder"}
    assert not grads["code_adapter.proj.weight"].any()


def test_processes_that_must_agree_get_a_zero_gradient_without_audio(monkeypatch):
    model = tiny_speech_lm()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    model.encoder.proj.bias.requires_grad_(False)
    loss(model(tiny_batch(model, speech=False))).backward()
    assert model.encoder.proj.weight.grad is not None
    assert not model.encoder.proj.weight.grad.any()
    assert model.encoder.proj.bias.grad is None


def test_lines_without_text_labels_have_zero_text_loss():
    model = tiny_speech_lm()
    batch = tiny_batch(model)
    output = model(replace(batch, text_labels=torch.full_like(batch.text_labels, IGNORE)))
    assert output.text_loss_sum.item() == 0
    loss(output).backward()
    assert model.backbone.output_weight.grad is not None


def test_a_text_model_needs_one_slot():
    full = tiny_speech_lm()
    batch = tiny_batch(full, speech=False)
    bare = SpeechLM(full.backbone)
    torch.testing.assert_close(bare(batch).text_logprobs, full(batch).text_logprobs)
    assert bare(batch).speech_loss_sum.item() == 0
    assert bare.geometry.samples_per_position == bare.geometry.codebook_size == 0


def test_geometry_comes_from_the_parts():
    geometry = tiny_speech_lm(group_size=2, num_codebooks=3, codebook_size=7, hop_length=20).geometry
    assert (geometry.samples_per_position, geometry.group_size, geometry.num_codebooks) == (40, 2, 3)
    assert (geometry.codebook_size, geometry.sample_rate, geometry.vocab_size) == (7, 1000, 320)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (("head",), "groups to say but the model has no head"),
        (("code_adapter", "fusion"), "groups of codes but the model has no code_adapter"),
        (("encoder", "feature_adapter"), "holds user speech but the model has no encoder"),
    ],
)
def test_a_stream_without_its_slot_is_refused(drop, message):
    model = tiny_speech_lm()
    batch = tiny_batch(model)
    slots = {name: part for name, part in model.named_children() if name not in drop}
    with pytest.raises(ValueError, match=message):
        SpeechLM(**slots)(batch)


def test_features_and_positions_must_agree():
    model = tiny_speech_lm()
    batch = tiny_batch(model)
    with pytest.raises(ValueError, match="3 speech embeddings for 2 positions"):
        model(replace(batch, feature_positions=batch.feature_positions[:2]))


def slots(**changes):
    parts = {
        "backbone": tiny_backbone(dim=16),
        "head": RefinedHead(16, 5, 32, width=16, num_layers=1, num_heads=2),
        "encoder": FrameEncoder(dim=8),
        "feature_adapter": MeanGrouping(8, 5, 16),
        "code_adapter": MeanCodeGrouping(32, 5, 16),
        "fusion": SumFusion(),
    }
    return parts | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code_adapter": MeanCodeGrouping(32, 5, 8)}, r"code_adapter.dim \(8\) != backbone.dim \(16\): set vars.dim"),
        ({"head": ParallelHead(24, 5, 32)}, r"head.dim \(24\) != backbone.dim \(16\): set vars.dim to 16"),
        ({"feature_adapter": ConcatGrouping(8, 5, 12)}, r"feature_adapter.dim \(12\) != backbone.dim \(16\)"),
        ({"feature_adapter": ConcatGrouping(9, 5, 16)}, r"feature_adapter.in_dim \(9\) != encoder.dim \(8\)"),
        ({"code_adapter": ConcatCodeGrouping(32, 4, 16)}, r"code_adapter.group_size \(4\) != head.group_size \(5\)"),
        ({"code_adapter": ConcatCodeGrouping(31, 5, 16)}, r"code_adapter.codebook_size \(31\) != head.codebook_size"),
        ({"code_adapter": ConcatCodeGrouping(32, 5, 16, 2)}, r"code_adapter.num_codebooks \(2\) != head.num_codebooks"),
        ({"encoder": None}, "feature_adapter is set but encoder is not"),
        ({"feature_adapter": None}, "encoder is set but feature_adapter is not"),
        ({"fusion": None}, "SumFusion or MeanFusion"),
    ],
)
def test_slots_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SpeechLM(**slots(**changes))


def test_the_encoder_may_be_frozen():
    model = SpeechLM(**slots())
    model.encoder.requires_grad_(False)
    for speech in (True, False):
        loss(model(tiny_batch(model, speech=speech))).backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert model.feature_adapter.proj.weight.grad.any()


def test_half_precision_autocast_runs_every_stream():
    model = tiny_speech_lm()
    batch = tiny_batch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch)
    assert output.text_logprobs.dtype == output.speech.logprobs.dtype == torch.float32
    loss(output).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert loss(output).item() == pytest.approx(loss(model(batch)).item(), rel=0.05)


def test_overfits_one_line():
    model = tiny_speech_lm()
    batch, optimizer = tiny_batch(model), torch.optim.AdamW(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        output = model(batch)
        loss(output).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert output.text_correct.all()
    assert output.speech.correct[output.speech.mask].float().mean() > 0.95
