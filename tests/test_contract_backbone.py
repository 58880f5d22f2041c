"""The contract kit of backbones finds what is broken: one deliberately broken backbone for every clause."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fac_lightning.backbones import Backbone
from fac_lightning.testing import check_backbone, tiny_backbone


class Right(Backbone):
    """Keeps the contract; to be broken."""

    takes_parents = True

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_backbone(vocab_size=20, dim=8, num_layers=1)
        self.dim, self.vocab_size = self.inner.dim, self.inner.vocab_size

    def embed(self, text_ids: Tensor) -> Tensor:
        return self.inner.embed(text_ids)

    @property
    def output_weight(self) -> Tensor:
        return self.inner.output_weight

    def forward(self, embeds, position_ids, lengths, parents=None):
        return self.inner(embeds, position_ids, lengths, parents)

    def new_cache(self):
        return self.inner.new_cache()

    def step(self, embeds, mask, position_ids, cache):
        return self.inner.step(embeds, mask, position_ids, cache)


class EmbedsTooWide(Right):
    def embed(self, text_ids):
        return super().embed(text_ids).repeat(1, 2)


class EmbedsLinesOnly(Right):
    def embed(self, text_ids):
        return super().embed(text_ids.flatten())


class AnotherMatrix(Right):
    @property
    def output_weight(self):
        return super().output_weight[:-1]


class LosesThePosition(Right):
    def forward(self, embeds, position_ids, lengths, parents=None):
        return super().forward(embeds, position_ids, lengths, parents)[1:]


class LogitsOfFewerTokens(Right):
    def logits(self, hidden):
        return super().logits(hidden)[..., :-1]


class ScalesItsLogits(Right):
    def logits(self, hidden):
        return super().logits(hidden) * 2


class LeaksBetweenRows(Right):
    takes_parents = False

    def forward(self, embeds, position_ids, lengths, parents=None):
        return super().forward(embeds, position_ids, lengths.sum()[None])


class IgnoresParents(Right):
    def forward(self, embeds, position_ids, lengths, parents=None):
        return super().forward(embeds, position_ids, lengths)


class SeesTheFuture(Right):
    takes_parents = False

    def forward(self, embeds, position_ids, lengths, parents=None):
        whole = [row + row.mean(0) for row in embeds.split(lengths.tolist())]
        return super().forward(torch.cat(whole), position_ids, lengths)


class ForgetsItsCache(Right):
    def step(self, embeds, mask, position_ids, cache):
        return super().step(embeds, mask[:, -embeds.shape[1] :], position_ids, self.new_cache())


class SeesPadding(Right):
    def step(self, embeds, mask, position_ids, cache):
        return super().step(embeds, torch.ones_like(mask), position_ids, cache)


class PositionsOfTheFirstRow(Right):
    def step(self, embeds, mask, position_ids, cache):
        return super().step(embeds, mask, position_ids[:1].expand_as(position_ids), cache)


class OneCacheForAll(Right):
    def new_cache(self):
        self.cache = super().new_cache()
        return self

    def step(self, embeds, mask, position_ids, cache):
        past = self.cache.get_seq_length()
        seen = torch.ones(len(mask), past + embeds.shape[1], dtype=torch.bool)
        seen[:, -mask.shape[1] :] = mask
        return super().step(embeds, seen, position_ids, self.cache)


@pytest.mark.parametrize("name", ["dim", "vocab_size"])
@pytest.mark.parametrize("value", [0, 8.0, None])
def test_sizes(name: str, value: object) -> None:
    backbone = Right()
    setattr(backbone, name, value)
    with pytest.raises(AssertionError, match=f"{name} must be a positive int, got {value!r}"):
        check_backbone(backbone)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (EmbedsTooWide, r"embed gives \(17, 16\), dim is 8"),
        (EmbedsLinesOnly, "embed must take ids of any shape"),
        (AnotherMatrix, r"output_weight is \(19, 8\), not \(vocab_size, dim\) = \(20, 8\)"),
        (LosesThePosition, r"hidden states are \(16, 8\), not \(17, 8\)"),
        (LogitsOfFewerTokens, "logits must have vocab_size columns"),
        (ScalesItsLogits, "logits must be the product with output_weight"),
        (LeaksBetweenRows, "rows packed in one line must give what each gives alone"),
        (IgnoresParents, "rows that continue a row must give what whole rows give"),
        (SeesTheFuture, "a position must not see later ones"),
        (ForgetsItsCache, "stepping with a cache must give what one pass gives"),
        (SeesPadding, "left padding in step must change nothing"),
        (PositionsOfTheFirstRow, "a row must not change because another one is padded"),
        (OneCacheForAll, "a generation must not disturb another one's cache"),
    ],
)
def test_broken_backbones_are_caught(broken: type[Right], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_backbone(broken())


def test_the_right_backbone_is_right() -> None:
    check_backbone(Right())
