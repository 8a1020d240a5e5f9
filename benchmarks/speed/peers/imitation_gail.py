"""imitation 1.0.1: `GAIL.train` itself, on SB3's `PPO` and `DummyVecEnv` in this process; only timed from outside.

Installed as `imitation_bc.py` says. The reward network is its default `BasicRewardNet` (32-32), given the workload's
activation. Nothing is logged to disk.

Differences from the workload: the update's share of the time leaves out the discriminator's steps, which it takes
outside of PPO: they count as collection.
"""

from __future__ import annotations

import numpy as np
import torch
from imitation.algorithms.adversarial.gail import GAIL  # type: ignore[import-not-found, unused-ignore]
from imitation.data.types import Transitions  # type: ignore[import-not-found, unused-ignore]
from imitation.rewards.reward_nets import BasicRewardNet  # type: ignore[import-not-found, unused-ignore]
from imitation.util import logger  # type: ignore[import-not-found, unused-ignore]
from stable_baselines3 import PPO  # type: ignore[import-not-found, unused-ignore]
from stable_baselines3.common.vec_env import DummyVecEnv  # type: ignore[import-not-found, unused-ignore]

from benchmarks.speed.harness import ACTIVATIONS, Clock, Demonstrations, Job, Trainer, make_demonstrations, make_env


class ImitationGail(Trainer):
    """`GAIL.train` in slices of whole rounds."""

    def __init__(self, job: Job) -> None:
        w = self.w = job.workload
        self.clock = Clock(job.device)
        env = DummyVecEnv([lambda: make_env(w.env_id) for _ in range(w.num_envs)])
        self.model = PPO(
            "MlpPolicy",
            env,
            learning_rate=w.learning_rate,
            n_steps=w.num_steps,
            batch_size=w.minibatch_size,
            n_epochs=w.num_epochs,
            gamma=w.gamma,
            gae_lambda=w.gae_lambda,
            clip_range=w.clip_epsilon,
            ent_coef=w.entropy_coef,
            vf_coef=w.value_coef,
            max_grad_norm=w.max_grad_norm,
            policy_kwargs={
                "net_arch": {"pi": list(w.hidden), "vf": list(w.hidden)},
                "activation_fn": ACTIVATIONS[w.activation],
                "log_std_init": float(np.log(w.init_std)),
            },
            seed=job.seed,
            device=job.device,
        )
        self.model.train = self.clock.timed(self.model.train)
        self.trainer = GAIL(
            demonstrations=transitions(make_demonstrations(w.episodes, job.seed)),
            demo_batch_size=w.steps_per_iteration // w.disc_updates,
            venv=env,
            gen_algo=self.model,
            reward_net=BasicRewardNet(
                env.observation_space, env.action_space, hid_sizes=w.disc_hidden, activation=torch.nn.Tanh
            ),
            n_disc_updates_per_round=w.disc_updates,
            disc_opt_kwargs={"lr": w.learning_rate},
            gen_train_timesteps=w.steps_per_iteration,
            custom_logger=logger.configure(format_strs=[]),
        )

    @property
    def steps(self) -> int:  # type: ignore[override]
        return int(self.model.num_timesteps)

    def run(self, iterations: int) -> None:
        self.trainer.train(iterations * self.w.steps_per_iteration)

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.asarray(self.model.predict(obs, deterministic=True)[0])


def transitions(demonstrations: Demonstrations) -> Transitions:
    """The pairs in imitation's shape."""
    obs, actions = demonstrations.pairs()
    infos = np.array([{} for _ in obs])
    return Transitions(
        obs=obs, acts=actions, infos=infos, next_obs=demonstrations.next_obs(), dones=np.zeros(len(obs), dtype=bool)
    )


def build(job: Job) -> ImitationGail:
    """The trainer."""
    return ImitationGail(job)
