"""One finiteness check per iteration: which number from the environment is broken, where, and what to leave out."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import Key
from understudy.ppo.rollout import Finals


def all_finite(tensors: list[Tensor]) -> Tensor:
    """0-D bool: every element of every tensor is finite."""
    # x - x is 0 for a finite number and NaN otherwise: one pass, no intermediate mask of the same size as x
    return torch.stack([(x - x).sum() == 0 for x in tensors]).all()


class FinitenessCheck:
    """Finds non-finite observations, rewards and actions of a rollout and masks the transitions that touch them."""

    def __init__(self, rollout: TensorDict, keys: tuple[Key, ...]) -> None:
        self.rollout = rollout
        self.observations = [("obs", *key) for key in keys if rollout["obs", *key].is_floating_point()]
        self.others: list[tuple[str, ...]] = [("task_reward",)]
        if "next_obs" in rollout.keys():  # noqa: SIM118
            self.others += [("next_obs", *name[1:]) for name in self.observations]
        if rollout["action"].is_floating_point():
            self.others.append(("action",))

    def passed(self, last_obs: TensorDict, finals: Finals | None) -> Tensor:
        """0-D bool on the device: nothing in the rollout, nor in the observations after it, is NaN or infinite."""
        tensors = [self.rollout[name] for name in (*self.observations, *self.others)]
        tensors += [last_obs.get(name[1:]) for name in self.observations]
        if finals is not None:
            tensors += [x for x in finals.obs.values(True, True) if x.is_floating_point()]
        return all_finite(tensors)

    def mask(self, last_obs: TensorDict, finals: Finals | None, first_step: int) -> str:
        """Clear `valid` where a transition starts from, yields or leads to a non-finite number, and zero that number.

        Returns a report: group, component, environment and step of the first case of each kind, and counts.
        """
        valid, lines = self.rollout["valid"], []
        ended = self.rollout["terminated"] | self.rollout["truncated"]
        for name in self.observations:
            x = self.rollout[name]
            bad = _bad_rows(x, 2)
            bad_last = _bad_rows(last_obs.get(name[1:]), 1)
            leads_to_bad = torch.cat((bad[1:], bad_last.unsqueeze(0))) & ~ended
            valid &= ~(bad | leads_to_bad)
            lines += _describe("observation " + "/".join(name[1:]), torch.cat((bad, bad_last.unsqueeze(0))), first_step)
            _zero_bad(x)
        for name in self.others:
            x = self.rollout[name]
            bad = _bad_rows(x, 2)
            valid &= ~bad
            if name[0] == "next_obs":  # where no episode ended, it was counted as an observation
                lines += _describe("final observation " + "/".join(name[1:]), bad & ended, first_step)
            else:
                lines += _describe("reward" if name[0] == "task_reward" else "action", bad, first_step)
            _zero_bad(x)
        if finals is not None:
            lines += self._mask_finals(finals, first_step)
        share = 1.0 - float(valid.float().mean())
        return "; ".join(lines) + f"; {share:.2%} of the rollout's transitions are left out"

    def _mask_finals(self, finals: Finals, first_step: int) -> list[str]:
        lines = []
        leaves: Any = finals.obs.items(True, True)
        for key, x in leaves:
            if x.is_floating_point():
                rows = _bad_rows(x, 1)
                bad = torch.zeros_like(self.rollout["valid"])
                bad[finals.step[rows], finals.env[rows]] = True
                self.rollout["valid"].logical_and_(~bad)
                name = key if isinstance(key, str) else "/".join(key)
                if "next_obs" not in self.rollout.keys():  # noqa: SIM118 (else it is reported there)
                    lines += _describe(f"final observation {name}", bad, first_step)
                _zero_bad(x)
        return lines


def _zero_bad(x: Tensor) -> None:
    x.copy_(torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0))


def _bad_rows(x: Tensor, batch_dims: int) -> Tensor:
    return ~torch.isfinite(x).flatten(batch_dims).all(-1) if x.ndim > batch_dims else ~torch.isfinite(x)


def _describe(what: str, bad: Tensor, first_step: int) -> list[str]:
    cases = bad.nonzero()
    if not len(cases):
        return []
    step, env = (int(i) for i in cases[0])
    return [
        f"{what} of environment {env} is not finite at step {first_step + step} ({len(cases)} cases in this rollout)"
    ]
