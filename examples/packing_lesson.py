"""Packing: three dialogues laid out, packed into one line without padding, and read as if each were alone.

python examples/packing_lesson.py
"""

import tempfile

import numpy as np
import torch

from fac_lightning.data import SpokenTurn, lay_out
from fac_lightning.prompts import ChatFormat
from fac_lightning.testing import tiny_speech_lm
from fac_lightning.text_tokenizer import train_text_tokenizer

QUESTIONS = {"What is red?": "A colour.", "Who barks?": "A dog does.", "Which month is first?": "January."}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        chat = ChatFormat(train_text_tokenizer([*QUESTIONS, *QUESTIONS.values()], vocab_size=300, folder=folder))
    model = tiny_speech_lm(vocab_size=300).eval()

    # 1. Layout: one row of positions a dialogue. The replies are spoken: text and codes side by side.
    rng = np.random.default_rng(0)
    rows = []
    for question, answer in QUESTIONS.items():
        codes = rng.integers(0, 32, (rng.integers(8, 160), 1))
        turns = [SpokenTurn("user", question), SpokenTurn("assistant", answer, codes=codes)]
        rows.append(lay_out(question, turns, chat, model.geometry, mode="T2M", lead_in=1))
    for row in rows:
        groups = len(row.speech_positions)
        print(f"{row.id:28} {len(row):3} positions, {row.num_text_labels:2} text labels, {groups} groups to say")

    # 2. Packing: end to end; position ids restart, and the model is told where rows end.
    ids = torch.from_numpy(np.concatenate([row.text_ids for row in rows]))
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])

    # 3. Attention does not cross rows: the packed line gives what each row gives alone.
    with torch.no_grad():
        embeds = model.backbone.embed(ids)
        packed = model.backbone(embeds, positions, lengths)
        alone = [
            model.backbone(part, torch.arange(len(part)), torch.tensor([len(part)]))
            for part in embeds.split(lengths.tolist())
        ]
    difference = (packed - torch.cat(alone)).abs().max().item()
    padded = len(lengths) * int(lengths.max())
    print(f"packed against alone: largest difference {difference:.1e}")
    print(f"{len(ids)} positions computed; a padded batch would compute {padded}")
    assert difference < 1e-4
