"""HDF5 files with one group per trajectory: Minari's, robomimic's, those of Isaac Lab's recorder, ManiSkill's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from understudy.core.borders import parse_json, parsing
from understudy.core.check import fit
from understudy.data.demonstrations.claims import Claims, Stored, datasets
from understudy.data.demonstrations.images import decode, image_size
from understudy.data.demonstrations.recording import SIGNALS, Place, Recording, read_metadata
from understudy.data.npz import AGAIN

_MINARI = {name: name for name in ("observations", *SIGNALS)}
_ROBOMIMIC = {
    "observations": "obs", "next_observations": "next_obs", "actions": "actions", "rewards": "rewards", "dones": "dones"
}  # fmt: skip
_MANISKILL = {
    "observations": "obs", "actions": "actions", "rewards": "rewards", "terminations": "terminated",
    "truncations": "truncated", "success": "success"
}  # fmt: skip
_SMALL = 2**20  # bytes: reading less than this as a whole is faster than choosing rows of it
_FLAGS = ("terminations", "truncations", "dones", "success")


class _Groups:
    """The groups of K trajectories, oldest first; h5py's own `group[name]` takes ten times as long as `open`."""

    def __init__(self, parent: Any, claims: Claims, prefix: str) -> None:
        import h5py

        found = ((re.fullmatch(rf"{prefix}_(\d{{1,18}})", name), name) for name in parent)
        numbered = sorted((int(match[1]), name) for match, name in found if match)
        self.numbers, self.names = [number for number, _ in numbered], [name for _, name in numbered]
        self.path, self.claims, self.folders = claims.path, claims, dict[tuple[int, str], Any]()
        self.ids = [h5py.h5o.open(parent.id, name.encode()) for name in self.names]
        for name, group in zip(self.names, self.ids):
            if not isinstance(group, h5py.h5g.GroupID):
                raise ValueError(f"{self.path}: {name} is not a group of arrays; {AGAIN}")

    def __len__(self) -> int:
        return len(self.ids)

    def has(self, trajectory: int, name: str) -> bool:
        return bool(self.ids[trajectory].links.exists(name.encode()))

    def open(self, trajectory: int, name: str) -> Stored:
        """A dataset whose shape is to be seen; before it is read, `check` looks at it."""
        import h5py

        folder, _, last = name.rpartition("/")
        try:
            return self.claims.look(h5py.h5d.open(self._folder(trajectory, folder), last.encode()))
        except (KeyError, ValueError):  # there is none, or it is not a dataset
            raise ValueError(f"{self.path}: trajectory {trajectory} has no {name}; {AGAIN}") from None

    def _folder(self, trajectory: int, name: str) -> Any:
        """A group in that of a trajectory, opened once, as several datasets of it are read."""
        import h5py

        if not name:
            return self.ids[trajectory]
        if (trajectory, name) not in self.folders:
            self.folders[trajectory, name] = h5py.h5g.open(self.ids[trajectory], name.encode())
        return self.folders[trajectory, name]

    def check(
        self, trajectory: int, dataset: Any, name: str, values: int | None = None, rows: int | None = None
    ) -> Any:
        return self.claims.check(f"{self.names[trajectory].replace('_', ' ')}, {name}", dataset, values, rows)

    def read(self, trajectory: int, name: str, opened: Stored | None = None) -> np.ndarray:
        import h5py

        dataset = self.check(trajectory, opened or self.open(trajectory, name), name)
        return self.claims.read(dataset) if dataset.dtype.kind in "biuf" else np.asarray(h5py.Dataset(dataset.id)[()])

    def places(self, name: str) -> dict[Place, Any]:
        """The datasets of the first trajectory that are called so, or lie below a group that is."""
        import h5py

        if not self.ids or not self.has(0, name):
            return {}
        item = h5py.Group(self.ids[0])[name]
        return (
            {(): item}
            if isinstance(item, h5py.Dataset)
            else {tuple(k.split("/")): x for k, x in datasets(item).items()}
        )


