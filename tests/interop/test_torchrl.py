"""Parts in a TensorDict loop: they compute as inside `us.PPO`, on modules that stay the user's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
)
from tests.parts.harness import collected, record, steer
from torch import Tensor, nn
from torch import distributions as D

import understudy as us
from understudy.core import randomness
from understudy.data.motions.files import MotionClip, write_motions
from understudy.interop.torchrl import PartLoss, RewardTransform
from understudy.interop.torchrl.actions import as_distribution
from understudy.nn.distributions import Bernoulli, Categorical, DiagGaussian
from understudy.ppo.minibatch import nest
from understudy.ppo.part import PartContext
from understudy.ppo.update import MinibatchLoss
from understudy.tasks.point_mass import PointMass

T, N = 6, 4
SMALL = us.DiscriminatorConfig(hidden_sizes=(8,), disc_update_num=2)


@pytest.fixture
def demonstrations(tmp_path: Path) -> str:
    return str(record(PointMass(4, max_episode_steps=30), steer, 8, tmp_path / "point_mass.npz"))


class Labelled(PointMass):
    """PointMass that says what its expert does, in three of four environments."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        groups = {"expert_action": self.action_space, "expert_success": spaces.Discrete(2)}
        self.observation_space = spaces.Dict({**self.observation_space.spaces, **groups})

    def with_label(self, obs: TensorDict) -> TensorDict:
        knows = (torch.arange(self.num_envs) % 4 > 0).long()
        return obs.copy().update({"expert_action": steer(obs), "expert_success": knows})

    def reset(self, seed: int | None = None) -> TensorDict:
        return self.with_label(super().reset(seed))

    def step(self, action: Tensor) -> Any:
        step = super().step(action)
        final = None if step.final_obs is None else self.with_label(step.final_obs)
        return step._replace(obs=self.with_label(step.obs), final_obs=final)


def beside(
    config: Any, name: str = "part", env: Any = None, memory: str = "none", **ppo: Any
) -> tuple[us.PPO, Any, TensorDict]:
    """PPO with an unnormalised policy and the part, and its rollout."""
    env = env or PointMass(N)
    torch.manual_seed(0)
    options: dict[str, Any] = {"hidden_sizes": (8,), "normalize_observations": False, "critic_groups": ("policy",)}
    options |= {"memory": memory, "memory_size": 5}
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(**options, action_bound="none"))
    context = PartContext.of(
        env, policy, name=name, num_steps=T, gamma=0.9, seed=randomness.mix(0, f"part/{name}"), load_policy=us.load
    )
    torch.manual_seed(context.seed)
    part = config.build(context)
    core = us.PPOConfig(num_steps=T, gamma=0.9, minibatches=1, epochs=1, warmup_steps=0, capture="eager", **ppo)
    ppo_ = us.PPO(env, policy, core, {name: part}, seed=0, total_steps=1000)
    return ppo_, part, collected(ppo_)


class Latent(nn.Module):
    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.run = policy.run_actor
        of_head = {id(p) for p in policy.head.parameters()}
        self.weights = nn.ParameterList(p for p in policy.actor_parameters() if id(p) not in of_head)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(TensorDict({"policy": x}, batch_size=x.shape[:-1]))[2]["actor"]


class Head(nn.Module):
    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.head = policy.head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        distribution = self.head(x)
        return distribution.mean, distribution.log_std.exp().expand_as(distribution.mean)


class Memory(TensorDictModuleBase):
    """What reads a memory of a policy, as TorchRL's modules do: columns [B, T], and the state at their first step."""

    in_keys, out_keys = ["observation", "memory", "is_init"], ["hidden", ("next", "memory")]

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.latent = Latent(policy)  # its weights

    def forward(self, batch: TensorDict) -> TensorDict:
        x, first = batch["observation"].transpose(0, 1), batch["is_init"].squeeze(-1).transpose(0, 1)
        _, state, latents = self.latent.run(TensorDict({"policy": x}), batch["memory"][:, 0], first)
        batch["hidden"] = latents["actor"].transpose(0, 1)
        batch["next", "memory"] = torch.zeros_like(batch["memory"])
        batch["next", "memory"][:, -1] = state
        return batch


