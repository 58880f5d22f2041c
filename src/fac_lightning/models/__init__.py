"""Models: the slots joined."""

from fac_lightning.models.agreement import matching_groups
from fac_lightning.models.speech_lm import SpeechLM

__all__ = ["SpeechLM", "matching_groups"]
