"""Exported policies, ONNX and TorchScript: this library's, rsl_rl's, mjlab's, Isaac Lab's; with a state or without."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from understudy.core.borders import parse_json, parsing
from understudy.core.extras import require
from understudy.core.spaces import Key, component, component_keys, tensor_dtype
from understudy.interop.conversion import unbounded
from understudy.nn.acting import ActingPolicy, Answer
from understudy.runs.codec import decode
from understudy.runs.sources import check_options
from understudy.runs.spaces import space_from_plain
from understudy.tools.export import METADATA
from understudy.types import CheckpointError

_REMEDY = "export the policy again"
CONSENT = "torch.jit"
"""What has to be allowed before a TorchScript program is loaded."""

Call = Callable[[list[Tensor], list[Tensor]], list[Tensor]]
"""Observations and states as the file has them -> the action, then the next states."""


class _Signature(NamedTuple):
    """What goes in and out, in the file's order."""

    space: spaces.Dict
    keys: tuple[Key, ...]
    actions: spaces.Space[Any]
    states: Sequence[tuple[int, ...]]
    """Shape of each state of one environment: `[S]`, or `[L, H]` where the file has it as `[L, N, H]`."""


def read_onnx(path: Path, options: Mapping[str, str], allow: Collection[str] = ()) -> ActingPolicy:
    """The policy in an ONNX file; onnxruntime executes it, on the CPU.

    Inputs: observations (one called "obs" is the group "policy", others are groups of their names), and states
    `NAME_in` whose outputs are `NAME_out`; the action is the output "actions", or the first. Weights beside the file
    are read from its folder only. Raises CheckpointError for another kind of file, ImportError that names the extra.
    """
    check_options(options, (), path)
    require("reading ONNX", "onnx", "onnxruntime", extra="export")
    import onnx
    import onnxruntime

    def session_of(model: Any) -> Any:
        quiet = onnxruntime.SessionOptions()
        quiet.intra_op_num_threads, quiet.log_severity_level = 1, 4
        content = model.SerializeToString()
        return onnxruntime.InferenceSession(content, quiet, ["CPUExecutionProvider"], enable_fallback=0)

    with parsing(path, _REMEDY, CheckpointError):
        model = onnx.load(str(path))
        session = session_of(model)
        signature, names, wanted, rows = _onnx_signature(path, session)
    policy = _policy(path, signature, _onnx_call(session, names, wanted), one_row=rows == 1)
    if rows == 1:  # most of what exporters write with one row computes many as well
        try:
            wide = _policy(path, signature, _onnx_call(session_of(_widened(model)), names, wanted), one_row=False)
            if _same_answers(policy, wide):
                return wide
        except Exception:  # a size is written into the graph: row by row, then
            return policy
    return policy


def _onnx_signature(path: Path, session: Any) -> tuple[_Signature, list[str], list[str], int]:
    """The signature, the names of inputs and outputs in its order, and the fixed number of rows, 0 for any."""
    outputs = [x.name for x in session.get_outputs()]
    action = next((name for name in ("action", "actions") if name in outputs), outputs[0])
    told = session.get_modelmeta().custom_metadata_map.get(METADATA)
    seen: dict[str, spaces.Space[Any]] = {}
    states: dict[str, tuple[int, ...]] = {}
    rows = [0]
    for x in session.get_inputs():
        shape = [*x.shape]
        if x.name.endswith("_in") and f"{x.name[:-3]}_out" in outputs:
            rows.append(_rows(shape, 1 if len(shape) == 3 else 0, x.name))
            states[x.name] = tuple(shape)
        else:
            rows.append(_rows(shape, 0, x.name))
            pixels = x.type == "tensor(uint8)"
            low, high, kind = (0, 255, np.uint8) if pixels else (-np.inf, np.inf, np.float32)
            seen[x.name] = spaces.Box(low, high, tuple(shape), kind)
    if max(rows) > 1:
        raise ValueError(f"its inputs have {max(rows)} rows; export it with one, or with a dynamic batch")
    last = next(x for x in session.get_outputs() if x.name == action)
    names, wanted = [*seen, *states], [action, *(f"{name[:-3]}_out" for name in states)]
    if told is not None:
        return _our_signature(path, told, [*states.values()]), names, wanted, max(rows)
    if last.type != "tensor(float)" or not isinstance(last.shape[-1], int):
        raise ValueError(f"its output {action!r} is {last.type} {last.shape}, not actions [N, A]")
    groups = {"policy" if name == "obs" else name: x for name, x in seen.items()}
    keys = tuple((name,) for name in groups)
    signature = _Signature(spaces.Dict(groups), keys, unbounded(last.shape[-1]), [*states.values()])
    return signature, names, wanted, max(rows)


