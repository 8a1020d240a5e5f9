"""What the tests of several ranks share: one training of 2N environments, whole or as two ranks of N each."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from tensordict import TensorDict
from tests.interop.rsl_rl_simulator import Simulator
from tests.interop.test_rsl_rl_runner import SIZES, train_cfg
from tests.parts import contract
from torch import Tensor

from understudy.core import ranks
from understudy.core.capture import CaptureMode
from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.data.motions.library import MotionLibrary, MotionsConfig
from understudy.envs.base import Step
from understudy.envs.registry import EnvConfig
from understudy.interop.rsl_rl import Runner
from understudy.nn.heads import ActionFamily
from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.parts import (
    AdvisorConfig,
    AirlConfig,
    EstimatorConfig,
    GailConfig,
    MotionPriorConfig,
    RandomNetworkDistillationConfig,
    ScriptedExpertConfig,
    TeacherConfig,
)
from understudy.parts.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from understudy.parts.shared.discriminator import Discriminator, DiscriminatorConfig
from understudy.parts.shared.teacher_forcing import TeacherForcing
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.part import Part, PartContext
from understudy.ppo.ppo import PPO
from understudy.runs.config import (
    CheckpointConfig,
    DaggerConfig,
    EvaluationConfig,
    LoggingConfig,
    OfflineConfig,
    TrainConfig,
)
from understudy.tasks.point_mass import PointMass
from understudy.tools.evaluate import evaluate_together
from understudy.tools.play import evaluation_seed
from understudy.training.loop import resume, train
from understudy.training.offline import OfflineTraining

N, T, ITERATIONS = 6, 8, 5
STEPS = 2 * 4 * 8
"""Environment steps of an iteration of the trainings, over both ranks."""
BATCH = 16  # demonstrations that a rank draws for a minibatch

Build = Callable[[PartContext, int], Part]
"""From the context, and how many ranks' demonstrations to draw at once."""


class Whole(contract.GuidedPointMass):
    """GuidedPointMass, whose environment 1 gives a broken reward now and then: the masks of two ranks differ."""

    count = 0

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        self.count += 1
        if self.count % 5 == 4:
            step.reward[1] = torch.nan
        return step


class Half:
    """Environments [first, first + N) of a `Whole`, whose random numbers are those of the whole."""

    def __init__(self, env: Whole, rows: slice) -> None:
        self.env, self.rows, self.num_envs, self.device = env, rows, N, env.device
        self.observation_space, self.action_space = env.observation_space, env.action_space

    def reset(self, seed: int | None = None) -> TensorDict:
        return self.env.reset(seed)[self.rows]

    def step(self, action: Tensor) -> Step:
        whole = torch.zeros(self.env.num_envs, *action.shape[1:])
        whole[self.rows] = action
        step, rows = self.env.step(whole), self.rows
        parts: Any = (x[rows] for x in step[:5] if x is not None)
        return Step(*parts, {})

    def close(self) -> None:
        pass


ADVERSARY = DiscriminatorConfig(hidden_sizes=(8,), disc_update_num=1, gradient_penalty=1.0, penalty_on="expert")

PARTS: dict[str, Build] = {
    "advisor": lambda context, size: AdvisorConfig(
        alpha=4.0, stage=0.5, demonstrations=contract.demonstrations(), batch_size=BATCH * size, sequence_length=4
    ).build(context),
    "airl": lambda context, size: AirlConfig(
        demonstrations=contract.demonstrations(), discriminator=ADVERSARY, center_reward=True
    ).build(context),
    "behavior-cloning": lambda context, size: BehaviorCloningConfig(
        demonstrations=contract.demonstrations(), batch_size=BATCH * size, sequence_length=4, l2_coef=1e-4
    ).build(context),
    "estimator": lambda context, size: EstimatorConfig().build(context),
    "gail": lambda context, size: GailConfig(
        demonstrations=contract.demonstrations(), discriminator=ADVERSARY, normalization="own"
    ).build(context),
    "motion-prior": lambda context, size: MotionPriorConfig(
        motions=MotionsConfig(files=(contract.motions(),)), step_time=0.1, frames=3, discriminator=ADVERSARY
    ).build(context),
    "random-network-distillation": lambda context, size: RandomNetworkDistillationConfig(
        num_outputs=4, predictor_hidden_sizes=(8,), minibatches=1
    ).build(context),
    "scripted-expert": lambda context, size: ScriptedExpertConfig(teacher_forcing=0.5).build(context),
    "symmetry": lambda context, size: contract.MIRROR.build(context),
    "teacher": lambda context, size: TeacherConfig(
        checkpoints=("teacher",), teacher_forcing=0.5, target="kl", latents={"actor": "actor"}
    ).build(dataclasses.replace(context, load_policy=lambda run: contract.make_teacher())),
}
TOGETHER = tuple(name for name in PARTS if name != "scripted-expert")

CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "plain": ((), {}, {}),
    # a divergence of which one rank's own lies on the other side of the limit
    "kl": ((), {"desired_kl": 1.66e-3, "epochs": 4, "optimizer": OptimizerConfig(learning_rate=1e-3)}, {}),
    "stops": ((), {"target_kl": 2.3213e-4, "epochs": 6, "optimizer": OptimizerConfig(learning_rate=1e-3)}, {}),
    "statistics": (
        (),
        {
            **{"reward_normalization": True, "value_normalization": "standardize", "recompute_advantage": True},
            **{"advantage_normalization": "rollout", "value_clip": 0.2, "clip_apart": True},
        },
        {},
    ),
    "lstm": ((), {}, {"memory": "lstm"}),
    "offline": (("behavior-cloning",), {}, {}),
    "scripted-expert": (("scripted-expert",), {}, {}),  # one may override: it cannot be beside the teacher
    "together": (TOGETHER, {}, {}),
    "together, lstm": (tuple(n for n in TOGETHER if n not in contract.FEED_FORWARD_ONLY), {}, {"memory": "lstm"}),
}
CASES |= {f"{name}, traced float32": CASES[name] for name in ("plain", "together")}
"""Parts, options of PPO and of the policy; eager and in float64 unless they say otherwise."""


