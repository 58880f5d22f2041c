"""Pure functions on hidden states, logits and log-probabilities."""

from fac_lightning.losses.chunked import chunked_logprobs
from fac_lightning.losses.reduction import masked_mean, masked_sum, segment_sum

__all__ = ["chunked_logprobs", "masked_mean", "masked_sum", "segment_sum"]
