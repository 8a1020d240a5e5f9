"""Motion priors on tasks that show them: task reward kept, distance to held-out clips, gait; over several seeds.

    python benchmarks/motion/run.py --task cheetah --seeds 0 1 2
    python benchmarks/motion/run.py --task ant --seeds 0 1 2
    python benchmarks/motion/run.py --task go1 --seeds 0 1 2 --episodes 200
    python benchmarks/motion/run.py --task cheetah --seeds 0 1 2 --report-only --videos ppo appo-0.4

cheetah: HalfCheetah-v5, clips recorded from a PPO run with another seed (3), which found another gait. ant: Ant-v5, a
trot of a scripted controller (`examples/ant_trot_clips.py`). go1: a Go1 that follows a joystick, a trot made of foot
trajectories and inverse kinematics (`examples/trot_clips.py`). appo-L gives the task the share L of the reward,
appo-L-rsi starts half of the episodes in states of the clips besides (reference-state initialisation), atppo-L has the
clips' policy as teacher.

Trainings run in processes that stay, with one thread each. Their folders are runs/<task>/<method>-seed-<n>, finished
ones (runs/<task>.jsonl, and what results/<task>.json has) are not repeated and interrupted ones go on. Writes
results/<task>.md, .json and .png; cells that were not run are dashes. Set `MUJOCO_GL=egl` for --videos.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from understudy.envs.registry import EnvConfig
    from understudy.runs.config import TrainConfig

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
sys.path.append(str(HERE.parent / "speed"))
sys.path.append(str(HERE.parents[1] / "src"))  # used where the library is not installed
sys.path.append(str(HERE.parents[1] / "examples"))

from gait import TASKS, measure, measure_clips, play  # noqa: E402
from jobs import KeyedJob, Result, cell, completed, one_thread_each, processes, read_known, run_missing, thin  # noqa: E402

SOURCE_SEED = 3
"""The fastest of four PPO runs: nobody is faster than the gait that it takes over."""
CLIPS = 5
"""Episodes that are clips, and as many that are held out."""
STEPS = {"cheetah": 1_000_000, "ant": 1_000_000, "go1": 5_000_000}
WALK = 3_000_000
"""Of the Go1's steps those that teach it to walk, by PPO: then PPO goes on, and APPO starts from that policy."""
METHODS = {
    "cheetah": ("ppo", "appo-0.7", "appo-0.5", "appo-0.4", "appo-0.4-rsi", "appo-0.3", "atppo-0.5"),
    "ant": ("ppo", "appo-0.5", "appo-0.3", "appo-0.2"),
    "go1": ("ppo", "appo-0.3", "appo-0.15"),
}
"""ATPPO needs a policy that could teach: clips from a script have none."""
FROM_CLIPS = "HalfCheetahFromClips-v0"


@dataclass(frozen=True, kw_only=True)
class Job(KeyedJob):
    """One training and its test."""

    task: str
    method: str
    seed: int
    total_steps: int
    episodes: int

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return HERE / "runs" / self.task / f"{self.method}-seed-{self.seed}-steps-{self.total_steps}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=tuple(TASKS), required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", help=f"default: all that the task has, {METHODS}")
    parser.add_argument("--total-steps", type=int, help=f"default: {STEPS}")
    parser.add_argument("--episodes", type=int, default=10, help="test episodes, deterministic")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at a time")
    parser.add_argument("--report-only", action="store_true", help="train nothing, tabulate what there is")
    parser.add_argument("--videos", nargs="*", metavar="METHOD", help="film the clips and these (all) side by side")
    args = parser.parse_args()
    one_thread_each()
    args.total_steps = args.total_steps or STEPS[args.task]
    args.methods = args.methods or METHODS[args.task]
    if not set(args.methods) <= set(METHODS[args.task]):
        parser.error(f"choose the methods of {args.task} among {', '.join(METHODS[args.task])}")
    print(report(args, run_all(make_jobs(args), args)))
    if args.videos is not None:
        print(film(args, args.videos or args.methods))


def make_jobs(args: argparse.Namespace) -> list[Job]:
    """Seed by seed, so that an interrupted table has every cell before any cell has two seeds."""
    return [
        Job(task=args.task, method=method, seed=seed, total_steps=args.total_steps, episodes=args.episodes)
        for seed in args.seeds
        for method in args.methods
    ]


# ---------------------------------------------------------------------- running


