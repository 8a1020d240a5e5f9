"""Files with one long array per signal: ours, D4RL's, those of `imitation`, Tianshou and Stable-Baselines2."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from understudy.core.check import fit
from understudy.data.demonstrations.formats import unknown
from understudy.data.demonstrations.recording import SIGNALS, Place, Recording, first_rows

FORMAT_VERSION = 1
"""Version of our `.npz` layout; goes up by one whenever a reader of the old layout would misunderstand the new one."""

_NAMES: dict[str, tuple[str, ...]] = {  # ours (and Minari's) first, then D4RL's, then other common names
    "observations": ("observations", "obs"),
    "next_observations": ("next_observations", "next_obs"),
    "actions": ("actions", "acts"),
    "rewards": ("rewards", "rews"),
    "terminations": ("terminations", "terminals", "terminated"),
    "truncations": ("truncations", "timeouts", "truncated"),
    "dones": ("dones", "done"),  # either of both
    "starts": ("episode_starts",),  # first steps (Stable-Baselines2)
    "indices": ("indices",),  # numbers of the first steps, without the very first one (imitation)
    "terminal": ("terminal",),  # of each trajectory (imitation): the task ended
    "lengths": ("lengths",),
}
_ENDS = ("lengths", "indices", "terminations", "dones", "starts", "truncations")
_BLOCK = 1 << 22  # entries compared at a time
_CLOSE = 1e-4  # relative: what is stored twice may be rounded differently

Columns = Mapping[str, Mapping[Place, Any]]
"""Arrays by our names, and by the place under them."""


def flat(
    source: str, names: Collection[str], get: Callable[[str], Any], metadata: dict[str, Any], cuts: Sequence[int] = ()
) -> Recording:
    """One long array per signal, cut into trajectories where the file marks ends, and where its observations jump.

    `names` are those of the file's arrays, of which `get` opens one (numpy's, h5py's). `cuts` are rows that are the
    last of a trajectory, marked or not.
    """
    columns = {name: _under(names, get, aliases) for name, aliases in _NAMES.items()}
    observations, following = columns["observations"], columns["next_observations"]
    signals = {name: columns[name][()] for name in SIGNALS if () in columns[name]}
    _check_names(source, names, columns, metadata)
    total = _rows(signals["actions"])
    for name, array in signals.items():
        if _rows(array) != total:
            raise ValueError(f"{source} has {total} actions but {_rows(array)} {name}: it is damaged, record it again")
    ends, remarks = _ends(source, columns, total)
    ends = np.union1d(ends, np.asarray(cuts, np.int64))
    counts = {_rows(array) for array in observations.values()}
    if counts == {total} and following:
        jumps = np.setdiff1d(_jumps(source, observations, following, total), ends)
        if len(jumps):
            remarks.append(
                f"marks no end in {len(jumps)} places (the first: step {jumps[0]}) where next_observations differ from "
                "the observations that follow: trajectories are cut there"
            )
            ends = np.union1d(ends, jumps)
    lengths = np.diff(ends, prepend=-1).astype(np.int64)
    with_final = counts == {total + len(lengths)}
    if not with_final and counts != {total}:
        raise ValueError(
            f"{source} has {total} actions in {len(lengths)} trajectories, but {sorted(counts)} observations: expected "
            f"{total + len(lengths)} (with final observations) or {total} (without)"
        )
    if not with_final and not following:
        remarks.append("has no final observations (next_observations): the last one of each trajectory stands in")
    if "terminations" not in signals:
        signals |= _terminations(source, columns, ends, total)
    starts = first_rows(lengths)

    def read(trajectory: int, name: str) -> np.ndarray:
        start = int(starts[trajectory])
        return np.asarray(signals[name][start : start + int(lengths[trajectory])])

    def read_observations(trajectory: int, place: Place) -> np.ndarray:
        start, array = int(starts[trajectory]), observations[place]
        end = start + int(lengths[trajectory])
        if with_final:  # each earlier trajectory has one row more than it has transitions
            return np.asarray(array[start + trajectory : end + trajectory + 1])
        rows = array[start:end]
        return np.concatenate((rows, following[place][end - 1 : end] if place in following else rows[-1:]))

    return Recording(
        source=source,
        lengths=lengths,
        shapes={place: tuple(array.shape[1:]) for place, array in observations.items()},
        metadata=metadata,
        signals=set(signals),
        read=read,
        read_observations=read_observations,
        remarks=remarks,
    )


def _under(names: Collection[str], get: Callable[[str], Any], aliases: tuple[str, ...]) -> dict[Place, Any]:
    """Arrays called `alias` or `alias/...`, keyed by the rest of the path; the first of the aliases that exists."""
    for alias in aliases:
        full = [name for name in names if name == alias or name.startswith(f"{alias}/")]
        if full:
            return {tuple(name.split("/")[1:]): get(name) for name in full}
    return {}


def _check_names(source: str, names: Collection[str], columns: Columns, metadata: Mapping[str, Any]) -> None:
    """Raise ValueError unless there is what any file needs, and in one of ours all that we write."""
    if not any(columns.values()):
        raise unknown(source, names)
    needed = ["observations", "actions"]
    if "format_version" in metadata:
        version = fit(int, metadata["format_version"], f"{source}: format_version")
        if version > FORMAT_VERSION:
            raise ValueError(f"{source} has format {version}, this version reads up to {FORMAT_VERSION}: update it")
        needed += ["rewards", "terminations", "truncations", "lengths"]
    for name in needed:
        if not columns[name]:
            known = "; ".join(" or ".join(aliases) for aliases in _NAMES.values())
            held = ", ".join(sorted(names)[:20]) or "nothing"
            raise ValueError(f"{source} has no {name}: it holds {held}. Accepted names: {known}")


def _rows(array: Any) -> int:
    return int(array.shape[0]) if array.shape else -1


# ------------------------------------------------------------------------------------------------ where it ends


def _ends(source: str, columns: Columns, total: int) -> tuple[np.ndarray, list[str]]:
    """The last row of each trajectory `[K]` as the file marks it, and remarks on what it leaves open."""
    marked = next((name for name in _ENDS if () in columns[name]), None)
    if marked is None and not columns["next_observations"]:
        known = ", ".join(alias for name in _ENDS for alias in _NAMES[name])
        raise ValueError(
            f"{source} has neither lengths nor terminations: add one of {known}, to mark where trajectories end"
        )
    if marked == "lengths":
        lengths = _numbers(source, columns, "lengths", total)
        if lengths.sum() != total:
            raise ValueError(f"{source}: lengths add up to {lengths.sum()}, but there are {total} actions")
        return np.cumsum(lengths) - 1, []
    if marked == "indices":
        ends = np.append(_numbers(source, columns, "indices", total), total) - 1
        if (np.diff(ends) < 1).any():
            raise ValueError(f"{source}: indices do not rise: they are the first steps of the trajectories")
        return ends[ends >= 0], []
    if marked == "starts":
        ends = np.flatnonzero(_flags(source, columns, "starts", total)[1:])
        remarks = ["does not tell ends of the task from time limits (episode_starts): all count as time limits"]
    else:
        flags = [_flags(source, columns, name, total) for name in {marked, "truncations"} if name and columns[name]]
        ends = np.flatnonzero(np.any(flags, axis=0)) if flags else np.empty(0, np.int64)
        remarks = []
        if marked == "dones" and not columns["truncations"]:
            remarks.append("does not tell ends of the task from time limits (dones): all count as ends of the task")
        if not len(ends) and total > 1 and not columns["next_observations"]:
            remarks.append(f"marks no end: its {total} steps count as one trajectory")
    if total and (not len(ends) or ends[-1] != total - 1):
        ends = np.append(ends, total - 1)  # the recording stopped within an episode
    return ends, remarks


def _jumps(source: str, observations: Mapping[Place, Any], following: Mapping[Place, Any], total: int) -> np.ndarray:
    """Rows whose next observation is not the observation of the row after."""
    jumps = np.zeros(max(total - 1, 0), dtype=bool)
    for place, after in following.items():
        own = observations.get(place)
        if own is None or after.shape != own.shape:
            raise ValueError(
                f"{source}: next_observations{'/'.join(('', *place))} has shape {after.shape}, the observations have "
                f"{None if own is None else own.shape}: it is damaged, record it again"
            )
        for rows in _blocks(total - 1, after):
            a, b = after[rows], own[rows.start + 1 : rows.stop + 1]
            same = np.isclose(a, b, rtol=_CLOSE, atol=1e-6, equal_nan=True)
            jumps[rows] |= ~same.reshape(len(same), -1).all(1)
    return np.flatnonzero(jumps)


def _blocks(rows: int, array: Any) -> Iterator[slice]:
    size = max(1, _BLOCK // max(1, int(np.prod(array.shape[1:]))))
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


def _terminations(source: str, columns: Columns, ends: np.ndarray, total: int) -> dict[str, np.ndarray]:
    """Terminations `[M]` from marks of another kind, if the file has them."""
    if () in columns["dones"]:
        done = _flags(source, columns, "dones", total)
        over = _flags(source, columns, "truncations", total) if columns["truncations"] else np.zeros_like(done)
        return {"terminations": done & ~over}
    if () in columns["terminal"]:
        terminations = np.zeros(total, dtype=bool)
        terminations[ends] = _flags(source, columns, "terminal", len(ends))
        return {"terminations": terminations}
    return {}


def _flags(source: str, columns: Columns, name: str, count: int) -> np.ndarray:
    """Flags `[count]` bool, stored as any kind of number, `[count]` or `[count, 1]`."""
    array = columns[name].get(())
    if array is None or array.dtype.kind not in "biuf" or tuple(array.shape) not in ((count,), (count, 1)):
        found = "nested" if array is None else f"of type {array.dtype} and shape {tuple(array.shape)}"
        raise ValueError(f"{source}: {name} is {found}, expected {count} flags")
    values = np.asarray(array[:]).reshape(count)
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"{source}: {name} holds other numbers than 0 and 1: it is damaged, record it again")
    return values.astype(bool)


def _numbers(source: str, columns: Columns, name: str, most: int) -> np.ndarray:
    """Counts of steps, `[n]` int64 in [0, most]."""
    array = columns[name][()]
    values = np.asarray(array[:]) if len(array.shape) == 1 and array.dtype.kind in "iu" else None
    if values is None or (len(values) and not 0 <= values.min() <= values.max() <= most):
        raise ValueError(f"{source}: {name} must be a list of whole numbers from 0 to {most}")
    return values.astype(np.int64)
