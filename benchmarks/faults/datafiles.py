"""Damaged data files: demonstrations and motions in every format that is read.

    python -m benchmarks.faults.datafiles --seed 0 --count 5000

Every mutant (`mutate`) has to give the content of the sound file, or one error that names it. Foreign formats have no
checksums of numbers (HDF5, text), or ones that whoever packs an archive again makes anew: a changed number is then
what the file says, and nobody can notice. Such mutants are compared with a second reading of the file, by numpy, h5py
or json alone, and counted apart. Prints the findings and a summary, writes results/datafiles.md.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from benchmarks.faults import mutate
from benchmarks.faults.files import campaign
from benchmarks.faults.mutate import Case

SPACE = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (3,), np.float32)})
ACTIONS = spaces.Box(-10.0, 10.0, (2,), np.float32)
LENGTHS = (12, 1, 20)
FIELDS = ("root_pos_x", "root_pos_y", "root_pos_z", *(f"root_rot_{axis}" for axis in "wxyz"), "hip_dof_pos")


# ------------------------------------------------------------------------------------------- sound files


def episodes() -> list[Any]:
    """Three episodes, one of a single step."""
    from understudy.data.demonstrations.write import Episode

    rng = np.random.default_rng(0)
    return [
        Episode(
            observations={("policy",): rng.normal(size=(length + 1, 3)).astype(np.float32)},
            actions=rng.uniform(-1.0, 1.0, (length, 2)).astype(np.float32),
            rewards=rng.normal(size=length),
            terminated=k != 2,
            truncated=k == 2,
        )
        for k, length in enumerate(LENGTHS)
    ]


def d4rl() -> dict[str, np.ndarray]:
    """Arrays by D4RL's names, next observations included."""
    recorded = episodes()
    flags = [episode.flags() for episode in recorded]
    return {
        "observations": np.concatenate([e.observations["policy",][:-1] for e in recorded]),
        "next_observations": np.concatenate([e.observations["policy",][1:] for e in recorded]),
        "actions": np.concatenate([e.actions for e in recorded]),
        "rewards": np.concatenate([e.rewards for e in recorded]),
        "terminals": np.concatenate([terminal for terminal, _ in flags]),
        "timeouts": np.concatenate([timeout for _, timeout in flags]),
    }


def imitation() -> dict[str, np.ndarray]:
    """Arrays as the library `imitation` saved trajectories."""
    recorded = episodes()
    return {
        "obs": np.concatenate([e.observations["policy",] for e in recorded]),
        "acts": np.concatenate([e.actions for e in recorded]),
        "rews": np.concatenate([e.rewards for e in recorded]),
        "infos": np.array([{}] * sum(LENGTHS)),
        "terminal": np.array([e.terminated for e in recorded]),
        "indices": np.cumsum(LENGTHS)[:-1],
    }


def clip() -> Any:
    """A walk in a circle that wraps."""
    from understudy.data.motions.files import MotionClip

    angle = np.linspace(0.0, 2 * np.pi, 30)
    zero = 0.0 * angle
    columns = (np.cos(angle), np.sin(angle), zero, np.cos(angle / 2), zero, zero, np.sin(angle / 2), np.sin(angle))
    return MotionClip(
        name="walk", fields=FIELDS, frames=np.stack(columns, axis=1), frame_time=0.02, loop="wrap", weight=0.5
    )


def header() -> dict[str, Any]:
    """The same as AMP_for_hardware's text."""
    walk = clip()
    return {
        "LoopMode": "Wrap",
        "FrameDuration": walk.frame_time,
        "EnableCycleOffsetPosition": True,
        "EnableCycleOffsetRotation": False,
        "MotionWeight": walk.weight,
        "Fields": list(walk.fields),
        "Frames": walk.frames.tolist(),
    }


