from __future__ import annotations

import math
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.envs.base import Step
from understudy.envs.registry import EnvConfig
from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.runs.evaluation import EvaluationResult
from understudy.tools import evaluate as evaluation
from understudy.tools import film as video
from understudy.tools import play
from understudy.tools.evaluate import evaluate
from understudy.tools.play import quotas
from understudy.types import NonFiniteError


class CountingEnv:
    """Environment i ends every episode after i + 1 steps; the reward of a step is the action, scaled by 10^i."""

    def __init__(self, num_envs: int, *, junk_rows: bool = False, endless: bool = False) -> None:
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self.observation_space = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (1,), np.float32)})
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.junk_rows, self.endless, self.closed = junk_rows, endless, False
        self.age = torch.zeros(num_envs, dtype=torch.long)
        self.ended = torch.zeros(num_envs, dtype=torch.bool)

    def observe(self) -> TensorDict:
        return TensorDict({"policy": self.age.float().unsqueeze(-1)}, [self.num_envs])

    def reset(self, seed: int | None = None) -> TensorDict:
        self.age.zero_()
        return self.observe()

    def step(self, action: Tensor) -> Step:
        valid = ~self.ended if self.junk_rows else torch.ones(self.num_envs, dtype=torch.bool)
        self.age += valid
        reward = action[:, 0] * 10.0 ** torch.arange(self.num_envs) * valid
        ended = (self.age > torch.arange(self.num_envs)) & valid & (not self.endless)
        self.age[ended] = 0
        self.ended = ended
        never = torch.zeros_like(ended)
        return Step(self.observe(), reward, ended, never, None, {}, valid if self.junk_rows else None)

    def close(self) -> None:
        self.closed = True


class Ones(torch.nn.Module):
    """Acts 1 (plus noise if it samples); its recurrent state counts the steps of the episode and adds to the action."""

    def __init__(self, memory: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.memory = memory

    def initial_state(self, batch: int) -> Tensor | None:
        return torch.zeros(batch, 1) if self.memory else None

    def act(self, obs: TensorDict, state: Tensor | None, deterministic: bool) -> tuple[Tensor, Tensor | None]:
        assert not self.training
        action = torch.ones(obs.shape[0], 1)
        if not deterministic:
            action = action + torch.randn_like(action)
        return (action, None) if state is None else (action + self.memory * state, state + 1)


def test_batched_tasks_run_in_many_copies_others_in_few() -> None:
    number = evaluation._num_envs
    assert [number(n, EnvConfig(id="PointMass", num_envs=4)) for n in (1, 100, 1000)] == [1, 100, 512]
    assert [number(n, EnvConfig(id="CartPole-v1", num_envs=4)) for n in (1, 100)] == [1, 15]
    assert number(100, EnvConfig(id="CartPole-v1", num_envs=64)) == 16


def test_every_environment_owes_a_fixed_number() -> None:
    assert quotas(7, 3) == [3, 2, 2]
    assert quotas(2, 2) == [1, 1]


@pytest.mark.parametrize("junk_rows", [False, True])
def test_no_bias_towards_short_episodes(junk_rows: bool) -> None:
    result = evaluate(Ones(), env=CountingEnv(3, junk_rows=junk_rows), episodes=5)  # type: ignore[arg-type]
    # environment 0 runs one-step episodes of return 1, twice; 1: two steps of 10, twice; 2: three steps of 100, once
    assert result.returns == (1.0, 1.0, 20.0, 20.0, 300.0)
    assert result.lengths == (1, 1, 2, 2, 3)
    assert result.mean_return == pytest.approx(342 / 5)
    assert result.std_return == pytest.approx(np.std([1.0, 1.0, 20.0, 20.0, 300.0]))
    assert result.mean_length == pytest.approx(9 / 5)
    assert result.episodes == 5
    assert (result.min_return, result.max_return) == (1.0, 300.0)


@pytest.mark.parametrize("junk_rows", [False, True])
def test_memory_restarts_with_every_episode(junk_rows: bool) -> None:
    env = CountingEnv(2, junk_rows=junk_rows)
    result = evaluate(Ones(memory=1.0), env=env, episodes=4)  # type: ignore[arg-type]
    # actions 1, 2, ... within an episode: one step of 1; two steps of 10 x (1 + 2)
    assert result.returns == (1.0, 1.0, 30.0, 30.0)


def test_sampling_follows_the_seed_and_leaves_the_global_stream() -> None:
    policy = Ones().train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = evaluate(policy, env=CountingEnv(3), episodes=3, seed=1, deterministic=False)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert evaluate(policy, env=CountingEnv(3), episodes=3, seed=1, deterministic=False) == first  # type: ignore[arg-type]
    assert evaluate(policy, env=CountingEnv(3), episodes=3, seed=2, deterministic=False) != first  # type: ignore[arg-type]
    assert policy.training  # as it was


def test_endless_episodes_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "STEP_LIMIT", 50)
    result = evaluate(Ones(), env=CountingEnv(1, endless=True), episodes=1)  # type: ignore[arg-type]
    assert result.lengths == (50,)


