"""The contract kit of adapters and fusions finds every broken promise: one deliberately broken part per clause."""

from dataclasses import replace

import pytest
import torch

from fac_lightning.adapters import (
    CIFGrouping,
    CodeAdapter,
    ConcatCodeGrouping,
    ConcatGrouping,
    ConvGrouping,
    FeatureAdapter,
    Fusion,
    SumFusion,
)
from fac_lightning.testing import check_adapter, check_fusion
from fac_lightning.types import SpeechFeatures, pad_code


class Codes(ConcatCodeGrouping):
    """Keeps the contract; to be broken."""

    def __init__(self):
        super().__init__(codebook_size=16, group_size=2, dim=8, num_codebooks=2)


class TooWide(Codes):
    def forward(self, codes):
        return torch.cat([super().forward(codes)] * 2, dim=1)


class NotANumberForPads(Codes):
    def forward(self, codes):
        counts = (codes != pad_code(16)).sum((1, 2))
        return super().forward(codes) / counts[:, None]


class LooksAtOtherGroups(Codes):
    def forward(self, codes):
        out = super().forward(codes)
        return out + out.sum(0)


class PadsAreNotConstant(Codes):
    def forward(self, codes):
        out = super().forward(codes)
        return out + torch.arange(len(out))[:, None] if len(out) > 1 and (codes == pad_code(16)).all() else out


class InventsAGroup(Codes):
    def forward(self, codes):
        return super().forward(codes) if len(codes) else torch.zeros(1, self.dim)


class FirstCodebookOnly(Codes):
    def forward(self, codes):
        return super().forward(torch.cat([codes[..., :1]] * 2, dim=-1))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (TooWide, r"6 groups of codes must give \(6, 8\), not \(6, 16\)"),
        (NotANumberForPads, "embeddings must be finite, special codes included"),
        (LooksAtOtherGroups, "groups must not see each other"),
        (PadsAreNotConstant, "a group of pad codes must embed to a constant"),
        (InventsAGroup, "no groups must give no embeddings"),
        (FirstCodebookOnly, "the code at frame 0, codebook 1 must matter"),
    ],
)
def test_broken_adapters_of_codes_are_caught(broken, message):
    torch.manual_seed(0)
    check_adapter(Codes())
    assert issubclass(broken, CodeAdapter)
    with pytest.raises(AssertionError, match=message):
        check_adapter(broken())


class Frames(ConcatGrouping):
    """Keeps the contract; to be broken."""

    def __init__(self):
        super().__init__(in_dim=6, group_size=4, dim=8)


class TooNarrow(Frames):
    def forward(self, features, lengths):
        out = super().forward(features, lengths)
        return replace(out, features=out.features[..., :-1])


class DropsThePartialGroup(Frames):
    def forward(self, features, lengths):
        return replace(super().forward(features, lengths), lengths=lengths // self.group_size)


class CountsPadding(Frames):
    def forward(self, features, lengths):
        out = super().forward(features, lengths)
        return replace(out, features=out.features * features.shape[1])


class LeavesATail(Frames):
    def forward(self, features, lengths):
        out = super().forward(features, lengths)
        return replace(out, features=out.features + 1)


class LooksAhead(Frames):
    context = "past"

    def forward(self, features, lengths):
        out = super().forward(features, lengths)
        return replace(out, features=out.features + out.features.flip(1).cumsum(1).flip(1) * (out.features != 0))


class LooksBackInSecret(Frames):
    def forward(self, features, lengths):
        out = super().forward(features, lengths)
        return replace(out, features=out.features.cumsum(1) * (out.features != 0))


class HasAnotherContext(Frames):
    context = "future"


class SeesNothing(Frames):
    def forward(self, features, lengths):
        return super().forward(torch.zeros_like(features), lengths)


class SaysPresentForNothing(Frames):
    def forward(self, features, lengths):
        out = super().forward(features, lengths)
        return replace(out, present=torch.ones(out.features.shape[:2], dtype=torch.bool))


class InventsAClip(Frames):
    def forward(self, features, lengths):
        out = super().forward(features, lengths)
        return out if len(lengths) else replace(out, features=torch.zeros(1, *out.features.shape[1:]))


class InventsAPosition(Frames):
    def forward(self, features, lengths):
        out = super().forward(features, lengths)
        return replace(out, features=torch.zeros(0, 1, self.dim)) if features.shape[:2] == (0, 0) else out


class ForgetsTheEnd(Frames):
    def finish(self, state):
        return super().finish(replace(state, frames=state.frames[:, :0]))


class CutsPieces(Frames):
    def step(self, features, state):
        return self(features, torch.full((len(features),), features.shape[1]))


class WaitsForTheEnd(Frames):
    def step(self, features, state):
        state.frames = torch.cat([state.frames, features], dim=1)
        return super().step(features[:, :0], replace(state, frames=state.frames[:, :0]))


class RemembersInTheModule(Frames):
    def new_state(self, batch_size):
        self.kept = super().new_state(batch_size)
        return self.kept

    def step(self, features, state):
        return super().step(features, self.kept)

    def finish(self, state):
        return super().finish(self.kept)


class MiscountsSteps(Frames):
    def step(self, features, state):
        out = super().step(features, state)
        return replace(out, lengths=out.lengths + 1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (TooNarrow, r"expected \(4, 3, 8\), got \(4, 3, 7\)"),
        (DropsThePartialGroup, r"\[9, 4, 0, 12\] frames give \[2, 1, 0, 3\] positions"),
        (CountsPadding, "padding a row must change nothing"),
        (LeavesATail, "positions after a row's length must be zero"),
        (LooksAhead, "a position must see no later group"),
        (LooksBackInSecret, r"a position must see its group alone \(context 'group'\)"),
        (HasAnotherContext, "context must be 'group' or 'past', got 'future'"),
        (SeesNothing, "a position must see its group"),
        (SaysPresentForNothing, "present is for adapters of a variable_rate"),
        (InventsAClip, "no clips must give no positions"),
        (InventsAPosition, "no frames must give no positions"),
        (ForgetsTheEnd, "a stream in pieces of 1 must give what 1 frames give at once"),
        (CutsPieces, "a stream in pieces of 1 must give what 8 frames give at once"),
        (WaitsForTheEnd, "after 5 frames 1 positions are due, a stream gave 0"),
        (RemembersInTheModule, "a stream in pieces of"),
        (MiscountsSteps, "a step gave 0 positions and the lengths"),
    ],
)
def test_broken_adapters_of_features_are_caught(broken, message):
    torch.manual_seed(0)
    check_adapter(Frames())
    assert issubclass(broken, FeatureAdapter)
    with pytest.raises(AssertionError, match=message):
        check_adapter(broken())


