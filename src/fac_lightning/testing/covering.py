"""Few combinations that hold every pair of choices."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

__all__ = ["Choice", "Combination", "Pair", "all_pairs", "cover_choices", "cover_pairs"]

Choice = tuple[str, str]  # (slot, part)
Pair = tuple[Choice, Choice]  # of two slots, in the order of the slots
Combination = dict[str, str]  # slot -> part

_Allowed = Callable[[Pair], bool]


def all_pairs(slots: Mapping[str, Sequence[str]]) -> list[Pair]:
    """Every part of every slot beside every part of every other slot."""
    return [
        ((one, left), (two, right))
        for one, two in combinations(slots, 2)
        for left in slots[one]
        for right in slots[two]
    ]


def cover_pairs(
    slots: Mapping[str, Sequence[str]], allowed: _Allowed = lambda pair: True, seed: int = 0
) -> list[Combination]:
    """Combinations in which every allowed pair stands at least once, and no other pair.

    Greedy, as AETG (Cohen et al., 1997): each combination begins with a pair that is not covered yet and takes, slot
    after slot, the part that covers most of what is left. A pair that no combination of allowed pairs can hold is
    left out.

    Args:
        slots: Parts to choose from, by slot.
        allowed: Whether two parts may stand together.
        seed: Of the order in which equals are taken.
    """
    left = {pair: None for pair in all_pairs(slots) if allowed(pair)}  # a set that keeps its order
    return _cover(slots, allowed, left, random.Random(seed))


def cover_choices(
    slots: Mapping[str, Sequence[str]], allowed: _Allowed = lambda pair: True, seed: int = 0
) -> list[Combination]:
    """Combinations in which every part stands at least once; about as many as the fullest slot has parts."""
    generator, found = random.Random(seed), list[Combination]()
    todo = {(slot, part): None for slot in slots for part in slots[slot]}  # a set that keeps its order

    def gain(slot: str, part: str, chosen: Combination) -> int:
        return (slot, part) in todo

    while todo:
        first = next(iter(todo))
        combination = _grow(slots, allowed, dict([first]), gain, generator)
        if combination is not None:
            found.append(combination)
        for choice in [first] if combination is None else combination.items():
            todo.pop(choice, None)
    return found


def _cover(
    slots: Mapping[str, Sequence[str]], allowed: _Allowed, left: dict[Pair, None], generator: random.Random
) -> list[Combination]:
    names, found = list(slots), list[Combination]()
    place = {slot: index for index, slot in enumerate(names)}

    def gain(slot: str, part: str, chosen: Combination) -> int:
        return sum(_pair(place, (slot, part), other) in left for other in chosen.items())

    while left:
        first = next(iter(left))
        combination = _grow(slots, allowed, dict(first), gain, generator)
        if combination is None:
            del left[first]
            continue
        found.append(combination)
        for one, two in combinations(combination.items(), 2):
            left.pop(_pair(place, one, two), None)
    return found


def _grow(
    slots: Mapping[str, Sequence[str]],
    allowed: _Allowed,
    chosen: Combination,
    gain: Callable[[str, str, Combination], int],
    generator: random.Random,
) -> Combination | None:
    """Fill the other slots, best part first, going back where nothing fits; None where nothing at all does."""
    place = {slot: index for index, slot in enumerate(slots)}
    empty = [slot for slot in slots if slot not in chosen]
    if not empty:
        return {slot: chosen[slot] for slot in slots}
    # the slot with the fewest parts that still fit is filled first
    fitting = {
        slot: [part for part in slots[slot] if all(allowed(_pair(place, (slot, part), x)) for x in chosen.items())]
        for slot in empty
    }
    slot = min(empty, key=lambda name: len(fitting[name]))
    parts = fitting[slot]
    generator.shuffle(parts)
    for part in sorted(parts, key=lambda part: -gain(slot, part, chosen)):
        grown = _grow(slots, allowed, {**chosen, slot: part}, gain, generator)
        if grown is not None:
            return grown
    return None


def _pair(place: Mapping[str, int], one: Choice, two: Choice) -> Pair:
    return (one, two) if place[one[0]] < place[two[0]] else (two, one)
