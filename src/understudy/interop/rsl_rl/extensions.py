"""rsl_rl's extensions of PPO, random network distillation and symmetry, as parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core.registry import load_object
from understudy.core.schedules import Number, Schedule, ScheduleKind
from understudy.core.spaces import is_vector, size_of
from understudy.interop.rsl_rl.facts import Facts, ObservationSets
from understudy.interop.rsl_rl.networks import DIMS, read_activation
from understudy.interop.rsl_rl.reading import Block, attempt
from understudy.parts.random_network_distillation import RandomNetworkDistillationConfig
from understudy.parts.symmetry import MirrorSpec, SymmetryConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.part import PartConfig


def rnd(algorithm: Block, ppo: PPOConfig, facts: Facts, sets: ObservationSets, parts: dict[str, PartConfig]) -> None:
    """`rnd_cfg` as a part; as there, its weight is multiplied by the simulator's step."""
    block = algorithm.block("rnd_cfg")
    if block is None:
        return
    observations = sets.rnd(facts)
    if facts.step_time is None:
        block.problems.append(
            f"{block.place}weight is multiplied by the simulator's step there: give from_config(env=) the environment"
        )
    weight = block.take("weight", float, 0.0) * (facts.step_time or 1.0)
    parts["rnd"] = attempt(
        block.problems,
        RandomNetworkDistillationConfig,
        RandomNetworkDistillationConfig,
        reward_weight=_weight(block, weight, facts.num_envs),
        observations=observations,
        num_outputs=block.take("num_outputs", int, 1),
        predictor_hidden_sizes=_sizes(block, "predictor_hidden_dims", facts.size(observations)),
        target_hidden_sizes=_sizes(block, "target_hidden_dims", facts.size(observations)),
        activation=read_activation(block, "activation", "elu"),
        normalize_observations=block.take("state_normalization", bool, False),
        normalize_reward=block.take("reward_normalization", bool, False),
        epochs=ppo.epochs,
        minibatches=ppo.minibatches,
        optimizer=OptimizerConfig(learning_rate=block.take("learning_rate", float, 1e-3), eps=1e-8, max_grad_norm=None),
    )
    block.close()


def _weight(block: Block, weight: float, num_envs: int) -> Number:
    """`weight_schedule`, whose steps are those of one environment."""
    schedule = block.block("weight_schedule")
    if schedule is None:
        return weight
    modes: dict[str, ScheduleKind] = {"constant": "constant", "step": "step", "linear": "piecewise"}
    mode = schedule.choose("mode", modes, "constant")
    first, last = schedule.take("initial_step", int, 0), schedule.take("final_step", int, 1)
    # as there, the value at the end is not multiplied by the simulator's step
    final = schedule.take("final_value", float, weight)
    schedule.close()
    if mode == "constant":
        return weight
    start = 0 if mode == "step" else first * num_envs
    points = ((start, weight), (max(last * num_envs, start + 1), final))
    return attempt(block.problems, lambda: Schedule(kind=mode, points=points), lambda: Schedule(kind="constant"))


def _sizes(block: Block, name: str, inputs: int | None) -> tuple[int, ...]:
    """Hidden layers; -1 is the size of the input."""
    value = block.take(name, DIMS, (-1,))
    sizes = (value,) if isinstance(value, int) else tuple(value)
    if -1 in sizes and inputs is None:
        block.problems.append(
            f"{block.place}{name}: -1 is the size of the state: give from_config(env=) the environment"
        )
        inputs = 1
    return tuple(inputs if size == -1 and inputs is not None else size for size in sizes)


def symmetry(
    algorithm: Block, ppo: PPOConfig, facts: Facts, sets: ObservationSets, parts: dict[str, PartConfig]
) -> PPOConfig:
    """`symmetry_cfg` as a part, and the PPO beside it.

    The augmented loss there is a mean over both halves: each has half of the weight here.
    """
    block = algorithm.block("symmetry_cfg")
    if block is None:
        return ppo
    function = block.take("data_augmentation_func", Any, None)
    augmented = block.take("use_data_augmentation", bool, False)
    mirrored = block.take("use_mirror_loss", bool, False)
    coefficient = block.take("mirror_loss_coeff", float, 0.0)
    block.ignore("env", "_env")
    block.close()
    mirrors = _mirrors(block, function, facts, (*sets.actor, *(sets.critic or ("critic",))))
    if mirrors is None:
        return ppo
    parts["symmetry"] = SymmetryConfig(
        observations=mirrors[0],
        action=mirrors[1],
        mirror_coef=coefficient if mirrored else 0.0,
        augmentation_coef=0.5 if augmented else 0.0,
        clip_epsilon=ppo.clip_epsilon,  # type: ignore[arg-type]  # rsl_rl's is a number
        value_coef=ppo.value_coef,  # type: ignore[arg-type]
    )
    if not augmented:
        return ppo
    return dataclasses.replace(ppo, surrogate_coef=0.5, value_coef=0.5 * ppo.value_coef)  # type: ignore[operator]


def _mirrors(
    block: Block, function: Any, facts: Facts, groups: tuple[str, ...]
) -> tuple[dict[str, MirrorSpec], MirrorSpec] | None:
    """What a function of the user's does to observations and actions, found out with unit vectors."""
    place = f"{block.place}data_augmentation_func"
    if facts.space is None or facts.num_actions is None:
        block.problems.append(f"{place} can only be asked with the environment: give from_config(env=) to it")
        return None
    try:
        augment: Callable[..., Any] = load_object(function) if isinstance(function, str) else function
        sizes = {name: size_of(facts.space[name]) for name in groups if name in facts.groups}
        if any(not is_vector(facts.space[name]) for name in sizes):
            raise ValueError("only vectors can be mirrored")
        device = torch.device(facts.env.device)
        rows = max(*sizes.values(), facts.num_actions) + 1  # and one row of zeros
        units = {facts.names[name]: torch.eye(rows, size, device=device) for name, size in sizes.items()}
        obs, _ = augment(env=facts.env, obs=TensorDict(units, batch_size=[rows], device=device), actions=None)
        _, actions = augment(env=facts.env, obs=None, actions=torch.eye(rows, facts.num_actions, device=device))
        found = {name: _mirror(obs[facts.names[name]], rows, size) for name, size in sizes.items()}
        return found, _mirror(actions, rows, facts.num_actions)
    except Exception as error:  # whatever a function of the user's raises
        block.problems.append(f"{place} is not a mirror that swaps entries and signs ({error})")
        return None


def _mirror(images: Tensor, rows: int, size: int) -> MirrorSpec:
    """From the images of unit vectors `[2 * rows, size]`, the second half mirrored."""
    if images.shape != (2 * rows, size):
        raise ValueError(f"it makes {len(images) / rows:g} copies of a minibatch, one mirror image makes 2")
    matrix, constant = images[rows : rows + size], images[-1]
    source = matrix.abs().argmax(0)
    sign = matrix.gather(0, source.unsqueeze(0)).squeeze(0)
    exact = torch.zeros_like(matrix).scatter(0, source.unsqueeze(0), sign.unsqueeze(0))
    if not (torch.equal(exact, matrix) and bool((sign.abs() == 1.0).all()) and not constant.any()):
        raise ValueError("an entry is more than another one or its negative")
    return MirrorSpec(permutation=tuple(source.tolist()), sign=tuple(sign.tolist()))
