"""Reward at equal steps in mjlab, beside rsl_rl: the task's own numbers, 64 environments, one CPU thread.

    .venv-simulators/bin/python -m benchmarks.simulators --seeds 0 1 2

Three arms on the same wrapped environment: ours with exact time limits (V of the true final observation), ours without
(V of the state before, as rsl_rl), and rsl_rl's own runner. The reward is the mean over all steps of an iteration, as
the environment gave it. A finished training is written at once to runs/learning.jsonl and not repeated; --known-only
tabulates what there is. Writes results/learning.md and results/learning.json.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import where

where.threads(1)
os.environ.setdefault("MJLAB_WARP_QUIET", "1")

HERE = Path(__file__).resolve().parent
TASKS = ("Mjlab-Cartpole-Balance", "Mjlab-Cartpole-Swingup")
ARMS = ("understudy, exact time limits", "understudy, V(s_t)", "rsl_rl")


def wrapped(task: str, num_envs: int, seed: int) -> Any:
    """mjlab's environment in mjlab's wrapper for rsl_rl."""
    import mjlab.tasks  # registers them
    from mjlab.envs import ManagerBasedRlEnv
    from mjlab.rl import RslRlVecEnvWrapper
    from mjlab.tasks.registry import load_env_cfg, load_rl_cfg

    del mjlab
    cfg = load_env_cfg(task)
    cfg.scene.num_envs, cfg.seed = num_envs, seed
    return RslRlVecEnvWrapper(ManagerBasedRlEnv(cfg, device="cpu"), clip_actions=load_rl_cfg(task).clip_actions)


class Rewards:
    """An environment whose rewards are kept, as means over the environments, one for each step."""

    def __init__(self, env: Any) -> None:
        self.means: list[float] = []
        inner: Callable[..., Any] = env.step

        def step(actions: Any) -> Any:
            result = inner(actions)
            self.means.append(float(result[1].mean()))
            return result

        env.step = step

    def per_iteration(self, steps: int, iterations: int) -> list[float]:
        """The last `iterations` groups of `steps`: a warm-up comes before them."""
        kept = self.means[-steps * iterations :]
        return [statistics.fmean(kept[i : i + steps]) for i in range(0, len(kept), steps)]


def train(arm: str, task: str, seed: int, iterations: int, num_envs: int) -> dict[str, Any]:
    """One training: its mean reward in every iteration, and its seconds."""
    import torch
    from mjlab.tasks.registry import load_rl_cfg

    env = wrapped(task, num_envs, seed)
    rewards, numbers, started = Rewards(env), load_rl_cfg(task), time.perf_counter()
    torch.manual_seed(seed)
    if arm == "rsl_rl":
        from mjlab.rl import MjlabOnPolicyRunner

        runner = MjlabOnPolicyRunner(env, dataclasses.asdict(dataclasses.replace(numbers, seed=seed)), None, "cpu")
        runner.learn(num_learning_iterations=iterations, init_at_random_ep_len=True)
    else:
        import understudy as us
        from understudy.interop.rsl_rl import from_config

        adapter = us.envs.SimulatorAdapter(env, exact_time_limits=arm == ARMS[0])
        config = from_config(numbers, env=adapter, env_id=f"mjlab:{task}")
        with tempfile.TemporaryDirectory() as folder:
            config = dataclasses.replace(
                config,
                seed=seed,
                total_steps=iterations * num_envs * config.ppo.num_steps,
                run_dir=f"{folder}/run",
                evaluation=us.EvaluationConfig(episodes=0),
                logging=us.LoggingConfig(console=False, tensorboard=False),
            )
            us.train(config, env=adapter)
    seconds = time.perf_counter() - started
    curve = rewards.per_iteration(numbers.num_steps_per_env, iterations)
    steps = iterations * num_envs * numbers.num_steps_per_env
    about = {"arm": arm, "task": task, "seed": seed, "iterations": iterations, "steps": steps}
    return about | {"seconds": seconds, "curve": curve}


def tabulate(found: Sequence[dict[str, Any]], iterations: int) -> str:
    """Mean reward per step over the last tenth of the iterations, mean over seeds and lowest, and over all of them."""
    lines = [
        "| task | arm | seeds | reward, last tenth (lowest seed) | reward, all iterations | steps/s |",
        "|---|---|---|---|---|---|",
    ]
    for task, arm in itertools.product(TASKS, ARMS):
        runs = [run for run in found if (run["task"], run["arm"], run["iterations"]) == (task, arm, iterations)]
        if runs:
            last = [statistics.fmean(run["curve"][-max(1, iterations // 10) :]) for run in runs]
            whole = statistics.fmean(statistics.fmean(run["curve"]) for run in runs)
            speed = statistics.median(run["steps"] / run["seconds"] for run in runs)
            lines.append(
                f"| {task} | {arm} | {len(runs)} | {statistics.fmean(last):.5f} ({min(last):.5f}) | {whole:.5f} | "
                f"{speed:,.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=500, help="500: the tasks' own")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--known-only", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--runs", type=Path, default=HERE / "runs")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.runs / "learning.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(run["task"], run["arm"], run["seed"], run["iterations"]) for run in found}
    for seed, task, arm in itertools.product(args.seeds, args.tasks, args.arms):
        if args.known_only or (task, arm, seed, args.iterations) in done:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            run = train(arm, task, seed, args.iterations, args.num_envs)
        found.append(run)
        with file.open("a") as out:
            out.write(json.dumps(found[-1]) + "\n")
        print(f"{task}, {arm}, seed {seed}: {run['curve'][-1]:.5f} after {run['seconds']:.0f} s", flush=True)
    machine = where.machine()
    page = (
        f"# Reward at equal steps, in mjlab\n\n{args.num_envs} environments, {args.iterations} iterations of the task's"
        f" own numbers, one thread; {machine['cpu']}, {machine['cores']} cores; "
        f"{where.versions('torch', 'mjlab', 'rsl-rl-lib')}; understudy {where.revision()}; {where.today()}.\n"
        "Reward: mean over the steps of an iteration. Seeds ran one after the other, beside other work: steps/s tell "
        f"little.\n\n{tabulate(found, args.iterations)}\n"
    )
    (args.output / "learning.md").write_text(page)
    kept = [run for run in found if run["iterations"] == args.iterations]
    (args.output / "learning.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(page)


if __name__ == "__main__":
    main()
