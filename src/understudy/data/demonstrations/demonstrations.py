"""Draw batches from recorded trajectories, which lie in memory (or mapped) and were checked against the spaces.

    demos = Demonstrations.load("expert.npz", observation_space=env.observation_space, action_space=env.action_space)
    demos.num_trajectories, demos.num_transitions, demos.returns
    demos.sample(256, generator)                  # TensorDict [256]: independent transitions
    demos.sequences(32, 8, generator)             # TensorDict [32, 8]: windows, for policies with a memory
    for rows in demos.shuffled(256, generator):   # every transition once
        demos.gather(rows)

Batches use a rollout's names: `obs` and `next_obs` (raw, in the environment's groups), `is_first`, `executed_action`
(as passed to the environment), `reward`, `terminated`, `truncated`, and, if `load` gets the policy's `action_map`,
`action`: the raw action, the argument of log-probs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import Key
from understudy.data.demonstrations.check import Actions, load_trajectories
from understudy.data.demonstrations.recording import first_rows
from understudy.envs.actions import ActionMap
from understudy.envs.observations import Groups, Segments

logger = logging.getLogger(__name__)

MEMORY_MAP_ABOVE = 4 * 2**30
"""Observations larger than this (bytes) stay in a file that the operating system pages in and out."""


class Demonstrations:
    """K whole trajectories, M transitions in all; `load` reads them, `select` takes some of them without copying.

    `observations` `[M + K]` holds one more row per trajectory than `signals` `[M]`, the final observation: the next
    observation of a transition is the row after its own. `signals` are `executed_action`, `reward` (NaN where unknown),
    `terminated` and `truncated`. `step_stride` keeps only every n-th transition. Raises ValueError where sizes do not
    fit.
    """

    def __init__(
        self,
        observations: TensorDict,
        signals: TensorDict,
        lengths: Tensor,
        *,
        action_map: ActionMap | None = None,
        step_stride: int = 1,
        device: torch.device | str = "cpu",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        K, M = len(lengths), int(lengths.sum())
        if not M or signals.batch_size != (M,) or observations.batch_size != (M + K,):
            raise ValueError(
                f"{K} trajectories with {M} transitions need {M} (> 0) signals and {M + K} observations, got "
                f"{signals.batch_size[0]} and {observations.batch_size[0]}"
            )
        if step_stride < 1:
            raise ValueError(f"step_stride must be at least 1, got {step_stride}")
        self.observations, self.signals, self.lengths = observations, signals, lengths
        self.action_map, self.step_stride = action_map, step_stride
        self.device, self.metadata = torch.device(device), dict(metadata or {})
        self.starts = first_rows(lengths)  # [K]
        self.trajectory = torch.repeat_interleave(lengths).to(torch.int32)  # [M], the trajectory of each transition
        self._choose(torch.arange(K, device=lengths.device))

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        action_map: ActionMap | None = None,
        keys: Sequence[Key] | None = None,
        num_trajectories: int | None = None,
        subset: str = "",
        only_success: bool = False,
        file_observations: Sequence[str] = (),
        min_return: float | None = None,
        step_stride: int = 1,
        device: torch.device | str = "cpu",
        env_id: str | None = None,
        groups: Groups | None = None,
        segments: Segments | None = None,
        memory_map_above: int = MEMORY_MAP_ABOVE,
        actions: Actions = "executed",
    ) -> Demonstrations:
        """Load a path or the id of a local Minari dataset, and check every number.

        The spaces are the environment's, with groups; `keys` names the components to read (None: all). `groups` and
        `segments` are those of `EnvConfig`, for a file whose observations are named as without them. `subset` takes the
        trajectories that a list in the file names ("train"), `num_trajectories` the first of those, `only_success` and
        `min_return` those among them that reached their goal, or that returned at least so much. `file_observations`
        joins these vectors of the file into the one that the environment has. Observations larger than
        `memory_map_above` bytes stay on the disk; batches are on `device` either way. `actions` "scaled": the file's
        lie in [-1, 1], for a Box of another range; what lies outside is clipped. Logs a warning for what the file lacks
        (final observations: the last one is repeated) and for another `env_id`.

        Raises ValueError, naming trajectory, step and key, for data that are missing, empty, damaged, pickled, not
        finite, or do not fit the spaces; ImportError for HDF5 without the extra `demos`.
        """
        loaded = load_trajectories(
            source,
            observation_space,
            action_space,
            keys=keys,
            num_trajectories=num_trajectories,
            subset=subset,
            only_success=only_success,
            file_observations=file_observations,
            env_id=env_id,
            groups=groups,
            segments=segments,
            memory_map_above=memory_map_above,
            actions=actions,
        )
        storage = "cpu" if loaded.mapped else device
        demonstrations = cls(
            loaded.observations.to(storage),
            loaded.signals.to(storage),
            loaded.lengths.to(storage),
            action_map=action_map,
            step_stride=step_stride,
            device=device,
            metadata=loaded.metadata,
        )
        if min_return is not None:
            demonstrations = demonstrations._that_returned(min_return, str(source))
        logger.info("demonstrations: %s: %s", source, demonstrations.summary())
        return demonstrations

    def _that_returned(self, least: float, source: str) -> Demonstrations:
        """Keep the trajectories with at least this return."""
        returns = self.returns
        kept = torch.nonzero(returns >= least).flatten()  # none if rewards are unknown
        if not len(kept):
            raise ValueError(
                f"{source}: no trajectory returned {least:g} (min_return): "
                + ("its rewards are unknown" if bool(returns.isnan().all()) else f"the best one {returns.max():g}")
            )
        return self.select(kept)

    # ------------------------------------------------------------------ what there is

    @property
    def num_trajectories(self) -> int:
        """Number of trajectories to draw from."""
        return len(self.chosen)

    @property
    def num_transitions(self) -> int:
        """Number of transitions to draw from."""
        return len(self.rows)

    @property
    def returns(self) -> Tensor:
        """Undiscounted return of each trajectory to draw from, `[C]` float64; NaN where rewards are unknown."""
        sums = torch.zeros(len(self.lengths), dtype=torch.float64, device=self.lengths.device)
        return sums.index_add_(0, self.trajectory, self.signals["reward"].double())[self.chosen]

    def summary(self) -> str:
        """One line to read: size and the expert's score."""
        returns = self.returns
        score = f"return {returns.mean():.1f} ± {returns.std(correction=0):.1f}"
        known = score if bool(returns.isfinite().all()) else "rewards unknown"
        return f"{self.num_trajectories:,} trajectories, {self.num_transitions:,} transitions, {known}"

    def select(self, trajectories: Tensor) -> Demonstrations:
        """Keep these trajectories (indices into the current ones); the data are shared."""
        selected = copy.copy(self)
        selected._choose(self.chosen[trajectories.to(self.chosen.device)])
        return selected

    def split(self, fraction: float, generator: torch.Generator) -> tuple[Demonstrations, Demonstrations]:
        """Hold out a random `fraction` of the trajectories (at least one on either side): (the rest, the held out).

        Neighbouring states are nearly copies, hence whole trajectories. Raises ValueError for fewer than 2.
        """
        count = self.num_trajectories
        if count < 2 or not 0.0 < fraction < 1.0:
            raise ValueError(f"cannot hold out {fraction} of {count} trajectories: it takes two, and a share in (0, 1)")
        held = min(max(round(fraction * count), 1), count - 1)
        order = torch.randperm(count, generator=generator, device=generator.device)
        return self.select(order[held:].sort().values), self.select(order[:held].sort().values)

    def share(self, number: int, count: int) -> Demonstrations:
        """Draw from every `count`-th transition only, from the one `number` on, and as many for each number.

        Raises ValueError for fewer transitions than shares.
        """
        if (each := len(self.rows) // count) == 0:
            raise ValueError(f"{len(self.rows)} transitions cannot be shared by {count} ranks: start fewer of them")
        shared = copy.copy(self)
        shared.rows = self.rows if count == 1 else self.rows[number::count][:each]
        return shared

    # ------------------------------------------------------------------ drawing

    def sample(self, batch_size: int, generator: torch.Generator, *, next_obs: bool = True) -> TensorDict:
        """Transitions `[batch_size]`, drawn independently with replacement."""
        return self.gather(self.rows[self._draw_places(batch_size, generator)], next_obs=next_obs)

    def sequences(self, length: int, batch_size: int, generator: torch.Generator) -> TensorDict:
        """Windows `[length, batch_size]` of consecutive transitions, without `next_obs`.

        A window starts anywhere and continues into the next trajectory. `is_first` is true there and in row 0, so that
        a recurrent policy starts from its initial state. Raises ValueError with a `step_stride`.
        """
        if self.step_stride != 1:
            raise ValueError("sequences need every step: leave step_stride at 1 for a policy with a memory")
        start = self._draw_places(batch_size, generator)  # [B]
        places = start + torch.arange(length, device=start.device).unsqueeze(-1)  # [T, B]
        drawn = self.gather(self.rows[places % len(self.rows)], next_obs=False)
        drawn["is_first"][0] = True
        return drawn

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Rows of every transition once, shuffled, `[batch_size]` each (the last one may be shorter)."""
        order = torch.randperm(len(self.rows), generator=generator, device=generator.device)
        return (self.rows[places] for places in order.to(self.rows.device).split(batch_size))

    def gather(self, rows: Tensor, *, next_obs: bool = True) -> TensorDict:
        """The transitions of `rows` (any shape), on the device."""
        flat = rows.reshape(-1)
        trajectory = self.trajectory[flat]
        here = flat + trajectory  # each earlier trajectory has one more row
        drawn = self.signals[flat]
        drawn["obs"] = self.observations[here]
        if next_obs:
            drawn["next_obs"] = self.observations[here + 1]
        drawn["is_first"] = self.starts[trajectory] == flat
        drawn = drawn.to(self.device)
        if self.action_map is not None:
            drawn["action"] = self.action_map.inverse(drawn["executed_action"])
        return drawn.reshape(rows.shape)

    def _draw_places(self, count: int, generator: torch.Generator) -> Tensor:
        """Places in `rows`, `[count]`."""
        drawn = torch.randint(len(self.rows), (count,), generator=generator, device=generator.device)
        return drawn.to(self.rows.device)

    def _choose(self, chosen: Tensor) -> None:
        """Draw from every `step_stride`-th transition of the trajectories `chosen` `[C]`, in their order."""
        starts, lengths = self.starts[chosen], self.lengths[chosen]
        kept = (lengths + self.step_stride - 1) // self.step_stride
        first = torch.repeat_interleave(first_rows(kept), kept)
        step = torch.arange(len(first), device=first.device) - first
        self.chosen = chosen
        self.rows = torch.repeat_interleave(starts, kept) + step * self.step_stride  # [R], the transitions to draw from
