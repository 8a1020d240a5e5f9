"""Policies of Stable-Baselines3's PPO and A2C (and of sb3-contrib's recurrent PPO), from the zip that `save` writes."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from understudy.core.borders import check_unpacked, parse_json, parsing
from understudy.core.check import nearest
from understudy.core.spaces import Key, is_box, shape_of, unflatten
from understudy.interop.conversion import Side, Statistics, convert, inner, read_layers
from understudy.nn.acting import ActingPolicy, Answer
from understudy.nn.heads import DistributionConfig
from understudy.nn.networks import ACTIVATIONS, Activation, CNNConfig, EncoderConfig
from understudy.nn.protocol import Policy
from understudy.runs.archive import read_archive
from understudy.runs.sources import check_options
from understudy.types import CheckpointError

_ACTIVATIONS: dict[str, Activation] = {kind.__name__: name for name, kind in ACTIVATIONS.items()}
_NATURE = [(32, 8, 8), (64, 4, 4), (64, 3, 3)]
"""Channels and kernels of NatureCNN; our default is the same network."""
_OWN = ("stable_baselines3.common.policies", "sb3_contrib.common.recurrent.policies")
_INSTEAD = "name a function that calls its predict, module:function, or export the policy (ONNX, TorchScript)"
_NORMALIZED = ("vecnormalize.pkl", "vec_normalize.pkl")


def read_policy(path: Path, options: Mapping[str, str], allow: Any = ()) -> Policy:
    """The policy of a zip: its `policy.pth`, and what `data` says in plain JSON; nothing in it is unpickled.

    The statistics of a VecNormalize are in a pickle of their own, which is not read: the option "statistics" names an
    npz with `mean`, `var` and, where they are not the defaults, `count`, `epsilon` and `clip_obs`; "none" does without.
    The option "activation" goes before what `data` says. Of gSDE only the deterministic action is given, squashed as
    there. Raises CheckpointError for other algorithms and networks.
    """
    check_options(options, ("statistics", "activation"), path)
    with parsing(path, "save the model again", CheckpointError), zipfile.ZipFile(path) as archive:
        content = {}
        for name in ("data", "policy.pth"):
            check_unpacked(path, path.stat().st_size, archive.getinfo(name).file_size)
            content[name] = archive.read(name)
        data = parse_json(content["data"], finite=False)
        state = read_archive(path, content["policy.pth"])
        if not isinstance(data, dict) or not isinstance(state, dict):
            raise ValueError("it holds no model")
        observed, acted = (_space(data, f"{name}_space") for name in ("observation", "action"))
    kwargs = data.get("policy_kwargs") or {}
    _check_kind(path, state)
    sides = {}
    for who, short in (("policy", "pi"), ("value", "vf")):
        layers = []
        if any(name.startswith(f"mlp_extractor.{who}_net.") for name in state):
            layers = read_layers(state, f"mlp_extractor.{who}_net.", str(path))
        output = "action_net" if who == "policy" else "value_net"
        layers.append((state[f"{output}.weight"], state[f"{output}.bias"]))
        memory = inner(state, "lstm_actor." if who == "policy" else "lstm_critic.")
        own = inner(state, f"{short}_features_extractor.") or inner(state, "features_extractor.")
        group = "policy" if who == "policy" else "critic"
        sides[group] = Side(group, layers, memory, _statistics(path, options, observed), observed, _encoder(path, own))
    image = bool(sides["policy"].encoder)
    if image and kwargs.get("normalize_images") is False:
        raise CheckpointError(f"{path} reads bytes as they are (normalize_images=False), ours are scaled: {_INSTEAD}")
    cnn = CNNConfig(channel_axis="first" if image else "auto")
    clip = sides["policy"].statistics
    squashed = bool(data.get("use_sde")) and kwargs.get("squash_output") is True
    policy = convert(
        str(path),
        sides["policy"],
        sides["critic"],
        acted,
        None if data.get("use_sde") else state.get("log_std"),
        distribution=DistributionConfig(head_gain=None),
        activation=_activation(path, options, data, kwargs),
        encoder=EncoderConfig(cnn=cnn, kind="auto" if image else "vector"),
        observation_clip=10.0 if clip is None or clip.clip is None else clip.clip,
        action_scaling="on" if squashed else "off",
        action_bound="tanh" if squashed else "clip",
    )
    if not data.get("use_sde"):
        return policy

    def mean(inputs: Mapping[Key, Tensor], _: Tensor | None) -> Answer:
        return policy.act(unflatten(tuple(inputs), inputs.values(), [len(next(iter(inputs.values())))]))[0], None

    return ActingPolicy(mean, policy.observation_space, acted, 0, str(path), policy.sensor_keys)


def _check_kind(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for what is no actor-critic of theirs."""
    if "action_net.weight" not in state or "value_net.weight" not in state:
        raise CheckpointError(
            f"{path} has {', '.join(sorted(state)[:3])}, ...: action_net and value_net (PPO, A2C) were looked for. "
            f"For SAC, TD3, DQN and others {_INSTEAD}"
        )
    known = (
        *("mlp_extractor.policy_net.", "mlp_extractor.value_net.", "action_net.", "value_net.", "lstm_actor."),
        *("lstm_critic.", "features_extractor.", "pi_features_extractor.", "vf_features_extractor."),
    )
    if other := sorted(name for name in state if not name.startswith(known) and name != "log_std"):
        raise CheckpointError(f"{path} has {', '.join(other[:3])}, which has no counterpart here: {_INSTEAD}")


