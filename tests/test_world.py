"""The small world: enough facts, true to its promises on wordings, deterministic."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from fac_lightning.data.world import World
from fac_lightning.data.world_facts import RELATIONS


def test_there_are_enough_facts_and_ids_are_unique_file_names() -> None:
    facts = World().facts
    assert len(facts) >= 320
    assert len({fact.id for fact in facts}) == len(facts)
    assert all(re.fullmatch(r"[a-z_]+-[a-z-]+", fact.id) for fact in facts)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_every_relation_has_its_wordings(relation) -> None:
    assert len(set(relation.train)) >= 4
    assert len(set(relation.unseen)) >= 2
    for template in (*relation.train, *relation.unseen, relation.answer):
        assert template.count("{x}") == 1, template
    assert "{y}" in relation.answer
    assert not any(",," in x + y or not x or not y for x, y in relation.pairs.items())


def test_unseen_wordings_are_never_in_training() -> None:
    world = World()
    train = {question.text.lower() for question in world.questions("train")}
    unseen = {question.text.lower() for question in world.questions("unseen")}
    assert not train & unseen
    templates = {t.lower() for r in RELATIONS for t in r.train}
    assert not templates & {t.lower() for r in RELATIONS for t in r.unseen}


def test_answers_are_short_sentences_and_a_question_has_one_answer() -> None:
    answers = defaultdict(set)
    world = World()
    for question in [*world.questions("train"), *world.questions("unseen")]:
        answers[question.text].add(question.fact.answer)
        assert question.text[0].isupper()
        assert question.text[-1] in "?."
    assert all(len(found) == 1 for found in answers.values())
    for fact in world.facts:
        assert fact.answer[0].isupper()
        assert fact.answer[-1] == "."
        assert 3 <= len(fact.answer.split()) <= 8


def test_successors_count_up_and_down() -> None:
    answers = {fact.id: fact.answer for fact in World().facts}
    assert answers["number_after-nine"] == "The number after nine is ten."
    assert answers["number_before-ten"] == "The number before ten is nine."
    assert answers["month_after-december"] == "After December comes January."
    assert answers["day_after-sunday"] == "After Sunday comes Monday."
    assert answers["capital-france"] == "The capital of France is Paris."


def test_dialogues_carry_fact_and_wording() -> None:
    world = World(relations=["sides"])
    dialogues = world.dialogues("unseen")
    assert len(dialogues) == len({d.id for d in dialogues}) == 2 * len(world.facts)
    assert Counter(d.custom["fact"] for d in dialogues) == Counter({fact.id: 2 for fact in world.facts})
    first = dialogues[0]
    assert [turn.role for turn in first.turns] == ["user", "assistant"]
    assert [turn.text for turn in first.turns] == [world.questions("unseen")[0].text, world.facts[0].answer]


def test_seed_orders_and_num_facts_cuts() -> None:
    assert World(seed=1).facts == World(seed=1).facts
    assert World(seed=1).facts != World(seed=2).facts
    assert World(num_facts=7).facts == World().facts[:7]
    with pytest.raises(ValueError, match="num_facts must be between 1 and"):
        World(num_facts=0)
    with pytest.raises(ValueError, match=r"unknown relations weather; choose from capital, "):
        World(relations=["weather"])
    with pytest.raises(ValueError, match="split must be 'train', 'unseen' or 'quiet', got 'test'"):
        World().questions("test")  # type: ignore[arg-type]


def test_quiet_facts_are_read_but_never_spoken_of() -> None:
    world = World(num_facts=40, quiet=0.25)
    spoken, quiet = {q.fact.id for q in world.questions("train")}, {q.fact.id for q in world.questions("quiet")}
    assert (len(spoken), len(quiet)) == (30, 10)
    assert not spoken & quiet
    assert {q.fact.id for q in world.questions("unseen")} == spoken
    assert {q.fact.id for q in world.paraphrases()} == spoken | quiet
    assert {d.custom["fact"] for d in world.dialogues("quiet")} == quiet
    assert not World().quiet
    with pytest.raises(ValueError, match=r"quiet must be in \[0, 1\), got 1"):
        World(quiet=1)
