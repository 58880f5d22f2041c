"""The part keeps the contract of its slot, and does what it is named for."""

import torch

from fac_lightning.testing import check_adapter
from my_speech_part import MaxGrouping


def test_it_keeps_the_contract():
    """Grouping, padding, context and streaming, in a second on the CPU."""
    check_adapter(MaxGrouping(in_dim=12, group_size=4, dim=16))


def test_the_greatest_value_counts():
    """Other values of a channel may be anything below."""
    part = MaxGrouping(in_dim=1, group_size=3, dim=4)
    one, other = torch.tensor([[1.0, 5.0, 2.0], [-9.0, 4.0, 5.0]])[..., None].split(1)
    assert torch.equal(part(one, torch.tensor([3])).features, part(other, torch.tensor([3])).features)
