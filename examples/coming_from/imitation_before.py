"""CartPole with `imitation`: demonstrations of a scripted expert, behaviour cloning, then GAIL over SB3's PPO.

python examples/coming_from/imitation_before.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import numpy as np
from imitation.algorithms import bc
from imitation.algorithms.adversarial.gail import GAIL
from imitation.data.types import Trajectory
from imitation.rewards.reward_nets import BasicRewardNet
from imitation.util.networks import RunningNorm
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy


def expert(episodes: int) -> list[Trajectory]:
    """Push towards the side to which the pole falls."""
    env, found = gymnasium.make("CartPole-v1"), []
    for episode in range(episodes):
        observations, actions, done = [env.reset(seed=episode)[0]], [], False
        while not done:
            actions.append(int(observations[-1] @ [0.1, 0.5, 1.0, 1.0] > 0))
            obs, _, terminated, truncated, _ = env.step(actions[-1])
            observations.append(obs)
            done = terminated or truncated
        found.append(Trajectory(np.stack(observations), np.array(actions), None, terminal=terminated))
    return found


def main(total_steps: int = 100_000, epochs: int = 20) -> tuple[float, float]:
    """Train both; returns the mean returns of cloning and of GAIL."""
    venv, test_env = make_vec_env("CartPole-v1", n_envs=8, seed=0), make_vec_env("CartPole-v1", seed=1)
    demonstrations = expert(5)
    cloning = bc.BC(
        observation_space=venv.observation_space,
        action_space=venv.action_space,
        demonstrations=demonstrations,
        batch_size=256,
        rng=np.random.default_rng(0),
        device="cpu",
    )
    cloning.train(n_epochs=epochs, log_interval=10**9, progress_bar=False)
    cloned, _ = evaluate_policy(cloning.policy, test_env, n_eval_episodes=20)

    learner = PPO("MlpPolicy", venv, n_steps=128, batch_size=256, learning_rate=1e-3, seed=0, device="cpu")
    trainer = GAIL(
        demonstrations=demonstrations,
        demo_batch_size=1024,
        venv=venv,
        gen_algo=learner,
        reward_net=BasicRewardNet(venv.observation_space, venv.action_space, normalize_input_layer=RunningNorm),
        n_disc_updates_per_round=4,
        allow_variable_horizon=True,
        log_dir=Path("imitation_output"),
    )
    trainer.train(total_steps)
    score, _ = evaluate_policy(learner, test_env, n_eval_episodes=20)
    print(f"cloning {cloned:.0f}, GAIL {score:.0f}")
    return float(cloned), float(score)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
