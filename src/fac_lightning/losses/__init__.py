"""Pure functions on hidden states, logits and log-probabilities; preference losses as thin modules over them."""

from fac_lightning.losses.base import PreferenceLoss
from fac_lightning.losses.chunked import chunked_logprobs
from fac_lightning.losses.mixed import MixedPreferenceLoss
from fac_lightning.losses.pairless import APOZeroLoss, BCOLoss, KTOLoss, NCALoss, SPPOLoss
from fac_lightning.losses.pairwise import (
    APODownLoss,
    ConservativeDPOLoss,
    DiscoPOPLoss,
    DPOLoss,
    EXOLoss,
    HingeLoss,
    IPOLoss,
    NormalizedDPOLoss,
    RobustDPOLoss,
)
from fac_lightning.losses.reduction import masked_mean, masked_sum, segment_sum
from fac_lightning.losses.reference_free import ORPOLoss, SFTLoss, SimPOLoss
from fac_lightning.losses.scores import PairScores, answer_counts, answer_logprobs
from fac_lightning.losses.streams import JointStreams, SeparateStreams, SpeechStream, StreamMode, TextStream

__all__ = [
    "APODownLoss",
    "APOZeroLoss",
    "BCOLoss",
    "ConservativeDPOLoss",
    "DPOLoss",
    "DiscoPOPLoss",
    "EXOLoss",
    "HingeLoss",
    "IPOLoss",
    "JointStreams",
    "KTOLoss",
    "MixedPreferenceLoss",
    "NCALoss",
    "NormalizedDPOLoss",
    "ORPOLoss",
    "PairScores",
    "PreferenceLoss",
    "RobustDPOLoss",
    "SFTLoss",
    "SPPOLoss",
    "SeparateStreams",
    "SimPOLoss",
    "SpeechStream",
    "StreamMode",
    "TextStream",
    "answer_counts",
    "answer_logprobs",
    "chunked_logprobs",
    "masked_mean",
    "masked_sum",
    "segment_sum",
]
