"""mjlab (MuJoCo Warp): `mjlab:TASK`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from understudy.envs.simulators import Built, Order, set_options

os.environ.setdefault("MJLAB_WARP_QUIET", "1")  # Warp has a line for each of its hundred kernels

import mjlab.tasks  # noqa: F401  # registers them
from mjlab.envs import ManagerBasedRlEnv
from mjlab.rl import RslRlVecEnvWrapper
from mjlab.tasks import registry

logger = logging.getLogger(__name__)


def tasks() -> Sequence[str]:
    """Names of all tasks that are registered."""
    found: Sequence[str] = registry.list_tasks()
    return found


def numbers(task: str) -> Any:
    """The task's configuration of rsl_rl's runner."""
    return registry.load_rl_cfg(task)


def metadata(env: Any) -> dict[str, Any]:
    """The robot's contract as mjlab's own exporter has it; empty for a task that commands no joint positions.

    With it come `step_dt`, and for another simulator `physics_dt`, `joint_armature`, `joint_effort_limit` and
    `default_root_pos`.
    """
    if "joint_pos" not in env.action_manager.active_terms or "robot" not in env.scene.entities:
        return {}
    from mjlab.rl.exporter_utils import get_base_metadata

    told: dict[str, Any] = get_base_metadata(env, "")
    del told["run_path"]
    robot, model = env.scene["robot"], env.sim.mj_model
    joints = [model.joint(f"robot/{name}") for name in robot.joint_names]
    limits = {model.joint(model.actuator_trnid[i, 0]).name: model.actuator_forcerange[i, 1] for i in range(model.nu)}
    return told | {
        "step_dt": env.step_dt,
        "physics_dt": env.physics_dt,
        "joint_armature": [float(model.dof_armature[joint.dofadr[0]]) for joint in joints],
        "joint_effort_limit": [float(limits[joint.name]) for joint in joints if joint.name in limits],
        "default_root_pos": robot.data.default_root_state[0, :3].tolist(),
    }


def build(order: Order) -> Built:
    """The task's training environment, wrapped as its runner has it."""
    cfg = registry.load_env_cfg(order.task)
    cfg.scene.num_envs, cfg.seed = order.num_envs, order.seed
    # without a GPU a picture takes seconds with them
    cfg.viewer.enable_shadows = cfg.viewer.enable_reflections = order.device.type != "cpu"
    set_options(cfg, order.options, f"mjlab:{order.task}")
    if order.max_episode_steps is not None:
        cfg.episode_length_s = order.max_episode_steps * cfg.sim.mujoco.timestep * cfg.decimation
    logger.info("mjlab compiles its kernels where it has not yet: about a minute, once per machine")
    env = ManagerBasedRlEnv(cfg, device=str(order.device), render_mode="rgb_array" if order.render else None)
    return Built(RslRlVecEnvWrapper(env, clip_actions=registry.load_rl_cfg(order.task).clip_actions))