def isaac_lab() -> dict[str, np.ndarray]:
    """Arrays by Isaac Lab's names."""
    F, rng = 20, np.random.default_rng(0)
    q = rng.normal(size=(F, 2, 4))
    arrays = {name: rng.normal(size=(F, 3)) for name in ("dof_positions", "dof_velocities")}
    for name in ("body_positions", "body_linear_velocities", "body_angular_velocities"):
        arrays[name] = rng.normal(size=(F, 2, 3))
    arrays["body_rotations"] = q / np.linalg.norm(q, axis=-1, keepdims=True)
    names = {"dof_names": np.array(["hip", "knee", "toe"]), "body_names": np.array(["pelvis", "foot"])}
    return {"fps": np.array(50), **names, **arrays}


def beyond_mimic() -> dict[str, np.ndarray]:
    """Arrays by BeyondMimic's names."""
    walk = isaac_lab()
    names = {"joint_pos": "dof_positions", "joint_vel": "dof_velocities", "body_pos_w": "body_positions"}
    names |= {"body_quat_w": "body_rotations", "body_lin_vel_w": "body_linear_velocities"}
    names |= {"body_ang_vel_w": "body_angular_velocities"}
    return {"fps": np.array([50]), **{theirs: walk[isaacs] for theirs, isaacs in names.items()}}


def written(form: str, folder: Path) -> bytes:
    """The walk as another program has it."""
    from understudy.data.motions.writing import write_as

    return write_as(form, folder / form, clip()).read_bytes()


def packed(arrays: Mapping[str, np.ndarray], save: Callable[..., None] = np.savez) -> bytes:
    """An `.npz`."""
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def hdf5(arrays: Mapping[str, np.ndarray], **options: Any) -> bytes:
    """An HDF5 file of flat arrays."""
    import h5py

    with h5py.File("image", "w", driver="core", backing_store=False) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **options)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def replay_buffer(
    arrays: Mapping[str, np.ndarray], rings: Sequence[tuple[int, int]], vector: bool = True, **told: Any
) -> bytes:
    """Rows in order as Tianshou's `save_hdf5` writes them: for each ring of a vector buffer, rows and capacity.

    Where a ring has more rows than its capacity, only the newest are kept.
    """
    import h5py

    capacities = np.array([capacity for _, capacity in rings])
    edges, kept, places, first = np.append(0, capacities.cumsum()), [], [], 0
    for start, (count, capacity) in zip(edges, rings):
        kept += range(first + max(0, count - capacity), first + count)
        places += [start + k % capacity for k in range(max(0, count - capacity), count)]
        first += count
    counts = np.array([count for count, _ in rings])
    lengths, newest = np.minimum(counts, capacities), edges[:-1] + np.maximum(counts - 1, 0) % capacities
    with h5py.File("image", "w", driver="core", backing_store=False) as file:
        file.attrs.update({"maxsize": edges[-1], "stack_num": 1, "_save_obs_next": True, "_save_only_last_obs": False})
        if vector:
            indices = {"_extend_offset": edges, "_offset": edges[:-1], "_lengths": lengths, "last_index": newest}
            file.attrs.update({"buffer_num": len(rings), "_size": 0, "_insertion_idx": 0})
        else:
            indices = {"last_index": newest}
            file.attrs.update({"_size": lengths[0], "_insertion_idx": counts[0] % edges[-1]})
        file.attrs.update(told)
        for name, index in indices.items():
            file[name] = index
        file["_random_state"] = np.frombuffer(pickle.dumps("anything"), dtype=np.int8)
        for name, array in arrays.items():
            rows = np.zeros((edges[-1], *array.shape[1:]), array.dtype)
            rows[places] = array[kept]
            file.create_dataset(f"_meta/{name}", data=rows).attrs["__data_type__"] = "ndarray"
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def tianshou() -> dict[str, np.ndarray]:
    """Arrays by Tianshou's names."""
    arrays = d4rl()
    ends = {"terminated": arrays["terminals"], "truncated": arrays["timeouts"]}
    return {
        "obs": arrays["observations"],
        "obs_next": arrays["next_observations"],
        "act": arrays["actions"],
        "rew": arrays["rewards"],
        **ends,
        "done": np.any(list(ends.values()), axis=0),
    }


