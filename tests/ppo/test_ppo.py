"""PPO as a whole equals a plain PPO written out in this file; and what each option does to it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from understudy.core import randomness
from understudy.envs.base import Step
from understudy.nn.policy import ActorCritic
from understudy.ppo.config import PPOConfig
from understudy.ppo.losses import clipped_surrogate, normalize, value_loss
from understudy.ppo.optim import OptimizerConfig

T, N, GAMMA, LAMBDA = 8, 4, 0.99, 0.95


class PlainPPO:
    """Nothing of the library but the names of its weights: own networks, distribution, GAE, losses, loops."""

    def __init__(self, env: Any, policy: ActorCritic, config: PPOConfig, seed: int = 0) -> None:
        self.env, self.config = env, config
        self.map = policy.action_map
        self.recurrent = policy.recurrent
        self.w = {name: p.detach().clone().requires_grad_() for name, p in policy.named_parameters()}
        self.lr = float(config.optimizer.learning_rate)  # type: ignore[arg-type]
        self.optimizer = torch.optim.Adam(list(self.w.values()), lr=self.lr, eps=1e-5, fused=True)
        self.noise = torch.Generator().manual_seed(randomness.mix(seed, "actions"))
        self.shuffle = torch.Generator().manual_seed(randomness.mix(seed, "minibatches"))
        self.all_obs: list[Tensor] = []  # every valid observation ever seen, for the normaliser
        self.mean, self.std = torch.zeros(3), torch.ones(3)
        self.obs: Any = None
        self.h = torch.zeros(N, 4 * 8) if self.recurrent else None  # actor h, c, critic h, c
        self.first = torch.ones(N, dtype=torch.bool)
        self.discounted = torch.zeros(N)
        self.all_discounted: list[Tensor] = []
        self.all_returns: list[Tensor] = []

    # -------------------------------------------------------------- networks

    def features(self, side: str, x: Tensor, h: Any, first: Any) -> tuple[Tensor, Any]:
        if self.recurrent:
            state, cell = (h * ~first.unsqueeze(-1)).chunk(2, -1)
            w = {k: self.w[f"{side}.memory.{k}_l0"] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            gates = x @ w["weight_ih"].T + w["bias_ih"] + state @ w["weight_hh"].T + w["bias_hh"]
            i, f, g, o = gates.chunk(4, -1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            x = torch.sigmoid(o) * torch.tanh(cell)
            h = torch.cat((x, cell), -1)
        return torch.tanh(x @ self.w[f"{side}.mlp.layers.0.weight"].T + self.w[f"{side}.mlp.layers.0.bias"]), h

    def forward(self, obs: Tensor, h: Any = None, first: Any = None) -> tuple[Normal, Tensor, Any]:
        x = ((obs - self.mean) / self.std).clamp(-10, 10)
        halves = h.chunk(2, -1) if h is not None else (None, None)
        actor, actor_h = self.features("actor", x, halves[0], first)
        critic, critic_h = self.features("critic", x, halves[1], first)
        mean = actor @ self.w["head.linear.weight"].T + self.w["head.linear.bias"]
        value = (critic @ self.w["value_head.weight"].T + self.w["value_head.bias"])[..., 0]
        new = torch.cat((actor_h, critic_h), -1) if self.recurrent else None
        return Normal(mean, self.w["head.std.log_std"].exp().expand_as(mean)), value, new

    def sequence(self, obs: Tensor, h: Any, first: Tensor) -> tuple[Normal, Tensor]:
        means, values = [], []
        for t in range(T):
            distribution, value, h = self.forward(obs[t], h, first[t])
            means.append(distribution.loc)
            values.append(value)
        mean = torch.stack(means)
        return Normal(mean, self.w["head.std.log_std"].exp().expand_as(mean)), torch.stack(values)

    # -------------------------------------------------------------- rollout

    @torch.no_grad()
    def collect(self) -> dict[str, Tensor]:
        if self.obs is None:
            self.obs = self.env.reset(randomness.env_seed(0, 0))["policy"].clone()
        rows: list[dict[str, Tensor]] = []
        self.h_before = self.h
        noise = torch.randn(T, N, 2, generator=self.noise)
        for t in range(T):
            distribution, value, self.h = self.forward(self.obs, self.h, self.first)
            action = distribution.loc + distribution.scale * noise[t]
            step: Step = self.env.step(self.map(action))
            valid = torch.ones(N, dtype=torch.bool) if step.valid is None else step.valid
            ended = step.terminated | step.truncated | ~valid
            row = {"obs": self.obs, "first": self.first, "action": action, "mean": distribution.loc, "valid": valid}
            row |= {"log_prob": distribution.log_prob(action).sum(-1), "scale": distribution.scale, "value": value}
            row |= {"reward": step.reward.clone(), "terminated": step.terminated, "truncated": step.truncated}
            assert step.final_obs is not None
            final = torch.where(ended.unsqueeze(-1), step.final_obs["policy"], step.obs["policy"])
            row["next_obs"] = final.clone()
            row["next_value"] = self.forward(row["next_obs"], self.h, torch.zeros(N, dtype=torch.bool))[1]
            rows.append(row)
            self.obs, self.first = step.obs["policy"].clone(), ended
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def scaled_reward(self, data: dict[str, Tensor]) -> Tensor:
        ended = data["terminated"] | data["truncated"]
        for t in range(T):
            self.discounted = self.discounted + data["reward"][t]
            self.all_discounted.append(self.discounted)
            self.discounted = self.discounted * GAMMA * ~ended[t]
        spread = torch.stack(self.all_discounted).double().var(unbiased=False)
        return (data["reward"] / (spread + 1e-8).sqrt().float()).clamp(-10, 10)

    def advantages(self, data: dict[str, Tensor], reward: Tensor) -> Tensor:
        shift, scale = 0.0, 1.0
        if self.config.value_normalization != "none" and self.all_returns:
            seen = torch.cat(self.all_returns).double()
            scale = float((seen.var(unbiased=False) + 1e-8).sqrt())
            shift = float(seen.mean()) if self.config.value_normalization == "standardize" else 0.0
        value, next_value = data["value"] * scale + shift, data["next_value"] * scale + shift
        data["advantage"] = torch.zeros(T, N)
        for n in range(N):
            last = 0.0
            for t in reversed(range(T)):
                if not data["valid"][t, n]:
                    last = 0.0
                    continue
                follows = 0.0 if data["terminated"][t, n] else float(next_value[t, n])
                delta = float(reward[t, n]) + GAMMA * follows - float(value[t, n])
                goes_on = not (data["terminated"][t, n] or data["truncated"][t, n])
                last = delta + GAMMA * LAMBDA * last * goes_on
                data["advantage"][t, n] = last
        returns = data["advantage"] + value
        data["target"] = (returns - shift) / scale
        return returns

    # -------------------------------------------------------------- update

    def iterate(self) -> None:
        data, c = self.collect(), self.config
        reward = self.scaled_reward(data) if c.reward_normalization else data["reward"]
        returns = self.advantages(data, reward)
        everything = data["advantage"][data["valid"]]
        if c.advantage_normalization == "rollout":
            self.spread = everything.mean(), everything.std() + 1e-8
        for epoch in range(c.epochs):
            if epoch and c.recompute_advantage:
                with torch.no_grad():
                    data["value"], data["next_value"] = self.forward(data["obs"])[1], self.forward(data["next_obs"])[1]
                self.advantages(data, reward)
                everything = data["advantage"][data["valid"]]
                self.spread = everything.mean(), everything.std() + 1e-8
            order = torch.randperm(N if self.recurrent else T * N, generator=self.shuffle)
            for i, part in enumerate(order.view(c.minibatches, -1)):
                if self.recurrent:
                    batch = {name: x[:, part] for name, x in data.items()}
                    assert self.h_before is not None
                    distribution, value = self.sequence(batch["obs"], self.h_before[part], batch["first"])
                else:
                    batch = {name: x.flatten(0, 1)[part] for name, x in data.items()}
                    distribution, value, _ = self.forward(batch["obs"])
                self.step(batch, distribution, value, adapts=epoch + i > 0)
        self.all_returns.append(returns[data["valid"]])
        self.absorb(data["obs"], data["valid"])

    def absorb(self, obs: Any, valid: Tensor) -> None:
        self.all_obs.append(obs[valid])
        seen = torch.cat(self.all_obs).double()
        self.mean, self.std = seen.mean(0).float(), (seen.var(0, unbiased=False) + 1e-8).sqrt().float()

    def step(self, batch: dict[str, Tensor], distribution: Normal, value: Tensor, adapts: bool) -> None:
        c, valid = self.config, batch["valid"]
        if c.desired_kl is not None and adapts:  # the first minibatch's KL is 0 up to rounding
            kl = kl_divergence(Normal(batch["mean"], batch["scale"]), distribution).sum(-1).mean().item()
            if kl > 2 * c.desired_kl:
                self.lr = max(c.learning_rate_range[0], self.lr / 1.5)
            elif 0 < kl < c.desired_kl / 2:
                self.lr = min(c.learning_rate_range[1], self.lr * 1.5)
            self.optimizer.param_groups[0]["lr"] = self.lr
        self.descend(self.loss(batch, distribution, value, valid))

    def descend(self, loss: Tensor) -> None:
        c = self.config
        self.optimizer.zero_grad()
        loss.backward()
        if c.optimizer.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(list(self.w.values()), c.optimizer.max_grad_norm)
        self.optimizer.step()

    def loss(self, batch: dict[str, Tensor], distribution: Normal, value: Tensor, valid: Tensor) -> Tensor:
        c = self.config
        advantage = batch["advantage"]
        if c.advantage_normalization == "minibatch":
            advantage = (advantage - advantage[valid].mean()) / (advantage[valid].std() + 1e-8)
        elif c.advantage_normalization == "rollout":
            advantage = (advantage - self.spread[0]) / self.spread[1]
        log_prob = distribution.log_prob(batch["action"]).sum(-1)
        if c.surrogate == "a2c":
            objective = log_prob * advantage
        else:
            ratio = torch.exp(log_prob - batch["log_prob"])
            high = float(c.clip_epsilon if c.clip_epsilon_high is None else c.clip_epsilon_high)  # type: ignore[arg-type]
            low = float(c.clip_epsilon)  # type: ignore[arg-type]
            objective = torch.min(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
            if c.dual_clip is not None:
                bounded = torch.max(objective, c.dual_clip * advantage)
                objective = torch.where(advantage < 0, bounded, objective)
        error = {"l2": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[c.loss_critic_type]
        critic = error(value, batch["target"], reduction="none")
        if c.value_clip is not None:
            near = float(c.value_clip)  # type: ignore[arg-type]
            clipped = batch["value"] + (value - batch["value"]).clamp(-near, near)
            critic = torch.max(critic, error(clipped, batch["target"], reduction="none"))
        entropy = distribution.entropy().sum(-1)
        total = -objective + float(c.value_coef) * critic - float(c.entropy_coef) * entropy  # type: ignore[arg-type]
        return total[valid].sum() / valid.numel()


def scripted(scripted_env: Any, junk: bool = False) -> Any:
    def edit(t: int, step: Step) -> Step:
        bad = torch.tensor([(t, n) in {(3, 0), (7, 1), (9, 2), (10, 2)} for n in range(N)])
        flags = {name: getattr(step, name) & ~bad for name in ("terminated", "truncated")}
        return step._replace(valid=~bad, reward=torch.where(bad, 0.0, step.reward), **flags)

    return scripted_env(N, edit=edit) if junk else scripted_env(N)


def distance(ppo: Any, plain: PlainPPO) -> float:
    """Relative distance of the weights, and of how far they went."""
    a = torch.cat([p.detach().flatten() for p in ppo.policy.parameters()])
    b = torch.cat([plain.w[name].detach().flatten() for name, _ in ppo.policy.named_parameters()])
    return float((a - b).norm() / b.norm())


EVERYTHING: dict[str, Any] = {
    "entropy_coef": 0.01,
    "value_clip": 0.1,
    "clip_epsilon": 0.1,
    "clip_epsilon_high": 0.15,
    "dual_clip": 1.05,
    "desired_kl": 0.005,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "no normalisation": {"advantage_normalization": "none", "loss_critic_type": "l1"},
    "rollout normalisation": {
        "advantage_normalization": "rollout",
        "loss_critic_type": "smooth_l1",
        "value_clip": 0.05,
    },
    "reward normalisation": {"reward_normalization": True},
    "scaled returns": {"value_normalization": "scale", "value_clip": 0.2},
    "standardised returns": {"value_normalization": "standardize"},
    "recomputed": {"recompute_advantage": True, "epochs": 3, "value_clip": 0.1, "value_normalization": "scale"},
    "recomputed rollout": {"recompute_advantage": True, "advantage_normalization": "rollout"},
    "a2c": {"surrogate": "a2c", "epochs": 1, "minibatches": 1, "entropy_coef": 0.01},
}
CASES = [(name, memory, junk) for name in VARIANTS for memory in ("none", "lstm") for junk in (False, True)]
CASES = [case for case in CASES if not (case[1] == "lstm" and "recomputed" in case[0])]
CASES = [
    case for case in CASES if not (case[2] and case[0] not in ("defaults", "rollout normalisation", "scaled returns"))
]


@pytest.mark.parametrize(("name", "memory", "junk"), CASES)
def test_equals_a_plain_ppo(scripted_env: Any, make_ppo: Any, name: str, memory: str, junk: bool) -> None:
    options = {"epochs": 4, "minibatches": 2, **VARIANTS[name]}
    options["optimizer"] = OptimizerConfig(learning_rate=3e-3)
    ppo = make_ppo(scripted(scripted_env, junk), policy={"memory": memory}, **options)
    before = ppo.optimizer.flat.clone()
    plain = PlainPPO(scripted(scripted_env, junk), ppo.policy, ppo.config)
    for _ in range(3):
        metrics = ppo.iterate()
        plain.iterate()
        for ours, theirs in zip(ppo.env.actions, plain.env.actions):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert distance(ppo, plain) < 1e-5
    assert (ppo.optimizer.flat - before).norm() / before.norm() > 0.01  # it did go somewhere
    assert metrics["ppo/learning_rate"] == pytest.approx(plain.lr, rel=1e-6)
    if name == "everything":
        assert plain.lr != 3e-3
        assert metrics["ppo/clip_fraction"] > 0.0


# ---------------------------------------------------------------------- bit for bit


def in_blocks(tensors: Sequence[Tensor]) -> Tensor:
    """One vector in which each tensor starts at a multiple of 64 bytes, as the optimizer's parameters do."""
    return torch.cat([F.pad(x.flatten(), (0, -x.numel() % 16)) for x in tensors])


