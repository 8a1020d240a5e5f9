"""Expert signals: one file per part, one line here. A part is imported when somebody asks for it."""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from understudy.core.registry import Registry

if TYPE_CHECKING:
    from understudy.parts.advisor import Advisor, AdvisorConfig
    from understudy.parts.airl import Airl, AirlConfig
    from understudy.parts.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
    from understudy.parts.estimator import Estimator, EstimatorConfig
    from understudy.parts.gail import Gail, GailConfig
    from understudy.parts.motion_prior import MotionPrior, MotionPriorConfig
    from understudy.parts.random_network_distillation import RandomNetworkDistillation, RandomNetworkDistillationConfig
    from understudy.parts.scripted_expert import ScriptedExpert, ScriptedExpertConfig
    from understudy.parts.symmetry import MirrorSpec, Symmetry, SymmetryConfig
    from understudy.parts.teacher import Teacher, TeacherConfig
    from understudy.ppo.part import PartConfig

__all__ = [
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
    "MirrorSpec",
    "MotionPrior",
    "MotionPriorConfig",
    "RandomNetworkDistillation",
    "RandomNetworkDistillationConfig",
    "ScriptedExpert",
    "ScriptedExpertConfig",
    "Symmetry",
    "SymmetryConfig",
    "Teacher",
    "TeacherConfig",
]

# the name of a part, of its file and of its class are one name: motion-prior, motion_prior, MotionPrior
_FILES = {name: re.sub(r"\B[A-Z]", r"_\g<0>", name.removesuffix("Config")).lower() for name in __all__[1:]}
_FILES["MirrorSpec"] = "symmetry"
_CONFIGS = {file.replace("_", "-"): (file, name) for name, file in _FILES.items() if name.endswith("Config")}

PARTS: Registry[type[PartConfig]] = Registry(
    "part", "understudy.parts", {part: f"understudy.parts.{file}:{name}" for part, (file, name) in _CONFIGS.items()}
)
"""Name -> config class: what the command line, configs on disk and the contract test read."""


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'understudy.parts' has no attribute {name!r}")
    return vars(import_module(f"understudy.parts.{_FILES[name]}"))[name]
