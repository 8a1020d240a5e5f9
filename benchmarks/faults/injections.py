"""Trainings whose environment gives broken numbers: NaN, infinite and absurd ones, in observations and rewards.

    python -m benchmarks.faults.injections --seed 0 --count 40

Two kinds of trials, drawn at random. CartPole: a training of 60,000 steps with PPO (also with a memory, with
normalised rewards or values); it has to score as without the faults. Parts: a short training with one part, or all
together; it has to end with finite weights. Every trial has to name what was broken. Prints the findings and a
summary, and writes results/injections.md.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tests.parts.contract import ALL, ALONE, FEED_FORWARD_ONLY, make_ppo, weights

import understudy as us
from understudy.envs.registry import EnvConfig
from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.ppo import PPO

RESULTS = Path(__file__).parent / "results" / "injections.md"
VALUES = (math.nan, math.inf, -math.inf, 3e38, -1e38, 1e30, -1e30, 1e20, -1e10)
WHERE = ("observation", "reward", "both")
RATE = 1e-3
"""Share of the steps of each environment that are broken, for each place."""
GOOD = 475.0
"""Score that counts as CartPole solved: Gymnasium's own threshold."""
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ppo": ({}, {}),
    "reward normalisation": ({}, {"reward_normalization": True}),
    "value scale": ({}, {"value_normalization": "scale"}),
    "value standardize": ({}, {"value_normalization": "standardize"}),
    "no normaliser": ({"normalize_observations": False}, {}),
    "lstm": ({"memory": "lstm", "memory_size": 32}, {}),
    "gru": ({"memory": "gru", "memory_size": 32}, {}),
}


class Outcome(NamedTuple):
    """What came of one trial."""

    trial: str
    injected: int
    named: bool
    finite: bool
    score: float | None  # of CartPole

    @property
    def finding(self) -> str:
        """The faults of the library, "" if there are none."""
        wrong = {"weights are not finite": not self.finite, "not named": self.injected > 0 and not self.named}
        wrong[f"score {self.score}"] = self.score is not None and self.score < GOOD
        return ", ".join(what for what, is_so in wrong.items() if is_so)


class Poison:
    """Replaces an environment's `step`: one number in a thousand steps is broken. `count` says how many were so far."""

    def __init__(self, env: Any, where: str, value: float, rate: float, seed: int) -> None:
        self.step, self.where, self.value, self.rate = env.step, where, value, rate
        self.random, self.count = random.Random(seed), 0
        env.step = self

    def __call__(self, action: torch.Tensor) -> Any:
        step = self.step(action)
        leaves = [x for x in step.obs.values(True, True) if x.is_floating_point()]
        for n in range(len(step.reward)):
            if self.where != "reward" and self.random.random() < self.rate:
                row = self.random.choice(leaves)[n].view(-1)
                row[self.random.randrange(len(row))] = self.value
                self.count += 1
            if self.where != "observation" and self.random.random() < self.rate:
                step.reward[n] = self.value
                self.count += 1
        return step


def cartpole(variant: str, where: str, value: float, seed: int, steps: int = 60_000) -> Outcome:
    """CartPole, learnt in spite of faults, and scored without."""
    policy_options, ppo_options = VARIANTS[variant]
    env = us.make_env("CartPole-v1", 8, device="cpu")
    torch.manual_seed(seed)
    policy = ActorCritic(env.observation_space, env.action_space, PolicyConfig(**policy_options))
    config = PPOConfig(
        num_steps=32,
        epochs=20,
        minibatches=1,
        gamma=0.98,
        gae_lambda=0.8,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        **ppo_options,
    )
    ppo = PPO(env, policy, config, {}, seed=seed)
    poison = Poison(env, where, value, RATE, seed)
    named = train(ppo, steps // ppo.steps_per_iteration)
    score = us.evaluate(policy, env=EnvConfig(id="CartPole-v1", num_envs=8), episodes=10, seed=seed).mean_return
    env.close()
    finite = bool(torch.isfinite(ppo.optimizer.flat).all())
    return Outcome(f"CartPole, {variant}, {where}, {value:g}", poison.count, named, finite, score)


def with_parts(names: Sequence[str], memory: str, where: str, value: float, seed: int, iterations: int = 12) -> Outcome:
    """PPO with parts on a point mass, a fault in every hundred steps of a copy."""
    ppo = make_ppo(tuple(names), memory=memory, seed=seed)
    poison = Poison(ppo.env, where, value, 10 * RATE, seed)
    named = train(ppo, iterations)
    state = [x for part in ppo.parts.values() for name, x in part.state_dict().items() if not name.endswith("limit")]
    finite = all(bool(torch.isfinite(x).all()) for x in (weights(ppo), *state, *ppo.policy.state_dict().values()))
    scales = [x.var.max() for x in ppo.policy.normalizers.values()]  # type: ignore[union-attr]
    finite = finite and bool(torch.stack(scales).max() < 1e6)  # type: ignore[arg-type]
    who = "all parts" if len(names) > 1 else "".join(names) or "ppo"
    return Outcome(f"{who}, {memory}, {where}, {value:g}", poison.count, named, finite, None)


def train(ppo: PPO, iterations: int) -> bool:
    """Whether something was reported."""
    named = False
    for _ in range(iterations):
        ppo.iterate()
        named = named or "environment" in ppo.last_report
    return named


def trial(seed: int, kind: str | None = None, only: str | None = None) -> Outcome:
    """One trial, drawn from its seed; `kind` "cartpole" or "parts", faults `only` in observation, reward or both."""
    draw = random.Random(seed)
    where, value = draw.choice(WHERE), draw.choice(VALUES)
    where = only or where
    if (kind or draw.choice(("cartpole", "parts"))) == "cartpole":
        return cartpole(draw.choice(list(VARIANTS)), where, value, seed)
    names = draw.choice([(), *ALONE, tuple(name for name in ALL if name not in FEED_FORWARD_ONLY)])
    memories = ("none",) if FEED_FORWARD_ONLY & set(names) or "imitate" in names else ("none", "gru", "lstm")
    return with_parts(names, draw.choice(memories), where, value, seed)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--kind", choices=("cartpole", "parts"))
    parser.add_argument("--where", choices=WHERE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("understudy").setLevel(logging.ERROR)
    outcomes = []
    for seed in range(args.seed, args.seed + args.count):
        outcome = trial(seed, args.kind, args.where)
        outcomes.append(outcome)
        print(f"{seed}: {outcome.trial}: {outcome.finding or 'held'} (score {outcome.score})", flush=True)
    scores = sorted(outcome.score for outcome in outcomes if outcome.score is not None)
    middle = f"; median score of CartPole {scores[len(scores) // 2]:.0f}, least {scores[0]:.0f}" if scores else ""
    held = sum(not outcome.finding for outcome in outcomes)
    summary = f"{held} of {len(outcomes)} trainings held, {sum(o.injected for o in outcomes)} broken numbers{middle}"
    print(summary)
    command = f"python -m benchmarks.faults.injections --seed {args.seed} --count {args.count}"
    command += f" --kind {args.kind}" if args.kind else ""
    command += f" --where {args.where}" if args.where else ""
    rows = [
        f"| {o.trial} | {o.injected} | {'' if o.score is None else f'{o.score:.0f}'} | {o.finding or 'held'} |"
        for o in outcomes
    ]
    table = ["| training | broken numbers | score | result |", "|---|---|---|---|", *rows]
    RESULTS.write_text("\n".join(["# Injections", "", f"`{command}`", "", f"{summary}.", "", *table, ""]))


if __name__ == "__main__":
    main()
