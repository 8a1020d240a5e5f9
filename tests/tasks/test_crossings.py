"""MiniGrid crossings: against the package `minigrid` step by step, against a plain search, by hand."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from understudy.envs import make_env
from understudy.envs.base import Step
from understudy.tasks import crossings, minigrid_rules
from understudy.tasks.crossings import CROSSINGS, Crossings
from understudy.tasks.minigrid_rules import EMPTY, FORWARD, GOAL, LAVA, LEFT, RIGHT, TOGGLE, WALL

CPU = torch.device("cpu")
CODES = {"#": WALL, ".": EMPTY, "~": LAVA, "G": GOAL}


def grid(*rows: str) -> Tensor:
    return torch.tensor([[CODES[cell] for cell in row] for row in rows], dtype=torch.uint8)


RIVER = grid("#####", "#.~.#", "#.~.#", "#..G#", "#####")
"""The way from (1, 1): turn right, two forward, turn left, two forward: six actions."""


def started(drawn: Tensor, **options: Any) -> tuple[Crossings, Any]:
    """One copy on a grid of ours, and its first observation."""
    env = Crossings(1, size=len(drawn), crossings=1, **options)
    env.reset(seed=0)
    env._put(torch.arange(len(env.cells)), drawn.expand(len(env.cells), -1, -1))
    env._restart(torch.ones(1, dtype=torch.bool))
    return env, env.observe()


def play(env: Crossings, *actions: int) -> list[Step]:
    return [env.step(torch.tensor([action])) for action in actions]


def drawn(count: int, size: int, number: int, seed: int = 0) -> Tensor:
    return minigrid_rules.draw_crossings(count, size, number, "wall", torch.Generator().manual_seed(seed), CPU)


# ---------------------------------------------------------------------------------------------- against minigrid


@pytest.mark.parametrize("obstacle", ["wall", "lava"])
@pytest.mark.parametrize(("size", "number"), [(5, 1), (9, 4), (13, 5)])
def test_equals_the_package_minigrid_step_by_step(obstacle: Any, size: int, number: int) -> None:
    core = pytest.importorskip("minigrid.envs.crossing")
    count, limit = 40, 80
    options: dict[str, Any] = {"size": size, "crossings": number, "obstacle": obstacle, "max_episode_steps": limit}
    ours = Crossings(count, **options)
    ours.reset(seed=0)
    theirs = [core.CrossingEnv(size, number, obstacle_type=obstacle, max_steps=limit) for _ in range(count)]
    images = [env.reset(seed=seed)[0]["image"] for seed, env in enumerate(theirs)]
    ours._put(ours.slot, torch.stack([torch.as_tensor(env.grid.encode()[:, :, 0].T) for env in theirs]))
    obs = ours.observe()
    np.testing.assert_array_equal(obs["policy"].numpy(), images)

    generator = torch.Generator().manual_seed(1)
    follows = torch.rand(count, generator=generator) * 1.5  # from random walks to the expert itself
    running, ends = list(range(count)), set()
    while running:
        random = torch.randint(3, (count,), generator=generator)
        expert = torch.rand(count, generator=generator) < follows
        action = torch.where(expert, obs["expert_action"], random)
        step = ours.step(action)
        obs, final = step.obs, step.final_obs
        assert final is not None
        for i in list(running):
            image, reward, terminated, truncated, _ = theirs[i].step(int(action[i]))
            np.testing.assert_array_equal(final["policy"][i].numpy(), image["image"])
            assert step.reward[i].item() == pytest.approx(reward, abs=1e-6)
            assert step.terminated[i].item() == terminated
            assert step.truncated[i].item() == (truncated and not terminated)
            if terminated or truncated:
                running.remove(i)
                ends.add("goal" if reward else "lava" if terminated else "limit")
            else:
                y, x = divmod(int(ours.position[i]), ours.width)
                assert (x - 6, y - 6, int(ours.direction[i])) == (*theirs[i].agent_pos, theirs[i].agent_dir)
    assert ends >= ({"goal", "lava"} if obstacle == "lava" else {"goal", "limit"})


def test_grids_are_as_often_as_in_minigrid() -> None:
    core = pytest.importorskip("minigrid.envs.crossing")
    env, count, times = core.CrossingEnv(9, 4, obstacle_type="wall"), 400, 100
    theirs = np.zeros((9, 9))
    for seed in range(count):
        env.reset(seed=seed)
        theirs += env.grid.encode()[:, :, 0].T == WALL
    ours = (drawn(times * count, 9, 4) == WALL).double().mean(0).numpy()
    deviation = np.sqrt(ours * (1.0 - ours) / count)  # of their frequency; ours is as good as exact
    assert (np.abs(theirs / count - ours) <= 4.0 * deviation).all()


# ---------------------------------------------------------------------------------------------- grids


def test_the_smallest_grids_by_hand() -> None:
    # one river: column 2 or row 2, open at 1, 2 or 3, all equally likely
    grids, counts = drawn(6000, 5, 1).unique(dim=0, return_counts=True)
    assert len(grids) == 6
    assert ((counts - 1000).abs() < 4 * (6000 * 1 / 6 * 5 / 6) ** 0.5).all()
    # two rivers: the walk goes above or below their crossing, half and half
    grids, counts = drawn(1000, 5, 2).unique(dim=0, return_counts=True)
    below = grid("#####", "#.#.#", "#.###", "#..G#", "#####")
    above = grid("#####", "#...#", "###.#", "#.#G#", "#####")
    assert {tuple(g.flatten().tolist()) for g in grids} == {tuple(g.flatten().tolist()) for g in (below, above)}
    assert (counts - 500).abs().max() < 4 * 250**0.5


@pytest.mark.parametrize(("size", "number"), [(7, 4), (25, 10), (35, 3)])
def test_every_grid_has_its_rivers_an_opening_in_each_and_a_way(size: int, number: int) -> None:
    grids = minigrid_rules.draw_crossings(50, size, number, "lava", torch.Generator().manual_seed(0), CPU)
    lava = grids == LAVA
    # along a river all is lava but its one opening
    full = size - 3
    columns, rows = (lava.sum(1) >= full).sum(1), (lava.sum(2) >= full).sum(1)
    assert ((columns + rows) == number).all()
    assert (lava.sum((1, 2)) == number * (size - 2) - columns * rows - number).all()
    edge = torch.ones(size, size, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    assert (grids[:, edge] == WALL).all()
    assert (grids[:, -2, -2] == GOAL).all()
    assert (minigrid_rules.remaining_edges(grids)[:, 0, 1, 1] > 0).all()


# ---------------------------------------------------------------------------------------------- expert


def search(cells: Tensor) -> dict[tuple[int, int, int], int]:
    """Fewest actions to the goal from every (direction, y, x), by breadth-first search over reversed actions."""
    goal_y, goal_x = (cells == GOAL).nonzero()[0].tolist()
    found = {(d, goal_y, goal_x): 0 for d in range(4)}
    queue = deque(found)
    while queue:
        d, y, x = state = queue.popleft()
        dx, dy = minigrid_rules.DIRECTIONS[d]
        for before in ((d, y - dy, x - dx), ((d + 1) % 4, y, x), ((d - 1) % 4, y, x)):
            if before not in found and cells[before[1], before[2]] == EMPTY:
                found[before] = found[state] + 1
                queue.append(before)
    return found


@pytest.mark.parametrize(("size", "number"), [(5, 2), (11, 6), (33, 8)])
def test_remaining_edges_equal_a_plain_search(size: int, number: int) -> None:
    grids = drawn(6, size, number)
    edges = minigrid_rules.remaining_edges(grids)
    for cells, field in zip(grids, edges):
        expected = torch.zeros_like(field)
        for state, actions in search(cells).items():
            expected[state] = actions + 1
        assert torch.equal(field, expected)


def test_the_expert_goes_straight_longest_and_turns_left_first() -> None:
    open_field = grid("#####", "#...#", "#...#", "#..G#", "#####")
    plan = minigrid_rules.expert_plan(open_field.unsqueeze(0))[0]
    edges, action = plan >> 2, plan & 3
    # from (1, 1) looking right: two forward, right, two forward
    assert (edges[0, 1, 1], action[0, 1, 1]) == (6, FORWARD)
    assert (edges[1, 1, 1], action[1, 1, 1]) == (6, FORWARD)
    assert (edges[2, 1, 1], action[2, 1, 1]) == (7, LEFT)  # looking left: left to look down
    assert (edges[3, 1, 1], action[3, 1, 1]) == (7, RIGHT)
    # from (1, 3), the goal ahead and two cells away: looking back, both turns are as good
    assert (edges[2, 3, 1], action[2, 3, 1]) == (5, LEFT)
    assert (edges[:, 3, 3] == 1).all()
    assert (edges[:, 0] == 0).all()
    # six actions with two turns each, whether the first one is a turn or not
    corner = grid("#####", "#..##", "#...#", "#..G#", "#####")
    for cells, direction in ((corner, 0), (corner.T, 1)):
        plan = minigrid_rules.expert_plan(cells.unsqueeze(0))[0, direction, 1, 1]
        assert (plan >> 2, plan & 3) == (7, FORWARD)


def test_the_expert_reaches_the_goal_in_as_many_steps_as_it_says() -> None:
    env = Crossings(30, size=15, crossings=7, obstacle="lava")
    obs = env.reset(seed=0)
    left, reward, ended = env._plan() >> 2, torch.zeros(30), torch.zeros(30, dtype=torch.bool)
    for step in range(1, int(left.max())):
        result = env.step(obs["expert_action"])
        obs = result.obs
        assert torch.equal(result.terminated & ~ended, (left == step + 1) & ~ended)
        reward = torch.where(ended, reward, result.reward)
        ended |= result.terminated
    torch.testing.assert_close(reward, 1.0 - 0.9 * (left - 1) / 900)
    assert (obs["expert_success"] == 1).all()


def test_a_corrupt_expert_errs_from_its_distance_on_for_the_rest_of_the_episode() -> None:
    env, obs = started(RIVER, obstacle="lava", corrupt=5)
    assert obs["expert_action"] == RIGHT
    play(env, RIGHT)
    assert not env.corrupted  # five actions are left
    play(env, FORWARD)
    assert env.corrupted  # four
    labels = {int(step.obs["expert_action"]) for step in play(env, *[LEFT, RIGHT] * 15)}
    assert labels == {LEFT, RIGHT, FORWARD}
    play(env, LEFT, LEFT, FORWARD)
    assert env.corrupted
    assert torch.equal(env.observe()["expert_action"], env.observe()["expert_action"])
    step = play(env, RIGHT, FORWARD)[-1]  # back at the start, into the lava
    assert step.terminated
    assert not env.corrupted
    assert step.obs["expert_action"] == RIGHT


# ---------------------------------------------------------------------------------------------- episodes by hand


def test_the_way_through_the_river_by_hand() -> None:
    env, obs = started(RIVER, obstacle="lava")
    assert obs["expert_action"] == RIGHT
    steps = play(env, RIGHT, FORWARD, FORWARD, LEFT, FORWARD, FORWARD)
    assert [int(step.obs["expert_action"]) for step in steps[:-1]] == [FORWARD, FORWARD, LEFT, FORWARD, FORWARD]
    assert [step.reward.item() for step in steps[:-1]] == [0.0] * 5
    assert steps[-1].reward.item() == pytest.approx(1.0 - 0.9 * 6 / 100)
    assert steps[-1].terminated
    assert not steps[-1].truncated
    assert [step.metrics["success"].isnan().item() for step in steps] == [True] * 5 + [False]
    assert steps[-1].metrics["success"] == 1.0
    assert torch.equal(steps[-1].obs["policy"], obs["policy"])  # the next episode has begun
    assert steps[-1].final_obs is not None
    assert not torch.equal(steps[-1].final_obs["policy"], obs["policy"])


def test_lava_ends_with_nothing_and_walls_stop() -> None:
    env, _ = started(RIVER, obstacle="lava")
    (step,) = play(env, FORWARD)
    assert step.terminated
    assert (step.reward, step.metrics["success"]) == (0.0, 0.0)
    env, _ = started(torch.where(RIVER == LAVA, WALL, RIVER))
    (step,) = play(env, FORWARD)
    assert not step.terminated
    assert env.position == env.start


def test_the_view_by_hand() -> None:
    walls = torch.where(RIVER == LAVA, WALL, RIVER)
    image = started(walls)[1]["policy"][0]
    # Looking right from (1, 1): along its row light stops at the walls (1, 0) and (1, 4). The next row, column 2, is
    # lit from all of (1, 1) to (1, 3) and one place beyond; only its opening (2, 3) is clear. It lights the row behind
    # it on both sides, and within that row light spreads back to the left, behind the river.
    objects = image[:, :, 0].T  # row 0 is far ahead, row 6 the agent's own
    assert objects[6].tolist() == [0, 0, WALL, EMPTY, EMPTY, EMPTY, WALL]
    assert objects[5].tolist() == [0, 0, WALL, WALL, WALL, EMPTY, WALL]
    assert objects[4].tolist() == [0, 0, WALL, EMPTY, EMPTY, GOAL, WALL]
    assert objects[3].tolist() == [0, 0, WALL, WALL, WALL, WALL, WALL]
    assert (objects[:3] == 0).all()
    assert image[4, 5].tolist() == [WALL, 5, 0]
    assert image[5, 4].tolist() == [GOAL, 1, 0]
    assert image[5, 5].tolist() == [EMPTY, 0, 0]
    through_lava = started(RIVER, obstacle="lava")[1]["policy"][0]
    assert through_lava[3, 4].tolist() == [EMPTY, 0, 0]  # lava hides nothing
    assert through_lava[3, 5].tolist() == [LAVA, 0, 0]


def test_time_limits_truncate_unless_the_goal_is_reached() -> None:
    env, _ = started(RIVER, obstacle="lava", max_episode_steps=6)
    steps = play(env, *[LEFT] * 6)
    assert [bool(step.truncated) for step in steps] == [False] * 5 + [True]
    assert not steps[-1].terminated
    final = steps[-1].final_obs
    assert final is not None
    assert not torch.equal(final["policy"], steps[-1].obs["policy"])  # two left turns on: it looks back
    last = play(env, RIGHT, FORWARD, FORWARD, LEFT, FORWARD, FORWARD)[-1]
    assert (bool(last.terminated), bool(last.truncated)) == (True, False)
    assert last.reward.item() == pytest.approx(0.1)


def test_switches_hide_the_view() -> None:
    plain = started(RIVER, obstacle="lava")[0]
    env, obs = started(RIVER, obstacle="lava", switch="faulty")
    assert env.action_space.n == 4  # type: ignore[attr-defined]
    assert (obs["policy"] == 0).all()
    shown, hidden = play(env, TOGGLE, RIGHT)
    assert torch.equal(shown.obs["policy"], plain.observe()["policy"])
    assert (hidden.obs["policy"] == 0).all()
    assert env.steps == 2  # a toggle is a step
    env, obs = started(RIVER, obstacle="lava", switch="once")
    assert (obs["policy"] == 0).all()
    assert all((step.obs["policy"] > 0).any() for step in play(env, TOGGLE, RIGHT, LEFT))
    (dead,) = play(env, FORWARD)
    assert dead.final_obs is not None
    assert (dead.final_obs["policy"] > 0).any()
    assert (dead.obs["policy"] == 0).all()  # the next episode has to toggle again


def test_failed_grids_come_again_until_success_or_a_thousand_steps() -> None:
    options: dict[str, Any] = {
        "size": 5,
        "crossings": 1,
        "obstacle": "lava",
        "repeat_failed": True,
        "max_episode_steps": 400,
    }
    env = Crossings(1, **options)
    env.reset(seed=0)
    env._put(torch.arange(len(env.cells)), RIVER.expand(len(env.cells), -1, -1))
    first = env.slot.clone()
    assert play(env, FORWARD)[-1].terminated
    assert torch.equal(env.slot, first)
    play(env, *[LEFT] * 800)  # two time limits: 801 steps
    assert torch.equal(env.slot, first)
    play(env, *[LEFT] * 400)
    second = env.slot.clone()
    assert not torch.equal(second, first)
    play(env, FORWARD)
    assert torch.equal(env.slot, second)
    play(env, RIGHT, FORWARD, FORWARD, LEFT, FORWARD, FORWARD)
    assert not torch.equal(env.slot, second)


# ---------------------------------------------------------------------------------------------- copies, pool, state


def test_only_what_ended_starts_anew_and_copies_are_independent() -> None:
    env = Crossings(64, size=9, crossings=4, obstacle="lava")
    env.reset(seed=0)
    for _ in range(30):
        slots, steps = env.slot.clone(), env.steps.clone()
        result = env.step(torch.randint(3, (64,)))
        ended = result.terminated | result.truncated
        assert torch.equal(env.slot != slots, ended)
        assert torch.equal(env.steps, torch.where(ended, 0, steps + 1))
        assert (env.position[ended] == env.start).all()
        assert env.slot.unique().numel() == 64


def test_the_pool_gives_every_episode_a_new_grid() -> None:
    env = Crossings(20, obstacle="lava")
    env.reset(seed=0)
    seen = [env.cells[env.slot].flatten(1)]
    episodes = 20
    while episodes < 3 * crossings.POOL:  # beyond two refills
        result = env.step(torch.full((20,), FORWARD))
        seen.append(env.cells[env.slot[result.terminated]].flatten(1))
        episodes += int(result.terminated.sum())
        if not result.terminated.any():
            env.reset()
            seen.append(env.cells[env.slot].flatten(1))
            episodes += 20
    grids = torch.cat(seen)
    assert len(grids.unique(dim=0)) == len(grids)


def trace(env: Crossings, steps: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for _ in range(steps):
        result = env.step(torch.randint(len(env.turns) // 4, (env.num_envs,), generator=generator))
        kept += [result.obs["policy"].clone(), result.obs["expert_action"].clone(), result.reward, result.terminated]
    return kept


@pytest.mark.parametrize("repeat", [False, True])
def test_the_seed_fixes_everything_and_a_saved_state_goes_on_exactly(repeat: bool) -> None:
    options: dict[str, Any] = {
        "size": 7,
        "crossings": 2,
        "obstacle": "lava",
        "switch": "once",
        "corrupt": 5,
        "repeat_failed": repeat,
    }
    env, other, third = (Crossings(50, **options) for _ in range(3))
    first = env.reset(seed=3)["expert_action"].clone()
    assert torch.equal(first, other.reset(seed=3)["expert_action"])
    assert all(map(torch.equal, trace(env, 40, 0), trace(other, 40, 0)))
    state = env.state_dict()
    ahead = trace(env, 200, 1)
    assert torch.equal(env.cells, other.cells) == repeat  # without repeats the pool was refilled
    third.load_state_dict(state)
    for ours, played in ((third.steps, other.steps), (third.spent, other.spent), (third.corrupted, other.corrupted)):
        assert torch.equal(ours, played)
    assert torch.equal(third.observe()["expert_action"], other.observe()["expert_action"])
    assert all(map(torch.equal, ahead, trace(third, 200, 1)))
    assert not all(map(torch.equal, ahead, trace(other, 200, 2)))
    env.reset(seed=3)
    assert torch.equal(first, env.observe()["expert_action"])
    env.reset(seed=4)
    assert not torch.equal(state["grids"], env.state_dict()["grids"])
    with pytest.raises(ValueError, match="same num_envs"):
        Crossings(3, **options).load_state_dict(state)


class HostReads(TorchDispatchMode):
    """Counts what would wait for an accelerator: numbers read, and shapes that depend on numbers."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(tag in func.tags for tag in (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))
        return func(*args, **(kwargs or {}))


