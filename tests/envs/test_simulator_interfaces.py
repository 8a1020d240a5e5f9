"""Simulators as they are published: stubs of each interface, written from its source, through the adapter and PPO."""

from __future__ import annotations

import types
from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from tensordict import TensorDict
from torch import Tensor

import understudy as us
from understudy.envs import EnvConfig, SimulatorAdapter, as_vec_env, make_env, register_env
from understudy.envs.simulators import KINDS, Order, set_options
from understudy.types import EnvError

N, LIMIT = 4, 5


class Body:
    """A position for each of N environments, moved by the action; its observation is position and age."""

    def __init__(self, num_envs: int = N) -> None:
        self.num_envs, self.device = num_envs, "cpu"
        self.position = torch.zeros(num_envs, 2)
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.long)
        self.max_episode_length = LIMIT
        self.common_step_counter = 0
        self.step_dt = 0.02

    def move(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, terminated and time-out of a step."""
        self.position = self.position + 0.1 * action
        self.episode_length_buf += 1
        self.common_step_counter += 1
        return (
            -self.position.norm(dim=-1),
            self.position[:, 0] > 1.0,
            self.episode_length_buf >= self.max_episode_length,
        )

    def restart(self, rows: Tensor) -> None:
        """Start these rows anew."""
        self.position[rows] = 0.0
        self.episode_length_buf[rows] = 0

    def see(self) -> Tensor:
        """`[N, 3]`."""
        return torch.cat((self.position, self.episode_length_buf.unsqueeze(-1).float()), dim=-1)


class Terms:
    """mjlab's and Isaac Lab's observation manager, as far as names go."""

    active_terms = {"actor": ["position", "age"], "policy": ["position", "age"]}  # noqa: RUF012
    group_obs_term_dim = {"actor": [(2,), (1,)], "policy": [(2,), (1,)]}  # noqa: RUF012


class Mjlab(Body):
    """mjlab 1.6's `ManagerBasedRlEnv`: 5 values, and no reset of its own if `cfg.auto_reset` is off."""

    def __init__(self, num_envs: int = N, *, auto_reset: bool = True, finite: bool = False) -> None:
        super().__init__(num_envs)
        self.cfg = types.SimpleNamespace(auto_reset=auto_reset, is_finite_horizon=finite)
        self.auto_reset = None  # what the configuration says
        self.single_action_space = types.SimpleNamespace(shape=(2,), low=-np.inf, high=np.inf)  # no Gymnasium space
        self.observation_manager = Terms()
        self.pending = torch.zeros(num_envs, dtype=torch.bool)
        self.extras: dict[str, Any] = {}

    @property
    def unwrapped(self) -> Mjlab:
        return self

    def observe(self) -> dict[str, Tensor]:
        noise = 0.001 * torch.randn(self.num_envs, 3)  # drawn anew whenever observations are computed
        return {"actor": self.see() + noise, "critic": self.see()}

    def reset(self, *, seed: int | None = None, env_ids: Tensor | None = None) -> tuple[dict[str, Tensor], dict]:
        if seed is not None:
            torch.manual_seed(seed)
        rows = torch.arange(self.num_envs) if env_ids is None else env_ids
        self.restart(rows)
        self.pending[rows] = False
        self.extras["log"] = {"Episode_Reward/distance": torch.tensor(0.5), "Curriculum/level": 2.0}
        return self.observe(), self.extras

    def step(self, action: Tensor) -> tuple[Any, ...]:
        assert not self.pending.any(), "must be reset via reset(env_ids=...)"
        self.extras["log"] = {}
        reward, terminated, time_outs = self.move(action)
        ended = terminated | time_outs
        if (self.auto_reset or self.cfg.auto_reset) and ended.any():
            self.reset(env_ids=ended.nonzero().squeeze(-1))
        elif ended.any():
            self.pending[ended] = True
        return self.observe(), reward, terminated, time_outs, self.extras


class MjlabWrapper:
    """mjlab's `RslRlVecEnvWrapper`: rsl_rl's 4 values, TensorDicts, long dones."""

    def __init__(self, env: Mjlab) -> None:
        self.env, self.num_envs, self.device, self.num_actions = env, env.num_envs, torch.device("cpu"), 2
        self.seeds: list[int] = []

    @property
    def unwrapped(self) -> Mjlab:
        return self.env

    def seed(self, seed: int) -> int:
        self.seeds.append(seed)
        torch.manual_seed(seed)
        return seed

    def get_observations(self) -> TensorDict:
        return TensorDict({**self.env.observe()}, batch_size=[self.num_envs])

    def reset(self) -> tuple[TensorDict, dict]:
        obs, extras = self.env.reset()
        return TensorDict({**obs}, batch_size=[self.num_envs]), extras

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        obs, reward, terminated, truncated, extras = self.env.step(actions)
        if not self.env.cfg.is_finite_horizon:
            extras["time_outs"] = truncated
        return TensorDict({**obs}, batch_size=[self.num_envs]), reward, (terminated | truncated).long(), extras


class IsaacInner(Mjlab):
    """What is in Isaac Lab's wrapper: group "policy", and a configuration without `auto_reset`."""

    def __init__(self) -> None:
        super().__init__()
        self.auto_reset, self.cfg = True, types.SimpleNamespace(is_finite_horizon=False)

    def observe(self) -> dict[str, Tensor]:
        return {"policy": self.see(), "critic": self.see()}


class IsaacWrapper(MjlabWrapper):
    """Isaac Lab's: it has no `reset`."""

    reset = None  # type: ignore[assignment]


class Isaac(Body, gym.Env):  # type: ignore[type-arg]
    """Isaac Lab's `ManagerBasedRLEnv`: a `gym.Env` of many copies that resets itself."""

    single_action_space = spaces.Box(-np.inf, np.inf, (2,))
    observation_space = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (N, 3))})
    action_space = spaces.Box(-np.inf, np.inf, (N, 2))
    cfg = types.SimpleNamespace(is_finite_horizon=False)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.restart(torch.arange(self.num_envs))
        return {"policy": self.see()}, {}

    def step(self, action: Any) -> tuple[Any, ...]:
        reward, terminated, time_outs = self.move(action)
        self.restart(terminated | time_outs)
        return {"policy": self.see()}, reward, terminated, time_outs, {"log": {"a": 1.0}}


