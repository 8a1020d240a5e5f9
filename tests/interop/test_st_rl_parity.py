"""Whole iterations of st_rl's algorithms, configured through `from_config`, against the formulas of its page.

The page's loop (act, process_env_step, compute_returns, update, compute_losses) is written out below with torch's own
optimizers; only the networks are this library's, from the same first weights.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tests.interop.rsl_rl_simulator import Simulator
from tests.interop.test_rsl_rl_parity import Recording, one_order
from torch import Tensor
from torch.nn import functional as F

import understudy as us
from understudy.interop.rsl_rl import Runner
from understudy.parts.motion_prior import MotionPrior

ITERATIONS, STEPS, ENVS = 3, 8, 12
SEGMENTS, PRIVILEGED = {"joints": 3, "velocity": 2}, {"joints": 3, "velocity": 2, "friction": 2}
PPO = {"num_learning_epochs": 2, "num_mini_batches": 4, "entropy_coef": 0.01, "learning_rate": 1e-3}
ENCODED = {"encoder_component_names": ["joints"], "encoder_output_size": 4, "encoder_kwargs": {"hidden_sizes": [6]}}
ESTIMATOR = {
    "class_name": "StateAc",
    "obs_segments": SEGMENTS,
    "critic_obs_segments": PRIVILEGED,
    "estimator_obs_components": ["joints"],
    "estimator_target_components": ["velocity"],
    "estimator_kwargs": {"hidden_sizes": [8], "nonlinearity": "CELU"},
}
AMP = {
    "class_name": "AmpActorCritic",
    "amp_discriminator": {
        "hidden_dims": [16],
        "style_reward_coef": 2.0,
        "task_reward_lerp": 0.3,
        "discriminator_grad_pen": 5.0,
    },
}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ppo": ("PPO", {}, {}),
    "unclipped-value": ("PPO", {"use_clipped_value_loss": False, "value_loss_coef": 0.4}, {}),
    "discount": ("PPO", {"gamma": 0.9, "lam": 0.7}, {}),
    "tight-clip": ("PPO", {"clip_param": 0.02, "learning_rate": 5e-3}, {}),
    "adaptive": ("PPO", {"schedule": "adaptive", "desired_kl": 1e-3}, {}),
    "clipped-gradients": ("PPO", {"max_grad_norm": 0.05}, {}),
    "adamw": ("PPO", {"optimizer_class_name": "AdamW"}, {}),
    "sgd": ("PPO", {"optimizer_class_name": "SGD", "learning_rate": 1e-2}, {}),
    "rmsprop": ("PPO", {"optimizer_class_name": "RMSprop", "learning_rate": 1e-4}, {}),
    "lstm": ("PPO", {}, {"class_name": "ActorCriticRecurrent", "rnn_hidden_size": 6}),
    "gru": ("PPO", {"schedule": "adaptive"}, {"class_name": "ActorCriticRecurrent", "rnn_type": "gru"}),
    "encoders": ("PPO", {}, {**ENCODED, "obs_segments": SEGMENTS}),
    **{f"tppo-{x}": ("TPPO", {"distill_target": x}, {}) for x in ("real", "mse_sum", "l1", "max_log_prob")},
    **{f"tppo-{x}": ("TPPO", {"distill_target": x}, {"mu_activation": "tanh"}) for x in ("tanh", "scaled_tanh")},
    **{f"tppo-{x}": ("TPPO", {"distillation_loss_coef": x, "update_times_scale": 4}, {}) for x in ("linear", "exp")},
    "tppo-lstm": ("TPPO", {}, {"class_name": "ActorCriticRecurrent", "rnn_hidden_size": 6}),
    "dagger": ("TPPO", {"using_ppo": False}, {}),
    **{
        f"tppo-latents-{x}": (
            "TPPO",
            {"distill_latent_obs_component_mapping": {"joints": "joints"}, "distill_latent_target": x},
            {**ENCODED, "obs_segments": SEGMENTS, "critic_obs_segments": PRIVILEGED},
        )
        for x in ("real", "l1")
    },
    "estimator": ("EstimatorPPO", {}, {**ESTIMATOR, "replace_state_prob": 1.0}),
    "estimator-beside": ("EstimatorPPO", {}, ESTIMATOR),
    "estimator-smooth": (
        "EstimatorPPO",
        {"estimator_loss_func": "smooth_l1_loss", "estimator_loss_kwargs": {"beta": 0.3}, "estimator_loss_coef": 0.5},
        {**ESTIMATOR, "replace_state_prob": 1.0},
    ),
    "estimator-lstm": (
        "EstimatorPPO",
        {},
        {
            **ESTIMATOR,
            "class_name": "StateAcRecurrent",
            "rnn_type": "gru",
            "rnn_hidden_size": 6,
            "replace_state_prob": 1.0,
        },
    ),
    "estimator-tppo": ("EstimatorTPPO", {"distill_target": "l1"}, {**ESTIMATOR, "replace_state_prob": 1.0}),
    "appo": ("APPO", {}, AMP),
    "appo-mimic": ("APPO", {"mimic_loss_coef": 0.1}, AMP),
    "atppo": ("ATPPO", {}, AMP),
}


def train_cfg(case: str, teacher: str) -> dict[str, Any]:
    name, algorithm, policy = CASES[case]
    given = {"actor_hidden_dims": [16], "critic_hidden_dims": [16], "init_noise_std": 0.8, "class_name": "ActorCritic"}
    algorithm = {"class_name": name, **PPO, **algorithm}
    if "TPPO" in name:
        algorithm["teacher_policy"] = {"teacher_ac_path": teacher}
        algorithm.setdefault("teacher_act_prob", 0.0)
    critic = {"obs_groups": {"actor": ["policy"], "critic": ["critic"]}, "save_interval": 100}
    numbers = {"gamma": 0.998, "num_steps_per_env": STEPS, "max_iterations": ITERATIONS}
    algorithm = {"gamma": numbers.pop("gamma"), "schedule": "fixed", **algorithm}
    return {**critic, **numbers, "policy": {**given, **policy}, "algorithm": algorithm}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Trained policies that see what the critic of the others sees: plain, in segments, with a tanh, with encoders."""
    paths = {}
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "tanh": {"mu_activation": "tanh"},
        "segments": {"obs_segments": PRIVILEGED},
        "encoders": {"obs_segments": PRIVILEGED, **ENCODED},
    }
    for kind, policy in kinds.items():
        folder = tmp_path_factory.mktemp(kind) / "run"
        given = {"actor_hidden_dims": [8], "critic_hidden_dims": [8], **policy}
        cfg = {"num_steps_per_env": 8, "max_iterations": 1, "policy": given, "algorithm": {}}
        Runner(Simulator(4, {"policy": 7}), cfg, str(folder)).learn(1)
        paths[kind] = str(folder)
    return paths