def run_all(jobs: Sequence[Job], args: argparse.Namespace) -> dict[str, Result]:
    """All results by key, earlier tables' too; jobs without one are done, and the table is written after each."""
    store = HERE / "runs" / f"{args.task}.jsonl"
    known = read_known(HERE / "results" / f"{args.task}.json", store)
    missing = [job for job in jobs if job.key not in known]
    if not args.report_only and missing:
        make_clips(args.task, args.total_steps)  # here, where no two processes can make the same
        if args.task == "go1":
            walk_first(missing, args.parallel)
        options: dict[str, Any] = {"store": store, "parallel": args.parallel, "describe": describe}
        options["after"] = lambda: report(args, known)
        options["jobs_per_process"] = 1 if args.task == "go1" else None  # the pool of a Go1's takes 7 GB
        run_missing(jobs, known, train_and_test, **options)
    return known


def describe(row: Result) -> str:
    """One line of progress."""
    return f"{row['method']} seed {row['seed']}: return {row['test_return']:.0f}, {row['energy']:.3f}"


def train_and_test(job: Job) -> dict[str, Any]:
    """Train, or take over or continue the training in the job's folder; then measure its gait."""
    import torch

    from understudy.runs.folder import RunFolder, read_policy
    from understudy.runs.metrics import read_metrics
    from understudy.tools.play import evaluation_seed

    torch.set_num_threads(1)
    task, (_, held_out) = TASKS[job.task], clip_files(job.task, job.total_steps)
    before = WALK if job.task == "go1" and job.method != "ppo" else 0
    config = method_config(job)
    train_in(job.folder, config)
    policy, config = read_policy(job.folder)
    test_env = dataclasses.replace(config.env, id=task.env_id, kwargs=config.env.kwargs if task.contact else {})
    folder = RunFolder(job.folder)
    metrics = [{**row, "step": row["step"] + before} for row in read_metrics(folder.metrics)]
    return {
        "key": job.key,
        **asdict(job),
        "revision": json.loads(folder.provenance.read_text())[-1]["git"]["library"][:7],
        **measure(play(task, policy, test_env, job.episodes, evaluation_seed(job.seed)), task, held_out),
        "env_steps": int(metrics[-1]["step"]),
        **{name: curve(metrics, metric) for name, metric in CURVES.items()},
    }


CURVES = {
    "curve": "episode/return",
    "saturated": "motion/saturated",
    "logit_pi": "motion/logit_pi",
    "logit_exp": "motion/logit_exp",
    "style_reward": "motion/style_reward",
}
"""Metrics of a run that results keep, thinned."""


def curve(metrics: Sequence[Mapping[str, float]], name: str) -> list[tuple[int, float]]:
    """One metric against steps, thinned."""
    return thin([(row["step"], row[name]) for row in metrics if name in row])


def walk_first(jobs: Sequence[Job], parallel: int) -> None:
    """Train a Go1 that walks for each seed, which PPO's runs are copies of."""
    walkers = {job.seed: job for job in jobs}
    with processes(parallel, jobs_per_process=1) as pool:
        list(pool.map(train_walker, walkers.values()))
    for job in jobs:
        if job.method == "ppo" and not job.folder.exists():
            shutil.copytree(walker_folder(job), job.folder)


def train_walker(job: Job) -> None:
    """The Go1 that walks of the job's seed, where it is missing."""
    from understudy.recipes import go1_teacher

    train_in(walker_folder(job), go1_teacher(total_steps=WALK, seed=job.seed))


def walker_folder(job: Job) -> Path:
    """The run that has learnt to walk."""
    return job.folder.with_name(f"walker-seed-{job.seed}-steps-{WALK}")


def method_config(job: Job) -> TrainConfig:
    """The recipe of a method."""
    from understudy.recipes import appo, atppo, go1_teacher, go1_trot, mujoco

    task, clips = TASKS[job.task], (str(clip_files(job.task, job.total_steps)[0]),)
    go1 = job.task == "go1"
    if job.method == "ppo":
        return (go1_teacher if go1 else mujoco)(task.env_id, total_steps=job.total_steps, seed=job.seed)
    name, lerp, *starts = job.method.split("-")
    options: dict[str, Any] = {
        "motions": clips,
        "task_reward_lerp": float(lerp),
        "total_steps": job.total_steps,
        "seed": job.seed,
    }
    if go1:
        options["total_steps"] -= WALK
        return dataclasses.replace(go1_trot(task.env_id, **options), start_from=str(walker_folder(job)))
    if name == "appo":
        config = appo(task.env_id, **options)
        return dataclasses.replace(config, env=reference_starts(config.env, clips[0])) if starts else config
    return atppo(task.env_id, teachers=(str(source_folder(job.task, job.total_steps)),), **options)


def reference_starts(env: EnvConfig, clips: str) -> EnvConfig:
    """HalfCheetah, half of whose episodes start in states of the clips."""
    import gymnasium

    if FROM_CLIPS not in gymnasium.registry:
        gymnasium.register(FROM_CLIPS, entry_point=cheetah_from_clips)
    return dataclasses.replace(env, id=FROM_CLIPS, kwargs={"clips": clips})