def minari(path: Path, file: Any, claims: Claims) -> Recording:
    """Groups `episode_<number>`; observations include the final one. Images may be JPEGs, Minari's default."""
    groups, metadata = _Groups(file, claims, "episode"), minari_metadata(path.with_name("metadata.json"))
    told = metadata.get("total_episodes", len(groups))
    if told != len(groups) or groups.numbers != list(range(len(groups))):
        raise ValueError(
            f"{path} should hold {told} episodes, numbered from 0 on; it has {len(groups)}"
            f"{f', numbered up to {groups.numbers[-1]}' if groups else ''}: the file or its metadata.json is damaged; "
            f"{AGAIN}"
        )
    return _grouped(groups, _MINARI, metadata, "Minari HDF5", required=("rewards",))


def minari_metadata(file: Path) -> dict[str, Any]:
    """What `metadata.json` says; nothing if there is none."""
    if not file.is_file():
        return {}
    metadata = read_metadata(str(file), file.read_bytes())
    if "total_episodes" in metadata:
        fit(int, metadata["total_episodes"], f"{file}: total_episodes")
    if "env" not in metadata and isinstance(metadata.get("env_spec"), str):
        metadata["env"] = str(read_metadata(f"{file}: env_spec", metadata["env_spec"]).get("id", ""))
    if not metadata.get("env"):
        metadata.pop("env", None)
    return metadata


def robomimic(path: Path, file: Any, claims: Claims) -> Recording:
    """Groups `data/demo_<number>` of `actions`, `obs`, perhaps `next_obs`, `rewards`, `dones`; lists of them in `mask`.

    Isaac Lab's recorder and Mimic write `obs`, `actions` and whether a demonstration succeeded, nothing else.
    """
    groups = _Groups(file["data"], claims, "demo")
    if not groups:
        raise ValueError(f"{path} holds no demonstrations: its group data has no demo_0, demo_1, ...")
    if not groups.has(0, "obs"):
        raise ValueError(
            f"{path} holds states and actions but no observations (obs): let robomimic add them, `python -m "
            f"robomimic.scripts.dataset_states_to_obs --dataset {path} --output_name low_dim.hdf5 --done_mode 2`"
        )
    name, kind = _robomimic_environment(path, file["data"])
    recorder = name.startswith("Isaac-") or not groups.has(0, "dones")
    metadata = {"env": f"isaaclab:{name}"} if name.startswith("Isaac-") else {"env": name} if kind == 2 and name else {}
    recording = _grouped(groups, _ROBOMIMIC, metadata, "Isaac Lab HDF5" if recorder else "robomimic HDF5")
    counts, success = _attribute(groups, b"num_samples"), _attribute(groups, b"success")
    if counts is not None and (wrong := np.flatnonzero(counts != recording.lengths)).size:
        k = int(wrong[0])
        raise ValueError(
            f"{path}: trajectory {k} has {recording.lengths[k]} actions, its num_samples says {counts[k]}: {AGAIN}"
        )
    recording = replace(
        recording, subsets=_masks(file, claims, groups), success=None if success is None else success > 0
    )
    if name and not metadata:
        recording.metadata["made_in"] = name
    said = "does not tell ends of the task from time limits (dones): all count as ends of the task"
    if not groups.has(0, "dones"):
        said = "does not say how its trajectories end (no dones): all count as cut off (truncated)"
    return replace(recording, remarks=[*recording.remarks, said])


def _robomimic_environment(path: Path, data: Any) -> tuple[str, int | None]:
    """Name and type (1: robosuite, 2: Gym) of the environment in `env_args`; empty if it is not told."""
    if "env_args" not in data.attrs:
        return "", None
    with parsing(f"{path}: env_args", "remove it, or write it as JSON text"):
        told = parse_json(data.attrs["env_args"], finite=False)
        name, kind = (told.get("env_name"), told.get("type")) if isinstance(told, dict) else (None, None)
    return name if isinstance(name, str) else "", kind if isinstance(kind, int) else None


