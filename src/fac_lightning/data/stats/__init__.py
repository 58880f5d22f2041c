"""What dialogues hold, counted without reading audio, in memory that does not grow with them."""

from fac_lightning.data.stats.density import DensestReplies, Reply
from fac_lightning.data.stats.facts import DialogueFacts, TurnFacts, read_facts
from fac_lightning.data.stats.histogram import Histogram
from fac_lightning.data.stats.job import DialogueStats
from fac_lightning.data.stats.page import stats_page
from fac_lightning.data.stats.tally import Tally

__all__ = [
    "DensestReplies",
    "DialogueFacts",
    "DialogueStats",
    "Histogram",
    "Reply",
    "Tally",
    "TurnFacts",
    "read_facts",
    "stats_page",
]
