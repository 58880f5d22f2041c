"""Checkpoints of the released format, tiny and random, for the tests."""

from fac_lightning.testing.fun_audio_chat import BYTES, TEXT_SPECIAL, tiny_config, write_checkpoint

__all__ = ["BYTES", "TEXT_SPECIAL", "tiny_config", "write_checkpoint"]