class ManiSkillBase(Body, gym.Env):  # type: ignore[type-arg]
    """ManiSkill's `BaseEnv`."""

    single_action_space = spaces.Box(-1.0, 1.0, (2,))
    single_observation_space = spaces.Box(-np.inf, np.inf, (3,))
    elapsed_steps = 0


class ManiSkill(VectorEnv):  # type: ignore[type-arg]
    """ManiSkill's `ManiSkillVectorEnv`: partial resets, final observation and statistics where any episode ended."""

    def __init__(self) -> None:
        self._env = ManiSkillBase()
        self.num_envs = N
        self.single_action_space = self._env.single_action_space
        self.single_observation_space = self._env.single_observation_space
        self.returns = torch.zeros(N)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def unwrapped(self) -> Any:
        return self._env

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Tensor, dict]:
        rows = torch.arange(N) if options is None else options["env_idx"]
        self._env.restart(rows)
        self.returns[rows] = 0.0
        return self._env.see(), {}

    def step(self, action: Tensor) -> tuple[Any, ...]:
        reward, terminated, truncated = self._env.move(action)
        self.returns += reward
        info: dict[str, Any] = {"elapsed_steps": self._env.episode_length_buf.clone()}
        info["episode"] = {"return": self.returns.clone(), "success_once": terminated.clone()}
        obs, dones = self._env.see(), terminated | truncated
        if dones.any():
            final_obs, final_info = obs.clone(), info
            obs, info = self.reset(options={"env_idx": torch.arange(N)[dones]})
            info |= {"final_observation": final_obs, "final_info": final_info, "_final_info": dones}
        return obs, reward, terminated, truncated, info


class Playground(Body):
    """MuJoCo Playground's `RSLRLBraxWrapper`: `seed` is a number, `get_observations` resets, float flags."""

    def __init__(self) -> None:
        super().__init__()
        self.seed, self.num_actions, self.resets = 3, 2, 0
        del self.episode_length_buf

    def reset(self) -> TensorDict:
        self.episode_length_buf = torch.zeros(N, dtype=torch.long)
        self.position, self.resets = torch.zeros(N, 2), self.resets + 1
        return self.groups()

    def groups(self) -> TensorDict:
        return TensorDict({"state": self.position, "privileged_state": self.see()}, batch_size=[N])

    def get_observations(self) -> TensorDict:
        return self.reset()

    def step(self, action: Tensor) -> tuple[Any, ...]:
        reward, terminated, time_outs = self.move(action.clip(-1.0, 1.0))
        self.restart(terminated | time_outs)
        info = {"time_outs": time_outs.float(), "observations": {"critic": self.see()}, "log": {"reward/x": 0.5}}
        return self.groups(), reward, (terminated | time_outs).float(), info


