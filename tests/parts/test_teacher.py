"""Teachers: what they say, when they act, what the student learns from it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tests.parts.harness import beside_ppo
from torch import Tensor

import understudy as us
from understudy.core.schedules import Schedule
from understudy.envs.registry import EnvConfig
from understudy.nn.heads import DistributionConfig
from understudy.nn.policy import ActorCritic, PolicyConfig, PolicyOutput
from understudy.parts import Teacher, TeacherConfig
from understudy.parts.shared.distillation import ActionTarget
from understudy.ppo.config import PPOConfig
from understudy.ppo.part import PartContext
from understudy.ppo.ppo import PPO
from understudy.runs.config import EvaluationConfig
from understudy.tasks.point_mass import PointMass
from understudy.training.loop import resume
from understudy.types import CheckpointError

N, T = 4, 6
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
PURE = {"surrogate_coef": 0.0, "value_coef": 0.0, "entropy_coef": 0.0}  # DAgger: only the distillation is left


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def linear(
    observation_space: spaces.Dict, weight: Tensor, bias: tuple[float, float] = (0.0, 0.0), **options: Any
) -> ActorCritic:
    """A policy whose mean is `weight` obs + `bias`."""
    options = {"hidden_sizes": (), "normalize_observations": False, **options}
    policy = ActorCritic(observation_space, options.pop("action_space", ACTIONS), PolicyConfig(**options))
    with torch.no_grad():
        policy.head.linear.weight.copy_(weight)
        policy.head.linear.bias.copy_(torch.tensor(bias))
    return policy


def controller() -> ActorCritic:
    """Steers PointMass to its goal and brakes."""
    weight = torch.tensor([[-3.0, 0.0, -2.0, 0.0], [0.0, -3.0, 0.0, -2.0]])
    return linear(spaces.Dict({"policy": box(4)}), weight)


def build(
    *teachers: ActorCritic,
    env: Any = None,
    policy: Mapping[str, Any] | None = None,
    ppo: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[PPO, Teacher]:
    known = {str(i): teacher for i, teacher in enumerate(teachers or (controller(),))}
    settings = {"num_steps": T, "epochs": 2, "minibatches": 2, "warmup_steps": 0, "total_steps": 10_000, **(ppo or {})}
    env, config = env or PointMass(N, max_episode_steps=5), TeacherConfig(checkpoints=tuple(known), **options)
    student = {"memory_size": 4, **(policy or {})}
    return beside_ppo(env, config, "teacher", policy=student, seed=seed, load_policy=known.__getitem__, **settings)


def expected_label(obs: Tensor) -> Tensor:
    return (-3.0 * obs[..., :2] - 2.0 * obs[..., 2:4]).clamp(-1.0, 1.0)


# ------------------------------------------------------------------ labels


def test_the_label_is_what_the_teacher_would_execute() -> None:
    ppo, _ = build()
    rollout = ppo.collector.collect()
    torch.testing.assert_close(rollout["teacher", "action"], expected_label(rollout["obs", "policy"]))
    assert not rollout["teacher", "forced"].any()


def test_a_sampled_label_has_the_teachers_spread() -> None:
    env = PointMass(2000)
    noisy = linear(spaces.Dict({"policy": box(4)}), torch.zeros(2, 4), distribution=DistributionConfig(init_std=0.2))
    ppo, _ = build(noisy, env=env, label="sample", ppo={"num_steps": 1})
    label = ppo.collector.collect()["teacher", "action"]
    assert float(label.std()) == pytest.approx(0.2, abs=0.01)
    assert float(label.mean()) == pytest.approx(0.0, abs=0.02)


def test_the_teacher_brings_its_own_normaliser() -> None:
    teacher = linear(spaces.Dict({"policy": box(4)}), torch.eye(4)[:2], normalize_observations=True)
    teacher.update_normalizers(TensorDict({"policy": torch.tensor([[1.0] * 4, [3.0] * 4])}, batch_size=[2]))
    ppo, _ = build(teacher)
    rollout = ppo.collector.collect()  # mean 2, standard deviation 1
    torch.testing.assert_close(rollout["teacher", "action"], (rollout["obs", "policy"][..., :2] - 2.0).clamp(-1.0, 1.0))


def test_the_teacher_has_its_own_groups_and_action_map() -> None:
    privileged = spaces.Dict({"policy": box(6)})
    bounded = DistributionConfig(kind="tanh_gaussian")
    teacher = linear(privileged, torch.cat((torch.zeros(2, 4), torch.eye(2)), -1), distribution=bounded)
    ppo, _ = build(teacher, groups={"policy": "critic"})
    rollout = ppo.collector.collect()
    torch.testing.assert_close(rollout["teacher", "action"], rollout["obs", "critic"][..., 4:].tanh())


def test_several_teachers_are_chosen_by_an_observation(scripted_env: Callable[..., Any]) -> None:
    space = spaces.Dict({"policy": box(3), "terrain": spaces.Discrete(2, start=1)})
    env = scripted_env(N, observation_space=space)
    seen = spaces.Dict({"policy": box(3)})
    teachers = [linear(seen, torch.zeros(2, 3), bias) for bias in ((0.1, 0.2), (0.3, 0.4))]
    ppo, _ = build(*teachers, env=env, select="terrain", target="kl")
    rollout = ppo.collector.collect()
    expected = torch.tensor([[0.1, 0.2], [0.3, 0.4]])[rollout["obs", "terrain"] - 1]
    torch.testing.assert_close(rollout["teacher", "action"], expected)
    torch.testing.assert_close(rollout["teacher", "params"][..., :2], expected)
    assert len(rollout["obs", "terrain"].unique()) == 2


def recurrent_teacher() -> ActorCritic:
    torch.manual_seed(3)
    seen = spaces.Dict({"policy": box(4)})
    return ActorCritic(seen, ACTIONS, PolicyConfig(hidden_sizes=(8,), memory="lstm", memory_size=4))


def test_a_recurrent_teacher_forgets_where_an_episode_begins() -> None:
    teacher = recurrent_teacher()
    ppo, part = build(teacher)
    state = teacher.initial_state(N)
    for _ in range(2):  # across the border of two rollouts
        rollout = ppo.collector.collect()
        assert rollout["is_first"].sum() > N / 2
        for t in range(T):
            row = rollout[t]
            distribution, state, _ = teacher.run_actor(row["obs"], state, row["is_first"])
            torch.testing.assert_close(row["teacher", "action"], distribution.mode().clamp(-1.0, 1.0))
    assert state is not None
    assert part.training_state()["teachers"][0].equal(state)


# ------------------------------------------------------------------ who acts


def test_a_teacher_that_acts_is_executed_and_leaves_the_surrogate() -> None:
    ppo, _ = build(teacher_forcing=1.0)
    rollout = ppo.collector.collect()
    ppo.collector.evaluate()
    label = expected_label(rollout["obs", "policy"])
    torch.testing.assert_close(rollout["action"], label)
    torch.testing.assert_close(rollout["executed_action"], label)
    assert not rollout["on_policy"].any()
    own = ppo.policy(rollout["obs"].flatten(0, 1)).distribution.log_prob(label.flatten(0, 1))
    torch.testing.assert_close(rollout["log_prob"].flatten(), own)
    metrics = ppo.iterate()
    assert metrics["ppo/surrogate_loss"] == 0.0
    assert metrics["ppo/first_ratio_error"] < 1e-6
    assert metrics["teacher/forced"] == 1.0
    assert metrics["teacher/distance"] > 0.0


def test_who_acts_is_drawn_per_episode_by_schedule() -> None:
    env = PointMass(400, max_episode_steps=4)
    ppo, _ = build(env=env, teacher_forcing=Schedule.parse("linear:1:0:2it"), ppo={"num_steps": 8})
    shares = [ppo.iterate()["teacher/forced"] for _ in range(3)]
    assert shares[0] == 1.0
    # of the rollout's two episodes, the first ones began before the schedule moved
    assert shares[1] == pytest.approx(0.5, abs=0.08)
    assert shares[2] == pytest.approx(0.0, abs=0.08)


# ------------------------------------------------------------------ losses


def test_the_loss_by_hand() -> None:
    seen = spaces.Dict({"policy": box(4)})
    teacher = linear(seen, torch.zeros(2, 4), (0.3, -0.4))
    ppo, part = build(teacher, policy={"hidden_sizes": ()}, coef=0.5, latents={"actor": "actor"}, latent_coef=2.0)
    with torch.no_grad():
        ppo.policy.head.linear.weight.zero_()
    obs = TensorDict({"policy": torch.full((2, 4), 3.0)}, batch_size=[2])
    label = {"action": torch.tensor([[0.3, -0.4], [0.0, 0.1]]), "latents": {"actor": torch.full((2, 4), 1.0)}}
    batch = TensorDict({"obs": obs, "teacher": label, "valid": torch.tensor([True, False])}, batch_size=[2])
    out = PolicyOutput(ppo.policy.distribution(obs), torch.zeros(2), latents={"actor": torch.full((2, 4), 3.0)})
    loss, metrics = part.loss(ppo.policy, batch, out)
    # rows that are no transition count as 0: action 0.5 / 2, latent ||(2, 2, 2, 2)|| / 2 = 2
    assert float(metrics["distance"]) == pytest.approx(0.25, rel=1e-6)
    assert float(metrics["latent/actor"]) == pytest.approx(2.0, rel=1e-6)
    assert float(metrics["l1"]) == pytest.approx(0.35, rel=1e-6)
    assert float(loss.detach()) == pytest.approx(0.5 * 0.25 + 2.0 * 2.0, rel=1e-6)


def test_latents_are_drawn_to_the_teachers() -> None:
    torch.manual_seed(5)
    teacher = ActorCritic(spaces.Dict({"policy": box(6)}), ACTIONS, PolicyConfig(hidden_sizes=(8,)))
    options = {"groups": {"policy": "critic"}, "latents": {"actor": "actor"}, "coef": 0.0, "latent_target": "mse_sum"}
    ppo, _ = build(
        teacher, env=PointMass(64), ppo={**PURE, "optimizer": us.OptimizerConfig(learning_rate=1e-2)}, **options
    )
    errors = [ppo.iterate()["teacher/latent/actor"] for _ in range(15)]
    assert errors[-1] < 0.6 * errors[0], errors


KINDS = [("none", target) for target in get_args(ActionTarget)] + [("lstm", "real"), ("gru", "max_log_prob")]


@pytest.mark.parametrize(("memory", "target"), KINDS)
def test_dagger_learns_the_teacher(memory: str, target: str) -> None:
    """The student acts more and more itself; only the distillation moves it."""
    mean = {"distribution": DistributionConfig(mean_activation="tanh")} if "tanh" in target else {}
    ppo, _ = build(
        env=PointMass(32, max_episode_steps=20),
        policy={"hidden_sizes": (32,), "memory": memory, "memory_size": 32, **mean},
        ppo={**PURE, "num_steps": 8, "epochs": 4, "optimizer": us.OptimizerConfig(learning_rate=1e-2)},
        teacher_forcing=Schedule.parse("exp:1:0:5it"),
        target=target,
    )
    # kl compares with the teacher's own mean, which is not clipped as its action is
    measured = "teacher/distance" if target == "kl" else "teacher/l1"
    first = ppo.iterate()[measured]
    for _ in range(12):
        last = ppo.iterate()[measured]
    assert last < 0.6 * first, (first, last)


def test_the_coefficient_follows_its_schedule() -> None:
    ppo, part = build(coef=Schedule.parse("linear:1:0:2it"))
    values = []
    for _ in range(3):
        ppo.iterate()
        values.append(float(part.coef()))
    assert values == [1.0, 0.5, 0.0]


# ------------------------------------------------------------------ aggregation, states


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_aggregation_learns_from_older_rollouts_too(memory: str) -> None:
    ppo, part = build(rollouts=2.5, policy={"memory": memory})
    plain, _ = build(policy={"memory": memory})
    units, rows = (N, N // 2) if memory == "gru" else (T * N, T * N // 2)
    assert part.memory.capacity == int(2.5 * units)
    for written in (units, 2 * units, int(2.5 * units)):
        ppo.iterate()
        assert part.memory.written == written
    drawn = part.sample(TensorDict({}, batch_size=[T, rows] if memory == "gru" else [rows]))
    assert drawn is not None
    shape = (T, int(2.5 * rows)) if memory == "gru" else (int(2.5 * rows),)
    assert drawn["label", "action"].shape == (*shape, 2)
    torch.testing.assert_close(drawn["label", "action"], expected_label(drawn["obs", "policy"]))
    # PPO itself only ever sees the newest: the first rollouts and their returns are those of a run without
    ppo, _ = build(rollouts=2.5, policy={"memory": memory})
    for run in (ppo, plain):
        run.collector.collect()
        run.collector.evaluate()
        run._rewards(run.collector.data, masked=False)
        run._advantages(run.collector.data, masked=False)
    assert torch.equal(ppo.collector.data["value_target"], plain.collector.data["value_target"])


def test_invalid_rows_do_not_count() -> None:
    ppo, part = build(rollouts=2.0)
    ppo.iterate()
    assert part.memory.data is not None
    part.memory.data["valid"].fill_(False)
    rows = part.sample(TensorDict({}, batch_size=[8]))
    batch = TensorDict({"teacher": {"sample": rows}, "valid": torch.ones(16, dtype=torch.bool)}, batch_size=[])
    out = PolicyOutput(ppo.policy.distribution(rows["obs"]), torch.zeros(16))
    assert float(part.loss(ppo.policy, batch, out)[0].detach()) == 0.0


def test_states_are_resampled_where_an_episode_goes_on() -> None:
    ppo, part = build(resample_state_prob=1.0, policy={"memory": "lstm"})
    for _ in range(3):
        metrics = ppo.iterate()
    assert metrics["ppo/first_ratio_error"] < 1e-6  # PPO's own pass keeps the true states
    is_first = torch.tensor([True, False, False])
    state = torch.full((3, ppo.policy.state_size), 100.0)
    found = part._resample(state, is_first)
    assert torch.equal(found[0], state[0])
    assert (found[1:] <= part.high).all()
    assert (found[1:] >= part.low).all()
    assert not torch.equal(found[1], found[2])
    assert part.high.max() > 0.0 > part.low.min()


def test_resumes_bit_for_bit() -> None:
    options = {"rollouts": 2.0, "teacher_forcing": 0.5, "label": "sample", "resample_state_prob": 0.5}
    kinds = {"policy": {"memory": "gru"}, **options}
    (straight, _), (first, _), (second, _) = (build(recurrent_teacher(), seed=s, **kinds) for s in (0, 0, 1))
    straight.iterate()
    expected = straight.iterate()
    first.iterate()
    second.load_state_dict(first.state_dict())
    found = second.iterate()
    assert {k: v for k, v in found.items() if "time/" not in k} == {
        k: v for k, v in expected.items() if "time/" not in k
    }
    assert torch.equal(second.optimizer.flat, straight.optimizer.flat)


def test_the_teacher_is_no_part_of_the_students_parameters() -> None:
    _, part = build()
    assert not list(part.parameters())
    assert "teachers" in part.training_state()
    assert all(not p.requires_grad for p in part.teachers[0].policy.parameters())


# ------------------------------------------------------------------ from a run to a student


def train_config(path: Path, steps: int = 128, **options: Any) -> us.TrainConfig:
    return us.TrainConfig(
        env=EnvConfig(id="PointMass", num_envs=8),
        policy=PolicyConfig(hidden_sizes=(8,)),
        ppo=PPOConfig(num_steps=8, epochs=1, minibatches=1, warmup_steps=0),
        total_steps=steps,
        run_dir=str(path),
        evaluation=EvaluationConfig(episodes=0),
        **options,
    )


def test_a_run_teaches_another_and_resumes(tmp_path: Path) -> None:
    teacher = us.train(train_config(tmp_path / "teacher"))
    part = TeacherConfig(checkpoints=(str(teacher.path),), teacher_forcing=Schedule.parse("linear:1:0"))
    config = train_config(tmp_path / "student", parts={"teacher": part})
    run = us.train(config)
    assert run.metrics[0]["teacher/forced"] == 1.0
    resumed = resume(run.path, total_steps=192)
    assert len(resumed.metrics) == 3
    (tmp_path / "teacher" / "checkpoints").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="teacher"):
        resume(run.path, total_steps=256)


# ------------------------------------------------------------------ bad input


def refuse(match: str, *teachers: ActorCritic, **options: Any) -> None:
    with pytest.raises(ValueError, match=match):
        build(*teachers, **options)


def test_what_is_refused() -> None:
    seen = spaces.Dict({"policy": box(4)})
    other = linear(spaces.Dict({"policy": box(3)}), torch.zeros(2, 3))
    refuse(r"sees 'policy' as Box.*\(3,\).*groups=", other)
    refuse(
        r"sees 'velocity'.*did you mean policy|observation group 'velocity' does not exist",
        linear(spaces.Dict({"velocity": box(4)}), torch.zeros(2, 4), actor_groups=("velocity",)),
    )
    three = linear(seen, torch.zeros(3, 4), (0.0, 0.0, 0.0), action_space=spaces.Box(-1.0, 1.0, (3,), np.float32))  # type: ignore[arg-type]
    refuse("teacher 0 acts in Box.*this environment takes Box", three)
    refuse("2 teachers need `select`", controller(), controller())
    refuse(r"must be a Discrete\(2\) for 2 teachers", controller(), controller(), select="policy")
    refuse("groups names 'polic'.*did you mean '?policy", controller(), groups={"polic": "critic"})
    refuse("student has no latent 'actr'; did you mean actor", controller(), latents={"actr": "actor"})
    refuse("latent 'actor' has 8 entries, 'actor' of teacher 0 has 4", controller(), latents={"actor": "actor"})
    refuse(r"needs a mean in \[-1, 1\]", target="tanh")
    refuse("compares distributions", linear(seen, torch.zeros(2, 4), action_bound="tanh"), target="kl")
    refuse("recurrent students", resample_state_prob=0.5)
    refuse("at least 1, got 0.5", rollouts=0.5)
    refuse("target must be one of real", target="huber")
    bare = PartContext.of(PointMass(N), controller(), name="teacher", num_steps=T)
    with pytest.raises(ValueError, match="no teachers: name the run"):
        TeacherConfig().build(bare)
    with pytest.raises(ValueError, match=r"load_policy=us\.load"):
        TeacherConfig(checkpoints=("run",)).build(bare)
