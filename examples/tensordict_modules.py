"""Networks written for TorchRL: two `TensorDictModule`s, actor and critic, as a policy, and given as an object.

Run it with `python examples/tensordict_modules.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn

import understudy as us
from understudy.nn.distributions import DiagGaussian


def make_modules(observations: int, actions: int, cells: int = 32) -> tuple[TensorDictModule, TensorDictModule]:
    """Actor ("observation" -> "loc", "scale") and critic ("observation" -> "state_value"), as on TorchRL's PPO page."""

    def mlp(out: int, *last: nn.Module) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(observations, cells), nn.Tanh(), nn.Linear(cells, cells), nn.Tanh(), nn.Linear(cells, out), *last
        )

    actor = TensorDictModule(
        mlp(2 * actions, NormalParamExtractor()), in_keys=["observation"], out_keys=["loc", "scale"]
    )
    critic = TensorDictModule(mlp(1), in_keys=["observation"], out_keys=["state_value"])
    return actor, critic


class TensorDictPolicy(us.Policy):
    """`actor` writes "loc" and "scale", `critic` writes "state_value"; both read "observation"."""

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        config: us.PolicyConfig | None = None,
        *,
        actor: TensorDictModule,
        critic: TensorDictModule,
    ) -> None:
        super().__init__(observation_space, action_space, config)
        self.actor, self.critic = actor, critic

    def forward(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> us.PolicyOutput:
        distribution, _, latents = self.run_actor(obs)
        return us.PolicyOutput(distribution, self.value(obs), None, latents)

    # these two are optional: acting then spares the critic, and bootstrapping the actor

    def run_actor(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> Any:
        # tensordict.nn modules also take and return plain tensors, in the order of their keys
        loc, scale = self.actor(observation=self.observe(obs)["policy"])
        return DiagGaussian(loc, scale.log()), None, {}

    def value(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> Tensor:
        return self.critic(observation=self.observe(obs)["policy"]).squeeze(-1)


def make_policy(env_id: str = "Pendulum-v1") -> TensorDictPolicy:
    env = gym.make(env_id)
    assert env.observation_space.shape
    assert env.action_space.shape
    actor, critic = make_modules(int(np.prod(env.observation_space.shape)), int(np.prod(env.action_space.shape)))
    observation_space = spaces.Dict(
        {"policy": env.observation_space}
    )  # groups, as the library's environments give them
    return TensorDictPolicy(observation_space, env.action_space, actor=actor, critic=critic)


def main(total_steps: int = 20_000, run_dir: Path | None = None) -> us.Run:
    policy = make_policy()
    run = us.train(
        us.TrainConfig(
            env=us.EnvConfig(id="Pendulum-v1", num_envs=8),
            ppo=us.PPOConfig(num_steps=128, epochs=4, minibatches=4),
            total_steps=total_steps,
            torch_threads=1,
            run_dir=None if run_dir is None else str(run_dir),
        ),
        policy=policy,
    )
    assert run.evaluation is not None
    print(run.evaluation.sentence())
    # the file holds the weights; the object comes from you
    print(us.load(run.path, policy=make_policy()).act(np.zeros(3, np.float32)))
    return run


if __name__ == "__main__":
    main()