def as_modules(policy: Any) -> tuple[Any, Any]:
    """The same policy as a user of TensorDicts has it: the networks themselves, in modules."""
    last = ProbabilisticTensorDictModule(
        in_keys=["loc", "scale"],
        out_keys=["action"],
        distribution_class=lambda loc, scale: D.Independent(D.Normal(loc, scale), 1),
        return_log_prob=True,
    )
    trunk: Any = TensorDictModule(Latent(policy), in_keys=["observation"], out_keys=["hidden"])
    head = TensorDictModule(Head(policy), in_keys=["hidden"], out_keys=["loc", "scale"])

    def value(x: Tensor) -> Tensor:
        return policy.value(TensorDict({"policy": x}, batch_size=x.shape[:-1])).unsqueeze(-1)

    def value_of_columns(x: Tensor, state: Tensor, first: Tensor) -> Tensor:
        obs = TensorDict({"policy": x.transpose(0, 1)})
        return policy.value(obs, state[:, 0], first.squeeze(-1).transpose(0, 1)).transpose(0, 1).unsqueeze(-1)

    critic = TensorDictModule(value, in_keys=["observation"], out_keys=["state_value"])
    if policy.recurrent:
        trunk = Memory(policy)
        critic = TensorDictModule(value_of_columns, in_keys=trunk.in_keys, out_keys=["state_value"])
    return ProbabilisticTensorDictSequential(trunk, head, last), critic


def of_torchrl(rollout: TensorDict) -> TensorDict:
    """Our rollout `[T, N]` in TorchRL's words, `[N, T]`."""
    rows = rollout.transpose(0, 1)

    def column(x: Tensor) -> Tensor:
        return x.unsqueeze(-1).contiguous()

    out = TensorDict({"observation": rows["obs", "policy"], "action": rows["action"]}, batch_size=rows.batch_size)
    for name in ("expert_action", "expert_success"):
        if name in rows["obs"].keys():  # noqa: SIM118
            out[name] = rows["obs", name].bool() if name == "expert_success" else rows["obs", name]
    if "state" in rows.keys():  # noqa: SIM118
        out["memory"], out["is_init"] = rows["state"], column(rows["is_first"])
    out["action_log_prob"] = rows["log_prob"]
    for name in ("advantage", "value_target"):
        out[name] = column(rows[name])
    out["state_value"] = column(rows["value"])
    after = {"reward": column(rows["task_reward"]), "terminated": column(rows["terminated"])}
    after["done"] = column(rows["terminated"] | rows["truncated"])
    next_obs = rows["next_obs", "policy"] if "next_obs" in rows.keys() else rows["obs", "policy"]  # noqa: SIM118
    out["next"] = TensorDict({**after, "observation": next_obs}, batch_size=rows.batch_size)
    return out.clone()


def gradients(policy: Any, loss: Tensor) -> list[Tensor]:
    policy.zero_grad()
    loss.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in policy.parameters()]


