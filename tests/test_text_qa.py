"""Text knowledge of a run, scored without generating: the same answers as those that greedy decoding gives."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fac_lightning.evaluation import TextQAEvaluation
from fac_lightning.generation import Decoding, Generator, UserTurn
from fac_lightning.prompts import SYSTEM_PROMPTS, ChatFormat
from fac_lightning.testing import make_dialogues, tiny_speech_lm
from fac_lightning.text_probe import lay_out_texts, read_texts
from fac_lightning.text_tokenizer import train_text_tokenizer

FACTS = [("What follows red?", "green follows red."), ("One and one?", "Two."), ("Who barks?", "The dog barks.")]


@pytest.fixture
def run(tmp_path):
    """A model that learned some facts by heart, as a loaded run; and the set."""
    tokenizer = train_text_tokenizer([text for fact in FACTS for text in fact], 300, tmp_path / "tokenizer")
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": q, "answer": a}) for q, a in FACTS))
    model = tiny_speech_lm()
    (line,) = lay_out_texts(read_texts(path, 2), ChatFormat(tokenizer), "Write.")
    optimizer = torch.optim.Adam(model.backbone.parameters(), lr=2e-2)
    for _ in range(40):
        hidden = model.backbone(model.backbone.embed(line.text_ids), line.position_ids, line.lengths)
        loss = nn.functional.cross_entropy(model.backbone.logits(hidden[line.positions]), line.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    data = {"system_prompts": {"T2T": "Write."}}
    return SimpleNamespace(model=model, text_tokenizer=tokenizer, data=data, folder=tmp_path, facts=str(path))


def test_exact_answers_are_those_of_greedy_decoding(run):
    given = TextQAEvaluation("run", {"facts": run.facts}, str(run.folder / "out"), lambda name: run).run()
    generator = Generator(run.model, ChatFormat(run.text_tokenizer), system_prompts=run.data["system_prompts"])
    replies = generator.generate([UserTurn(q) for q, _ in FACTS], "T2T", Decoding(max_positions=30))
    said = [reply.text == answer for reply, (_, answer) in zip(replies, FACTS, strict=True)]
    assert 0 < sum(said) < 3
    scores = given["sets"]["facts"]
    assert scores["text_exact"] == pytest.approx(sum(said) / 3)
    assert scores["text_exact"] < scores["text_accuracy"] < 1
    assert scores["text_loss"] > 0
    assert scores["count"] == 3
    assert json.loads((run.folder / "out" / "results.json").read_text()) == given


def test_the_system_prompt_is_that_of_the_training(run):
    def loss(**options):
        job = TextQAEvaluation("run", {"facts": run.facts}, str(run.folder / "out"), lambda name: run, **options)
        return job.run()["sets"]["facts"]["text_loss"]

    trained = loss()
    assert loss(system="Write.") == trained
    assert loss(system="Hm?") != trained
    assert loss(limit=1, capacity=64) != trained
    run.data = {}
    assert loss() == loss(system=SYSTEM_PROMPTS["T2T"]) != trained


def test_texts_of_spoken_dialogues_and_a_bare_llm(run):
    make_dialogues(run.folder / "spoken", 3)
    run.model = run.model.backbone
    job = TextQAEvaluation("run", {"spoken": str(run.folder / "spoken")}, str(run.folder / "out"), lambda name: run)
    assert job.run()["sets"]["spoken"]["count"] == 3


def test_no_set_is_refused():
    with pytest.raises(ValueError, match="sets is empty: name at least one"):
        TextQAEvaluation("run", {}, "out", lambda name: None)
