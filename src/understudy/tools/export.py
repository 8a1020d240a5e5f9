"""One file that acts without this library: normaliser, networks, estimators and action map inside, and checked."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from understudy.core.borders import parse_json, parsing
from understudy.core.check import fit
from understudy.core.extras import require
from understudy.core.files import replacing
from understudy.core.quiet import quiet
from understudy.core.sanity import without_faults
from understudy.core.spaces import Key
from understudy.envs.observations import Segments
from understudy.nn.check_policy import random_rows
from understudy.nn.protocol import Policy
from understudy.runs.checkpoint import PolicyDescription
from understudy.runs.codec import decode
from understudy.runs.policies import describe_policy, rebuild_policy
from understudy.runs.sources import check_options
from understudy.types import CheckpointError
from understudy.version import __version__

ExportFormat = Literal["onnx", "torchscript", "safetensors"]
SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}

CHECKSUM = "sha256"
"""Key of the checksum of weights and metadata in the safetensors header."""
METADATA = "understudy"
"""Key of the JSON metadata: in the ONNX metadata, the safetensors header, and (a file) in the TorchScript archive."""
TOLERANCE = 1e-5  # between the file and the policy, relative to actions of size 1
CHECKED_INPUTS, CHECKED_STEPS = 1000, 100
OPSET = 18

Act = Callable[[list[Tensor]], list[Tensor]]
"""Observations in the order of the metadata, then the state if there is one -> the action, then the next state."""


class ExportError(ValueError):
    """What was written does not act as the policy does, or could not be written; an older file stays as it was."""


class DeployedPolicy(nn.Module):
    """The deterministic actor as a function of tensors: components `[B, ...]`, state `[B, S]` -> action, next state.

    The state is the actor's share, zeros at the start of an episode; the critic is left out. As in `act`, 0 stands in
    for NaN and absurd numbers.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.keys: tuple[Key, ...] = policy.sensor_keys
        self.state_size = policy.actor_state_size
        for i, key in enumerate(self.keys):
            self.register_buffer(f"limit_{i}", torch.as_tensor(policy.sane_limit(key)).clone())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`(action,)`, or `(action, next state)` of a recurrent policy."""
        state = inputs[len(self.keys)] if self.state_size else None
        sane = {key: without_faults(inputs[i], self.get_buffer(f"limit_{i}")) for i, key in enumerate(self.keys)}
        distribution, new_state, _ = self.policy.run_actor(sane, state, None)
        action = self.policy.action_map(distribution.mode())
        return (action,) if new_state is None else (action, new_state)


def export_policy(
    policy: Policy,
    path: Path | str,
    format: ExportFormat = "onnx",
    task: str = "",
    segments: Segments | None = None,
    robot: Mapping[str, Any] | None = None,
) -> Path:
    """Write the policy to `path` as one file and compare what it does with the policy, on random inputs.

    onnx and torchscript take observations (and state) and give the executed action; safetensors holds all weights,
    `read_safetensors` makes a policy of it. `task` is the environment's id and `segments` how its flat vectors were cut
    into components (`EnvConfig.segments`), both for the metadata. `robot` is what a robot has to know beside it (joint
    names, stiffness, default positions, ...), under mjlab's keys: in the JSON metadata as "robot", and in an ONNX file
    also key by key, as comma-separated text. Raises ValueError for an unknown format, ExportError
    where the file differs from the policy or cannot be written, ImportError that names the extra to install.
    """
    fit(ExportFormat, format, "format")
    path = Path(path)
    write = {"onnx": _write_onnx, "torchscript": _write_torchscript, "safetensors": _write_safetensors}[format]
    device, training = policy.device, policy.training
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        policy.cpu().eval()
        with torch.no_grad(), replacing(path) as unfinished:
            described = describe(policy, task, segments) | {"robot": {**(robot or {})}}
            act = write(policy, unfinished, json.dumps(described))
            check_same_actions(policy, act)
    except OSError as error:
        raise ExportError(
            f"could not write {path}: {error.strerror or error}; make room, or choose another file"
        ) from error
    finally:
        policy.to(device).train(training)
    return path


def describe(policy: Policy, task: str = "", segments: Segments | None = None) -> dict[str, Any]:
    """The metadata: what goes in, in which order, and what comes out."""
    observations = []
    for key, blank in zip(policy.sensor_keys, _blank(policy)):
        row = {"name": "obs/" + "/".join(key), "group": key[0], "component": "/".join(key[1:]) or None}
        observations.append(row | {"shape": list(blank.shape[1:]), "dtype": str(blank.dtype).removeprefix("torch.")})
    c = policy.config
    return {
        "understudy_version": __version__,
        "task": task,
        "observations": observations,
        "segments": {group: dict(sizes) for group, sizes in (segments or {}).items()},
        "state_size": policy.actor_state_size,
        "estimators": {name: list(head.targets) for name, head in c.estimators.items()},
        "action_scaling": c.action_scaling,
        "action_bound": c.action_bound,
        **describe_policy(policy),
    }


def read_safetensors(path: Path | str, *, allow: Collection[str] = (), policy: Policy | None = None) -> Policy:
    """The policy that `export_policy` wrote as safetensors; `allow` and `policy` as in `us.load`.

    Raises ValueError if the file is damaged or holds no policy, CheckpointError if its policy cannot be rebuilt.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    with parsing(path, "export the policy again"):
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if METADATA not in header:
            raise ValueError(f"{path} holds tensors, but not a policy: it has no {METADATA!r} in its header")
        if header.get(CHECKSUM, checksum := _checksum(weights, header[METADATA])) != checksum:
            raise ValueError("its checksum is another")
        plain = decode(dict[str, Any], parse_json(header[METADATA], finite=False), "its description")
        described = {field.name for field in dataclasses.fields(PolicyDescription)}
        description = decode(PolicyDescription, {key: plain[key] for key in plain if key in described}, "")
    return rebuild_policy(description, weights, str(path), allow=allow, policy=policy)