# ---- losses and weights


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run of a policy that was hardly trained."""
    config = us.TrainConfig(
        env=us.EnvConfig(id="PointMass", num_envs=4),
        policy=us.PolicyConfig(hidden_sizes=(8,)),
        ppo=us.PPOConfig(num_steps=8, minibatches=1, epochs=1),
        total_steps=64,
        run_dir=str(tmp_path_factory.mktemp("teacher") / "run"),
    )
    return str(us.train(config).path)


MIRROR = us.parts.MirrorSpec(permutation=(1, 0), sign=(1.0, 1.0))
LOSSES: dict[str, Any] = {
    "cloning": lambda demos, _: us.parts.BehaviorCloningConfig(demonstrations=demos, batch_size=32, entropy_coef=0.1),
    "likelihood": lambda demos, _: us.parts.BehaviorCloningConfig(
        demonstrations=demos, batch_size=32, loss="nll", l2_coef=0.1
    ),
    "advisor": lambda *_: us.parts.AdvisorConfig(alpha=2.0, bound=0.0),
    "advisor_and_demonstrations": lambda demos, _: us.parts.AdvisorConfig(
        alpha=2.0, distance="log_prob", demonstrations=demos, batch_size=16, sequence_length=8, stage=0.25
    ),
    "scripted": lambda *_: us.parts.ScriptedExpertConfig(imitation_coef=0.5),
    "symmetry": lambda *_: us.parts.SymmetryConfig(
        observations={"policy": us.parts.MirrorSpec(permutation=(1, 0, 3, 2), sign=(1.0,) * 4)},
        action=MIRROR,
        augmentation_coef=0.5,
    ),
    "teacher": lambda _, run: us.parts.TeacherConfig(checkpoints=(run,), target="mse_sum", coef=0.7),
    "teacher_likelihood": lambda _, run: us.parts.TeacherConfig(checkpoints=(run,), target="max_log_prob"),
    "teacher_rollouts": lambda _, run: us.parts.TeacherConfig(checkpoints=(run,), rollouts=2.0),
}


WITH_A_MEMORY: dict[str, Any] = {
    **{kind: config for kind, config in LOSSES.items() if kind != "symmetry"},
    "advisor_smoothed": lambda *_: us.parts.AdvisorConfig(bound=0.0, smooth_expert_weight_decay=0.5),
    "teacher_states": lambda _, run: us.parts.TeacherConfig(checkpoints=(run,), resample_state_prob=0.5),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_a_part_computes_as_inside_ppo(kind: str, demonstrations: str, teacher: str) -> None:
    """Loss, weights, metrics and gradients on one rollout, drawn numbers included."""
    same_as_in_ppo(LOSSES[kind](demonstrations, teacher), "none", "advisor" in kind)


@pytest.mark.parametrize("kind", WITH_A_MEMORY)
def test_a_part_computes_as_inside_ppo_with_a_memory(kind: str, demonstrations: str, teacher: str) -> None:
    """The same on whole columns, with episodes that begin in between and states from collection."""
    memory = "lstm" if "advisor" in kind else "gru"
    same_as_in_ppo(WITH_A_MEMORY[kind](demonstrations, teacher), memory, "advisor" in kind)


def same_as_in_ppo(config: Any, memory: str, with_latent: bool) -> None:
    env = Labelled(N)
    env.max_episode_steps = 4 if memory != "none" else env.max_episode_steps
    ppo, part, rollout = beside(config, "part", env, memory)
    assert memory == "none" or rollout["is_first"][1:].any()
    actor, critic = as_modules(ppo.policy)
    theirs = of_torchrl(rollout)
    latent = {"latent_key": "hidden"} if with_latent else {}
    ours = PartLoss(config, actor, critic, name="part", action_space=ppo.policy.action_space, **latent)
    ours.prepare(theirs)
    if isinstance(part, us.Updates):
        part.update(ppo.policy, rollout)
    ours.part.generator.set_state(part.generator.get_state())  # which has labelled more
    recurrent = memory != "none"
    (batch,) = (nest(batch, recurrent) for batch in ppo.minibatches.epoch(rollout, masked=False))
    output = ppo.policy(batch["obs"], *((batch["state"][0], batch["is_first"]) if recurrent else ()))
    loss, metrics = part.loss(ppo.policy, batch, output)
    expected = gradients(ppo.policy, loss)
    # the minibatch is a shuffle of the rollout: bring its rows, or its columns, into that order
    rows = theirs if recurrent else theirs.reshape(-1)
    known, drawn = rows["observation"], batch["obs", "policy"]
    known, drawn = (known[:, 0], drawn[0]) if recurrent else (known, drawn)
    order = (known.unsqueeze(0) == drawn.unsqueeze(1)).all(-1).float().argmax(1)
    shuffled = rows[order]
    for name in ("advantage", "value_target"):
        x = batch[name].transpose(0, 1) if recurrent else batch[name]
        shuffled[name] = x.unsqueeze(-1).contiguous()
    out = ours(shuffled)
    torch.testing.assert_close(out["loss_part"], loss, rtol=1e-6, atol=1e-6)
    for slope, other in zip(gradients(ppo.policy, out["loss_part"]), expected):
        torch.testing.assert_close(slope, other, rtol=1e-5, atol=1e-6)
    for name, x in metrics.items():
        torch.testing.assert_close(out[f"part/{name}"], x, rtol=1e-5, atol=1e-6)
    assert any(bool(x.any()) for x in expected)
    if isinstance(part, us.Weights):
        weight = out["weight"].transpose(0, 1) if recurrent else out["weight"]
        torch.testing.assert_close(weight, part.weight(batch, output), rtol=1e-5, atol=1e-6)
        assert 0.0 < float(out["weight"].mean()) < 1.0


def test_a_memory_takes_whole_columns(demonstrations: str) -> None:
    """Parts of columns go on from the state at their first step; steps torn out of them are refused."""
    ppo, _, rollout = beside(us.parts.ScriptedExpertConfig(), env=Labelled(N), memory="gru")
    actor, critic = as_modules(ppo.policy)
    theirs = of_torchrl(rollout)
    loss = PartLoss(us.parts.ScriptedExpertConfig(), actor, critic)
    loss.prepare(theirs)
    assert loss.policy.state_size == ppo.policy.state_size
    before = TensorDict({"policy": rollout["obs", "policy"][:2]})
    _, state, _ = ppo.policy.run_actor(before, rollout["state"][0], rollout["is_first"][:2])
    theirs["memory"][:, 2] = state.detach()
    whole = loss(theirs)["loss_scripted_expert"]
    pieces = [loss(theirs[:, cut])["loss_scripted_expert"] for cut in (slice(0, 2), slice(2, None))]
    counts = [float(theirs["expert_success"][:, cut].sum()) for cut in (slice(0, 2), slice(2, None))]
    torch.testing.assert_close(sum(x * n for x, n in zip(pieces, counts)) / sum(counts), whole)
    with pytest.raises(ValueError, match=r"whole columns \[B, T\] of a rollout, not \(24,\): draw minibatches of env"):
        loss(theirs.reshape(-1))
    for missing in ("memory", "is_init"):
        with pytest.raises(ValueError, match=rf"no '{missing}'.*make_tensordict_primer\(\).*InitTracker"):
            PartLoss(us.parts.ScriptedExpertConfig(), actor, critic, like=theirs.exclude(missing))
    with pytest.raises(ValueError, match="a memory follows 'observation' in the actor"):
        PartLoss(us.parts.AdvisorConfig(), actor, critic, latent_key="observation", like=theirs)
    one = PartLoss(us.parts.ScriptedExpertConfig(), actor, critic)
    assert one(one.prepare(theirs[0].clone()))["loss_scripted_expert"].isfinite()  # of one environment, [T]
    config = us.parts.SymmetryConfig(observations={"policy": MIRROR}, action=MIRROR)
    with pytest.raises(ValueError, match="symmetry needs a feed-forward policy"):
        PartLoss(config, actor, critic, like=theirs)
    with pytest.raises(ValueError, match="AIRL needs a feed-forward policy"):
        RewardTransform(REWARDS["airl"](demonstrations), actor, like=theirs)


def test_a_reward_beside_a_memory(demonstrations: str) -> None:
    config = REWARDS["gail"](demonstrations)  # its noise on the expert's actions needs the policy's distribution
    ppo, part, rollout = beside(config, memory="lstm")
    actor, critic = as_modules(ppo.policy)
    transform = RewardTransform(config, actor, critic, name="part", gamma=0.9, action_space=ppo.policy.action_space)
    theirs = transform(of_torchrl(rollout))
    with torch.no_grad():
        reward = part.reward(rollout)
    metrics = part.update(ppo.policy, rollout)
    found = theirs["next", "reward_part"].squeeze(-1).transpose(0, 1)
    torch.testing.assert_close(found, reward, rtol=1e-5, atol=1e-6)
    for name, x in metrics.items():
        torch.testing.assert_close(transform.metrics[name], x, rtol=1e-4, atol=1e-6)


def test_an_auxiliary_head_is_the_actor_s_and_learns_alone() -> None:
    ppo, _, rollout = beside(us.parts.AdvisorConfig(), env=Labelled(N))
    actor, critic = as_modules(ppo.policy)
    loss = PartLoss(us.parts.AdvisorConfig(), actor, critic, latent_key="hidden", like=of_torchrl(rollout))
    own = [*loss.part.parameters()]
    assert [p.shape for p in own] == [p.shape for p in ppo.policy.head.parameters()]
    assert not {id(p) for p in own} & {id(p) for p in ppo.policy.parameters()}
    assert {id(p) for p in own} <= {id(p) for p in loss.parameters()}
    fresh = PartLoss(
        us.parts.AdvisorConfig(aux_init="orthogonal"), actor, critic, latent_key="hidden", like=of_torchrl(rollout)
    )
    assert fresh(of_torchrl(rollout))["loss_advisor"].isfinite()
    with pytest.raises(ValueError, match=r"latent_key=, the actor's are \['hidden', 'loc', 'scale'"):
        PartLoss(us.parts.AdvisorConfig(), actor, critic, like=of_torchrl(rollout))
    with pytest.raises(ValueError, match="no module of the actor reads 'loc_'"):
        PartLoss(us.parts.AdvisorConfig(), actor, critic, latent_key="loc_", like=of_torchrl(rollout))


def test_weights_multiply_the_losses_of_every_sample() -> None:
    """The docs' way: `ClipPPOLoss(reduction="none")` and a `Weights` part give PPO's own loss."""
    config = us.parts.AdvisorConfig(alpha=2.0, bound=0.0)
    ppo, _, rollout = beside(config, env=Labelled(N), entropy_coef=0.03, value_coef=0.5)
    (batch,) = ppo.minibatches.epoch(rollout, masked=False)
    actor, critic = as_modules(ppo.policy)
    theirs = of_torchrl(rollout)
    advise = PartLoss(config, actor, critic, name="part", latent_key="hidden", like=theirs)
    loss = us.ClipPPOLoss(
        actor, critic, reduction="none", entropy_coef=0.03, critic_coef=0.5, loss_critic_type="l2",
        normalize_advantage=True,
    )  # fmt: skip
    flat = theirs.reshape(-1)
    mine, weighed = loss(flat), advise(flat)
    policy = mine["loss_objective"] + mine["loss_entropy"]
    ours = (weighed["weight"] * policy + mine["loss_critic"]).mean() + weighed["loss_part"]
    whole, _ = MinibatchLoss(ppo.policy, ppo.parts, ppo.config, ppo.coefficients)(batch)
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-6)


# ---- rewards

REWARDS: dict[str, Any] = {
    "gail": lambda demos: us.parts.GailConfig(
        demonstrations=demos, discriminator=SMALL, normalization="own", reward_weight=0.5, expert_noise=True
    ),
    "gail_transitions": lambda demos: us.parts.GailConfig(
        demonstrations=demos, discriminator=SMALL, normalization="none", inputs="state-next-state", center_reward=True
    ),
    "airl": lambda demos: us.parts.AirlConfig(demonstrations=demos, discriminator=SMALL, normalization="none"),
    "rnd": lambda _: us.parts.RandomNetworkDistillationConfig(num_outputs=4, predictor_hidden_sizes=(8,)),
}


@pytest.mark.parametrize("kind", REWARDS)
def test_a_reward_is_the_one_inside_ppo(kind: str, demonstrations: str) -> None:
    """Three rollouts: rewards, statistics and the part's weights after its own steps."""
    config = REWARDS[kind](demonstrations)
    ppo, part, rollout = beside(config)
    actor, critic = as_modules(ppo.policy)
    transform = RewardTransform(
        config, actor, critic, name="part", task_weight=0.25, gamma=0.9, action_space=ppo.policy.action_space
    )
    for _ in range(3):
        theirs = of_torchrl(rollout)
        assert transform(theirs) is theirs
        with torch.no_grad():
            reward = part.reward(rollout)
        metrics = part.update(ppo.policy, rollout)
        found = theirs["next", "reward_part"].squeeze(-1).transpose(0, 1)
        torch.testing.assert_close(found, reward, rtol=1e-5, atol=1e-6)
        total = 0.25 * rollout["task_reward"] + part.reward_weight * reward
        torch.testing.assert_close(theirs["next", "reward"].squeeze(-1).transpose(0, 1), total, rtol=1e-5, atol=1e-6)
        for name, x in metrics.items():
            torch.testing.assert_close(transform.metrics[name], x, rtol=1e-4, atol=1e-6)
        rollout = ppo.collector.collect()
        ppo.collector.evaluate()
    for mine, other in zip(transform.part.parameters(), part.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=1e-7)


