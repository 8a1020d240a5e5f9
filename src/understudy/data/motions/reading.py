"""What the readers of all motion formats share: names of joints, orders, the frame rate, columns of fields."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from understudy.data.motions.clip import MotionClip
from understudy.data.motions.options import QuaternionOrder, ReadOptions
from understudy.data.motions.robots import Robot


class Reading:
    """Options of one reading, with the robot that they name and what the format that was found usually does."""

    usual_order: QuaternionOrder = "wxyz"

    def __init__(self, options: ReadOptions) -> None:
        self.options = options
        self.robot = Robot(options.robot) if options.robot else None

    def joints(self, count: int) -> tuple[str, ...]:
        """Names of a file's joint columns. Raises ValueError where nobody tells them, or others than `count`."""
        names, whose = self.options.joints, "joints names"
        if not names and self.robot is not None:
            breadth = self.options.joint_order == "breadth_first"
            names, whose = (
                self.robot.breadth_first if breadth else self.robot.joints,
                f"the robot {self.robot.name} has",
            )
        if not names:
            raise ValueError(
                f"it does not name its {count} joints: name the robot's model (robot), or the joints in order (joints)"
            )
        if len(names) != count:
            raise ValueError(
                f"it has {count} joints without names, and {whose} {len(names)} ({', '.join(names[:3])}, ...): "
                "name the file's joints in order (joints), or its own robot"
            )
        return names

    def bodies(self, count: int) -> tuple[str, ...]:
        """Names of a file's bodies, the root first; only the root where nobody tells the others."""
        if self.robot is None or count != len(self.robot.bodies):
            return ()
        breadth = self.options.joint_order == "breadth_first"
        return self.robot.breadth_first_bodies if breadth else self.robot.bodies

    def wxyz(self, quaternions: np.ndarray) -> np.ndarray:
        """Quaternions `[..., 4]` in the order w, x, y, z."""
        order = self.options.quaternion_order or self.usual_order
        return np.roll(quaternions, 1, axis=-1) if order == "xyzw" else quaternions

    def frame_time(self, data: Mapping[str, Any], name: str, usual: float | None = None) -> float:
        """Seconds between frames from a file's rate (per second). Raises ValueError without a positive one."""
        rate = np.asarray(data.get(name, self.options.frame_rate or usual))
        if rate.dtype.kind not in "iuf" or rate.size != 1:
            told = f"{name} is {str(rate)[:40]}" if name in data else f"it lacks {name}"
            raise ValueError(f"{told}: frames per second are one number; give it as frame_rate where it is missing")
        if not 0.0 < rate.item() < np.inf:
            raise ValueError(f"{name} is {rate.item()}; it must be positive")
        return float(1.0 / rate.item())


class Columns:
    """Fields of a clip and their columns, collected kind by kind."""

    def __init__(self) -> None:
        self.fields: list[str] = []
        self.columns: list[np.ndarray] = []

    def add(self, fields: Iterable[str], values: np.ndarray) -> None:
        """Columns `[F, n]` of n fields."""
        self.fields += fields
        self.columns.append(values)

    def joints(self, joints: Sequence[str], kind: Literal["pos", "vel"], values: np.ndarray) -> None:
        """Angles (rad) or rates (rad/s) `[F, J]`."""
        self.add((f"{joint}_dof_{kind}" for joint in joints), values)

    def links(self, links: Sequence[str], **kinds: np.ndarray) -> None:
        """`pos`, `vel`, `ang_vel` `[F, L, 3]` in the world, `rot` `[F, L, 4]` (w, x, y, z) of L links."""
        for kind, values in kinds.items():
            self.add(
                (name for link in links for name in link_fields(link, kind)),
                values.reshape(len(values), math.prod(values.shape[1:])),
            )

    def root(self, **kinds: np.ndarray) -> None:
        """The same of the root, `[F, 3 or 4]`."""
        self.links(("root",), **kinds)

    def clip(self, name: str, frame_time: float, **options: Any) -> MotionClip:
        """The clip. Raises ValueError where the number of frames differs."""
        lengths = {len(values): field for values, field in zip(self.columns, self.fields)}
        if len(lengths) > 1:
            raise ValueError(f"its arrays have different numbers of frames: {', '.join(map(str, lengths))}")
        frames = np.concatenate(self.columns, axis=1)  # the clip makes them float64, once
        return MotionClip(name=name, fields=tuple(self.fields), frames=frames, frame_time=frame_time, **options)


def link_fields(link: str, kind: str) -> list[str]:
    """Names of a link's fields of one kind, in the world."""
    frame = "" if kind == "rot" or (link, kind) == ("root", "pos") else "_w"
    return [f"{link}_{kind}_{axis}{frame}" for axis in ("wxyz" if kind == "rot" else "xyz")]


def array(data: Mapping[str, Any], name: str, kinds: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """An entry as an array of these kinds of dtype; -1 in `shape` stands for any size, None for a single value."""
    if name not in data:
        raise ValueError(f"it lacks the array {name!r}")
    try:
        found = np.asarray(data[name])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} is not a table of numbers ({error})") from error
    fits = (
        found.ndim == len(shape) and all(w in (-1, n) for w, n in zip(shape, found.shape)) if shape else found.size == 1
    )
    if found.dtype.kind not in kinds or not fits:
        what = {"US": "text", "b": "flags"}.get(kinds, "numbers")
        wanted = f"{what} of shape {shape}".replace("-1", "any") if shape else f"one value, {what}"
        raise ValueError(f"{name} is of type {found.dtype} and shape {found.shape}, expected {wanted}")
    return found


def number(data: Mapping[str, Any], name: str) -> float:
    """An entry that is one number."""
    return float(array(data, name, "iuf").item())


def words(data: Mapping[str, Any], name: str, shape: tuple[int, ...] | None = (-1,)) -> tuple[str, ...]:
    """An entry that is text."""
    texts = array(data, name, "US", shape).flatten().tolist()
    return tuple(text.decode() if isinstance(text, bytes) else text for text in texts)