def test_an_accelerator_plays_the_same_episodes_and_is_not_waited_for() -> None:
    options: dict[str, Any] = {"size": 7, "crossings": 2, "obstacle": "lava", "switch": "once"}
    env, pretender = Crossings(50, **options), Crossings(50, **options)
    pretender.host_is_device = False
    env.reset(seed=0)
    pretender.reset(seed=0)
    looks = 2 * crossings.STEPS_PER_LOOK
    with HostReads() as reads:
        played = trace(pretender, looks - 1, 0)
    assert reads.count == 1  # the one look in between: all waiting grids still do
    assert all(map(torch.equal, trace(env, looks - 1, 0), played))
    trace(pretender, 400, 1)
    assert pretender.slot.unique().numel() == 50
    assert not torch.equal(pretender.state_dict()["grids"], env.state_dict()["grids"])  # refilled


def test_the_named_tasks_are_the_papers() -> None:
    tasks = {name: make_env(name, 1) for name in CROSSINGS}
    table = {
        name: (c.obstacle, c.size, c.crossings, c.max_episode_steps, c.switch, c.corrupt)
        for name, c in tasks.items()
        if isinstance(c, Crossings) and not c.repeat_failed
    }
    assert table == {
        "LavaCrossing-v0": ("lava", 25, 10, 2500, "none", 0),
        "WallCrossing-v0": ("wall", 25, 10, 2500, "none", 0),
        "WallCrossingCorrupt-v0": ("wall", 25, 10, 2500, "none", 15),
        "LavaCrossingCorrupt-v0": ("lava", 15, 7, 900, "none", 10),
        "WallCrossingFaulty-v0": ("wall", 15, 7, 900, "faulty", 0),
        "WallCrossingOnce-v0": ("wall", 25, 10, 2500, "once", 0),
        "LavaCrossingFaulty-v0": ("lava", 9, 4, 324, "faulty", 0),
        "LavaCrossingOnce-v0": ("lava", 15, 7, 900, "once", 0),
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 8}, "size is 8: rivers need an odd size from 5 to 63"),
        ({"size": 65}, "size is 65"),
        ({"size": 9, "crossings": 7}, "crossings is 7: a grid of size 9 has room for 1 to 6"),
        ({"obstacle": "water"}, "obstacle must be one of wall, lava"),
        ({"switch": "twice"}, "switch must be one of none, faulty, once"),
        ({"corrupt": -1}, "corrupt must be at least 0"),
        ({"max_episode_steps": 0}, "max_episode_steps must be at least 1"),
    ],
)
def test_bad_configurations_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Crossings(1, **wrong)


