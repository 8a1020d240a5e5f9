"""Options that are NaN, infinite, 0, negative, huge, tiny, of a wrong type or empty, in every config class.

    python -m benchmarks.faults.options                      # every leaf of every config class, every value
    python -m benchmarks.faults.options --seed 7 --count 500 # a sample
    python -m benchmarks.faults.options --seed 7 --minutes 30

Each value replaces one option of a tiny training, which comes through YAML or through Python. Two outcomes are right:
a ValueError that names the option, before the first step; or a training whose metrics and weights are finite.
Trainings run in child processes with limits of memory and time. The seed also draws some of the values.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import typing
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
import torch
import yaml
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.core.check import hints_of
from understudy.core.schedules import Schedule
from understudy.data.demonstrations.write import write_npz
from understudy.data.motions.fields import MirrorRule
from understudy.data.motions.files import MotionClip, write_motions
from understudy.data.motions.library import MotionsConfig
from understudy.envs.base import Step
from understudy.envs.makers import register_env
from understudy.envs.registry import EnvConfig
from understudy.nn.estimator import EstimatorHeadConfig
from understudy.nn.heads import DistributionConfig
from understudy.nn.networks import CNNConfig, EncoderConfig
from understudy.nn.protocol import PolicyConfig
from understudy.parts import (
    AdvisorConfig,
    AirlConfig,
    BehaviorCloningConfig,
    EstimatorConfig,
    GailConfig,
    MirrorSpec,
    MotionPriorConfig,
    RandomNetworkDistillationConfig,
    ScriptedExpertConfig,
    SymmetryConfig,
    TeacherConfig,
)
from understudy.parts.shared.discriminator import DiscriminatorConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.lr_scheduler import LRSchedulerConfig
from understudy.ppo.part import PartConfig
from understudy.runs.codec import to_plain
from understudy.runs.config import (
    CheckpointConfig,
    DaggerConfig,
    EvaluationConfig,
    LoggingConfig,
    OfflineConfig,
    TrainConfig,
    from_yaml,
)
from understudy.tasks.point_mass import PointMass
from understudy.tools.record import record_episodes
from understudy.training.loggers import StopTraining
from understudy.training.loop import Run, train
from understudy.types import CheckpointError

SECONDS = 30
"""Time of one training on the processor; of ten times as long by the clock it is killed."""
MEMORY = 6 * 2**30
"""Memory of one training, in bytes, beyond what the program takes."""
BATCH = 50
"""Trainings that share a process, as long as none ends it."""
RESULTS = Path(__file__).parent / "results" / "options.md"

# ------------------------------------------------------------------------------------------- tiny trainings

steps_taken = rows = 0  # by all environments of this process, and logged


class Tiny(PointMass):
    """PointMass with an expert's labels, an image and a class among its observations; it counts steps."""

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", *, max_episode_steps: int = 8) -> None:
        super().__init__(num_envs, device, max_episode_steps=max_episode_steps)
        self.observation_space = spaces.Dict(
            {
                **self.observation_space.spaces,
                "expert_action": self.action_space,
                "expert_success": spaces.Discrete(2),
                "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
                "kind": spaces.Discrete(2),
            }
        )

    def step(self, action: Tensor) -> Step:
        """A step that is counted."""
        global steps_taken
        steps_taken += 1
        return super().step(action)

    def observe(self) -> TensorDict:
        """The current observation `[N]`."""
        obs = super().observe()
        offset, velocity = obs["policy"].split(2, dim=-1)
        obs["expert_action"] = (-offset - velocity).clamp(-1.0, 1.0)
        obs["expert_success"] = (offset.square().sum(-1) < 2.0).long()
        obs["image"] = (offset.square().sum(-1)[:, None, None, None] * 20).clamp(0, 255).expand(-1, 8, 8, 3).byte()
        obs["kind"] = (offset[:, 0] > 0).long()
        return obs


