"""Tiny parts and contract checks, for our tests and for everyone's own parts."""

from fac_lightning.testing.tiny import FrameEncoder, tiny_backbone, tiny_batch, tiny_speech_lm

__all__ = ["FrameEncoder", "tiny_backbone", "tiny_batch", "tiny_speech_lm"]