def test_tasks_and_their_options_by_id() -> None:
    env = make_env("LavaCrossingFaulty-v0", 3, env_kwargs={"size": 7, "crossings": 2, "repeat_failed": True})
    assert isinstance(env, Crossings)
    assert (env.size, env.crossings, env.obstacle, env.switch) == (7, 2, "lava", "faulty")
    assert env.repeat_failed
    limited = make_env("WallCrossing-v0", 1, max_episode_steps=9)
    assert isinstance(limited, Crossings)
    assert limited.max_episode_steps == 9
    obs = env.reset(seed=0)
    assert env.observation_space.contains(
        {key: value[0].numpy() for key, value in obs.items()} | {"expert_action": 0, "expert_success": 1}
    )
    with pytest.raises(ValueError, match="has no option 'sise': did you mean size"):
        make_env("WallCrossing-v0", 1, env_kwargs={"sise": 7})
    with pytest.raises(ValueError, match="size must be a whole number, got '7'"):
        make_env("WallCrossing-v0", 1, env_kwargs={"size": "7"})
    with pytest.raises(ValueError, match="repeat_failed must be true or false, got 1"):
        make_env("WallCrossing-v0", 1, env_kwargs={"repeat_failed": 1})


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        Crossings(0)
    env = Crossings(2, size=5, crossings=1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(2, 1\)"):
        env.step(torch.zeros(2, 1, dtype=torch.int64))
