"""One check of the numbers per iteration: which one from the environment is broken, where, and what to leave out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core import ranks
from understudy.core.sanity import BEYOND_USE, log_sizes, median_log_size, without_faults
from understudy.core.spaces import Key, component, component_keys, is_real, is_vector, size_of
from understudy.ppo.rollout import Finals

_ZEROS = 8.0
"""An entry that was always 0 counts as one that was 1 so often, so that its first other number is judged too."""
_LARGEST = torch.finfo(torch.float32).max
"""Limit of what is only to be finite."""


class FinitenessCheck(nn.Module):
    """Finds NaN, infinite and absurd numbers of rollouts and masks the transitions that touch them.

    x is absurd where |x| > `absurd` s, with the usual size s = exp(mean log max(|x|, 1)) of its entry (of its whole
    component, for an image) over all numbers before this rollout but zeros; the first rollout is judged by its own
    median. A single 1e38 in a thousand numbers moves this geometric mean by a tenth; what keeps coming becomes usual.
    """

    logs: Tensor  # [C] float64, sum of log max(|x|, 1): the columns of the observations, then the reward
    count: Tensor  # [C] float64, numbers that were not 0
    zeros: Tensor  # [C] float64, numbers that were
    limit: Tensor  # [C], the largest size that is not absurd

    def __init__(self, space: spaces.Dict, absurd: float | None, device: torch.device) -> None:
        super().__init__()
        self.absurd = absurd
        self.terms: Mapping[Key, tuple[str, ...]] = {}
        """Observation -> the simulator's name of each column, for the report."""
        parts = {("obs", *key): component(space, key) for key in component_keys(space)}
        vectors = {name: is_vector(part) for name, part in parts.items() if is_real(part)}
        self.widths = {name: size_of(parts[name]) if vector else 1 for name, vector in vectors.items()}
        self.observations = tuple(self.widths)
        self.widths["task_reward",] = 1
        columns = sum(self.widths.values())
        for name in ("logs", "count", "zeros"):
            self.register_buffer(name, torch.zeros(columns, dtype=torch.float64, device=device))
        self.register_buffer("limit", torch.full((columns,), BEYOND_USE if absurd else _LARGEST, device=device))
        views = zip(self.widths, self.limit.split(list(self.widths.values())))
        self.limits = {name: x if vectors.get(name) else x[0] for name, x in views}
        """Views of `limit` by name in the rollout, `[D]` or 0-D."""

    @torch.no_grad()
    def absorb(self, rollout: TensorDict, first: bool) -> None:
        """Count the numbers of a rollout, before it is masked; `first`: there was none before it. No host sync."""
        found = []
        for name, width in self.widths.items():
            rows = rollout[name].reshape(-1, width)
            logs, there = log_sizes(rows)
            count = there.sum(0, dtype=torch.float64)
            total = median_log_size(rows) * count if first else logs.sum(0, dtype=torch.float64)
            found.append(torch.stack((total, count, len(rows) - count)))
        logs, count, zeros = ranks.total(torch.cat(found, dim=1))
        self.logs += logs
        self.count += count
        self.zeros += zeros
        if self.absurd is not None:
            usual = (self.logs / (self.count + self.zeros.clamp(max=_ZEROS))).exp()
            self.limit.copy_((self.absurd * usual).clamp(max=_LARGEST))

    def passed(self, rollout: TensorDict, last_obs: TensorDict, finals: Finals | None) -> Tensor:
        """0-D bool on the device: certainly nothing in the rollout, nor in the observations after it, is broken."""
        numbers = [(rollout[name], limit) for name, limit in self.limits.items()]
        for _, *key in self.observations:
            sources = [last_obs, None if finals is None else finals.obs, rollout.get("next_obs", None)]
            there = [x for obs in sources if obs is not None and (x := obs.get(tuple(key), None)) is not None]
            numbers += [(x, self.limits["obs", *key]) for x in there]
        if rollout["action"].is_floating_point():
            numbers.append((rollout["action"], torch.full_like(self.limit[0], _LARGEST)))
        # a norm is at least as large as every number in it
        return (torch.stack([torch.linalg.vector_norm(x / limit) for x, limit in numbers]) <= 1.0).all()

    def mask(self, rollout: TensorDict, last_obs: TensorDict, finals: Finals | None, first_step: int) -> str:
        """Clear `valid` where a transition starts from, yields or leads to a broken number, and zero that number.

        Returns a report: group, component, environment and step of the first case of each kind, and counts; "" if
        nothing is broken.
        """
        valid, report = rollout["valid"], _Report(first_step, self.absurd)
        ended = rollout["terminated"] | rollout["truncated"]
        for name in self.observations:
            key, limit, where = name[1:], self.limits[name], "/".join(name[1:])
            x = torch.cat((rollout[name], last_obs.get(key).unsqueeze(0)))
            bad = _broken(x, limit, 2)
            valid &= ~(bad[:-1] | bad[1:] & ~ended)
            report.add(f"observation {where}{self._term(key, x, bad, limit)}", x, bad)
            rollout[name].copy_(without_faults(rollout[name], limit))
            following = rollout.get("next_obs", None)
            if following is not None:
                x = following[key]
                bad = _broken(x, limit, 2)
                valid &= ~bad
                report.add(f"final observation {where}", x, bad & ended)  # elsewhere it is counted above
                x.copy_(without_faults(x, limit))
            if finals is not None and (x := finals.obs.get(key, None)) is not None:
                rows = _broken(x, limit, 1)
                steps, envs = finals.step[rows], finals.env[rows]
                valid[steps, envs] = False
                if following is None:
                    report.add_rows(f"final observation {where}", x[rows], steps, envs)
                x.copy_(without_faults(x, limit))
        finite = torch.full_like(self.limit[0], _LARGEST)
        others = {"task_reward": ("reward", self.limits["task_reward",]), "action": ("the policy's action", finite)}
        for leaf, (what, limit) in others.items():
            x = rollout[leaf]
            if x.is_floating_point():
                bad = _broken(x, limit, 2)
                valid &= ~bad
                report.add(what, x, bad)
                x.copy_(without_faults(x, limit))
        return report.sentence(valid)

    def _term(self, key: Key, x: Tensor, bad: Tensor, limit: Tensor) -> str:
        """The term of the first broken number of x `[T, N, D]`, in brackets; "" where no simulator names it."""
        if key not in self.terms or not bool(bad.any()):
            return ""
        column = (~(x[bad][0].abs() <= limit)).nonzero()[0, 0]
        return f" ({self.terms[key][int(column)]})"


