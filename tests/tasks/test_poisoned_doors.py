"""PoisonedDoors: the rules, played by hand; the levels of known policies; time limits, seeds, saved states."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from understudy.envs import StatefulEnv, VecEnv, make_env
from understudy.envs.base import Step
from understudy.tasks.poisoned_doors import CHOOSING, DONE, ENTERED, TYPING, PoisonedDoors, code

CODE = [2, 0, 1, 1, 2, 0, 0, 1, 1, 1]


def env_with_good_door(door: int, **options: int) -> PoisonedDoors:
    """One copy, in its first state."""
    env = PoisonedDoors(1, **options)
    for seed in range(100):
        if int(env.reset(seed)["expert_action"]) == 3 + door:
            return env
    raise AssertionError("no seed draws this door")


def act(env: PoisonedDoors, action: int) -> Step:
    return env.step(torch.tensor([action]))


def play(env: PoisonedDoors, actions: list[int]) -> list[tuple[int, float, bool]]:
    """(true next observation, reward, terminated) of each step."""
    out = []
    for action in actions:
        step = act(env, action)
        assert step.final_obs is not None
        ended = bool(step.terminated | step.truncated)
        obs = int((step.final_obs if ended else step.obs)["policy"])
        out.append((obs, float(step.reward), bool(step.terminated)))
    return out


def returns(env: PoisonedDoors, choose: object, steps: int) -> tuple[float, float]:
    """Mean return and length of the episodes that end within `steps` steps of a policy `obs -> [N]`."""
    assert callable(choose)
    obs, total, count = env.reset(0), 0.0, 0.0
    for _ in range(steps):
        step = env.step(choose(obs))
        obs = step.obs
        total += float(step.reward.double().sum())
        count += float((step.terminated | step.truncated).sum())
    return total / count, steps * env.num_envs / count


def test_the_code_is_that_of_the_paper() -> None:
    assert code(10) == CODE


def test_doors() -> None:
    env = env_with_good_door(2)
    assert play(env, [0, 1, 2]) == [(CHOOSING, 0.0, False)] * 3  # digits do nothing here
    assert play(env, [5]) == [(DONE, 2.0, True)]
    for door in (1, 3):
        assert play(env_with_good_door(2), [3 + door]) == [(DONE, -2.0, True)]


def test_the_lock() -> None:
    env = env_with_good_door(1)
    out = play(env, [3, *CODE])
    assert [obs for obs, _, _ in out] == [ENTERED, *[TYPING] * 9, DONE]
    assert [reward for _, reward, _ in out] == [0.0] * 10 + [1.0]
    assert [over for _, _, over in out] == [False] * 10 + [True]


@pytest.mark.parametrize(("right", "wrong"), [(0, 0), (0, 3), (0, 4), (1, 2), (9, 2), (9, 6)])
def test_a_wrong_digit_or_any_door_ends_with_nothing(right: int, wrong: int) -> None:
    out = play(env_with_good_door(1), [3, *CODE[:right], wrong])
    assert out[-1] == (DONE, 0.0, True)
    assert all(not over for _, _, over in out[:-1])


def test_the_expert_knows_the_door_and_the_code() -> None:
    env = env_with_good_door(3)
    labels = [int(env.observe()["expert_action"])]
    labels += [int(act(env, action).obs["expert_action"]) for action in [3, *CODE[:9]]]
    assert labels == [6, *CODE]
    assert int(env.observe()["expert_success"]) == 1


def test_time_limit_is_a_truncation_with_the_true_observation() -> None:
    env = env_with_good_door(1, max_episode_steps=3)
    assert not any(bool(act(env, 0).truncated) for _ in range(2))
    step = act(env, 3)
    assert (bool(step.truncated), bool(step.terminated), float(step.reward)) == (True, False, 0.0)
    assert step.final_obs is not None
    assert (int(step.final_obs["policy"]), int(step.final_obs["expert_action"])) == (ENTERED, CODE[0])
    assert int(step.obs["policy"]) == CHOOSING
    env = env_with_good_door(1, max_episode_steps=1)
    step = act(env, 4)  # an end on the last step is an end
    assert (bool(step.truncated), bool(step.terminated), float(step.reward)) == (False, True, 2.0)


def test_metrics_are_of_ended_episodes() -> None:
    env = env_with_good_door(1, max_episode_steps=11)
    names = ("success", "good_door", "bad_door", "opened_lock")
    step = act(env, 3)
    assert all(math.isnan(step.metrics[name]) for name in names)
    for digit in CODE:
        step = act(env, digit)
    assert [float(step.metrics[name]) for name in names] == [1.0, 0.0, 0.0, 1.0]
    assert [float(act(env_with_good_door(1), 4).metrics[name]) for name in names] == [1.0, 1.0, 0.0, 0.0]
    assert [float(act(env_with_good_door(1), 5).metrics[name]) for name in names] == [0.0, 0.0, 1.0, 0.0]
    env = env_with_good_door(1, max_episode_steps=1)
    assert [float(act(env, 0).metrics[name]) for name in names] == [0.0, 0.0, 0.0, 0.0]  # out of time


def test_levels_of_known_policies() -> None:
    env = PoisonedDoors(2000)
    draw = torch.Generator().manual_seed(1)

    def randint(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (2000,), generator=draw)

    assert returns(env, lambda obs: obs["expert_action"], 20) == (2.0, 1.0)
    solver = torch.tensor([3, *CODE])
    clock = iter(range(22))
    assert returns(env, lambda obs: solver[next(clock) % 11].expand(2000), 22) == (1.0, 11.0)
    # a clone of the expert cannot tell the doors apart
    assert returns(env, lambda obs: randint(4, 7), 50)[0] == pytest.approx(-2 / 3, abs=0.02)
    mean, length = returns(env, lambda obs: randint(0, 7), 200)
    assert mean == pytest.approx(-0.5, abs=0.02)
    assert length == pytest.approx(2.04, abs=0.02)


def test_other_sizes() -> None:
    env = env_with_good_door(1, doors=3, code_length=1)
    assert env.action_space.n == 6  # type: ignore[attr-defined]
    assert play(env, [3, code(1)[0]]) == [(ENTERED, 0.0, False), (DONE, 1.0, True)]
    for options in ({"doors": 2}, {"code_length": 0}, {"max_episode_steps": 0}):
        with pytest.raises(ValueError, match=r"PoisonedDoors needs|max_episode_steps must be at least 1"):
            PoisonedDoors(1, **options)
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        PoisonedDoors(0)


def test_observations_and_rows_are_independent() -> None:
    env = PoisonedDoors(5)
    obs = env.reset(3)
    for name, space in env.observation_space.spaces.items():
        assert obs[name].shape == (5,)
        assert all(space.contains(int(x)) for x in obs[name])
    step = env.step(torch.tensor([0, 3, 4, 5, 6]))
    assert step.terminated.tolist() == [False, False, True, True, True]
    assert step.obs["policy"].tolist() == [CHOOSING, ENTERED, CHOOSING, CHOOSING, CHOOSING]
    assert step.reward.dtype == torch.float32
    drawn = torch.cat([PoisonedDoors(3000).reset(seed)["expert_action"] for seed in range(2)])
    assert torch.bincount(drawn - 4).div(6000).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_seeds_and_saved_states() -> None:
    def roll(env: PoisonedDoors, steps: int) -> list[Tensor]:
        draw = torch.Generator().manual_seed(2)
        out = []
        for _ in range(steps):
            step = env.step(torch.randint(0, 7, (50,), generator=draw))
            out += [step.obs["policy"], step.obs["expert_action"], step.reward, step.terminated, step.truncated]
        return out

    env, other = PoisonedDoors(50), PoisonedDoors(50)
    env.reset(7), other.reset(7)
    assert all(map(torch.equal, roll(env, 30), roll(other, 30)))
    other.reset(8)
    assert not torch.equal(env.reset(7)["expert_action"], other.observe()["expert_action"])
    saved = {name: tensor.clone() for name, tensor in env.state_dict().items()}
    first = roll(env, 30)
    restored = PoisonedDoors(50)
    restored.load_state_dict(saved)
    assert isinstance(restored, StatefulEnv)
    assert all(map(torch.equal, first, roll(restored, 30)))


def test_make_env_and_its_options() -> None:
    env: VecEnv = make_env("PoisonedDoors-v0", 4, env_kwargs={"doors": 5, "code_length": 3}, max_episode_steps=7)
    assert isinstance(env, PoisonedDoors)
    assert (env.action_space.n, len(env.code), env.max_episode_steps) == (8, 3, 7)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="PoisonedDoors-v0 has no option 'door': did you mean doors"):
        make_env("PoisonedDoors-v0", 4, env_kwargs={"door": 5})
    with pytest.raises(ValueError, match="doors must be a whole number"):
        make_env("PoisonedDoors-v0", 4, env_kwargs={"doors": 5.0})
