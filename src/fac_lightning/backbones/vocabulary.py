"""More tokens for a language model: rows are added behind the old ones and never cut."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["grow_vocabulary", "vocabulary_rows"]


def vocabulary_rows(own: int, wanted: int | None, multiple: int) -> int:
    """Rows that a model with ``own`` rows gets, to hold ``wanted`` ids in a multiple of ``multiple``.

    Raises:
        ValueError: ``multiple`` is below 1.
    """
    if multiple < 1:
        raise ValueError(f"vocab_multiple must be at least 1, got {multiple}")
    return -(-max(own, wanted or 0) // multiple) * multiple


@torch.no_grad()
def grow_vocabulary(lm: Any, rows: int) -> None:
    """Give a causal LM of transformers ``rows`` rows; new ones start as the mean of the old ones.

    A new token then has the mean of all logits, less than the most likely ones by far: what a trained model says stays
    almost as it was (https://nlp.stanford.edu/~johnhew/vocab-expansion.html), which rows of random numbers do not
    promise. Tied matrices stay one.
    """
    old = lm.get_input_embeddings().weight.shape[0]
    if rows <= old:
        return
    lm.resize_token_embeddings(rows, mean_resizing=False)
    for matrix in {lm.get_input_embeddings().weight, lm.get_output_embeddings().weight}:
        matrix[old:] = matrix[:old].float().mean(0).to(matrix.dtype)
