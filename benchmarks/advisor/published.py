"""The paper's results (Weihs et al. 2021, arXiv:2007.12173), recomputed from the result files its authors published."""

from __future__ import annotations

METHODS: dict[str, str] = {
    "ppo": "PPO",
    "bc": "BC",
    "dagger": "DAgger",
    "bc-tf1": "BC tf=1",
    "bc-ppo-static": "BC + PPO (static)",
    "bc-then-ppo": "BC -> PPO",
    "dagger-then-ppo": "DAgger -> PPO",
    "bc-tf1-then-ppo": "BC tf=1 -> PPO",
    "demo-ppo": "BC demo + PPO",
    "advisor": "ADVISOR",
    "bc-tf1-then-advisor": "BC tf=1 -> ADVISOR",
    "dagger-then-advisor": "DAgger -> ADVISOR",
    "demo-advisor": "ADVISOR demo + PPO",
    "advisor-and-demo": "ADVISOR + ADVISOR demo (ours)",
    "forced-advisor": "ADVISOR + forced episodes (ours)",
}
"""Recipe -> the paper's name for it; those without numbers below are ours."""

COLUMNS: dict[str, str] = {
    "PoisonedDoors-v0": "PD",
    "LavaCrossing-v0": "LC",
    "LavaCrossingCorrupt-v0": "LC Corrupt",
    "LavaCrossingFaulty-v0": "LC Faulty",
    "LavaCrossingOnce-v0": "LC Once",
    "WallCrossing-v0": "WC",
    "WallCrossingCorrupt-v0": "WC Corrupt",
    "WallCrossingFaulty-v0": "WC Faulty",
    "WallCrossingOnce-v0": "WC Once",
}
"""Task -> the paper's column."""

ROBUST_REWARD: dict[str, tuple[float, ...]] = {
    "ppo": (0.00, 0.00, 0.00, 0.01, 0.00, 0.09, 0.07, 0.12, 0.05),
    "bc": (-0.60, 0.10, 0.02, 0.00, 0.00, 0.25, 0.05, 0.01, 0.01),
    "dagger": (-0.59, 0.14, 0.02, 0.00, 0.00, 0.31, 0.03, 0.01, 0.01),
    "bc-tf1": (-0.62, 0.88, 0.02, 0.02, 0.00, 0.96, 0.03, 0.17, 0.11),
    "bc-ppo-static": (-0.59, 0.12, 0.08, 0.00, 0.00, 0.27, 0.09, 0.01, 0.00),
    "bc-then-ppo": (-0.17, 0.15, 0.32, 0.02, 0.00, 0.43, 0.18, 0.14, 0.09),
    "dagger-then-ppo": (-0.45, 0.32, 0.61, 0.02, 0.00, 0.75, 0.15, 0.15, 0.10),
    "bc-tf1-then-ppo": (-0.50, 0.94, 0.74, 0.04, 0.00, 0.97, 0.09, 0.17, 0.10),
    "demo-ppo": (-0.64, 0.96, 0.20, 0.02, 0.00, 0.97, 0.03, 0.17, 0.11),
    "advisor": (1.00, 0.18, 0.80, 0.77, 0.80, 0.41, 0.31, 0.38, 0.45),
    "bc-tf1-then-advisor": (-0.13, 0.55, 0.83, 0.02, 0.00, 0.88, 0.15, 0.15, 0.09),
    "dagger-then-advisor": (-0.10, 0.47, 0.73, 0.01, 0.00, 0.79, 0.21, 0.13, 0.07),
    "demo-advisor": (0.00, 0.96, 0.94, 0.03, 0.00, 0.97, 0.11, 0.14, 0.06),
}
"""RobustReward@10 per column: the expected best of 10 random draws of the hyper-parameters, after full training."""

LIGHT_HOUSE: dict[str, dict[tuple[int, int], float]] = {
    method: dict(zip([(v, 15) for v in (1, 3, 5, 7, 9, 11, 13, 15)] + [(1, 1)], lengths, strict=True))
    for method, lengths in {
        "ppo": (324, 329, 374, 301, 332, 308, 199, 160, 324),
        "bc": (455, 350, 278, 241, 192, 120, 60, 30, 74),
        "dagger": (486, 405, 291, 252, 192, 123, 61, 30, 75),
        "bc-tf1": (605, 672, 708, 720, 706, 680, 668, 30, 71),
        "bc-ppo-static": (417, 378, 305, 231, 174, 108, 55, 30, 73),
        "bc-then-ppo": (105, 86, 82, 72, 63, 47, 37, 30, 74),
        "dagger-then-ppo": (92, 84, 80, 72, 64, 50, 38, 30, 75),
        "bc-tf1-then-ppo": (450, 472, 490, 487, 471, 421, 435, 30, 71),
        "advisor": (87, 78, 73, 63, 53, 46, 37, 30, 72),
    }.items()
}
"""Mean test episode length by (view radius, expert's radius); 25 seeds."""

LIGHT_HOUSE_OPTIMUM: dict[int, int] = {1: 72, 3: 66, 5: 60, 7: 54, 9: 48, 11: 42, 13: 36, 15: 30}
"""Mean length of the best policy with that view radius."""