class LeggedGym(Body):
    """legged_gym's `LeggedRobot`: buffers that the next step overwrites, the critic's observations second."""

    def __init__(self, privileged: bool = True) -> None:
        super().__init__()
        self.num_actions, self.privileged = 2, privileged
        self.obs_buf, self.rew_buf = torch.zeros(N, 2), torch.zeros(N)
        self.privileged_obs_buf = torch.zeros(N, 3) if privileged else None
        self.reset_buf = torch.ones(N, dtype=torch.long)

    def get_observations(self) -> Tensor:
        return self.obs_buf

    def get_privileged_observations(self) -> Tensor | None:
        return self.privileged_obs_buf

    def reset(self) -> tuple[Tensor, Tensor | None]:
        self.restart(torch.arange(N))
        obs, privileged, *_ = self.step(torch.zeros(N, 2))
        return obs, privileged

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        reward, terminated, time_outs = self.move(actions)
        self.rew_buf.copy_(reward)
        self.reset_buf.copy_(terminated | time_outs)
        self.restart(self.reset_buf.bool())
        self.obs_buf.copy_(self.position)
        if self.privileged_obs_buf is not None:
            self.privileged_obs_buf.copy_(self.see())
        extras = {"time_outs": time_outs, "episode": {"rew_x": torch.tensor(0.25)}}
        return self.obs_buf, self.privileged_obs_buf, self.rew_buf, self.reset_buf, extras


class StGym(LeggedGym):
    """st_rl's simulators: (obs, extras), style features and reference motion in `extras`."""

    get_privileged_observations = None  # type: ignore[assignment]

    def infos(self) -> dict[str, Any]:
        frames = torch.stack((self.see(), self.see() + 1.0), dim=1)  # [N, H, D]
        return {"observations": {"critic": self.see(), "ref_obs": frames}, "ref_motion": self.see() - 1.0}

    def get_observations(self) -> Any:
        return self.obs_buf, self.infos()

    def reset(self) -> Any:
        super().reset()
        return self.get_observations()

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        obs, _, reward, dones, extras = super().step(actions)
        return obs, reward, dones, extras | self.infos()


STAY = torch.zeros(N, 2)
INTERFACES = {
    "mjlab raw": lambda: Mjlab(),
    "mjlab": lambda: MjlabWrapper(Mjlab()),
    "Isaac Lab": lambda: IsaacWrapper(IsaacInner()),
    "Isaac Lab raw": lambda: Isaac(),
    "ManiSkill": lambda: ManiSkill(),
    "Playground": lambda: Playground(),
    "legged_gym": lambda: LeggedGym(),
    "legged_gym without critic": lambda: LeggedGym(privileged=False),
    "st_gym": lambda: StGym(),
}


EXACT = ("mjlab raw", "mjlab", "ManiSkill")


@pytest.mark.parametrize("name", INTERFACES)
def test_ppo_trains_on_every_interface_as_it_is(name: str) -> None:
    env = as_vec_env(INTERFACES[name]())
    assert env.observation_space["policy"].shape in ((2,), (3,))
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
    ppo = us.PPO(env, policy, us.PPOConfig(num_steps=2 * LIMIT, minibatches=2, epochs=1), seed=1)
    with nullcontext() if name in EXACT else pytest.warns(UserWarning, match="time-outs bootstrap"):
        ppo.iterate()
    metrics = ppo.iterate()
    data = ppo.collector.data
    assert data["truncated"].sum() == 2 * N  # each environment meets its limit twice in 10 steps
    assert not data["terminated"].any()
    assert metrics["episode/length"] == pytest.approx(LIMIT, abs=2.0)


