"""A robot for motion clips: names, order and ranges of its joints, and where its bodies are (forward kinematics).

MuJoCo reads the model (MJCF or URDF) and computes the kinematics. Meshes play no role, nor do joints that are neither
hinges nor slides; a model whose root is bolted to the world is let loose.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from understudy.core.borders import parsing
from understudy.core.check import nearest
from understudy.core.extras import require
from understudy.data.motions.fields import Array, conjugate, rotate


class Bodies(NamedTuple):
    """Frames of all bodies in the world, over time."""

    pos: Array  # [F, B, 3] m
    quat: Array  # [F, B, 4] w, x, y, z
    vel: Array  # [F, B, 3] m/s, of the body's origin
    ang_vel: Array  # [F, B, 3] rad/s


class Robot:
    """Joints and bodies of a robot in the order of its model, depth first.

    `source` is the path of an MJCF or URDF file, or the name of a robot of mjlab's (`unitree_g1`). Raises ValueError
    for a file that MuJoCo cannot read, or without joints, and ImportError without MuJoCo.
    """

    def __init__(self, source: str | Path) -> None:
        require("a robot", "mujoco", extra="mujoco")
        import mujoco

        self.path = _find(str(source))
        self.name = self.path.stem
        try:
            self.model = _bones(mujoco.MjSpec.from_file(str(self.path))).compile()
        except ValueError as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.path} is not a model for MuJoCo ({said}): name MJCF or URDF") from error
        model, kinds = self.model, mujoco.mjtJoint
        hinge, slide, loose = (int(x) for x in (kinds.mjJNT_HINGE, kinds.mjJNT_SLIDE, kinds.mjJNT_FREE))
        moving = [i for i in range(model.njnt) if model.jnt_type[i] in (hinge, slide)]
        self.joints = tuple(model.joint(i).name for i in moving)
        if not self.joints or model.nbody < 2 or model.jnt_type[0] != loose:
            raise ValueError(f"{self.path} has no root that moves freely with joints after it: name a robot's model")
        self.bodies = tuple(model.body(i).name for i in range(1, model.nbody))
        self.hinges = tuple(model.jnt_type[i] == hinge for i in moving)
        limited = model.jnt_limited[moving].astype(bool)[:, None]
        self.ranges: Array = np.where(limited, model.jnt_range[moving], (-np.inf, np.inf))  # [J, 2]
        self.axes: Array = model.jnt_axis[moving]  # [J, 3]
        self.body_of = tuple(int(model.jnt_bodyid[i]) - 1 for i in moving)
        self._qpos, self._qvel = model.jnt_qposadr[moving], model.jnt_dofadr[moving]

    @cached_property
    def breadth_first(self) -> tuple[str, ...]:
        """The joints in Isaac's order: level by level of the tree, in a level as their parents come."""
        return tuple(joint for body in self._levels() for joint, own in zip(self.joints, self.body_of) if own == body)

    @cached_property
    def breadth_first_bodies(self) -> tuple[str, ...]:
        """The bodies in Isaac's order."""
        return tuple(self.bodies[body] for body in self._levels())

    def _levels(self) -> list[int]:
        parents, order = self.model.body_parentid[1:] - 1, [0]
        for body in order:  # grows while it is walked through
            order += [child for child, parent in enumerate(parents) if parent == body]
        return order

    def places(self, joints: Sequence[str], whose: str) -> list[int]:
        """Where the joints stand in the robot. Raises ValueError for one that it lacks."""
        known = {name: i for i, name in enumerate(self.joints)}
        if missing := [name for name in joints if name not in known]:
            raise ValueError(
                f"the robot {self.name} has no joint {missing[0]!r}, which {whose} has "
                f"({len(missing) - 1} more are missing); {nearest(missing[0], known)}"
            )
        return [known[name] for name in joints]

    def qpos(self, root_pos: Array, root_quat: Array, joint_pos: Array) -> Array:
        """MuJoCo's coordinates `[F, nq]` of F frames."""
        qpos: Array = np.tile(self.model.qpos0, (len(root_pos), 1))
        qpos[:, :3], qpos[:, 3:7], qpos[:, self._qpos] = root_pos, root_quat, joint_pos
        return qpos

    def scene(self) -> Any:
        """MuJoCo's model with its looks, on a floor, drawn fast. Raises ValueError where its meshes are missing."""
        import mujoco

        with parsing(self.path, "a picture needs the meshes that the model names"):
            spec = free(mujoco.MjSpec.from_file(str(self.path)))
            floor = spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[50.0, 50.0, 1.0])
            floor.pos, floor.rgba = [0.0, 0.0, -1e-3], [0.5, 0.55, 0.6, 1.0]
            model = spec.compile()
        model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.4, 0.6
        model.light_castshadow[:] = 0  # shadows and multisampling take most of the time where there is no GPU
        model.vis.quality.offsamples = 0
        return model

    def kinematics(
        self, root_pos: Array, root_quat: Array, joint_pos: Array, velocities: tuple[Array, Array, Array] | None = None
    ) -> Bodies:
        """Bodies of F frames: root `[F, 3]` (m), `[F, 4]` (w, x, y, z), joints `[F, J]` in the robot's order.

        `velocities`: of the root in the world `[F, 3]` (m/s), angular `[F, 3]` (rad/s), of the joints `[F, J]`; without
        them the robot stands still.
        """
        import mujoco

        model, data, F = self.model, mujoco.MjData(self.model), len(root_pos)
        qpos, qvel = self.qpos(root_pos, root_quat, joint_pos), np.zeros((F, model.nv))
        if velocities is not None:
            # a free joint's angular velocity is seen from its own frame
            qvel[:, :3], qvel[:, 3:6] = velocities[0], rotate(conjugate(root_quat), velocities[1])
            qvel[:, self._qvel] = velocities[2]
        B = model.nbody
        pos, quat, spatial, centre = (np.empty((F, B, size)) for size in (3, 4, 6, 3))
        for frame in range(F):
            data.qpos[:], data.qvel[:] = qpos[frame], qvel[frame]
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_comVel(model, data)
            pos[frame], quat[frame] = data.xpos, data.xquat
            spatial[frame], centre[frame] = data.cvel, data.subtree_com[model.body_rootid]
        # MuJoCo's spatial velocities are those at the centre of mass of the whole tree
        vel = spatial[..., 3:] + np.cross(spatial[..., :3], pos - centre)
        return Bodies(pos[:, 1:], quat[:, 1:], vel[:, 1:], spatial[:, 1:, :3])


