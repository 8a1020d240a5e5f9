"""One training over several processes: rank 0 has the loop, the folder and the console; the others do what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeVar

from torch import Tensor

from understudy.core import ranks
from understudy.ppo.ppo import PPO
from understudy.runs.config import TrainConfig, to_yaml
from understudy.training.offline import OfflineTraining
from understudy.training.signals import StopSignals

T = TypeVar("T")
Order = Literal["iterate", "epoch", "finish", "evaluate", "observe", "reset_envs", "state"]

OWN = ("reward_scaler", "episodes", "parts", "episode_window", "rng", "env", "collector", "env_counters")
"""Entries of PPO's state that differ from rank to rank."""


def leads() -> bool:
    """Whether this process is rank 0, which writes files and speaks; true for a process alone."""
    return ranks.rank() == 0


@contextmanager
def led(opening: AbstractContextManager[T]) -> Iterator[T]:
    """What rank 0 opens (a run's folder, whose lock it holds), for all ranks."""
    if not leads():
        yield ranks.shared(None)
        return
    with opening as opened:
        yield ranks.shared(opened)


def check_same_config(config: TrainConfig, **given: Any) -> None:
    """Raise ValueError, on all ranks, if one has another configuration, or not the objects that the others have."""
    objects = "\n".join(f"{name}= {'is missing' if x is None else 'is given'}" for name, x in given.items())
    remedy = "start all processes with the same command"
    ranks.check_same("the configuration", f"{to_yaml(config)}\n{objects}", remedy)


class Together:
    """Calls of PPO, of the offline training and of `evaluate` that all ranks make at the same time.

    Rank 0 gives each `order`; the others `follow` until it says `end`. A process alone follows its own orders.
    """

    def __init__(
        self, ppo: PPO, offline: OfflineTraining | None, evaluate: Callable[[bool], Any], stop: StopSignals
    ) -> None:
        self.ppo, self.offline, self.evaluate, self.stop = ppo, offline, evaluate, stop
        self.idle = True
        """Whether the others wait for an order: in the middle of one, they could not carry out another."""

    def order(self, order: Order, *given: Any) -> Any:
        """Carry out an order, as all other ranks do."""
        self.idle = False
        ranks.shared((order, given))
        result = self._carry_out(order, *given)
        self.idle = True
        return result

    def end(self, result: Any) -> None:
        """Let the others go, with the training's result."""
        ranks.shared(("end", (result,)))

    def follow(self) -> Any:
        """Carry out orders; returns the training's result."""
        while (told := ranks.shared(None))[0] != "end":
            self._carry_out(told[0], *told[1])
        return told[1][0]

    def _carry_out(self, order: Order, *given: Any) -> Any:
        match order:
            case "iterate":
                result: Any = self.ppo.iterate()
            case "epoch":
                assert self.offline is not None
                result = self.offline.epoch()
            case "finish":
                assert self.offline is not None
                return self.offline.finish()
            case "evaluate":
                return self.evaluate(*given)
            case "observe":
                return self.ppo.observe(*given)
            case "reset_envs":
                return self.ppo.reset_envs()
            case "state":
                return ranks.gather_first(None if leads() else own_state(self.ppo))[1:]
        for number in ranks.gather(self.stop.received):  # of any rank
            if number is not None and self.stop.received is None:
                self.stop.receive(number)
        return result


def own_state(ppo: PPO) -> dict[str, Any]:
    """What a checkpoint holds of a rank besides what all ranks have in common."""
    state = ppo.state_dict()
    own: dict[str, Any] = _copied({name: state[name] for name in OWN if name in state})
    return own


def _copied(value: Any) -> Any:
    """On the CPU, each tensor with its own memory: a pickle of a view holds all that is viewed."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {name: _copied(inner) for name, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list | tuple) else value
