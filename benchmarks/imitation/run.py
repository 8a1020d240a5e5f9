"""Imitation learning from experts that our PPO trained: every method on every task, as a share of the expert's score.

    python benchmarks/imitation/run.py --tasks Hopper-v5 HalfCheetah-v5 Walker2d-v5 Ant-v5 --seeds 0 1 2
    python benchmarks/imitation/run.py --tasks Hopper-v5 --methods bc gail --trajectories 1 4 11 25 --name sweep
    python benchmarks/imitation/run.py --known-only

First the experts (recipe `mujoco`, seed 0; experts/ has those of the committed tables, others are trained), then 25
recorded episodes of each (its mode, no sampling), then the methods. Trainings run in processes with one thread each.
Finished ones (runs/results.jsonl, and what results/<name>.json has) are not repeated, interrupted ones continue from
their checkpoint. Writes results/<name>.md, .json and .png; with --known-only, from what there is, a dash for
everything that is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from understudy.runs.config import OfflineConfig, TrainConfig

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
sys.path.append(str(HERE.parent / "speed"))
sys.path.append(str(HERE.parent / "learning"))
sys.path.append(str(HERE.parents[1] / "src"))  # used where the library is not installed

from jobs import KeyedJob, Result, completed, one_thread_each, read_known, run_missing, thin, write_report  # noqa: E402
from published import METHODS  # noqa: E402
from report import ADVERSARIAL, EXPERT, RECORDED, footer, main_table, picture_path, plot, sweep_table  # noqa: E402

WORKER = HERE.parent / "learning" / "worker.py"
TASKS = ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5")
EXPERT_STEPS = {"Ant-v5": 3_000_000}
"""Of the experts that need more than a million."""
ENV_KWARGS: dict[str, dict[str, Any]] = {"Ant-v5": {"include_cfrc_ext_in_observation": False}}
"""Without the contact forces, 78 numbers that are mostly 0, the Ant learns to stay on its feet (and is v4's)."""
SUCCESS = 0.6
"""GAIL and AIRL imitate failures in proportion: they get the episodes above this share of the median return."""
EVALUATION_SEED = 2_000_003
"""Of the episodes that experts and learners alike are scored on: not those that were recorded."""


@dataclass(frozen=True, kw_only=True)
class Job(KeyedJob):
    """One training and its evaluation."""

    method: str  # a recipe, or EXPERT
    task: str
    seed: int
    total_steps: int  # of PPO; 0: none
    trajectories: int  # recorded episodes to learn from; 0: none
    expert_steps: int
    episodes: int

    @property
    def name(self) -> str:
        """For people and folders."""
        kind = f"{self.method}-{self.total_steps}-{self.task}-{self.expert_steps}"
        return f"{kind}-from-{self.trajectories}-seed-{self.seed}"


def main() -> None:
    args = parse_args()
    one_thread_each()
    experts, jobs = expert_jobs(args), learner_jobs(args)
    store = HERE / "runs" / "results.jsonl"
    known = read_known(HERE / "results" / f"{args.name}.json", store)
    if not args.known_only:
        run_missing(experts, known, run_job, store=store, parallel=args.parallel, describe=describe)
        for job in experts:
            record_expert(job.task, job.expert_steps)  # here, where no two processes can record the same
        run_missing(jobs, known, run_job, store=store, parallel=args.parallel, describe=describe)
    results = [known[job.key] for job in (*experts, *jobs) if job.key in known]
    if not results:
        sys.exit("nothing is known yet: run without --known-only")
    report = (sweep_table if len(args.trajectories) > 1 else main_table)(results, args) + footer(args, results)
    write_report(HERE / "results", args.name, report, results)
    plot(results, args, picture_path(args))
    print(report)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--methods", nargs="*", choices=tuple(METHODS), default=["bc", "dagger", "gail", "airl"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trajectories", nargs="+", type=int, default=[RECORDED], help=f"at most {RECORDED}")
    parser.add_argument("--expert-steps", type=int, help="of every expert; default: 1M, Ant 3M")
    parser.add_argument("--total-steps", type=int, default=1_000_000, help="environment steps of GAIL and AIRL")
    parser.add_argument("--episodes", type=int, default=50, help="evaluation episodes, mode of the policy")
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time")
    parser.add_argument("--experts-only", action="store_true", help="train, score and record the experts")
    parser.add_argument("--known-only", action="store_true", help="train nothing: the tables of what has finished")
    parser.add_argument("--name", default="imitation", help="of the files in results/")
    parser.add_argument("--picture", type=Path, help="where the picture goes instead")
    args = parser.parse_args()
    if not all(1 <= count <= RECORDED for count in args.trajectories):
        parser.error(f"--trajectories must lie between 1 and {RECORDED}")
    return args


