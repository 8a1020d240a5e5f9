"""Published PPO scores, as their authors report them. Metrics and simulators differ: see `SOURCES`."""

from __future__ import annotations

SOURCES: dict[str, str] = {
    "Tianshou 1M": "10 seeds, MuJoCo v3 tasks (mujoco-py 2.0); the maximum over training of the 10-episode average, "
    "which is flattering; `examples/mujoco/README.md`",
    "SB3 zoo 1M": "1 run, MuJoCo v3 tasks, deterministic; CartPole after 100k steps; rl-baselines3-zoo `benchmark.md`",
    "CleanRL 1M": "3 seeds, MuJoCo v4 tasks, training return; CartPole after 500k steps; "
    "`docs/benchmark/ppo_continuous_action.md` and `ppo.md`",
}

PUBLISHED: dict[str, dict[str, str]] = {
    "CartPole-v1": {"SB3 zoo 1M": "500 ± 0", "CleanRL 1M": "490 ± 6"},
    "Hopper-v5": {"Tianshou 1M": "2609 ± 701", "SB3 zoo 1M": "2410 ± 10", "CleanRL 1M": "2383 ± 272"},
    "HalfCheetah-v5": {"Tianshou 1M": "5784 ± 1244", "SB3 zoo 1M": "5819 ± 664", "CleanRL 1M": "1443 ± 46"},
    "Walker2d-v5": {"Tianshou 1M": "3589 ± 757", "SB3 zoo 1M": "3479 ± 822", "CleanRL 1M": "2288 ± 572"},
    "Ant-v5": {"Tianshou 1M": "3258 ± 1079", "SB3 zoo 1M": "1327 ± 452"},
    "Swimmer-v5": {"Tianshou 1M": "67 ± 99", "SB3 zoo 1M": "282 ± 10"},
    "Humanoid-v5": {"Tianshou 1M": "787 ± 193", "CleanRL 1M": "716 ± 49"},
    "InvertedPendulum-v5": {"Tianshou 1M": "1000 ± 0", "CleanRL 1M": "963 ± 22"},
    "InvertedDoublePendulum-v5": {"Tianshou 1M": "9231 ± 270"},
    "Reacher-v5": {"Tianshou 1M": "-4.1 ± 0.3"},
}
"""The same task's v5 stands beside their v3 and v4 numbers."""
