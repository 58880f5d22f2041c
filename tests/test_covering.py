"""Every pair of parts stands in some combination, in few of them."""

import pytest

from fac_lightning.testing.covering import all_pairs, cover_choices, cover_pairs

SLOTS = {"a": [f"a{i}" for i in range(7)], "b": [f"b{i}" for i in range(5)], "c": ["c0", "c1", "c2"], "d": ["d0", "d1"]}


def held(combinations):
    names = list(SLOTS)
    return {
        ((one, row[one]), (two, row[two]))
        for row in combinations
        for i, one in enumerate(names)
        for two in names[i + 1 :]
    }


@pytest.mark.parametrize("seed", range(3))
def test_every_pair_stands_in_few_combinations(seed):
    found = cover_pairs(SLOTS, seed=seed)
    assert held(found) == set(all_pairs(SLOTS))
    assert 35 <= len(found) <= 42, "7 x 5 is the least, all combinations are 210"
    assert found == cover_pairs(SLOTS, seed=seed)


def test_what_cannot_stand_together_does_not():
    never = {(("a", "a0"), ("b", "b1")), (("b", "b2"), ("d", "d0"))}
    found = cover_pairs(SLOTS, lambda pair: pair not in never)
    assert held(found) == set(all_pairs(SLOTS)) - never


def test_a_pair_that_no_combination_can_hold_is_left_out():
    never = {(("a", "a0"), ("d", "d0")), (("a", "a0"), ("d", "d1"))}  # a0 goes with nothing
    found = cover_pairs(SLOTS, lambda pair: pair not in never)
    assert held(found) == {pair for pair in all_pairs(SLOTS) if ("a", "a0") not in pair}


def test_a_small_cover_has_every_part():
    found = cover_choices(SLOTS)
    assert {choice for row in found for choice in row.items()} == {(s, part) for s in SLOTS for part in SLOTS[s]}
    assert len(found) == 7
    never = {(("a", f"a{i}"), ("b", "b4")) for i in range(6)}
    found = cover_choices(SLOTS, lambda pair: pair not in never)
    assert {row["a"] for row in found if row["b"] == "b4"} == {"a6"}
