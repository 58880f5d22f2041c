"""Room preferences: jobs that make preference pairs, of manifests or of the model's own answers."""

from fac_lightning.preferences.base import PairBuilder
from fac_lightning.preferences.candidates import Candidate, CandidateGroup, CandidateSource
from fac_lightning.preferences.empathy import EmpathyPairs
from fac_lightning.preferences.families import PairFamilies
from fac_lightning.preferences.folder import PairFolder
from fac_lightning.preferences.instruction import InstructionPairs
from fac_lightning.preferences.llama_factory import LlamaFactoryPairs
from fac_lightning.preferences.manifest_candidates import ManifestCandidates
from fac_lightning.preferences.manifest_pairs import ManifestPairs
from fac_lightning.preferences.model_answers import ModelAnswers
from fac_lightning.preferences.ranking import LeftOutError, Ranked, RankedPairs, best_and_worst
from fac_lightning.preferences.robustness import RobustnessPairs
from fac_lightning.preferences.sampled_candidates import SampledCandidates
from fac_lightning.preferences.stability import StabilityPairs
from fac_lightning.preferences.understanding import UnderstandingPairs
from fac_lightning.preferences.voice import level, pitch_track, speaking_rate

__all__ = [
    "Candidate",
    "CandidateGroup",
    "CandidateSource",
    "EmpathyPairs",
    "InstructionPairs",
    "LeftOutError",
    "LlamaFactoryPairs",
    "ManifestCandidates",
    "ManifestPairs",
    "ModelAnswers",
    "PairBuilder",
    "PairFamilies",
    "PairFolder",
    "Ranked",
    "RankedPairs",
    "RobustnessPairs",
    "SampledCandidates",
    "StabilityPairs",
    "UnderstandingPairs",
    "best_and_worst",
    "level",
    "pitch_track",
    "speaking_rate",
]
