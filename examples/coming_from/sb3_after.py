"""The same with understudy: the normaliser is the policy's, checkpoints hold the whole training and resume exactly.

python examples/coming_from/sb3_after.py
"""

from __future__ import annotations

import sys
import tempfile

import understudy as us


def main(total_steps: int = 100_000, episodes: int = 20) -> float:
    """Train and test; returns the mean return."""
    config = us.TrainConfig(
        env=us.EnvConfig(id="CartPole-v1", num_envs=8),
        total_steps=total_steps,
        policy=us.PolicyConfig(hidden_sizes=(64, 64)),
        ppo=us.PPOConfig(
            num_steps=128,
            minibatches=4,
            epochs=10,
            entropy_coef=0.001,
            optimizer=us.OptimizerConfig(learning_rate=1e-3),
        ),
        # numbers of steps are of all copies together
        evaluation=us.EvaluationConfig(interval=20_000),
        checkpoint=us.CheckpointConfig(interval=50_000),
        stop_when="evaluation/return>=475",
        run_dir=f"{tempfile.mkdtemp()}/run",
    )
    run = us.train(config)
    score = us.evaluate(run, episodes=episodes, seed=2)  # us.load(run.path).act(obs) returns actions
    print(f"return {score.mean_return:.0f} ± {score.std_return:.0f}")
    return score.mean_return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