class CountedCartPole(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole that counts steps."""

    def step(self, action: Any) -> Any:
        """A step that is counted."""
        global steps_taken
        steps_taken += 1
        return self.env.step(action)


def make_cartpole(num_envs: int, device: torch.device) -> gym.vector.SyncVectorEnv:
    """CartPole by a maker."""
    return gym.vector.SyncVectorEnv([lambda: CountedCartPole(gym.make("CartPole-v1"))] * num_envs)


register_env("Tiny", Tiny)
register_env("TinyCartPole", make_cartpole)


JOINTS = ("left_hip_dof_pos", "right_hip_dof_pos", "left_knee_dof_pos", "right_knee_dof_pos")
"""Names of the columns of the motion."""


class Inputs(NamedTuple):
    """Files that the trainings learn from."""

    demonstrations: str
    motions: str
    teacher: str


def make_inputs(folder: Path) -> Inputs:
    """Record demonstrations and a motion, and train a teacher."""
    steer = lambda obs, _: obs["expert_action"]  # noqa: E731
    write_npz(folder / "expert.npz", record_episodes(Tiny(4), steer, 6, seed=0), {})
    frames = np.random.default_rng(0).normal(size=(30, 4)).cumsum(0) * 0.05
    write_motions(folder / "motion.npz", [MotionClip(name="m", fields=JOINTS, frames=frames, frame_time=0.1)])
    inputs = Inputs(str(folder / "expert.npz"), str(folder / "motion.npz"), str(folder / "teacher"))
    train(dataclasses.replace(tiny(), run_dir=inputs.teacher))
    return inputs


def tiny(**changes: Any) -> TrainConfig:
    """Two iterations of PPO."""
    config = TrainConfig(
        env=EnvConfig(id="Tiny", num_envs=4),
        total_steps=64,
        device="cpu",
        torch_threads=1,
        policy=PolicyConfig(hidden_sizes=(8,), memory_size=8, critic_groups=("policy",)),
        ppo=PPOConfig(num_steps=8, epochs=2, minibatches=2, warmup_steps=4),
        evaluation=EvaluationConfig(episodes=1),
        checkpoint=CheckpointConfig(interval=None),
        logging=LoggingConfig(console=False, tensorboard=False),
    )
    return dataclasses.replace(config, **changes)


def trainings(inputs: Inputs) -> dict[str, TrainConfig]:
    """Name -> a tiny training; together they have every config class."""
    base = tiny()
    policy, ppo = base.policy, base.ppo
    small = DiscriminatorConfig(hidden_sizes=(8,), disc_update_num=2, gradient_penalty=1.0, batch_size=16)
    clone = BehaviorCloningConfig(demonstrations=inputs.demonstrations, batch_size=8, sequence_length=4)
    scheduler = LRSchedulerConfig(name="StepLR", options={"step_size": 1, "gamma": 0.5})
    flip = MirrorSpec(permutation=(0, 1, 2, 3), sign=(1.0, -1.0, 1.0, -1.0))
    pixels = EncoderConfig(
        cnn=CNNConfig(channels=(4,), kernel_sizes=(3,), strides=(2,), paddings=(1,), hidden_sizes=(8,)),
        hidden_sizes=(4,),
        embedding_size=2,
    )
    estimator = EstimatorHeadConfig(targets=("critic",), hidden_sizes=(4,), memory="gru", memory_size=4)
    motions = MotionsConfig(
        files=(inputs.motions,), weights={"m": 1.0}, mirror=MirrorRule(swap={"left": "right"}, flip=("hip",))
    )

    def part(config: PartConfig, **changes: Any) -> TrainConfig:
        return tiny(parts={"expert": config}, **changes)

    return {
        "ppo": dataclasses.replace(base, offline=None),
        "cartpole": tiny(env=EnvConfig(id="TinyCartPole", num_envs=4), policy=PolicyConfig(hidden_sizes=(8,))),
        "scheduler": tiny(ppo=dataclasses.replace(ppo, lr_scheduler=scheduler)),
        "adaptive": tiny(ppo=dataclasses.replace(ppo, desired_kl=0.01, value_clip=0.2, reward_normalization=True)),
        "memory": tiny(
            policy=dataclasses.replace(policy, memory="lstm", memory_changes=0.1, estimators={"hidden": estimator}),
            parts={"estimator": EstimatorConfig(loss="huber_loss", loss_kwargs={"delta": 0.5})},
        ),
        "pixels": tiny(
            policy=dataclasses.replace(policy, actor_groups=("policy", "image", "kind"), encoder=pixels),
        ),
        "deviation": tiny(
            policy=dataclasses.replace(
                policy, distribution=DistributionConfig(init_std=0.5, min_std=0.1, max_std=2.0, mean_activation="tanh")
            )
        ),
        "offline": tiny(
            parts={"expert": clone},
            offline=OfflineConfig(epochs=2, lr_scheduler=scheduler, evaluation_interval=1),
        ),
        "dagger": tiny(
            parts={"expert": dataclasses.replace(clone, demonstrations="")},
            offline=OfflineConfig(
                epochs=2, dagger=DaggerConfig(expert="labels", rounds=1, episodes_per_round=1, steps_per_round=8)
            ),
        ),
        "gail": part(GailConfig(demonstrations=inputs.demonstrations, discriminator=small)),
        "airl": part(AirlConfig(demonstrations=inputs.demonstrations, discriminator=small)),
        "advisor": part(AdvisorConfig(demonstrations=inputs.demonstrations, batch_size=8, sequence_length=4)),
        "teacher": part(
            TeacherConfig(checkpoints=(inputs.teacher,), teacher_forcing=0.5, latents={"actor": "actor"}, rollouts=1.5)
        ),
        "motion": part(
            MotionPriorConfig(
                motions=dataclasses.replace(motions, mirror=None),
                fields=JOINTS,
                step_time=0.1,
                frames=2,
                tracking_observations=("policy",),
                tracking_weight=0.1,
                discriminator=small,
            )
        ),
        "mirror": part(MotionPriorConfig(motions=motions, fields=JOINTS, step_time=0.1, discriminator=small)),
        "curiosity": part(
            RandomNetworkDistillationConfig(
                num_outputs=4, predictor_hidden_sizes=(8,), target_hidden_sizes=(8,), epochs=2, minibatches=2
            )
        ),
        "symmetry": part(
            SymmetryConfig(
                observations={"policy": flip},
                action=MirrorSpec(permutation=(0, 1), sign=(1.0, -1.0)),
                augmentation_coef=0.5,
            )
        ),
        "scripted": part(ScriptedExpertConfig(teacher_forcing=0.5)),
    }


# ----------------------------------------------------------------------------------------------------- values

HUGE = (1e6, 1e9, 1e15, 1e30, 1e38, 1e300, 1.7e308, 2**31, 2**32, 2**63, 2**64, 10**400)
NUMBERS: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, 0, -1, 1, 2, 3, 0.0, -0.0, 0.5, 1.0, 1.5, 5e-324, 1e-300, 1e-40, 1e-20, 1e-8,
    1 + 1e-9, -1e-9, 10, 100, 1000, 65536, *HUGE, *(-x for x in HUGE),
)  # fmt: skip
SCHEDULES = (
    "linear:1:0", "linear:0:1e308", "linear:-1:1", "exp:1:0:1", "tanh:1:0:1", "linear:1:0:0", "linear:1:0:-5",
    "linear:1:0:1e300", "linear:nan:0", "linear:inf:0", "exp:1e-300:0", "piecewise:0=1,10=0", "piecewise:10=1,0=0",
    "step:0=1e308", "step:0=0", "step:-1=1", "piecewise:", "when:episode/return>=0:1:0", "when:nonsense>=1:1:0",
    "when:evaluation/return>=-1e9:1:0.5", "when:ppo/entrpy>=0:1:0", "when:ppo/entropy>=nan:1:0", "liner:1:0", "1e-3",
    "when:ppo/entropy>=-1e9:0.5:0.25", "linear:1:0:1it", "linear:1:0:2.5", "constant:1", "constant:", ":", "1:2",
)  # fmt: skip
TEXTS = ("", " ", "x", "X" * 5000, "\0", "a/b", "../x", "none", "None", "nan", "os:system", "no_module:x", ":", "äöü")
WRONG: tuple[Any, ...] = (None, True, False, "x", "", [], {}, [None], [[1]], {"x": 1}, {1: 2}, 3, -7, 2.5, "1", "64,64")


def values(kind: Any, current: Any, dice: random.Random) -> list[Any]:
    """Plain values of each sort for an option with this annotation, some of them drawn."""
    leaves, found = set(_leaves(kind)), [*WRONG]
    numeric = leaves & {int, float}
    if numeric:
        found += NUMBERS
        found += [dice.choice((1, -1)) * 10.0 ** dice.uniform(-320, 308) for _ in range(3)]
        found += [dice.choice((1, -1)) * dice.getrandbits(dice.randrange(1, 70)) for _ in range(2)]
    if Schedule in leaves:
        found += SCHEDULES
    if str in leaves:
        found += TEXTS
        found += ["".join(chr(dice.randrange(1, 0x2100)) for _ in range(dice.randrange(1, 9))) for _ in range(2)]
    found += [
        choice for leaf in leaves if typing.get_origin(leaf) is typing.Literal for choice in typing.get_args(leaf)
    ]
    if isinstance(current, str) and current:
        found += [current.upper(), f"{current}x"]
    if isinstance(current, tuple | list):
        found += [[x] for x in (NUMBERS if numeric else TEXTS)] + [[*current, *current], [*current][:-1], current * 50]
        if numeric and current:
            found += [[x, *current[1:]] for x in NUMBERS] + [[*current[:-1], x] for x in NUMBERS]
    if isinstance(current, Mapping):
        found += [{key: x} for key in ("", "x", *current) for x in (*NUMBERS[:12], *HUGE, *TEXTS[:4], None, [1], {})]
    if numeric and isinstance(current, int | float) and not isinstance(current, bool):
        found += [current * 2, current / 2, -current, current * 10.0 ** dice.uniform(-3, 3)]
    unique = {repr(x): x for x in found}
    return list(unique.values())


def _leaves(kind: Any) -> Iterator[Any]:
    """The types in an annotation."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Annotated:
        arguments = arguments[:1]
    if not arguments or typing.get_origin(kind) is typing.Literal:
        yield kind
        return
    for inner in arguments:
        yield from _leaves(inner)


class Leaf(NamedTuple):
    """An option of a training."""

    owner: type
    """Config class that has it."""
    path: tuple[str, ...]
    kind: Any
    current: Any


def leaves(config: Any, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every option below a config, nested configs included, whole and option by option."""
    for name, kind in hints_of(type(config)).items():
        value, place = vars(config)[name], (*path, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, Schedule):
            yield from leaves(value, place)
        elif isinstance(value, Mapping) and any(dataclasses.is_dataclass(x) for x in value.values()):
            for key, inner in value.items():
                yield from leaves(inner, (*place, key))
        if name not in ("run_dir", "allow_imports"):
            yield Leaf(type(config), place, kind, value)


# ------------------------------------------------------------------------------------------------------ cases


class Case(NamedTuple):
    """One option of one training, and its value."""

    training: str
    leaf: Leaf
    value: Any

    @property
    def through_yaml(self) -> bool:
        """Whether the value comes in a file; half of them are given in Python, where schedules are no text."""
        schedule = isinstance(self.value, str) and ":" in self.value
        return schedule or zlib.crc32(str(self).encode()) % 2 == 0

    def __str__(self) -> str:
        value = repr(self.value) if len(repr(self.value)) < 60 else repr(self.value)[:57] + "..."
        return f"{self.training}: {'.'.join(self.leaf.path)} = {value}"


HOMES = {"CNNConfig": "pixels", "EncoderConfig": "pixels", "DistributionConfig": "deviation"}
"""Config classes that matter in one training only."""


def every_case(configs: Mapping[str, TrainConfig], seed: int = 0) -> list[Case]:
    """All values of every option; an option of a class that several trainings share is walked in the first."""
    dice = random.Random(seed)
    known: set[tuple[Any, ...]] = set()
    cases = []
    for name, config in configs.items():
        for leaf in leaves(config):
            mark = (leaf.owner, leaf.path[-1], type(leaf.current) if leaf.current else None)
            if mark not in known and HOMES.get(leaf.owner.__name__, name) == name:
                known.add(mark)
                cases += [Case(name, leaf, value) for value in values(leaf.kind, leaf.current, dice)]
    return cases


def run_case(case: Case, config: TrainConfig, folder: Path, usual: str) -> dict[str, str]:
    """The outcome of a case, found in this process: kind, and what is to be said about it."""
    name = case.leaf.path[-1]
    folder.mkdir()
    try:
        if case.through_yaml:
            changed = from_yaml(_yaml_with(config, case, folder), allow=("benchmarks",))
        else:
            changed = _replaced(config, case.leaf.path, case.value)
            changed = dataclasses.replace(changed, run_dir=str(folder / "run"))
        run = train(changed, loggers=[_stop_after_three])
    except (ValueError, CheckpointError) as error:
        if steps_taken or (folder / "run").exists():
            return {"kind": "late", "text": str(error)}
        given = [*case.value][-1] if isinstance(case.value, list | dict) and case.value else case.value
        text = given.partition(">=")[0] if isinstance(given, str) and given.strip() else repr(given)
        named = any(word in str(error) for word in (name, text, *case.leaf.path[-2:-1]))
        return {"kind": "refused" if named else "unnamed", "text": str(error)}
    except ImportError as error:
        return {"kind": "refused" if not steps_taken else "late", "text": str(error)}
    if bad := _gaps(run) - {*usual.split()}:
        return {"kind": "metrics", "text": ", ".join(sorted(bad))}
    if not all(bool(torch.isfinite(x).all()) for x in run.policy.state_dict().values()):
        return {"kind": "weights", "text": "weights are not finite"}
    return {"kind": "trained", "text": ""}


def _stop_after_three(step: int, metrics: Mapping[str, float]) -> None:
    """A training may be as long as one likes: three rows tell enough."""
    global rows
    rows += 1
    if rows == 3:
        raise StopTraining("three rows")


def usual_gaps(config: TrainConfig, folder: Path) -> dict[str, str]:
    """Metrics that are not finite in the unchanged training."""
    return {"gaps": " ".join(_gaps(train(dataclasses.replace(config, run_dir=str(folder)))))}


def _gaps(run: Run) -> set[str]:
    gaps = {key for row in run.metrics for key, x in row.items() if x is None or not math.isfinite(x)}
    return gaps - {"episode/return", "episode/length"}  # of no episode


def _yaml_with(config: TrainConfig, case: Case, folder: Path) -> str:
    plain = to_plain(dataclasses.replace(config, run_dir=str(folder / "run")))
    inner = plain
    for key in case.leaf.path[:-1]:
        inner = inner[key]
    inner[case.leaf.path[-1]] = case.value
    return yaml.dump(plain, Dumper=yaml.CSafeDumper)


def _replaced(config: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    if isinstance(config, Mapping):
        return {**config, path[0]: _replaced(config[path[0]], path[1:], value)}
    return dataclasses.replace(config, **{path[0]: _replaced(vars(config)[path[0]], path[1:], value)})


def forked(works: Sequence[Callable[[], dict[str, str]]], log: Path) -> Iterator[dict[str, str]]:
    """What each of `works` returns, or how it ended. A child process does them, a new one after each that dies."""
    left = list(works)
    while left:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            _work(left, log, writer)
        os.close(writer)
        with os.fdopen(reader) as answers:
            for answer in answers:
                left.pop(0)
                yield json.loads(answer)
        _, status = os.waitpid(child, 0)
        if left:  # it died of the next one
            left.pop(0)
            died = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit code {status}"
            yield {"kind": "hang" if died == "SIGALRM" else "died", "text": died}


class _TooLong(BaseException):
    """The time is over."""


def _too_long(*_: Any) -> None:
    raise _TooLong


def _work(works: Sequence[Callable[[], dict[str, str]]], log: Path, answers: int) -> NoReturn:
    """What a child does: one line of JSON for each of `works`."""
    global steps_taken, rows
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for work in works:
        steps_taken = rows = 0
        signal.signal(signal.SIGPROF, _too_long)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(10 * SECONDS)  # its signal ends the process
        try:
            result = work()
        except _TooLong:
            result = {"kind": "long" if steps_taken > 1000 else "hang", "text": f"{steps_taken} steps so far"}
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            result = {"kind": "late" if steps_taken else "traceback", "text": text}
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        os.write(answers, json.dumps({key: text[:9000] for key, text in result.items()}).encode() + b"\n")
    os._exit(0)


RIGHT = ("refused", "trained", "long")
MEANING = {
    "refused": "refused before the first step with a ValueError that names the option",
    "trained": "trained: metrics and weights are finite",
    "long": f"played as many steps as it was told to, when it was stopped after {SECONDS} s",
    "unnamed": "refused before the first step, but the message does not name the option",
    "late": "refused after work was done",
    "metrics": "trained with metrics that are not finite",
    "weights": "trained to weights that are not finite",
    "traceback": "another exception than ValueError",
    "hang": f"took more than {SECONDS} s of something else",
    "died": "the process died",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign, print findings and a summary, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="how many values, drawn at random; default: all")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after these; the order is random")
    parser.add_argument("--match", default="", help="only cases whose text contains this")
    chosen = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, findings = campaign(
            Path(folder), chosen.seed, chosen.count, chosen.match, functools.partial(print, flush=True), chosen.minutes
        )
    wrong = sum(n for kind, n in counts.items() if kind not in RIGHT)
    summary = f"{sum(counts.values())} values, {wrong} neither refused in time nor trained with finite numbers"
    print(f"{summary}: {dict(counts)} in {time.monotonic() - started:.0f} s")
    if not chosen.match:
        sample = f" --seed {chosen.seed}" + ("" if chosen.count is None else f" --count {chosen.count}")
        sample += "" if chosen.minutes == math.inf else f" --minutes {chosen.minutes:g}"
        rows = [f"| {kind} | {counts[kind]:,} | {text} |" for kind, text in MEANING.items()]
        listed = [f"- `{case}`: {found['kind']}: {found['text'][:200]}" for case, found in findings]
        lines = ["# Options out of range", "", f"`python -m benchmarks.faults.options{sample}`", "", f"{summary}.", ""]
        lines += ["| outcome | values | meaning |", "|---|---|---|", *rows, "", *listed]
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("\n".join(lines).rstrip() + "\n")
    return int(wrong > 0)


def campaign(
    folder: Path, seed: int, count: int | None, match: str, say: Callable[[str], None], minutes: float = math.inf
) -> tuple[Counter[str], list[tuple[Case, dict[str, str]]]]:
    """Outcomes by kind, and the cases with a wrong one."""
    (made,) = forked([lambda: make_inputs(folder)._asdict()], folder / "log")
    if "demonstrations" not in made:
        raise RuntimeError(f"the files to learn from could not be made: {made}")
    inputs = Inputs(**made)
    configs = trainings(inputs)
    cases = [case for case in every_case(configs, seed) if match in str(case)]
    if count is not None or minutes < math.inf:
        cases = random.Random(seed).sample(cases, min(count or len(cases), len(cases)))
    end = time.monotonic() + 60.0 * minutes
    names = sorted({case.training for case in cases})
    gaps = [functools.partial(usual_gaps, configs[name], folder / f"usual-{name}") for name in names]
    usual = dict(zip(names, forked(gaps, folder / "log"), strict=True))
    if failed := {name: found for name, found in usual.items() if "gaps" not in found}:
        raise RuntimeError(f"unchanged trainings failed: {failed}")
    counts: Counter[str] = Counter()
    findings = []
    gc.freeze()
    for start in range(0, len(cases), BATCH):
        if time.monotonic() > end:
            break
        batch = cases[start : start + BATCH]
        with tempfile.TemporaryDirectory(dir=folder) as own:
            works = [
                functools.partial(
                    run_case, case, configs[case.training], Path(own, str(i)), usual[case.training]["gaps"]
                )
                for i, case in enumerate(batch)
            ]
            for case, found in zip(batch, forked(works, folder / "log"), strict=True):
                counts[found["kind"]] += 1
                if found["kind"] not in RIGHT:
                    findings.append((case, found))
                    say(f"{found['kind']:>9}  {case}: {found['text'][:300]}")
        say(f"# {start + len(batch)} of {len(cases)}: {dict(counts)}")
    return counts, findings


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
