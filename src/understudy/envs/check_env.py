"""`check_env`: an environment is stepped through the gate with random actions; what is wrong is said in sentences."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from understudy.core.check import In, fit
from understudy.envs.base import Step, VecEnv
from understudy.envs.gate import Gate, close_quietly, observation_name
from understudy.envs.objects import as_vec_env
from understudy.envs.registry import make_env
from understudy.types import UnderstudyError

_LARGE = 1e6
"""Observations and rewards beyond this train badly: networks and statistics compute in float32."""


def check_env(env: Any, *, steps: int = 200, seed: int = 0) -> tuple[str, ...]:
    """What is wrong with an environment, one sentence each; empty if nothing was found in `steps` random steps.

    `env` is an id, as in `EnvConfig.id`, or anything that `us.envs.as_vec_env` takes; it is left in the middle of an
    episode. Checked are spaces, shapes, types and ranges, finiteness and size of the numbers, seeding,
    and whether episodes end. Raises ValueError for `steps` below 1.
    """
    fit(Annotated[int, In(1)], steps, "steps")
    try:
        built = make_env(env, 2) if isinstance(env, str) else as_vec_env(env)
    except (ValueError, ImportError, UnderstudyError) as error:
        return (str(error),)
    try:
        return tuple(dict.fromkeys(_findings(built, steps, seed)))
    except UnderstudyError as error:  # the gate's: nothing after it can be trusted
        return (str(error),)
    finally:
        if isinstance(env, str):
            close_quietly(built.close, env)


def _findings(env: VecEnv, steps: int, seed: int) -> list[str]:
    gate, ended = Gate(env), False
    findings: list[str] = []
    gate.reset(seed)
    first = [x.clone() for x in gate.leaves]
    gate.reset(seed)
    if not all(torch.equal(x, y) for x, y in zip(first, gate.leaves)):
        findings.append("two resets with the same seed give different observations: draw from self.np_random")
    env.action_space.seed(seed)
    for _ in range(steps):
        actions = np.stack([np.asarray(env.action_space.sample()) for _ in range(env.num_envs)])
        step = gate.step(torch.as_tensor(actions, device=env.device))
        ended = ended or bool(step.ended.any())
        findings += _of_step(gate, step)
    if not ended:
        findings.append(f"no episode ended in {steps} steps: set a time limit, or check more steps if they are longer")
    return findings


def _of_step(gate: Gate, step: Step) -> list[str]:
    """What is odd about the numbers of one step."""
    named: list[tuple[str, Tensor]] = [("the reward", step.reward)]
    named += [(observation_name(key), x) for key, x in zip(gate.keys, gate.leaves) if x.is_floating_point()]
    findings = []
    for what, x in named:
        if not torch.isfinite(x).all():
            findings.append(f"{what} is not always finite: training leaves such steps out")
        elif x.numel() and float(x.abs().max()) > _LARGE:
            findings.append(f"{what} exceeds {_LARGE:g}: scale it down")
    return findings