def _masks(file: Any, claims: Claims, groups: _Groups) -> dict[str, np.ndarray]:
    """Trajectories by filter key: datasets of names under `mask`, text of a fixed length as robomimic writes it."""
    numbers, masks = {name: k for k, name in enumerate(groups.names)}, {}
    for key, dataset in (datasets(file["mask"]) if "mask" in file else {}).items():
        if dataset.dtype.kind == "S" and len(dataset.shape) == 1:
            claims.take(dataset.size * dataset.dtype.itemsize)
            names = [name.decode(errors="replace") for name in dataset[()].tolist()]
            if unknown := [name for name in names if name not in numbers]:
                raise ValueError(f"{claims.path}: mask/{key} lists {unknown[0]!r}, which data does not hold; {AGAIN}")
            masks[key] = np.array(sorted({numbers[name] for name in names}), dtype=np.int64)
    return masks


def _attribute(groups: _Groups, name: bytes) -> np.ndarray | None:
    """A whole number or flag that every trajectory's group has as an attribute, `[K]`; None if some have none."""
    import h5py

    def told(group: Any) -> int:
        attribute = h5py.h5a.open(group, name)
        dtype = groups.claims.dtype(attribute)
        if attribute.shape != () or dtype.kind not in "biu":
            raise ValueError(f"{groups.path}: {name.decode()} of a demonstration should be one number; {AGAIN}")
        value = np.zeros((), dtype)
        attribute.read(value, groups.claims.in_memory(dtype))
        return int(value)

    return np.array([told(g) for g in groups.ids]) if all(h5py.h5a.exists(g, name) for g in groups.ids) else None


def maniskill(path: Path, file: Any, claims: Claims) -> Recording:
    """Groups `traj_<number>`, their observations with one more row; environment and control mode are in the `.json`."""
    groups = _Groups(file, claims, "traj")
    if not groups.has(0, "obs"):
        raise ValueError(
            f"{path} holds states and actions but no observations (obs): let ManiSkill add them, `python -m "
            f"mani_skill.trajectory.replay_trajectory --traj-path {path} --save-traj -o state`"
        )
    recording = _grouped(groups, _MANISKILL, {}, "ManiSkill .h5", required=("terminated", "truncated"))
    told = path.with_suffix(".json")
    if told.is_file():
        recording.metadata.update(
            _maniskill_metadata(path, told, dict(zip(groups.numbers, recording.lengths.tolist())))
        )
        return recording
    return replace(recording, remarks=[*recording.remarks, f"has no {told.name} beside it: its environment is unknown"])


def _maniskill_metadata(path: Path, told: Path, lengths: Mapping[int, int]) -> dict[str, Any]:
    """Environment and control mode. Raises ValueError where the `.json` describes other trajectories."""
    source = f"{path}: its {told.name}"
    with parsing(source, AGAIN):
        plain = parse_json(told.read_bytes(), finite=False)
        episodes, made_in = plain.get("episodes"), plain.get("env_info") or {}
        steps = {episode["episode_id"]: episode.get("elapsed_steps") for episode in episodes}
        modes = sorted({str(episode["control_mode"]) for episode in episodes if "control_mode" in episode})
    wrong = [k for k, length in lengths.items() if steps.get(k, -1) not in (None, length)]
    if wrong or len(steps) != len(lengths):
        raise ValueError(
            f"{source} describes {len(steps)} trajectories, the .h5 holds {len(lengths)}"
            f"{f', and traj_{wrong[0]} has another length' if wrong else ''}: take the .json that was written with it"
        )
    if len(modes) > 1:
        raise ValueError(f"{source} tells of several control modes ({', '.join(modes)}): replay them in one")
    env_id = made_in.get("env_id") if isinstance(made_in, dict) else None
    found = {"env": f"maniskill:{env_id}"} if isinstance(env_id, str) and env_id else {}
    return found | ({"control_mode": modes[0]} if modes else {})


# ------------------------------------------------------------------------------------------------------------ reading


