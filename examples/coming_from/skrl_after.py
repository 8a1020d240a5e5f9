"""The same with understudy: sizes come from the environment, evaluation and checkpoints with the training.

python examples/coming_from/skrl_after.py
"""

from __future__ import annotations

import sys
import tempfile

import understudy as us


def main(total_steps: int = 200_000, episodes: int = 8) -> float:
    """Train and test; returns the mean return."""
    config = us.TrainConfig(
        env=us.EnvConfig(id="Pendulum-v1", num_envs=8),
        total_steps=total_steps,
        policy=us.PolicyConfig(
            hidden_sizes=(64, 64),
            # of an action in [-1, 1], which is scaled by 2: the same noise
            distribution=us.DistributionConfig(mean_activation="tanh", init_std=0.5),
        ),
        ppo=us.PPOConfig(
            num_steps=256,
            epochs=10,
            minibatches=8,
            gamma=0.9,
            optimizer=us.OptimizerConfig(learning_rate=1e-3),
            # no desired_kl=0.008: it decides after every minibatch, KLAdaptiveLR after every epoch
            value_normalization="standardize",
        ),
        evaluation=us.EvaluationConfig(episodes=episodes),
        run_dir=f"{tempfile.mkdtemp()}/run",
    )
    score = us.train(config).evaluation
    print(f"return {score.mean_return:.0f} ± {score.std_return:.0f}")
    return score.mean_return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
