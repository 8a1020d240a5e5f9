"""MiniGrid's wall and lava crossings with their shortest-path expert, thousands of copies; switches, corruption."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.core.check import In, fit
from understudy.envs.base import Step
from understudy.envs.makers import OWN_TASKS
from understudy.tasks import minigrid_rules as rules
from understudy.tasks.batched import BatchedTask, expert_groups

Switch = Literal["none", "faulty", "once"]

REPEAT_LIMIT = 1000
"""With `repeat_failed`, a grid whose episodes took so many steps in all is given up."""
POOL = 256
"""Fewest grids drawn ahead of their episodes: drawing them together makes a grid cost microseconds."""
STEPS_PER_LOOK = 16
"""On an accelerator: steps between two looks at how many grids are left, each of which waits for the device."""


class Crossings(BatchedTask):
    """Find the openings of rivers of wall or lava, as in MiniGrid.

    The agent starts in the top left corner and looks to the right; the goal is in the bottom right corner. Actions:
    0 left, 1 right, 2 forward, and with a switch 3 toggle. Reaching the goal ends the episode with the reward
    1 - 0.9 * steps / time limit; lava ends it with 0; all else gives 0. An episode that ends on the step of its time
    limit is terminated, not truncated.

    Group "policy" is the agent's view `[7, 7, 3]` as MiniGrid encodes it (see `minigrid_rules.EgoView`); groups
    "expert_action" and "expert_success" (always 1) are the shortest-path expert, which never toggles
    (`minigrid_rules.expert_plan`: of equal paths the one that goes straight longest, left before right). Metric, of
    ended episodes: success.

    | option | meaning |
    |---|---|
    | `size` | cells on a side, the outer walls included; odd, 5 to 63 |
    | `crossings` | rivers to cross, at most size - 3 |
    | `obstacle` | what rivers are made of: a "wall" stops the agent, "lava" ends the episode with reward 0 |
    | `switch` | the view is all zeros unless the last action was "toggle" ("faulty"), or any of the episode ("once") |
    | `corrupt` | the expert acts at random once an episode had fewer actions than this to the goal; 0: never |
    | `repeat_failed` | for training: the same grid until an episode on it succeeds or 1,000 steps were spent on it |
    | `max_episode_steps` | time limit; None: 4 * size^2 |

    Grids and plans wait in a pool: a copy holds one slot of it, and an episode that starts anew swaps its slot for a
    fresh one. On an accelerator a grid may come twice if more episodes than copies start within 16 steps.
    """

    STATE = ("waiting", "taken", "slot", "position", "direction", "steps", "spent", "noise", "shown", "corrupted")

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        *,
        size: int = 25,
        crossings: int = 10,
        obstacle: rules.Obstacle = "wall",
        switch: Switch = "none",
        corrupt: int = 0,
        repeat_failed: bool = False,
        max_episode_steps: int | None = None,
    ) -> None:
        if not (5 <= size <= rules.MAX_SIZE and size % 2):
            raise ValueError(f"size is {size}: rivers need an odd size from 5 to {rules.MAX_SIZE}")
        if not 1 <= crossings <= size - 3:
            raise ValueError(f"crossings is {crossings}: a grid of size {size} has room for 1 to {size - 3}")
        fit(rules.Obstacle, obstacle, "obstacle")
        fit(Switch, switch, "switch")
        fit(Annotated[int, In(0)], corrupt, "corrupt")
        self.size, self.crossings, self.obstacle, self.switch = size, crossings, obstacle, switch
        self.corrupt, self.repeat_failed = corrupt, repeat_failed
        num_actions = 3 if switch == "none" else 4
        cell = (rules.OBJECTS, rules.COLORS, rules.STATES)
        view = spaces.MultiDiscrete(np.broadcast_to(np.array(cell), (rules.VIEW, rules.VIEW, 3)), dtype=np.uint8)
        steps = 4 * size**2 if max_episode_steps is None else max_episode_steps
        super().__init__(num_envs, device, steps, expert_groups(view, num_actions), spaces.Discrete(num_actions))
        self._tables(num_actions)
        slots = num_envs + max(POOL, 2 * num_envs)
        area = 4 * size**2
        self.cells = self._full((slots, self.width, self.width), rules.WALL, torch.uint8)
        self.plans = self._full((slots, area), 0, torch.int16)
        self.waiting = self._full((slots - num_envs + 1,), 0, torch.int64)  # slots; the last entry takes idle writes
        self.taken = self._full((), 0, torch.int64)  # how many of those waiting were swapped for used ones
        self.slot, self.position, self.direction, self.steps, self.spent, self.noise = (
            self._full((num_envs,), 0, torch.int64) for _ in range(6)
        )  # position: y * width + x in the padded grid
        self.shown, self.corrupted = (self._full((num_envs,), False, torch.bool) for _ in range(2))
        self.looks_in, self.drawn = STEPS_PER_LOOK, False

    def _full(self, shape: tuple[int, ...], value: int, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, value, dtype=dtype, device=self.device)

    def _tables(self, num_actions: int) -> None:
        """What follows from direction and action, by 4 * action + direction; and the view."""
        size, margin = self.size, rules.MARGIN
        self.width = size + 2 * margin
        self.view = rules.EgoView(self.width, self.device)
        ahead = torch.tensor([dy * self.width + dx for dx, dy in rules.DIRECTIONS])
        turns, moves = torch.arange(4).repeat(num_actions, 1), torch.zeros(num_actions, 4, dtype=torch.int64)
        turns[rules.LEFT], turns[rules.RIGHT] = turns[rules.LEFT].roll(1), turns[rules.RIGHT].roll(-1)
        moves[rules.FORWARD] = ahead
        self.turns, self.moves = turns.flatten().to(self.device), moves.flatten().to(self.device)
        place = torch.arange(self.width)
        inner = (place - margin).clamp(0, size - 1)
        self.inner = (inner.unsqueeze(1) * size + inner).flatten().to(self.device)  # padded position -> in the grid
        self.start = (margin + 1) * self.width + margin + 1

    # ------------------------------------------------------------------ steps

    def reset(self, seed: int | None = None) -> TensorDict:
        """Fresh episodes on fresh grids everywhere; a seed also draws the whole pool anew."""
        if seed is not None or not self.drawn:
            if seed is not None:
                self.generator.manual_seed(seed)
            slots = torch.arange(len(self.cells), device=self.device)
            self._fill(slots)
            self.slot = slots[: self.num_envs]
            self.waiting[:-1] = slots[self.num_envs :]
            self.taken, self.drawn = torch.zeros_like(self.taken), True
        else:
            self._swap_slots(~self._never)
            self._refill()
        self._draw_noise()
        self._restart(~self._never)
        return self.observe()

    def step(self, action: Tensor) -> Step:
        """Turn, walk or toggle, action `[N]`."""
        if action.shape != (self.num_envs,):
            raise ValueError(f"crossings take actions of shape ({self.num_envs},), got {tuple(action.shape)}")
        which = action * 4 + self.direction
        self.direction = self.turns.take(which)
        front = self.position + self.moves.take(which)  # where the agent is, unless it walks
        cell = self.cells.take(self.slot * self.width**2 + front)
        self.position = torch.where(cell == rules.WALL, self.position, front)
        self.steps = self.steps + 1
        reached = cell == rules.GOAL
        terminated = reached | (cell == rules.LAVA)
        truncated = (self.steps >= self.max_episode_steps) & ~terminated
        reward = reached * (1.0 - (0.9 / self.max_episode_steps) * self.steps)
        if self.switch != "none":
            toggled = action == rules.TOGGLE
            self.shown = toggled if self.switch == "faulty" else self.shown | toggled
        self._draw_noise()
        self._remember_distance()
        final, ended = self.observe(), terminated | truncated
        metrics = {"success": torch.where(ended, reached.float(), torch.nan)}
        return Step(self._next(ended, reached, final), reward, terminated, truncated, final, metrics)

    def observe(self) -> TensorDict:
        """The current observation `[N]`."""
        image = self.view(self.cells, self.slot * self.width**2 + self.position, self.direction)
        if self.switch != "none":
            image = image * self.shown.view(-1, 1, 1, 1)
        action = (self._plan() & 3).long()
        if self.corrupt:
            action = torch.where(self.corrupted, self.noise, action)
        return self._with_expert(image, action)

    def _plan(self) -> Tensor:
        """4 * remaining edges + expert's action where the agents are, `[N]` int16."""
        place = self.inner.take(self.position) + self.direction * self.size**2
        return self.plans.take(place + self.slot * self.plans.shape[1])

    def _draw_noise(self) -> None:
        if self.corrupt:
            actions, shape = len(self.turns) // 4, (self.num_envs,)
            self.noise = torch.randint(actions, shape, generator=self.generator, device=self.device)

    def _remember_distance(self) -> None:
        if self.corrupt:
            self.corrupted = self.corrupted | (self._plan() >> 2 <= self.corrupt)

    # ------------------------------------------------------------------ episodes

    def _next(self, ended: Tensor, reached: Tensor, final: TensorDict) -> TensorDict:
        """Start the next episode where one ended; the observation after it."""
        self.spent = self.spent + 1
        if self.host_is_device and not bool(ended.any()):
            return final
        fresh = ended
        if self.repeat_failed:
            fresh = ended & (reached | (self.spent >= REPEAT_LIMIT))
        self._swap_slots(fresh)
        self.looks_in -= 1
        if self.host_is_device or self.looks_in <= 0:
            self._refill()
        self._restart(ended, fresh)
        return self.observe()

    def _restart(self, ended: Tensor, fresh: Tensor | None = None) -> None:
        self.position = torch.where(ended, self.start, self.position)
        self.direction = torch.where(ended, 0, self.direction)
        self.steps = torch.where(ended, 0, self.steps)
        self.spent = torch.where(ended if fresh is None else fresh, 0, self.spent)
        self.shown = self.shown & ~ended
        self.corrupted = self.corrupted & ~ended
        self._remember_distance()

    def _swap_slots(self, fresh: Tensor) -> None:
        """The k-th copy that needs a grid takes the k-th that waits, and leaves its own in that place."""
        count = len(self.waiting) - 1
        place = (self.taken + fresh.cumsum(0) - 1) % count
        taken = self.waiting.take(place)
        self.waiting.scatter_(0, torch.where(fresh, place, count), self.slot)
        self.slot = torch.where(fresh, taken, self.slot)
        self.taken = self.taken + fresh.sum()

    def _refill(self) -> None:
        """Draw new grids for the used slots, if the waiting ones might not do for every copy."""
        self.looks_in = STEPS_PER_LOOK
        count = len(self.waiting) - 1
        used = min(int(self.taken), count)
        if count - used >= self.num_envs:
            return
        self._fill(self.waiting[:used])
        self.taken = torch.zeros_like(self.taken)

    def _fill(self, slots: Tensor) -> None:
        grids = rules.draw_crossings(len(slots), self.size, self.crossings, self.obstacle, self.generator, self.device)
        self._put(slots, grids)

    def _put(self, slots: Tensor, grids: Tensor) -> None:
        # a processor's cache holds the search of so many grids; an accelerator takes them all at once
        batch = POOL if self.host_is_device else len(slots)
        for some, drawn in zip(slots.split(batch), grids.split(batch)):
            self.cells[some] = rules.pad(drawn)
            self.plans[some] = rules.expert_plan(drawn).flatten(1)

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that `step` depends on; plans are left out, for they follow from the grids."""
        margin = rules.MARGIN
        return {
            **super().state_dict(),
            "grids": self.cells[:, margin:-margin, margin:-margin].contiguous(),
            "waiting": self.waiting.clone(),  # written in place, all else is not
            "looks_in": torch.tensor(self.looks_in),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned; ValueError if that had another size or number of copies."""
        grids = state["grids"].to(self.device)
        if grids.shape != (len(self.cells), self.size, self.size):
            raise ValueError(
                f"the saved state holds {len(grids)} grids of size {grids.shape[-1]}, this environment "
                f"{len(self.cells)} of size {self.size}: build it with the same num_envs and size"
            )
        self._put(torch.arange(len(grids), device=self.device), grids)
        self.looks_in, self.drawn = int(state["looks_in"]), True
        super().load_state_dict(state)


# the eight tasks of the ADVISOR paper (Weihs et al. 2021, arXiv 2007.12173)
LavaCrossing = partial(Crossings, obstacle="lava")
WallCrossing = partial(Crossings)
WallCrossingCorrupt = partial(Crossings, corrupt=15)
LavaCrossingCorrupt = partial(Crossings, size=15, crossings=7, obstacle="lava", corrupt=10)
WallCrossingFaulty = partial(Crossings, size=15, crossings=7, switch="faulty")
WallCrossingOnce = partial(Crossings, switch="once")
LavaCrossingFaulty = partial(Crossings, size=9, crossings=4, obstacle="lava", switch="faulty")
LavaCrossingOnce = partial(Crossings, size=15, crossings=7, obstacle="lava", switch="once")

CROSSINGS = frozenset(name for name, place in OWN_TASKS.items() if place.startswith(f"{__name__}:"))
"""Ids of these tasks."""
TRAINED_WITH_REPEATS = CROSSINGS - {"WallCrossing-v0", "WallCrossingCorrupt-v0", "WallCrossingFaulty-v0"}
"""Ids that the paper trains with `repeat_failed`. Never evaluate with it: failures would count many times."""
