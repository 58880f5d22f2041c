"""Groupings by convolution, by a transformer inside the group, and by attention."""

import pytest
import torch
import torch.nn.functional as F

from fac_lightning.adapters import (
    AttentionCodeGrouping,
    AttentionGrouping,
    CIFGrouping,
    ConcatGrouping,
    ConvGrouping,
    TransformerCodeGrouping,
    TransformerGrouping,
)
from fac_lightning.generation import Decoding, Generator, UserTurn
from fac_lightning.prompts import ChatFormat
from fac_lightning.testing import check_adapter, tiny_batch, tiny_speech_lm
from fac_lightning.text_tokenizer import train_text_tokenizer
from fac_lightning.types import pad_code

FEATURES = {
    "conv": lambda in_dim, k, dim: ConvGrouping(in_dim, k, dim),
    "conv of one group": lambda in_dim, k, dim: ConvGrouping(in_dim, k, dim, kernel_size=k),
    "conv far back": lambda in_dim, k, dim: ConvGrouping(in_dim, k, dim, kernel_size=3 * k + 1),
    "transformer": lambda in_dim, k, dim: TransformerGrouping(in_dim, k, dim, width=12, num_layers=2, num_heads=2),
    "attention": lambda in_dim, k, dim: AttentionGrouping(in_dim, k, dim),
    "attention of three": lambda in_dim, k, dim: AttentionGrouping(in_dim, k, dim, num_queries=3, num_heads=2),
    "fire": lambda in_dim, k, dim: CIFGrouping(in_dim, k, dim),
    "fire often": lambda in_dim, k, dim: CIFGrouping(in_dim, k, dim, target_rate=0.9, kernel_size=1),
}
CODES = {
    "transformer": lambda *sizes: TransformerCodeGrouping(*sizes, num_layers=1, num_heads=2),
    "attention": lambda *sizes: AttentionCodeGrouping(*sizes, num_queries=2, num_heads=2),
}


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("group_size", [1, 2, 5])
def test_groupings_of_features_keep_the_contract(kind, group_size):
    torch.manual_seed(0)
    check_adapter(FEATURES[kind](6, group_size, 8))


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize(("group_size", "num_codebooks", "embed_dim"), [(5, 1, None), (1, 1, None), (2, 3, 4)])
def test_groupings_of_codes_keep_the_contract(kind, group_size, num_codebooks, embed_dim):
    torch.manual_seed(0)
    check_adapter(CODES[kind](16, group_size, 8, num_codebooks, embed_dim))


def test_a_convolution_sees_the_frames_that_its_kernel_covers_and_no_others():
    torch.manual_seed(0)
    adapter = ConvGrouping(in_dim=3, group_size=2, dim=4, kernel_size=5)
    assert adapter.context == "past"
    assert ConvGrouping(3, 2, 4, kernel_size=2).context == "group"
    frames = torch.randn(1, 10, 3).requires_grad_()
    adapter(frames, torch.tensor([10])).features[0, 3].sum().backward()  # group 3: frames 6 and 7
    assert frames.grad[0].abs().sum(1).nonzero().flatten().tolist() == [3, 4, 5, 6, 7]
    hidden = F.conv1d(F.pad(frames.transpose(1, 2), (3, 0)), adapter.conv.weight, adapter.conv.bias, stride=2)
    torch.testing.assert_close(
        adapter(frames, torch.tensor([10])).features, adapter.proj(F.gelu(hidden).transpose(1, 2))
    )


@pytest.mark.parametrize("kind", ["transformer", "attention"])
def test_a_group_that_is_not_full_knows_only_the_frames_it_has(kind):
    torch.manual_seed(0)
    adapter = FEATURES[kind](6, 4, 8).eval()
    frames = torch.randn(1, 8, 6)
    dirty = frames.clone()
    dirty[0, 6:] = 1e3
    lengths = torch.tensor([6])
    clean = adapter(frames, lengths).features
    torch.testing.assert_close(adapter(dirty, lengths).features, clean)
    longer = adapter(frames, torch.tensor([7])).features
    assert not torch.allclose(longer[0, 1], clean[0, 1], atol=1e-4)


@pytest.mark.parametrize("kind", ["transformer", "attention"])
def test_the_order_of_frames_counts(kind):
    torch.manual_seed(0)
    adapter = FEATURES[kind](6, 4, 8).eval()
    torch.nn.init.normal_((adapter.patch if kind == "transformer" else adapter.attend).places)
    frames, lengths = torch.randn(1, 4, 6), torch.tensor([4])
    turned = adapter(frames.flip(1), lengths).features
    assert not torch.allclose(adapter(frames, lengths).features, turned, atol=1e-3)


