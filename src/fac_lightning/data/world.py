"""A closed world of spoken question answering: small enough to be learned on a laptop, every answer checkable."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fac_lightning.data.dialogue import Dialogue, Turn
from fac_lightning.data.sources import DialogueSource
from fac_lightning.data.world_facts import RELATIONS

__all__ = ["Fact", "Question", "World"]

#: Words that carry nothing in a question of the world.
_FILLERS = frozenset({
    "a", "an", "the", "is", "are", "of", "in", "on", "to", "do", "does", "what", "which", "who", "tell", "me",
    "can", "could", "you", "i", "want", "know", "please", "it", "that", "for",
})  # fmt: skip
_OPENINGS = ("Please help me.", "One more question.", "Listen.", "Hello.", "Quick question.", "Thank you.")


@dataclass(frozen=True)
class Fact:
    """One thing that is true."""

    id: str  # for example "capital-france"
    relation: str
    entity: str
    answer: str  # complete sentence


class Question(NamedTuple):
    """One way to ask for a fact."""

    fact: Fact
    wording: int  # index of the wording in its split
    text: str


class World(DialogueSource):
    """Facts about countries, words, animals, numbers and things, each asked in several wordings.

    Args:
        seed: Order of the facts.
        relations: Names of the relations to keep; all by default.
        num_facts: Keep this many facts, after ordering; all by default.
        quiet: Share of the facts that are read but never spoken of: they are in the split ``text`` alone, so that what
            a model keeps, and what it can say aloud without having heard it, can be measured (split ``quiet``).
    """

    def __init__(
        self,
        seed: int = 0,
        relations: Sequence[str] | None = None,
        num_facts: int | None = None,
        quiet: float = 0.0,
    ) -> None:
        names = [relation.name for relation in RELATIONS]
        unknown = sorted(set(relations or ()) - set(names))
        if unknown:
            raise ValueError(f"unknown relations {', '.join(unknown)}; choose from {', '.join(names)}")
        self._relations = {r.name: r for r in RELATIONS if relations is None or r.name in relations}
        facts = [
            Fact(f"{r.name}-{_slug(x)}", r.name, x, _sentence(r.answer.format(x=x, y=y)))
            for r in self._relations.values()
            for x, y in r.pairs.items()
        ]
        random.Random(seed).shuffle(facts)
        if num_facts is not None and not 1 <= num_facts <= len(facts):
            raise ValueError(f"num_facts must be between 1 and {len(facts)}, got {num_facts}")
        if not 0 <= quiet < 1:
            raise ValueError(f"quiet must be in [0, 1), got {quiet}: it is the share of facts that are never spoken of")
        self.facts: list[Fact] = facts[:num_facts]
        loud = len(self.facts) - round(quiet * len(self.facts))
        self.spoken, self.quiet = self.facts[:loud], self.facts[loud:]

    def questions(self, split: Literal["train", "unseen", "quiet"]) -> list[Question]:
        """Facts in every wording of a split, fact after fact; the splits share no question.

        ``train`` and ``unseen`` ask for facts that are spoken of, in wordings that they do not share; ``quiet`` asks
        for the others, in training wordings.
        """
        if split not in ("train", "unseen", "quiet"):
            raise ValueError(f"split must be 'train', 'unseen' or 'quiet', got {split!r}")
        if split == "quiet":
            return self._asked(self.quiet, "train")
        return self._asked(self.spoken, split)

    def _asked(self, facts: list[Fact], wordings: str) -> list[Question]:
        return [
            Question(fact, wording, _sentence(template.format(x=fact.entity)))
            for fact in facts
            for wording, template in enumerate(getattr(self._relations[fact.relation], wordings))
        ]

    def paraphrases(self) -> list[Question]:
        """The training wordings of all facts, and for each its keywords, forwards and backwards, and a longer form.

        No unseen wording is among them.

        A text LLM knows many ways to ask before it learns to listen; these are its ways in the small world.
        """
        found: dict[tuple[str, str], Question] = {}
        for question in self._asked(self.facts, "train"):
            words = [w for w in re.findall(r"[\w']+", question.text) if w.lower() not in _FILLERS]
            opening = _OPENINGS[question.wording % len(_OPENINGS)]
            keywords = _sentence(" ".join(words)) + "?", _sentence(", ".join(words[::-1])) + "?"
            for text in (question.text, *keywords, f"{opening} {question.text}"):
                found.setdefault((question.fact.id, text), question._replace(text=text))
        return [question._replace(wording=index) for index, question in enumerate(found.values())]

    def dialogues(self, select: str) -> list[Dialogue]:
        """Questions of the split ``select`` as dialogues of two turns, text only.

        ``"train"``, ``"unseen"`` and ``"quiet"`` are those of ``questions``, ``"text"`` the paraphrases.
        """
        return [
            Dialogue(
                f"{question.fact.id}-{select}{question.wording}",
                (Turn("user", question.text), Turn("assistant", question.fact.answer)),
                custom={"fact": question.fact.id, "relation": question.fact.relation, "wording": question.wording},
            )
            for question in (self.paraphrases() if select == "text" else self.questions(select))  # type: ignore[arg-type]
        ]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _slug(entity: str) -> str:
    return re.sub(r"^(a|an|the) ", "", entity).lower().replace(" ", "-")
