"""Every registered part, and small parts for each hook, ready to be put beside PPO in any combination."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core import randomness
from understudy.data.demonstrations.write import write_npz
from understudy.data.motions.files import MotionClip, write_motions
from understudy.data.motions.library import MotionsConfig
from understudy.nn.estimator import EstimatorHeadConfig
from understudy.nn.policy import ActorCritic, PolicyConfig, PolicyOutput
from understudy.parts import (
    AdvisorConfig,
    AirlConfig,
    EstimatorConfig,
    GailConfig,
    MirrorSpec,
    MotionPriorConfig,
    RandomNetworkDistillationConfig,
    ScriptedExpertConfig,
    SymmetryConfig,
    TeacherConfig,
)
from understudy.parts.behavior_cloning import BehaviorCloningConfig
from understudy.parts.shared.discriminator import DiscriminatorConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import Optimizer, OptimizerConfig, gradient_step
from understudy.ppo.part import Labels, Losses, Overrides, Part, PartContext, Rewards, Updates, Weights
from understudy.ppo.ppo import PPO
from understudy.tasks.point_mass import PointMass
from understudy.tools.record import record_episodes
from understudy.types import Metrics

N, T = 8, 8


class GuidedPointMass(PointMass):
    """PointMass whose observation holds what a controller would do, and that it cannot tell far from the goal."""

    def __init__(self, num_envs: int, max_episode_steps: int, device: str = "cpu") -> None:
        super().__init__(num_envs, device=device, max_episode_steps=max_episode_steps)
        groups = {"expert_action": self.action_space, "expert_success": spaces.Discrete(2)}
        self.observation_space = spaces.Dict({**self.observation_space.spaces, **groups})

    def observe(self) -> TensorDict:
        obs = super().observe()
        offset, velocity = obs["policy"].split(2, dim=-1)
        obs["expert_action"] = (-offset - velocity).clamp(-1.0, 1.0)
        obs["expert_success"] = (offset.square().sum(-1) < 2.0).long()
        return obs


class Scripted(Part, Labels, Overrides):
    """Labels with a proportional controller and lets it act in every other environment."""

    def label(self, obs: TensorDict, is_first: Tensor) -> TensorDict:
        expert = (-obs["policy"][:, :2] - obs["policy"][:, 2:]).clamp(-1.0, 1.0)
        noise = torch.rand(N, generator=self.generator, device=expert.device)
        return TensorDict({"action": expert, "noise": noise}, batch_size=[N])

    def override(self, action: Tensor, label: TensorDict) -> tuple[Tensor, Tensor]:
        mask = torch.arange(N, device=action.device) % 2 == 0
        return torch.where(mask.unsqueeze(-1), label["action"], action), mask


class Doubt(Part, Weights):
    """Trusts a sample less the further from the goal it is."""

    def weight(self, batch: TensorDict, out: PolicyOutput) -> Tensor:
        return torch.exp(-batch["obs", "policy"][..., :2].square().sum(-1))


class Imitate(Part, Losses):
    """Pulls the mean to a learned offset of the state, on the minibatch and on rows it draws itself."""

    def __init__(self, context: PartContext) -> None:
        super().__init__(context)
        self.net = nn.Linear(4, 2).to(context.device)
        self.rows = context.num_envs * context.num_steps // 2

    def sample(self, batch: TensorDict) -> TensorDict | None:
        drawn = torch.randn(self.rows // 2, 4, generator=self.generator, device=self.generator.device)
        return TensorDict({"state": drawn, "action": drawn[:, :2]}, batch_size=[len(drawn)])

    def loss(self, policy: ActorCritic, batch: TensorDict, out: PolicyOutput) -> tuple[Tensor, Metrics]:
        own = (out.distribution.mode() - self.net(batch["obs", "policy"])).square().mean()
        extra = (self.net(batch[self.name, "sample", "state"]) - batch[self.name, "sample", "action"]).square().mean()
        return 0.1 * (own + extra), {"own": own.detach()}


class Bonus(Part, Rewards):
    """A constant bonus for slow movement."""

    @property
    def reward_weight(self) -> Tensor:
        return torch.tensor(0.5)

    def reward(self, rollout: TensorDict) -> Tensor:
        return -rollout["obs", "policy"][..., 2:].square().sum(-1)


class Critique(Part, Updates):
    """Fits an own network to the task reward."""

    def __init__(self, context: PartContext) -> None:
        super().__init__(context)
        self.net = nn.Linear(4, 1).to(context.device)
        self.optimizer = Optimizer(self.net.parameters(), OptimizerConfig(learning_rate=1e-2))

    def update(self, policy: ActorCritic, rollout: TensorDict) -> Metrics:
        guess = self.net(rollout["obs", "policy"]).squeeze(-1)
        loss = (guess - rollout["task_reward"]).square().mean()
        gradient_step(self.optimizer, loss)
        return {"loss": loss.detach()}


MIRROR = SymmetryConfig(
    observations={
        "policy": MirrorSpec(permutation=(0, 1, 2, 3), sign=(1.0, -1.0, 1.0, -1.0)),
        "critic": MirrorSpec(permutation=(0, 1, 2, 3, 4, 5), sign=(1.0, -1.0, 1.0, -1.0, 1.0, -1.0)),
    },
    action=MirrorSpec(permutation=(0, 1), sign=(1.0, -1.0)),
    augmentation_coef=0.5,
)
SMALL = DiscriminatorConfig(hidden_sizes=(8,), disc_update_num=2, gradient_penalty=1.0)


@functools.cache
def demonstrations() -> str:
    """A file with episodes of a proportional controller on PointMass."""
    path = Path(tempfile.mkdtemp()) / "point_mass.npz"
    expert = lambda obs, _: (-obs["policy"][:, :2]).clamp(-1.0, 1.0)  # noqa: E731
    episodes = record_episodes(PointMass(4, max_episode_steps=20), expert, 4, seed=0)
    write_npz(path, episodes, {})
    return str(path)


def make_teacher() -> ActorCritic:
    """A teacher with random weights that has a memory."""
    env = PointMass(1)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = PolicyConfig(hidden_sizes=(8,), memory="gru", memory_size=8)
        return ActorCritic(env.observation_space, env.action_space, config)


@functools.cache
def motions() -> str:
    """A file with one motion of PointMass's four features."""
    frames = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).cumsum(0).numpy()
    fields = tuple(f"policy[{i}]" for i in range(4))
    clip = MotionClip(name="drift", fields=fields, frames=frames, frame_time=0.1)
    return str(write_motions(Path(tempfile.mkdtemp()) / "drift.npz", [clip]))


