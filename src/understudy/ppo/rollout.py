"""Collecting: T steps of N environments into a preallocated TensorDict `[T, N]`, and the values that GAE needs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core import devices
from understudy.core.capture import Batch, CaptureMode, capture
from understudy.core.devices import check_memory
from understudy.core.sanity import without_faults
from understudy.core.spaces import Key, blank, component, key_of, unflatten
from understudy.envs.base import SimulatedEnv, Step, VecEnv
from understudy.envs.gate import Gate
from understudy.envs.regrouped import ungrouped
from understudy.nn.protocol import REPLACED, Policy
from understudy.ppo.minibatch import LARGE
from understudy.ppo.part import Labels, Overrides, Part

Name = tuple[str, ...]
"""Of a leaf in the rollout."""


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
        policy: Policy,
        parts: Mapping[str, Part],
        *,
        num_steps: int,
        chunks: int,
        limits: Mapping[Name, Tensor],
        generator: torch.Generator,
        mode: CaptureMode,
    ) -> None:
        self.env, self.policy, self.num_steps, self.chunks = env, policy, num_steps, chunks
        self.gate = Gate(env)
        simulator = ungrouped(env)
        self.simulator = simulator if isinstance(simulator, SimulatedEnv) else None
        self.limits, self.generator = limits, generator
        self.labels = {name: part for name, part in parts.items() if isinstance(part, Labels)}
        overrides = [(name, part) for name, part in parts.items() if isinstance(part, Overrides)]
        if len(overrides) > 1:
            raise ValueError(f"at most one part may override actions, got {[name for name, _ in overrides]}")
        self.override = overrides[0] if overrides else None
        self.keeps_next_obs = any(part.uses_next_obs for part in parts.values())
        self.host_is_device = devices.host_is_device(env.device)
        self.keys = self.gate.keys
        self.obs: TensorDict | None = None
        self.is_first = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        self.state = policy.initial_state(env.num_envs)
        self.env_metrics: dict[str, list[Tensor]] = {}
        self.finals: Finals | None = None  # the true final observations at the time limits of this rollout
        self._sparse_finals: list[Finals] = []
        # on an accelerator "did anything end?" would be a host sync: keep every final observation instead
        kept = self.host_is_device or self.keeps_next_obs
        self._dense_finals = {} if kept else {key: self._zeros(key) for key in policy.value_keys}
        self._blind: list[int] = []  # steps whose final observations the environment could not give
        self._warned = False
        self.data = self._allocate()
        # taken once: indexing a TensorDict or a tensor at every step costs more than the copy itself
        leaves: Any = self.data.items(True, True)
        self._rows: dict[Any, tuple[Tensor, ...]] = {name: x.unbind(0) for name, x in leaves if name != "state"}
        self._obs_rows = [self._rows["obs", *key] for key in self.keys]
        acts_on = policy.input_keys if policy.recurrent else policy.actor_keys
        self._acts_on: list[dict[Any, Tensor]] = [
            {("obs", *key): self._rows["obs", *key][t] for key in acts_on} for t in range(num_steps)
        ]
        if mode == "compile":
            mode = "trace"  # compiling a dozen operations takes minutes to win back
        self._act = capture(self._act_recurrent if policy.recurrent else self._act_feed_forward, mode)
        self._evaluate = capture(self._evaluate_feed_forward, mode)

    # ------------------------------------------------------------------ storage

    def _allocate(self) -> TensorDict:
        T, N, device = self.num_steps, self.env.num_envs, self.env.device
        head = self.policy.head
        sizes = [blank(component(self.env.observation_space, key), (1,)).nbytes for key in self.keys]
        seen, large = sum(sizes), sum(size for size in sizes if size >= LARGE)
        row = seen * (1 + self.keeps_next_obs) + 8 * head.action_shape.numel() + 4 * head.num_params + 35
        # twice: each epoch shuffles into a copy, of what is large one minibatch after the other
        check_memory(
            T * N * (2.0 * row - (1.0 - 1.0 / self.chunks) * large),
            f"a rollout of {T} steps x {N} copies",
            "ppo.num_steps or env.num_envs",
            device,
        )
        data = TensorDict({}, batch_size=[T, N], device=device)
        for key in self.keys:
            data["obs", *key] = self._zeros(key)
            if self.keeps_next_obs:
                data["next_obs", *key] = self._zeros(key)
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
        return data

    def _zeros(self, key: Key) -> Tensor:
        """`[T, N, ...]` for one component of the observation."""
        shape = (self.num_steps, self.env.num_envs)
        return blank(component(self.env.observation_space, key), shape, self.env.device)

    # ------------------------------------------------------------------ captured

    def _act_feed_forward(self, batch: Batch) -> dict[str, Tensor]:
        raw = self.policy.distribution(self._inputs(batch, self.policy.actor_keys)).sample(batch.get("noise"))
        return {"action": raw, "executed_action": self.policy.action_map(raw)}

    def _act_recurrent(self, batch: Batch) -> dict[str, Tensor]:
        out = self.policy(self._inputs(batch, self.policy.input_keys), batch["state"], batch["is_first"])
        raw = out.distribution.sample(batch.get("noise"))
        assert out.state is not None
        acted = {"action": raw, "executed_action": self.policy.action_map(raw), "state": out.state}
        return {**acted, "params": out.distribution.params, "value": out.value}

    def _inputs(self, batch: Batch, keys: tuple[Key, ...]) -> TensorDict:
        """What the policy acts on: no broken number can poison a recurrent state, or an action.

        A normaliser's clip bounds what is finite, and no memory keeps it: that is one operation instead of three.
        """
        bounded = set() if self.policy.recurrent else {key_of(name) for name in self.policy.normalizers}
        clean = [
            torch.nan_to_num(x.float(), nan=0.0, posinf=0.0, neginf=0.0) if key in bounded else self._clean(key, x)
            for key, x in ((key, batch["obs", *key]) for key in keys)
        ]
        return unflatten(keys, clean, [self.env.num_envs])

    def _clean(self, key: Key, x: Tensor) -> Tensor:
        """A component with 0 in place of what is broken."""
        limit = self.limits.get(("obs", *key))
        return x if limit is None else without_faults(x.float(), limit)

    def _clean_all(self, obs: Any) -> TensorDict:
        leaves = {key if isinstance(key, tuple) else (key,): x for key, x in obs.items(True, True)}
        return unflatten(leaves, [self._clean(key, x) for key, x in leaves.items()], obs.batch_size)

    def _evaluate_feed_forward(self, batch: Batch) -> dict[str, Tensor]:
        action, keys = batch["action"], self.policy.input_keys
        out = self.policy(unflatten(keys, [batch["obs", *key] for key in keys], [len(action)]))
        log_prob = out.distribution.log_prob(action)
        return {"value": out.value, "params": out.distribution.params, "log_prob": log_prob}

    # ------------------------------------------------------------------ one rollout

    def reset(self, seed: int | None = None) -> None:
        """Start fresh episodes everywhere, a simulator's at random ages, and forget recurrent states."""
        self.obs = self.gate.reset(seed)
        if self.simulator is not None:
            self.simulator.stagger(seed or 0)
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
        noise_rows = None if noise is None else noise.to(self.env.device).unbind(0)
        self._sparse_finals, self._blind = [], []
        self.env_metrics.clear()
        data["valid"].fill_(True)
        if self.policy.mixes_estimates:  # drawn once: the update sees what the actor saw
            data["obs", *REPLACED].copy_(self.policy.draw_replacements((self.num_steps, N), self.generator))
        if self.state is not None:
            data["state"][0].copy_(self.state)
        data["is_first"][0].copy_(self.is_first)
        num_steps = num_steps or self.num_steps
        for t in range(num_steps):
            executed = self._rows["executed_action"][t]
            executed.copy_(self._choose(t, None if noise_rows is None else noise_rows[t]))
            self._store(t, self.gate.step(executed))
        first = data["terminated"] | data["truncated"] | ~data["valid"]
        data["is_first"][1:].copy_(first[:-1])
        self.is_first = first[num_steps - 1]
        self.finals = self._gather_finals(num_steps)
        return data

    def _choose(self, t: int, noise: Tensor | None) -> Tensor:
        """Copy the observation into row t, choose the action, let labels and overrides speak."""
        rows, batch = self._rows, self._acts_on[t]
        for steps, x in zip(self._obs_rows, self.gate.leaves):
            steps[t].copy_(x)
        if noise is not None:
            batch["noise"] = noise
        if self.state is not None:
            acted = self._act({**batch, "state": self.state, "is_first": self.is_first})
            rows["params"][t].copy_(acted["params"])
            rows["value"][t].copy_(acted["value"])
            self.state = acted["state"]
        else:
            acted = self._act(batch)
        raw, executed = acted["action"], acted["executed_action"]
        if self.labels:
            raw, executed = self._consult(t, raw, executed)
        rows["action"][t].copy_(raw)
        return executed

    def _consult(self, t: int, raw: Tensor, executed: Tensor) -> tuple[Tensor, Tensor]:
        obs = self._clean_all(self.data["obs"][t])  # an expert with a memory would keep a NaN forever
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
        final, truncated = step.final_obs, step.truncated
        if self.keeps_next_obs:
            for key in self.keys:
                x = step.obs.get(key) if final is None else _where(self.is_first, final.get(key), step.obs.get(key))
                self._rows["next_obs", *key][t].copy_(x)
        if self.host_is_device and not bool(truncated.any()):
            return
        if final is None:
            self._blind.append(t)
            return
        if self.policy.recurrent:  # only now is there the memory that the value needs
            value = self.policy.value(self._clean_all(final), self.state, torch.zeros_like(truncated))
            self._rows["next_value"][t].copy_(value)
        if self.host_is_device and not self.keeps_next_obs:
            envs = truncated.nonzero().squeeze(-1)
            obs: Any = final.select(*self.policy.value_keys)
            self._sparse_finals.append(Finals(torch.full_like(envs, t), envs, obs[envs]))
        for key, dense in self._dense_finals.items():
            # rows that did not end may hold anything
            dense[t].copy_(_where(truncated, final.get(key), torch.zeros_like(dense[t])))

    def _gather_finals(self, num_steps: int) -> Finals | None:
        # an accelerator does not know whether anything ended in a blind step: it warns if all of them were
        if self._blind and (self.host_is_device or len(self._blind) == num_steps) and not self._warned:
            warnings.warn(
                "the environment does not give final observations: time-outs bootstrap from V(s_t), which is "
                "biased; have it put them into extras['final_obs']",
                stacklevel=2,
            )
            self._warned = True
        if self.host_is_device and not self.keeps_next_obs:
            if not self._sparse_finals:
                return None
            steps, envs, rows = zip(*self._sparse_finals)
            joined: Any = torch.cat(rows)
            return Finals(torch.cat(steps), torch.cat(envs), joined)
        if len(self._blind) == num_steps:
            return None
        T, N, keys = self.num_steps, self.env.num_envs, self.policy.value_keys
        dense = {key: self.data["next_obs", *key] for key in keys} if self.keeps_next_obs else self._dense_finals
        obs = unflatten(keys, [dense[key].flatten(0, 1) for key in keys], [T * N])
        if not self.host_is_device:
            places = torch.arange(T * N, device=self.env.device)
            return Finals(places // N, places % N, obs)
        known = self.data["truncated"].clone()
        known[num_steps:], known[self._blind] = False, False
        places = known.flatten().nonzero().squeeze(-1)
        return Finals(places // N, places % N, obs[places]) if len(places) else None

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
            self._evaluate_rollout(("value",) if values_only else ("value", "params", "log_prob"))
        self._bootstrap()

    def _evaluate_rollout(self, names: tuple[str, ...]) -> None:
        size = self.num_steps * self.env.num_envs // self.chunks
        inputs: list[Any] = [*(("obs", *key) for key in self.policy.input_keys), "action"]
        chunks = {name: self.data[name].flatten(0, 1).split(size) for name in (*inputs, *names)}
        for i in range(self.chunks):
            results = self._evaluate({name: chunks[name][i] for name in inputs})
            for name in names:
                chunks[name][i].copy_(results[name])

    def _bootstrap(self) -> None:
        """next_value: V of the next row, of the true final observation at a time limit, of the last observation."""
        data, finals = self.data, self.finals
        value, next_value = data["value"], data["next_value"]
        assert self.obs is not None
        last = self.policy.value(self._clean_all(self.obs), self.state, self.is_first)
        if finals is not None and not self.policy.recurrent:  # a memory's value was written while collecting
            next_value[finals.step, finals.env] = self.policy.value(self._clean_all(finals.obs))
        for t in self._blind:  # the best there is: the value of the observation before the last action
            next_value[t].copy_(value[t])
        shifted = torch.cat((value[1:], last.unsqueeze(0)))
        next_value.copy_(torch.where(data["truncated"], next_value, shifted))

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step depends on beside environment and policy."""
        return {"is_first": self.is_first} | ({} if self.state is None else {"state": self.state})

    def load_state_dict(self, state: Mapping[str, Tensor], obs: TensorDict) -> None:
        """Restore what `state_dict` returned, or raise ValueError; `obs` is what the environment shows now."""
        for name, x in self.state_dict().items():
            if (state[name].shape, state[name].dtype) != (x.shape, x.dtype):
                raise ValueError(f"{name} is {state[name].dtype} {[*state[name].shape]}, not {x.dtype} {[*x.shape]}")
        self.obs, self.is_first = self.gate.resume(obs), state["is_first"].to(self.env.device)
        if self.state is not None:
            self.state = state["state"].to(self.env.device)


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (yes.ndim - 1)), yes, no)
