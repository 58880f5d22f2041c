"""Measuring what a trained run can do: runner, metrics and the report page."""

from fac_lightning.evaluation.evidence import Claim, Column, Evidence, Experiment
from fac_lightning.evaluation.report import RunReport
from fac_lightning.evaluation.spoken_qa import SpokenQAEvaluation
from fac_lightning.evaluation.text_qa import TextQAEvaluation
from fac_lightning.evaluation.wer import NormalizedWER

__all__ = [
    "Claim",
    "Column",
    "Evidence",
    "Experiment",
    "NormalizedWER",
    "RunReport",
    "SpokenQAEvaluation",
    "TextQAEvaluation",
]
