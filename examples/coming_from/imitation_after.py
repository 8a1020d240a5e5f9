"""The same with understudy: the demonstrations are a file, and both trainings are recipes.

python examples/coming_from/imitation_after.py
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import gymnasium
import numpy as np

import understudy as us


def expert(episodes: int, path: Path) -> None:
    """Push towards the side to which the pole falls."""
    env, rows = gymnasium.make("CartPole-v1"), []
    for episode in range(episodes):
        obs, done = env.reset(seed=episode)[0], False
        while not done:
            action = int(obs @ [0.1, 0.5, 1.0, 1.0] > 0)
            after, reward, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
            rows.append((obs, action, after, reward, terminated, truncated))
            obs = after
    names = ("observations", "actions", "next_observations", "rewards", "terminals", "timeouts")
    np.savez(path, **{name: np.stack(column) for name, column in zip(names, zip(*rows))})


def main(total_steps: int = 100_000, epochs: int = 20) -> tuple[float, float]:
    """Train both; returns the mean returns of cloning and of GAIL."""
    folder = Path(tempfile.mkdtemp())
    demonstrations = str(folder / "expert.npz")
    expert(5, Path(demonstrations))
    config = us.recipes.bc("CartPole-v1", demonstrations=demonstrations)
    offline = dataclasses.replace(config.offline, epochs=epochs)
    cloned = us.train(dataclasses.replace(config, offline=offline, run_dir=str(folder / "bc"))).evaluation
    config = us.recipes.gail("CartPole-v1", demonstrations=demonstrations, total_steps=total_steps)
    score = us.train(dataclasses.replace(config, run_dir=str(folder / "gail"))).evaluation
    print(f"cloning {cloned.mean_return:.0f}, GAIL {score.mean_return:.0f}")
    return cloned.mean_return, score.mean_return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
