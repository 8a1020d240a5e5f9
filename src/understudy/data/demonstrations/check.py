"""Check that a recording fits an environment's spaces, and copy it once, into memory or a mapped file."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict

from understudy.core.borders import check_unpacked
from understudy.core.sanity import ABSURD, absurd
from understudy.core.spaces import Key, array_dtype, bounds_of, component, component_keys, is_box, unflatten
from understudy.data.demonstrations.read import open_recording
from understudy.data.demonstrations.recording import SIGNALS, Place, Recording, first_rows
from understudy.envs.actions import ActionMap
from understudy.envs.observations import DEFAULT_GROUP, Groups, Segments

logger = logging.getLogger(__name__)

_BLOCK = 1 << 22  # entries checked at a time: a few megabytes
_EDGE = 1e-5  # share of its range by which rounding may push an action out of bounds
_AGAIN = "drop the trajectory from the file, or record it again"


Actions = Literal["executed", "scaled"]


class Loaded(NamedTuple):
    """K trajectories of M transitions."""

    observations: TensorDict  # [M + K], by the environment's keys
    signals: TensorDict  # [M]: executed_action, reward (NaN if unknown), terminated, truncated
    lengths: torch.Tensor  # [K] int64
    metadata: dict[str, Any]
    mapped: bool  # True if the observations lie in a file


def load_trajectories(
    source: str | Path,
    observation_space: spaces.Dict,
    action_space: spaces.Space[Any],
    *,
    keys: Sequence[Key] | None,
    num_trajectories: int | None,
    subset: str,
    only_success: bool,
    file_observations: Sequence[str],
    env_id: str | None,
    groups: Groups | None,
    segments: Segments | None,
    memory_map_above: int,
    actions: Actions,
) -> Loaded:
    """Read, convert and check what `Demonstrations.load` describes; raises as it does."""
    wanted = {
        key: component(observation_space, key) for key in (component_keys(observation_space) if keys is None else keys)
    }
    with open_recording(source) as recording, np.errstate(over="ignore"):  # what float32 cannot hold is found below
        recording = _chosen(recording, subset, num_trajectories, only_success)
        recording = recording.joined(file_observations) if file_observations else recording
        lengths = np.asarray(recording.lengths, dtype=np.int64)
        targets = _match(recording, wanted, groups or {}, segments or {})
        _warn(recording, lengths, env_id)
        if recording.raw_actions and actions == "executed" and is_box(action_space):
            _warn_of_raw_actions(recording, action_space)
        reader = _Reader(recording, lengths)
        reader.check_size(targets)
        mapped = reader.bytes(targets) > memory_map_above
        observations = {target.key: reader.observations(target, mapped) for target in targets}
        signals = reader.signals(action_space, actions)
    tensors = [torch.from_numpy(array) for array in observations.values()]
    return Loaded(
        unflatten(tuple(observations), tensors, [len(tensors[0])]),
        TensorDict({name: torch.from_numpy(array) for name, array in signals.items()}, [int(lengths.sum())]),
        torch.from_numpy(lengths),
        recording.metadata,
        mapped,
    )


class _Target(NamedTuple):
    """One observation component: the environment's key and space, and its place in the file."""

    key: Key
    place: Place
    space: spaces.Space[Any]
    dtype: np.dtype[Any]
    span: slice | None = None  # the entries of a flat vector in the file that are meant; None: all

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.space.shape or ())

    @property
    def name(self) -> str:
        return "/".join(("observations", *self.key)) if self.key[0] not in SIGNALS else self.key[0]


