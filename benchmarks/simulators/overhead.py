"""What a whole iteration costs beside the simulator, in ours and in rsl_rl: physics replaced with a recording of it.

    .venv-simulators/bin/python -m benchmarks.simulators.overhead --iterations 3

Go1 on flat ground is recorded for --record steps in 64 environments; the recording, tiled to --num-envs, then plays
whatever the actions are. Both libraries train on it with the task's own numbers, in turns; steps/s are the median
over iterations, the first left out. --device cuda:0 measures on a GPU. Prints a table; --output FILE keeps
it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import where

where.threads(1)
os.environ.setdefault("MJLAB_WARP_QUIET", "1")

TASK = "Mjlab-Velocity-Flat-Unitree-Go1"


class Recording:
    """rsl_rl's interface over recorded tensors; an episode ends where it ended while recording."""

    def __init__(self, env: Any, steps: int, num_envs: int, device: str) -> None:
        import torch

        copies = num_envs // env.num_envs
        self.num_envs, self.device, self.num_actions = copies * env.num_envs, torch.device(device), env.num_actions
        self.cfg, self.max_episode_length = env.cfg, env.max_episode_length
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long, device=device)
        self.frames: list[Any] = []
        for _ in range(steps):
            action = 0.3 * torch.randn(env.num_envs, env.num_actions)
            obs, reward, dones, extras = env.step(action)
            flags = (reward, dones, extras["time_outs"])
            frame = (obs.to(device), *(x.to(device) for x in flags))
            self.frames.append([torch.cat([x] * copies).clone() for x in frame])
        self.step_index = 0

    @property
    def unwrapped(self) -> Recording:
        return self

    def get_observations(self) -> Any:
        return self.frames[self.step_index % len(self.frames)][0]

    def step(self, actions: Any) -> Any:
        self.step_index += 1
        obs, reward, dones, time_outs = self.frames[self.step_index % len(self.frames)]
        return obs, reward, dones, {"time_outs": time_outs, "log": {}}


def ours(recording: Recording, numbers: Any, iterations: int) -> list[float]:
    """Seconds of each iteration."""
    import torch

    import understudy as us
    from understudy.interop.rsl_rl import from_config

    config = from_config(numbers, env=recording, env_id=f"mjlab:{TASK}")
    env = us.envs.as_vec_env(recording)
    policy = us.ActorCritic(env.observation_space, env.action_space, config.policy).to(env.device)
    ppo = us.PPO(env, policy, config.ppo, seed=1, total_steps=config.total_steps)
    return _timed(ppo.iterate, iterations, torch.device(recording.device))


def theirs(recording: Recording, numbers: Any, iterations: int) -> list[float]:
    """The same of rsl_rl's runner, an iteration at a time."""
    from mjlab.rl import MjlabOnPolicyRunner

    runner = MjlabOnPolicyRunner(recording, dataclasses.asdict(numbers), None, str(recording.device))  # type: ignore[arg-type]
    return _timed(lambda: runner.learn(num_learning_iterations=1), iterations, recording.device)


def _timed(iterate: Any, iterations: int, device: Any) -> list[float]:
    import torch

    seconds = []
    for _ in range(iterations + 1):
        started = time.perf_counter()
        iterate()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--num-envs", type=int, default=4096)
    parser.add_argument("--record", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    import torch
    from mjlab.tasks.registry import load_rl_cfg

    from benchmarks.simulators.__main__ import wrapped

    recording = Recording(wrapped(TASK, 64, 0), args.record, args.num_envs, args.device)
    numbers = load_rl_cfg(TASK)
    seconds: dict[str, list[float]] = {"understudy": [], "rsl_rl": []}
    for _ in range(args.rounds):  # in turns: another load on the machine meets both
        seconds["understudy"] += ours(recording, numbers, args.iterations)
        seconds["rsl_rl"] += theirs(recording, numbers, args.iterations)
    steps = recording.num_envs * numbers.num_steps_per_env
    rate = {name: steps / statistics.median(found) for name, found in seconds.items()}
    device = torch.cuda.get_device_name(args.device) if args.device != "cpu" else where.machine()["cpu"]
    lines = [
        f"{TASK}, recorded: {recording.num_envs} environments x {numbers.num_steps_per_env} steps, 1 thread, {device}; "
        f"{where.versions('torch', 'rsl-rl-lib')}; understudy {where.revision()}; {where.today()}.",
        "",
        "| library | steps/s of a whole iteration | ratio |",
        "|---|---|---|",
        *(f"| {name} | {x:,.0f} | {x / rate['rsl_rl']:.2f} |" for name, x in rate.items()),
    ]
    page = "\n".join(lines) + "\n"
    print(page)
    if args.output is not None:
        args.output.write_text(page)


if __name__ == "__main__":
    main()