def test_groups_by_convention() -> None:
    for name, groups in {
        "mjlab": ["policy", "critic"],
        "Playground": ["policy", "critic"],
        "legged_gym": ["policy", "critic"],
        "legged_gym without critic": ["policy"],
        "st_gym": ["policy", "critic", "ref_obs", "ref_motion"],
        "Isaac Lab": ["policy", "critic"],
    }.items():
        assert [*as_vec_env(INTERFACES[name]()).observation_space.spaces] == groups
    motion = as_vec_env(StGym())
    assert motion.observation_space["ref_obs"].shape == (2, 3)
    obs = motion.step(STAY).obs
    assert torch.equal(obs["ref_motion"], obs["critic"] - 1.0)
    named = as_vec_env(Mjlab(), groups={"policy": "critic"})  # explicit groups go by the simulator's own names
    assert [*named.observation_space.spaces] == ["policy"]
    with pytest.raises(ValueError, match=r"group 'policy' asks for 'actors', .* did you mean actor\?"):
        as_vec_env(Mjlab(), groups={"policy": "actors"})
    register_env("Mjlab-Stub", _make_stub)
    both = make_env("Mjlab-Stub", 3, groups={"policy": "actor+critic"})
    assert [*both.observation_space["policy"].spaces] == ["actor", "critic"]  # type: ignore[attr-defined]
    unnamed = as_vec_env(MjlabWrapper(Mjlab()), groups={"front": "actor"})
    with pytest.raises(ValueError, match=r"'policy'.*front"):
        us.ActorCritic(unnamed.observation_space, unnamed.action_space, us.PolicyConfig())


def _make_stub(num_envs: int, device: torch.device) -> Mjlab:
    """A simulator."""
    return Mjlab(num_envs)


def test_terms_and_images_of_a_group() -> None:
    class Seeing(MjlabWrapper):
        def get_observations(self) -> TensorDict:
            camera = {"rgb": torch.zeros(N, 3, 8, 8), "depth": torch.ones(N, 1, 8, 8)}
            return TensorDict({**self.env.observe(), "camera": camera}, batch_size=[N])

    space = as_vec_env(Seeing(Mjlab())).observation_space
    assert space["camera"]["depth"].shape == (1, 8, 8)  # type: ignore[index]
    joint = as_vec_env(Seeing(Mjlab()), groups={"policy": ["actor", "camera.rgb"]}).observation_space
    assert [*joint["policy"].spaces] == ["actor", "camera_rgb"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [lambda: Mjlab(), lambda: MjlabWrapper(Mjlab())], ids=["raw", "wrapped"])
