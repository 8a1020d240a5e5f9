"""PPO (Schulman et al. 2017, arXiv:1707.06347) and A2C over one core, with room for expert parts and none inside."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core import devices, randomness, ranks
from understudy.core.capture import Batch
from understudy.core.check import nearest
from understudy.core.devices import denormals_flushed
from understudy.core.schedules import Scalar, Schedule, advance_all
from understudy.envs.base import StatefulEnv, VecEnv
from understudy.nn.check_policy import require_policy
from understudy.nn.normalization import ObservationNormalizer
from understudy.nn.protocol import Policy
from understudy.ppo.config import PPOConfig
from understudy.ppo.finiteness import FinitenessCheck
from understudy.ppo.lr_scheduler import LearningRateScheduler
from understudy.ppo.metrics import (
    METRICS,
    EpisodeStatistics,
    MinibatchRecord,
    check_metric,
    explained_variance,
    over_ranks,
    update_statistics,
)
from understudy.ppo.minibatch import COMPUTED, Minibatches
from understudy.ppo.optim import Optimizer, adapt_learning_rate, capture_gradient, gradient_step
from understudy.ppo.part import Part, Rewards, Updates
from understudy.ppo.returns import RewardScaler, ValueNormalizer, fill_advantages
from understudy.ppo.rollout import Collector
from understudy.ppo.update import MinibatchLoss
from understudy.types import ROLLOUT_KEYS, NonFiniteError

logger = logging.getLogger(__name__)

_SOMETIMES = ("evaluation/", "env/", "episode/success")
"""Metrics that an iteration may lack: they come with an evaluation, or with an episode's end."""
_ABSORB_EVERY = 10
"""Iterations between two looks at how large numbers usually are, which is no news while all is well."""