def test_gail_with_its_default_normaliser(demonstrations: str) -> None:
    """`normalization="policy"`: statistics of the rollouts, as the user's networks have none that a part could read."""
    config = us.parts.GailConfig(demonstrations=demonstrations, discriminator=SMALL)
    ppo, _, rollout = beside(us.parts.RandomNetworkDistillationConfig())
    gail = RewardTransform(config, as_modules(ppo.policy)[0], task_weight=0.0)
    for _ in range(2):
        gail(of_torchrl(rollout))
    normalizer: Any = gail.policy.normalizers["policy"]
    torch.testing.assert_close(normalizer.mean.float(), rollout["obs", "policy"].flatten(0, 1).mean(0))
    assert set(gail.metrics) >= {"reward", "loss", "acc_pi", "acc_exp"}


def test_motion_prior_as_a_reward(tmp_path: Path) -> None:
    ppo, _, rollout = beside(us.parts.RandomNetworkDistillationConfig())
    path = tmp_path / "clip.npz"
    frames = torch.randn(40, 4).cumsum(0).numpy()
    names = tuple(f"policy[{i}]" for i in range(4))
    write_motions(path, [MotionClip(name="walk", fields=names, frames=frames, frame_time=0.02)])
    config = us.parts.MotionPriorConfig(motions=us.MotionsConfig(files=(str(path),)), frames=3)
    context = PartContext.of(
        ppo.env, ppo.policy, name="part", num_steps=T, seed=randomness.mix(0, "part/part"), gamma=0.9
    )
    torch.manual_seed(context.seed)
    part = config.build(context)
    transform = RewardTransform(config, as_modules(ppo.policy)[0], name="part", gamma=0.9)
    for _ in range(2):
        theirs = transform(of_torchrl(rollout))
        with torch.no_grad():
            reward = part.reward(rollout)  # type: ignore[attr-defined]
        part.update(ppo.policy, rollout)  # type: ignore[attr-defined]
        found = theirs["next", "reward_part"].squeeze(-1).transpose(0, 1)
        torch.testing.assert_close(found, reward, rtol=1e-5, atol=1e-6)
        rollout = ppo.collector.collect()