def minari(folder: Path, own: bool) -> tuple[bytes, bytes]:
    """`main_data.hdf5` and `metadata.json` as we write them, or as Minari does."""
    from understudy.data.demonstrations.write import write_minari

    os.environ["MINARI_DATASETS_PATH"] = str(folder / f"minari-{own}")
    if own:
        data = write_minari("line/expert-v0", episodes(), {"env": "Line-v0"}, SPACE, ACTIONS) / "data"
    else:
        from minari import create_dataset_from_buffers
        from minari.data_collector import EpisodeBuffer

        buffers = [
            EpisodeBuffer(
                id=k,
                observations=e.observations["policy",],
                actions=e.actions,
                rewards=e.rewards,
                terminations=e.flags()[0],
                truncations=e.flags()[1],
            )
            for k, e in enumerate(episodes())
        ]
        kinds = {"observation_space": SPACE["policy"], "action_space": ACTIONS}
        create_dataset_from_buffers("line/expert-v0", buffers, data_format="hdf5", **kinds)
        data = folder / "minari-False" / "line" / "expert-v0" / "data"
    return (data / "main_data.hdf5").read_bytes(), (data / "metadata.json").read_bytes()


# --------------------------------------------------------------------------------------------- reading it


def read_demonstrations(path: Path) -> dict[str, Any]:
    """Everything that training may draw from."""
    from understudy.data.demonstrations.demonstrations import Demonstrations

    loaded = Demonstrations.load(path, observation_space=SPACE, action_space=ACTIONS)
    signals = {name: loaded.signals[name].numpy() for name in sorted(loaded.signals.keys())}
    return {**signals, "observations": loaded.observations["policy"].numpy(), "lengths": loaded.lengths.numpy()}


def read_clips(path: Path) -> list[Any]:
    """The clips as plain data."""
    from understudy.data.motions.files import read_motions

    return [vars(found) for found in read_motions(path)]


def read_pickle(path: Path) -> list[Any]:
    """The clips of a pickle as plain data."""
    from understudy.data.motions.pickled import read_pickled_motions

    return [vars(found) for found in read_pickled_motions(path)]


def read_named(path: Path) -> list[Any]:
    """The clips of a file without names of joints."""
    from understudy.data.motions.options import ReadOptions
    from understudy.data.motions.pickled import read_any_motions

    names = ("hip", "knee", "toe") if path.suffix == ".npz" else ("hip",)
    return [vars(found) for found in read_any_motions(path, ReadOptions(joints=names))]


# ----------------------------------------------------------------------------------- a second, plain reading


def says(arrays: Mapping[str, Any], content: Mapping[str, Any]) -> bool:
    """Whether flat arrays say what was loaded: observations, actions, rewards, ends of the task."""
    found = {
        name: next((np.asarray(arrays[a]) for a in aliases if a in arrays), None) for name, aliases in ALIASES.items()
    }
    lengths, rows = content["lengths"], len(content["executed_action"])
    own = np.repeat(np.arange(len(lengths)), lengths) + np.arange(rows)  # without final observations
    seen = found["observations"]
    rewards, ends = found["rewards"], found["terminations"]
    return (
        np.array_equal(found["actions"].astype(np.float32), content["executed_action"])
        and seen is not None
        and np.array_equal(seen.astype(np.float32), content["observations"][own if len(seen) == rows else slice(None)])
        and (rewards is None or np.array_equal(rewards.astype(np.float32).reshape(-1), content["reward"]))
        and (ends is None or np.array_equal(ends.reshape(-1).astype(bool), content["terminated"]))
    )


ALIASES = {
    "observations": ("observations", "obs"),
    "actions": ("actions", "acts"),
    "rewards": ("rewards", "rews"),
    "terminations": ("terminations", "terminals"),
}


