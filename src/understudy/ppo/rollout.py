"""Collecting: T steps of N environments into a preallocated TensorDict `[T, N]`, and the values that GAE needs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core import devices
from understudy.core.capture import CaptureMode, capture
from understudy.core.spaces import Key, blank, component, component_keys, unflatten
from understudy.envs.base import Step, VecEnv
from understudy.nn.policy import REPLACED, ActorCritic
from understudy.ppo.part import Labels, Overrides, Part


class Finals(NamedTuple):
    """True final observations, K of them; on an accelerator K = T x N, of which those at time limits count."""

    step: Tensor  # [K] int64
    env: Tensor  # [K] int64
    obs: TensorDict  # [K], what the critic sees


class Collector:
    """Steps the environments with the current policy and fills one rollout, allocated once and reused.

    Only the actor runs at each step of a feed-forward policy; log-probs and values of the whole rollout follow in
    one batched pass with the same weights. A recurrent policy runs whole at each step.
    """

    def __init__(
        self,
        env: VecEnv,
        policy: ActorCritic,
        parts: Mapping[str, Part],
        *,
        num_steps: int,
        chunks: int,
        generator: torch.Generator,
        mode: CaptureMode,
    ) -> None:
        self.env, self.policy, self.num_steps, self.chunks = env, policy, num_steps, chunks
        self.generator = generator
        self.labels = {name: part for name, part in parts.items() if isinstance(part, Labels)}
        overrides = [(name, part) for name, part in parts.items() if isinstance(part, Overrides)]
        if len(overrides) > 1:
            raise ValueError(f"at most one part may override actions, got {[name for name, _ in overrides]}")
        self.override = overrides[0] if overrides else None
        self.keeps_next_obs = any(part.uses_next_obs for part in parts.values())
        self.host_is_device = devices.host_is_device(env.device)
        self.keys = component_keys(env.observation_space)
        self.obs: TensorDict | None = None
        self.is_first = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        self.state = policy.initial_state(env.num_envs)
        self.finals: Finals | None = None  # the true final observations at the time limits of this rollout
        self._warned = False
        self.env_metrics: dict[str, list[Tensor]] = {}
        self.data = self._allocate()
        if mode == "compile":
            mode = "trace"  # compiling a dozen operations takes minutes to win back
        self._act = capture(self._act_recurrent if policy.recurrent else self._act_feed_forward, mode)
        self._evaluate = capture(self._evaluate_feed_forward, mode)

    # ------------------------------------------------------------------ storage

    def _allocate(self) -> TensorDict:
        T, N, device = self.num_steps, self.env.num_envs, self.env.device
        head = self.policy.head
        data = TensorDict({}, batch_size=[T, N], device=device)
        for key in self.keys:
            data["obs", *key] = self._zeros(key, T, N)
            if self.keeps_next_obs:
                data["next_obs", *key] = self._zeros(key, T, N)
        if self.policy.mixes_estimates:
            shape = (T, N, len(self.policy.estimators))
            data["obs", *REPLACED] = torch.zeros(shape, dtype=torch.bool, device=device)
        data["action"] = torch.zeros((T, N, *head.action_shape), dtype=head.action_dtype, device=device)
        executed = self.policy.action_map(data["action"])
        data["executed_action"] = torch.zeros_like(executed, memory_format=torch.contiguous_format)
        data["params"] = torch.zeros(T, N, head.num_params, device=device)
        for name in ("log_prob", "value", "next_value", "reward", "task_reward", "advantage", "value_target"):
            data[name] = torch.zeros(T, N, device=device)
        for name in ("is_first", "terminated", "truncated"):
            data[name] = torch.zeros(T, N, dtype=torch.bool, device=device)
        data["valid"] = torch.ones(T, N, dtype=torch.bool, device=device)
        if self.override is not None:
            data["on_policy"] = torch.ones(T, N, dtype=torch.bool, device=device)
        if self.state is not None:
            # one copy, seen from every t: a minibatch of whole columns reads row 0
            data["state"] = torch.zeros(1, N, self.policy.state_size, device=device).expand(T, N, -1)
        # taken once: indexing a TensorDict or a tensor at every step costs more than the copy itself
        self._obs_rows = [(key, data["obs", *key].unbind(0)) for key in self.keys]
        self._next_rows = [(key, data["next_obs", *key].unbind(0)) for key in self.keys] if self.keeps_next_obs else []
        self._input_rows = [data["obs", *key].unbind(0) for key in self.policy.input_keys]
        self._actor_rows = [data["obs", *key].unbind(0) for key in self.policy.actor_keys]
        self._rows = {name: data[name].unbind(0) for name in data.keys() if name not in ("obs", "next_obs", "state")}  # noqa: SIM118
        if not self.host_is_device:
            # on an accelerator "did anything end?" would be a host sync: keep every final observation instead
            self._dense_finals = {key: self._zeros(key, T, N) for key in self.policy.value_keys}
        return data

    def _zeros(self, key: Key, T: int, N: int) -> Tensor:
        return blank(component(self.env.observation_space, key), (T, N), self.env.device)

    # ------------------------------------------------------------------ captured

    def _act_feed_forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        keys = self.policy.actor_keys
        obs = unflatten(keys, [_finite(x) for x in args[: len(keys)]], [self.env.num_envs])
        raw = self.policy.distribution(obs).sample(args[len(keys)] if len(args) > len(keys) else None)
        return raw, self.policy.action_map(raw)

    def _act_recurrent(self, *args: Tensor) -> tuple[Tensor, ...]:
        keys = self.policy.input_keys
        obs = unflatten(keys, [_finite(x) for x in args[: len(keys)]], [self.env.num_envs])
        state, is_first, *noise = args[len(keys) :]
        out = self.policy(obs, state, is_first)
        raw = out.distribution.sample(noise[0] if noise else None)
        assert out.state is not None
        return raw, self.policy.action_map(raw), out.distribution.params, out.value, out.state

    def _evaluate_feed_forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        *leaves, action = args
        out = self.policy(unflatten(self.policy.input_keys, leaves, [action.shape[0]]))
        return out.value, out.distribution.params, out.distribution.log_prob(action)

    # ------------------------------------------------------------------ one rollout

    def reset(self, seed: int | None = None) -> None:
        """Start fresh episodes everywhere and forget recurrent states."""
        self.obs = self.env.reset(seed)
        self.is_first = torch.ones_like(self.is_first)
        if self.state is not None:
            self.state = torch.zeros_like(self.state)

    @torch.no_grad()
    def collect(self, num_steps: int | None = None) -> TensorDict:
        """Fill and return the rollout: everything but rewards of parts, advantages and targets.

        The same TensorDict is returned every time, overwritten. With fewer `num_steps` only its first rows count.
        """
        if self.obs is None:
            self.reset()
        data, N = self.data, self.env.num_envs
        noise = self.policy.head.noise(self.num_steps, N, generator=self.generator)
        noise_rows = [()] * self.num_steps if noise is None else [(row,) for row in noise.to(self.env.device).unbind(0)]
        self._sparse_finals: list[tuple[int, Tensor, TensorDict]] = []
        self._blind: list[int] = []  # steps whose final observations the environment could not give
        self.env_metrics.clear()
        data["valid"].fill_(True)
        if self.policy.mixes_estimates:  # drawn once: the update sees what the actor saw
            data["obs", *REPLACED].copy_(self.policy.draw_replacements((self.num_steps, N), self.generator))
        if self.state is not None:
            data["state"][0].copy_(self.state)
        self._first_row = self.is_first.clone()
        num_steps = num_steps or self.num_steps
        for t in range(num_steps):
            executed = self._rows["executed_action"][t]
            executed.copy_(self._choose(t, noise_rows[t]))
            self._store(t, self.env.step(executed))
        self._finish_flags(num_steps)
        self.finals = self._gather_finals(num_steps)
        return data

    def _choose(self, t: int, noise: tuple[Tensor, ...]) -> Tensor:
        """Copy the observation into row t, choose the action, let labels and overrides speak."""
        assert self.obs is not None
        for key, rows in self._obs_rows:
            rows[t].copy_(self.obs.get(key))
        if self.policy.recurrent:
            assert self.state is not None
            inputs = [rows[t] for rows in self._input_rows]
            raw, executed, params, value, self.state = self._act(*inputs, self.state, self.is_first, *noise)
            self._rows["params"][t].copy_(params)
            self._rows["value"][t].copy_(value)
        else:
            raw, executed = self._act(*[rows[t] for rows in self._actor_rows], *noise)
        if self.labels:
            raw, executed = self._consult(t, raw, executed)
        self._rows["action"][t].copy_(raw)
        return executed

    def _consult(self, t: int, raw: Tensor, executed: Tensor) -> tuple[Tensor, Tensor]:
        obs = _finite_all(self.data["obs"][t])  # an expert with a memory would keep a NaN forever
        for name, part in self.labels.items():
            label = part.label(obs, self.is_first)
            if name not in self.data.keys():  # noqa: SIM118
                self.data[name] = torch.zeros_like(label).expand(self.num_steps, -1).clone()
            self.data[name][t] = label
        if self.override is not None:
            name, overriding = self.override
            raw, replaced = overriding.override(raw.clone(), self.data[name][t])  # which may write into it
            self._rows["on_policy"][t].copy_(~replaced)
            executed = self.policy.action_map(raw)
        return raw, executed

    def _store(self, t: int, step: Step) -> None:
        rows = self._rows
        rows["task_reward"][t].copy_(step.reward)
        rows["terminated"][t].copy_(step.terminated)
        rows["truncated"][t].copy_(step.truncated)
        if step.valid is not None:
            rows["valid"][t].copy_(step.valid)
        for name, value in step.metrics.items():
            # copied: the environment may overwrite it
            self.env_metrics.setdefault(name, []).append(value.to(torch.float32, copy=True).flatten())
        self.obs = step.obs
        if self.policy.recurrent or self.labels or self.keeps_next_obs:
            self.is_first = step.starts_next
        self._keep_final(t, step)

    def _keep_final(self, t: int, step: Step) -> None:
        """Remember the true final observations: the episode goes on in V, but not in `step.obs`."""
        final = step.final_obs
        truncated = step.truncated
        if self.keeps_next_obs:
            for key, rows in self._next_rows:
                x = step.obs.get(key) if final is None else _where(self.is_first, final.get(key), step.obs.get(key))
                rows[t].copy_(x)
        if self.host_is_device and not bool(truncated.any()):
            return
        if final is None:
            self._blind.append(t)
            return
        if self.policy.recurrent:
            value = self.policy.value(_finite_all(final), self.state, torch.zeros_like(truncated))
            self._rows["next_value"][t].copy_(value)
        if self.host_is_device:
            envs = truncated.nonzero().squeeze(-1)
            self._sparse_finals.append((t, envs, final[envs]))
        else:
            for key, dense in self._dense_finals.items():
                # rows that did not end may hold anything
                dense[t].copy_(_where(truncated, final.get(key), torch.zeros_like(dense[t])))

    def _warn_blind(self) -> None:
        if not self._warned:
            warnings.warn(
                "the environment does not give final observations: time-outs bootstrap from V(s_t), which is "
                "biased; have it put them into extras['final_obs']",
                stacklevel=2,
            )
            self._warned = True

    def _finish_flags(self, num_steps: int) -> None:
        data = self.data
        first = data["terminated"] | data["truncated"] | ~data["valid"]
        data["is_first"][0].copy_(self._first_row)
        data["is_first"][1:].copy_(first[:-1])
        self.is_first = first[num_steps - 1]

    def _gather_finals(self, num_steps: int) -> Finals | None:
        # an accelerator does not know whether anything ended in a blind step: it warns if all of them were
        if self._blind and (self.host_is_device or len(self._blind) == num_steps):
            self._warn_blind()
        if len(self._blind) == num_steps:
            return None
        if not self.host_is_device:
            T, N = self.num_steps, self.env.num_envs
            places = torch.arange(T * N, device=self.env.device)
            dense = [x.flatten(0, 1) for x in self._dense_finals.values()]
            return Finals(places // N, places % N, unflatten(self._dense_finals, dense, [T * N]))
        if not self._sparse_finals:
            return None
        steps = torch.cat([torch.full_like(envs, t) for t, envs, _ in self._sparse_finals])
        envs = torch.cat([envs for _, envs, _ in self._sparse_finals])
        rows: Any = [x.select(*self.policy.value_keys) for _, _, x in self._sparse_finals]
        joined: Any = torch.cat(rows)
        return Finals(steps, envs, joined)

    # ------------------------------------------------------------------ values

    @torch.no_grad()
    def evaluate(self, values_only: bool = False) -> None:
        """Fill params, log-prob, value and next_value for the policy as it is now (after NaNs were masked).

        With `values_only`, params and log-prob stay those of the behaviour policy (feed-forward only).
        """
        data = self.data
        if self.policy.recurrent:
            data["log_prob"].copy_(self.policy.head.from_params(data["params"]).log_prob(data["action"]))
        else:
            self._evaluate_rollout(values_only)
        self.bootstrap()

    def _evaluate_rollout(self, values_only: bool) -> None:
        data = self.data
        leaves = [data["obs", *key].flatten(0, 1) for key in self.policy.input_keys]
        results = [data[name].flatten(0, 1) for name in ("value", "params", "log_prob")]
        size = self.num_steps * self.env.num_envs // self.chunks
        chunks = zip(*(x.split(size) for x in [*leaves, data["action"].flatten(0, 1), *results]))
        for chunk in chunks:
            inputs, targets = chunk[: len(leaves) + 1], chunk[len(leaves) + 1 :]
            for target, result in zip(targets[: 1 if values_only else 3], self._evaluate(*inputs)):
                target.copy_(result)

    def bootstrap(self) -> None:
        """next_value: V of the next row, of the true final observation at a time limit, of the last observation."""
        data = self.data
        value, next_value, truncated = data["value"], data["next_value"], data["truncated"]
        assert self.obs is not None
        clean = _finite_all(self.obs)
        last = self.policy.value(clean, self.state, self.is_first)
        shifted = torch.cat((value[1:], last.unsqueeze(0)))
        if self.policy.recurrent:  # each step wrote what its memory made of its final observation
            next_value.copy_(torch.where(truncated, next_value, shifted))
        elif self.finals is None:
            next_value.copy_(shifted)
        elif self.host_is_device:
            next_value.copy_(shifted)
            next_value[self.finals.step, self.finals.env] = self.policy.value(_finite_all(self.finals.obs))
        else:
            final = self.policy.value(_finite_all(self.finals.obs)).view_as(value)
            next_value.copy_(torch.where(truncated, final, shifted))
        for t in self._blind:  # the best there is: the value of the observation before the last action
            next_value[t].copy_(torch.where(truncated[t], value[t], shifted[t]))


def _finite(x: Tensor) -> Tensor:
    """NaN and infinity as 0, so that one poisoned observation cannot poison an action or a recurrent state."""
    return torch.nan_to_num(x.float(), nan=0.0, posinf=0.0, neginf=0.0) if x.is_floating_point() else x


def _finite_all(obs: Any) -> TensorDict:
    clean = obs.apply(_finite)
    assert isinstance(clean, TensorDict)
    return clean


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (yes.ndim - 1)), yes, no)