def test_two_rewards_add_up(demonstrations: str) -> None:
    ppo, _, rollout = beside(us.parts.RandomNetworkDistillationConfig())
    actor, _ = as_modules(ppo.policy)
    gail = RewardTransform(REWARDS["gail_transitions"](demonstrations), actor, task_weight=0.0)
    novelty = RewardTransform(REWARDS["rnd"](""), actor)
    theirs = novelty(gail(of_torchrl(rollout)))["next"]
    expected = theirs["reward_gail"] + 0.1 * theirs["reward_random_network_distillation"]
    torch.testing.assert_close(theirs["reward"], expected)


@pytest.mark.parametrize("kind", sorted(REWARDS))
def test_a_loaded_state_goes_on_as_if_nothing_had_happened(kind: str, demonstrations: str) -> None:
    ppo, _, first = beside(us.parts.RandomNetworkDistillationConfig())
    later = [of_torchrl(ppo.collector.collect()) for _ in range(2)]
    actor, _ = as_modules(ppo.policy)
    whole = RewardTransform(REWARDS[kind](demonstrations), actor)
    whole(of_torchrl(first))
    state = copy.deepcopy(whole.state_dict())
    resumed = RewardTransform(REWARDS[kind](demonstrations), actor, seed=7, like=later[0])
    resumed.load_state_dict(state)
    for rollout in later:
        assert torch.equal(whole(rollout.clone())["next", "reward"], resumed(rollout.clone())["next", "reward"])
    fresh = RewardTransform(REWARDS[kind](demonstrations), actor)
    with pytest.raises(ValueError, match="is not built yet: pass a batch as like="):
        nn.ModuleList([fresh]).load_state_dict({f"0.{key}": x for key, x in state.items()})