def npz_says(data: bytes, content: Any) -> bool:
    """Whether numpy alone finds in an `.npz` what was loaded."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return says({name: file[name] for name in file.files if name != "infos"}, content)


def hdf5_says(data: bytes, content: Any) -> bool:
    """Whether h5py alone finds in a file what was loaded."""
    import h5py

    with h5py.File(io.BytesIO(data), "r") as file:
        if "actions" in file:
            return says({name: file[name][()] for name in file if isinstance(file[name], h5py.Dataset)}, content)
        groups = [file[f"episode_{k}"] for k in range(len(content["lengths"]))]
        names = ("observations", "actions", "rewards", "terminations")
        return says({name: np.concatenate([group[name][()] for group in groups]) for name in names}, content)


def replay_says(data: bytes, content: Any) -> bool:
    """Whether h5py alone finds in a replay buffer what was loaded: rows from the oldest on, ring by ring."""
    import h5py

    names = {"observations": "obs", "actions": "act", "rewards": "rew", "terminations": "terminated"}
    with h5py.File(io.BytesIO(data), "r") as file:
        if "_lengths" in file:
            rings = zip(*(file[name][()] for name in ("_extend_offset", "_lengths", "last_index")))
        else:
            rings = iter([(0, file.attrs["_size"], file.attrs["_insertion_idx"] - 1)])
        rows = [start + (newest - start + 1 + k) % length for start, length, newest in rings for k in range(length)]
        held = {ours: file.get(f"_meta/{theirs}") for ours, theirs in names.items()}
        return says({k: x[()][rows] for k, x in held.items() if isinstance(x, h5py.Dataset)}, content)


def arrays_say(data: bytes, content: Any) -> bool:
    """Whether numpy alone finds in Isaac Lab's `.npz` what was loaded."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        walk, joints = content[0], len(file["dof_names"])
        return bool(np.isclose(walk["frame_time"], 1 / file["fps"].item())) and all(
            np.array_equal(walk["frames"][:, columns], file[name])
            for name, columns in (("dof_positions", slice(joints)), ("dof_velocities", slice(joints, 2 * joints)))
        )


def states_say(read: Callable[[bytes], Any], angles: Any, pos: Any) -> Callable[[bytes, Any], bool]:
    """Judges whether `read` alone finds in a file of root and joints what was loaded."""

    def say(data: bytes, content: Any) -> bool:
        told, walk = read(data), content[0]
        joints = [i for i, name in enumerate(walk["fields"]) if name.endswith("_dof_pos")]
        root = [walk["fields"].index(f"root_pos_{axis}") for axis in "xyz"]
        rate = {"fps": 30.0} if isinstance(told, np.ndarray) else told
        return (
            np.array_equal(walk["frames"][:, joints], np.asarray(told[angles]))
            and np.array_equal(walk["frames"][:, root], np.asarray(told[pos]))
            and bool(np.isclose(walk["frame_time"], 1.0 / np.asarray(rate.get("fps", rate.get("frequency"))).item()))
        )

    return say


def load_npz(data: bytes) -> dict[str, Any]:
    """All of an archive, bodies without those that are not the root."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if "qpos" in arrays:
        return {**arrays, "pos": arrays["qpos"][:, :3], "angles": arrays["qpos"][:, 7:]}
    return {**arrays, "pos": arrays["body_pos_w"][:, 0]}


def load_frames(data: bytes) -> dict[str, Any]:
    """MimicKit's pickle by kind."""
    plain = pickle.loads(data)
    frames = np.asarray(plain["frames"])
    return {**plain, "pos": frames[:, :3], "angles": frames[:, 6:]}


def load_array(data: bytes) -> Any:
    """The dictionary in a `.npy`; the mutants at hand run nothing, ours has read them."""
    return np.load(io.BytesIO(data), allow_pickle=True).item()


def load_table(data: bytes) -> np.ndarray:
    """The numbers of text."""
    return np.loadtxt(io.BytesIO(data), delimiter=",", ndmin=2)


def text_says(data: bytes, content: Any) -> bool:
    """Whether json alone finds in text what was loaded."""
    return plain_says(json.loads(data), content)


def plain_says(plain: Any, content: Any) -> bool:
    """Whether plain data say what was loaded."""
    headers = [plain] if "Frames" in plain else list(plain.values())
    return len(headers) == len(content) and all(
        np.allclose(np.abs(walk["frames"]), np.abs(header["Frames"]), atol=2e-2)  # quaternions may change sign
        and walk["frame_time"] == header["FrameDuration"]
        and walk["weight"] == header.get("MotionWeight", 1.0)
        and walk["loop"] == header.get("LoopMode", "clamp").lower()
        and list(walk["fields"]) == list(header["Fields"])
        for walk, header in zip(content, headers)
    )