class _Report:
    """Collects one line for each kind of broken number."""

    def __init__(self, first_step: int, absurd: float | None) -> None:
        self.first_step, self.absurd, self.lines = first_step, absurd or 0.0, list[str]()

    def add(self, what: str, x: Tensor, bad: Tensor) -> None:
        """The first of the broken rows `[T, N]` of x `[T, N, ...]`, and how many there are."""
        steps, envs = bad.nonzero().unbind(1)
        self.add_rows(what, x[steps, envs], steps, envs)

    def add_rows(self, what: str, x: Tensor, steps: Tensor, envs: Tensor) -> None:
        """The same of rows `[K, ...]` that are all broken."""
        if not len(steps):
            return
        size, step = float(x[0].abs().max()), self.first_step + int(steps[0])
        how = f"is of size {size:.0e} at step {step}, more than {self.absurd:,.0f} times its usual size"
        if size - size != 0.0:  # NaN or infinite
            how = f"is not finite at step {step}"
        self.lines.append(f"{what} of environment {int(envs[0])} {how} ({len(steps)} cases in this rollout)")

    def sentence(self, valid: Tensor) -> str:
        """All lines, and the share of the rollout that is left out; "" without lines."""
        share = 1.0 - float(valid.float().mean())
        return "; ".join([*self.lines, f"{share:.2%} of the rollout's transitions are left out"]) if self.lines else ""


def _broken(x: Tensor, limit: Tensor, leading: int) -> Tensor:
    """Rows of x with an entry that is NaN, infinite or larger than `limit`, over its first dimensions."""
    fine = x.abs() <= limit
    return ~(fine.flatten(leading).all(-1) if x.ndim > leading else fine)