# ---- shapes, types, errors


def discrete(one_hot: bool, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, TensorDict]:
    """A policy over four choices, its critic, which shares the trunk, and a rollout [2, 5]."""
    torch.manual_seed(0)
    trunk = TensorDictModule(nn.Linear(3, 6, dtype=dtype), in_keys=["observation"], out_keys=["hidden"])
    actor = ProbabilisticTensorDictSequential(
        trunk,
        TensorDictModule(nn.Linear(6, 4, dtype=dtype), in_keys=["hidden"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(
            in_keys=["logits"],
            out_keys=["action"],
            distribution_class=D.OneHotCategorical if one_hot else D.Categorical,
            return_log_prob=True,
        ),
    )
    critic = TensorDictModule(nn.Linear(6, 1, dtype=dtype), in_keys=["hidden"], out_keys=["state_value"])
    batch = TensorDict({"observation": torch.randn(2, 5, 3, dtype=dtype)}, batch_size=[2, 5])
    with torch.no_grad():
        actor(batch)
    expert = torch.randint(4, (2, 5))
    batch["expert_action"] = nn.functional.one_hot(expert, 4).to(batch["action"].dtype) if one_hot else expert
    after = {name: torch.zeros(2, 5, 1, dtype=torch.bool) for name in ("done", "terminated")}
    after |= {"observation": batch["observation"].clone(), "reward": torch.ones(2, 5, 1, dtype=dtype)}
    batch["next"] = TensorDict(after, batch_size=[2, 5])
    return actor, critic, batch


@pytest.mark.parametrize("one_hot", [False, True])
def test_choices_may_be_one_hot(one_hot: bool) -> None:
    actor, critic, batch = discrete(one_hot)
    if one_hot:
        batch["action"], batch["expert_action"] = batch["action"].long(), batch["expert_action"].long()
    loss = PartLoss(us.parts.ScriptedExpertConfig(imitation_coef=2.0), actor, critic)
    loss.prepare(batch)
    assert loss.policy.action_space == spaces.Discrete(4)
    expert = batch["expert_action"].argmax(-1) if one_hot else batch["expert_action"]
    logits = actor[1].module(actor[0].module(batch["observation"]))
    expected = 2.0 * nn.functional.cross_entropy(logits.reshape(-1, 4), expert.reshape(-1))
    for rows in (batch, batch.reshape(-1), batch[:, :1], batch[0]):
        assert loss(rows)["loss_scripted_expert"].dtype == torch.float64
    torch.testing.assert_close(loss(batch)["loss_scripted_expert"], expected)
    assert torch.equal(batch["scripted_expert", "action"], expert)


def test_float64_networks_meet_float32_demonstrations(demonstrations: str) -> None:
    ppo, _, rollout = beside(us.parts.RandomNetworkDistillationConfig())
    batch = of_torchrl(rollout).double()
    config = us.parts.BehaviorCloningConfig(demonstrations=demonstrations, batch_size=16)
    net = nn.Linear(4, 4, dtype=torch.float64)
    wide = ProbabilisticTensorDictSequential(
        TensorDictModule(net, in_keys=["observation"], out_keys=["both"]),
        TensorDictModule(lambda x: (x[..., :2], x[..., 2:].exp()), in_keys=["both"], out_keys=["loc", "scale"]),
        as_modules(ppo.policy)[0][-1],
    )
    loss = PartLoss(config, wide, like=batch)
    out = loss(batch)
    assert out["loss_behavior_cloning"].dtype == torch.float64
    out["loss_behavior_cloning"].backward()
    assert net.weight.grad is not None


def test_a_critic_that_sees_more_is_a_group_of_its_own() -> None:
    actor, _, batch = discrete(False)
    batch["map"] = torch.randn(2, 5, 7, dtype=torch.float64)
    critic = TensorDictModule(
        lambda x, y: x.sum(-1, keepdim=True) + y.sum(-1, keepdim=True),
        in_keys=["observation", "map"],
        out_keys=["state_value"],
    )
    loss = PartLoss(us.parts.ScriptedExpertConfig(), actor, critic, like=batch)
    space = loss.policy.observation_space
    assert set(space["critic"].spaces) == {"observation", "map"}  # type: ignore[attr-defined]
    value = loss.policy(loss.rows.read(batch, loss.policy)["obs"]).value
    torch.testing.assert_close(value, batch["observation"].sum(-1) + batch["map"].sum(-1))


def test_distributions_of_torch_are_ours() -> None:
    loc, scale, logits = torch.randn(3, 2), torch.rand(3, 2) + 0.1, torch.randn(3, 4)
    pairs: list[tuple[Any, type, Tensor]] = [
        (D.Independent(D.Normal(loc, scale), 1), DiagGaussian, torch.randn(3, 2)),
        (D.Categorical(logits=logits), Categorical, torch.tensor([0, 3, 1])),
        (D.Independent(D.Bernoulli(logits=logits), 1), Bernoulli, torch.randint(2, (3, 4))),
    ]
    for theirs, kind, x in pairs:
        ours = as_distribution(theirs)
        assert type(ours) is kind
        torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x.float() if kind is Bernoulli else x))
        torch.testing.assert_close(ours.entropy(), theirs.entropy())
    one_hot = as_distribution(D.OneHotCategorical(logits=logits))
    torch.testing.assert_close(one_hot.params.softmax(-1), logits.softmax(-1))
    with pytest.raises(ValueError, match=r"parts know Normal, .*, not Laplace"):
        as_distribution(D.Laplace(loc, scale))