def _grouped(
    groups: _Groups, names: Mapping[str, str], metadata: dict[str, Any], kind: str, required: Sequence[str] = ()
) -> Recording:
    """A recording from groups whose arrays have these names (ours -> the format's).

    Observations have a final row, or it comes from next observations, or the last one stands in. Where groups tell of
    success, ends before a trajectory's last step are not taken: a simulator that is not reset goes on telling them.
    """
    import h5py

    present = {ours: name for ours, name in names.items() if any(groups.has(k, name) for k in range(len(groups)))}
    signals = {ours: name for ours, name in present.items() if "observations" not in ours}
    for k in range(len(groups)):
        if lacking := [name for name in sorted({"actions", *required, *signals.values()}) if not groups.has(k, name)]:
            raise ValueError(f"{groups.path}: trajectory {k} has no {' and no '.join(lacking)}; {AGAIN}")
    lengths = np.array([_rows(groups.open(k, "actions")) for k in range(len(groups))], dtype=np.int64)
    found = groups.places(names["observations"])
    packed = {place: size for place, dataset in found.items() if (size := _packed_size(groups, dataset))}
    shapes = {place: packed.get(place, tuple(dataset.shape[1:])) for place, dataset in found.items()}
    flags = {ours: [groups.read(k, signals[ours]) for k in range(len(groups))] for ours in _FLAGS if ours in signals}
    success = flags.pop("success", None)
    if "dones" in flags:
        flags["terminations"] = flags.pop("dones")
    following, remarks = present.get("next_observations"), []
    if names is not _MINARI and (late := sum([_drop_inner(x) for arrays in flags.values() for x in arrays])):
        remarks.append(f"goes on after an end in {late} trajectories: only the end at the last step counts")

    def read(trajectory: int, name: str) -> np.ndarray:
        return flags[name][trajectory] if name in flags else groups.read(trajectory, signals[name])

    def read_observations(trajectory: int, place: Place) -> np.ndarray:
        T, name = int(lengths[trajectory]), "/".join((names["observations"], *place))
        rows = groups.open(trajectory, name)
        if _rows(rows) not in (T, T + 1):
            raise ValueError(
                f"{groups.path}: trajectory {trajectory} has {T} actions and {_rows(rows)} {name}: {AGAIN}"
            )
        if shape := packed.get(place):
            groups.check(trajectory, rows, name, _rows(rows) * math.prod(shape))
            values = np.stack([decode(np.asarray(row).tobytes(), shape) for row in h5py.Dataset(rows.id)])
        else:
            values = groups.read(trajectory, name, rows)
        if len(values) == T + 1:
            return values
        if following is None:
            return np.concatenate((values, values[-1:]))
        last = groups.open(trajectory, name := "/".join((following, *place)))
        if last.shape != rows.shape:
            raise ValueError(
                f"{groups.path}: trajectory {trajectory}: {name} has shape {last.shape}, expected {rows.shape}: {AGAIN}"
            )
        if values.nbytes < _SMALL:
            return np.concatenate((values, groups.read(trajectory, name, last)[T - 1 :]))
        groups.check(trajectory, last, name, rows=1)
        return np.concatenate((values, h5py.Dataset(last.id)[T - 1 :]))

    if len(groups) and not following and all(_rows(dataset) != lengths[0] + 1 for dataset in found.values()):
        remarks.append("has no final observations (next_observations): the last one of each trajectory stands in")
    return Recording(
        source=str(groups.path),
        kind=kind,
        lengths=lengths,
        shapes=shapes,
        metadata=metadata,
        signals=(set(signals) | set(flags)) - {"success", "dones"},
        read=read,
        read_observations=read_observations,
        remarks=remarks,
        success=None if success is None else np.array([bool(x.size and x.reshape(-1)[-1]) for x in success]),
    )


def _rows(dataset: Any) -> int:
    return int(dataset.shape[0]) if dataset.shape else -1


def _drop_inner(flags: np.ndarray) -> bool:
    """Clear flags before the last one; whether there were any."""
    inner = flags[:-1] if flags.ndim else flags
    found = bool(inner.any())
    inner[...] = 0
    return found


def _packed_size(groups: _Groups, images: Any) -> tuple[int, ...]:
    """Shape of the images of a dataset of JPEGs, read from the first one's header; empty for other data."""
    import h5py

    lists = h5py.check_vlen_dtype(images.dtype) == np.uint8 and images.ndim == 1
    if not (lists or (images.dtype == np.uint8 and images.ndim == 2)) or not len(images):
        return ()
    return image_size(np.asarray(groups.check(0, images, "images", rows=1)[0]).tobytes())
