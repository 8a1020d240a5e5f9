"""`PartLoss` and `RewardTransform`: what a user of a TensorDict loop adds to it.

Entries and batch sizes are TorchRL's: rollouts `[N, T]` (or `[T]`) with "next", one number per sample as `[..., 1]`.
TorchRL need not be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from understudy.interop.torchrl.beside import Beside
from understudy.interop.torchrl.modules import Actor
from understudy.interop.torchrl.rows import columns
from understudy.ppo.part import Labels, Losses, Overrides, Part, PartConfig, Rewards, Updates, Weights
from understudy.types import Metrics


class PartLoss(Beside):
    """A `Losses` or `Weights` part on minibatches of a TensorDict loop: `loss_<name>`, and metrics under `<name>/...`.

    `part_config` is a part's config (`us.parts.BehaviorCloningConfig(...)`), `actor` and `critic` (None: the part sees
    zeros) the modules that the loop trains anyway; `parameters()` are theirs and the part's own.

        imitate = us.interop.torchrl.PartLoss(us.parts.TeacherConfig(checkpoints=("runs/teacher",)), actor, critic)
        for rollout in collector:
            imitate.prepare(rollout)                    # labels: once, before minibatches are drawn
            ...
            loss = sum of ppo(batch)'s "loss_*" + imitate(batch)["loss_teacher"]

    The part sees the actor's entries as the group "policy" (components by name, if there are several), those of a
    critic that reads others as "critic", and every other entry under its own name: floating ones, flags, and what looks
    like the action. A `Weights` part adds `weight` `[B]` for surrogate and entropy, which multiplies the losses of
    `us.ClipPPOLoss(reduction="none")`. Numbers that move are moved by `advance_all(loss, ...)`.

    - `like`: a batch to build the part for; None: the first one. Own weights (ADVISOR's head) exist from then on only.
    - `action_space`: the environment's, if it is bounded; None: from the distribution. `observation_spaces`: of
      entries that cannot be told by their type.
    - `latent_key`: the entry that the actor's last layer reads, for ADVISOR's auxiliary head.
    - `estimates`: for `Estimator`, an entry that the actor's pass leaves -> the entry with the truth, in its units.

    An actor with a memory (it reads "is_init" and X, and writes ("next", X), as TorchRL's `LSTMModule` and `GRUModule`)
    takes minibatches of whole columns `[B, T]`, over which it runs from the state at their first step. The heads of a
    composite action are one action of as many numbers or choices; its expert's label is a TensorDict of such entries.

    Raises ValueError for a part without these hooks, one that does not fit the batch, and one that would act in the
    policy's place.
    """

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The loss and its metrics, a TensorDict without batch size; the input is left as it is."""
        if first_batch := not self.built:
            self.build(tensordict)
        rows = self._ours(self.rows.read(tensordict, self.policy))
        if "is_first" not in rows.keys():  # noqa: SIM118
            rows["is_first"] = torch.zeros_like(rows["valid"])
        if isinstance(self.part, Labels):
            label = tensordict.get(self.name, None)
            if label is None:
                self.built = not first_batch  # it is built for the rollouts
                raise ValueError(
                    f"the batch has no {self.name!r}: call prepare(rollout) before the rollout is cut into minibatches"
                )
            rows[self.name] = self._ours(label)
        drawn = self.part.sample(rows) if isinstance(self.part, Losses) else None
        if drawn is not None:
            rows = TensorDict({**rows}, batch_size=[])
            labels = rows.get(self.name, None)
            rows[self.name] = TensorDict({**({} if labels is None else labels), "sample": drawn}, batch_size=[])
        output = self._run(rows)
        out: dict[str, Tensor] = {}
        if isinstance(self.part, Weights):
            with torch.no_grad():
                weight = self.part.weight(rows, output)
            out["weight"] = (weight.transpose(0, 1) if self.policy.recurrent else weight).reshape(tensordict.batch_size)
        if isinstance(self.part, Losses):
            loss, metrics = self.part.loss(self.policy, rows, output)
            out |= {f"loss_{self.name}": loss, **{f"{self.name}/{key}": x for key, x in metrics.items()}}
        return TensorDict(out, batch_size=[])

    def prepare(self, rollout: TensorDictBase) -> TensorDictBase:
        """Label a rollout `[N, T]` under `<name>`, step by step, and let a part remember it; returns it."""
        if not self.built:
            self.build(rollout)
        if not isinstance(self.part, (Labels, Updates)):
            return rollout
        rows = self._rollout(rollout)
        if isinstance(self.part, Labels):
            with torch.no_grad():
                steps = zip(rows["obs"].unbind(0), rows["is_first"].unbind(0))
                labels = torch.stack([self.part.label(obs, first).clone() for obs, first in steps])  # [T, N]
            if isinstance(self.part, Overrides) and any(
                bool(self.part.override(action, label)[1].any()) for action, label in zip(rows["action"], labels)
            ):
                raise ValueError(
                    f"{self.name} would act in the policy's place, which a loss cannot do: set teacher_forcing to 0"
                )
            rows[self.name] = labels
            rollout[self.name] = labels.transpose(0, 1).reshape(rollout.batch_size)
        if isinstance(self.part, Updates):
            self.part.update(self.policy, rows)
        return rollout

    def _ours(self, rows: TensorDict) -> TensorDict:
        """A minibatch as parts have it: `[B]`, or whole columns `[T, B]` for a memory."""
        if not self.policy.recurrent:
            return rows.reshape(-1)
        if rows.ndim == 1 and self.num_envs > 1:
            raise ValueError(
                f"an actor with a memory takes whole columns [B, T] of a rollout, not {tuple(rows.batch_size)}: "
                "draw minibatches of environments, rollout[index], and leave their steps together"
            )
        return columns(rows)

    def _check(self, part: Part) -> None:
        if not isinstance(part, (Losses, Weights)):
            raise ValueError(
                f"{type(part).__name__} has neither a loss nor weights: use us.interop.torchrl.RewardTransform"
            )
        self.out_keys = [f"loss_{self.name}"] if isinstance(part, Losses) else ["weight"]


class RewardTransform(Beside):
    """A `Rewards` part (`Gail`, `Airl`, `MotionPrior`, `RandomNetworkDistillation`) on rollouts of a TensorDict loop.

        ("next", "reward") = task_weight * reward + part.reward_weight * (the part's reward)

    A module on rollouts `[N, T]` (or `[T]`), called before advantages are computed, by hand or as the collector's
    `postproc=`; not a transform of the environment, as rewards of parts need whole rollouts. It first scores the
    rollout, then takes the part's own optimizer steps on it, as `us.PPO` does, so each rollout passes once and in the
    order of time. `("next", "reward_<name>")` is the part's reward, `metrics` the last statistics (0-D tensors).
    Several transforms add up, one after another.

        gail = us.interop.torchrl.RewardTransform(us.parts.GailConfig(demonstrations="a.npz"), actor, task_weight=0)
        for rollout in collector:
            gail(rollout)

    Rows of padding, and those with a number that is not finite, get no reward of the part, which does not learn from
    them. Arguments are those of `PartLoss`; with `normalization="policy"` statistics are those of the rollouts so far.
    Raises ValueError for a part without a reward, and for rollouts with another number of environments.
    """

    def __init__(
        self,
        part_config: PartConfig,
        actor: Actor,
        critic: TensorDictModuleBase | None = None,
        *,
        task_weight: float = 1.0,
        name: str | None = None,
        like: TensorDictBase | None = None,
        action_space: spaces.Space[Any] | None = None,
        observation_spaces: Mapping[str, spaces.Space[Any]] | None = None,
        gamma: float = 0.99,
        seed: int = 0,
    ) -> None:
        self.task_weight = task_weight
        self.metrics: Metrics = {}
        super().__init__(
            part_config,
            actor,
            critic,
            name=name,
            like=like,
            action_space=action_space,
            observation_spaces=observation_spaces,
            gamma=gamma,
            seed=seed,
        )

    def forward(self, rollout: TensorDictBase) -> TensorDictBase:
        """Replace the reward of a rollout in place, and learn from it; returns it."""
        rows = self._rollout(rollout)
        part, valid = cast(Rewards, self.part), rows["valid"]
        if not self.scored:  # the first statistics
            self.policy.update_normalizers(rows["obs"], valid)
        with torch.no_grad():
            output = self._run(rows)
            rows["params"], rows["value"] = output.distribution.params, output.value
            # a part's own networks are float32
            rows = cast(TensorDict, rows.apply(lambda x: x.float() if x.is_floating_point() else x))
            reward = torch.where(valid, part.reward(rows), 0.0)
        self.metrics = {"reward": reward.mean()}
        if isinstance(self.part, Updates):
            with torch.enable_grad():
                self.metrics |= self.part.update(self.policy, rows)
        if self.scored:
            self.policy.update_normalizers(rows["obs"], valid)
        self.scored += 1
        after = rollout["next"]
        before = after["reward"]
        after[f"reward_{self.name}"] = own = reward.transpose(0, 1).reshape(before.shape).to(before.dtype)
        after["reward"] = self.task_weight * before + part.reward_weight * own
        return rollout

    def _check(self, part: Part) -> None:
        if not isinstance(part, Rewards):
            raise ValueError(f"{type(part).__name__} gives no reward: use us.interop.torchrl.PartLoss")