def steps_of_expert(task: str, args: argparse.Namespace) -> int:
    """How long the task's expert trains."""
    chosen: int | None = args.expert_steps
    return EXPERT_STEPS.get(task, 1_000_000) if chosen is None else chosen


def expert_jobs(args: argparse.Namespace) -> list[Job]:
    """One expert for each task."""
    return [
        Job(
            method=EXPERT,
            task=task,
            seed=0,
            total_steps=steps_of_expert(task, args),
            trajectories=0,
            expert_steps=steps_of_expert(task, args),
            episodes=args.episodes,
        )
        for task in args.tasks
    ]


def learner_jobs(args: argparse.Namespace) -> list[Job]:
    """Cheap methods first; seed by seed, so that an interrupted table has every cell before any has two seeds."""
    jobs = [
        Job(
            method=method,
            task=task,
            seed=seed,
            total_steps=args.total_steps if method in ADVERSARIAL else 0,
            trajectories=0 if method == "dagger" else count,
            expert_steps=steps_of_expert(task, args),
            episodes=args.episodes,
        )
        for seed in args.seeds
        for count in args.trajectories
        for task in args.tasks
        for method in ([] if args.experts_only else args.methods)
    ]
    return sorted(dict.fromkeys(jobs), key=lambda job: job.method in ADVERSARIAL)


# ---------------------------------------------------------------------- running


def describe(row: Result) -> str:
    """One line of progress."""
    return f"{row['method']} {row['task']} from {row['trajectories']} seed {row['seed']}: {row['test_return']:.0f}"


def run_job(job: Job) -> dict[str, Any]:
    """Train, then score the mode of the policy on episodes of its own, the same ones for everyone."""
    import torch

    from understudy.runs.folder import read_policy
    from understudy.tools.evaluate import evaluate

    torch.set_num_threads(1)
    expert = job.method == EXPERT
    source, trained = train_expert(job.task, job.expert_steps) if expert else train_learner(job)
    policy, config = read_policy(source)
    result = evaluate(policy, env=config.env, episodes=job.episodes, seed=EVALUATION_SEED)
    row = {
        "key": job.key,
        **asdict(job),
        "shown": shown(job),
        "test_return": result.mean_return,
        "test_std": result.std_return,
        "test_length": result.mean_length,
        **trained,
    }
    if not expert:
        shutil.rmtree(source)
    return row


def train_expert(task: str, steps: int) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of the task's expert, trained as the benchmark of learning trains, once; and of its training."""
    checkpoint = expert_file(task, steps)
    about = checkpoint.with_suffix(".json")
    if not about.is_file():
        from understudy.runs.folder import find_checkpoint

        folder = HERE / "runs" / "experts" / f"{task}-{steps}-seed-0"
        command = [sys.executable, str(WORKER), "--env", task, "--env-kwargs", json.dumps(ENV_KWARGS.get(task, {}))]
        command += ["--seed", "0", "--total-steps", str(steps), "--run-dir", str(folder)]
        subprocess.run(command, check=True)
        checkpoint.parent.mkdir(exist_ok=True)
        shutil.copy(find_checkpoint(folder), checkpoint)
        shutil.copy(folder / "result.json", about)
    result = json.loads(about.read_text())
    return checkpoint, {"asked_steps": 0.0, **{key: result[key] for key in ("revision", "seconds", "curve")}}


def expert_file(task: str, steps: int) -> Path:
    """Where an expert's checkpoint is, or will be; what is known of its training lies beside it."""
    return HERE / "experts" / f"{task}-{steps}.pt"