class SameFormulas(PlainPPO):
    """The plain loop over the library's own networks and per-sample losses, so that every sum associates alike."""

    def __init__(self, env: Any, policy: ActorCritic, config: PPOConfig) -> None:
        super().__init__(env, policy, config)
        self.policy = copy.deepcopy(policy)
        self.w = dict(self.policy.named_parameters())
        # fused Adam rounds its vectorised and its tail loop differently: every number must be in the same place
        self.flat = nn.Parameter(in_blocks([p.detach() for p in self.w.values()]))
        self.optimizer = torch.optim.Adam([self.flat], lr=self.lr, eps=1e-5, fused=True)

    def descend(self, loss: Tensor) -> None:
        parameters = list(self.w.values())
        self.flat.grad = in_blocks(torch.autograd.grad(loss, parameters))
        self.optimizer.step()
        with torch.no_grad():
            for p, row in zip(parameters, self.flat.split([-(-p.numel() // 16) * 16 for p in parameters])):
                p.copy_(row[: p.numel()].view_as(p))

    @torch.no_grad()
    def collect(self) -> dict[str, Any]:
        if self.obs is None:
            self.obs = self.env.reset(randomness.env_seed(0, 0))
        rows: list[dict[str, Any]] = []
        self.h_before = self.h
        noise = torch.randn(T, N, 2, generator=self.noise)
        for t in range(T):
            out = self.policy(self.obs, self.h, self.first)
            self.h = out.state
            action = out.distribution.sample(noise[t])
            row = {"obs": self.obs.clone(), "first": self.first, "action": action, "value": out.value}
            row["log_prob"] = out.distribution.log_prob(action)
            step = self.env.step(self.map(action))
            row |= {"reward": step.reward.clone(), "terminated": step.terminated, "truncated": step.truncated}
            row["next_obs"] = step.final_obs.clone()
            still = torch.zeros(N, dtype=torch.bool)
            row["final_value"] = self.policy(row["next_obs"], self.h, still).value
            rows.append(row)
            self.obs, self.first = step.obs.clone(), step.terminated | step.truncated
        data = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        data["valid"] = torch.ones(T, N, dtype=torch.bool)
        if not self.recurrent:  # the library evaluates a feed-forward policy in as many chunks as there are minibatches
            chunks = zip(data["obs"].flatten(0, 1).chunk(self.config.minibatches), self.chunks(data["action"]))
            outs = [(self.policy(obs), action) for obs, action in chunks]
            data["value"] = torch.cat([out.value for out, _ in outs]).view(T, N)
            data["log_prob"] = torch.cat([out.distribution.log_prob(action) for out, action in outs]).view(T, N)
        last = self.policy(self.obs, self.h, self.first).value
        data["next_value"] = torch.cat((data["value"][1:], last.unsqueeze(0)))
        if self.recurrent:
            data["next_value"] = torch.where(data["truncated"], data["final_value"], data["next_value"])
        elif data["truncated"].any():
            data["next_value"][data["truncated"]] = self.policy(data["next_obs"][data["truncated"]]).value
        return data

    def chunks(self, x: Tensor) -> Any:
        return x.flatten(0, 1).chunk(self.config.minibatches)

    def advantages(self, data: dict[str, Tensor], reward: Tensor) -> Tensor:
        last = torch.zeros(N)
        advantage = torch.zeros(T, N)
        for t in reversed(range(T)):
            delta = reward[t] + GAMMA * data["next_value"][t] * ~data["terminated"][t] - data["value"][t]
            goes_on = (~(data["terminated"][t] | data["truncated"][t])).float() * (GAMMA * LAMBDA)
            last = torch.addcmul(delta, goes_on, last)
            advantage[t] = last
        data["advantage"], data["target"] = advantage, advantage + data["value"]
        return data["target"]

    def absorb(self, obs: Any, valid: Tensor) -> None:
        self.policy.update_normalizers(obs)

    def forward(self, obs: Any, h: Any = None, first: Any = None) -> Any:
        out = self.policy(obs, h, first)
        return out.distribution, out.value, out.state

    def sequence(self, obs: Any, h: Any, first: Tensor) -> Any:
        out = self.policy(obs, h, first)
        return out.distribution, out.value

    def loss(self, batch: dict[str, Tensor], distribution: Any, value: Tensor, valid: Tensor) -> Tensor:
        c: Any = self.config
        log_ratio = distribution.log_prob(batch["action"]) - batch["log_prob"]
        surrogate = clipped_surrogate(log_ratio, normalize(batch["advantage"]), c.clip_epsilon, c.clip_epsilon).mean()
        critic = value_loss(value, batch["target"], batch["value"], c.value_clip).mean()
        return surrogate + c.value_coef * critic - c.entropy_coef * distribution.entropy().mean()


@pytest.mark.parametrize("capture", ["trace", "eager"])
@pytest.mark.parametrize("value_clip", [None, 0.1])
@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_equals_a_plain_ppo_bit_for_bit(
    scripted_env: Any, make_ppo: Any, memory: str, value_clip: float | None, capture: str
) -> None:
    """The learning rate is a power of two: ours is a float32 on the device, torch's Adam computes with a double."""
    options: dict[str, Any] = {"epochs": 4, "minibatches": 2, "value_clip": value_clip, "entropy_coef": 0.01}
    options["optimizer"] = OptimizerConfig(learning_rate=2.0**-8, max_grad_norm=None)
    ppo = make_ppo(scripted(scripted_env), policy={"memory": memory}, capture=capture, **options)
    plain = SameFormulas(scripted(scripted_env), ppo.policy, ppo.config)
    for _ in range(3):
        ppo.iterate()
        plain.iterate()
    for ours, theirs in zip(ppo.env.actions, plain.env.actions):
        assert torch.equal(ours, theirs)
    for (name, p), q in zip(ppo.policy.named_parameters(), plain.policy.parameters()):
        assert torch.equal(p, q), name