def test_what_does_not_fit_says_so(demonstrations: str, teacher: str) -> None:
    actor, critic, batch = discrete(False)
    cloning = us.parts.BehaviorCloningConfig(demonstrations=demonstrations)
    with pytest.raises(ValueError, match="part_config must be the config of a part"):
        PartLoss(us.parts.BehaviorCloning, actor, critic)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="actor must be a Probabilistic"):
        PartLoss(cloning, nn.Linear(1, 1), critic)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="critic must be a tensordict"):
        PartLoss(cloning, actor, nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"RandomNetworkDistillation has neither a loss nor weights.*RewardTransform"):
        PartLoss(REWARDS["rnd"](""), actor, critic, like=batch)
    with pytest.raises(ValueError, match=r"ScriptedExpert gives no reward.*PartLoss"):
        RewardTransform(us.parts.ScriptedExpertConfig(), actor, like=batch)
    with pytest.raises(ValueError, match="no 'action'"):
        PartLoss(cloning, actor, critic, like=batch.exclude("action"))
    with pytest.raises(ValueError, match="no 'observation'"):
        PartLoss(cloning, actor, critic, like=batch.exclude("observation"))
    with pytest.raises(ValueError, match=r"4 parameters, but Discrete\(3\) takes 3"):
        PartLoss(cloning, actor, critic, like=batch, action_space=spaces.Discrete(3))
    with pytest.raises(ValueError, match=r"observation_spaces names \['experts'\]"):
        PartLoss(cloning, actor, like=batch, observation_spaces={"experts": spaces.Discrete(4)})
    with pytest.raises(ValueError, match=r"rollouts \[N, T\] or \[T\], got the batch size \(0,\)"):
        PartLoss(cloning, actor, like=batch.reshape(-1)[:0])
    scripted = PartLoss(us.parts.ScriptedExpertConfig(), actor, critic, like=batch)
    with pytest.raises(ValueError, match=r"no 'scripted_expert': call prepare\(rollout\)"):
        scripted(batch)
    with pytest.raises(ValueError, match=r"built for 2 environments, this rollout \(10,\) has 1"):
        scripted.prepare(batch.reshape(-1))
    with pytest.raises(ValueError, match='has the entries of "next"'):
        scripted.prepare(batch.exclude("next"))
    acting = PartLoss(us.parts.ScriptedExpertConfig(teacher_forcing=1.0), actor, critic)
    with pytest.raises(ValueError, match=r"would act in the policy's place.*set teacher_forcing to 0"):
        acting.prepare(batch)
    with pytest.raises(ValueError, match=f"teacher {teacher} "):  # of another task
        PartLoss(us.parts.TeacherConfig(checkpoints=(teacher,)), actor, critic, like=batch)