def cheetah_from_clips(clips: str, **options: Any) -> Any:
    """HalfCheetah-v5, whose observations, the clips' fields, are its positions but the first and its velocities."""
    import gymnasium as gym

    from understudy.data.motions.library import MotionsConfig
    from understudy.data.reference_states import ReferenceStateInit

    observed = tuple(f"policy[{column}]" for column in range(17))
    places = {"positions": (None, *observed[:8]), "velocities": observed[8:]}
    env = gym.make("HalfCheetah-v5", **options)
    return ReferenceStateInit(env, MotionsConfig(files=(clips,)), probability=0.5, **places)


def train_in(folder: Path, config: TrainConfig) -> None:
    """Train in a folder, unless it holds the finished training; one that was interrupted goes on."""
    from understudy.runs.config import EvaluationConfig, LoggingConfig
    from understudy.training.loop import resume, train

    steps = [int(path.stem.removeprefix("step_")) for path in folder.glob("checkpoints/step_*.pt")]
    if steps and max(steps) >= config.total_steps:
        return
    if steps:
        completed(resume(folder, total_steps=config.total_steps))
        return
    shutil.rmtree(folder, ignore_errors=True)  # it ended before its first checkpoint
    quiet = LoggingConfig(console=False, tensorboard=False)
    config = dataclasses.replace(config, run_dir=str(folder), logging=quiet, evaluation=EvaluationConfig(episodes=0))
    completed(train(config))


# ---------------------------------------------------------------------- clips


def source_folder(task: str, total_steps: int) -> Path:
    """The run whose gait is to be taken over."""
    return HERE / "runs" / task / f"source-seed-{SOURCE_SEED}-steps-{total_steps}"


def clip_files(task: str, total_steps: int) -> tuple[Path, Path]:
    """The clips to learn from, and those held out."""
    name = f"{task}-seed-{SOURCE_SEED}-steps-{total_steps}" if TASKS[task].recorded else task
    return HERE / "runs" / "clips" / f"{name}.npz", HERE / "runs" / "clips" / f"{name}-held-out.npz"


def make_clips(task: str, total_steps: int) -> None:
    """Make both files of clips, where they are missing; the held-out ones are other episodes."""
    from understudy.recipes import mujoco
    from understudy.tools.record import record

    for number, path in enumerate(clip_files(task, total_steps)):
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if task == "go1":
            import trot_clips

            trot_clips.main(path, trot_clips.HELD_OUT if number else trot_clips.COMMANDS)
        elif task == "ant":
            import ant_trot_clips

            ant_trot_clips.main(path, episodes=CLIPS, seed=1_000_000 * (number + 1))
        else:
            source = source_folder(task, total_steps)
            train_in(source, mujoco(TASKS[task].env_id, total_steps=total_steps, seed=SOURCE_SEED))
            record(path, run=source, episodes=CLIPS, seed=1_000_000 * (number + 1), file_format="motion")


# ---------------------------------------------------------------------- report


def report(args: argparse.Namespace, known: Mapping[str, Result]) -> str:
    """Write table and picture of what was asked for, and the numbers of all that is known; returns the table."""
    from pictures import draw

    results = [known[job.key] for job in make_jobs(args) if job.key in known]
    output = HERE / "results"
    output.mkdir(parents=True, exist_ok=True)
    committed = output / f"{args.task}.json"
    files = clip_files(args.task, args.total_steps)
    if files[1].exists():
        clips = measure_clips(TASKS[args.task], *files)
    elif committed.is_file():
        clips = json.loads(committed.read_text())["clips"]
    else:
        raise SystemExit("nothing was run yet")
    text = table(args, results, clips)
    (output / f"{args.task}.md").write_text(text)
    committed.write_text(json.dumps({"clips": clips, "runs": list(known.values())}) + "\n")
    draw(results, clips, TASKS[args.task], output / f"{args.task}.png")
    return text


def film(args: argparse.Namespace, methods: Sequence[str]) -> str:
    """Films of the clips' policy and of some methods' first seed, side by side."""
    import go1_replay
    import pictures

    go1, source = args.task == "go1", source_folder(args.task, args.total_steps)
    runs = {"clips": source} if source.is_dir() else {}
    jobs = {job.method: job for job in make_jobs(args) if job.seed == args.seeds[0] and job.folder.is_dir()}
    runs |= {method: jobs[method].folder for method in methods if method in jobs}
    films = {name: folder / "video.mp4" for name, folder in runs.items()}
    if go1:  # nobody played its clips
        films = {"clips": HERE / "runs" / "clips" / "go1.mp4", **films}
        go1_replay.film_clip(clip_files(args.task, 0)[0], "trot 1 0 0", films["clips"], pictures.FILM_SECONDS)
    for name, folder in runs.items():
        if go1:
            go1_replay.film_run(folder, films[name], pictures.FILM_SECONDS)
        else:
            pictures.film_run(folder, films[name], TASKS[args.task].env_id)
    whole = HERE / "runs" / f"{args.task}.mp4"
    text = pictures.side_by_side(films, whole)
    pictures.shorten(whole, HERE / "results" / f"{args.task}.gif")
    return text


