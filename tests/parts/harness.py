"""What the tests of parts share: a part beside PPO, a rollout for it, a scripted expert of PointMass, recordings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

import understudy as us
from understudy.data.demonstrations.write import write_npz
from understudy.nn.heads import DistributionConfig
from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.parts.shared.discriminator import DiscriminatorConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.part import PartConfig, PartContext
from understudy.ppo.ppo import PPO
from understudy.tools.record import record_episodes

LEARNING: dict[str, Any] = {
    "discriminator": DiscriminatorConfig(hidden_sizes=(64, 64), batch_size=256, disc_update_num=8),
    "policy": {
        "hidden_sizes": (32, 32),
        "critic_groups": ("policy",),
        "distribution": DistributionConfig(init_std=0.5),
    },
    "ppo": {
        **{"num_steps": 64, "epochs": 5, "minibatches": 8, "gamma": 0.97},
        "optimizer": OptimizerConfig(learning_rate=2e-3),
    },
}
"""With these a discriminator's reward alone teaches a policy PointMass."""


def context_of(
    observation_space: spaces.Dict, action_space: spaces.Space[Any], policy: ActorCritic, num_envs: int = 1, **rest: Any
) -> PartContext:
    """The context of a part without an environment; `rest` as in `PartContext.of`."""
    env: Any = SimpleNamespace(
        observation_space=observation_space, action_space=action_space, num_envs=num_envs, device=torch.device("cpu")
    )
    return PartContext.of(env, policy, **{"name": "part", "num_steps": 2, **rest})


def beside_ppo(
    env: Any,
    config: PartConfig,
    name: str,
    *,
    policy: Mapping[str, Any] | None = None,
    seed: int = 0,
    total_steps: int = 1000,
    load_policy: Callable[[str], Any] = us.load,
    **ppo: Any,
) -> tuple[PPO, Any]:
    """PPO with a small policy and one part, and the part."""
    torch.manual_seed(seed)
    options = {"hidden_sizes": (8,), "memory_size": 8, **(policy or {})}
    net, core = ActorCritic(env.observation_space, env.action_space, PolicyConfig(**options)), PPOConfig(**ppo)
    part = config.build(
        PartContext.of(
            env, net, name=name, num_steps=core.num_steps, gamma=core.last_gamma, load_policy=load_policy, seed=0
        )
    )
    return PPO(env, net, core, {name: part}, seed=seed, total_steps=total_steps), part


def collected(ppo: PPO) -> TensorDict:
    """A rollout that the policy's normaliser has not seen."""
    ppo.collector.reset(0)
    ppo.policy.update_normalizers(ppo.collector.collect()["obs"])
    rollout = ppo.collector.collect()
    ppo.collector.evaluate()
    return rollout


class Replayed:
    """Demonstrations that are the rows of a rollout, each of them once."""

    def __init__(self, rollout: TensorDict) -> None:
        self.rows = rollout.select("obs", "next_obs", "terminated", strict=False).flatten(0, 1).clone()
        self.rows["executed_action"] = rollout["executed_action"].flatten(0, 1).clone()

    def sample(self, batch_size: int, generator: torch.Generator, next_obs: bool) -> TensorDict:
        assert next_obs == ("next_obs" in self.rows.keys())  # noqa: SIM118  (nobody draws what nobody reads)
        return self.rows[torch.randperm(batch_size, generator=generator)]


def steer(obs: TensorDict) -> Tensor:
    """PointMass: accelerate towards the goal and brake."""
    seen = obs["policy"]
    return (-3.0 * seen[:, :2] - 2.0 * seen[:, 2:]).clamp(-1.0, 1.0)


def record(env: Any, act: Callable[[TensorDict], Tensor], episodes: int, path: Path) -> Path:
    """At least so many whole episodes of `act`, as a file of demonstrations."""
    recorded = record_episodes(env, lambda obs, _: act(obs), episodes, seed=0)
    write_npz(path.with_suffix(".npz"), recorded, {})
    return path.with_suffix(".npz")
