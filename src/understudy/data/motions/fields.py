"""Read the kind of a motion field off its name: derive it from other fields, mirror it.

    root_pos_x            position in the world (m)         <link>_pos_x_w, <link>_pos_x_b   in the world / root frame
    root_rot_w .. _z      orientation, unit quaternion      <link>_rot_w .. _z
    root_vel_x_w, _b      velocity (m/s)                    <link>_vel_x_w, <link>_vel_x_b
    root_ang_vel_x_w, _b  angular velocity (rad/s)          <link>_ang_vel_x_w
    <joint>_dof_pos       joint angle (rad)                 <joint>_dof_vel (rad/s)

`_w` is the world frame, `_b` the root's own; quaternions (w, x, y, z) turn the root's axes into the world's.
Fields of other names are numbers that are only interpolated linearly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from understudy.core.check import Config, nearest

Array = NDArray[np.float64]

_AXES = ("x", "y", "z")
_VECTOR = re.compile(r"(?P<link>.+?)_(?P<kind>ang_vel|pos|vel)_(?P<axis>[xyz])(?:_(?P<frame>[wb]))?")
_ROTATION = re.compile(r"(?P<link>.+?)_rot_(?P<axis>[wxyz])")
_JOINT = re.compile(r"(?P<joint>.+)_dof_(?P<kind>pos|vel)")


# ---------------------------------------------------------------------------------------------------- rotations


def multiply(a: Array, b: Array) -> Array:
    """Product `a b` of quaternions `[..., 4]` (w, x, y, z): first b's rotation, then a's."""
    scalar = a[..., :1] * b[..., :1] - (a[..., 1:] * b[..., 1:]).sum(-1, keepdims=True)
    vector = a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:] + np.cross(a[..., 1:], b[..., 1:])
    return np.concatenate((scalar, vector), axis=-1)


def rotate(q: Array, v: Array) -> Array:
    """Vectors `[..., 3]` turned by unit quaternions `[..., 4]`: v + 2 w (u x v) + 2 u x (u x v)."""
    turned = np.cross(q[..., 1:], v)
    return v + 2.0 * (q[..., :1] * turned + np.cross(q[..., 1:], turned))


def conjugate(q: Array) -> Array:
    """The inverse rotations of unit quaternions `[..., 4]`."""
    return q * np.array([1.0, -1.0, -1.0, -1.0])


def slerp(a: Array, b: Array, share: Array) -> Array:
    """Unit quaternions `[n, 4]` on the shorter arc from a (share 0) to b (share 1), `share` `[n]` (Shoemake 1985).

    sin((1 - s) o) / sin(o) a + sin(s o) / sin(o) b with cos(o) = a . b; where the arc is tiny, the chord.
    """
    cosine = (a * b).sum(-1)
    b = np.where(cosine < 0.0, -1.0, 1.0)[:, None] * b
    angle = np.arccos(np.clip(np.abs(cosine), 0.0, 1.0))
    sine = np.sin(angle)
    tiny = sine < 1e-6
    safe = np.where(tiny, 1.0, sine)
    from_a = np.where(tiny, 1.0 - share, np.sin((1.0 - share) * angle) / safe)
    from_b = np.where(tiny, share, np.sin(share * angle) / safe)
    q = from_a[:, None] * a + from_b[:, None] * b
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


def angular_velocity(q: Array, frame_time: float, turn: Array | None = None) -> Array:
    """World angular velocity `[F, 3]` (rad/s) of unit quaternions `[F, 4]`: central differences, one-sided at the ends.

    w_i = 2 log(q_(i+1) q_(i-1)^-1) / (2 dt), log(cos a, sin a n) = a n on the shorter arc. In a motion that goes round,
    whose last frame is the first of the next cycle, `turn` `[4]` is the rotation of a cycle, and no end is one-sided.
    """
    before, after = np.arange(len(q)) - 1, np.arange(len(q)) + 1
    before[0], after[-1] = 0, len(q) - 1
    step = multiply(q[after], conjugate(q[before]))
    if turn is not None:
        back = conjugate(turn)
        first, last = step[0].copy(), step[-1].copy()
        step[0] = multiply(first, multiply(multiply(back, last), turn))
        step[-1] = multiply(multiply(multiply(turn, first), back), last)
        before[0], after[-1] = -1, len(q)
    step = np.where(step[:, :1] < 0.0, -step, step)
    length = np.linalg.norm(step[:, 1:], axis=-1)
    # 2 a / sin(a) tends to 2 where nothing turns
    factor = np.where(length < 1e-9, 2.0, 2.0 * np.arctan2(length, step[:, 0]) / np.maximum(length, 1e-9))
    return factor[:, None] * step[:, 1:] / ((after - before) * frame_time)[:, None]


def quaternion_columns(fields: Sequence[str]) -> dict[str, list[int]]:
    """Link -> columns of its quaternion (w, x, y, z). Raises ValueError where one of the four is missing."""
    places = {name: i for i, name in enumerate(fields)}
    links = dict.fromkeys(match["link"] for name in fields if (match := _ROTATION.fullmatch(name)))
    found = {}
    for link in links:
        names = [f"{link}_rot_{axis}" for axis in "wxyz"]
        missing = [name for name in names if name not in places]
        if missing:
            raise ValueError(f"the quaternion of {link!r} lacks {', '.join(missing)}: name all of {', '.join(names)}")
        found[link] = [places[name] for name in names]
    return found


# --------------------------------------------------------------------------------------------------- derivation


class FieldTable:
    """Fields of one clip by name; missing fields are derived from the file's by finite differences.

    Joint velocities come from joint angles, linear velocities from positions, angular velocities from quaternions; the
    root's quaternion turns vectors between world and root frame. For links other than the root, `<link>_vel_x_b` is the
    rate of the position in the root frame. In a clip that `wraps` the last frame is the first of the next cycle, which
    `turns` the root where each cycle does, and differences go on across the seam.
    """

    def __init__(
        self,
        clip: str,
        fields: Sequence[str],
        frames: Array,
        frame_time: float,
        *,
        wraps: bool = False,
        turns: bool = False,
    ) -> None:
        self.clip, self.fields, self.frame_time, self.wraps = clip, tuple(fields), frame_time, wraps
        self.columns: dict[str, Array] = {name: frames[:, i] for i, name in enumerate(fields)}
        q = self._quaternion("root") if turns else None
        self.turn = np.array([1.0, 0.0, 0.0, 0.0]) if q is None else multiply(q[-1], conjugate(q[0]))  # of a cycle

    def select(self, names: Sequence[str]) -> Array:
        """Columns `[F, len(names)]`. Raises ValueError, with the nearest names, for one that cannot be derived."""
        return np.stack([self[name] for name in names], axis=-1)

    def __getitem__(self, name: str) -> Array:
        """One field `[F]`."""
        if name not in self.columns and not self._derive(name):
            raise ValueError(
                f"clip {self.clip!r} has no field {name!r} and nothing to derive it from; {nearest(name, self.fields)}"
            )
        return self.columns[name]

    def _derive(self, name: str) -> bool:
        """Add `name` (for a vector: all three axes) to the columns if its sources exist; True on success."""
        if (match := _JOINT.fullmatch(name)) and match["kind"] == "vel":
            source = f"{match['joint']}_dof_pos"
            if source in self.columns:
                self.columns[name] = self._rate(self.columns[source])
                return True
        if not (match := _VECTOR.fullmatch(name)):
            return False
        link, kind, frame = match["link"], match["kind"], match["frame"]
        vector = self._vector(link, kind, frame)
        if vector is None:
            return False
        for axis, own in enumerate(_names(link, kind, frame)):
            self.columns.setdefault(own, vector[:, axis])
        return True

    def _vector(self, link: str, kind: str, frame: str | None) -> Array | None:
        """A vector `[F, 3]` of a link, from the file or derived; None without sources."""
        names = _names(link, kind, frame)
        if all(name in self.columns for name in names):
            return np.stack([self.columns[name] for name in names], axis=-1)
        if kind == "pos":
            return self._position_in_root(link) if frame == "b" and link != "root" else None
        if frame == "b" and kind == "vel" and link != "root":
            position = self._vector(link, "pos", "b")
            return None if position is None else self._rate(position)
        if frame == "b":
            return self._turned(self._vector(link, kind, "w"), to_root=True)
        if frame == "w":
            own = _names(link, kind, "b")
            if link == "root" and all(name in self.columns for name in own):
                return self._turned(self._vector(link, kind, "b"), to_root=False)
            return self._rate_in_world(link, kind)
        return None

    def _rate_in_world(self, link: str, kind: str) -> Array | None:
        if kind == "ang_vel":
            q = self._quaternion(link)
            return None if q is None else angular_velocity(q, self.frame_time, self.turn if self.wraps else None)
        position = self._vector(link, "pos", None if link == "root" else "w")
        return None if position is None else self._rate(position, self.turn)

    def _position_in_root(self, link: str) -> Array | None:
        position, root = self._vector(link, "pos", "w"), self._vector("root", "pos", None)
        return None if position is None or root is None else self._turned(position - root, to_root=True)

    def _turned(self, vector: Array | None, to_root: bool) -> Array | None:
        q = self._quaternion("root")
        if q is None or vector is None:
            return None
        return rotate(conjugate(q) if to_root else q, vector)

    def _quaternion(self, link: str) -> Array | None:
        names = [f"{link}_rot_{axis}" for axis in "wxyz"]
        return np.stack([self.columns[n] for n in names], axis=-1) if names[0] in self.columns else None

    def _rate(self, x: Array, turn: Array | None = None) -> Array:
        """Central differences of `x` `[F, ...]`; `turn` `[4]` is what a cycle adds to the axes of its vectors."""
        rate: Array = np.gradient(x, self.frame_time, axis=0, edge_order=2 if len(x) > 2 else 1)
        if self.wraps:
            first, last = x[1] - x[0], x[-1] - x[-2]
            before, after = (last, first) if turn is None else (rotate(conjugate(turn), last), rotate(turn, first))
            rate[0], rate[-1] = (before + first) / (2 * self.frame_time), (last + after) / (2 * self.frame_time)
        return rate


def _names(link: str, kind: str, frame: str | None) -> list[str]:
    return [f"{link}_{kind}_{axis}" + (f"_{frame}" if frame else "") for axis in _AXES]


def links_in(fields: Iterable[str]) -> set[str]:
    """Links whose position, rotation or velocity the fields hold, the root among them."""
    return {m["link"] for name in fields if (m := _VECTOR.fullmatch(name) or _ROTATION.fullmatch(name))}


def depends_on_heading(fields: Iterable[str]) -> bool:
    """True if one of the fields changes when the whole motion turns about the vertical."""
    for name in fields:
        match = _VECTOR.fullmatch(name)
        if _ROTATION.fullmatch(name) or (match and match["frame"] != "b" and match["axis"] != "z"):
            return True
    return False


# ------------------------------------------------------------------------------------------------------- mirror


@dataclass(frozen=True, kw_only=True)
class MirrorRule(Config):
    """Names that change under the reflection at the plane of the x and z axes, which swaps left and right."""

    swap: dict[str, str] = field(default_factory=dict)
    """Parts of names to swap: {"FL_": "FR_", "RL_": "RR_"}, {"left": "right"}."""
    flip: tuple[str, ...] = ()
    """Parts of joint names whose angle changes sign: abduction, roll, yaw."""


def mirror_table(fields: Sequence[str], rule: MirrorRule) -> tuple[NDArray[np.int64], Array]:
    """Columns and signs `[D]` such that `sign * frames[:, columns]` is the mirrored motion.

    Reflection turns (x, y, z) into (x, -y, z), an angular velocity or the vector of a quaternion into (-x, y, -z).
    Raises ValueError for a field without its partner, and for a name that does not tell its mirror image.
    """
    places = {name: i for i, name in enumerate(fields)}
    columns, signs = [], []
    for name in fields:
        partner = _partner(name, rule.swap)
        if partner not in places:
            raise ValueError(f"the mirror image of {name!r} is {partner!r}, missing among the fields: name it too")
        columns.append(places[partner])
        signs.append(_mirror_sign(name, rule.flip))
    return np.array(columns), np.array(signs)


def _partner(name: str, swap: Mapping[str, str]) -> str:
    for left, right in swap.items():
        if left in name:
            return name.replace(left, right)
        if right in name:
            return name.replace(right, left)
    return name


def _mirror_sign(name: str, flip: Sequence[str]) -> float:
    if match := _JOINT.fullmatch(name):
        return -1.0 if any(part in match["joint"] for part in flip) else 1.0
    if match := _ROTATION.fullmatch(name):
        return -1.0 if match["axis"] in "xz" else 1.0
    if match := _VECTOR.fullmatch(name):
        return -1.0 if match["axis"] in ("xz" if match["kind"] == "ang_vel" else "y") else 1.0
    raise ValueError(f"the name {name!r} does not tell its mirror image: leave the field or the mirror out")
