"""Training on demonstrations alone: epochs over a `BehaviorCloning` part's data, without an environment step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from understudy.core import randomness
from understudy.core.capture import capture
from understudy.core.devices import denormals_flushed
from understudy.core.schedules import Scalar
from understudy.core.spaces import unflatten
from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.nn.normalization import ObservationNormalizer
from understudy.parts.behavior_cloning import BehaviorCloning
from understudy.ppo.optim import LearningRateScheduler, gradient_step
from understudy.ppo.ppo import PPO
from understudy.runs.config import OfflineConfig
from understudy.training.dagger import Dagger

_GATHERED = 32
"""Minibatches gathered at once: copying them one by one costs as much as the arithmetic, all at once a second copy."""

_VALIDATION_ROWS = 8192


class OfflineTraining:
    """Epochs of behaviour cloning with the policy, optimizer and cloning part of a `PPO` that has not started yet.

    One epoch is every transition once, shuffled (what is left after the last whole minibatch waits for another
    epoch); for a policy with a memory, as many windows as hold so many transitions. The normaliser's statistics are
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
            None if config.lr_scheduler is None else LearningRateScheduler(ppo.optimizer, config.lr_scheduler)
        )
        observed = [("obs", *_path(key)) for key in self.part.demonstrations.observations.keys(True, True)]
        self.keys = (*observed, ("action",), ("is_first",))
        self.metric_names: tuple[str, ...] = ()
        self.program = capture(self._loss_and_gradients, ppo.config.capture, ppo.optimizer.grads)
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
        # a sum, no list: small tensors kept from every step lie among the large ones, whose memory then goes to waste
        sums, steps = torch.zeros((), dtype=torch.float64, device=ppo.env.device), 0
        for leaves in self._minibatches():
            sums, steps = sums + self.program(*leaves)[0], steps + 1
            gradient_step(ppo.optimizer)
        numbers = (sums / steps).tolist()
        metrics = {f"offline/{name}": number for name, number in zip(self.metric_names, numbers)}
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.epochs_done, self.round_epochs = self.epochs_done + 1, self.round_epochs + 1
        metrics |= self._validate()
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
        self.round += 1
        metrics = self.dagger.collect(self.round, self.ppo.policy)
        self.renew(self.part.reload())
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
            tuple(name.split("/")): normalizer
            for name, normalizer in self.ppo.policy.normalizers.items()
            if ("obs", *name.split("/")) in self.keys and isinstance(normalizer, ObservationNormalizer)
        }
        for normalizer in normalizers.values():
            normalizer.count.zero_()  # of an earlier round, whose trajectories are among these
        for rows in self.training.rows.split(_VALIDATION_ROWS):
            obs = self.training.gather(rows, next_obs=False)["obs"]
            for key, normalizer in normalizers.items():
                normalizer.update(obs.get(key))

    # ------------------------------------------------------------------ minibatches

    def _minibatches(self) -> Iterator[Sequence[Tensor]]:
        """The leaves of every minibatch, in the order of `self.keys`."""
        demonstrations, part = self.training, self.part
        if part.recurrent:
            for _ in range(max(demonstrations.num_transitions // part.config.batch_size, 1)):
                drawn = part.draw(demonstrations)
                yield [drawn[key] for key in self.keys]
            return
        size = min(part.config.batch_size, demonstrations.num_transitions)
        for rows in demonstrations.shuffled(size * _GATHERED, part.generator):
            drawn = demonstrations.gather(rows, next_obs=False)
            for leaves in zip(*(drawn[key].split(size) for key in self.keys)):
                if len(leaves[0]) == size:
                    yield leaves

    def _loss_and_gradients(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        """Gradients of all parameters, then the metrics in one vector."""
        with torch.enable_grad():
            loss, metrics = self._clone(leaves)
            targets = self.ppo.optimizer.targets
            gradients = torch.autograd.grad(loss, targets, allow_unused=True, materialize_grads=True)
        self.metric_names = tuple(metrics)
        return (*gradients, torch.stack([x.detach() for x in metrics.values()]))

    def _clone(self, leaves: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        action = leaves[self.keys.index(("action",))]
        size = action.shape[: 2 if self.part.recurrent else 1]
        drawn = unflatten(self.keys, leaves, size)
        return self.part.clone(self.ppo.policy, drawn["obs"], drawn["action"], drawn["is_first"])

    # ------------------------------------------------------------------ validation

    def _validate(self) -> dict[str, float]:
        """Validation metrics; keeps the best policy and counts the epochs since."""
        if self.validation is None:
            return {}
        numbers = self._validation_numbers(self.validation)
        metrics = {f"offline/validation_{name}": x for name, x in zip(self.metric_names, numbers)}
        loss = metrics["offline/validation_loss"]
        if loss < self.best_loss:
            self.best_loss, self.waited = loss, 0
            self.best = {name: x.clone() for name, x in self.ppo.policy.state_dict().items()}
        else:
            self.waited += 1
            self.stopped_early = self.config.patience is not None and self.waited >= self.config.patience
        return metrics

    @torch.no_grad()
    def _validation_numbers(self, held: Demonstrations) -> list[float]:
        """Means over all transitions held out; for a policy with a memory over the same windows each time."""
        if self.part.recurrent:
            generator = torch.Generator(self.ppo.env.device).manual_seed(0)
            length = self.part.config.sequence_length
            batches = iter([held.sequences(length, max(held.num_transitions // length, 1), generator)])
        else:
            batches = (held.gather(rows, next_obs=False) for rows in held.rows.split(_VALIDATION_ROWS))
        sums, count = torch.zeros(len(self.metric_names), dtype=torch.float64), 0
        for drawn in batches:
            metrics = self._clone([drawn[key] for key in self.keys])[1]
            sums += drawn.numel() * torch.stack(list(metrics.values())).double().cpu()
            count += drawn.numel()
        numbers: list[float] = (sums / count).tolist()
        return numbers


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
