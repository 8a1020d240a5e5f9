"""Training on demonstrations alone: epochs over a `BehaviorCloning` part's data, without an environment step."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core import randomness, ranks
from understudy.core.capture import Batch, unbind
from understudy.core.check import nearest
from understudy.core.devices import denormals_flushed
from understudy.core.schedules import Scalar
from understudy.core.spaces import key_of
from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.nn.normalization import ObservationNormalizer
from understudy.parts.behavior_cloning import BehaviorCloning
from understudy.ppo.lr_scheduler import LearningRateScheduler
from understudy.ppo.metrics import over_ranks
from understudy.ppo.minibatch import nest
from understudy.ppo.optim import capture_gradient, gradient_step
from understudy.ppo.ppo import PPO
from understudy.runs.config import OfflineConfig
from understudy.training.dagger import Dagger
from understudy.types import Metrics

_GATHERED = 32
"""Minibatches gathered at once: copying them one by one costs as much as the arithmetic, all at once a second copy."""

_VALIDATION_ROWS = 8192


class OfflineTraining:
    """Epochs of behaviour cloning with the policy, optimizer and cloning part of a `PPO` that has not started yet.

    One epoch is every transition once, shuffled (what is left after the last whole minibatch waits for another
    epoch); for a policy with a memory, as many windows as hold so many transitions. Ranks share the transitions, each
    with minibatches of its own. The normaliser's statistics are
    those of the demonstrations. After the last epoch the policy with the least validation loss is put back and the
    optimizer forgets its moments. With `dagger` there are several rounds of this, each on the episodes of all rounds
    so far. Raises ValueError unless there is exactly one cloning part.
    """

    def __init__(self, ppo: PPO, config: OfflineConfig, dagger: Dagger | None = None) -> None:
        self.ppo, self.config, self.part, self.dagger = ppo, config, find_cloning_part(ppo), dagger
        self.epochs_done = self.round_epochs = self.round = 0
        self.best_loss, self.waited = math.inf, 0
        self.best: dict[str, Tensor] = {}
        self.stopped_early = False
        self.initial_rate = ppo.optimizer.learning_rate.value.clone()
        self.rate = Scalar(config.learning_rate, ppo.env.device)
        ppo.optimizer.learning_rate.value.copy_(self.rate())
        self.lr_scheduler = (
            None
            if config.lr_scheduler is None
            else LearningRateScheduler(ppo.optimizer, config.lr_scheduler, self.most_epochs)
        )
        observed = [("obs", *_path(key)) for key in self.part.demonstrations.observations.keys(True, True)]
        self.names: tuple[Any, ...] = (*observed, "action", "is_first")
        self.program = capture_gradient(self._clone, ppo.optimizer, ppo.config.capture)
        self.renew(self.part.demonstrations)

    @property
    def finished(self) -> bool:
        """Whether all epochs (of all rounds) are done."""
        return self.round_over and (self.dagger is None or self.round >= self.dagger.config.rounds)

    @property
    def round_over(self) -> bool:
        """Whether all epochs of this round are done, or validation did not improve for `patience` of them."""
        return self.stopped_early or self.round_epochs >= self.config.epochs

    @property
    def most_epochs(self) -> int:
        """How many epochs there are if none ends early."""
        return self.config.epochs * (1 if self.dagger is None else 1 + self.dagger.config.rounds)

    def summary(self) -> str:
        """One line for people: what is trained on and what is held out."""
        held = "nothing" if self.validation is None else f"{self.validation.num_trajectories} trajectories"
        return f"{self.part.demonstrations.summary()}; {held} held out"

    def renew(self, demonstrations: Demonstrations) -> None:
        """Go on with these demonstrations, a share of whose trajectories validates (none where there is only one)."""
        self.part.demonstrations = demonstrations
        self.training, self.validation = demonstrations, None
        if self.config.validation_fraction and demonstrations.num_trajectories > 1:
            # the same split in a resumed run
            generator = torch.Generator().manual_seed(randomness.mix(self.ppo.seed, "offline/validation"))
            self.training, self.validation = demonstrations.split(self.config.validation_fraction, generator)
        self.own = self.training.share(ranks.rank(), ranks.count())

    @denormals_flushed()
    def epoch(self) -> dict[str, float]:
        """One epoch; host numbers of it."""
        started, ppo = time.perf_counter(), self.ppo
        collected = self._next_round() if self.round_over else {}
        if self.round_epochs == 0:
            self._absorb_observations()
        if self.lr_scheduler is None:
            position = (self.round_epochs, self.round_epochs, self.config.epochs, self.config.epochs)
            self.rate.advance(*position)
            ppo.optimizer.learning_rate.value.copy_(self.rate())
        rate = float(ppo.optimizer.learning_rate.value)
        # summed at once: a list would keep small tensors of every step between the large ones and fragment the memory
        sums: dict[str, Tensor] = {}
        steps = 0
        for batch in self.minibatches():
            sums, steps = {name: sums.get(name, 0.0) + x for name, x in self.program(batch).items()}, steps + 1
            gradient_step(ppo.optimizer)
        numbers = (torch.stack(list(sums.values())) / steps).tolist()
        metrics = {f"offline/{name}": number for name, number in zip(sums, numbers)}
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.epochs_done, self.round_epochs = self.epochs_done + 1, self.round_epochs + 1
        if self.validation is not None:
            held = self._validation_numbers(self.validation)
            metrics |= {f"offline/validation_{name}": x for name, x in held.items()}
        metrics = over_ranks(metrics)
        self._keep_best(metrics)
        if self.lr_scheduler is not None and self.lr_scheduler.metric:
            if self.lr_scheduler.metric not in metrics:
                hint = nearest(self.lr_scheduler.metric, metrics)
                raise ValueError(f"offline.lr_scheduler waits for a metric that no epoch logs; {hint}")
            self.lr_scheduler.observe(metrics)
        return (
            collected
            | metrics
            | {
                "offline/epoch": float(self.epochs_done),
                "offline/steps": float(steps),
                "offline/learning_rate": rate,
                "time/epoch": time.perf_counter() - started,
            }
        )

    def finish(self) -> None:
        """Put the best policy back and make the optimizer ready for PPO."""
        self._put_best_back()
        optimizer = self.ppo.optimizer
        for buffer in (optimizer.steps, optimizer.skipped, optimizer.first_moment, optimizer.second_moment):
            buffer.zero_()
        optimizer.learning_rate.value.copy_(self.initial_rate)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond PPO's own state."""
        state: dict[str, Any] = {
            "epochs_done": self.epochs_done,
            "round_epochs": self.round_epochs,
            "round": self.round,
            "best_loss": self.best_loss,
            "waited": self.waited,
            "best": self.best,
            "stopped_early": self.stopped_early,
            "finished": self.finished,
        }
        if self.lr_scheduler is not None:
            state["lr_scheduler"] = self.lr_scheduler.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.epochs_done, self.round_epochs, self.round = (state[k] for k in ("epochs_done", "round_epochs", "round"))
        self.best_loss = state["best_loss"]
        self.waited, self.best, self.stopped_early = state["waited"], dict(state["best"]), state["stopped_early"]
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])

    # ------------------------------------------------------------------ rounds

    def _next_round(self) -> dict[str, float]:
        """Collect with the policy of the last round, and go on with everything that was collected."""
        assert self.dagger is not None
        self._put_best_back()
        metrics = self.dagger.collect(self.round + 1, self.ppo.policy)
        self.renew(self.part.reload())
        self.round += 1  # now that it is kept
        self.round_epochs, self.best_loss, self.waited, self.stopped_early = 0, math.inf, 0, False
        return metrics

    def _put_best_back(self) -> None:
        if self.best:
            self.ppo.policy.load_state_dict(self.best)
            self.best = {}

    @torch.no_grad()
    def _absorb_observations(self) -> None:
        """Give the policy's normalisers the statistics of the training trajectories, as far as these are loaded."""
        normalizers = {
            key_of(name): normalizer
            for name, normalizer in self.ppo.policy.normalizers.items()
            if ("obs", *key_of(name)) in self.names and isinstance(normalizer, ObservationNormalizer)
        }
        for normalizer in normalizers.values():
            normalizer.count.zero_()  # of an earlier round, whose trajectories are among these
        for rows in self.training.rows.split(_VALIDATION_ROWS):
            obs = self.training.gather(rows, next_obs=False)["obs"]
            own = None
            if ranks.count() > 1:
                own = torch.arange(len(rows), device=self.ppo.env.device) % ranks.count() == ranks.rank()
            for key, normalizer in normalizers.items():
                normalizer.update(obs.get(key), own)

    # ------------------------------------------------------------------ minibatches

    def minibatches(self) -> Iterator[Batch]:
        """The minibatches of one epoch, `[B]` or `[T, B]`."""
        demonstrations, part = self.own, self.part
        if part.recurrent:
            for _ in range(max(demonstrations.num_transitions // part.config.batch_size, 1)):
                yield self._named(part.draw(self.training))
            return
        size = min(part.config.batch_size, demonstrations.num_transitions)
        for rows in demonstrations.shuffled(size * _GATHERED, part.generator):
            if whole := len(rows) // size:
                drawn = demonstrations.gather(rows[: whole * size].view(whole, size), next_obs=False)
                yield from unbind(self._named(drawn))

    def _named(self, drawn: TensorDict) -> Batch:
        return {name: drawn[name] for name in self.names}

    def _clone(self, batch: Batch) -> tuple[Tensor, Metrics]:
        drawn = nest(batch, self.part.recurrent)
        return self.part.clone(self.ppo.policy, drawn["obs"], drawn["action"], drawn["is_first"])

    # ------------------------------------------------------------------ validation

    def _keep_best(self, metrics: Mapping[str, float]) -> None:
        """Keep the policy if it fits best what is held out, and count the epochs since one did."""
        if self.validation is None:
            return
        loss = metrics["offline/validation_loss"]
        if loss < self.best_loss:
            self.best_loss, self.waited = loss, 0
            self.best = {name: x.clone() for name, x in self.ppo.policy.state_dict().items()}
        else:
            self.waited += 1
            self.stopped_early = self.config.patience is not None and self.waited >= self.config.patience

    @torch.no_grad()
    def _validation_numbers(self, held: Demonstrations) -> dict[str, float]:
        """Means over all transitions held out; for a policy with a memory over the same windows each time."""
        if self.part.recurrent:
            generator = torch.Generator(self.ppo.env.device).manual_seed(0)
            length = self.part.config.sequence_length
            batches = iter([held.sequences(length, max(held.num_transitions // length, 1), generator)])
        else:
            batches = (held.gather(rows, next_obs=False) for rows in held.rows.split(_VALIDATION_ROWS))
        sums, count = Counter[str](), 0
        for drawn in batches:
            _, metrics = self._clone(self._named(drawn))
            numbers = torch.stack(list(metrics.values())).tolist()
            sums.update({name: drawn.numel() * number for name, number in zip(metrics, numbers)})
            count += drawn.numel()
        return {name: total / count for name, total in sums.items()}


def find_cloning_part(ppo: PPO) -> BehaviorCloning:
    """The part that has the demonstrations. Raises ValueError unless there is exactly one."""
    found = [part for part in ppo.parts.values() if isinstance(part, BehaviorCloning)]
    if len(found) != 1:
        raise ValueError(
            f"offline training clones the demonstrations of one behavior-cloning part, got {len(found)}: add one to "
            "parts, or drop `offline`"
        )
    return found[0]


def _path(key: str | tuple[str, ...]) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key