@pytest.mark.parametrize("kind", CODES)
def test_pad_codes_behind_the_end_are_not_seen(kind):
    torch.manual_seed(0)
    adapter = CODES[kind](16, 4, 8, 2).eval()
    codes = torch.randint(0, 16, (1, 4, 2))
    codes[0, 2:] = pad_code(16)
    module = adapter.patch if kind == "transformer" else adapter.attend
    before = adapter(codes)
    with torch.no_grad():
        module.places[2:] = 100.0
    torch.testing.assert_close(adapter(codes), before)


@pytest.mark.parametrize("kind", FEATURES)
def test_every_parameter_has_a_gradient_also_where_nothing_was_heard(kind):
    adapter = FEATURES[kind](6, 4, 8)
    for clips, frames in ((0, 0), (2, 0), (2, 3)):
        adapter.zero_grad()
        out = adapter(torch.zeros(clips, frames, 6), torch.zeros(clips, dtype=torch.long))
        assert out.features.shape == (clips, -(-frames // 4), 8)
        out.features.sum().backward()
        assert [name for name, p in adapter.named_parameters() if p.grad is None or p.grad.any()] == []


@pytest.mark.parametrize("kind", FEATURES)
def test_half_precision_runs(kind):
    torch.manual_seed(0)
    adapter = FEATURES[kind](6, 4, 8).eval()
    frames, lengths = torch.randn(2, 21, 6), torch.tensor([21, 9])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = adapter(frames, lengths)
    want = adapter(frames, lengths)
    if want.present is None or torch.equal(want.present, mixed.present):
        torch.testing.assert_close(mixed.features.float(), want.features, atol=0.1, rtol=0.1)
    half = adapter.to(torch.bfloat16)(frames.bfloat16(), lengths)
    assert half.features.dtype == torch.bfloat16
    assert half.features.isfinite().all()


@pytest.mark.parametrize("kind", FEATURES)
def test_a_model_with_it_learns_and_talks(kind, tmp_path):
    torch.manual_seed(0)
    chat = ChatFormat(train_text_tokenizer(["one and two"], vocab_size=300, folder=tmp_path / "text"))
    model = tiny_speech_lm(vocab_size=len(chat.tokenizer))
    model.feature_adapter = FEATURES[kind](model.encoder.dim, 5, model.backbone.dim)
    batch = tiny_batch(model, rows=4)
    output = model(batch)
    (output.text_loss_sum + output.speech_loss_sum).backward()
    assert output.text_count == batch.text_token_total
    assert [n for n, p in model.feature_adapter.named_parameters() if p.grad is None] == []
    replies = Generator(model, chat).generate(
        [UserTurn(audio=torch.randn(n)) for n in (90, 1400)], "S2M", Decoding(max_positions=3)
    )
    alone = Generator(model, chat).generate([UserTurn(audio=torch.ones(90))], "S2M", Decoding(max_positions=3))
    assert len(replies) == 2
    assert len(alone[0].text_ids) <= 3


def test_streams_of_several_clips_may_stand_beside_each_other():
    torch.manual_seed(0)
    adapter = ConcatGrouping(3, 2, 4)
    state = adapter.new_state(1)
    first, second = torch.randn(1, 3, 3), torch.randn(1, 2, 3)
    got = [adapter.step(first, state), adapter.step(second, state), adapter.finish(state)]
    assert [piece.features.shape[1] for piece in got] == [1, 1, 1]
    whole = adapter(torch.cat([first, second], 1), torch.tensor([5])).features
    torch.testing.assert_close(torch.cat([piece.features for piece in got], 1), whole)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConvGrouping(3, 4, 8, kernel_size=3), r"kernel_size \(3\) is less than group_size \(4\).*set it to 4"),
        (lambda: TransformerGrouping(6, 4, 8, num_heads=4), r"num_heads \(4\) must divide the width of a frame \(6\)"),
        (lambda: TransformerCodeGrouping(16, 4, 8, num_layers=0), r"num_layers \(0\) must be at least 1"),
        (lambda: AttentionGrouping(6, 4, 8, num_heads=3), r"num_heads \(3\) must divide dim \(8\)"),
        (lambda: AttentionCodeGrouping(16, 4, 8, num_queries=0), r"num_queries \(0\) must be at least 1"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