def _space(data: Mapping[str, Any], name: str) -> spaces.Space[Any]:
    """A space from what is plain text of it. Raises ValueError for another kind than Box, Discrete and the like."""
    plain = data.get(name) or {}
    kind = str(plain.get(":type:")).rpartition(".")[2].strip("'>")
    if kind == "Box":
        shape, dtype = tuple(map(int, plain["_shape"])), np.dtype(plain["dtype"])
        default = (0, 255) if dtype == np.uint8 else (-np.inf, np.inf)
        low, high = (_numbers(plain[side], shape, x, dtype) for side, x in zip(("low", "high"), default))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(int(plain["n"]), start=int(plain.get("start") or 0))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete([int(x) for x in re.findall(r"\d+", plain["nvec"])])
    if kind == "MultiBinary":
        return spaces.MultiBinary(int(plain["n"]))
    raise ValueError(f"its {name} is a {kind}, which has no counterpart here: {_INSTEAD}")


def _numbers(text: str, shape: tuple[int, ...], default: float, dtype: np.dtype[Any]) -> np.ndarray:
    """The numbers that numpy printed; `default` where it left some out."""
    found = re.findall(r"[-+]?(?:inf|\d+\.?\d*(?:e[-+]?\d+)?)", text)
    if "..." in text or len(found) != math.prod(shape):
        return np.full(shape, default, dtype)
    return np.array([float(x) for x in found]).astype(dtype).reshape(shape)


def _encoder(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A NatureCNN as our encoder; nothing where there is none. Raises CheckpointError for another extractor."""
    if not state:
        return {}
    convolutions = [state.get(f"cnn.{number}.weight", torch.empty(0)) for number in (0, 2, 4)]
    shapes = [(x.shape[0], *x.shape[2:]) for x in convolutions if x.ndim == 4]
    if shapes != _NATURE or len(state) != 8:
        some = ", ".join(sorted(state)[:3])
        raise CheckpointError(f"{path} has a features extractor of its own ({some}): {_INSTEAD}")
    return {name.replace("cnn.", "convolutions.").replace("linear.", "mlp.layers."): x for name, x in state.items()}


def _activation(
    path: Path, options: Mapping[str, str], data: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> Activation:
    text = kwargs.get("activation_fn")
    if name := options.get("activation"):
        found = next((known for known in ACTIVATIONS if known == name), None)
    elif text is None and (data.get("policy_class") or {}).get("__module__") in _OWN:
        found = "tanh"
    else:
        name = str(text).rpartition(".")[2].strip("'>")
        found = _ACTIVATIONS.get(name)
    if found is None:
        raise CheckpointError(
            f"{path} has the activation {name!r}, which is unknown: say it, {path},activation=relu "
            f"({nearest(str(name), ACTIVATIONS)})"
        )
    return found


def _statistics(path: Path, options: Mapping[str, str], space: spaces.Space[Any]) -> Statistics | None:
    """VecNormalize's statistics, from an npz. Raises CheckpointError where only a pickle has them."""
    source = options.get("statistics")
    if source is None:
        folders = (path.parent, path.parent / path.stem)
        pickled = [folder / name for folder in folders for name in _NORMALIZED if (folder / name).is_file()]
        if pickled:
            raise CheckpointError(
                f"{path} was trained with the normalisation in {pickled[0]}, a pickle: its statistics cannot be read "
                "without executing it. Write them where Stable-Baselines3 is installed, v = VecNormalize.load(...); "
                "np.savez('statistics.npz', mean=v.obs_rms.mean, var=v.obs_rms.var, count=v.obs_rms.count, "
                f"epsilon=v.epsilon, clip_obs=v.clip_obs), and load {path},statistics=statistics.npz (or "
                "statistics=none)"
            )
    if source in (None, "none"):
        return None
    with parsing(str(source), "write it as docs/bring-your-teacher.md shows", CheckpointError):
        with np.load(str(source), allow_pickle=False) as arrays:
            named = {name: np.asarray(arrays[name], np.float64) for name in arrays.files if name in _STATISTICS}
        mean, var = named["mean"], named["var"]
        if not is_box(space) or mean.shape != var.shape or mean.shape != shape_of(space):
            raise ValueError(f"its mean has the shape {mean.shape}, the policy sees {space}")
        if not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0.0).all()):
            raise ValueError("its numbers are not finite, or a variance is negative")
        deviation = np.sqrt(var + float(named.get("epsilon", 1e-8)))
    return Statistics(
        torch.as_tensor(mean),
        torch.as_tensor(deviation),
        float(named.get("count", 1e6)),
        float(named.get("clip_obs", 10.0)),
    )


_STATISTICS = ("mean", "var", "count", "epsilon", "clip_obs")