def _onnx_call(session: Any, names: list[str], wanted: list[str]) -> Call:
    def call(observations: list[Tensor], state: list[Tensor]) -> list[Tensor]:
        arrays = [x.numpy(force=True) for x in (*observations, *state)]
        return [torch.from_numpy(np.asarray(x)) for x in session.run(wanted, dict(zip(names, arrays)))]

    return call


def _widened(model: Any) -> Any:
    """The graph with any number of rows in place of one."""
    for x in (*model.graph.input, *model.graph.output):
        sizes = x.type.tensor_type.shape.dim
        sizes[1 if len(sizes) == 3 and x.name.endswith(("_in", "_out")) else 0].dim_param = "batch"
    del model.graph.value_info[:]
    return model


def _same_answers(one: ActingPolicy, other: ActingPolicy) -> bool:
    """Whether both do the same with a few rows, and end in the same state."""
    generator = torch.Generator().manual_seed(0)
    obs, state = one.blank_observation(5), one.initial_state(5)
    for key in one.sensor_keys:
        x: Tensor = obs[key]
        obs[key] = torch.randn(x.shape, generator=generator) if x.is_floating_point() else x
    for _ in range(2):
        (x, after), (y, other_after) = one.act(obs, state), other.act(obs, state)
        pairs = [(x, y)] if after is None or other_after is None else [(x, y), (after, other_after)]
        if not all(a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-5) for a, b in pairs):
            return False
        state = after
    return True


def _rows(shape: list[Any], axis: int, name: str) -> int:
    """Take the batch out of a shape; its fixed size, 0 where it is dynamic. ValueError for other dynamic sizes."""
    rows = shape.pop(axis) if len(shape) > axis else None
    if not all(isinstance(size, int) for size in shape) or (rows is None and not shape):
        raise ValueError(f"its input {name!r} has no fixed size behind the batch: {shape}")
    return rows if isinstance(rows, int) else 0


def read_torchscript(path: Path, options: Mapping[str, str], allow: Collection[str] = ()) -> ActingPolicy:
    """The policy in a TorchScript file, a program that torch runs: `allow` has to list "torch.jit".

    Ours say what goes in. Of others, `forward(obs)` gives actions; buffers that it writes (`hidden_state`,
    `cell_state`: `[L, 1, H]`) are its state. The option "inputs" is the number of observations, where no weight tells.
    Raises CheckpointError without consent, and for a program of another kind.
    """
    if not any(f"{CONSENT}.".startswith(f"{name}.") for name in allow):
        raise CheckpointError(
            f"{path} is a TorchScript program, which torch would run: allow that with --allow-import {CONSENT} (from "
            f"Python: allow=({CONSENT!r},)) if you trust it"
        )
    check_options(options, ("inputs",), path)
    files = {METADATA: ""}
    with parsing(path, _REMEDY, CheckpointError), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # such files are what robots have
        program = torch.jit.load(str(path), map_location="cpu", _extra_files=files).eval()
    if told := files[METADATA]:
        text = told.decode() if isinstance(told, bytes) else told
        size = int(parse_json(text, finite=False)["state_size"])
        signature = _our_signature(path, text, [(size,)] if size else [])
        return _policy(path, signature, lambda obs, state: [*program(*obs, *state)], one_row=False)
    with parsing(path, "load the checkpoint that it was exported from", CheckpointError):
        arguments = [x.name for x in program.forward.schema.arguments[1:]]
        if len(arguments) != 1:
            raise ValueError(f"its forward takes {', '.join(arguments)}; one tensor of observations was looked for")
        size, actions = _probe(program, options)
        written = _written(program, torch.randn(1, size))
    shapes = [(x.shape[0], x.shape[2]) for x in written.values()]
    signature = _Signature(spaces.Dict(policy=unbounded(size)), (("policy",),), unbounded(actions), shapes)

    def call(observations: list[Tensor], state: list[Tensor]) -> list[Tensor]:
        for name, x in zip(written, state):
            _assign(program, name, x.clone())
        action = program(*observations)
        buffers = dict(program.named_buffers())
        return [action, *(buffers[name] for name in written)]

    return _policy(path, signature, call, one_row=False)