def read_exported(path: Path, options: Mapping[str, str], allow: Collection[str] = ()) -> Policy:
    """`read_safetensors`, as `us.load` calls the readers of files. Raises CheckpointError."""
    check_options(options, (), path)
    try:
        return read_safetensors(path, allow=allow)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _checksum(weights: Mapping[str, Tensor], metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name, x in sorted(weights.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------- writing


def _write_onnx(policy: Policy, path: Path, metadata: str) -> Act:
    require("exporting to ONNX", "onnx", "onnxruntime", "onnxscript", extra="export")
    import onnx
    import onnxruntime

    deployed = DeployedPolicy(policy)
    rows = [f"obs/{'/'.join(key)}" for key in deployed.keys]
    state_in, state_out = (["state_in"], ["state_out"]) if deployed.state_size else ([], [])
    example = tuple(_example(policy))
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployed,
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[*rows, *state_in],
            output_names=["action", *state_out],
            dynamic_shapes=(tuple({0: batch} for _ in example),),
        )
    assert program is not None
    model = program.model_proto
    robot = {key: _listed(value) for key, value in json.loads(metadata).get("robot", {}).items()}
    onnx.helper.set_model_props(model, {**robot, METADATA: metadata})
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def act(inputs: list[Tensor]) -> list[Tensor]:
        feed = dict(zip([*rows, *state_in], (x.numpy() for x in inputs)))
        return [torch.from_numpy(np.asarray(x)) for x in session.run(None, feed)]

    return act


def _listed(value: Any) -> str:
    """A value as mjlab's deployers read it: entries between commas, entries of an entry between semicolons."""

    def one(entry: Any) -> str:
        if isinstance(entry, list | tuple):
            return ";".join(map(one, entry))
        return f"{entry:.6g}" if isinstance(entry, int | float) else str(entry)

    return ",".join(map(one, value)) if isinstance(value, list | tuple) else str(value)


def _write_torchscript(policy: Policy, path: Path, metadata: str) -> Act:
    deployed = DeployedPolicy(policy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is announced as deprecated, its files are what robots read
        traced = torch.jit.trace(deployed, tuple(_example(policy)), check_trace=False)
        buffer = io.BytesIO()  # torch's own file writer aborts the process on a full disk
        torch.jit.save(traced, buffer, _extra_files={METADATA: metadata})
        path.write_bytes(buffer.getvalue())
        loaded = torch.jit.load(str(path))
    return lambda inputs: list(loaded(*inputs))


def _write_safetensors(policy: Policy, path: Path, metadata: str) -> Act:
    weights = {name: x.detach().clone().contiguous() for name, x in policy.state_dict().items()}
    path.write_bytes(save(weights, metadata={METADATA: metadata, CHECKSUM: _checksum(weights, metadata)}))
    if policy.built_from is None:  # given as an object: only its owner can make another one
        return lambda inputs: list(DeployedPolicy(policy)(*inputs))
    loaded = DeployedPolicy(read_safetensors(path, allow=policy.built_from.modules))
    return lambda inputs: list(loaded(*inputs))


# ---------------------------------------------------------------------------------------------------- checking


@torch.no_grad()
def check_same_actions(policy: Policy, act: Act) -> None:
    """Compare on 1,000 random inputs, on one row, and with a state over 100 steps of which some begin an episode.

    Raises ExportError with the largest difference.
    """
    reference = DeployedPolicy(policy)
    generator = torch.Generator().manual_seed(0)
    for batch in (CHECKED_INPUTS, 1):
        inputs = _random(policy, batch, generator)
        where = f"on {batch} random inputs"
        try:
            given = act(inputs)
        except Exception as error:  # whatever the runtime raises, the file cannot be used
            raise ExportError(f"the exported file does not run {where}: {error}") from error
        _compare(list(reference(*inputs)), given, where)
    if not policy.actor_state_size:
        return
    ours = theirs = torch.zeros(8, policy.actor_state_size)
    for step in range(CHECKED_STEPS):
        inputs = _random(policy, 8, generator)[:-1]
        action, ours = reference(*inputs, ours)
        found, theirs = act([*inputs, theirs])
        _compare([action, ours], [found, theirs], f"in step {step} from the same state")
        begins = torch.rand(8, 1, generator=generator) < 0.1
        ours, theirs = ours.masked_fill(begins, 0.0), theirs.masked_fill(begins, 0.0)


def _compare(expected: list[Tensor], found: list[Tensor], where: str) -> None:
    for x, y in zip(expected, found, strict=True):
        if x.shape != y.shape:
            raise ExportError(f"the exported file gives {tuple(y.shape)} {where}, the policy {tuple(x.shape)}")
        if not x.numel():
            continue
        if not x.is_floating_point():  # rounding may turn the choice between two equally likely actions
            wrong = float((x != y).double().mean())
            if wrong > 1.0 / CHECKED_INPUTS:
                raise ExportError(f"the exported file chooses another action than the policy in {wrong:.1%} {where}")
            continue
        error = float((x - y).abs().max())
        if not error <= TOLERANCE * max(1.0, float(x.abs().max())):
            raise ExportError(f"the exported file differs from the policy by {error:.2g} {where}")


def _blank(policy: Policy, batch: int = 1) -> list[Tensor]:
    blank = policy.blank_observation(batch)
    return [blank[key] for key in policy.sensor_keys]


def _example(policy: Policy) -> list[Tensor]:
    """Inputs to record with; no size of an action equals their batch, which the exporter would take for the same."""
    batch = policy.head.num_params + 1
    state = [torch.zeros(batch, policy.actor_state_size)] if policy.actor_state_size else []
    return [*_blank(policy, batch), *state]


def _random(policy: Policy, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Observations as the normaliser has seen them, and a state."""
    rows = random_rows(policy, batch, generator)
    inputs = [rows[key] for key in policy.sensor_keys]
    if policy.actor_state_size:
        inputs.append(0.5 * torch.randn(batch, policy.actor_state_size, generator=generator))
    return inputs
