"""Reference-state initialisation: episodes of a MuJoCo environment that start in states of motion clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.mujoco import MujocoEnv

from understudy.data.motions.library import MotionLibrary, MotionsConfig

_ROOT_POSITION = (*(f"root_pos_{axis}" for axis in "xyz"), *(f"root_rot_{axis}" for axis in "wxyz"))
_ROOT_VELOCITY = (*(f"root_vel_{axis}_w" for axis in "xyz"), *(f"root_ang_vel_{axis}_b" for axis in "xyz"))


class ReferenceStateInit(gym.Wrapper[Any, Any, Any, Any]):
    """Start episodes in states drawn from clips (Peng et al. 2018, arXiv:1804.02717, sec. 5.3).

    For Gymnasium's MuJoCo environments. `positions` and `velocities` name a field of the clips for each entry of the
    simulation's `qpos` and `qvel`; None keeps the environment's own start. By default they follow from the model's
    joints: `root_pos_x` ... for a free joint, `<joint>_dof_pos` and `<joint>_dof_vel` for any other.
    An episode starts in a clip's state with `probability` p, otherwise as the environment has it. A seeded `reset`
    draws the same state again.

    Raises ValueError for an environment whose state cannot be set or whose observations are wrapped already, for
    names that are too few or too many, and for clips as `MotionLibrary` does.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        motions: MotionsConfig,
        *,
        positions: Sequence[str | None] | None = None,
        velocities: Sequence[str | None] | None = None,
        probability: float = 1.0,
    ) -> None:
        super().__init__(env)
        inner: Any = env.unwrapped
        if not isinstance(inner, MujocoEnv):
            raise ValueError(f"the state of {inner} cannot be set: clips start Gymnasium's MuJoCo environments only")
        if env.observation_space != inner.observation_space:
            raise ValueError("wrap the environment before anything that changes its observations")
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability must lie in [0, 1], got {probability}")
        if not motions.files:
            raise ValueError("name motion files in motions.files")
        self.probability = probability
        fields = {
            "positions": joint_fields(inner.model)[0] if positions is None else tuple(positions),
            "velocities": joint_fields(inner.model)[1] if velocities is None else tuple(velocities),
        }
        for name, size in (("positions", inner.model.nq), ("velocities", inner.model.nv)):
            if len(fields[name]) != size:
                raise ValueError(f"{name} names {len(fields[name])} fields; the model has {size}, None to keep one")
        named = tuple(dict.fromkeys(x for names in fields.values() for x in names if x is not None))
        self.library = MotionLibrary.load(motions, named, float(inner.dt))
        # where in qpos and qvel, and which of the library's columns
        self._places = {name: [k for k, x in enumerate(fields[name]) if x is not None] for name in fields}
        self._columns = {name: [named.index(x) for x in fields[name] if x is not None] for name in fields}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, then move it to a state of the clips; the observation is the new state's."""
        obs, info = self.env.reset(seed=seed, options=options)
        inner: Any = self.unwrapped
        if inner.np_random.random() >= self.probability:
            return obs, info
        generator = torch.Generator().manual_seed(int(inner.np_random.integers(2**62)))
        drawn = self.library.sample_states(1, generator).values[0].double().numpy()
        qpos, qvel = (np.array(x) for x in (inner.data.qpos, inner.data.qvel))
        qpos[self._places["positions"]] = drawn[self._columns["positions"]]
        qvel[self._places["velocities"]] = drawn[self._columns["velocities"]]
        inner.set_state(qpos, qvel)
        return inner._get_obs(), info


def joint_fields(model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The clips' fields for the `qpos` and the `qvel` of a MuJoCo model, from its joints' kinds and names.

    Raises ValueError for a ball joint, which no motion format has.
    """
    positions: list[str] = []
    velocities: list[str] = []
    for k in range(model.njnt):
        joint = model.joint(k)
        kind = int(joint.type[0])  # mjtJoint: 0 free, 1 ball, 2 slide, 3 hinge
        if kind == 1:
            raise ValueError(f"joint {joint.name!r} is a ball: name the fields in positions and velocities")
        positions.extend(_ROOT_POSITION if kind == 0 else [f"{joint.name}_dof_pos"])
        velocities.extend(_ROOT_VELOCITY if kind == 0 else [f"{joint.name}_dof_vel"])
    return tuple(positions), tuple(velocities)