def table(args: argparse.Namespace, results: Sequence[Result], clips: Result) -> str:
    """One line for each method; shares are of PPO's mean over the same seeds."""
    feet, tracks = len(TASKS[args.task].feet), bool(TASKS[args.task].commanded)
    error = ("| velocity error (m/s) ", "| ") if tracks else ("", "")
    lines = [
        f"# Motion prior: {TASKS[args.task].env_id}",
        "",
        f"| method | seeds | task return | of PPO's {error[0]}| energy distance | of PPO's | Fréchet distance "
        "| of PPO's | gait (Hz) | duty factor of each foot | touch-down after the first foot | saturated |",
        "|---" * (12 + tracks) + "|",
        f"| other clips | | | {error[1]}| {clips['energy']:.3f} | | {clips['frechet']:.2f} | "
        f"| {clips['frequency']:.2f} | | | |",
    ]
    for method in METHODS[args.task]:
        found = [r for r in results if r["method"] == method]
        if not found:
            lines.append(f"| {method} | none" + " | -" * (10 + tracks) + " |")
            continue
        cells = [method, ", ".join(str(r["seed"]) for r in found)]
        for name, digits in (("test_return", 0), ("energy", 3), ("frechet", 2)):
            cells += [cell([r[name] for r in found], digits), share(found, results, name)]
            if name == "test_return" and tracks:
                cells.append(cell([r["velocity_error"] for r in found], 2))
        cells.append(cell([r["frequency"] for r in found], 2))
        cells.append(", ".join(f"{statistics.fmean(r['duty'][k] for r in found):.2f}" for k in range(feet)))
        cells.append("; ".join(", ".join(f"{x:.2f}" for x in r["phase"][1:]) for r in found))
        cells.append(cell([r["saturated"][-1][1] for r in found if r["saturated"]], 3))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *footer(args, results)])


def share(found: Sequence[Result], results: Sequence[Result], name: str) -> str:
    """Mean of a method's seeds over the mean of PPO's with the same seeds, in percent."""
    seeds = {r["seed"] for r in found}
    base = [r for r in results if r["method"] == "ppo" and r["seed"] in seeds]
    if len(base) < len(seeds):
        return "-"
    return f"{100.0 * sum(r[name] for r in found) / sum(r[name] for r in base):.0f} %"


def footer(args: argparse.Namespace, results: Sequence[Result]) -> list[str]:
    """Definitions, how, where and when."""
    import tables

    machine = tables.machine()
    words = ["--task", args.task, "--seeds", *map(str, args.seeds), "--methods", *args.methods]
    words += ["--episodes", str(args.episodes)]
    return [
        f"After {args.total_steps:,} environment steps, {args.episodes} deterministic test episodes. Dashes: not run. "
        "Mean ± standard deviation over seeds.",
        "",
        "- **energy distance**: 2 E|x - y| - E|x - x'| - E|y - y'| (Székely & Rizzo 2013) between windows of two "
        "frames of style features in the policy's episodes and in held-out clips, in the clips' standard "
        'deviations. "other clips" is the distance of the clips learnt from.',
        "- **Fréchet distance**: of normal distributions fitted to the same windows, squared as in FID.",
        *(
            ["- **velocity error**: root mean square of the difference between horizontal velocity and command."]
            if TASKS[args.task].commanded
            else []
        ),
        "- **duty factor**: share of the time that a foot touches the ground; touch-down in shares of the first foot's "
        "stride (Hildebrand 1965), circular mean, seeds separated by semicolons; a trot has half a stride between the "
        "feet of one end.",
        "- **saturated**: share of the policy's scores pinned to their label in the last iteration.",
        "",
        f"![joint angles over the gait cycle, health of the discriminator]({args.task}.png)",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, one thread each; gymnasium "
        f"{importlib.metadata.version('gymnasium')}, mujoco {importlib.metadata.version('mujoco')}, torch "
        f"{importlib.metadata.version('torch')}; understudy {', '.join(sorted({r['revision'] for r in results}))}; "
        f"{datetime.date.today().isoformat()}; `python benchmarks/motion/run.py {' '.join(words)}`",
        "",
    ]


if __name__ == "__main__":
    main()