def record_expert(task: str, steps: int) -> Path:
    """A file of the expert's episodes, recorded once."""
    from understudy.tools.record import record

    path = HERE / "runs" / "demonstrations" / f"{task}-{steps}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        recorded = record(str(path), run=train_expert(task, steps)[0], episodes=RECORDED)
        print(f"{task}: {recorded.sentence()}", file=sys.stderr, flush=True)
    return path


def train_learner(job: Job) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished training, continued where it was interrupted; and what there is to know of it."""
    import tables

    import understudy as us
    from understudy.runs.folder import RunFolder
    from understudy.runs.metrics import read_metrics
    from understudy.training.loop import resume

    folder, started = HERE / "runs" / "trainings" / job.name, time.perf_counter()
    if any(folder.glob("checkpoints/*.pt")):
        completed(resume(folder))
    else:
        shutil.rmtree(folder, ignore_errors=True)  # stopped before its first checkpoint
        completed(us.train(learner_config(job, folder)))
    metrics = read_metrics(RunFolder(folder).metrics)
    return folder, {
        "revision": tables.revision(HERE.parents[1]),
        "seconds": time.perf_counter() - started,  # of this attempt
        "asked_steps": sum(row.get("dagger/steps", 0.0) for row in metrics),  # the first round is not logged
        "curve": thin([(row["step"], row["episode/return"]) for row in metrics if "episode/return" in row]),
    }


def learner_config(job: Job, folder: Path) -> TrainConfig:
    """The method's recipe as it is; only what is written along the way is switched off."""
    from understudy import recipes
    from understudy.runs.config import EvaluationConfig, LoggingConfig

    make: Any = recipes.find_recipe(job.method)  # each takes what its method needs
    config: TrainConfig
    if job.method == "dagger":
        config = make(job.task, expert=str(expert_file(job.task, job.expert_steps)), seed=job.seed)
    else:
        source = record_expert(job.task, job.expert_steps)
        config = make(job.task, demonstrations=str(source), total_steps=job.total_steps, seed=job.seed)
        chosen: dict[str, Any] = {"num_trajectories": job.trajectories}
        if job.method in ADVERSARIAL:
            chosen["min_return"] = least_return(source)
        parts = {k: dataclasses.replace(v, **chosen) for k, v in config.parts.items()}
        config = dataclasses.replace(config, parts=parts)
    if job.method == "bc":
        assert config.offline is not None
        config = dataclasses.replace(config, offline=as_many_steps(config.offline, job.trajectories))
    return dataclasses.replace(
        config,
        # the simulator of the expert: EnvPool's MuJoCo is another version
        env=dataclasses.replace(config.env, backend="gymnasium", kwargs=ENV_KWARGS.get(job.task, {})),
        run_dir=str(folder),
        evaluation=EvaluationConfig(episodes=0),
        logging=LoggingConfig(console=False, tensorboard=False),
        checkpoint=dataclasses.replace(config.checkpoint, keep_last=1),
    )


def returns_of(source: Path) -> list[float]:
    """Returns of all recorded episodes."""
    import numpy as np

    with np.load(source) as file:
        first = np.cumsum(file["lengths"]) - file["lengths"]
        returns: list[float] = np.add.reduceat(file["rewards"], first).tolist()
    return returns


def least_return(source: Path) -> float:
    """Of the episodes that GAIL and AIRL get."""
    return SUCCESS * statistics.median(returns_of(source))


def shown(job: Job) -> int:
    """How many recorded episodes the method gets."""
    if job.method not in ADVERSARIAL:
        return job.trajectories
    source = record_expert(job.task, job.expert_steps)
    return sum(x >= least_return(source) for x in returns_of(source)[: job.trajectories])


def as_many_steps(offline: OfflineConfig, trajectories: int) -> OfflineConfig:
    """The epochs over few trajectories that make about as many gradient steps as the recipe's over all of them."""
    times = RECORDED // trajectories
    patience = None if offline.patience is None else offline.patience * times
    return dataclasses.replace(offline, epochs=offline.epochs * times, patience=patience)


if __name__ == "__main__":
    main()