def test_one_environment_and_one_step() -> None:
    actor, critic, batch = discrete(False)
    for rows in (batch[:1], batch[0], batch[:1, :1], batch[0, :1]):
        loss = PartLoss(us.parts.ScriptedExpertConfig(), actor, critic)
        assert loss(loss.prepare(rows.clone()))["loss_scripted_expert"].isfinite()


def test_building_a_part_leaves_the_random_stream(demonstrations: str) -> None:
    ppo, _, rollout = beside(us.parts.RandomNetworkDistillationConfig())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    RewardTransform(REWARDS["gail"](demonstrations), as_modules(ppo.policy)[0], like=of_torchrl(rollout))
    assert torch.equal(torch.rand(1), expected)


def test_episodes_of_a_teacher_begin_where_they_began(teacher: str) -> None:
    """`is_first` follows from the ends of the rollout before."""
    ppo, _, rollout = beside(us.parts.RandomNetworkDistillationConfig())
    loss = PartLoss(us.parts.TeacherConfig(checkpoints=(teacher,)), *as_modules(ppo.policy), like=of_torchrl(rollout))
    rollout["terminated"].zero_()
    rollout["truncated"].zero_()
    rollout["terminated"][2, 1] = rollout["terminated"][T - 1, 0] = True
    first = loss._rollout(of_torchrl(rollout))["is_first"]
    assert first[0].all()
    assert first.sum() == N + 1
    assert first[3, 1]
    again = loss._rollout(of_torchrl(rollout))["is_first"]
    assert again[0].tolist() == [True, False, False, False]


def test_broken_numbers_and_padding_stay_out_of_the_part(demonstrations: str) -> None:
    ppo, _, rollout = beside(us.parts.RandomNetworkDistillationConfig())
    theirs = of_torchrl(rollout)
    theirs["observation"][0, 1, 0] = theirs["next", "reward"][1, 2, 0] = torch.nan
    theirs["collector", "mask"] = torch.ones(N, T, 1, dtype=torch.bool)
    theirs["collector", "mask"][2, 3] = False
    for kind in ("gail", "rnd"):
        novelty = RewardTransform(REWARDS[kind](demonstrations), as_modules(ppo.policy)[0], task_weight=0.5, name=kind)
        found = novelty(theirs.clone())["next"]
        assert all(bool(p.isfinite().all()) for p in novelty.part.parameters())
        assert found[f"reward_{kind}"].isfinite().all()
        for n, t in ((0, 1), (2, 3)):  # the task's reward remains
            assert found["reward"][n, t] == 0.5 * theirs["next", "reward"][n, t]
        assert found["reward"].isnan().sum() == 1  # the user's own stays to be seen
        moved = found["reward"] != 0.5 * theirs["next", "reward"]
        assert moved.sum() == N * T - 2  # all others, the NaN among them
    assert theirs["observation"].isnan().sum() == 1
    one = theirs[:1]
    RewardTransform(REWARDS["rnd"](""), as_modules(ppo.policy)[0])(one)
    assert one["observation"].isnan().sum() == 1  # the rows of one environment are no copy of its columns


def test_a_forgotten_label_costs_nothing() -> None:
    actor, critic, batch = discrete(False)
    loss = PartLoss(us.parts.ScriptedExpertConfig(), actor, critic)
    with pytest.raises(ValueError, match="call prepare"):
        loss(batch.reshape(-1))
    assert loss(loss.prepare(batch).reshape(-1))["loss_scripted_expert"].isfinite()
    cloning = PartLoss(us.parts.AdvisorConfig(), actor, critic, latent_key="hidden", like=batch.reshape(-1))
    assert cloning.prepare(batch) is batch  # nothing to prepare, whatever it was built for


def test_a_rollout_without_terminated_ends_where_it_is_done() -> None:
    ppo, _, rollout = beside(us.parts.RandomNetworkDistillationConfig())
    theirs = of_torchrl(rollout)
    del theirs["next", "terminated"]
    novelty = RewardTransform(us.parts.RandomNetworkDistillationConfig(), as_modules(ppo.policy)[0])
    assert not novelty._rollout(theirs)["truncated"].any()
    del theirs["next", "reward"]
    with pytest.raises(ValueError, match=r"no 'reward' \(.*pass the rollout as the collector gives it"):
        novelty(theirs)