@contextmanager
def precision(case: str) -> Iterator[None]:
    """All numbers in float64, the library's `.float()` included, unless the case says otherwise."""
    for make_file in (contract.demonstrations, contract.motions):
        make_file()  # once per process, so never in float64: a process that ran other tests has the float32 ones
    if case.endswith("float32"):
        yield
        return
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(Tensor, "float", Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def make(case: str, rank: int, size: int) -> PPO:
    """The training of a case, of one rank with 2N environments or one of two with N."""
    names, options, chosen = CASES[case]
    whole = Whole(2 * N, max_episode_steps=6)
    env: Any = whole if size == 1 else Half(whole, slice(rank * N, rank * N + N))
    torch.manual_seed(rank)  # rank 0's weights count
    estimators = contract.ESTIMATORS if "estimator" in names else {}
    policy = ActorCritic(
        env.observation_space,
        env.action_space,
        PolicyConfig(hidden_sizes=(8,), memory_size=8, estimators=estimators, **chosen),
    )
    parts = {}
    for name in names:
        context = PartContext.of(env, policy, name=name, num_steps=T, seed=1)
        parts[name] = PARTS[name](context, 2 // size)
    capture: CaptureMode = "trace" if "traced" in case else "eager"
    options = {"epochs": 2, **options}
    config = PPOConfig(num_steps=T, minibatches=1, entropy_coef=0.01, warmup_steps=4, capture=capture, **options)
    return PPO(env, policy, config, parts, total_steps=10_000)


def cloned(ppo: PPO) -> dict[str, float]:
    """The metrics of the last of some epochs on demonstrations, each with one minibatch."""
    part = ppo.parts["behavior-cloning"]
    assert isinstance(part, BehaviorCloning)
    part.config = dataclasses.replace(part.config, batch_size=10_000)
    even = part.demonstrations.num_transitions // 2 * 2
    part.demonstrations.rows = part.demonstrations.rows[:even]
    offline = OfflineTraining(ppo, OfflineConfig(epochs=ITERATIONS, validation_fraction=0.0))
    for _ in range(ITERATIONS):
        metrics = offline.epoch()
    assert metrics["offline/steps"] == 1.0
    return metrics


def outcome(case: str, rank: int, size: int) -> dict[str, Tensor]:
    """What all ranks have in common, after some iterations."""
    contract.demonstrations()  # recorded before the precision changes
    # a permutation of more rows draws more numbers
    in_order = mock.patch.object(Discriminator, "_permutation", lambda self, n: torch.arange(n))
    with precision(case), in_order:
        ppo = make(case, rank, size)
        if "offline" in case:
            metrics = cloned(ppo)
        else:
            metrics = [ppo.iterate() for _ in range(ITERATIONS)][-1]
    found = {"optimizer": ppo.optimizer.flat, "rate": ppo.optimizer.learning_rate.value}
    for name, module in {"policy": ppo.policy, **ppo.parts}.items():
        found |= {f"{name}/{key}": x for key, x in module.named_parameters()}
    for normalizer in ppo.policy.normalizers.values():
        found |= {"mean": normalizer.mean, "var": normalizer.var, "count": normalizer.count}
    found |= {"rewards": ppo.reward_scaler.statistics.var, "values": ppo.value_normalizer.statistics.var}
    for name in {"reward/task", "ppo/loss", "ppo/skipped_steps", "offline/loss"} & metrics.keys():
        found[f"metric {name}"] = torch.tensor(metrics[name])
    return {**{name: x.detach().clone() for name, x in found.items()}, "env_steps": torch.tensor(ppo.env_steps)}


def as_one(rank: int) -> ExitStack:
    """Let this rank draw its half of the numbers that one process would draw for both."""

    def half(function: Any, dim: int, *which: int) -> Any:
        """`function` with the arguments `which`, sizes, doubled, and this rank's half of dimension `dim`."""

        def draw(self: Any, *given: Any, **rest: Any) -> Any:
            doubled = [2 * x if i in which else x for i, x in enumerate(given)]
            drawn = function(self, *doubled, **rest)
            size = drawn.shape[dim] // 2
            return drawn[(slice(None),) * dim + (slice(rank * size, rank * size + size),)]

        return draw

    def force(self: TeacherForcing, is_first: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(2 * N, generator=generator)[rank * N : rank * N + N] < self.probability()
        self.forced.copy_(torch.where(is_first, drawn, self.forced) if self.unit == "episode" else drawn)
        return self.forced

    replace = ActorCritic.draw_replacements
    stack = ExitStack()
    for place, name, new in (
        (ranks, "own_seed", lambda seed: seed),
        (ActionFamily, "noise", half(ActionFamily.noise, 1, 1)),
        (Demonstrations, "sample", half(Demonstrations.sample, 0, 0)),
        (Demonstrations, "sequences", half(Demonstrations.sequences, 1, 1)),
        (MotionLibrary, "sample", half(MotionLibrary.sample, 0, 0)),
        (TeacherForcing, "draw", force),
        (
            ActorCritic,
            "draw_replacements",
            lambda self, size, g: replace(self, (size[0], 2 * N), g)[:, rank * N : rank * N + N],
        ),
    ):
        stack.enter_context(mock.patch.object(place, name, new))
    return stack


def settings(folder: Path, name: str, **changes: Any) -> TrainConfig:
    """A short training of 4 environments for each rank, with GAIL and a memory: everything has state."""
    gail = GailConfig(
        demonstrations=str(folder / "expert.npz"), discriminator=dataclasses.replace(ADVERSARY, replay_size=64)
    )
    small = TrainConfig(
        total_steps=4 * STEPS,
        run_dir=str(folder / name),
        env=EnvConfig(id="PointMass", num_envs=4),
        policy=PolicyConfig(hidden_sizes=(8,), memory="gru", memory_size=8),
        ppo=PPOConfig(num_steps=8, epochs=1, minibatches=2, warmup_steps=0, capture="eager", reward_normalization=True),
        parts={"gail": gail},
        evaluation=EvaluationConfig(episodes=3),
        checkpoint=CheckpointConfig(interval=2 * STEPS),
        logging=LoggingConfig(console=False, tensorboard=False),
    )
    return dataclasses.replace(small, **changes)


def steer(obs: Any, is_first: Any = None) -> Tensor:
    """PointMass: accelerate towards the goal and brake."""
    return (-3.0 * obs["policy"][:, :2] - 2.0 * obs["policy"][:, 2:]).clamp(-1.0, 1.0)


def evaluated(own: PointMass) -> dict[str, Any]:
    """Evaluations of one untrained policy by all ranks, as plain data: on rank 0 the result, elsewhere None."""
    found: dict[str, Any] = {}
    for name, env, episodes in (("copies", EnvConfig(id="CartPole-v1"), 5), ("few", EnvConfig(id="CartPole-v1"), 1)):
        with contextlib.closing(env.make()) as made:
            torch.manual_seed(0)
            policy = ActorCritic(made.observation_space, made.action_space, PolicyConfig(hidden_sizes=(8,)))
        found[name] = evaluate_together(policy, env, episodes=episodes, seed=3, deterministic=True)
    torch.manual_seed(0)
    policy = ActorCritic(own.observation_space, own.action_space, PolicyConfig(hidden_sizes=(8,)))
    found["own"] = evaluate_together(policy, own, episodes=5, seed=3, deterministic=False)
    return {name: None if result is None else list(result.returns) for name, result in found.items()}


class Signalled(PointMass):
    """Sends its process a SIGTERM in the second iteration."""

    def step(self, action: Tensor) -> Step:
        self.count = vars(self).get("count", 0) + 1
        if self.count == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(action)


def trainings(rank: int, folder: Path) -> dict[str, Any]:
    """Runs of both ranks, and what this one was told at their ends."""
    found: dict[str, Any] = {}
    straight = train(settings(folder, "straight"))
    found["steps"] = straight.env_steps
    if rank == 0:
        shutil.copytree(straight.path, folder / "again")
    ranks.shared(None)
    again = resume(folder / "again" / "checkpoints" / f"step_{2 * STEPS:012d}.pt")
    found["again"] = (again.env_steps, again.evaluation == straight.evaluation)
    found["shared"] = evaluated(PointMass(2))
    grown = resume(folder / "alone", total_steps=4 * STEPS)  # one process began it
    found["grown"] = (grown.env_steps, grown.policy.head.std.log_std.tolist())
    env = Signalled(4) if rank == 1 else PointMass(4)
    stopped = train(settings(folder, "signalled"), env=env)
    found["signalled"] = (stopped.env_steps, stopped.stopped_by)
    stopped = train(settings(folder, "stops", stop_when="ppo/kl<=100"))
    found["stops"] = (stopped.env_steps, stopped.stopped_by)
    cloning = BehaviorCloningConfig(batch_size=32)
    rounds = DaggerConfig(rounds=1, episodes_per_round=2, steps_per_round=64)
    offline = OfflineConfig(epochs=2, validation_fraction=0.5, dagger=rounds)
    asking = settings(folder, "asking", parts={"bc": cloning}, offline=offline, policy=PolicyConfig(hidden_sizes=(8,)))
    found["asking"] = train(asking, expert=steer).env_steps
    for name, options in {"other": {"seed": rank}, "object": {}}.items():
        try:
            train(settings(folder, name, **options), env=PointMass(4) if (name, rank) == ("object", 1) else None)
        except ValueError as error:
            found[name] = str(error)
    runner = Runner(Simulator(4, SIZES, rank), train_cfg(seed=rank), log_dir=str(folder / f"runner{rank}"))
    runner.learn(2, init_at_random_ep_len=True)
    runner.load(str(folder / "runner0" / "model_1.pt"))
    runner.learn(1)
    found["runner"] = (runner.alg.ppo.env_steps, float(runner.alg.ppo.optimizer.flat.double().sum()))
    return found


def meet(rank: int, folder: Path, store: str) -> None:
    """Join the other process."""
    torch.set_num_threads(1)
    place = f"file://{folder / store}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=timedelta(seconds=60))


def prove(rank: int, folder: str) -> None:
    """In one of two processes: every case, and the trainings, into files."""
    place = Path(folder)
    meet(rank, place, "store")
    with as_one(rank):
        torch.save({case: outcome(case, rank, 2) for case in CASES}, place / f"{rank}.pt")
    (place / f"{rank}.json").write_text(json.dumps(trainings(rank, place)))
    dist.destroy_process_group()


def be_killed(rank: int, folder: str) -> None:
    """A training whose rank 1 dies in the fourth iteration; leaves what rank 0 is told."""
    place, step, count = Path(folder), PointMass.step, itertools.count(1)

    def last_step(self: PointMass, action: Tensor) -> Step:
        if next(count) == 3 * 8 + 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, action)

    meet(rank, place, "killed-store")
    with mock.patch.object(PointMass, "step", last_step if rank == 1 else step):
        try:
            train(settings(place, "killed"))
        except ranks.RankError as error:
            (place / "killed.txt").write_text("\n".join([str(error), *error.__notes__]))


def raise_in_share(rank: int, folder: str) -> None:
    """A training whose rank 1 raises in its share of the evaluation; leaves what rank 0 is told."""
    place = Path(folder)
    meet(rank, place, "raised-store")

    class Breaks(PointMass):
        def reset(self, seed: int | None = None) -> TensorDict:
            if seed == evaluation_seed(0) + 4:
                raise OSError("the lights went out")
            return super().reset(seed)

    try:
        train(settings(place, "raised", total_steps=STEPS, evaluation=EvaluationConfig(episodes=3)), env=Breaks(4))
    except Exception as error:  # of another rank, or its own
        (place / f"raised{rank}.txt").write_text(str(error))


def start_again(rank: int, folder: str, name: str = "killed") -> None:
    """The same training, as torchrun starts it again."""
    place = Path(folder)
    meet(rank, place, f"{name}-again")
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    train(settings(place, name))
    dist.destroy_process_group()
