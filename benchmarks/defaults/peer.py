"""`PPO("MlpPolicy", env)` of Stable-Baselines3, with nothing else said; needs its interpreter, not understudy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def score(env_id: str, seed: int, steps: int, start: int, folder: Path, episodes: int) -> dict[str, Any]:
    """Train to `steps`, from the model that `folder` has of `start` steps (made first if it is missing), and test.

    Constant settings: a model after 100k steps is the same however long its training was meant to be.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / f"{start}.zip"
    if start == 0:
        model = PPO("MlpPolicy", env_id, seed=seed, device="cpu")
    else:
        if not saved.is_file():
            score(env_id, seed, start, 0, folder, episodes)
        model = PPO.load(saved, env=make_vec_env(env_id, seed=seed + 10_000), device="cpu")
    model.learn(steps - model.num_timesteps, reset_num_timesteps=False)
    model.save(folder / f"{steps}.zip")
    mean, std = evaluate_policy(model, make_vec_env(env_id, seed=20_000), n_eval_episodes=episodes)
    return {"score": float(mean), "std": float(std), "env_steps": model.num_timesteps}