class Faulty(CountingEnv):
    """Some of the numbers are broken, from the third step on."""

    def __init__(self, num_envs: int, what: str, value: float, **options: bool) -> None:
        super().__init__(num_envs, **options)
        self.what, self.value, self.steps = what, value, 0

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        self.steps += 1
        if self.what == "all":
            step.obs["policy"].fill_(self.value)
            return step._replace(reward=torch.full_like(step.reward, self.value))
        if self.steps % 3 == 0:
            (step.obs["policy"] if self.what == "obs" else step.reward)[-1] = self.value
        return step


@pytest.mark.parametrize("value", [math.nan, -math.inf, 1e38, 1e20])
@pytest.mark.parametrize("what", ["obs", "reward"])
def test_broken_numbers_count_as_zero_and_are_counted(
    what: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    result = evaluate(Ones(), env=Faulty(2, what, value), episodes=8)  # type: ignore[arg-type]
    # environment 1 plays four episodes of two steps; without final observations, the next first one stands for it
    assert result.broken_steps == (3 if what == "obs" else 2)
    assert result.returns[4:] == ((20.0,) * 4 if what == "obs" else (20.0, 10.0, 10.0, 20.0))
    assert "steps held broken numbers" in caplog.text
    assert "broken" in result.sentence()
    assert evaluate(Ones(), env=CountingEnv(1), episodes=8).broken_steps == 0  # type: ignore[arg-type]


def test_nothing_but_nan_is_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NonFiniteError, match="nothing to score"):
        evaluate(Ones(), env=Faulty(2, "all", math.nan), episodes=2)  # type: ignore[arg-type]
    monkeypatch.setattr(play, "_PATIENCE", 20)
    with pytest.raises(NonFiniteError, match="no sound number in 20 steps"):
        evaluate(Ones(), env=Faulty(1, "all", math.nan, endless=True), episodes=1)  # type: ignore[arg-type]


def test_a_broken_policy_is_to_blame_itself() -> None:
    env = CountingEnv(1)
    policy = ActorCritic(env.observation_space, env.action_space, PolicyConfig(hidden_sizes=(4,)))
    with torch.no_grad():
        policy.head.linear.bias.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="the policy returned an action that is not finite"):
        evaluate(policy, env=env, episodes=1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38, 1e12])
def test_acting_with_a_memory_forgets_a_broken_number(bad: float) -> None:
    space = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (3,), np.float32)})
    torch.manual_seed(0)
    policy = ActorCritic(space, spaces.Box(-1.0, 1.0, (2,)), PolicyConfig(memory="lstm", memory_size=4))
    policy.update_normalizers(TensorDict({"policy": torch.randn(64, 3)}, [64]))
    poisoned, zeroed = np.array([0.5, bad, -1.0], np.float32), np.array([0.5, 0.0, -1.0], np.float32)
    (action, state), (expected, clean) = policy.act(poisoned), policy.act(zeroed)
    assert np.array_equal(action, expected)
    assert torch.equal(state, clean)  # type: ignore[arg-type]


