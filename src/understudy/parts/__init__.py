"""Expert signals: one file per part, one line here. A part is imported when somebody asks for it."""

from __future__ import annotations

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

_CONFIGS = {
    "advisor": "understudy.parts.advisor:AdvisorConfig",
    "airl": "understudy.parts.airl:AirlConfig",
    "behavior-cloning": "understudy.parts.behavior_cloning:BehaviorCloningConfig",
    "estimator": "understudy.parts.estimator:EstimatorConfig",
    "gail": "understudy.parts.gail:GailConfig",
    "motion-prior": "understudy.parts.motion_prior:MotionPriorConfig",
    "random-network-distillation": "understudy.parts.random_network_distillation:RandomNetworkDistillationConfig",
    "scripted-expert": "understudy.parts.scripted_expert:ScriptedExpertConfig",
    "symmetry": "understudy.parts.symmetry:SymmetryConfig",
    "teacher": "understudy.parts.teacher:TeacherConfig",
}

PARTS: Registry[type[PartConfig]] = Registry("part", "understudy.parts", _CONFIGS)
"""Name -> config class: what the command line, configs on disk and the contract test read."""

_HOMES = {"MirrorSpec": "understudy.parts.symmetry"}
for _place in _CONFIGS.values():
    _module, _, _config = _place.partition(":")
    _HOMES[_config] = _HOMES[_config.removesuffix("Config")] = _module

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'understudy.parts' has no attribute {name!r}")
    return vars(import_module(_HOMES[name]))[name]
