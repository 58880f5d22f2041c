"""What a training costs before it runs: parameters, memory of a rank, operations, seconds; from shapes alone.

The model is run, forward and backward, on tensors without numbers, so every count is of what its parts really do.
"""

from fac_lightning.estimate.decoding import GroupCost, trace_group
from fac_lightning.estimate.machines import MACHINES, Machine, machine_named
from fac_lightning.estimate.operations import FLOP_FORMULAS
from fac_lightning.estimate.rank_memory import STRATEGIES, RankMemory, Sharding, rank_memory, sharding_named
from fac_lightning.estimate.rates import RateComparison, RateCost, RateVariant, compare_rates
from fac_lightning.estimate.remedies import (
    Remedy,
    cheapest,
    fewer_positions,
    frozen_slot,
    low_rank_slot,
    smaller_slot,
)
from fac_lightning.estimate.setting import Assessment, Setting, assess
from fac_lightning.estimate.shapes import ShapesOnly, hollow
from fac_lightning.estimate.step_time import StepTime, step_time
from fac_lightning.estimate.stored import StoredFeatures
from fac_lightning.estimate.trace import StepMemory
from fac_lightning.estimate.training import LineCost, SlotSize, slot_sizes, trace_line
from fac_lightning.estimate.workload import Conversation, LineBudget, conversation_batch, packed_batch

__all__ = [
    "FLOP_FORMULAS",
    "MACHINES",
    "STRATEGIES",
    "Assessment",
    "Conversation",
    "GroupCost",
    "LineBudget",
    "LineCost",
    "Machine",
    "RankMemory",
    "RateComparison",
    "RateCost",
    "RateVariant",
    "Remedy",
    "Setting",
    "ShapesOnly",
    "Sharding",
    "SlotSize",
    "StepMemory",
    "StepTime",
    "StoredFeatures",
    "assess",
    "cheapest",
    "compare_rates",
    "conversation_batch",
    "fewer_positions",
    "frozen_slot",
    "hollow",
    "low_rank_slot",
    "machine_named",
    "packed_batch",
    "rank_memory",
    "sharding_named",
    "slot_sizes",
    "smaller_slot",
    "step_time",
    "trace_group",
    "trace_line",
]
