"""LightHouse: the rules, walked by hand; the expert's rules and its optimal lengths; the last step; saved states."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from understudy.envs import StatefulEnv, make_env
from understudy.envs.base import Step
from understudy.tasks.light_house import (
    DOWN,
    EMPTY,
    GOAL,
    LEFT,
    NONE,
    RIGHT,
    UP,
    WALL,
    WRONG_CORNER,
    LightHouse,
    all_observations,
    expert_action,
)

TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT = range(4)


def env_with_goal(corner: int, **options: int) -> LightHouse:
    """One copy, in the centre."""
    env = LightHouse(1, **options)
    for seed in range(100):
        env.reset(seed)
        if int(env.known & 3) == corner:
            return env
    raise AssertionError("no seed draws this corner")


def walk(env: LightHouse, *moves: tuple[int, int]) -> Step:
    """(action, times)...; the last step."""
    for action, times in moves:
        for _ in range(times):
            step = env.step(torch.tensor([action]))
    return step


def seen(env: LightHouse) -> list[int]:
    return env.observe()["policy"][0].tolist()


def test_what_is_seen_on_the_way_to_a_wrong_and_to_the_good_corner() -> None:
    env = env_with_goal(TOP_LEFT, view_radius=3, world_radius=5, expert_radius=3)
    assert seen(env) == [EMPTY] * 4 + [NONE, NONE]
    walk(env, (RIGHT, 1))
    assert seen(env) == [EMPTY] * 4 + [NONE, RIGHT]
    walk(env, (RIGHT, 1))  # three more columns: the border
    assert seen(env) == [EMPTY, WALL, EMPTY, WALL, NONE, RIGHT]
    walk(env, (UP, 2))  # (-2, 2): the corner (-5, 5) is at distance 3
    assert seen(env) == [WALL, WRONG_CORNER, EMPTY, WALL, NONE, UP]
    walk(env, (LEFT, 4))  # (-2, -2): the other corner at distance 3; the wrong one is remembered
    assert seen(env) == [GOAL, WRONG_CORNER, WALL, EMPTY, NONE, LEFT]
    step = walk(env, (LEFT, 3), (UP, 2))
    assert float(step.reward) == pytest.approx(-0.01)
    assert seen(env) == [GOAL, WRONG_CORNER, WALL, EMPTY, LEFT, UP]  # the only border here, though UP was the move
    step = walk(env, (UP, 1))
    assert float(step.reward) == pytest.approx(0.99)
    assert (bool(step.terminated), bool(step.truncated)) == (True, False)
    assert step.final_obs is not None
    assert step.final_obs["policy"][0].tolist() == [GOAL, WRONG_CORNER, WALL, EMPTY, UP, UP]
    assert step.obs["policy"][0].tolist() == [EMPTY] * 4 + [NONE, NONE]


def test_the_border_stops_and_which_border_is_hit() -> None:
    env = env_with_goal(TOP_LEFT, world_radius=2, expert_radius=1)
    walk(env, (RIGHT, 5))
    assert seen(env)[4:] == [RIGHT, RIGHT]
    walk(env, (DOWN, 2))  # the wrong corner (2, 2) touches two borders: that of the last move counts
    assert seen(env) == [EMPTY, WALL, WALL, WRONG_CORNER, DOWN, DOWN]
    walk(env, (RIGHT, 1))
    assert seen(env)[4:] == [RIGHT, RIGHT]
    walk(env, (LEFT, 1))  # (2, 1): not on the left border, on the lower one
    assert seen(env)[4:] == [DOWN, LEFT]
    walk(env, (LEFT, 1), (UP, 1))
    assert seen(env)[4:] == [NONE, UP]
    walk(env, (UP, 2))
    assert seen(env)[4:] == [NONE, UP]
    walk(env, (UP, 1))
    assert seen(env)[4:] == [UP, UP]
    walk(env, (RIGHT, 2))  # the corner (-2, 2) by a move to the right
    assert seen(env)[4:] == [RIGHT, RIGHT]
    walk(env, (DOWN, 1))
    assert seen(env)[4:] == [RIGHT, DOWN]


def test_the_last_step_costs_one_and_terminates() -> None:
    env = env_with_goal(TOP_LEFT, world_radius=2, expert_radius=2, max_episode_steps=4)
    assert float(walk(env, (UP, 3)).reward) == pytest.approx(-0.01)
    step = walk(env, (UP, 1))
    assert float(step.reward) == -1.0
    assert (bool(step.terminated), bool(step.truncated)) == (True, False)
    assert float(step.metrics["success"]) == 0.0
    env = env_with_goal(TOP_LEFT, world_radius=2, expert_radius=2, max_episode_steps=4)
    step = walk(env, (UP, 2), (LEFT, 2))
    assert float(step.reward) == pytest.approx(0.99)
    assert float(step.metrics["success"]) == 1.0
    assert math.isnan(walk(env, (UP, 1)).metrics["success"])


@pytest.mark.parametrize("radius", [1, 3, 7, 15])
def test_the_expert_is_optimal_for_what_it_sees(radius: int) -> None:
    lengths = []
    for corner in range(4):
        env, length, over = env_with_goal(corner, view_radius=radius, expert_radius=radius), 0, False
        while not over:
            step = env.step(env.observe()["expert_action"])
            length, over = length + 1, bool(step.terminated)
        assert float(step.reward) == pytest.approx(0.99)
        lengths.append(length)
    assert sum(lengths) / 4 == 0.25 * (8 * radius + 20 * (15 - radius))


def test_an_expert_that_sees_further_goes_straight() -> None:
    env = env_with_goal(BOTTOM_LEFT)  # the agent sees 1 cell, the expert all 15
    for t in range(30):
        step = env.step(env.observe()["expert_action"])
        assert bool(step.terminated) == (t == 29)


E_, G, X, W = EMPTY, GOAL, WRONG_CORNER, WALL


@pytest.mark.parametrize(
    ("observed", "action"),
    [
        ((E_, G, E_, E_, NONE, UP), RIGHT),  # 1: to the border, then along it
        ((E_, G, W, X, RIGHT, UP), UP),
        ((E_, E_, E_, G, NONE, UP), DOWN),
        ((E_, E_, E_, G, DOWN, UP), RIGHT),
        ((X, X, G, X, NONE, UP), LEFT),
        ((X, X, G, X, LEFT, UP), DOWN),
        ((G, E_, E_, E_, RIGHT, NONE), UP),
        ((G, E_, E_, E_, UP, NONE), LEFT),
        ((W, X, E_, W, RIGHT, UP), LEFT),  # 2: one wrong corner
        ((E_, W, W, X, NONE, NONE), UP),
        ((W, W, X, W, LEFT, LEFT), RIGHT),
        ((X, E_, E_, E_, NONE, LEFT), DOWN),
        ((E_, X, E_, X, NONE, DOWN), LEFT),  # 3: two adjacent ones
        ((E_, E_, X, X, NONE, DOWN), UP),
        ((X, E_, X, E_, NONE, DOWN), RIGHT),
        ((X, X, E_, E_, NONE, LEFT), DOWN),
        ((X, W, E_, X, NONE, DOWN), DOWN),  # opposite ones: the later rules
        ((X, X, X, W, NONE, DOWN), RIGHT),  # three
        ((W, W, W, W, RIGHT, RIGHT), UP),  # 4: at a border, all corners alike
        ((W, W, W, W, DOWN, DOWN), RIGHT),
        ((W, W, W, W, LEFT, UP), UP),
        ((E_, E_, E_, E_, UP, LEFT), LEFT),
        ((E_, W, E_, W, NONE, RIGHT), UP),  # 5: the border comes in sight
        ((W, W, E_, E_, NONE, UP), LEFT),
        ((W, E_, W, E_, NONE, LEFT), DOWN),
        ((E_, E_, W, W, NONE, DOWN), RIGHT),
        ((E_, E_, E_, E_, NONE, NONE), RIGHT),  # 6: the first move
        ((E_, W, E_, W, NONE, UP), UP),  # 7: on
        ((W, E_, W, E_, NONE, DOWN), DOWN),
    ],
)
def test_the_experts_rules(observed: tuple[int, ...], action: int) -> None:
    assert expert_action(*observed) == action


def test_the_expert_has_an_action_for_every_observation() -> None:
    rows = all_observations()
    assert rows.shape == (6400, 6)
    assert {expert_action(*row) for row in rows.tolist()} == {DOWN, RIGHT, UP, LEFT}


def test_a_random_walk_stays_in_its_spaces_and_rows_are_independent() -> None:
    env = LightHouse(200, world_radius=3, expert_radius=3, max_episode_steps=20)
    draw, arrived = torch.Generator().manual_seed(0), 0
    obs = env.reset(0)
    assert torch.bincount(env.known & 3, minlength=4).tolist() == pytest.approx([50] * 4, abs=20)
    for _ in range(60):
        step = env.step(torch.randint(0, 4, (200,), generator=draw))
        assert not step.truncated.any()
        rewards = step.reward[step.terminated]
        assert torch.all(torch.isclose(rewards, torch.tensor(0.99)) | (rewards == -1.0))
        assert torch.all(step.obs["policy"][step.terminated][:, 4:] == NONE)
        arrived += int((rewards > 0).sum())
        obs = step.obs
    assert 0 < arrived < 600
    assert obs["policy"].shape == (200, 6)
    for name, space in env.observation_space.spaces.items():
        assert all(space.contains(row) for row in obs[name].numpy())


def test_seeds_and_saved_states() -> None:
    def roll(env: LightHouse, steps: int) -> list[Tensor]:
        draw = torch.Generator().manual_seed(2)
        out = []
        for _ in range(steps):
            step = env.step(torch.randint(0, 4, (50,), generator=draw))
            out += [step.obs["policy"], step.obs["expert_action"], step.reward, step.terminated]
        return out

    def make() -> LightHouse:
        return LightHouse(50, view_radius=1, expert_radius=2, world_radius=3, max_episode_steps=15)

    env, other = make(), make()
    env.reset(7), other.reset(7)
    assert all(map(torch.equal, roll(env, 40), roll(other, 40)))
    saved = {name: tensor.clone() for name, tensor in env.state_dict().items()}
    first, restored = roll(env, 40), make()
    restored.load_state_dict(saved)
    assert isinstance(restored, StatefulEnv)
    assert all(map(torch.equal, first, roll(restored, 40)))


def test_an_accelerator_plays_the_same_episodes_and_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    env, pretender = LightHouse(50, max_episode_steps=6), LightHouse(50, max_episode_steps=6)
    pretender.host_is_device = False
    env.reset(seed=0)
    pretender.reset(seed=0)
    played = [env.step((torch.arange(50) + t // 3) % 4) for t in range(6)]

    def refuse(tensor: Tensor) -> bool:
        raise AssertionError("waited for the device")

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__bool__", refuse)
        also = [pretender.step((torch.arange(50) + t // 3) % 4) for t in range(6)]
    for one, other in zip(played, also):
        assert torch.equal(one.final_obs["policy"], other.final_obs["policy"])
        assert torch.equal(one.reward, other.reward)
    assert also[-1].terminated.all()
    for copies in (env, pretender):  # both start again in the centre
        assert (copies.position == copies._start).all()
        assert (copies.steps == 0).all()


def test_make_env_and_its_options() -> None:
    env = make_env("LightHouse-v0", 3, env_kwargs={"view_radius": 7, "expert_radius": 9}, max_episode_steps=50)
    assert isinstance(env, LightHouse)
    assert env.max_episode_steps == 50
    for options in ({"view_radius": 0}, {"view_radius": 5, "expert_radius": 3}, {"expert_radius": 16}):
        with pytest.raises(ValueError, match="1 <= view_radius <= expert_radius <= world_radius"):
            make_env("LightHouse-v0", 3, env_kwargs=options)
    with pytest.raises(ValueError, match="no option 'radius'"):
        make_env("LightHouse-v0", 3, env_kwargs={"radius": 5})
