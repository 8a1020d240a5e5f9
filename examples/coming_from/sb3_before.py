"""CartPole with Stable-Baselines3: PPO, a normaliser, evaluations that may end it, checkpoints, a policy that acts.

python examples/coming_from/sb3_before.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize


def main(total_steps: int = 100_000, episodes: int = 20) -> float:
    """Train and test; returns the mean return."""
    folder = Path(tempfile.mkdtemp())
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=8, seed=0), norm_reward=False)
    test_env = VecNormalize(make_vec_env("CartPole-v1", seed=1), norm_reward=False, training=False)
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=128,
        batch_size=256,
        n_epochs=10,
        learning_rate=1e-3,
        ent_coef=0.001,
        policy_kwargs={"net_arch": [64, 64]},
        tensorboard_log=None,
        seed=0,
        device="cpu",
    )
    # frequencies count steps of one copy; the second environment's statistics are synchronised by EvalCallback
    evaluation = EvalCallback(
        test_env,
        eval_freq=20_000 // 8,
        best_model_save_path=str(folder),
        callback_on_new_best=StopTrainingOnRewardThreshold(reward_threshold=475),
        verbose=0,
    )
    model.learn(total_steps, callback=[evaluation, CheckpointCallback(50_000 // 8, str(folder))])
    model.save(folder / "model.zip")
    env.save(str(folder / "normalizer.pkl"))

    test_env = VecNormalize.load(str(folder / "normalizer.pkl"), make_vec_env("CartPole-v1", seed=2))
    test_env.training = False
    policy = PPO.load(folder / "model.zip", device="cpu")
    mean, std = evaluate_policy(policy, test_env, n_eval_episodes=episodes)
    print(f"return {mean:.0f} ± {std:.0f}")
    return float(mean)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