REGISTERED: dict[str, Callable[[PartContext], Part]] = {
    "advisor": AdvisorConfig(alpha=4.0).build,
    "airl": lambda context: AirlConfig(demonstrations=demonstrations(), discriminator=SMALL).build(context),
    "behavior-cloning": lambda context: BehaviorCloningConfig(
        demonstrations=demonstrations(), batch_size=16, sequence_length=4, entropy_coef=0.01, l2_coef=1e-4
    ).build(context),
    "estimator": EstimatorConfig().build,
    "gail": lambda context: GailConfig(demonstrations=demonstrations(), discriminator=SMALL).build(context),
    "motion-prior": lambda context: MotionPriorConfig(
        motions=MotionsConfig(files=(motions(),)), step_time=0.1, frames=3, discriminator=SMALL
    ).build(context),
    "random-network-distillation": RandomNetworkDistillationConfig(num_outputs=4, predictor_hidden_sizes=(8,)).build,
    "scripted-expert": ScriptedExpertConfig(teacher_forcing=0.5).build,
    "symmetry": MIRROR.build,
    "teacher": lambda context: TeacherConfig(
        checkpoints=("teacher",),
        label="sample",
        teacher_forcing=0.5,
        target="kl",
        latents={"actor": "actor"},
        rollouts=1.5,
    ).build(dataclasses.replace(context, load_policy=lambda run: make_teacher())),
}
BUILDERS: dict[str, Callable[[PartContext], Part]] = {
    **REGISTERED,
    "scripted": Scripted,
    "doubt": Doubt,
    "imitate": Imitate,
    "bonus": Bonus,
    "critique": Critique,
}
ESTIMATORS = {"hidden": EstimatorHeadConfig(targets=("critic",), hidden_sizes=(4,), replace_prob=0.5)}
FEED_FORWARD_ONLY = {"airl", "symmetry"}
ALONE = [(name,) for name in BUILDERS]
OVERRIDING = {"scripted", "scripted-expert", "teacher"}  # at most one of them
PAIRS = [pair for pair in itertools.combinations(BUILDERS, 2) if not set(pair) <= OVERRIDING]
ALL = tuple(name for name in BUILDERS if name not in OVERRIDING - {"teacher"})


def make_ppo(
    names: tuple[str, ...], *, capture: str = "trace", memory: str = "none", seed: int = 0, device: str = "cpu"
) -> PPO:
    env = GuidedPointMass(N, max_episode_steps=6, device=device)
    torch.manual_seed(seed)
    estimators = ESTIMATORS if "estimator" in names else {}
    config = PolicyConfig(hidden_sizes=(8,), memory=memory, memory_size=8, estimators=estimators)
    policy = ActorCritic(env.observation_space, env.action_space, config).to(env.device)
    parts: dict[str, Part] = {}
    for name in names:
        part_seed = randomness.mix(seed, name)
        context = PartContext.of(env, policy, name=name, num_steps=T, seed=part_seed)
        torch.manual_seed(part_seed)
        parts[name] = BUILDERS[name](context).to(env.device)
    ppo = PPOConfig(num_steps=T, epochs=2, minibatches=2, capture=capture, entropy_coef=0.01, warmup_steps=4)
    torch.manual_seed(seed)
    return PPO(env, policy, ppo, parts, seed=seed, total_steps=1000)


def weights(ppo: PPO) -> Tensor:
    own = [p.detach().flatten() for part in ppo.parts.values() for p in part.parameters()]
    return torch.cat([ppo.optimizer.flat, *own])


def timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if not k.startswith("time/") and v == v}


def run(ppo: PPO, iterations: int) -> dict[str, float]:
    for _ in range(iterations):
        metrics = ppo.iterate()
    return timeless(metrics)
