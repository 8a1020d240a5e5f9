"""Pendulum with skrl: models, memory, agent and trainer by hand.

python examples/coming_from/skrl_before.py
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import gymnasium
import torch
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.resources.schedulers.torch import KLAdaptiveLR
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import Tensor, nn


class Policy(GaussianMixin, Model):
    """Gaussian with a log standard deviation for each action."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        GaussianMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.log_std = nn.Parameter(torch.zeros(1))

    def compute(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, dict[str, Tensor]]:
        """Mean and log standard deviation."""
        return 2 * torch.tanh(self.net(inputs["observations"])), {"log_std": self.log_std}


class Value(DeterministicMixin, Model):
    """State value."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def compute(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, dict[str, Tensor]]:
        """The value."""
        return self.net(inputs["observations"]), {}


def main(total_steps: int = 200_000, episodes: int = 8) -> float:
    """Train and test; returns the mean return."""
    set_seed(0)
    copies, rollouts = 8, 256
    env = wrap_env(gymnasium.make_vec("Pendulum-v1", num_envs=copies))
    spaces = {
        "observation_space": env.observation_space,
        "state_space": env.state_space,
        "action_space": env.action_space,
        "device": env.device,
    }
    agent = PPO(
        models={"policy": Policy(**spaces), "value": Value(**spaces)},
        memory=RandomMemory(memory_size=rollouts, num_envs=copies, device=env.device),
        cfg=PPO_CFG(
            rollouts=rollouts,
            learning_epochs=10,
            mini_batches=8,
            discount_factor=0.9,
            learning_rate=1e-3,
            learning_rate_scheduler=KLAdaptiveLR,
            learning_rate_scheduler_kwargs={"kl_threshold": 0.008},
            value_loss_scale=0.5,
            time_limit_bootstrap=True,
            observation_preprocessor=RunningStandardScaler,
            observation_preprocessor_kwargs={"size": env.observation_space, "device": env.device},
            value_preprocessor=RunningStandardScaler,
            value_preprocessor_kwargs={"size": 1, "device": env.device},
            experiment={"directory": tempfile.mkdtemp(), "write_interval": 0, "checkpoint_interval": 0},
        ),
        **spaces,
    )
    cfg = {"timesteps": total_steps // copies, "headless": True, "disable_progressbar": True}
    SequentialTrainer(env=env, agents=agent, cfg=cfg).train()

    agent.enable_models_training_mode(False)
    obs, _ = env.reset()
    returns = torch.zeros(copies)
    for _ in range(200):
        with torch.no_grad():
            _, outputs = agent.act(obs, env.state(), timestep=0, timesteps=0)
            obs, reward, *_ = env.step(outputs["mean_actions"])
        returns += reward.flatten().cpu()
    print(f"return {returns[:episodes].mean():.0f} ± {returns[:episodes].std():.0f}")
    return float(returns[:episodes].mean())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
