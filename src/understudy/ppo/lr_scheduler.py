"""Learning rates that follow a `torch.optim.lr_scheduler`, described by plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from understudy.core.check import Config, fit, nearest
from understudy.core.registry import load_object
from understudy.ppo.optim import LearningRate, Optimizer

_PLATEAU = "ReduceLROnPlateau"
_OF_SEVERAL = ("SequentialLR", "ChainedScheduler")
_TRIED = 20_000
"""Steps of a scheduler that are tried beforehand, at most."""


@dataclass(frozen=True, kw_only=True)
class LRSchedulerConfig(Config):
    """A `torch.optim.lr_scheduler`, stepped once per iteration.

    Raises ValueError for an unknown name, a plateau without its metric, and a sequence or chain without schedulers.
    """

    PREFIX = "lr_scheduler."

    name: str
    """Class name in torch.optim.lr_scheduler, for example CosineAnnealingLR."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its keyword arguments: numbers, texts, lists. A function (LambdaLR) works with us.PPO only: no file holds one."""
    metric: str = ""
    """ReduceLROnPlateau: the logged metric that it watches, episode/return (with the option mode: max)."""
    schedulers: tuple[LRSchedulerConfig, ...] = ()
    """SequentialLR and ChainedScheduler: their schedulers, in order."""

    def __post_init__(self) -> None:
        """Refuse what torch would not take."""
        super().__post_init__()
        known = set(torch.optim.lr_scheduler.__all__) - {"LRScheduler"}
        if self.name not in known:
            raise ValueError(f"lr_scheduler {self.name!r} is unknown; {nearest(self.name, known)}")
        for name, given, takes in (
            ("metric", self.metric, self.name == _PLATEAU),
            ("schedulers", self.schedulers, self.name in _OF_SEVERAL),
        ):
            if bool(given) != takes:
                raise ValueError(f"lr_scheduler {self.name} {'needs' if takes else 'takes no'} {name}")
        if any(inner.name == _PLATEAU for inner in self.schedulers):
            raise ValueError(f"lr_scheduler {self.name} cannot hold a {_PLATEAU}, which steps with a metric")


def _build(config: LRSchedulerConfig, optimizer: torch.optim.Optimizer) -> Any:
    options = {name: _sound(value) for name, value in config.options.items()}
    kind = load_object(f"torch.optim.lr_scheduler:{config.name}")
    if not config.schedulers:
        return kind(optimizer, **options)
    schedulers = [_build(inner, optimizer) for inner in config.schedulers]
    return kind(optimizer, schedulers, **options) if config.name == "SequentialLR" else kind(schedulers, **options)


def _sound(value: Any) -> Any:
    """Command lines and YAML give floats, and 1e-3 as text, where schedulers insist on whole numbers and numbers."""
    if isinstance(value, list | tuple):
        return [_sound(entry) for entry in value]
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


class LearningRateScheduler:
    """Runs a `torch.optim.lr_scheduler` on a stand-in optimizer and copies its learning rate onto the real one.

    Raises ValueError for options that the scheduler does not take, and for one that fails or leaves the range of
    learning rates within `steps`: it is tried beforehand.
    """

    def __init__(self, optimizer: Optimizer, config: LRSchedulerConfig, steps: int = 0) -> None:
        self.optimizer, self.metric = optimizer, config.metric
        start = float(optimizer.learning_rate.value)
        done = -1
        try:
            self.stand_in, self.scheduler = _stand_in(config, start)
            tried, scheduler = _stand_in(config, start)
            tried.step()  # once, or torch warns
            done = 0
            while done < min(steps, _TRIED):
                fit(LearningRate, tried.param_groups[0]["lr"], "the learning rate")
                scheduler.step(0.0) if self.metric else scheduler.step()
                done += 1
        except Exception as error:  # torch's schedulers divide, unpack and compare as if all options were sound
            options = dict(config.options)
            when = f"does not take the options {options}" if done < 0 else f"fails after {done} of {steps} steps"
            raise ValueError(f"lr_scheduler {config.name} {when}: {error}") from error
        self._apply()  # schedulers that warm up change the rate of the very first step

    def step(self) -> None:
        """Advance by one iteration; a plateau advances when it sees its metric."""
        self.stand_in.step()
        if not self.metric:
            self.scheduler.step()
            self._apply()

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Let a plateau see host metrics; NaN (no episode has ended) is nothing to see."""
        number = metrics.get(self.metric, math.nan)
        if not math.isnan(number):
            self.scheduler.step(number)
            self._apply()

    def _apply(self) -> None:
        self.optimizer.learning_rate.value.fill_(float(self.stand_in.param_groups[0]["lr"]))

    def state_dict(self) -> dict[str, Any]:
        """State of the scheduler and of its stand-in optimizer's group."""
        return {"scheduler": self.scheduler.state_dict(), "lr": float(self.stand_in.param_groups[0]["lr"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.scheduler.load_state_dict(state["scheduler"])
        self.stand_in.param_groups[0]["lr"] = state["lr"]


def _stand_in(config: LRSchedulerConfig, start: float) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=start)
    return optimizer, _build(config, optimizer)
