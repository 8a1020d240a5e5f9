"""Train one workload in this process, a few iterations at a time, on demand: one side of `benchmarks.speed.against`.

Reads numbers of iterations from standard input, one a line, and answers each with one JSON line: wall and CPU seconds.
The first line out says which library was imported; the line after an empty line in is a digest of the policy. Uses
public names only (`us.PPO`, `us.make_env`, ...), so that every version of the library can be measured.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time

import torch

import understudy as us
from benchmarks.speed.workloads import WORKLOADS, Workload


def main() -> None:
    workload, seed = WORKLOADS[sys.argv[1]], int(sys.argv[2])
    torch.set_num_threads(1)
    ppo = trainer(workload, seed)
    ppo.iterate()  # traces what the later iterations replay
    answer({"library": us.__file__})
    for line in sys.stdin:
        if not line.strip():
            break
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            ppo.iterate()
        answer({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
    answer({"digest": digest(ppo.policy)})


def trainer(workload: Workload, seed: int) -> us.PPO:
    """The workload in our words, with the library's defaults where it says nothing."""
    env = us.make_env(workload.env_id, workload.num_envs, backend="gymnasium", seed=seed)
    torch.manual_seed(seed)
    network = us.PolicyConfig(
        hidden_sizes=workload.hidden, activation=workload.activation, normalize_observations=False
    )
    config = us.PPOConfig(
        num_steps=workload.num_steps,
        epochs=workload.num_epochs,
        minibatches=workload.num_minibatches,
        clip_epsilon=workload.clip_epsilon,
        value_coef=workload.value_coef,
        entropy_coef=workload.entropy_coef,
        gamma=workload.gamma,
        gae_lambda=workload.gae_lambda,
        optimizer=us.OptimizerConfig(learning_rate=workload.learning_rate, max_grad_norm=workload.max_grad_norm),
    )
    return us.PPO(env, us.ActorCritic(env.observation_space, env.action_space, network), config, seed=seed)


def digest(policy: torch.nn.Module) -> str:
    """Equal for equal parameters, whatever their names."""
    values = sorted(p.detach().numpy().tobytes() for p in policy.parameters())
    return hashlib.sha256(b"".join(values)).hexdigest()[:12]


def answer(message: dict[str, object]) -> None:
    """One JSON line to the process that asks."""
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