def test_no_episodes_is_an_error() -> None:
    with pytest.raises(ValueError, match="episodes must be at least 1"):
        evaluate(Ones(), env=CountingEnv(1), episodes=0)  # type: ignore[arg-type]


def test_json_has_no_nan() -> None:
    result = EvaluationResult(
        mean_return=math.nan,
        std_return=1.0,
        min_return=0.0,
        max_return=math.inf,
        mean_length=2.0,
        episodes=2,
        deterministic=True,
        seed=0,
        returns=(1.0, math.nan),
        lengths=(2, 2),
    )
    plain = result.to_dict()
    assert plain["mean_return"] is None
    assert plain["returns"] == [1.0, None]
    assert plain["std_return"] == 1.0
    assert "± 1.0 (2 deterministic episodes of 2 steps" in result.sentence()


def cartpole() -> tuple[ActorCritic, EnvConfig]:
    env = gym.make("CartPole-v1")
    policy = ActorCritic(spaces.Dict({"policy": env.observation_space}), env.action_space, PolicyConfig())
    return policy, EnvConfig(id="CartPole-v1", num_envs=2)


def test_missing_video_package_is_named_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    policy, config = cartpole()
    with pytest.raises(ImportError, match=r"understudy-rl\[video\]"):
        evaluate(policy, env=config, episodes=1, video="never.mp4")


def test_failing_renderer_does_not_lose_the_evaluation(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imageio_ffmpeg")

    def broken(config: EnvConfig) -> gym.Env:
        raise RuntimeError("no EGL device\nlong trace")

    monkeypatch.setattr(video, "make_render_env", broken)
    policy, config = cartpole()
    result = evaluate(policy, env=config, episodes=2, video=tmp_path / "film.mp4")
    assert result.episodes == 2
    assert result.video is None
    assert result.video_error == "RuntimeError: no EGL device"
    assert list(tmp_path.iterdir()) == []


class Painted(gym.Env):
    """Seven frames of odd size."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-5.0, 5.0, (4,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.age, self.rendered = 0, 0

    def reset(self, *, seed=None, options=None):
        self.age = 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.age += 1
        return np.zeros(4, np.float32), 1.0, self.age == 7, False, {}

    def render(self):
        self.rendered += 1
        return np.full((65, 97, 3), 10 * self.age, np.uint8)


def test_film_is_an_mp4_of_even_size_and_sane_frame_rate(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    imageio = pytest.importorskip("imageio")
    pytest.importorskip("imageio_ffmpeg")
    env = Painted()
    monkeypatch.setattr(video, "make_render_env", lambda config: env)
    policy, config = cartpole()
    path = tmp_path / "new" / "film.mp4"
    film = video.film(policy.eval(), config, path, 0, True)
    assert film is None
    # 100 frames/s are filmed at 50, every second step of 72 episodes of 7: the first ones that last five seconds
    assert env.rendered == 72 * 7 / 2
    reader = imageio.get_reader(path)
    assert reader.get_meta_data()["fps"] == 50.0
    assert reader.get_meta_data()["size"] == (96, 64)
    reader.close()
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]


def test_long_episodes_are_cut(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imageio_ffmpeg")
    env = Painted()
    monkeypatch.setattr(video, "make_render_env", lambda config: env)
    monkeypatch.setattr(video, "FILM_SECONDS", 0.04)
    policy, config = cartpole()
    assert video.film(policy.eval(), config, tmp_path / "film.mp4", 0, True) is None
    assert env.rendered == 2  # 0.04 s at 100 frames/s, every second one
