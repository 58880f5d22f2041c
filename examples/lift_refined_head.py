"""Lift one part out: two speech heads learn the same toy speech, with no model around them.

In the toy language a hidden state sets the step from one code to the next, but a reply starts where it likes. A head
that says all codes of a group at once cannot know where; the refined head hears its own last code.

    python examples/lift_refined_head.py
"""

import math

import torch
from torch import Tensor

from fac_lightning.heads import ParallelHead, RefinedHead, SpeechHead

GROUPS, GROUP_SIZE, CODES, DIM = 3, 5, 16, 32


def speak(replies: int, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states ``(H, DIM)`` and codes ``(H, GROUP_SIZE, 1)`` of random replies, one after the other."""
    kind = torch.randint(len(steps), (replies,))
    start = torch.randint(CODES, (replies, 1))
    codes = (start + kind[:, None] * torch.arange(GROUPS * GROUP_SIZE)) % CODES
    return steps[kind].repeat_interleave(GROUPS, dim=0), codes.reshape(-1, GROUP_SIZE, 1)


def train(head: SpeechHead, steps: Tensor, updates: int = 120, replies: int = 32) -> float:
    """Loss after some updates, nats per code."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    lengths = torch.full((replies,), GROUPS)
    for _ in range(updates):
        hidden, labels = speak(replies, steps)
        said = head(hidden, labels, lengths)
        loss = -said.logprobs.sum() / said.mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


if __name__ == "__main__":
    torch.manual_seed(0)
    steps = torch.randn(4, DIM)  # one hidden state for each step size
    refined = train(RefinedHead(DIM, GROUP_SIZE, CODES, width=32, num_layers=1, num_heads=2), steps)
    parallel = train(ParallelHead(DIM, GROUP_SIZE, CODES, hidden_dim=64), steps)
    print(f"knowing nothing     {math.log(CODES):.2f} nats per code")
    print(f"ParallelHead        {parallel:.2f}")
    print(f"RefinedHead         {refined:.2f}")
    print(f"the start alone     {math.log(CODES) / (GROUPS * GROUP_SIZE):.2f}  (no head can know it)")
    assert refined < 0.5 * parallel
