"""Train, resume, load: the whole use of the library from Python. Takes about twenty seconds on one core.

Run it with `python examples/train_from_python.py`.
"""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym

import understudy as us
from understudy.training.loop import resume


def make_config(total_steps: int, run_dir: Path | None = None) -> us.TrainConfig:
    """Everything the training is; the same names as on the command line and in config.yaml."""
    return us.TrainConfig(
        env=us.EnvConfig(id="CartPole-v1", num_envs=8),
        policy=us.PolicyConfig(hidden_sizes=(64, 64)),
        ppo=us.PPOConfig(
            num_steps=128,
            epochs=10,
            minibatches=4,
            entropy_coef=us.Schedule.parse("linear:0.01:0"),
            optimizer=us.OptimizerConfig(learning_rate=1e-3),
        ),
        # a bonus for states that were seldom seen; "curiosity" is our name for it, in metrics and checkpoints too
        parts={"curiosity": us.parts.RandomNetworkDistillationConfig(reward_weight=0.01)},
        total_steps=total_steps,
        seed=1,
        torch_threads=1,
        run_dir=None if run_dir is None else str(run_dir),
    )


def play(policy: us.ActorCritic, episodes: int) -> list[float]:
    """Returns of the policy in a plain Gymnasium environment: what a deployment looks like."""
    env = gym.make("CartPole-v1")
    returns = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=episode)
        state, total, ended = None, 0.0, False  # state is the memory of a recurrent policy; None starts an episode
        while not ended:
            action, state = policy.act(obs, state, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def main(total_steps: int = 40_000, run_dir: Path | None = None) -> list[float]:
    run = us.train(make_config(total_steps // 2, run_dir))
    run = resume(run.path, total_steps=total_steps)  # from its newest checkpoint
    last = run.metrics[-1]
    print(f"{run.path}: {last['step']:.0f} steps, return of the last episodes {last['episode/return']:.1f}")
    policy = us.load(run.path)  # neither the environment nor the parts are needed for this
    returns = play(policy, episodes=3)
    print("returns:", returns)
    return returns


if __name__ == "__main__":
    main()
