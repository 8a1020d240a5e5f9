"""Tianshou's words (1.x policies) over the formulas of behaviour cloning, PPO and GAIL: the user's modules and loop.

`imitation`, `ppo`, `gail`: a policy each, over `base` (what collectors and trainers call), `batches` and `statistics`.
"""

from understudy.interop.tianshou.batches import Batch, Buffer, as_batch, as_buffer
from understudy.interop.tianshou.gail import GAILPolicy
from understudy.interop.tianshou.imitation import ImitationPolicy
from understudy.interop.tianshou.ppo import PPOPolicy
from understudy.interop.tianshou.statistics import (
    GailTrainingStats,
    ImitationTrainingStats,
    PPOTrainingStats,
    SequenceSummaryStats,
    TrainingStats,
)

__all__ = [
    "Batch",
    "Buffer",
    "GAILPolicy",
    "GailTrainingStats",
    "ImitationPolicy",
    "ImitationTrainingStats",
    "PPOPolicy",
]
__all__ += ["PPOTrainingStats", "SequenceSummaryStats", "TrainingStats", "as_batch", "as_buffer"]
