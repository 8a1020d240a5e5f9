"""Tianshou's words (1.x policies) over the formulas of behaviour cloning, PPO and GAIL: the user's modules and loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields
from types import GenericAlias
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from understudy.parts.shared.discriminator import discriminator_loss, discriminator_reward
from understudy.ppo.losses import check_same_shape, clipped_surrogate, normalize, value_loss
from understudy.ppo.returns import ValueNormalizer, gae

Bound = Literal["clip", "tanh"] | None


class _PlainBatch(dict[str, Any]):
    """Named arrays with the same number of rows, as Tianshou's `Batch`, which takes its place where it is installed."""

    __setattr__ = dict.__setitem__

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the batch has no {name!r}, it has {', '.join(self)}") from None

    def __getitem__(self, where: Any) -> Any:
        """The entry of a name, or these rows of all entries."""
        if isinstance(where, str):
            return super().__getitem__(where)
        return _PlainBatch({name: None if x is None else x[where] for name, x in self.items()})

    def split(self, size: int, shuffle: bool = True, merge_last: bool = False) -> Iterator[_PlainBatch]:
        """Parts of `size` rows (-1: all), in random order; `merge_last`: none is smaller."""
        count = len(self["act"])
        order = torch.randperm(count).numpy() if shuffle else np.arange(count)
        starts = range(0, count, count if size == -1 else size)
        last = count // size - 1 if merge_last and size != -1 and count > size else len(starts) - 1
        for start in starts[: last + 1]:
            yield self[order[start:] if start == starts[last] else order[start : start + size]]


Batch: Any = _PlainBatch
_BASES: list[Any] = []
try:  # its collector indexes what a policy returns
    from tianshou import data, policy

    Batch = data.Batch
    _BASES.append(policy.BasePolicy)
except ImportError:
    pass


@runtime_checkable
class Buffer(Protocol):
    """What policies ask of a replay buffer: Tianshou's, or one of the user's."""

    def sample(self, batch_size: int) -> tuple[Any, np.ndarray]:
        """A batch of rows drawn at random (0: of all rows in order), and the rows' numbers."""

    def unfinished_index(self) -> np.ndarray:
        """Numbers of the rows that are the last of an episode that goes on."""


# ---------------------------------------------------------------------- statistics


@dataclass(kw_only=True)
class SequenceSummaryStats:
    """Mean, standard deviation, greatest and least of what each gradient step reported."""

    mean: float
    std: float
    max: float
    min: float

    @classmethod
    def from_sequence(cls, sequence: Sequence[float] | np.ndarray) -> SequenceSummaryStats:
        """Of these numbers; all 0 where there are none."""
        x = np.asarray(sequence, dtype=np.float64) if len(sequence) else np.zeros(1)
        return cls(mean=float(x.mean()), std=float(x.std()), max=float(x.max()), min=float(x.min()))


@dataclass(kw_only=True)
class TrainingStats:
    """What one `update` reports."""

    train_time: float = 0.0
    """Seconds."""
    smoothed_loss: dict[str, float] = field(default_factory=dict)
    """Tianshou's trainer writes its moving averages here."""

    def get_loss_stats_dict(self) -> dict[str, float]:
        """The numbers to log, means of the sequences."""
        found = {x.name: self.__dict__[x.name] for x in fields(self) if x.name not in ("train_time", "smoothed_loss")}
        return {name: x.mean if isinstance(x, SequenceSummaryStats) else x for name, x in found.items()}


@dataclass(kw_only=True)
class ImitationTrainingStats(TrainingStats):
    """Of `ImitationPolicy`."""

    loss: float = 0.0


@dataclass(kw_only=True)
class PPOTrainingStats(TrainingStats):
    """Of `PPOPolicy`: over its gradient steps."""

    loss: SequenceSummaryStats
    clip_loss: SequenceSummaryStats
    vf_loss: SequenceSummaryStats
    ent_loss: SequenceSummaryStats
    """The entropy itself, as there."""
    gradient_steps: int = 0


