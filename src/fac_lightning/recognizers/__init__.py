"""Waveform -> text: other people's engines that filter data and judge results."""

from fac_lightning.recognizers.base import Recognizer
from fac_lightning.recognizers.pocketsphinx import PocketsphinxRecognizer
from fac_lightning.recognizers.whisper import WhisperRecognizer

__all__ = ["PocketsphinxRecognizer", "Recognizer", "WhisperRecognizer"]
