"""LightHouse: find the one good corner of a dark square while an expert sees further than the agent."""

from __future__ import annotations

from typing import NamedTuple

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.envs.base import Step
from understudy.tasks.batched import BatchedTask, expert_groups

EMPTY, GOAL, WRONG_CORNER, WALL = range(4)
DOWN, RIGHT, UP, LEFT, NONE = range(5)
"""Actions (row + 1, column + 1, row - 1, column - 1); NONE: no last action, nothing hit."""

CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
"""Sign of (row, column) of the corners in the order top left, top right, bottom left, bottom right."""
NVEC = [4, 4, 4, 4, 5, 5]
"""The observation: what is seen towards each corner, what was hit, the last action."""

TURN = {RIGHT: UP, UP: LEFT, LEFT: DOWN, DOWN: RIGHT}
"""The expert walks along the border, anticlockwise."""
AHEAD = {RIGHT: "tr", UP: "tl", LEFT: "bl", DOWN: "br"}
"""The corner that this walk comes to next, in each direction."""
AROUND_BORDER = {"tr": (RIGHT, UP), "br": (DOWN, RIGHT), "bl": (LEFT, DOWN), "tl": (UP, LEFT)}
"""The expert's way to a goal that it sees: to the border first, then along it."""
AWAY = {
    frozenset({"tr"}): LEFT,
    frozenset({"br"}): UP,
    frozenset({"bl"}): RIGHT,
    frozenset({"tl"}): DOWN,
    frozenset({"tr", "br"}): LEFT,
    frozenset({"br", "bl"}): UP,
    frozenset({"bl", "tl"}): RIGHT,
    frozenset({"tl", "tr"}): DOWN,
}
"""Known wrong corners -> where the expert goes."""


class LightHouse(BatchedTask):
    """Walk a square grid from its centre to the corner that holds the goal; an expert sees further.

    Weihs et al. (2020), "Bridging the Imitation Gap by Adaptive Insubordination", arXiv:2007.12173.
    Rows and columns run from -R to R; actions 0 to 3 are down, right, up, left, stopped by the border. Every step
    costs 0.01, the goal gives 1 and terminates. The last allowed step gives -0.01 / (1 - 0.99) = -1 without it: that is
    the price of never arriving, so the step terminates too (a bootstrap on top would count it twice).

    Group "policy", 6 numbers: for each corner (0 empty, 1 goal, 2 wrong corner, 3 border cell) its true value, if it
    was ever within `view_radius` (Chebyshev), else what lies `view_radius` cells towards it, diagonally; then the
    border that is hit, as an action (4: none); then the last action (4: none). Group "expert_action" is the
    choice of an expert that sees `expert_radius` cells; "expert_success" is always 1. Who sees v cells needs
    0.25 (8 v + 20 (R - v)) steps on average at best: 72 with v = 1, 30 with v = R = 15.

    Steps look tables up for every copy, on any device, without a loop or a host sync. Metric of ended episodes:
    success. Raises ValueError unless 1 <= view_radius <= expert_radius <= world_radius.
    """

    STATE = ("position", "known", "expert_known", "last", "steps")

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        *,
        view_radius: int = 1,
        expert_radius: int = 15,
        world_radius: int = 15,
        max_episode_steps: int = 1000,
    ) -> None:
        if not 1 <= view_radius <= expert_radius <= world_radius:
            raise ValueError(
                "LightHouse needs 1 <= view_radius <= expert_radius <= world_radius (the expert sees what the agent "
                f"sees), got {view_radius}, {expert_radius} and {world_radius}"
            )
        self.world_radius = world_radius
        groups, action = expert_groups(spaces.MultiDiscrete(NVEC), 4), spaces.Discrete(4)
        super().__init__(num_envs, device, max_episode_steps, groups, action)
        world = World.of(world_radius)
        self._move, self._corner_at, self._border = (table.to(self.device) for table in world)
        self._view = View.of(world_radius, view_radius).to(self.device)
        self._expert_view = View.of(world_radius, expert_radius).to(self.device)
        self._observations = all_observations().to(self.device)
        self._expert = torch.tensor([expert_action(*row) for row in self._observations.tolist()], device=self.device)
        self._start = len(self._corner_at) // 2
        zeros = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self.position, self.last, self.steps = zeros + self._start, zeros + NONE, zeros
        self.known, self.expert_known = self._first_known(zeros)

    def step(self, action: Tensor) -> Step:
        """Move each copy by one cell, action `[N]`."""
        self.position = self._move.take(self.position * 4 + action)
        self.known = self.known | self._view.near.take(self.position)
        self.expert_known = self.expert_known | self._expert_view.near.take(self.position)
        self.last, self.steps = action.clone(), self.steps + 1  # the caller may overwrite its action
        arrived = self._corner_at.take(self.position) == (self.known & 3)
        late = (self.steps >= self.max_episode_steps) & ~arrived
        reward = torch.where(arrived, 0.99, torch.where(late, -1.0, -0.01))
        ended = arrived | late
        metrics = {"success": torch.where(ended, arrived.float(), torch.nan)}
        obs = final = self.observe()
        if not self.host_is_device or bool(ended.any()):  # an accelerator is not asked: that would wait for it
            self._restart(ended)
            obs = self.observe()
        return Step(obs, reward, ended, self._never, final, metrics)

    def observe(self) -> TensorDict:
        """The current observation `[N]`."""
        touch = self._border.take(self.position * 5 + self.last)
        place = self.position * 64
        seen = self._view.corners.take(place + self.known) + touch
        expert_seen = self._expert_view.corners.take(place + self.expert_known) + touch
        return self._with_expert(self._observations.index_select(0, seen), self._expert.take(expert_seen))

    def _restart(self, ended: Tensor) -> None:
        goal = torch.randint(4, (self.num_envs,), generator=self.generator, device=self.device)
        known, expert_known = self._first_known(goal)
        self.known = torch.where(ended, known, self.known)
        self.expert_known = torch.where(ended, expert_known, self.expert_known)
        self.position = self.position.masked_fill(ended, self._start)
        self.last = self.last.masked_fill(ended, NONE)
        self.steps = self.steps.masked_fill(ended, 0)

    def _first_known(self, goal: Tensor) -> tuple[Tensor, Tensor]:
        """What agent and expert know at the centre: 4 * (bits of the corners seen so far) + goal."""
        return goal | self._view.near[self._start], goal | self._expert_view.near[self._start]