@dataclass(kw_only=True)
class GailTrainingStats(PPOTrainingStats):
    """Of `GAILPolicy`: PPO's, and the discriminator's over its own gradient steps."""

    disc_loss: SequenceSummaryStats
    acc_pi: SequenceSummaryStats
    """Share of the policy's transitions that the discriminator takes for the policy's."""
    acc_exp: SequenceSummaryStats
    """Share of the expert's transitions that it takes for the expert's."""


# ---------------------------------------------------------------------- policies


class _Policy(nn.Module):
    """What collectors and trainers of Tianshou call, and what the three policies share."""

    __class_getitem__: Any = classmethod(GenericAlias)  # GAILPolicy[GailTrainingStats], as in annotations there

    def __init__(
        self,
        actor: nn.Module,
        optim: torch.optim.Optimizer,
        action_space: spaces.Space[Any],
        observation_space: spaces.Space[Any] | None,
        action_scaling: bool,
        action_bound_method: Bound,
        lr_scheduler: Any,
    ) -> None:
        super().__init__()
        if action_bound_method not in ("clip", "tanh", None):
            raise ValueError(f"action_bound_method must be 'clip', 'tanh' or None, got {action_bound_method!r}")
        continuous = isinstance(action_space, spaces.Box)
        if action_scaling and not continuous:
            raise ValueError(f"action_scaling is for a Box, the action space is {action_space}: set it to False")
        if not continuous and not isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            raise ValueError(f"the action space is {action_space}: these policies act in a Box or in discrete spaces")
        self.actor, self.optim, self.lr_scheduler = actor, optim, lr_scheduler
        self.action_space, self.observation_space = action_space, observation_space
        self.action_scaling, self.action_bound_method = action_scaling, action_bound_method
        self.action_type = "continuous" if continuous else "discrete"
        self.agent_id = 0
        self.updating = self.is_within_training_step = False

    def map_action(self, act: Tensor | np.ndarray, batch: Any = None) -> np.ndarray:
        """The action for the environment `[..., *A]` of the actor's: bounded, then scaled. Only for a Box.

            "clip": a = clip(a, -1, 1)      "tanh": a = tanh(a)      scaling: low + (high - low) (a + 1) / 2

        Without scaling too, "clip" means [-1, 1] and not the bounds of the space, as there. Raises ValueError for
        scaling without a bound where an action lies outside [-1, 1].
        """
        a = _array(act)
        if not isinstance(self.action_space, spaces.Box):
            return a
        if self.action_bound_method is not None:
            a = np.clip(a, -1.0, 1.0) if self.action_bound_method == "clip" else np.tanh(a)
        if self.action_scaling:
            if not (np.abs(a) <= 1.0).all():
                raise ValueError(
                    f"action_scaling takes actions in [-1, 1], got {a}: set action_bound_method to 'clip' or 'tanh'"
                )
            low, high = self.action_space.low, self.action_space.high
            a = low + (high - low) * (a + 1.0) / 2.0
        return a

    def map_action_inverse(self, act: Tensor | np.ndarray) -> np.ndarray:
        """The actor's action of one for the environment, such as a random one; clipping cannot be undone."""
        a = _array(act)
        if isinstance(self.action_space, spaces.Box):
            if self.action_scaling:
                low, high = self.action_space.low, self.action_space.high
                a = (a - low) * 2.0 / np.maximum(high - low, np.finfo(np.float32).eps) - 1.0
            if self.action_bound_method == "tanh":
                a = np.arctanh(a)
        return a

    @torch.no_grad()
    def compute_action(self, obs: Any, info: Any = None, state: Any = None) -> Any:
        """The environment's action of a single observation: an int, or an array `[*A]`."""
        act = self(Batch({"obs": np.asarray(obs)[None], "info": info}), state).act
        mapped = self.map_action(act)[0]
        return int(mapped) if isinstance(self.action_space, spaces.Discrete) else mapped

    def exploration_noise(self, act: Any, batch: Any) -> Any:
        """The action as it is: these policies explore by their distribution."""
        return act

    def process_buffer(self, buffer: Any) -> Any:
        """The buffer as it is."""
        return buffer

    def process_fn(self, batch: Any, buffer: Any = None, indices: np.ndarray | None = None) -> Any:
        """The batch as it is."""
        return as_batch(batch)

    def post_process_fn(self, batch: Any, buffer: Any, indices: np.ndarray) -> None:
        """Nothing: these policies set no priorities."""

    def learn(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Gradient steps on a batch."""
        raise NotImplementedError

    def update(self, sample_size: int | None, buffer: Any, **kwargs: Any) -> Any:
        """`process_fn` and `learn` (which gets `kwargs`) on `sample_size` rows of a buffer; 0: on all, in order.

        `buffer`: Tianshou's, another `Buffer`, or a plain batch. Then the learning rate takes a step of its scheduler.
        """
        if buffer is None:
            return TrainingStats()
        start, training, source = time.time(), self.training, as_buffer(buffer)
        batch, indices = source.sample(sample_size)  # type: ignore[arg-type]  # None: as many as there are
        self.updating = True
        try:
            batch = self.process_fn(batch, source, indices)
            self.train()
            stats = self.learn(batch, **kwargs)
            self.post_process_fn(batch, source, indices)
        finally:
            self.train(training)
            self.updating = False
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        stats.train_time = time.time() - start
        return stats


class ImitationPolicy(_Policy):
    """Behaviour cloning with an actor of the user's (`actor(obs, state=, info=)` gives an output and a state).

    The actor's output is the action of a Box `[B, *A]` (squared error), or the logits of discrete actions `[B, A]`
    (cross-entropy). Raises ValueError for options that do not fit the action space.
    """

    def __init__(
        self,
        *,
        actor: nn.Module,
        optim: torch.optim.Optimizer,
        action_space: spaces.Space[Any],
        observation_space: spaces.Space[Any] | None = None,
        action_scaling: bool = False,
        action_bound_method: Bound = "clip",
        lr_scheduler: Any = None,
    ) -> None:
        super().__init__(
            actor, optim, action_space, observation_space, action_scaling, action_bound_method, lr_scheduler
        )

    def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Any:
        """A batch of `logits` (the output), `act` (the mode) and `state`."""
        batch = as_batch(batch)
        logits, hidden = self.actor(batch.obs, state=state, info=batch.get("info"))
        act = logits if self.action_type == "continuous" else logits.argmax(dim=1)
        return Batch({"logits": logits, "act": act, "state": hidden})

    def learn(self, batch: Any, *args: Any, **kwargs: Any) -> ImitationTrainingStats:
        """One gradient step. Raises ValueError where actions and the actor's output have different shapes."""
        batch = _complete(batch, "obs", "act")
        out = self(batch).logits
        target = torch.as_tensor(batch.act, device=out.device)
        if self.action_type == "continuous":
            target = target.to(out.dtype)
            check_same_shape({"the actor's output": out, "batch.act": target})
            loss = F.mse_loss(out, target)
        else:
            loss = F.cross_entropy(out, target.long())
        _step(self.optim, loss)
        return ImitationTrainingStats(loss=loss.item())


class PPOPolicy(_Policy):
    """PPO with an actor and a critic of the user's: `dist_fn(actor(obs, state=, info=)[0])` is the distribution.

        L = clip_loss + vf_coef vf_loss - ent_coef H     (`clipped_surrogate`, `value_loss`; advantages by `gae`)

    `value_clip` clips by `eps_clip` in the critic's units. `reward_normalization` scales returns, not rewards; together
    with `recompute_advantage` the scale moves at each recomputation, as there. `deterministic_eval` takes the mode
    unless `is_within_training_step`, which Tianshou's trainers set. Raises ValueError for options out of range.
    """

    def __init__(
        self,
        *,
        actor: nn.Module,
        critic: nn.Module,
        optim: torch.optim.Optimizer,
        dist_fn: Callable[[Any], torch.distributions.Distribution],
        action_space: spaces.Space[Any],
        eps_clip: float = 0.2,
        dual_clip: float | None = None,
        value_clip: bool = False,
        advantage_normalization: bool = True,
        recompute_advantage: bool = False,
        vf_coef: float = 0.5,
        ent_coef: float = 0.01,
        max_grad_norm: float | None = None,
        gae_lambda: float = 0.95,
        max_batchsize: int = 256,
        discount_factor: float = 0.99,
        reward_normalization: bool = False,
        deterministic_eval: bool = False,
        observation_space: spaces.Space[Any] | None = None,
        action_scaling: bool = True,
        action_bound_method: Bound = "clip",
        lr_scheduler: Any = None,
    ) -> None:
        super().__init__(
            actor, optim, action_space, observation_space, action_scaling, action_bound_method, lr_scheduler
        )
        for name, number in (("gae_lambda", gae_lambda), ("discount_factor", discount_factor)):
            if not 0.0 <= number <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {number}")
        if dual_clip is not None and not dual_clip > 1.0:
            raise ValueError(f"dual_clip must be greater than 1 (3 is usual) or None, got {dual_clip}")
        if not eps_clip >= 0.0 or max_batchsize < 1:
            raise ValueError(f"eps_clip must be at least 0 and max_batchsize 1, got {eps_clip} and {max_batchsize}")
        self.critic, self.dist_fn = critic, dist_fn
        self._actor_critic = nn.ModuleDict({"actor": actor, "critic": critic})  # the state dict has the keys of theirs
        self.eps_clip, self.dual_clip, self.value_clip = eps_clip, dual_clip, value_clip
        self.norm_adv, self.recompute_adv = advantage_normalization, recompute_advantage
        self.vf_coef, self.ent_coef, self.max_grad_norm = vf_coef, ent_coef, max_grad_norm
        self.gamma, self.gae_lambda, self.max_batchsize = discount_factor, gae_lambda, max_batchsize
        self.rew_norm, self.deterministic_eval = reward_normalization, deterministic_eval
        normalizer = ValueNormalizer("scale" if reward_normalization else "none", torch.device("cpu"))
        self._normalizer = (normalizer,)  # in a tuple: a state dict of theirs has no such entry

    @property
    def ret_rms(self) -> nn.Module:
        """Mean, var and count of the returns (`reward_normalization`)."""
        return self._normalizer[0].statistics

    def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Any:
        """A batch of `logits` (the actor's output), `act`, `state` and `dist`."""
        batch = as_batch(batch)
        logits, hidden = self.actor(batch.obs, state=state, info=batch.get("info"))
        dist = self.dist_fn(logits)
        act = dist.mode if self.deterministic_eval and not self.is_within_training_step else dist.sample()
        return Batch({"logits": logits, "act": act, "state": hidden, "dist": dist})

    def process_fn(self, batch: Any, buffer: Any = None, indices: np.ndarray | None = None) -> Any:
        """The batch with `v_s`, `returns`, `adv` and `logp_old`, `[n]` each; rows in time, one episode after another.

        Without a buffer an episode ends at `terminated` or `truncated` and at the last row.
        """
        batch = _complete(batch, "obs", "act", "rew", "terminated", "truncated", "obs_next")
        self._unfinished = _unfinished_rows(batch, buffer, indices)
        self._add_returns(batch)
        batch.act = torch.as_tensor(batch.act).to(batch.v_s)
        with torch.no_grad():
            parts = batch.split(self.max_batchsize, shuffle=False, merge_last=True)
            batch.logp_old = torch.cat([self._log_prob(self(part).dist, part) for part in parts])
        return batch

    def learn(self, batch: Any, batch_size: int | None, repeat: int, *args: Any, **kwargs: Any) -> Any:
        """`repeat` passes over a processed batch in shuffled parts of `batch_size` rows (None: all at once)."""
        return PPOTrainingStats(**self._pass_over(batch, batch_size, repeat))

    def _add_returns(self, batch: Any) -> None:
        normalizer = self._normalizer[0]
        with torch.no_grad():
            parts = batch.split(self.max_batchsize, shuffle=False, merge_last=True)
            both = [(self.critic(part.obs), self.critic(part.obs_next)) for part in parts]
        v_s, following = (torch.cat([value.flatten(0) for value in side]) for side in zip(*both))
        # one column in time, in float64 on the CPU, as there
        column = {name: _column(batch[name]) for name in ("rew", "terminated", "truncated")}
        check_same_shape({"V(obs)": v_s, "batch.rew": column["rew"].squeeze(1)})
        advantage, returns = gae(
            column["rew"].double(),
            normalizer.to_reward_units(_column(v_s).double()),
            normalizer.to_reward_units(_column(following).double()),
            column["terminated"],
            column["truncated"].bool() | _column(self._unfinished),
            self.gamma,
            self.gae_lambda,
        )
        batch.v_s, batch.adv = v_s, advantage.squeeze(1).to(v_s)
        batch.returns = normalizer.to_critic_units(returns).squeeze(1).to(v_s)
        normalizer.update(returns, torch.ones_like(returns, dtype=torch.bool))

    def _pass_over(self, batch: Any, batch_size: int | None, repeat: int) -> dict[str, Any]:
        """The gradient steps; entries of `PPOTrainingStats`."""
        batch = _complete(batch, "obs", "act", "adv", "returns", "v_s", "logp_old")
        told: list[tuple[float, ...]] = []
        for step in range(repeat):
            if self.recompute_adv and step > 0:
                self._add_returns(batch)
            for part in batch.split(batch_size or -1, merge_last=True):
                terms = self._terms(part)
                _step(self.optim, terms[0], self._actor_critic.parameters(), self.max_grad_norm)
                told.append(tuple(term.item() for term in terms))
        return _summaries(told, "loss", "clip_loss", "vf_loss", "ent_loss") | {"gradient_steps": len(told)}

    def _terms(self, part: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dist = self(part).dist
        advantage = normalize(part.adv, eps=1e-8) if self.norm_adv else part.adv
        log_ratio = self._log_prob(dist, part) - part.logp_old
        clip_loss = clipped_surrogate(log_ratio, advantage, self.eps_clip, self.eps_clip, self.dual_clip).mean()
        old, limit = (part.v_s, self.eps_clip) if self.value_clip else (None, None)
        vf_loss = value_loss(self.critic(part.obs).flatten(), part.returns, old, limit).mean()
        entropy = dist.entropy().mean()
        return clip_loss + self.vf_coef * vf_loss - self.ent_coef * entropy, clip_loss, vf_loss, entropy

    def _log_prob(self, dist: torch.distributions.Distribution, part: Any) -> Tensor:
        log_prob: Tensor = dist.log_prob(part.act)
        if log_prob.ndim != 1:  # [n, 1] - [n] would broadcast
            raise ValueError(
                f"dist_fn's log_prob has shape {tuple(log_prob.shape)}, expected one number for each of the "
                f"{len(part.act)} rows: wrap a Normal in torch.distributions.Independent(..., 1)"
            )
        return log_prob


class GAILPolicy(PPOPolicy):
    """GAIL (Ho & Ermon 2016, arXiv:1606.03476) with PPO: the user's actor, critic and discriminator.

        r = -log(1 - D(s, a)) = softplus(l),   l = disc_net([s, a])     (`discriminator_reward`, `discriminator_loss`)

    `disc_update_num` gradient steps of the discriminator come before PPO's. `expert_buffer`: Tianshou's, another
    `Buffer`, or a plain batch of `obs` and `act`, as the actor gives them (before `map_action`). Discrete actions enter
    `disc_net` one-hot. Raises ValueError for options out of range.
    """

    def __init__(
        self,
        *,
        actor: nn.Module,
        critic: nn.Module,
        optim: torch.optim.Optimizer,
        dist_fn: Callable[[Any], torch.distributions.Distribution],
        action_space: spaces.Space[Any],
        expert_buffer: Any,
        disc_net: nn.Module,
        disc_optim: torch.optim.Optimizer,
        disc_update_num: int = 4,
        eps_clip: float = 0.2,
        dual_clip: float | None = None,
        value_clip: bool = False,
        advantage_normalization: bool = True,
        recompute_advantage: bool = False,
        vf_coef: float = 0.5,
        ent_coef: float = 0.01,
        max_grad_norm: float | None = None,
        gae_lambda: float = 0.95,
        max_batchsize: int = 256,
        discount_factor: float = 0.99,
        reward_normalization: bool = False,
        deterministic_eval: bool = False,
        observation_space: spaces.Space[Any] | None = None,
        action_scaling: bool = True,
        action_bound_method: Bound = "clip",
        lr_scheduler: Any = None,
    ) -> None:
        super().__init__(
            actor=actor,
            critic=critic,
            optim=optim,
            dist_fn=dist_fn,
            action_space=action_space,
            eps_clip=eps_clip,
            dual_clip=dual_clip,
            value_clip=value_clip,
            advantage_normalization=advantage_normalization,
            recompute_advantage=recompute_advantage,
            vf_coef=vf_coef,
            ent_coef=ent_coef,
            max_grad_norm=max_grad_norm,
            gae_lambda=gae_lambda,
            max_batchsize=max_batchsize,
            discount_factor=discount_factor,
            reward_normalization=reward_normalization,
            deterministic_eval=deterministic_eval,
            observation_space=observation_space,
            action_scaling=action_scaling,
            action_bound_method=action_bound_method,
            lr_scheduler=lr_scheduler,
        )
        if disc_update_num < 1:
            raise ValueError(f"disc_update_num must be at least 1, got {disc_update_num}")
        self.disc_net, self.disc_optim, self.disc_update_num = disc_net, disc_optim, disc_update_num
        self.expert_buffer = as_buffer(expert_buffer)

    def disc(self, batch: Any) -> Tensor:
        """The discriminator's logits `[n, 1]`: high for transitions that look like the expert's."""
        batch = _complete(batch, "obs", "act")
        like = next(self.disc_net.parameters())
        act = torch.as_tensor(batch.act, device=like.device)
        if isinstance(self.action_space, spaces.Discrete):
            act = F.one_hot(act.long().flatten(), int(self.action_space.n))
        if not isinstance(batch.obs, np.ndarray | Tensor):
            raise ValueError(
                "disc_net takes one array of observations, these are nested: join them in a disc of your own"
            )
        rows = [torch.as_tensor(batch.obs, device=like.device), act]
        logits: Tensor = self.disc_net(torch.cat([x.to(like.dtype).flatten(1) for x in rows], dim=1))
        return logits

    def process_fn(self, batch: Any, buffer: Any = None, indices: np.ndarray | None = None) -> Any:
        """As `PPOPolicy.process_fn`, with the discriminator's reward in place of the batch's."""
        batch = as_batch(batch)
        with torch.no_grad():
            batch.rew = discriminator_reward(self.disc(batch), "softplus").flatten().cpu().numpy()
        return super().process_fn(batch, buffer, indices)

    def learn(self, batch: Any, batch_size: int | None, repeat: int, *args: Any, **kwargs: Any) -> GailTrainingStats:
        """The discriminator's steps on the batch, then PPO's. Raises ValueError for fewer rows than steps."""
        batch = as_batch(batch)
        size = len(batch.act) // self.disc_update_num
        if size < 1:
            raise ValueError(
                f"{len(batch.act)} rows cannot be split among disc_update_num = {self.disc_update_num} steps: collect "
                "more or lower it"
            )
        told: list[tuple[float, ...]] = []
        for part in batch.split(size, merge_last=True):
            policy, expert = self.disc(part).flatten(), self.disc(self.expert_buffer.sample(size)[0]).flatten()
            loss = discriminator_loss(policy, expert)
            _step(self.disc_optim, loss)
            told.append((loss.item(), (policy < 0).float().mean().item(), (expert > 0).float().mean().item()))
        summaries = _summaries(told, "disc_loss", "acc_pi", "acc_exp")
        return GailTrainingStats(**summaries | self._pass_over(batch, batch_size, repeat))


def _step(
    optim: torch.optim.Optimizer, loss: Tensor, clipped: Iterable[Tensor] = (), max_norm: float | None = None
) -> None:
    """A gradient step. Raises ValueError, before it, for a loss that is not finite."""
    if not loss.isfinite():
        raise ValueError("the loss is not finite: look for NaN or infinity in the batch and in the networks' outputs")
    optim.zero_grad()
    loss.backward()
    if max_norm:
        nn.utils.clip_grad_norm_(clipped, max_norm)
    optim.step()


def _summaries(told: list[tuple[float, ...]], *names: str) -> dict[str, Any]:
    columns = np.array(told).reshape(-1, len(names)).T
    return {name: SequenceSummaryStats.from_sequence(column) for name, column in zip(names, columns)}


for base in _BASES:
    base.register(_Policy)  # isinstance(policy, BasePolicy) holds, with the methods here


# ---------------------------------------------------------------------- plain data


def as_batch(batch: Any) -> Any:
    """A `Batch` (Tianshou's where it is installed) of a mapping or of an object with attributes; one as it is.

    Raises ValueError for what is neither, such as the path of a file.
    """
    if isinstance(batch, Batch):
        return batch
    try:
        entries = dict(batch) if isinstance(batch, Mapping) else dict(vars(batch))
    except TypeError:
        raise ValueError(
            f"a batch is a mapping of arrays or an object that has them as attributes, got {batch!r:.100}: load a file "
            "with ReplayBuffer.load_hdf5"
        ) from None
    for name, x in entries.items():
        if isinstance(x, Mapping):
            entries[name] = as_batch(x)
        elif isinstance(x, list | tuple):
            entries[name] = np.asarray(x)
    return Batch(entries)


def as_buffer(buffer: Any) -> Buffer:
    """A buffer as it is, or one of a plain batch's rows. Raises ValueError for an empty one."""
    if isinstance(buffer, Buffer) and isinstance(buffer, Sized) and len(buffer) == 0:
        raise ValueError("the buffer has no rows: collect some first")
    return buffer if isinstance(buffer, Buffer) else _Rows(_complete(buffer, "obs", "act"))


class _Rows:
    """The rows of a plain batch as a buffer."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def sample(self, batch_size: int | None) -> tuple[Any, np.ndarray]:
        count = len(self.batch.act)
        if batch_size == 0:
            return self.batch, np.arange(count)
        rows = torch.randint(count, (count if batch_size is None else batch_size,)).numpy()
        return self.batch[rows], rows

    def unfinished_index(self) -> np.ndarray:
        return np.array([len(self.batch.act) - 1])


def _unfinished_rows(batch: Any, buffer: Any, indices: np.ndarray | None) -> np.ndarray:
    """`[n]` bool: True in rows where the recording of an episode stopped."""
    if buffer is None or indices is None:
        return np.arange(len(batch.act)) == len(batch.act) - 1
    return np.isin(indices, buffer.unfinished_index())


def _complete(batch: Any, *names: str) -> Any:
    """The batch; raises ValueError for a missing entry."""
    batch = as_batch(batch)
    missing = [name for name in names if batch.get(name) is None]
    if missing:
        raise ValueError(f"the batch has no {', '.join(missing)}: it needs {', '.join(names)}")
    rows = {name: len(batch[name]) for name in names if not isinstance(batch[name], Mapping)}
    if not rows["act"]:
        raise ValueError("the batch has no rows: collect some first")
    if len(set(rows.values())) > 1:
        raise ValueError(f"entries of a batch have the same number of rows, got {rows}")
    return batch


def _array(x: Tensor | np.ndarray) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _column(x: Any) -> Tensor:
    return torch.as_tensor(x).cpu().reshape(-1, 1)