def pickle_says(data: bytes, content: Any) -> bool:
    """Whether pickle alone finds what was loaded; the mutants at hand run nothing, ours has read them."""
    return plain_says(pickle.loads(zlib.decompress(data) if data[:1] == b"x" else data), content)


def hdf5_mutation(data: bytes, rng: random.Random) -> bytes:
    """An HDF5 file with one of its datasets missing, renamed, elsewhere, or of another type, shape or claim."""
    import h5py

    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name, other = rng.choice(names), rng.choice(names)
        old, swapped = file[name][()], file[other][()]
        what = rng.choice(("delete", "rename", "value", "value", "value", "claim", "chunk", "link", "group", "swap"))
        del file[name]
        if what == "rename":
            file[f"{name}_"] = old
        elif what == "value":
            file[name] = rng.choice(
                (
                    np.zeros(0), np.float64(1), [b"x"], ["text"], np.zeros((2, 2, 2)), np.arange(len(old)), old[:-1],
                    old.astype(complex), np.full_like(old, 3), np.full(old.shape, np.nan), old.astype(np.int8),
                    old[..., None], np.concatenate((old, old)), old.astype(np.float16), np.full(old.shape, 1e300),
                )
            )  # fmt: skip
        elif what == "claim":
            file.create_dataset(name, (2**36,), "f8", chunks=(1024,))
        elif what == "chunk":
            file.create_dataset(name, old.shape[:1], "f8", maxshape=(None,), chunks=(2**28,), compression="gzip")
        elif what == "link":
            file[name] = rng.choice((h5py.SoftLink("/nowhere"), h5py.SoftLink(f"/{name}"), h5py.SoftLink("/")))
        elif what == "group":
            file.create_group(name)
        elif what == "swap" and name != other:
            del file[other]
            file[name], file[other] = swapped, old
    return buffer.getvalue()


def attribute_mutation(data: bytes, rng: random.Random) -> bytes:
    """An HDF5 file with one of its attributes missing or another."""
    import h5py

    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        name = rng.choice(list(file.attrs))
        del file.attrs[name]
        if rng.random() < 0.8:
            file.attrs[name] = rng.choice((-1, 0, 1, 2**31, 2**62, 1.5, np.nan, True, "", "7", [1, 2], np.zeros(0)))
    return buffer.getvalue()


def pickle_mutation(data: bytes, rng: random.Random) -> bytes:
    """A pickle with one place of its plain data changed."""
    raw = zlib.decompress(data) if data[:1] == b"x" else data
    changed = pickle.dumps(mutate.mutate_plain(pickle.loads(raw), rng), rng.choice((2, 3, 4, 5)))
    return zlib.compress(changed) if data[:1] == b"x" else changed


# ------------------------------------------------------------------------------------------------- campaign


