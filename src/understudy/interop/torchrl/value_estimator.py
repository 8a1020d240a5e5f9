"""Advantages of rollouts in TorchRL's shapes: what `ClipPPOLoss.make_value_estimator` makes."""

from __future__ import annotations

from typing import Protocol

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from understudy.interop.torchrl.entries import number
from understudy.interop.torchrl.modules import run_critic
from understudy.interop.torchrl.options import TensorKeys
from understudy.ppo.returns import gae

_ROLLOUT = "the value estimator reads it"


class Valued(Protocol):
    """A loss with a critic, and the names of a batch's entries."""

    critic: TensorDictModuleBase
    tensor_keys: TensorKeys


class Estimator:
    """Advantages of a rollout `[..., T]` of TorchRL's: writes value, advantage and target, `[..., T, 1]`.

    Targets of GAE are advantage + value. The other returns know the value after a step only, so that V(s_t) in GAE's
    sum is what the step before saw: no difference in a rollout, but in rows that do not follow each other.
    """

    def __init__(self, loss: Valued, is_gae: bool, gamma: float | Tensor, lmbda: float | Tensor) -> None:
        self.loss, self.is_gae = loss, is_gae
        # float32 first, as everywhere in TorchRL
        self.gamma, self.lmbda = (torch.as_tensor(x, dtype=torch.float32).double() for x in (gamma, lmbda))

    @torch.no_grad()
    def __call__(self, tensordict: TensorDictBase, params: None = None, target_params: None = None) -> TensorDictBase:
        """The rollout, with the entries. Raises ValueError for one without "next"."""
        keys, after = self.loss.tensor_keys, tensordict.get("next", None)
        if after is None or tensordict.ndim < 1:
            raise ValueError('a value estimator needs a rollout [..., T] with the entries of "next"')
        done = number(after, keys.done, _ROLLOUT).bool()
        ended = done if after.get(keys.terminated, None) is None else number(after, keys.terminated, _ROLLOUT).bool()
        value = run_critic(self.loss.critic, tensordict.copy(), keys.value)
        next_value = run_critic(self.loss.critic, after.copy(), keys.value)
        columns = (number(after, keys.reward, _ROLLOUT).to(value.dtype), value, next_value, ended, done & ~ended)
        r, v, v_next, end, cut = (x.movedim(-1, 0).reshape(x.shape[-1], -1) for x in columns)  # [T, N]
        baseline = v if self.is_gae else torch.cat((v[:1], v_next[:-1]))
        advantage, target = gae(r, baseline, v_next, end, cut, self.gamma, self.lmbda)
        found = (advantage if self.is_gae else target - v, target)
        advantage, target = (x.reshape(-1, *value.shape[:-1]).movedim(0, -1).unsqueeze(-1) for x in found)
        tensordict[keys.value], tensordict["next", keys.value] = value.unsqueeze(-1), next_value.unsqueeze(-1)
        tensordict[keys.advantage], tensordict[keys.value_target] = advantage, target
        return tensordict
