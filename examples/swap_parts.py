"""Swap parts: the same speech LLM with four pairs of adapter and fusion, trained for a few steps each.

In a recipe the swap is one line (`model.code_adapter._target_: fac_lightning.adapters.MeanCodeGrouping`); in Python it
is another object in the same slot.

    python examples/swap_parts.py
"""

import itertools

import torch

from fac_lightning.adapters import ConcatCodeGrouping, MeanCodeGrouping, MeanFusion, SumFusion
from fac_lightning.models import SpeechLM
from fac_lightning.testing import tiny_batch, tiny_speech_lm


def losses(model: SpeechLM, updates: int = 20) -> list[float]:
    """Loss of each update on one packed line, nats per labelled token."""
    batch = tiny_batch(model, rows=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(updates):
        output = model(batch)
        loss = output.text_loss_sum / batch.text_token_total + output.speech_loss_sum / batch.speech_token_total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


if __name__ == "__main__":
    base = tiny_speech_lm()
    sizes = {"codebook_size": 32, "group_size": 5, "dim": base.backbone.dim}
    for adapter, fusion in itertools.product((ConcatCodeGrouping, MeanCodeGrouping), (SumFusion, MeanFusion)):
        torch.manual_seed(0)
        fresh = tiny_speech_lm()
        model = SpeechLM(
            backbone=fresh.backbone,
            head=fresh.head,
            encoder=fresh.encoder,
            feature_adapter=fresh.feature_adapter,
            code_adapter=adapter(**sizes),
            fusion=fusion(),
        )
        history = losses(model)
        print(f"{adapter.__name__:20} {fusion.__name__:12} loss {history[0]:.2f} -> {history[-1]:.2f}")
        assert history[-1] < history[0]