def test_mjlab_shows_true_final_observations(make: Any) -> None:
    simulator = make()
    env = SimulatorAdapter(simulator)
    env.reset(seed=0)
    raw = simulator.unwrapped
    raw.episode_length_buf[:] = torch.tensor([4, 0, 0, 0])
    step = env.step(torch.tensor([[1.0, 0.0], [20.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    assert step.truncated.tolist() == [True, False, False, False]
    assert step.terminated.tolist() == [False, True, False, False]
    assert step.final_obs is not None
    assert step.final_obs["critic"][:2].tolist() == [[pytest.approx(0.1), 0.0, 5.0], [2.0, 0.0, 1.0]]
    assert step.obs["critic"][:2].tolist() == [[0.0] * 3] * 2
    # those that go on keep the very noise that they showed
    assert torch.equal(step.obs["policy"][2:], step.final_obs["policy"][2:])
    assert step.metrics["Episode_Reward/distance"] == 0.5
    assert raw.cfg.auto_reset  # the user's environment resets itself again
    blind = SimulatorAdapter(make(), exact_time_limits=False)
    assert blind.step(STAY).final_obs is None


def test_an_environment_of_the_user_that_does_not_reset_itself_stays_so() -> None:
    simulator = Mjlab(auto_reset=False)
    env = SimulatorAdapter(simulator)
    for _ in range(LIMIT + 1):
        env.step(STAY)
    assert not simulator.cfg.auto_reset


def test_a_finite_horizon_has_no_time_outs() -> None:
    for simulator in (Mjlab(finite=True), MjlabWrapper(Mjlab(finite=True))):
        env = SimulatorAdapter(simulator)
        env.reset()
        steps = [env.step(STAY) for _ in range(LIMIT)]
        assert steps[-1].terminated.all()
        assert not steps[-1].truncated.any()


def test_maniskill_counts_where_an_episode_ended() -> None:
    env = as_vec_env(ManiSkill())
    assert env.action_space == spaces.Box(-1.0, 1.0, (2,))
    env.reset(seed=1)
    assert env.step(STAY).metrics == {}
    metrics = env.step(torch.tensor([[20.0, 0.0], *[[0.0, 0.0]] * 3])).metrics
    assert metrics["is_success"][0] == 1.0
    assert metrics["is_success"][1:].isnan().all()
    assert metrics["return"][0] == -2.0


def test_playground_is_reset_once_and_not_seeded_by_a_number() -> None:
    simulator = Playground()
    env = as_vec_env(simulator)
    before = simulator.resets
    env.reset(seed=7)
    assert simulator.resets == before + 1
    seeds: list[int] = []
    SimulatorAdapter(simulator, reseed=seeds.append).reset(seed=7)
    assert seeds == [7]


def test_isaac_lab_is_reset_through_its_wrapper() -> None:
    simulator = IsaacWrapper(IsaacInner())
    simulator.env.episode_length_buf += 3
    as_vec_env(simulator).reset(seed=2)
    assert simulator.seeds == [2]
    assert not simulator.env.episode_length_buf.any()
    wrapped = gym.wrappers.OrderEnforcing(Isaac())  # as gym.make has it
    assert as_vec_env(wrapped).num_envs == N


def test_buffers_that_the_next_step_overwrites_reach_the_rollout_whole() -> None:
    class Fresh(LeggedGym):
        def step(self, actions: Tensor) -> tuple[Any, ...]:
            obs, critic, reward, dones, extras = super().step(actions)
            assert critic is not None
            return obs.clone(), critic.clone(), reward.clone(), dones.clone(), extras

    rollouts = []
    for simulator in (LeggedGym(), Fresh()):
        torch.manual_seed(0)
        env = as_vec_env(simulator)
        policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
        ppo = us.PPO(env, policy, us.PPOConfig(num_steps=10, minibatches=2), seed=1)
        with pytest.warns(UserWarning, match="bootstrap"):
            ppo.iterate()
        rollouts.append(ppo.collector.data.clone())
    assert rollouts[0]["task_reward"].unique().numel() > 10
    for key in ("task_reward", "terminated", "truncated", "value", "value_target"):
        assert torch.equal(rollouts[0][key], rollouts[1][key]), key
    assert torch.equal(rollouts[0]["obs", "critic"], rollouts[1]["obs", "critic"])


def test_episodes_of_a_training_begin_at_random_ages_and_those_of_an_evaluation_do_not() -> None:
    simulator = MjlabWrapper(Mjlab(64))
    env = as_vec_env(simulator)
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
    ppo = us.PPO(env, policy, us.PPOConfig(num_steps=LIMIT, minibatches=1, epochs=1, warmup_steps=0), seed=1)
    ppo.iterate()
    ends = ppo.collector.data["truncated"].sum(1).tolist()
    assert sum(ends) == 64  # one for each: what its first episode lacked, the second begins with
    assert min(ends) >= 5
    result = us.evaluate(policy, env=env, episodes=64, seed=0)
    assert result.mean_length == LIMIT
    plain = as_vec_env(MjlabWrapper(Mjlab(64)))
    plain.random_episode_lengths = False  # type: ignore[attr-defined]
    ppo = us.PPO(plain, policy, us.PPOConfig(num_steps=LIMIT, minibatches=1, epochs=1, warmup_steps=0), seed=1)
    ppo.iterate()
    assert ppo.collector.data["truncated"].sum(1).tolist() == [0] * (LIMIT - 1) + [64]


def test_curricula_go_on_where_the_checkpoint_was() -> None:
    env = as_vec_env(MjlabWrapper(simulator := Mjlab()))
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
    config = us.PPOConfig(num_steps=10, minibatches=2, epochs=1, warmup_steps=0)
    ppo = us.PPO(env, policy, config, seed=1)
    ppo.iterate()
    state = ppo.state_dict()
    assert state["env_counters"] == {"common_step_counter": 10}
    simulator.common_step_counter = 0
    us.PPO(env, policy, config, seed=1).load_state_dict(state)
    assert simulator.common_step_counter == 10
    del state["env_counters"]  # a checkpoint of before
    us.PPO(env, policy, config, seed=1).load_state_dict(state)


def test_a_nan_names_environment_step_and_term(caplog: pytest.LogCaptureFixture) -> None:
    env = as_vec_env(simulator := Mjlab())
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
    ppo = us.PPO(env, policy, us.PPOConfig(num_steps=10, minibatches=2, epochs=1, warmup_steps=0), seed=1)
    ppo.iterate()
    inner = simulator.observe

    def breaking() -> dict[str, Tensor]:
        obs = inner()
        if simulator.common_step_counter == 13:
            obs["actor"][2, 2] = torch.nan
        return obs

    simulator.observe = breaking  # type: ignore[method-assign]
    ppo.iterate()
    assert "observation policy (age) of environment 2 is not finite at step 13" in caplog.text
    assert ppo.iterate()["ppo/skipped_steps"] == 0.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r[0], r[1][:3], *r[2:]), r"reward has shape \(3,\), expected \[4\]"),
        (lambda r: (r[0], r[1], r[2].float().numpy(), r[3]), "dones is a ndarray, expected a tensor"),
        (lambda r: (r[0], r[1].to("meta"), *r[2:]), "reward is on meta, but the simulator says that it is on cpu"),
        (lambda r: (r[0].apply(lambda x: x[:, :1]), *r[1:]), r"observation 'policy' has shape \(4, 1\)"),
        (lambda r: r[:3], "returned 3 values instead of"),
    ],
)
def test_what_a_step_may_not_return(spoil: Any, message: str) -> None:
    class Spoilt(MjlabWrapper):
        def step(self, actions: Tensor) -> Any:
            return spoil(super().step(actions))

    env = as_vec_env(Spoilt(Mjlab()))
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
    with pytest.raises(EnvError, match=message):
        us.PPO(env, policy, us.PPOConfig(num_steps=2, minibatches=1), seed=1).iterate()