class _Reader:
    """Copies trajectories into one array per key; errors name trajectory, step and key."""

    def __init__(self, recording: Recording, lengths: np.ndarray) -> None:
        self.recording, self.lengths = recording, lengths
        self.starts = first_rows(lengths)
        self.total = int(lengths.sum())

    def bytes(self, targets: Sequence[_Target]) -> int:
        """Size of the observations."""
        rows = self.total + len(self.lengths)
        return sum(rows * math.prod(target.shape) * target.dtype.itemsize for target in targets)

    def check_size(self, targets: Sequence[_Target]) -> None:
        """Raise ValueError where a small file would become large."""
        path = Path(self.recording.source)
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        check_unpacked(path, sum(file.stat().st_size for file in files), self.bytes(targets))

    def observations(self, target: _Target, mapped: bool) -> np.ndarray:
        """One component, `[M + K, ...]`."""
        array = self._allocate((self.total + len(self.lengths), *target.shape), target.dtype, mapped)
        for k, (start, length) in enumerate(zip(self.starts, self.lengths)):
            values = self.recording.read_observations(k, target.place)
            values = values if target.span is None else values[:, target.span]
            array[start + k : start + k + length + 1] = self._fitting(values, (length + 1, *target.shape), target, k)
        self._check(array, target.space, target.name, final_rows=1)
        return array

    def signals(self, action_space: spaces.Space[Any], actions: Actions) -> dict[str, np.ndarray]:
        """Executed actions, rewards and ends, `[M, ...]`."""
        dtype = np.dtype(np.float32 if is_box(action_space) else np.int64)
        number, flag = spaces.Box(-np.inf, np.inf, ()), spaces.Discrete(2)
        targets = {
            "executed_action": _Target(("actions",), (), action_space, dtype),
            "reward": _Target(("rewards",), (), number, np.dtype(np.float32)),
            "terminated": _Target(("terminations",), (), flag, np.dtype(np.bool_)),
            "truncated": _Target(("truncations",), (), flag, np.dtype(np.bool_)),
        }
        arrays = {name: np.zeros((self.total, *target.shape), target.dtype) for name, target in targets.items()}
        arrays["reward"].fill(np.nan)
        for name, target in targets.items():
            if target.name == "actions" or target.name in self.recording.signals:
                for k, (start, length) in enumerate(zip(self.starts, self.lengths)):
                    values = self.recording.read(k, target.name)
                    fitting = self._fitting(values, (length, *target.shape), target, k)
                    arrays[name][start : start + length] = fitting
        if actions == "scaled":
            self._check(arrays["executed_action"], None, "actions")
            arrays["executed_action"] = _scaled(arrays["executed_action"], action_space)
        self._check(arrays["executed_action"], action_space, "actions", bounded=True)
        if "rewards" in self.recording.signals:
            self._check(arrays["reward"], None, "rewards")
        self._end(arrays["terminated"], arrays["truncated"])
        return arrays

    def _fitting(self, values: np.ndarray, shape: tuple[int, ...], target: _Target, trajectory: int) -> np.ndarray:
        """`values` as `shape`; raises ValueError instead of broadcasting, truncating fractions or wrapping around."""
        where = f"{self.recording.source}: trajectory {self.recording.number(trajectory)}: {target.name}"
        if math.prod(shape[1:]) == 1 and values.shape in ((shape[0],), (shape[0], 1)):
            values = values.reshape(shape)
        if values.shape != shape:
            raise ValueError(f"{where} has shape {values.shape}, expected {tuple(map(int, shape))}: {_AGAIN}")
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{where} is of type {values.dtype}: store numbers")
        if values.dtype == target.dtype:
            return values
        if target.dtype.kind == "b":
            if not ((values == 0) | (values == 1)).all():
                raise ValueError(f"{where} holds other numbers than 0 and 1: {_AGAIN}")
        elif values.dtype.kind == "f" and target.dtype.kind != "f":
            raise ValueError(
                f"{where} holds floats, but {target.space} holds {target.dtype}: store numbers as the environment "
                "returns them"
            )
        elif target.dtype.kind in "iu" and values.size:
            limits = np.iinfo(target.dtype)
            if not limits.min <= int(values.min()) <= int(values.max()) <= limits.max:
                raise ValueError(f"{where} holds numbers that {target.dtype} does not: {_AGAIN}")
        return values

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], mapped: bool) -> np.ndarray:
        if not mapped:
            return np.empty(shape, dtype)
        # next to the data, as the system's temporary folder is often memory; the file has no name and cleans up itself
        folder = Path(self.recording.source).parent
        with tempfile.TemporaryFile(dir=folder if os.access(folder, os.W_OK) else None) as file:
            return np.memmap(file, dtype, "w+", shape=shape)

    def _end(self, terminated: np.ndarray, truncated: np.ndarray) -> None:
        """Check that only last steps end an episode; a trajectory without an end was cut off: truncated."""
        last = self.starts + self.lengths - 1
        inner = terminated | truncated
        inner[last] = False
        if inner.any():
            k, step = self._place(int(np.flatnonzero(inner)[0]), 0)
            raise ValueError(
                f"{self.recording.source}: trajectory {k} continues after step {step}, where it ended (terminations or "
                "truncations): cut it there, each trajectory is one episode"
            )
        truncated[last] |= ~terminated[last]

    def _check(
        self,
        array: np.ndarray,
        space: spaces.Space[Any] | None,
        name: str,
        *,
        final_rows: int = 0,
        bounded: bool = False,
    ) -> None:
        """Raise ValueError unless all entries are finite and inside a discrete space (or, if `bounded`, a Box)."""
        # block by block: no second array of that size
        block, absurd_rows = max(1, _BLOCK // max(1, math.prod(array.shape[1:]))), list[int]()
        for first in range(0, len(array), block):
            rows = array[first : first + block]
            wrong, complaint = ~np.isfinite(rows), "is not finite"
            if not wrong.any():
                wrong, complaint = _outside(rows, space, bounded), f"lies outside {space}"
            if not wrong.any() and rows.dtype.kind == "f":
                beyond = absurd(torch.from_numpy(rows).view(len(rows), -1)).numpy()
                wrong, complaint = beyond & bounded, f"is more than {ABSURD:.0e} times its usual size"
                absurd_rows += [first + int(row) for row in np.flatnonzero(beyond.any(1))]
            if wrong.any():
                row = int(np.argwhere(wrong)[0][0])
                k, step = self._place(first + row, final_rows)
                scaled = (
                    ', or set actions to "scaled" ([-1, 1], clipped)' if bounded and array.dtype.kind == "f" else ""
                )
                raise ValueError(
                    f"{self.recording.source}: trajectory {k}, step {step}: {name} is {rows[row].tolist()}, which "
                    f"{complaint}: {_AGAIN}{scaled}"
                )
        if absurd_rows:
            k, step = self._place(absurd_rows[0], final_rows)
            logger.warning(
                "%s: trajectory %d, step %d: %s holds %.3g, more than %.0e times its usual size (%d such steps): "
                "statistics leave them out; %s",
                *(self.recording.source, k, step, name, np.abs(array[absurd_rows[0]]).max(), ABSURD, len(absurd_rows)),
                _AGAIN,
            )

    def _place(self, row: int, final_rows: int) -> tuple[int, int]:
        """Trajectory and step of a row; each trajectory has `final_rows` more rows than transitions."""
        starts = self.starts + final_rows * np.arange(len(self.starts))
        k = int(np.searchsorted(starts, row, side="right")) - 1
        return self.recording.number(k), row - int(starts[k])


def _chosen(recording: Recording, subset: str, wanted: int | None, only_success: bool) -> Recording:
    """The trajectories to take: the first ones of the file or of a list in it, the successful ones among them."""
    source, found = recording.source, len(recording.lengths)
    if not found:
        raise ValueError(f"{source} holds no trajectories: record some first (`understudy record`)")
    if not recording.lengths.all():
        k = int(np.flatnonzero(recording.lengths == 0)[0])
        raise ValueError(f"{source}: trajectory {k} has no steps: drop it from the file")
    kept = recording.subset(subset) if subset else np.arange(found)
    listed = f" in {subset!r}" if subset else ""
    if wanted is not None and not 1 <= wanted <= len(kept):
        raise ValueError(f"{source} has {len(kept)} trajectories{listed}, num_trajectories asks for {wanted}")
    kept = kept[:wanted]
    if only_success:
        if recording.success is None:
            raise ValueError(f"{source} does not tell which trajectories succeeded (only_success): use min_return")
        kept = kept[recording.success[kept]]
    if not len(kept):
        raise ValueError(f"{source} has no {'successful ' if only_success else ''}trajectory{listed}")
    return recording if len(kept) == found else recording.select(kept)


def _match(
    recording: Recording, wanted: Mapping[Key, spaces.Space[Any]], groups: Groups, segments: Segments
) -> list[_Target]:
    """Find each of the environment's components in the file."""
    targets, made_in = [], recording.metadata.get("env") or ""
    places = {"/".join(place): place for place in recording.shapes}  # names may hold a slash
    raw = any(name.split("/")[0] not in groups for name in places)  # as the environment is without groups
    for key, space in wanted.items():
        sizes = segments.get(key[0], {}) if len(key) == 2 else {}
        names = [*_names(key, groups if raw else {})]
        found, span = next((places[name] for name in names if name in places), None), None
        if found is None and len(wanted) == len(places) == 1:  # no doubt about what is meant, whatever it is called
            found = next(iter(places.values()))
        if found is None and key[-1] in sizes:
            names = [*_names(key[:1], groups if raw else {})]
            found = next((places[name] for name in names if name in places), None)
            end = dict(zip(sizes, accumulate(sizes.values())))[key[-1]]
            span = slice(end - sizes[key[-1]], end)
        if found is None:
            has = ", ".join("/".join(place) or "one plain array" for place in recording.shapes)
            raise ValueError(
                f"{recording.source} has no observation {'/'.join(key)!r}: it has {has}. Record it in this environment "
                "with the same observation groups, name its keys in env.groups, or join its vectors (file_observations)"
            )
        target = _Target(key, found, space, array_dtype(space), span)
        expected = target.shape if span is None else (sum(sizes.values()),)
        shape = recording.shapes[found] or ((1,) if expected == (1,) else ())
        if shape != expected:
            raise ValueError(
                f"{recording.source}: observation {'/'.join(key)!r} has shape {shape}, the environment's has "
                f"{expected}: the file{made_in and f' (made in {made_in!r})'} belongs to another task or version"
            )
        targets.append(target)
    return targets


def _names(key: Key, groups: Groups) -> Iterator[str]:
    """Names under which a file may have a component: as the environment calls it without groups, and as with them."""
    members = groups.get(key[0], ())
    for member in (members, *members.split("+")) if isinstance(members, str) else members:
        path = member.replace(".", "/")
        if key[1:] in ((), (path.replace("/", "_"),)):
            yield path
            if member == DEFAULT_GROUP:
                yield ""  # the one name of an observation without names
        yield "/".join((path, *key[1:]))
    yield "/".join(key)
    if key[0] == DEFAULT_GROUP:  # a file without groups holds the policy's
        yield "/".join(key[1:])


def _outside(rows: np.ndarray, space: spaces.Space[Any] | None, bounded: bool) -> np.ndarray:
    """Entries outside the space, as a mask."""
    if space is None or (is_box(space) and not bounded):
        return np.zeros(1, dtype=bool)
    low, high = bounds_of(space)
    if not is_box(space):
        return (rows < low) | (rows > high)
    with np.errstate(invalid="ignore"):  # infinity - infinity where there are no bounds
        slack = np.nan_to_num(_EDGE * (high - low), nan=0.0, posinf=0.0)
    return (rows < low - slack) | (rows > high + slack)


def _scaled(actions: np.ndarray, space: spaces.Space[Any]) -> np.ndarray:
    """Actions in [-1, 1] `[M, *A]`, scaled to the range of a Box; what lies outside is clipped."""
    if not is_box(space):
        raise ValueError(f'actions="scaled" is for a Box, the action space is {space}: leave it at "executed"')
    mapped = ActionMap(space, scaling=True)(torch.from_numpy(actions).flatten(1))
    return mapped.numpy().reshape(actions.shape)


def _warn_of_raw_actions(recording: Recording, space: spaces.Space[Any]) -> None:
    low, high = bounds_of(space)
    if (low != -1.0).any() or (high != 1.0).any():
        logger.warning(
            "%s holds actions as a policy gave them, before they were bounded and scaled; they are taken as executed: "
            'set actions to "scaled" if the policy scaled [-1, 1] to their range (action_scaling)',
            recording.source,
        )


def _warn(recording: Recording, lengths: np.ndarray, env_id: str | None) -> None:
    source, made_in = recording.source, recording.metadata.get("env")
    for remark in recording.remarks:
        logger.warning("%s %s", source, remark)
    single = np.flatnonzero(lengths == 1)
    if len(single):
        logger.warning(
            "%s: %d of %d trajectories have a single step (the first: trajectory %d), a sign of a recorder that counts "
            "resets as steps",
            *(source, len(single), len(lengths), recording.number(single[0])),
        )
    if env_id is not None and made_in is not None and made_in != env_id:
        logger.warning(
            "%s was made in %r, not in %r: the spaces fit, but versions differ in physics and rewards",
            *(source, made_in, env_id),
        )