def _probe(program: Any, options: Mapping[str, str]) -> tuple[int, int]:
    """Numbers of observations and of actions. Raises ValueError if nothing that the weights suggest runs."""
    matrices = (x for x in program.state_dict().values() if x.ndim == 2)
    tried = [int(options["inputs"])] if "inputs" in options else dict.fromkeys(x.shape[1] for x in matrices)
    for size in tried:
        try:
            out = program(torch.zeros(1, size))
        except Exception:  # whatever a program raises for inputs that it is not made for
            continue
        if isinstance(out, Tensor) and out.ndim == 2 and len(out) == 1 and out.is_floating_point():
            return size, out.shape[1]
        raise ValueError(f"its forward returns {getattr(out, 'shape', type(out))}, not actions [N, A]")
    raise ValueError(f"it takes none of {[*tried]} observations: say how many, FILE,inputs=48")


def _written(program: Any, x: Tensor) -> dict[str, Tensor]:
    """The buffers that a step writes. Raises ValueError for others than `[L, 1, H]`."""
    before = {name: buffer.clone() for name, buffer in program.named_buffers()}
    program(x)
    after = dict(program.named_buffers())
    changed = {name: buffer for name, buffer in before.items() if not torch.equal(buffer, after[name])}
    for name, buffer in changed.items():
        if buffer.ndim != 3 or buffer.shape[1] != 1:
            raise ValueError(f"it remembers something in {name} {tuple(buffer.shape)}, which is no state [L, 1, H]")
    return changed


def _assign(program: Any, name: str, value: Tensor) -> None:
    place, _, last = name.rpartition(".")
    setattr(dict(program.named_modules())[place], last, value)


def _our_signature(path: Path, metadata: str, states: list[tuple[int, ...]]) -> _Signature:
    """What our exporter wrote beside the program."""
    with parsing(path, _REMEDY, CheckpointError):
        told = parse_json(metadata, finite=False)
        space, actions = (
            space_from_plain(decode(dict[str, Any], told[name], name), name)
            for name in ("observation_space", "action_space")
        )
        if not isinstance(space, spaces.Dict):
            raise ValueError("it has no observation groups")
        known = {"obs/" + "/".join(key): key for key in component_keys(space)}
        keys = tuple(known[row["name"]] for row in told["observations"])
    return _Signature(space, keys, actions, states)


def _policy(path: Path, signature: _Signature, call: Call, *, one_row: bool) -> ActingPolicy:
    """The program as a policy; `one_row`: it takes one observation at a time."""
    space, keys, actions, states = signature
    sizes = [math.prod(shape) for shape in states]
    dtypes = [tensor_dtype(component(space, key)) for key in keys]

    @torch.no_grad()
    def many(inputs: Mapping[Key, Tensor], state: Tensor | None) -> Answer:
        seen = [inputs[key].cpu().to(dtype) for key, dtype in zip(keys, dtypes)]
        parts = [] if state is None else [*state.cpu().split(sizes, dim=-1)]
        before = [_unpack(x, shape) for x, shape in zip(parts, states)]
        action, *after = call(seen, before)
        if state is None:
            return action, None
        packed = [x.movedim(1, 0).flatten(1) if x.ndim == 3 else x for x in after]
        return action, torch.cat(packed, dim=-1).to(state.device)

    def rows(inputs: Mapping[Key, Tensor], state: Tensor | None) -> Answer:
        count = len(next(iter(inputs.values())))
        found = [
            many({k: x[n : n + 1] for k, x in inputs.items()}, None if state is None else state[n : n + 1])
            for n in range(count)
        ]
        after = [x for _, x in found if x is not None]
        return torch.cat([action for action, _ in found]), torch.cat(after) if after else None

    policy = ActingPolicy(rows if one_row else many, space, actions, sum(sizes), str(path), keys)
    with parsing(path, _REMEDY, CheckpointError):
        policy.run_actor(policy.blank_observation(1), policy.initial_state(1))
    return policy.eval()


def _unpack(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A state `[N, S]` as the file has it: `[N, S]` or `[L, N, H]`."""
    return x if len(shape) == 1 else x.view(len(x), *shape).movedim(0, 1).contiguous()