def cases(folder: Path) -> list[Case]:
    """One case for each format."""
    from understudy.data.demonstrations.write import write_npz
    from understudy.data.motions.files import write_motions

    write_npz(folder / "own.npz", episodes(), {"env": "Line-v0"})
    write_motions(folder / "motions.npz", [clip(), clip()])
    (own, own_metadata), (foreign, metadata) = minari(folder, own=True), minari(folder, own=False)
    zipped, text, pickled = (mutate.zip_mutation,), (mutate.json_mutation,), (pickle_mutation,)
    packs = (hdf5_mutation,)

    def beside(name: str, data: bytes) -> Callable[[Path], None]:
        return lambda inner: (inner / name).write_bytes(data) and None

    def of_metadata(path: Path) -> dict[str, Any]:
        return read_demonstrations(path.with_name("main_data.hdf5"))

    arrays = {"walk": {**header(), "Frames": clip().frames}}
    return [
        Case("ours.npz", (folder / "own.npz").read_bytes(), "d.npz", read_demonstrations, mutations=zipped),
        Case("d4rl.npz", packed(d4rl()), "d.npz", read_demonstrations, (ValueError,), zipped, npz_says),
        Case(
            "d4rl-packed.npz", packed(d4rl(), np.savez_compressed), "d.npz", read_demonstrations, (ValueError,), zipped,
            npz_says,
        ),
        Case("imitation.npz", packed(imitation()), "d.npz", read_demonstrations, (ValueError,), zipped, npz_says),
        Case("d4rl.hdf5", hdf5(d4rl()), "d.hdf5", read_demonstrations, (ValueError,), packs, hdf5_says),
        Case(
            "d4rl-packed.hdf5", hdf5(d4rl(), compression="gzip"), "d.hdf5", read_demonstrations, (ValueError,), packs,
            hdf5_says,
        ),
        Case(
            "minari, ours", own, "main_data.hdf5", read_demonstrations, (ValueError,), packs, hdf5_says,
            beside("metadata.json", own_metadata),
        ),
        Case(
            "minari", foreign, "main_data.hdf5", read_demonstrations, (ValueError,), packs, hdf5_says,
            beside("metadata.json", metadata),
        ),
        Case("minari, metadata", metadata, "metadata.json", of_metadata, (ValueError,), text,
             prepare=beside("main_data.hdf5", foreign)),
        Case(
            "tianshou.hdf5", replay_buffer(tianshou(), [(33, 30)], vector=False), "d.hdf5", read_demonstrations,
            (ValueError,), (hdf5_mutation, attribute_mutation), replay_says,
        ),
        Case(
            "tianshou-vector.hdf5", replay_buffer(tianshou(), [(13, 10), (20, 40)]), "d.hdf5", read_demonstrations,
            (ValueError,), (hdf5_mutation, attribute_mutation), replay_says,
        ),
        Case("motions.npz", (folder / "motions.npz").read_bytes(), "m.npz", read_clips, mutations=zipped),
        Case("isaac-lab.npz", packed(isaac_lab()), "m.npz", read_clips, (ValueError,), zipped, arrays_say),
        Case("amp.txt", json.dumps(header()).encode(), "m.txt", read_clips, (ValueError,), text, text_says),
        Case(
            "refmotion.json", json.dumps({"a": header(), "b": header()}).encode(), "m.json", read_clips, (ValueError,),
            text, text_says,
        ),
        Case("beyond-mimic.npz", packed(beyond_mimic()), "m.npz", read_named, (ValueError,), zipped,
             states_say(load_npz, "joint_pos", "pos")),
        Case("loco-mujoco.npz", written("loco-mujoco", folder), "l.npz", read_clips, (ValueError,), zipped,
             states_say(load_npz, "angles", "pos")),
        Case("lafan1.csv", written("lafan1", folder), "m.csv", read_named, (ValueError,), (),
             states_say(load_table, np.s_[:, 7:], np.s_[:, :3])),
        Case("gmr.pkl", written("gmr", folder), "m.pkl", read_named, (ValueError,), pickled,
             states_say(pickle.loads, "dof_pos", "root_pos")),
        Case("amp-rsl-rl.npy", written("amp-rsl-rl", folder), "m.npy", read_named, (ValueError,), (),
             states_say(load_array, "joint_positions", "root_position")),
        Case("mimickit.pkl", written("mimickit", folder), "m.pkl", read_named, (ValueError,), pickled,
             states_say(load_frames, "angles", "pos")),
        Case("lists.pkl", pickle.dumps({"a": header()}), "m.pkl", read_pickle, (ValueError,), pickled, pickle_says),
        Case("arrays.pkl", pickle.dumps(arrays), "m.pkl", read_pickle, (ValueError,), pickled, pickle_says),
        Case(
            "arrays.pkl.z", zlib.compress(pickle.dumps(arrays)), "m.pkl", read_pickle, (ValueError,), pickled,
            pickle_says,
        ),
    ]  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    return campaign("datafiles", cases, words, __doc__)


if __name__ == "__main__":
    sys.exit(main())
