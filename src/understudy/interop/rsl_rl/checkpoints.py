"""Checkpoints of rsl_rl (2 to 5) and st_rl, `model_*.pt`, as policies of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from understudy.core.borders import parse_yaml, parsing
from understudy.interop.conversion import Side, Statistics, convert, inner, read_layers, unbounded
from understudy.interop.rsl_rl.facts import CONVENTION
from understudy.interop.rsl_rl.networks import ACTIVATIONS, read_activation, read_sizes
from understudy.interop.rsl_rl.reading import Block
from understudy.nn.heads import DistributionConfig
from understudy.nn.policy import ActorCritic
from understudy.runs.archive import read_archive
from understudy.runs.config import read_yaml
from understudy.runs.sources import check_options
from understudy.types import CheckpointError

_EPS = 1e-2
"""Their normaliser divides by the standard deviation plus this."""
_STD = ("std", "log_std", "distribution.std_param", "distribution.log_std_param")
_APART = ("teacher.", "teacher_obs_normalizer.", "memory_t.", "discriminator.", "amp_discriminator.")
"""In a checkpoint beside the policy, and no part of it."""
_NORMALIZERS = {"obs_norm": "actor", "privileged_obs_norm": "critic", "critic_obs_norm": "critic"}
_EXPORT = "let the program that wrote it export the policy (ONNX, TorchScript), and load that"


def read_policy(path: Path, options: Mapping[str, str], allow: Any = ()) -> ActorCritic:
    """The policy of a checkpoint: a student's, where it is a distillation's.

    Networks, normaliser and standard deviation come from the tensors. The activation, and which observation groups
    they see, come from `params/agent.yaml` beside the checkpoint; `options` "activation" and "mean_activation" go
    before that. Nothing of the file is run. Raises CheckpointError for a file of another kind, for networks that have
    no counterpart here, and where nothing says the activation.
    """
    check_options(options, ("activation", "mean_activation"), path)
    with parsing(path, "copy it again, or use an older checkpoint", CheckpointError):
        payload = read_archive(path)
        if not isinstance(payload, dict):
            raise ValueError(f"it holds a {type(payload).__name__}")
    own, other = _find_states(path, payload)
    said = _Said(path, options)
    actor = _side(path, own, said.group(own.who))
    critic = None if other is None else _side(path, other, said.group("critic"))
    if critic is not None and critic.group == actor.group:
        critic.group = "critic"  # it has a normaliser of its own
    log_std = said.bounded(_log_std(path, own.tensors))
    if said.hidden_sizes not in (None, actor.hidden_sizes):
        raise CheckpointError(
            f"{path} has hidden layers {list(actor.hidden_sizes)}, {said.file} says {list(said.hidden_sizes or ())}: "
            "it belongs to another checkpoint; put the right one there, or remove it"
        )
    if actor.layers[-1][1].shape != log_std.shape:
        raise CheckpointError(f"{path} has {len(actor.layers[-1][1])} outputs for {len(log_std)} actions: {_EXPORT}")
    return convert(
        str(path),
        actor,
        critic,
        unbounded(len(log_std)),
        log_std,
        distribution=DistributionConfig(kind="gaussian", mean_activation=said.mean_activation, head_gain=None),
        activation=said.activation,
        observation_clip=1e6,
        action_scaling="off",
        action_bound="none",
    )


class _State(NamedTuple):
    """The tensors of one side, and the prefixes of its layers, memory and normaliser."""

    who: str
    tensors: dict[str, Tensor]
    mlp: str = "mlp."
    rnn: str = "rnn.rnn."
    norm: str = "obs_normalizer."


def _find_states(path: Path, payload: dict[str, Any]) -> tuple[_State, _State | None]:
    """Who acts, and the critic, where there is one. Raises CheckpointError for a file without an actor."""
    for who in ("actor", "student"):
        if isinstance(tensors := payload.get(f"{who}_state_dict"), dict):
            critic = payload.get("critic_state_dict")
            return _State(who, tensors), _State("critic", critic) if isinstance(critic, dict) else None
    model = payload.get("model_state_dict", payload)
    if not isinstance(model, dict) or not any(str(name).startswith(("actor.", "student.")) for name in model):
        keys = ", ".join(map(str, payload))[:200]
        raise CheckpointError(
            f"{path} is a torch file with {keys or 'nothing in it'}: looked for model_state_dict or actor_state_dict "
            "(rsl_rl, st_rl) and format_version (understudy), found neither; weights alone need the program that made "
            f"them: {_EXPORT}"
        )
    tensors = {**model}
    for name, side in _NORMALIZERS.items():  # the runner's, beside the model
        kept: dict[str, Tensor] = payload.get(f"{name}_state_dict") or {}
        tensors |= {f"{side}_obs_normalizer.{key}": x for key, x in kept.items()}
    if any(name.startswith("actor.") for name in model):
        return _both("actor", tensors), _both("critic", tensors)
    for key in [name for name in tensors if name.startswith("actor_obs_normalizer.")]:
        tensors[key.replace("actor", "student", 1)] = tensors.pop(key)
    return _both("student", tensors), None


def _both(who: str, tensors: dict[str, Tensor]) -> _State:
    """One side of a model that holds both."""
    return _State(who, tensors, f"{who}.", f"memory_{who[0]}.rnn.", f"{who}_obs_normalizer.")


def _side(path: Path, state: _State, group: str) -> Side:
    """The networks of one side. Raises CheckpointError for others beside them."""
    sides = [state, *(_both(who, {}) for who in ("actor", "critic", "student") if state.mlp != "mlp.")]
    known = (*_APART, *(prefix for side in sides for prefix in (side.mlp, side.rnn, side.norm)))
    if other := sorted(name for name in state.tensors if not name.startswith(known) and name not in _STD):
        raise CheckpointError(
            f"{path}: the {state.who} has {', '.join(other[:3])} beside its layers, which has no counterpart here: "
            f"{_EXPORT}"
        )
    statistics = None
    if found := inner(state.tensors, state.norm):
        mean, std = found["_mean"].flatten(), found["_std"].flatten()
        statistics = Statistics(mean, std + _EPS, float(found["count"]))
    layers = read_layers(state.tensors, state.mlp, str(path))
    return Side(group, layers, inner(state.tensors, state.rnn), statistics)


def _log_std(path: Path, state: Mapping[str, Tensor]) -> Tensor:
    name = next((name for name in _STD if name in state), None)
    if name is None:
        raise CheckpointError(
            f"{path} has no standard deviation ({', '.join(_STD)}): its distribution depends on the state, is no "
            f"Gaussian, or there is none; {_EXPORT}"
        )
    std = state[name].float()
    if "log_std" in name:
        return std
    if not bool((std > 0.0).all()):
        raise CheckpointError(f"{path} has a standard deviation that is not positive; use an older checkpoint")
    return std.log()


class _Said:
    """What the tensors do not tell, from the options and the configuration beside the checkpoint."""

    def __init__(self, path: Path, options: Mapping[str, str]) -> None:
        places = (path.parent / "params/agent.yaml", path.parent / "agent.yaml")
        self.file = next(filter(Path.is_file, places), None)
        plain: Any = {}
        if self.file is not None:
            with parsing(self.file, "restore it, or remove it and say the activation", CheckpointError):
                # mjlab writes tuples
                plain = parse_yaml(read_yaml(self.file).replace("!!python/tuple", ""))
        problems: list[str] = []
        runner = Block(plain, "", problems)
        model = next((block for name in ("policy", "actor", "student") if (block := runner.block(name))), None)
        sets = runner.block("obs_groups")
        self.groups = {name: sets.take(name, tuple[str, ...], None) for name in [*sets.left]} if sets else {}
        model = model or Block({}, "", problems)
        noise = model.block("distribution_cfg") or Block({}, "", problems)
        self.range = noise.take("std_range", tuple[float, float], (0.0, float("inf")))
        sizes = next(
            (name for name in ("hidden_dims", "actor_hidden_dims", "student_hidden_dims") if name in model), ""
        )
        self.hidden_sizes = read_sizes(model, sizes, ()) if sizes and -1 not in _listed(model.left[sizes]) else None
        given = {"activation": options.get("activation"), "mu_activation": options.get("mean_activation")}
        model.left |= {name: text for name, text in given.items() if text is not None}
        if "activation" not in model:
            raise CheckpointError(
                f"{path} does not say its activation, which rsl_rl writes to params/agent.yaml beside it: put that "
                f"file there, or say it: {path},activation=elu (one of {', '.join(ACTIVATIONS)})"
            )
        self.activation = read_activation(model, "activation", "elu")
        mean = read_activation(model, "mu_activation", "identity")
        self.mean_activation = None if mean == "identity" else mean
        if problems:
            raise CheckpointError(f"{self.file or path}: {problems[0]}")

    def group(self, who: str) -> str:
        """The group that the actor, a student or the critic sees; several are joined by "+"."""
        names = self.groups.get(who) or (self.groups.get("policy") if who != "critic" else None)
        default = "critic" if who == "critic" else "policy"
        return "+".join(CONVENTION.get(name, name) for name in names or (default,))

    def bounded(self, log_std: Tensor) -> Tensor:
        """The logarithm of the standard deviation within the range that rsl_rl 5 keeps it in."""
        low, high = (torch.tensor(x).log() for x in self.range)
        return log_std.clamp(low, high)


def _listed(value: Any) -> list[Any]:
    return [*value] if isinstance(value, list | tuple) else [value]
