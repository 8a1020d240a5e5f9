"""Options of reading motion files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from understudy.core.check import Config, In

QuaternionOrder = Literal["wxyz", "xyzw"]

MotionFormat = Literal[
    "ours", "mjlab", "beyond-mimic", "isaac-lab", "loco-mujoco", "lafan1", "gmr", "amp-rsl-rl", "mimickit", "motion-lib"
]
"""Formats that are written."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions(Config):
    """What motion files leave unsaid."""

    text_fields: tuple[str, ...] = ()
    """Names of the columns of JSON text without names."""
    quaternion_order: QuaternionOrder | None = None
    """Of files whose quaternions have no names; None: what the format usually writes (Isaac Lab: xyzw since 2026)."""
    robot: str = ""
    """Model whose joints a file without names holds, and which clips are checked against: path of an MJCF or URDF
    file, or the name of a robot of mjlab's."""
    joints: tuple[str, ...] = ()
    """Names of the joints, in the order of files that have none; the robot's, unless given."""
    joint_order: Literal["depth_first", "breadth_first"] = "depth_first"
    """Order of the robot's joints and bodies in files without names: MuJoCo and mjlab go depth first, Isaac breadth
    first."""
    frame_rate: Annotated[float | None, In(0.0, 1e6, without=(0.0,))] = None
    """Frames per second of files that do not tell; None: 30 for Unitree's .csv."""

    def __post_init__(self) -> None:
        joints = (self.joints,) if isinstance(self.joints, str) else self.joints
        object.__setattr__(self, "joints", tuple(name for part in joints for name in part.split(",")))  # --joints a,b
        super().__post_init__()
