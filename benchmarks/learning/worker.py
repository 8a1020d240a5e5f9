"""One training of the learning benchmark, in a process of its own; continues where an earlier attempt stopped.

python benchmarks/learning/worker.py --env Hopper-v5 --seed 0 --total-steps 1000000 --run-dir FOLDER
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "src"))  # used where the library is not installed
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "speed")]

RESULT = "result.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True)
    parser.add_argument("--env-kwargs", type=json.loads, default={}, help="options of the environment, JSON")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--total-steps", type=int, required=True)
    parser.add_argument("--episodes", type=int, default=20, help="deterministic evaluation episodes at the end")
    parser.add_argument("--run-dir", type=Path, required=True)
    args = parser.parse_args()
    import tables
    from jobs import completed, thin

    import understudy as us
    from understudy import recipes
    from understudy.runs.config import EvaluationConfig, LoggingConfig
    from understudy.training.loop import resume

    if args.env == "CartPole-v1":
        config = recipes.cartpole(total_steps=args.total_steps, seed=args.seed)
    else:
        config = recipes.mujoco(args.env, total_steps=args.total_steps, seed=args.seed)
    config = dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, kwargs=args.env_kwargs),
        run_dir=str(args.run_dir),
        evaluation=EvaluationConfig(episodes=args.episodes),
        logging=LoggingConfig(console=False, tensorboard=False),
    )
    revision, started = tables.revision(ROOT), time.perf_counter()
    run = completed(resume(str(args.run_dir)) if any(args.run_dir.glob("checkpoints/*.pt")) else us.train(config))
    assert run.evaluation is not None
    metrics = run.metrics
    result = {
        "env": args.env,
        "seed": args.seed,
        "env_steps": run.env_steps,
        "recipe": config.recipe,
        "revision": revision,
        "training_return": metrics[-1]["episode/return"],  # mean of the last 100 training episodes
        "evaluation_return": run.evaluation.mean_return,
        "evaluation_episodes": run.evaluation.episodes,
        "seconds": time.perf_counter() - started,  # of this attempt
        "steps_per_second": sorted(row["time/steps_per_second"] for row in metrics)[len(metrics) // 2],
        "curve": thin([(row["step"], row["episode/return"]) for row in metrics], most=200, digits=2),
    }
    (args.run_dir / RESULT).write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
