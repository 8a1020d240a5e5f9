"""A training script around rsl_rl's runner: construct, learn, save, play (needs rsl-rl-lib 5).

python examples/coming_from/rsl_rl_before.py
"""

from __future__ import annotations

import sys
import tempfile

import torch
from rsl_rl.runners import OnPolicyRunner
from rsl_rl_task import Points, train_cfg


def main(iterations: int = 40, num_envs: int = 64) -> float:
    """Train, load the model and play; returns the mean reward of a step."""
    log_dir = tempfile.mkdtemp()
    runner = OnPolicyRunner(Points(num_envs), train_cfg(), log_dir=log_dir, device="cpu")
    runner.add_git_repo_to_log(__file__)
    runner.learn(num_learning_iterations=iterations, init_at_random_ep_len=True)

    env = Points(16)
    player = OnPolicyRunner(env, train_cfg(), device="cpu")
    player.load(f"{log_dir}/model_{iterations - 1}.pt", load_cfg={"actor": True})
    policy, obs, total = player.get_inference_policy(device="cpu"), env.get_observations(), 0.0
    with torch.inference_mode():
        for _ in range(100):
            obs, reward, _, _ = env.step(policy(obs))
            total += float(reward.mean()) / 100
    print(f"mean reward {total:.2f}")
    return total


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