def teacher_of(case: str) -> str:
    policy = CASES[case][2]
    if "encoder_component_names" in policy:
        return "encoders"
    return "tanh" if "mu_activation" in policy else "segments" if "obs_segments" in policy else "plain"


@pytest.mark.filterwarnings("ignore:the environment does not give final observations")
@pytest.mark.parametrize("case", CASES)
def test_three_iterations_are_those_of_the_page(
    case: str, teachers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teachers[teacher_of(case)]
    cfg = train_cfg(case, teacher)
    torch.manual_seed(0)
    runner = Runner(Recording(ENVS, gives_final=False), cfg)
    ppo = runner.alg.ppo
    page = Page(case, cfg, runner, teacher)
    critics: list[Any] = []
    reward = MotionPrior.reward

    def recorded(part: MotionPrior, rollout: TensorDict) -> Tensor:
        found = reward(part, rollout)
        critics.append((copy.deepcopy(part.discriminator.network), copy.deepcopy(part.normalizer)))
        return found

    monkeypatch.setattr(MotionPrior, "reward", recorded)
    start = {name: x.detach().clone() for name, x in page.policy.named_parameters()}
    with one_order(ppo.policy.recurrent):
        runner.learn(ITERATIONS)
        page.run(runner.env.actions, critics)
    worst, moved = 0.0, 0.0
    found = {name: x.detach() for name, x in ppo.policy.named_parameters()}
    for name, parameter in page.policy.named_parameters():
        x = parameter.detach()
        size = float(x.abs().max().clamp(min=1e-3))
        worst = max(worst, float((found[name] - x).abs().max()) / size)
        moved = max(moved, float((start[name] - x).abs().max()) / size)
    assert worst < 2e-5
    assert moved > 1e-3


class Page:
    """st_rl's loop as its page prints it, over a policy with the weights that the runner's had at first."""

    def __init__(self, case: str, cfg: dict[str, Any], runner: Runner, teacher: str) -> None:
        self.name, self.a, self.p = cfg["algorithm"]["class_name"], cfg["algorithm"], cfg["policy"]
        # a copy of its own memory: the runner's optimizer keeps the weights as views of one vector
        self.policy = copy.deepcopy(runner.alg.ppo.policy)
        for x in self.policy.parameters():
            x.data = x.data.clone()
        self.env, self.observed = Simulator(ENVS, gives_final=False), runner.alg.ppo.env.observed  # type: ignore[attr-defined]
        kind = getattr(torch.optim, self.a.get("optimizer_class_name", "Adam"))
        self.lr = self.a["learning_rate"]
        self.optimizer = kind(self.policy.parameters(), lr=self.lr)
        self.teacher = us.load(teacher)
        self.recurrent = self.policy.recurrent
        self.clip = self.a.get("clip_param", 0.2)
        self.state = self.policy.initial_state(ENVS)
        self.is_first = torch.ones(ENVS, dtype=torch.bool)

    def run(self, actions: list[Tensor], critics: list[Any]) -> None:
        played = iter(actions)
        for iteration in range(ITERATIONS):
            self.iteration = iteration
            rollout = self.collect(played, critics[iteration] if critics else None)
            self.update(rollout)

    @torch.no_grad()
    def collect(self, played: Any, critic: Any) -> dict[str, Any]:
        rows: dict[str, list[Any]] = {}
        first_state = self.state
        for action in itertools.islice(played, STEPS):
            obs = self.observed(self.env.get_observations())
            out = self.policy(obs, self.state, self.is_first) if self.recurrent else self.policy(obs)
            mean, log_std = out.distribution.params.chunk(2, dim=-1)
            label, latents = self.label(obs)
            raw, reward, dones, extras = self.env.step(action)
            after = self.observed(raw)
            if critic is not None:
                reward = self.blended(reward, after, dones, *critic)
            reward = reward + self.a["gamma"] * out.value * extras["time_outs"]
            for name, x in {
                "obs": obs.clone(), "action": action, "value": out.value, "mean": mean, "log_std": log_std,
                "log_prob": gaussian(mean, log_std, action), "reward": reward, "done": dones.float(),
                "first": self.is_first, "label": label, "latent": latents,
            }.items():  # fmt: skip
                rows.setdefault(name, []).append(x)
            self.state, self.is_first = out.state, dones.bool()
        last = self.observed(self.env.get_observations())
        last_value = self.policy.value(last, self.state, self.is_first) if self.recurrent else self.policy.value(last)
        found: dict[str, Any] = {name: torch.stack(x) for name, x in rows.items() if x[0] is not None}
        found["state"] = first_state
        advantage, returns = torch.zeros(ENVS), []
        for t in reversed(range(STEPS)):
            following = last_value if t == STEPS - 1 else found["value"][t + 1]
            going = 1.0 - found["done"][t]
            delta = found["reward"][t] + going * self.a["gamma"] * following - found["value"][t]
            advantage = delta + going * self.a["gamma"] * self.a.get("lam", 0.95) * advantage
            returns.insert(0, advantage + found["value"][t])
        found["returns"] = torch.stack(returns)
        advantages = found["returns"] - found["value"]
        found["advantage"] = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return found

    def label(self, obs: TensorDict) -> tuple[Tensor | None, Tensor | None]:
        if "TPPO" not in self.name:
            return None, None
        distribution, _, latents = self.teacher.run_actor(TensorDict({"policy": obs["critic"]}, obs.batch_size))
        return distribution.mode(), latents.get("actor/policy/joints")

    def blended(self, task: Tensor, after: TensorDict, dones: Tensor, network: Any, normalizer: Any) -> Tensor:
        """The task's share is task_reward_lerp, the rest is style; an end, followed by another episode, has none."""
        options = self.p["amp_discriminator"]
        d = network(normalizer(after["ref_obs"]))
        style = (1.0 - 0.25 * (d - 1.0).square()).clamp(min=0.0)
        error = (after["ref_obs"] - after["ref_motion"]) * normalizer.scale
        mimic = self.a.get("mimic_loss_coef", 0.0) * error.norm(dim=-1)
        lerp = options["task_reward_lerp"]
        style = torch.where(dones.bool(), 0.0, style - mimic)
        return lerp * task + (1.0 - lerp) * options["style_reward_coef"] * style

    def update(self, rollout: dict[str, Any]) -> None:
        a, batches = self.a, self.a["num_mini_batches"]
        for _ in range(a["num_learning_epochs"]):
            order = torch.randperm(ENVS if self.recurrent else STEPS * ENVS).view(batches, -1)
            for rows in order:
                losses = self.compute_losses(self.minibatch(rollout, rows))
                coefficients = {
                    "value_loss": a.get("value_loss_coef", 1.0),
                    "entropy": a["entropy_coef"],
                    "distillation_loss": self.curve(a.get("distillation_loss_coef", 1.0)),
                    "estimator_loss": a.get("estimator_loss_coef", 1.0),
                }
                loss = sum(coefficients.get(name, 1.0) * x for name, x in losses.items())
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[union-attr]
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), a.get("max_grad_norm", 1.0))
                self.optimizer.step()

    def curve(self, coefficient: Any) -> float:
        scale = self.a.get("update_times_scale", 100)
        if coefficient == "linear":
            return max(0.0, 1.0 - self.iteration / scale)
        return max(0.0, (1.0 - 1.0 / scale) ** self.iteration) if coefficient == "exp" else float(coefficient)

    def minibatch(self, rollout: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        if self.recurrent:
            return {name: x[rows] if name == "state" else x[:, rows] for name, x in rollout.items()}
        return {name: x.flatten(0, 1)[rows] for name, x in rollout.items() if name != "state"}

    def compute_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        state = (batch["state"], batch["first"]) if self.recurrent else ()
        out = self.policy(batch["obs"], *state)
        mean, log_std = out.distribution.params.chunk(2, dim=-1)
        losses: dict[str, Tensor] = {}
        if self.a.get("using_ppo", True):
            if self.a["schedule"] == "adaptive":
                self.adapt(batch, mean, log_std)
            ratio = torch.exp(gaussian(mean, log_std, batch["action"]) - batch["log_prob"])
            clipped = ratio.clamp(1.0 - self.clip, 1.0 + self.clip)
            losses["surrogate_loss"] = torch.max(-batch["advantage"] * ratio, -batch["advantage"] * clipped).mean()
            errors = (out.value - batch["returns"]).square()
            if self.a.get("use_clipped_value_loss", True):
                value = batch["value"] + (out.value - batch["value"]).clamp(-self.clip, self.clip)
                errors = torch.max(errors, (value - batch["returns"]).square())
            losses["value_loss"] = errors.mean()
            losses["entropy"] = -(0.5 + 0.5 * math.log(2.0 * math.pi) + log_std).sum(-1).mean()
        if "TPPO" in self.name:
            losses["distillation_loss"] = self.distance(mean, log_std, batch["label"]).mean()
        if "distill_latent_obs_component_mapping" in self.a:
            error = out.latents["actor/policy/joints"] - batch["latent"]
            order = 1 if self.a["distill_latent_target"] == "l1" else 2
            losses["distill_latent_joints"] = error.norm(p=order, dim=-1).mean()
        if self.name.startswith("Estimator"):
            function = getattr(F, self.a.get("estimator_loss_func", "mse_loss"))
            estimate, truth = out.latents["estimate/estimator"], batch["obs"]["critic", "velocity"]
            errors = function(estimate, truth, **self.a.get("estimator_loss_kwargs", {}), reduction="none")
            losses["estimator_loss"] = errors.sum(-1).mean()
        return losses

    @torch.no_grad()
    def adapt(self, batch: dict[str, Any], mean: Tensor, log_std: Tensor) -> None:
        """The page's rule, without the 1e-5 in its logarithm."""
        old, new = batch["log_std"].exp(), log_std.exp()
        terms = (new / old).log() + (old.square() + (batch["mean"] - mean).square()) / (2.0 * new.square()) - 0.5
        kl, desired = float(terms.sum(-1).mean()), self.a.get("desired_kl", 0.01)
        if kl > 2.0 * desired:
            self.lr = max(1e-5, self.lr / 1.5)
        elif 1e-7 < kl < 0.5 * desired:  # 0 up to rounding at the first minibatch
            self.lr = min(1e-2, self.lr * 1.5)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    def distance(self, mean: Tensor, log_std: Tensor, label: Tensor) -> Tensor:
        target = self.a.get("distill_target", "real")
        if target == "max_log_prob":
            return -gaussian(mean, log_std, label)
        if target == "mse_sum":
            return F.mse_loss(mean, label, reduction="none").sum(-1)
        if "tanh" in target:
            entropy = F.binary_cross_entropy((mean + 1) / 2, (label + 1) / 2, reduction="none").mean(-1)
            scale = (mean - label).norm(p=1, dim=-1) / mean.shape[-1] if target == "scaled_tanh" else 1.0
            return 2.0 * entropy * scale
        return (mean - label).norm(p=1 if target == "l1" else 2, dim=-1)


def gaussian(mean: Tensor, log_std: Tensor, x: Tensor) -> Tensor:
    """log N(x; mean, std), summed over the actions."""
    z = (x - mean) / log_std.exp()
    return -(0.5 * z.square() + log_std + 0.5 * math.log(2.0 * math.pi)).sum(-1)