def _find(source: str) -> Path:
    """The model's file. Raises ValueError where there is none."""
    if Path(source).is_file():
        return Path(source)
    zoo = importlib.util.find_spec("mjlab")
    files = sorted(Path(str(zoo.origin)).parent.glob("asset_zoo/robots/*/xmls/*.xml")) if zoo else []
    names = {file.parts[-3]: file for file in files}
    if source in names:
        return names[source]
    raise ValueError(
        f"there is no robot {source!r}: name an MJCF or URDF file"
        + (
            f", or a robot of mjlab's; {nearest(source, names)}"
            if names
            else " (names are those of mjlab, if installed)"
        )
    )


def _bones(spec: Any) -> Any:
    """The model without what has no say in kinematics, its root free."""
    for kind in (
        spec.geoms, spec.sites, spec.meshes, spec.hfields, spec.skins, spec.materials, spec.textures, spec.sensors,
        spec.actuators, spec.tendons, spec.equalities, spec.excludes, spec.pairs, spec.tuples, spec.keys, spec.cameras,
        spec.lights,
    ):  # fmt: skip
        for element in list(kind):
            spec.delete(element)
    spec.compiler.boundmass, spec.compiler.boundinertia = 1e-3, 1e-6  # a body without geoms may be without mass
    return free(spec)


def free(spec: Any) -> Any:
    """The model with a root that moves freely, as URDF's and some MJCF's do not."""
    spec.compiler.fusestatic = False  # of URDF: links without a joint of their own keep their names
    roots = spec.worldbody.bodies
    if len(roots) == 1 and not list(roots[0].joints):
        roots[0].add_freejoint()
    return spec
