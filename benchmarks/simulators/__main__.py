"""Reward at equal steps in mjlab, beside rsl_rl: the task's own numbers, 64 environments, one CPU thread.

    .venv-simulators/bin/python -m benchmarks.simulators --seeds 0-2 --iterations 150
    .venv-simulators/bin/python -m benchmarks.simulators --tasks "cartpole in tensors" --seeds 0-39 --iterations 150

mjlab needs minutes for a training, and some seeds of its cartpole spin the pole for a hundred iterations before they
learn to hold it: three seeds say little. `cartpole.py` is that task without mjlab, for dozens of seeds.

Three arms on the same wrapped environment: ours with exact time limits (V of the true final observation), ours without
(V of the state before, as rsl_rl), and rsl_rl's own runner. The reward is the mean over all steps of an iteration, as
the environment gave it. A finished training is written at once to runs/learning.jsonl and not repeated; --known-only
tabulates what there is. Writes all that is known to results/learning.md and results/learning.json.
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
from benchmarks.simulators import cartpole

where.threads(1)
os.environ.setdefault("MJLAB_WARP_QUIET", "1")

HERE = Path(__file__).resolve().parent
TASKS = ("Mjlab-Cartpole-Balance", "Mjlab-Cartpole-Swingup", cartpole.TASK)
ARMS = ("understudy, exact time limits", "understudy, V(s_t)", "rsl_rl")


def wrapped(task: str, num_envs: int, seed: int, *, exact: bool) -> Any:
    """mjlab's environment in mjlab's wrapper for rsl_rl, or the one in tensors."""
    if task == cartpole.TASK:
        return cartpole.Cartpole(num_envs, seed, shows_final=exact)
    from mjlab.envs import ManagerBasedRlEnv
    from mjlab.rl import RslRlVecEnvWrapper
    from mjlab.tasks.registry import load_env_cfg, load_rl_cfg

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
    import mjlab.tasks  # registers them
    import torch
    from mjlab.tasks.registry import load_rl_cfg

    del mjlab
    env = wrapped(task, num_envs, seed, exact=arm == ARMS[0])
    numbers = load_rl_cfg(TASKS[0] if task == cartpole.TASK else task)
    rewards, started = Rewards(env), time.perf_counter()
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


def seeds_of(text: str) -> list[int]:
    """`3`, or `0-39`."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def tabulate(found: Sequence[dict[str, Any]]) -> str:
    """Mean reward per step over the last tenth of the iterations, how many seeds got to .04, and over all of them."""
    lines = [
        "| task | iterations | arm | seeds | last tenth (lowest to highest) | seeds above .04 | all iterations |",
        "|---|---|---|---|---|---|---|",
    ]
    lengths = sorted({run["iterations"] for run in found})
    for task, iterations, arm in itertools.product(TASKS, lengths, ARMS):
        runs = [run for run in found if (run["task"], run["iterations"], run["arm"]) == (task, iterations, arm)]
        if runs:
            last = [statistics.fmean(run["curve"][-max(1, iterations // 10) :]) for run in runs]
            whole = statistics.fmean(statistics.fmean(run["curve"]) for run in runs)
            lines.append(
                f"| {task} | {iterations} | {arm} | {len(runs)} | {statistics.fmean(last):.4f} ({min(last):.4f} to "
                f"{max(last):.4f}) | {sum(x > 0.04 for x in last)} | {whole:.4f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS[:2]), choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=seeds_of, default=[[0, 1, 2]], help="3, or 0-39")
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
    for seed, task, arm in itertools.product(itertools.chain(*args.seeds), args.tasks, args.arms):
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
        f"# Reward at equal steps, in mjlab\n\n{args.num_envs} environments, the task's own numbers, one thread; "
        f"{machine['cpu']}, {machine['cores']} cores; {where.versions('torch', 'mjlab', 'rsl-rl-lib')}; understudy "
        f"{where.revision()}; {where.today()}.\nReward: mean over the steps of an iteration; .05 is the highest "
        f"possible. A seed draws other first weights in ours than in rsl_rl.\n\n{tabulate(found)}\n"
    )
    (args.output / "learning.md").write_text(page)
    rounded = [run | {"curve": [round(x, 5) for x in run["curve"]]} for run in found]
    (args.output / "learning.json").write_text("[\n" + ",\n".join(map(json.dumps, rounded)) + "\n]\n")
    print(page)


if __name__ == "__main__":
    main()
