from __future__ import annotations

import pytest
import torch
from torch import nn

from fac_lightning.adapters import (
    AddFusion,
    CodeAdapter,
    ConcatCodeGrouping,
    ConcatGrouping,
    FunAudioCodeGrouping,
    MeanCodeGrouping,
    MeanFusion,
    MeanGrouping,
    SumFusion,
    TransformerCodeGrouping,
)
from fac_lightning.testing import check_adapter, check_fusion
from fac_lightning.types import pad_code


@pytest.mark.parametrize("grouping", [ConcatCodeGrouping, MeanCodeGrouping])
@pytest.mark.parametrize(("group_size", "num_codebooks", "embed_dim"), [(5, 1, None), (1, 1, None), (2, 3, 4)])
def test_code_groupings_keep_the_contract(grouping, group_size, num_codebooks, embed_dim):
    torch.manual_seed(0)
    check_adapter(grouping(16, group_size, 8, num_codebooks, embed_dim))


@pytest.mark.parametrize("grouping", [ConcatGrouping, MeanGrouping])
@pytest.mark.parametrize("group_size", [1, 2, 5])
def test_feature_groupings_keep_the_contract(grouping, group_size):
    torch.manual_seed(0)
    check_adapter(grouping(6, group_size, 8))


@pytest.mark.parametrize("fusion", [SumFusion(), MeanFusion()])
def test_fusions_keep_the_contract(fusion):
    check_fusion(fusion)


def test_the_check_finds_an_adapter_that_looks_at_other_groups():
    class Leaky(ConcatCodeGrouping):
        def forward(self, codes):
            out = super().forward(codes)
            return out + out.sum(0)

    with pytest.raises(AssertionError, match="groups must not see each other"):
        check_adapter(Leaky(16, 2, 8))


def test_the_check_finds_a_codebook_that_is_ignored():
    class FirstOnly(CodeAdapter):
        group_size, num_codebooks, codebook_size, dim = 1, 2, 16, 8

        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(19, 8)

        def forward(self, codes):
            return self.embed(codes[:, 0, 0])

    with pytest.raises(AssertionError, match="frame 0, codebook 1 must matter"):
        check_adapter(FirstOnly())


def test_pad_codes_embed_to_zero_and_are_not_trained():
    adapter = MeanCodeGrouping(codebook_size=16, group_size=5, dim=8)
    pads = torch.full((2, 5, 1), pad_code(16))
    assert not adapter(pads).any()
    adapter(pads).sum().backward()
    assert not adapter.embed.table.weight.grad.any()


def test_mean_of_a_half_filled_group():
    # a pad frame counts as zero, and so does a frame behind the end of a clip
    codes = MeanCodeGrouping(codebook_size=4, group_size=2, dim=3)
    full, half = torch.tensor([[[1], [1]]]), torch.tensor([[[1], [pad_code(4)]]])
    torch.testing.assert_close(codes(half), codes(full) / 2)
    features = MeanGrouping(in_dim=3, group_size=2, dim=3)
    frames = torch.randn(1, 3, 3)
    got = features(frames, torch.tensor([3])).features[0, 1]
    torch.testing.assert_close(got, features.proj(frames[0, 2] / 2))


def test_a_table_of_other_people_is_read_by_its_own_rows():
    # codes in the rows that no special code has: bos 0, eos 3, pad 2 leave 1, 4, 5 of a table of 7 for three codes
    adapter = FunAudioCodeGrouping(3, 2, 4, table_rows=7, bos_row=0, eos_row=3, pad_row=2)
    assert adapter.rows.tolist() == [1, 4, 5, 0, 3, 2]
    group = torch.tensor([[[1], [pad_code(3)]]])
    torch.testing.assert_close(adapter(group), adapter.proj(adapter.table[[4, 2]].mean(0, keepdim=True)))
    with pytest.raises(ValueError, match=r"a table of 5 rows with bos, eos and pad in the rows \[3, 4, 5\]"):
        FunAudioCodeGrouping(3, 2, 4, table_rows=5)
    with pytest.raises(ValueError, match="name three different rows"):
        FunAudioCodeGrouping(3, 2, 4, table_rows=9, bos_row=4)


def test_a_pad_code_counts_in_the_released_mean_but_is_not_trained_by_it():
    adapter = FunAudioCodeGrouping(codebook_size=16, group_size=5, dim=8)
    pads = torch.full((2, 5, 1), pad_code(16))
    assert adapter(pads).all()
    adapter(pads).sum().backward()
    assert not adapter.table.grad.any()


def test_user_features_are_added_to_user_codes_and_averaged_with_text():
    present = torch.tensor([[True, True, False, True], [True, False, True, False], [False, True, True, False]])
    streams = torch.tensor([[2.0, 2.0, 0.0, 2.0], [4.0, 0.0, 4.0, 0.0], [0.0, 6.0, 6.0, 0.0]])[..., None]
    assert AddFusion()(streams, present).flatten().tolist() == [3.0, 4.0, 10.0, 2.0]


def test_garbage_behind_a_clip_is_not_seen():
    grouping = ConcatGrouping(in_dim=3, group_size=2, dim=4)
    frames = torch.randn(1, 4, 3)
    dirty = frames.clone()
    dirty[0, 3] = torch.nan
    lengths = torch.tensor([3])
    frames[0, 3] = 0
    torch.testing.assert_close(grouping(dirty, lengths).features, grouping(frames, lengths).features)


def test_mean_fusion_averages_only_where_streams_meet():
    present = torch.tensor([[True, True, False], [False, True, False]])
    streams = torch.tensor([[1.0, 2.0, 0.0], [0.0, 4.0, 0.0]])[..., None]
    assert MeanFusion()(streams, present).flatten().tolist() == [1.0, 3.0, 0.0]
    assert SumFusion()(streams, present).flatten().tolist() == [1.0, 6.0, 0.0]


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 16, 0, 8 and 1"):
        ConcatCodeGrouping(16, 0, 8)
    with pytest.raises(ValueError, match="got 3, 0 and 4"):
        ConcatGrouping(3, 0, 4)


@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_composed_codes_are_lookups_of_what_was_projected(num_codebooks):
    torch.manual_seed(0)
    concat, mean = (kind(16, 5, 8, num_codebooks, 4) for kind in (ConcatCodeGrouping, MeanCodeGrouping))
    codes = torch.randint(0, 19, (50, 5, num_codebooks))  # special codes too
    for adapter, places in ((concat, 5), (mean, 1)):
        composed = adapter.compose()
        assert composed.tables.shape == (places, num_codebooks, 19, 8)
        assert composed.num_bytes == places * num_codebooks * 19 * 8 * 4
        torch.testing.assert_close(composed(codes), adapter(codes), rtol=1e-5, atol=1e-6)
        assert not list(composed.parameters())
        assert not composed.state_dict()


def test_what_cannot_be_composed_is_refused():
    with pytest.raises(ValueError, match="TransformerCodeGrouping cannot be composed, for a position is no sum over"):
        TransformerCodeGrouping(16, 2, 8, num_heads=2).compose()
    with pytest.raises(ValueError, match=r"ConcatCodeGrouping as composed tables takes 1 MiB, 33015 rows of 8, and at"):
        ConcatCodeGrouping(6600, 5, 8).compose(most_bytes=2**16)
