"""Motion priors on tasks that show them: task reward kept, distance to held-out clips, gait; over several seeds.

    python -m benchmarks.motion --task cheetah --seeds 0 1 2
    python -m benchmarks.motion --task ant --seeds 0 1 2
    python -m benchmarks.motion --task go1 --seeds 0 1 2 --episodes 200
    python -m benchmarks.motion --task cheetah --seeds 0 1 2 --report-only --videos ppo appo-0.4

cheetah: HalfCheetah-v5, clips recorded from a PPO run with another seed (3), which found another gait. ant: Ant-v5, a
trot of a scripted controller (`examples/ant_trot_clips.py`). go1: a Go1 that follows a joystick, a trot made of foot
trajectories and inverse kinematics (`examples/trot_clips.py`). appo-L gives the task the share L of the reward,
appo-L-rsi starts half of the episodes in states of the clips besides (reference-state initialisation), atppo-L has the
clips' policy as teacher.

Trainings run in processes of one thread each. Their folders are runs/<task>/<method>-seed-<n>; finished ones
(runs/<task>.jsonl, and those in results/<task>.json) are not repeated and interrupted ones go on. Writes
results/<task>.md, .json and .png; cells that were not run are dashes. Set `MUJOCO_GL=egl` for --videos.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import table
from benchmarks.motion.examples import example
from benchmarks.motion.gait import TASKS, Task, measure, measure_clips, play
from benchmarks.table import Result, cell, line, rule, train_in

if TYPE_CHECKING:
    from understudy.envs.registry import EnvConfig
    from understudy.runs.config import TrainConfig

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
CURVES = {
    "curve": "episode/return",
    "saturated": "motion/saturated",
    "logit_pi": "motion/logit_pi",
    "logit_exp": "motion/logit_exp",
    "style_reward": "motion/style_reward",
}
"""Metrics of a run that results keep, thinned."""


@dataclass(frozen=True, kw_only=True)
class Job(table.Job):
    """One training and its test."""

    task: str
    method: str
    seed: int
    total_steps: int
    episodes: int


class Motion(table.Question[Job]):
    """One robot, every method."""

    @classmethod
    def options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--task", choices=tuple(TASKS), required=True)
        parser.add_argument("--methods", nargs="+", help=f"default: all that the task has, {METHODS}")
        parser.add_argument("--episodes", type=int, default=10, help="test episodes, deterministic")
        parser.add_argument("--videos", nargs="*", metavar="METHOD", help="film the clips and these (all) side by side")
        parser.set_defaults(parallel=1)

    @classmethod
    def settle(cls, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        args.total_steps = args.total_steps or STEPS[args.task]
        args.methods = args.methods or METHODS[args.task]
        if not set(args.methods) <= set(METHODS[args.task]):
            parser.error(f"choose the methods of {args.task} among {', '.join(METHODS[args.task])}")

    @property
    def name(self) -> str:
        return str(self.args.task)

    @property
    def task(self) -> Task:
        """The robot."""
        return TASKS[self.args.task]

    @property
    def jobs_per_process(self) -> int | None:  # type: ignore[override]
        """The pool of a Go1's takes 7 GB."""
        return 1 if self.name == "go1" else None

    def jobs(self) -> list[Job]:
        """Seed by seed, so that an interrupted table has every cell before any cell has two seeds."""
        common = {"task": self.name, "total_steps": self.args.total_steps, "episodes": self.args.episodes}
        return [Job(method=method, seed=seed, **common) for seed in self.args.seeds for method in self.args.methods]

    def stages(self, jobs: Sequence[Job], known: dict[str, Result]) -> Iterator[Sequence[Job]]:
        missing = [job for job in jobs if job.key not in known]
        if missing:
            self.make_clips()  # here, where no two processes can make the same
            if self.name == "go1":
                self.walk_first(missing)
        yield missing

    def describe(self, row: Result) -> str:
        return f"{row['method']} seed {row['seed']}: return {row['test_return']:.0f}, {row['energy']:.3f}"

    # ------------------------------------------------------------------ training

    def folder(self, job: Job) -> Path:
        """The job's run."""
        return self.runs / job.task / f"{job.method}-seed-{job.seed}-steps-{job.total_steps}"

    def walker(self, job: Job) -> Path:
        """The run in which the Go1 of the job's seed learns to walk."""
        return self.folder(job).with_name(f"walker-seed-{job.seed}-steps-{WALK}")

    @property
    def source(self) -> Path:
        """The run whose gait is to be taken over."""
        return self.runs / self.name / f"source-seed-{SOURCE_SEED}-steps-{self.args.total_steps}"

    def work(self, job: Job) -> dict[str, Any]:
        """Train, or take over or continue the training in the job's folder; then measure its gait."""
        from understudy.runs.folder import RunFolder, read_policy
        from understudy.runs.metrics import read_metrics
        from understudy.tools.play import evaluation_seed

        before = WALK if job.task == "go1" and job.method != "ppo" else 0
        path = self.folder(job)
        train_in(path, unscored(self.config(job)))
        policy, config = read_policy(path)
        env = dataclasses.replace(
            config.env, id=self.task.env_id, kwargs=config.env.kwargs if self.task.contact else {}
        )
        files = RunFolder(path)
        metrics = [{**row, "step": row["step"] + before} for row in read_metrics(files.metrics)]
        played = play(self.task, policy, env, job.episodes, evaluation_seed(job.seed))
        return {
            "revision": json.loads(files.provenance.read_text())[-1]["git"]["library"][:7],
            **measure(played, self.task, self.clip_files[1]),
            "env_steps": int(metrics[-1]["step"]),
            **{name: table.curve(metrics, metric) for name, metric in CURVES.items()},
        }

    def config(self, job: Job) -> TrainConfig:
        """The recipe of the job's method."""
        from understudy.recipes import appo, atppo, go1_teacher, go1_trot, mujoco

        env_id, clips, go1 = self.task.env_id, str(self.clip_files[0]), job.task == "go1"
        if job.method == "ppo":
            return (go1_teacher if go1 else mujoco)(env_id, total_steps=job.total_steps, seed=job.seed)
        name, lerp, *starts = job.method.split("-")
        options: dict[str, Any] = {
            "motions": (clips,),
            "task_reward_lerp": float(lerp),
            "total_steps": job.total_steps - (WALK if go1 else 0),
            "seed": job.seed,
        }
        if go1:
            return dataclasses.replace(go1_trot(env_id, **options), start_from=str(self.walker(job)))
        if name == "appo":
            config = appo(env_id, **options)
            return dataclasses.replace(config, env=reference_starts(config.env, clips)) if starts else config
        return atppo(env_id, teachers=(str(self.source),), **options)

    def walk_first(self, jobs: Sequence[Job]) -> None:
        """Train a Go1 that walks for each seed, which PPO's runs are copies of."""
        walkers = {job.seed: job for job in jobs}
        with table.processes(self) as pool:
            list(pool.map(self.train_walker, walkers.values()))
        for job in jobs:
            if job.method == "ppo" and not self.folder(job).exists():
                shutil.copytree(self.walker(job), self.folder(job), ignore=shutil.ignore_patterns(table.FINISHED))

    def train_walker(self, job: Job) -> None:
        """The Go1 that walks of the job's seed, where it is missing."""
        from understudy.recipes import go1_teacher

        train_in(self.walker(job), unscored(go1_teacher(total_steps=WALK, seed=job.seed)))

    # ------------------------------------------------------------------ clips

    @property
    def clip_files(self) -> tuple[Path, Path]:
        """The clips to learn from, and those held out."""
        recorded = f"{self.name}-seed-{SOURCE_SEED}-steps-{self.args.total_steps}"
        name = recorded if self.task.recorded else self.name
        return self.runs / "clips" / f"{name}.npz", self.runs / "clips" / f"{name}-held-out.npz"

    def make_clips(self) -> None:
        """Make both files of clips, where they are missing; the held-out ones are other episodes."""
        from understudy.recipes import mujoco
        from understudy.tools.record import record

        for number, path in enumerate(self.clip_files):
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.name == "go1":
                trot = example("trot_clips")
                trot.main(path, trot.HELD_OUT if number else trot.COMMANDS)
            elif self.name == "ant":
                example("ant_trot_clips").main(path, episodes=CLIPS, seed=1_000_000 * (number + 1))
            else:
                steps = self.args.total_steps
                train_in(self.source, unscored(mujoco(self.task.env_id, total_steps=steps, seed=SOURCE_SEED)))
                record(path, run=self.source, episodes=CLIPS, seed=1_000_000 * (number + 1), file_format="motion")

    @cached_property
    def clips(self) -> Result:
        """Gait of the clips, and how far those learnt from are from the held-out ones."""
        committed = self.results / f"{self.name}.json"
        if self.clip_files[1].exists():
            return measure_clips(self.task, *self.clip_files)
        if committed.is_file():
            found: Result = json.loads(committed.read_text())["clips"]
            return found
        raise SystemExit("there are no clips yet: run without --report-only")

    # ------------------------------------------------------------------ report

    def unpack(self, content: Any) -> list[Result]:
        return list(content["runs"])

    def pack(self, rows: list[Result]) -> Any:
        return {"clips": self.clips, "runs": rows}

    def report(self, results: Sequence[Result]) -> str:
        """One line for each method; shares are of PPO's mean over the same seeds."""
        tracks, clips = bool(self.task.commanded), self.clips
        error = ("| velocity error (m/s) ", "| ") if tracks else ("", "")
        lines = [
            f"# Motion prior: {self.task.env_id}",
            "",
            f"| method | seeds | task return | of PPO's {error[0]}| energy distance | of PPO's | Fréchet distance "
            "| of PPO's | gait (Hz) | duty factor of each foot | touch-down after the first foot | saturated |",
            rule(12 + tracks),
            f"| other clips | | | {error[1]}| {clips['energy']:.3f} | | {clips['frechet']:.2f} | "
            f"| {clips['frequency']:.2f} | | | |",
            *(self.row(method, results) for method in METHODS[self.name]),
        ]
        return "\n".join([*lines, "", *self.notes(), self.measured(results, "gymnasium", "mujoco", "torch"), ""])

    def row(self, method: str, results: Sequence[Result]) -> str:
        """A method's line."""
        tracks = bool(self.task.commanded)
        found = [r for r in results if r["method"] == method]
        if not found:
            return line(method, "none", *["-"] * (10 + tracks))
        cells = [method, ", ".join(str(r["seed"]) for r in found)]
        for name, digits in (("test_return", 0), ("energy", 3), ("frechet", 2)):
            cells += [cell([r[name] for r in found], digits), share(found, results, name)]
            if name == "test_return" and tracks:
                cells.append(cell([r["velocity_error"] for r in found], 2))
        cells.append(cell([r["frequency"] for r in found], 2))
        feet = range(len(self.task.feet))
        cells.append(", ".join(f"{statistics.fmean(r['duty'][k] for r in found):.2f}" for k in feet))
        cells.append("; ".join(", ".join(f"{x:.2f}" for x in r["phase"][1:]) for r in found))
        cells.append(cell([r["saturated"][-1][1] for r in found if r["saturated"]], 3))
        return line(*cells)

    def notes(self) -> list[str]:
        """Definitions and picture."""
        error = "- **velocity error**: root mean square of the difference between horizontal velocity and command."
        return [
            f"After {self.args.total_steps:,} environment steps, {self.args.episodes} deterministic test episodes. "
            "Dashes: not run. Mean ± standard deviation over seeds.",
            "",
            "- **energy distance**: 2 E|x - y| - E|x - x'| - E|y - y'| (Székely & Rizzo 2013) between windows of two "
            "frames of style features in the policy's episodes and in held-out clips, in the clips' standard "
            'deviations. "other clips" is the distance of the clips learnt from.',
            "- **Fréchet distance**: of normal distributions fitted to the same windows, squared as in FID.",
            *([error] if self.task.commanded else []),
            "- **duty factor**: share of the time that a foot touches the ground; touch-down in shares of the first "
            "foot's stride (Hildebrand 1965), circular mean, seeds separated by semicolons; a trot has half a stride "
            "between the feet of one end.",
            "- **saturated**: share of the policy's scores pinned to their label in the last iteration.",
            "",
            f"![joint angles over the gait cycle, health of the discriminator]({self.name}.png)",
            "",
        ]

    def words(self) -> list[str]:
        args = self.args
        words = ["--task", args.task, "--seeds", *map(str, args.seeds), "--methods", *args.methods]
        return [*words, "--episodes", str(args.episodes)]

    def draw(self, results: Sequence[Result], path: Path) -> None:
        from benchmarks.motion.pictures import draw

        draw(results, self.clips, self.task, path)

    def finish(self) -> None:
        if self.args.videos is not None:
            print(self.film(self.args.videos or self.args.methods))

    def film(self, methods: Sequence[str]) -> str:
        """Films of the clips' policy and of some methods' first seed, side by side."""
        from benchmarks.motion import go1_replay, pictures

        go1, source = self.name == "go1", self.source
        runs = {"clips": source} if source.is_dir() else {}
        first = {job.method: self.folder(job) for job in self.jobs() if job.seed == self.args.seeds[0]}
        runs |= {method: first[method] for method in methods if method in first and first[method].is_dir()}
        films = {name: folder / "video.mp4" for name, folder in runs.items()}
        if go1:  # nobody played its clips
            films = {"clips": self.runs / "clips" / "go1.mp4", **films}
            go1_replay.film_clip(self.clip_files[0], "trot 1 0 0", films["clips"], pictures.FILM_SECONDS)
        for name, folder in runs.items():
            if go1:
                go1_replay.film_run(folder, films[name], pictures.FILM_SECONDS)
            else:
                pictures.film_run(folder, films[name], self.task.env_id)
        whole = self.runs / f"{self.name}.mp4"
        text = pictures.side_by_side(films, whole)
        pictures.shorten(whole, self.results / f"{self.name}.gif")
        return text