# ------------------------------------------------------------------------------------------------- ids


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A simulator "mjlab" whose one task is the stub."""

    def build(order: Order) -> Any:
        from understudy.envs.simulators import Built

        module.orders.append(order)
        return Built(MjlabWrapper(Mjlab(order.num_envs)))

    module = types.SimpleNamespace(tasks=lambda: ["Stub-Task"], build=build, numbers=lambda task: None, orders=[])
    kind = type(KINDS["mjlab"])
    monkeypatch.setattr(kind, "installed", property(lambda self: self.name in ("mjlab", "isaaclab")))
    monkeypatch.setattr(kind, "require", lambda self, task: module)
    module.prepare = lambda order: None
    return module


def test_ids_of_simulators(installed: types.SimpleNamespace, tmp_path: Any) -> None:
    run = us.train(
        us.TrainConfig(
            env=EnvConfig(id="mjlab:Stub-Task", num_envs=8, max_episode_steps=LIMIT),
            ppo=us.PPOConfig(num_steps=8, minibatches=2, epochs=1),
            evaluation=us.EvaluationConfig(episodes=3, interval=100),
            checkpoint=us.CheckpointConfig(interval=64),
            total_steps=192,
            run_dir=str(tmp_path / "run"),
        )
    )
    assert len(installed.orders) == 1  # evaluations played in the training's simulator
    assert installed.orders[0].max_episode_steps == LIMIT
    assert run.evaluation is not None
    assert run.evaluation.episodes == 3
    resumed = us.resume(run.path, total_steps=256)
    assert resumed.env_steps == 256
    assert us.evaluate(run.path, episodes=2).episodes == 2
    assert installed.orders[-1].num_envs == 2
    with pytest.raises(ValueError, match=r"mjlab has no task 'Stub-Tusk': did you mean Stub-Task\?"):
        make_env("mjlab:Stub-Tusk", 4)
    with pytest.raises(ValueError, match="built by its own maker: leave the backend"):
        make_env("mjlab:Stub-Task", 4, "envpool")


def test_evaluation_leaves_the_counters_and_cuts_no_episode(installed: types.SimpleNamespace, tmp_path: Any) -> None:
    config = us.TrainConfig(
        env=EnvConfig(id="mjlab:Stub-Task", num_envs=8),
        ppo=us.PPOConfig(num_steps=8, minibatches=2, epochs=1, warmup_steps=0),
        evaluation=us.EvaluationConfig(episodes=8, interval=64),
        checkpoint=us.CheckpointConfig(interval=64),
        total_steps=192,
        run_dir=str(tmp_path / "run"),
    )
    run = us.train(config)
    counted = torch.load(sorted((run.path / "checkpoints").glob("step_*.pt"))[-1], weights_only=True)["state"]
    assert counted["env_counters"] == {"common_step_counter": 24}  # of three iterations, without the evaluations' steps


def test_an_evaluation_that_fails_leaves_the_counters(
    installed: types.SimpleNamespace, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint that is rescued has the training's counter, not that of the evaluation that failed."""

    def failing(policy: Any, env: Any, **options: Any) -> None:
        env.reset(0)
        for _ in range(5):
            env.step(torch.zeros(env.num_envs, 2))
        raise RuntimeError("no display")

    monkeypatch.setattr("understudy.training.training.evaluate_together", failing)
    config = us.TrainConfig(
        env=EnvConfig(id="mjlab:Stub-Task", num_envs=8),
        ppo=us.PPOConfig(num_steps=8, minibatches=2, epochs=1, warmup_steps=0),
        evaluation=us.EvaluationConfig(interval=64),
        checkpoint=us.CheckpointConfig(interval=None),
        total_steps=192,
        run_dir=str(tmp_path / "run"),
    )
    with pytest.raises(RuntimeError, match="no display"):
        us.train(config)
    newest = max((tmp_path / "run" / "checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
    counted = torch.load(newest, weights_only=True)["state"]
    assert counted["env_counters"] == {"common_step_counter": 8}


def test_one_isaac_sim_per_process(installed: types.SimpleNamespace, tmp_path: Any) -> None:
    config = us.TrainConfig(
        env=EnvConfig(id="isaaclab:Stub-Task", num_envs=8),
        ppo=us.PPOConfig(num_steps=8, minibatches=2, epochs=1),
        evaluation=us.EvaluationConfig(episodes=3, env_kwargs={"a": 1}),
        total_steps=64,
        run_dir=str(tmp_path / "run"),
    )
    with pytest.raises(ValueError, match="a process runs one simulator of isaaclab:Stub-Task"):
        us.train(config)
    env = make_env("isaaclab:Stub-Task", 4)
    with pytest.raises(ValueError, match="one simulator per process, and isaaclab:Stub-Task is open: close it first"):
        make_env("isaaclab:Stub-Task", 4)
    env.close()
    make_env("isaaclab:Stub-Task", 4).close()


def test_a_missing_simulator_names_package_and_extra() -> None:
    for id, message in {
        "mjlab:X": r'mjlab:X needs mjlab \(package mjlab\): pip install "understudy-rl\[mjlab\]"',
        "maniskill:X": r'ManiSkill \(package mani_skill\): pip install "understudy-rl\[maniskill\]"',
        "playground:X": r'\(package mujoco_playground\): pip install "understudy-rl\[playground\]"',
        "isaaclab:X": r"needs Isaac Lab \(package isaaclab\): install Isaac Sim and Isaac Lab",
    }.items():
        if not KINDS[id.partition(":")[0]].installed:
            with pytest.raises(ImportError, match=message):
                make_env(id, 4)
    listed = {entry.id for entry in us.envs.list_envs()}
    assert "mjlab:TASK" in listed or any(id.startswith("mjlab:") for id in listed)


def test_options_by_their_place() -> None:
    def config() -> Any:
        return types.SimpleNamespace(
            scene=types.SimpleNamespace(num_envs=1), rewards={"upright": types.SimpleNamespace(weight=1.0)}, name="a"
        )

    cfg = config()
    set_options(cfg, {"scene.num_envs": 3, "rewards.upright.weight": 2, "name": "b"}, "mjlab:T")
    assert (cfg.scene.num_envs, cfg.rewards["upright"].weight, cfg.name) == (3, 2, "b")
    for options, message in {
        "scene.num_env": r"mjlab:T has no option 'scene.num_env': did you mean num_envs\?",
        "reward.upright": r"mjlab:T has no option 'reward': did you mean rewards\?",
        "rewards.uprite.weight": r"no option 'rewards.uprite': did you mean upright\?",
    }.items():
        with pytest.raises(ValueError, match=message):
            set_options(config(), {options: 1}, "mjlab:T")
    with pytest.raises(ValueError, match=r"scene.num_envs must be a whole number"):
        set_options(config(), {"scene.num_envs": "many"}, "mjlab:T")