def test_an_adapter_that_sees_the_past_needs_a_step_of_its_own():
    class Convolution(ConvGrouping):
        new_state, step, finish = FeatureAdapter.new_state, FeatureAdapter.step, FeatureAdapter.finish

    check_adapter(ConvGrouping(6, 4, 8))
    with pytest.raises(NotImplementedError, match="Convolution sees the past, which the step of groups would cut off"):
        check_adapter(Convolution(6, 4, 8))


class Fires(CIFGrouping):
    """Keeps the contract of a variable rate; to be broken."""

    def __init__(self):
        super().__init__(in_dim=6, group_size=4, dim=8)


class SaysNotWhatIsPresent(Fires):
    def forward(self, features, lengths):
        return replace(super().forward(features, lengths), present=None)


class PresentPerFrame(Fires):
    def forward(self, features, lengths):
        return replace(super().forward(features, lengths), present=torch.ones(features.shape[:2], dtype=torch.bool))


class PresentByNumber(Fires):
    def forward(self, features, lengths):
        out = super().forward(features, lengths)
        return replace(out, present=out.present.float())


class PresentBehindTheEnd(Fires):
    def forward(self, features, lengths):
        out = super().forward(features, lengths)
        return replace(out, present=torch.ones_like(out.present))


class HoldsMoreThanIsPresent(Fires):
    def forward(self, features, lengths):
        out = super().forward(features, lengths)
        inside = torch.arange(out.features.shape[1]) < out.lengths[:, None]
        return replace(out, features=out.features.masked_fill((inside & ~out.present)[..., None], 1.0))


class FiresLess(Fires):
    def step(self, features, state):
        out = super().step(features, state)
        return SpeechFeatures(torch.zeros_like(out.features), out.lengths, torch.zeros_like(out.present))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (SaysNotWhatIsPresent, "an adapter of a variable_rate must say which positions are present"),
        (PresentPerFrame, r"present must be \(B, positions\)"),
        (PresentByNumber, "present must be bool"),
        (PresentBehindTheEnd, "nothing is present after a row's length"),
        (HoldsMoreThanIsPresent, "positions at which nothing is present must be zero"),
        (FiresLess, "a stream in pieces of 1 must give what"),
    ],
)
def test_broken_adapters_of_a_variable_rate_are_caught(broken, message):
    torch.manual_seed(0)
    check_adapter(Fires())
    with pytest.raises(AssertionError, match=message):
        check_adapter(broken())


class Folds(SumFusion):
    def forward(self, streams, present):
        return super().forward(streams, present).sum(-1)


class MeanOfNothing(Fusion):
    def forward(self, streams, present):
        return streams.sum(0) / present.sum(0)[:, None]


class NormalizesTheLine(SumFusion):
    def forward(self, streams, present):
        out = super().forward(streams, present)
        return out - out.mean(0) if len(out) else out


class CountsAbsentStreams(Fusion):
    def forward(self, streams, present):
        return streams.mean(0)


class InventsAnEmbedding(SumFusion):
    def forward(self, streams, present):
        return super().forward(streams, present) if streams.shape[1] else streams.new_zeros(1, streams.shape[-1])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Folds, r"1 streams of \(6, 8\) give \(6,\)"),
        (MeanOfNothing, "a position with no stream must be finite"),
        (NormalizesTheLine, "a position must depend on its own streams alone"),
        (CountsAbsentStreams, "a stream that is absent everywhere must change nothing"),
        (InventsAnEmbedding, "an empty line must give an empty line"),
    ],
)
def test_broken_fusions_are_caught(broken, message):
    check_fusion(SumFusion())
    with pytest.raises(AssertionError, match=message):
        check_fusion(broken())