class World(NamedTuple):
    """The grid as tables over positions p = (row + R) * (2R + 1) + column + R."""

    move: Tensor  # [P * 4] int64: the next position, at p * 4 + action
    corner_at: Tensor  # [P] int64: index of the corner at p, -1 elsewhere
    border: Tensor  # [P * 5] int64: 5 * hitting + last action, at p * 5 + last action

    @classmethod
    def of(cls, radius: int) -> World:
        """The tables of a grid with 2 * radius + 1 cells a side."""
        row, column = _positions(radius)
        steps = [(1, 0), (0, 1), (-1, 0), (0, -1)]  # DOWN, RIGHT, UP, LEFT
        moved = [
            ((row + down).clamp(-radius, radius), (column + right).clamp(-radius, radius)) for down, right in steps
        ]
        move = torch.stack([(r + radius) * (2 * radius + 1) + c + radius for r, c in moved], dim=-1)
        corner_at = torch.full_like(row, -1)
        for index, (vertical, horizontal) in enumerate(CORNERS):
            corner_at[(row == vertical * radius) & (column == horizontal * radius)] = index
        # a border counts as hit in the direction of the last action, else in the first that applies
        at_border = torch.stack((row == radius, column == radius, row == -radius, column == -radius), dim=-1)  # [P, 4]
        first = torch.where(at_border.any(-1), at_border.int().argmax(-1), NONE)
        border = []
        for last in range(5):
            hitting = first if last == NONE else torch.where(at_border[:, last], last, first)
            border.append(hitting * 5 + last)
        return cls(move.flatten(), corner_at, torch.stack(border, dim=-1).flatten())


class View(NamedTuple):
    """What can be seen with some radius."""

    near: Tensor  # [P] int64: 4 * (bits of the corners within the radius)
    corners: Tensor  # [P * 64] int64: row of `all_observations` with the four corners and zeros, at p * 64 + known

    @classmethod
    def of(cls, world_radius: int, view_radius: int) -> View:
        """The tables of a view."""
        row, column = _positions(world_radius)
        known = torch.arange(64)
        near, corners = torch.zeros_like(row), torch.zeros(len(row), 64, dtype=torch.int64)
        for index, (vertical, horizontal) in enumerate(CORNERS):
            # cells that lie between the position and the two borders that meet in this corner
            rows_left, columns_left = world_radius - vertical * row, world_radius - horizontal * column
            near += (torch.maximum(rows_left, columns_left) <= view_radius) * (4 << index)
            border = torch.where(torch.minimum(rows_left, columns_left) <= view_radius, WALL, EMPTY)  # [P]
            true_value = torch.where((known & 3) == index, GOAL, WRONG_CORNER)  # [64]
            seen = (known & (4 << index)) > 0
            corners += torch.where(seen, true_value, border.unsqueeze(-1)) * (25 * 4 ** (3 - index))
        return cls(near, corners.flatten())

    def to(self, device: torch.device) -> View:
        """The same tables on `device`."""
        return View(self.near.to(device), self.corners.to(device))


def all_observations() -> Tensor:
    """Every combination of the six numbers, in lexicographic order, `[6400, 6]`."""
    return torch.cartesian_prod(*(torch.arange(n) for n in NVEC))


def expert_action(top_left: int, top_right: int, bottom_left: int, bottom_right: int, hitting: int, last: int) -> int:
    """The expert's action from the six numbers observed with its own radius; the first rule that applies decides."""
    corners = {"tl": top_left, "tr": top_right, "bl": bottom_left, "br": bottom_right}
    for name, (first, then) in AROUND_BORDER.items():
        if corners[name] == GOAL:
            return then if hitting == first else first
    wrong = frozenset(name for name, value in corners.items() if value == WRONG_CORNER)
    if wrong in AWAY:
        return AWAY[wrong]
    if last == NONE:
        return RIGHT
    if hitting != NONE and len(set(corners.values())) == 1:
        return TURN[hitting] if wrong or last == hitting else last
    return TURN[last] if corners[AHEAD[last]] == WALL else last


def _positions(radius: int) -> tuple[Tensor, Tensor]:
    """Row and column of every position, `[P]` each."""
    side = torch.arange(-radius, radius + 1)
    grid = torch.cartesian_prod(side, side)
    return grid[:, 0], grid[:, 1]