class PPO:
    """Trains `policy` on `env`: `iterate` collects one rollout and learns from it. No files, no console.

    Parts take part through their hooks only, in the order of their names, so that the order they are given in
    changes nothing. Where `torch.distributed` has several ranks, each collects from an `env` of its own, and all learn
    as one: `steps_per_iteration` counts all ranks'. Raises ValueError where sizes, spaces and options do not fit
    together.
    """

    def __init__(
        self,
        env: VecEnv,
        policy: Policy,
        config: PPOConfig | None = None,
        parts: Mapping[str, Part] | None = None,
        *,
        seed: int = 0,
        total_steps: int | None = None,
    ) -> None:
        require_policy(policy)
        config = config or PPOConfig()
        self.env, self.policy, self.config, self.seed = env, policy, config, seed
        self.parts = dict(sorted((parts or {}).items()))
        _check_names(self.parts)
        _check_sizes(env, policy, config)
        device = env.device
        policy.to(device)
        self.iteration = 0
        self.env_steps = 0
        self.total_steps = total_steps or 0
        self.steps_per_iteration = config.num_steps * env.num_envs * ranks.count()
        self.coefficients = nn.ModuleDict(
            {
                "clip_low": Scalar(config.clip_epsilon, device),
                "clip_high": Scalar(
                    config.clip_epsilon if config.clip_epsilon_high is None else config.clip_epsilon_high, device
                ),
                "surrogate": Scalar(config.surrogate_coef, device),
                "value": Scalar(config.value_coef, device),
                "value_clip": Scalar(0.0 if config.value_clip is None else config.value_clip, device),
                "entropy": Scalar(config.entropy_coef, device),
                "reward": Scalar(config.reward_weight, device),
            }
        )
        self.gamma: float | Tensor
        if isinstance(config.gamma, Schedule):
            self.coefficients["gamma"] = discount = Scalar(config.gamma, device)
            self.gamma = discount.value
        else:  # a number stays one: float64 until it meets the rewards
            self.gamma = config.gamma
        learned = [p for p in policy.parameters() if p.requires_grad]
        learned += [p for part in self.parts.values() for p in part.core_parameters()]
        actor = set(policy.actor_parameters()) if config.clip_apart else set()
        learned.sort(key=lambda p: p not in actor)  # stable: where nothing is clipped apart, the order stays
        self.optimizer = Optimizer(learned, config.optimizer, apart=len(actor.intersection(learned)))
        held = set(policy.actor_parameters()) if config.critic_warmup else set()
        if held and held.issuperset(policy.parameters()):
            raise ValueError(
                f"ppo.critic_warmup needs to know which weights are the actor's: override {type(policy).__name__}."
                "actor_parameters"
            )
        self.held = [grad for p, grad in zip(self.optimizer.targets, self.optimizer.grads) if p in held]
        self.lr_scheduler = (
            LearningRateScheduler(self.optimizer, config.lr_scheduler, -(-self.total_steps // self.steps_per_iteration))
            if config.lr_scheduler is not None
            else None
        )
        self.generators = randomness.generators(ranks.own_seed(seed), ("actions", "minibatches"), device)
        self.finiteness = FinitenessCheck(env.observation_space, config.absurd, device)
        for normalizer in policy.normalizers.values():
            cast(ObservationNormalizer, normalizer).absurd = config.absurd or math.inf
        self.collector = Collector(
            env,
            policy,
            self.parts,
            num_steps=config.num_steps,
            chunks=1 if policy.recurrent else config.minibatches,
            limits=self.finiteness.limits,
            generator=self.generators["actions"],
            mode=config.capture,
        )
        self.simulator = self.collector.simulator
        if self.simulator is not None and self.simulator is env:
            self.finiteness.terms = self.simulator.terms
        self.reward_scaler = RewardScaler(env.num_envs, self.gamma, config.reward_clip, device)
        self.value_normalizer = ValueNormalizer(config.value_normalization, device)
        self.episodes = EpisodeStatistics(env.num_envs, device)
        self.minibatches = Minibatches(policy, self.parts, config, self.coefficients, self.generators["minibatches"])
        self.loss_and_gradient = capture_gradient(
            MinibatchLoss(policy, self.parts, config, self.coefficients), self.optimizer, config.capture
        )
        for metric, waiting in self._awaited():
            check_metric(metric, self.parts, waiting)
        if total_steps is None:
            self._check_lengths()
        _check_ranks(self)
        for module in (self.policy, *self.parts.values()):
            ranks.broadcast_(module)
        self.last_report = ""
        self.skipped_steps = 0.0  # by the optimizer, until the last iteration

    # ------------------------------------------------------------------ one iteration

    @denormals_flushed()
    def iterate(self) -> dict[str, float]:
        """Collect T steps of N environments, learn from them; returns host numbers, read from the device once.

        Raises NonFiniteError where masking is off or nothing finite is left, WorkerError where an environment died.
        """
        self._advance_schedules()
        started = time.perf_counter()
        if self.collector.obs is None:
            self.collector.reset(randomness.env_seed(ranks.own_seed(self.seed), 0))
        if self.policy.normalizers and self.config.warmup_steps and self.iteration == 0 and self.env_steps == 0:
            self._warm_up()
        rollout = self.collector.collect()
        self.env_steps += self.steps_per_iteration
        masked = self._check_finite(rollout, self.config.num_steps)
        collected = time.perf_counter()
        self.collector.evaluate()  # before the parts' rewards: they may read log-probs and values of this rollout
        metrics, seconds = self._rewards(rollout, masked)
        returns = self._advantages(rollout, masked)
        value, target = rollout["value"], rollout["value_target"]
        metrics["ppo/explained_variance"] = explained_variance(value, target, rollout["valid"] if masked else None)
        for name, part in self.parts.items():
            if isinstance(part, Updates):
                begun = time.perf_counter()
                metrics |= {f"{name}/{key}": x for key, x in part.update(self.policy, rollout).items()}
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun
        metrics |= self._learn(rollout, masked)
        self.value_normalizer.update(returns, rollout["valid"])
        self.policy.update_normalizers(rollout["obs"], rollout["valid"] if masked else None)
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.iteration += 1
        result = self._read(rollout, metrics)
        self._warn_of_skipped(result["ppo/skipped_steps"])
        ended = time.perf_counter()
        result |= {
            "time/collect": collected - started,
            "time/update": ended - collected,
            "time/steps_per_second": self.steps_per_iteration / (ended - started),
        }
        result |= {f"time/{name}": value for name, value in seconds.items()}
        result = over_ranks(result)
        self._check_conditions(result)
        self.observe(result)
        return result

    def _learn(self, rollout: TensorDict, masked: bool) -> dict[str, Tensor]:
        """The epochs: for each minibatch one loss with its gradient, and one step; returns 0-D metrics."""
        config, optimizer = self.config, self.optimizer
        records: list[MinibatchRecord] = []
        stop = torch.zeros((), dtype=torch.bool, device=self.env.device)
        warming = self.iteration < config.critic_warmup
        for batch in self._epochs(rollout, masked):
            stats = self.loss_and_gradient(batch)  # the gradient waits in the optimizer
            log_ratio, ran = stats.pop("log_ratio"), None
            for grad in self.held if warming else ():
                grad.zero_()
            # the first minibatch meets the behaviour policy itself: its KL is 0 up to rounding
            if config.desired_kl is not None and records and not warming:
                adapt_learning_rate(optimizer, stats["kl_exact"], config.desired_kl, config.learning_rate_range, stop)
            if config.target_kl is not None:
                ran, stop = ~stop, stop | (ranks.mean(stats["kl_step"]) > 1.5 * config.target_kl)
            norm = gradient_step(optimizer, stop=None if config.target_kl is None else stop)
            records.append(MinibatchRecord(stats, log_ratio, batch["advantage"], batch.get("mask"), norm, ran))
            if devices.host_is_device(stop.device) and bool(stop):
                break
        clip = (self.coefficients["clip_low"](), self.coefficients["clip_high"]())
        metrics = update_statistics(records, *clip)
        metrics |= {"learning_rate": optimizer.learning_rate(), "skipped_steps": optimizer.skipped}
        return {name if "/" in name else f"ppo/{name}": x for name, x in metrics.items()}

    def _warn_of_skipped(self, skipped: float) -> None:
        """An iteration without a finite gradient learns nothing: say so, as nothing else shows it."""
        before, self.skipped_steps = self.skipped_steps, skipped
        if skipped - before >= self.config.epochs * self.config.minibatches:
            logger.warning(
                "iteration %d: no gradient was finite, so nothing was learnt. %s",
                self.iteration,
                self._broken_weights()
                or "Look for NaN in the policy's output, the surrogate and the parts' losses (ppo.capture='eager' lets "
                "a debugger in)",
            )

    def _epochs(self, rollout: TensorDict, masked: bool) -> Iterator[Batch]:
        """The minibatches of all epochs."""
        order = None if self.config.reshuffle else self.minibatches.order(rollout)
        for epoch in range(self.config.epochs):
            if epoch and self.config.recompute_advantage:  # with the critic as it is now; rewards and log-probs stay
                self.collector.evaluate(values_only=True)
                self._advantages(rollout, masked)
            yield from self.minibatches.epoch(rollout, masked, order)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Let what waits for a metric see host metrics: `iterate` calls it with its own, a loop with evaluations."""
        for scalar in self._scalars():
            scalar.observe(metrics)
        if self.lr_scheduler is not None:
            self.lr_scheduler.observe(metrics)

    def _awaited(self) -> Iterator[tuple[str, str]]:
        """The metrics that something waits for, each with what does."""
        for scalar in self._scalars():
            if scalar.condition is not None:
                yield scalar.condition.metric, f"the schedule {scalar.source}"
        if self.lr_scheduler is not None and self.lr_scheduler.metric:
            yield self.lr_scheduler.metric, "ppo.lr_scheduler"

    def _check_conditions(self, metrics: Mapping[str, float]) -> None:
        """Raise ValueError for a metric that no iteration will ever have; evaluations come when they come."""
        for metric, waiting in self._awaited():
            if metric not in metrics and not metric.startswith(_SOMETIMES):
                raise ValueError(f"{waiting} waits for a metric that does not exist; {nearest(metric, metrics)}")

    def _check_lengths(self) -> None:
        for scalar in self._scalars():
            if isinstance(scalar.source, Schedule) and scalar.source.needs_total:
                raise ValueError(
                    f"the schedule {scalar.source} runs over the whole training, whose length is not known: "
                    "pass total_steps to PPO, or give the schedule a length"
                )

    def _scalars(self) -> Iterator[Scalar]:
        for module in (self.coefficients, self.optimizer, *self.parts.values()):
            yield from (scalar for scalar in module.modules() if isinstance(scalar, Scalar))

    def _advance_schedules(self) -> None:
        total = max(self.total_steps, 1)
        position = (self.env_steps, self.iteration, total, max(-(-total // self.steps_per_iteration), 1))
        advance_all(self.coefficients, *position)
        for part in self.parts.values():
            advance_all(part, *position)
        if self.config.desired_kl is None and self.lr_scheduler is None:
            self.optimizer.learning_rate.advance(*position)

    def _warm_up(self) -> None:
        """A short rollout for the normaliser's first statistics: T steps at most, in the rollout's own memory."""
        steps = min(self.config.warmup_steps, self.config.num_steps)
        rollout = self.collector.collect(steps)[:steps]
        self.env_steps += rollout.numel() * ranks.count()
        self._check_finite(rollout, steps)
        self.policy.update_normalizers(rollout["obs"], rollout["valid"])
        ended = rollout["terminated"] | rollout["truncated"]
        self.episodes.finished(rollout["task_reward"], ended, rollout["valid"])

    def _check_finite(self, rollout: TensorDict, steps: int) -> bool:
        """Whether `rollout["valid"]` must be looked at; one host sync."""
        check, first_step = self.finiteness, self.env_steps // (self.env.num_envs * ranks.count()) - steps
        last, finals = self.collector.obs, self.collector.finals
        assert last is not None
        if first_step == 0:  # judged by its own numbers: nothing came before
            check.absorb(rollout, first=True)
        passed, all_valid = torch.stack((check.passed(rollout, last, finals), rollout["valid"].all())).tolist()
        passed = all(ranks.gather(passed))  # or all ranks look, and count what is usual
        if first_step and (not passed or self.iteration % _ABSORB_EVERY == 0):
            check.absorb(rollout, first=False)
        self.last_report = "" if passed else check.mask(rollout, last, finals, first_step)
        if not self.last_report:
            return not all_valid
        if self.config.on_nonfinite == "raise":
            raise NonFiniteError(f"{self.last_report}. Fix the environment, or set ppo.on_nonfinite to mask")
        if not bool(rollout["valid"].any()):
            blame = self._broken_weights() or (
                "The environment gives no finite numbers; check its reset and its reward with a random policy first"
            )
            raise NonFiniteError(f"{self.last_report}: nothing is left to learn from. {blame}")
        logger.warning("%s", self.last_report)
        return True

    def _broken_weights(self) -> str:
        """A sentence if the policy itself is to blame, else ""."""
        broken = [name for name, x in self.policy.state_dict().items() if not bool(torch.isfinite(x).all())]
        if not broken:
            return ""
        return (
            f"The policy is to blame, not the environment: {broken[0]} holds numbers that are not finite. Go back to "
            "an older checkpoint with a lower ppo.optimizer.learning_rate"
        )

    def _rewards(self, rollout: TensorDict, masked: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Total reward of the rollout, what each contributed, and the seconds each part took."""
        task = rollout["task_reward"]
        if self.config.reward_normalization:
            ended = rollout["terminated"] | rollout["truncated"]
            task = self.reward_scaler(task, ended, rollout["valid"])
        total = self.coefficients["reward"]() * task
        metrics, seconds = {"reward/task": rollout["task_reward"].mean()}, {}
        for name, part in self.parts.items():
            if isinstance(part, Rewards):
                begun = time.perf_counter()
                with torch.no_grad():
                    reward = part.reward(rollout)
                if reward.shape != task.shape:
                    raise ValueError(f"part {name!r} returned a reward {tuple(reward.shape)}, not {tuple(task.shape)}")
                total = total + part.reward_weight * reward
                metrics[f"reward/{name}"] = reward.mean()
                seconds[name] = time.perf_counter() - begun
        rollout["reward"].copy_(torch.where(rollout["valid"], total, 0.0) if masked else total)
        return metrics, seconds

    def _advantages(self, rollout: TensorDict, masked: bool) -> Tensor:
        with torch.no_grad():
            return fill_advantages(rollout, self.value_normalizer, self.gamma, self.config.gae_lambda, masked)

    def _read(self, rollout: TensorDict, metrics: dict[str, Tensor]) -> dict[str, float]:
        """Everything the host wants to know, in one transfer."""
        for key, x in self.collector.env_metrics.items():
            metrics["episode/success" if key == "is_success" else f"env/{key}"] = torch.cat(x).nanmean()
        ended = rollout["terminated"] | rollout["truncated"]
        finished = self.episodes.finished(rollout["task_reward"], ended, rollout["valid"])
        numbers = torch.stack([x.detach().double() for x in metrics.values()])
        host = torch.cat((numbers, finished.flatten())).cpu()
        result = dict(zip(metrics, host[: len(metrics)].tolist()))
        returns, lengths = host[len(metrics) :].view(2, -1)
        happened = ~torch.isnan(lengths)
        self.episodes.record(returns[happened].tolist(), lengths[happened].tolist())
        return {**self.episodes.summary(), "episode/finished": float(happened.sum()), **result}

    # ------------------------------------------------------------------ state

    def reset_envs(self) -> None:
        """Start fresh episodes, seeded from run seed and iteration: the boundary at which a resume is exact."""
        self.collector.reset(randomness.env_seed(ranks.own_seed(self.seed), self.iteration))
        self.episodes.forget_unfinished()
        self.reward_scaler.running.zero_()

    def start_anew(self) -> None:
        """Fresh random streams and episodes of this rank's own, after a state that was another rank's."""
        seed = randomness.mix(ranks.own_seed(self.seed), f"anew/{self.iteration}")
        streams = self.generators | {f"part/{name}": part.generator for name, part in self.parts.items()}
        for name, generator in streams.items():
            generator.manual_seed(randomness.mix(seed, name))
        randomness.seed_everything(seed)
        self.reset_envs()

    def _modules(self) -> dict[str, nn.Module]:
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "coefficients": self.coefficients,
            "reward_scaler": self.reward_scaler,
            "value_normalizer": self.value_normalizer,
            "episodes": self.episodes,
            "finiteness": self.finiteness,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during training: tensors, numbers, lists and strings only."""
        state: dict[str, Any] = {name: dict(module.state_dict()) for name, module in self._modules().items()}
        state["parts"] = {name: part.training_state() for name, part in self.parts.items()}
        state["counters"] = {"iteration": self.iteration, "env_steps": self.env_steps, "seed": self.seed}
        state["episode_window"] = {"returns": list(self.episodes.returns), "lengths": list(self.episodes.lengths)}
        state["rng"] = randomness.state(self.generators)
        if self.lr_scheduler is not None:
            state["lr_scheduler"] = self.lr_scheduler.state_dict()
        if isinstance(self.env, StatefulEnv) and self.collector.obs is not None:
            state["env"] = dict(self.env.state_dict())
            state["collector"] = self.collector.state_dict()
        if self.simulator is not None:
            state["env_counters"] = dict(self.simulator.counters)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, in place; raises ValueError where parts or shapes differ."""
        missing = set(self.parts) ^ set(state["parts"])
        if missing:
            raise ValueError(f"the checkpoint has parts {sorted(state['parts'])}, the run has {sorted(self.parts)}")
        for name, module in self._modules().items():
            if name != "finiteness" or name in state:  # younger than the first checkpoints
                _load(module, state[name], name)
        for name, part in self.parts.items():
            part.load_training_state(state["parts"][name])
        self.iteration, self.env_steps = state["counters"]["iteration"], state["counters"]["env_steps"]
        self.episodes.record(state["episode_window"]["returns"], state["episode_window"]["lengths"])
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        if isinstance(self.env, StatefulEnv) and "env" in state:
            self.env.load_state_dict(state["env"])
            self.collector.load_state_dict(state["collector"], self.env.observe())
        else:
            if self.simulator is not None:
                self.simulator.counters = {**state.get("env_counters", {})}
            self.reset_envs()
        randomness.restore(self.generators, state["rng"])


def _check_ranks(ppo: PPO) -> None:
    """The ranks add up their gradients, so that they have to be made alike."""
    env, size = ppo.env, len(ppo.optimizer.flat)
    spaces = f"{env.num_envs} environments\n{env.observation_space}\n{env.action_space}"
    choices = f"{ppo.config}\nparts {[*ppo.parts]}\ntotal_steps {ppo.total_steps}\nparameters {size}"
    ranks.check_same("the environment or PPO", f"{spaces}\n{choices}", "build all ranks alike")


def _load(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's {name} does not fit: {error}") from error


def _check_names(parts: Mapping[str, Part]) -> None:
    """A part's name is its place in the rollout and in front of its metrics."""
    taken = {row.name for row in ROLLOUT_KEYS if row.writer != "part, by return"} | {
        *METRICS,
        "env",
        "offline",
        "time",
        *COMPUTED,
    }
    for name in parts:
        if not name or "/" in name or name in taken:
            raise ValueError(
                f"a part cannot be called {name!r}: choose one without '/' that is none of {', '.join(sorted(taken))}"
            )


def _check_sizes(env: VecEnv, policy: Policy, config: PPOConfig) -> None:
    if env.num_envs < 1:
        raise ValueError(f"PPO needs at least one environment, got {env.num_envs}")
    rows, what = config.num_steps * env.num_envs, f"{config.num_steps} steps x {env.num_envs} environments"
    if policy.recurrent:
        rows, what = env.num_envs, f"{env.num_envs} environments (a recurrent policy trains on whole columns)"
    if rows % config.minibatches:
        divisors = [d for d in range(1, min(rows, 4 * config.minibatches) + 1) if rows % d == 0]
        closest = min(divisors, key=lambda d: abs(d - config.minibatches))
        raise ValueError(
            f"ppo.minibatches = {config.minibatches} does not divide {what}; rows would be dropped. "
            f"The nearest number that does is {closest}"
        )
    if config.recompute_advantage and policy.recurrent:
        raise ValueError("ppo.recompute_advantage needs a feed-forward policy: switch it or the memory off")
