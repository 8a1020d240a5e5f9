"""PoisonedDoors: the expert knows which door is good; whoever does not know had better learn a code instead."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.envs.base import Step
from understudy.tasks.batched import BatchedTask, expert_groups

DIGITS = 3
"""Digits of the code are 0, 1, 2; they are the first actions."""
CODE_DOOR = DIGITS
"""The action that takes door 0, behind which the code is asked for; the other doors follow."""

CHOOSING, ENTERED, TYPING, DONE = range(4)
GOOD_DOOR, BAD_DOOR, OPENED_LOCK, WRONG_DIGIT = range(4)

METRICS = ("success", "good_door", "bad_door", "opened_lock")
"""Shares of the ended episodes; success is the good door or the lock."""


class PoisonedDoors(BatchedTask):
    """Choose a door: one of them pays 2 and the others cost 2, or one asks for a code that pays 1.

    Weihs et al. (2020), "Bridging the Imitation Gap by Adaptive Insubordination", arXiv:2007.12173.
    Group "policy" is what has happened so far: 0 choosing, 1 behind door 0, 2 some right digits, 3 done. Actions 0 to 2
    are digits, 3 is door 0, from 4 on the other doors. Before a door is chosen digits do nothing; door 0 leads to the
    code; the good door gives +2 and the others -2, and both terminate. Behind door 0 the right digits, one after the
    other, give +1 at the last; anything else terminates with 0. The code is the same in all episodes, the good door
    is drawn for each of them. Group "expert_action" knows it: the good door, or the next digit; "expert_success" is
    always 1. Returns with four doors: expert 2, best without its knowledge 1, a random one of the other doors -2/3.

    All of it is one table, row = state, column = action; a step looks it up for every copy, on any device, without
    a loop or a host sync. Metrics of ended episodes: `METRICS`.
    Raises ValueError for fewer than 3 doors or an empty code.
    """

    STATE = ("state", "steps")

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        *,
        doors: int = 4,
        code_length: int = 10,
        max_episode_steps: int = 100,
    ) -> None:
        if doors < 3 or code_length < 1:
            raise ValueError(
                f"PoisonedDoors needs doors >= 3 (door 0, a good one, a bad one) and code_length >= 1, "
                f"got {doors} and {code_length}"
            )
        num_actions = DIGITS + doors
        groups, action = expert_groups(spaces.Discrete(4), num_actions), spaces.Discrete(num_actions)
        super().__init__(num_envs, device, max_episode_steps, groups, action)
        self.code = code(code_length)
        rules = Rules.of(self.code, doors)
        self._num_good, self._rows_per_good, self._num_actions = doors - 1, code_length + 1, num_actions
        self._num_live = self._num_good * self._rows_per_good  # rows from here on are ends
        self._next, self._reward, self._observed, self._expert = (table.to(self.device) for table in rules)
        end = torch.arange(len(self._observed), device=self.device) - self._num_live
        success = (end == GOOD_DOOR) | (end == OPENED_LOCK)
        columns = (success, end == GOOD_DOOR, end == BAD_DOOR, end == OPENED_LOCK)  # in the order of METRICS
        self._outcome = torch.stack(columns, dim=-1).float()  # [S, 4]
        self.state = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self.steps = torch.zeros_like(self.state)

    def step(self, action: Tensor) -> Step:
        """Take one action each, `[N]`."""
        index = self.state * self._num_actions + action
        state, steps = self._next.take(index), self.steps + 1
        terminated = state >= self._num_live
        truncated = (steps >= self.max_episode_steps) & ~terminated
        ended = terminated | truncated
        outcome = torch.where(ended.unsqueeze(-1), self._outcome.index_select(0, state), torch.nan).unbind(-1)
        self.state, self.steps = state, steps
        final = self.observe()
        self._restart(ended)
        metrics = dict(zip(METRICS, outcome))
        return Step(self.observe(), self._reward.take(index), terminated, truncated, final, metrics)

    def observe(self) -> TensorDict:
        """The current observation `[N]`."""
        return self._with_expert(self._observed.take(self.state), self._expert.take(self.state))

    def _restart(self, ended: Tensor) -> None:
        good = torch.randint(self._num_good, (self.num_envs,), generator=self.generator, device=self.device)
        self.state = torch.where(ended, good * self._rows_per_good, self.state)
        self.steps = self.steps.masked_fill(ended, 0)


class Rules(NamedTuple):
    """The task as tables. A row is a state: for each good door choosing, then 0, 1, ... right digits; then the ends."""

    next_state: Tensor  # [S * A] int64, at state * A + action
    reward: Tensor  # [S * A] float32
    observed: Tensor  # [S] int64: CHOOSING, ENTERED, TYPING or DONE
    expert: Tensor  # [S] int64

    @classmethod
    def of(cls, code: list[int], doors: int) -> Rules:
        """The tables for a code and a number of doors (door 0 included)."""
        length, num_actions = len(code), DIGITS + doors
        first_end = (doors - 1) * (length + 1)
        reward_at_end = {GOOD_DOOR: 2.0, BAD_DOOR: -2.0, OPENED_LOCK: 1.0, WRONG_DIGIT: 0.0}
        next_state: list[int] = []
        reward: list[float] = []
        observed: list[int] = []
        expert: list[int] = []
        for good in range(1, doors):
            for done in range(length + 1):  # 0: choosing; k: door 0 taken and k - 1 digits right
                row = len(observed)
                for action in range(num_actions):
                    end = _end(code, CODE_DOOR + good, done, action)
                    moves_on = action == (CODE_DOOR if done == 0 else code[done - 1])
                    next_state.append(row + moves_on if end is None else first_end + end)
                    reward.append(0.0 if end is None else reward_at_end[end])
                observed.append((CHOOSING, ENTERED, TYPING)[min(done, 2)])
                expert.append(CODE_DOOR + good if done == 0 else code[done - 1])
        for end in range(len(reward_at_end)):
            next_state += [first_end + end] * num_actions
            reward += [0.0] * num_actions
            observed.append(DONE)
            expert.append(0)
        return cls(torch.tensor(next_state), torch.tensor(reward), torch.tensor(observed), torch.tensor(expert))


def _end(code: list[int], good_action: int, done: int, action: int) -> int | None:
    """How the episode ends with this action; None: it goes on."""
    if done == 0:
        if action <= CODE_DOOR:
            return None
        return GOOD_DOOR if action == good_action else BAD_DOOR
    if action != code[done - 1]:
        return WRONG_DIGIT
    return OPENED_LOCK if done == len(code) else None


def code(length: int) -> list[int]:
    """The code of that many digits: always the same, that of the paper's program."""
    draw = random.Random(length)
    return [draw.randint(0, DIGITS - 1) for _ in range(length)]
