"""Expert signals: one file per part, one line here. `PARTS` is what the command line and the contract test read."""

from understudy.parts.advisor import Advisor, AdvisorConfig
from understudy.parts.airl import Airl, AirlConfig
from understudy.parts.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from understudy.parts.estimator import Estimator, EstimatorConfig
from understudy.parts.gail import Gail, GailConfig
from understudy.parts.motion_prior import MotionPrior, MotionPriorConfig
from understudy.parts.part import (
    HOOKS,
    Labels,
    Losses,
    Overrides,
    Part,
    PartConfig,
    PartContext,
    Rewards,
    Updates,
    Weights,
)
from understudy.parts.random_network_distillation import RandomNetworkDistillation, RandomNetworkDistillationConfig
from understudy.parts.scripted_expert import ScriptedExpert, ScriptedExpertConfig
from understudy.parts.symmetry import MirrorSpec, Symmetry, SymmetryConfig
from understudy.parts.teacher import Teacher, TeacherConfig

PARTS: dict[str, type[PartConfig]] = {
    "advisor": AdvisorConfig,
    "airl": AirlConfig,
    "behavior-cloning": BehaviorCloningConfig,
    "estimator": EstimatorConfig,
    "gail": GailConfig,
    "motion-prior": MotionPriorConfig,
    "random-network-distillation": RandomNetworkDistillationConfig,
    "scripted-expert": ScriptedExpertConfig,
    "symmetry": SymmetryConfig,
    "teacher": TeacherConfig,
}
"""Registered name -> config class."""

__all__ = [
    "HOOKS",
    "PARTS",
    "Advisor",
    "AdvisorConfig",
    "Airl",
    "AirlConfig",
    "BehaviorCloning",
    "BehaviorCloningConfig",
    "Estimator",
    "EstimatorConfig",
    "Gail",
    "GailConfig",
    "Labels",
    "Losses",
    "MirrorSpec",
    "MotionPrior",
    "MotionPriorConfig",
    "Overrides",
    "Part",
    "PartConfig",
    "PartContext",
    "RandomNetworkDistillation",
    "RandomNetworkDistillationConfig",
    "Rewards",
    "ScriptedExpert",
    "ScriptedExpertConfig",
    "Symmetry",
    "SymmetryConfig",
    "Teacher",
    "TeacherConfig",
    "Updates",
    "Weights",
]