def unscored(config: TrainConfig) -> TrainConfig:
    """Without evaluations: the benchmark tests the finished policy itself."""
    from understudy.runs.config import EvaluationConfig

    return dataclasses.replace(config, evaluation=EvaluationConfig(episodes=0))


def reference_starts(env: EnvConfig, clips: str) -> EnvConfig:
    """HalfCheetah, half of whose episodes start in states of the clips."""
    import gymnasium

    if FROM_CLIPS not in gymnasium.registry:
        gymnasium.register(FROM_CLIPS, entry_point=cheetah_from_clips)
    return dataclasses.replace(env, id=FROM_CLIPS, kwargs={"clips": clips})


def cheetah_from_clips(clips: str, **options: Any) -> Any:
    """HalfCheetah-v5, whose observations, the clips' fields, are its positions but the first and its velocities."""
    import gymnasium as gym

    from benchmarks.motion.reference_states import ReferenceStateInit
    from understudy.data.motions.library import MotionsConfig

    observed = tuple(f"policy[{column}]" for column in range(17))
    places = {"positions": (None, *observed[:8]), "velocities": observed[8:]}
    env = gym.make("HalfCheetah-v5", **options)
    return ReferenceStateInit(env, MotionsConfig(files=(clips,)), probability=0.5, **places)


def share(found: Sequence[Result], results: Sequence[Result], name: str) -> str:
    """Mean of a method's seeds over the mean of PPO's with the same seeds, in percent."""
    seeds = {r["seed"] for r in found}
    base = [r for r in results if r["method"] == "ppo" and r["seed"] in seeds]
    if len(base) < len(seeds):
        return "-"
    return f"{100.0 * sum(r[name] for r in found) / sum(r[name] for r in base):.0f} %"
