"""Capture: run a fixed-shape function of named tensors without paying for autograd, modules and dispatch on every call.

The per-step and per-minibatch functions of PPO are small (64 rows, two hidden layers), so that their time is
overhead, not arithmetic. `capture` records such a function once as a flat list of aten calls, backward included,
simplifies the list without changing a single number, and replays it as straight-line Python under inference mode.
Captured code has static shapes, no `.item()`, no Python branch on a tensor and no module that reassigns its buffers;
a number that changes in training is a 0-D tensor.

Modes: "eager" calls the function as it is (slowest, for debugging), "trace" is the above (milliseconds to
prepare, the default), "compile" hands the traced list to `torch.compile` (tens of seconds the first time, fastest for
wide networks), "cudagraph" records the traced list into a CUDA graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from understudy.core.check import fit
from understudy.core.lowering import Lowering

CaptureMode = Literal["eager", "trace", "compile", "cudagraph"]

Batch = Mapping[Any, Tensor]
"""Named tensors, flat: a name is a string, or a tuple of strings as in a TensorDict; the order of names is fixed."""

BatchFunction = Callable[[Batch], dict[Any, Tensor]]
Program = Callable[..., tuple[Tensor, ...]]

aten = torch.ops.aten

_WAYS_OUT = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
_HOST_READ = (
    "captured code reads a number or a count from a tensor (.item(), bool(), tolist(), nonzero, x[mask], one_hot): "
    "keep it on the device as a 0-D tensor, or use torch.where"
)


def capture(function: BatchFunction, mode: CaptureMode = "trace", out: Batch | None = None) -> BatchFunction:
    """A faster stand-in for `function`, which maps named tensors to named tensors.

    It is prepared at the first call for each combination of names and shapes. A result whose name is in `out` is
    written into that tensor (same shape), the others are returned. Raises ValueError for an unknown mode.
    """
    fit(CaptureMode, mode, "capture")
    return _Eager(function, out or {}) if mode == "eager" else _Traced(function, mode, out or {})


def unbind(batch: Batch) -> list[dict[Any, Tensor]]:
    """The M batches that are stacked in tensors `[M, ...]`."""
    return [dict(zip(batch, row)) for row in zip(*(x.unbind(0) for x in batch.values()))]


class _Eager:
    def __init__(self, function: BatchFunction, out: Batch) -> None:
        self.function, self.out = function, out

    def __call__(self, batch: Batch) -> dict[Any, Tensor]:
        results = self.function(batch)
        with torch.no_grad():
            for name, target in self.out.items():
                target.copy_(results[name])
        return {name: x.detach() for name, x in results.items() if name not in self.out}


class _Traced:
    """One prepared program, and the names of its results, for each combination of names and shapes."""

    def __init__(self, function: BatchFunction, mode: CaptureMode, out: Batch) -> None:
        self.function, self.mode, self.out = function, mode, out
        self.programs: dict[Any, tuple[Program, tuple[Any, ...]]] = {}
        self.last: tuple[Any, Any] = (None, None)

    def __call__(self, batch: Batch) -> dict[Any, Tensor]:
        tensors = tuple(batch.values())
        key = (tuple(batch), tuple([x.shape for x in tensors]))
        if key != self.last[0]:  # names are mostly the same objects: comparing costs less than hashing
            if key not in self.programs:
                self.programs[key] = self._prepare(batch)
            self.last = key, self.programs[key]
        program, names = self.last[1]
        with torch.inference_mode():
            return dict(zip(names, program(*tensors)))

    def _prepare(self, batch: Batch) -> tuple[Program, tuple[Any, ...]]:
        program, names = trace(self.function, batch, self.out)
        if self.mode == "compile":
            program = torch.compile(program, fullgraph=True, dynamic=False)
        elif self.mode == "cudagraph":
            program = _cuda_graph(program, tuple(batch.values()))
        return program, names


def trace(function: BatchFunction, batch: Batch, out: Batch) -> tuple[Program, tuple[Any, ...]]:
    """The straight-line program of `function` for these names and shapes, and the names of what it returns.

    The program takes the tensors of a batch in the order of their names; `out` as in `capture`.
    """
    devices = {x.device for x in batch.values() if x.device.type == "cuda"}
    tape = _Tape(tuple(batch.values()))
    # recording runs the function once
    with torch.random.fork_rng(devices=[d.index or 0 for d in devices]), _NoHostReads(), tape:
        results = function(batch)
    names = tuple(name for name in results if name not in out)
    nodes = [tape.node(results[name]) for name in (*out, *names)]
    forward, constants = Lowering(tape.graph, tape.fixed, tape.constant, nodes).lower(tuple(out.values()))

    def program(*inputs: Tensor) -> tuple[Tensor, ...]:
        return forward(*inputs, *constants)

    return program, names


class _NoHostReads(TorchFunctionMode):
    """Refuses the ways out of a tensor that no dispatcher sees: the numbers would be frozen into the program."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _WAYS_OUT:
            raise ValueError(_HOST_READ)
        return func(*args, **(kwargs or {}))


class _Tape(TorchDispatchMode):
    """Records every aten call below autograd, forward and backward, as a node of a graph.

    Tensors are known by identity. One that neither came in nor was made on the way is a constant of the function:
    a parameter, a buffer, a literal.
    """

    def __init__(self, args: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.alive: list[Tensor] = []  # an id is only unique while its tensor lives
        self.given = {x.untyped_storage().data_ptr() for x in args}  # storages of arguments and constants
        self.made: set[int] = set()  # storages that came to be while recording
        self.fixed: dict[fx.Node, Tensor] = {}
        for i, x in enumerate(args):
            self._learn(x, self.graph.placeholder(f"arg_{i}"))
        self.last_placeholder = next(iter(reversed(self.graph.nodes)))

    def _learn(self, x: Tensor, node: fx.Node) -> None:
        self.nodes[id(x)] = node
        self.alive.append(x)
        node.meta["val"] = x

    def node(self, x: Tensor) -> fx.Node:
        """The node that stands for a tensor."""
        known = self.nodes.get(id(x))
        if known is not None:
            return known
        if x.untyped_storage().data_ptr() in self.made and x.numel():
            raise RuntimeError("capture lost track of a tensor; run with capture='eager' and report this")
        return self.constant(x)

    def constant(self, x: Tensor) -> fx.Node:
        """A new constant of the program, behind its arguments."""
        with self.graph.inserting_after(self.last_placeholder):
            node = self.graph.placeholder(f"constant_{len(self.fixed)}")
        self.last_placeholder = node
        self.fixed[node] = x
        self.given.add(x.untyped_storage().data_ptr())
        self._learn(x, node)
        return node

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _depends_on_values(func, args):
            raise ValueError(_HOST_READ)
        kwargs = kwargs or {}
        if any(isinstance(value, torch.Generator) for value in kwargs.values()):
            raise ValueError(
                "captured code draws from a torch.Generator, which a recording cannot hold: draw before (a part does "
                "so in `sample`) and pass the numbers in, or draw from torch's global stream"
            )
        node_args, node_kwargs = tree_map_only(Tensor, self.node, (args, kwargs))
        result = func(*args, **kwargs)
        node = self.graph.call_function(func, node_args, node_kwargs)
        if isinstance(result, Tensor):
            self._made(result, node)
        else:
            node.meta["val"] = None
            for i, item in enumerate(result):
                if isinstance(item, Tensor):
                    self._made(item, self.graph.call_function(operator.getitem, (node, i)))
        return result

    def _made(self, x: Tensor, node: fx.Node) -> None:
        """In-place operators return their first argument: from here on, it means the new node."""
        self._learn(x, node)
        storage = x.untyped_storage().data_ptr()
        if storage not in self.given:
            self.made.add(storage)


def _depends_on_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the result is a host number, or its shape depends on the values."""
    if func is aten.index.Tensor:  # only a mask makes a shape that depends on values
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _cuda_graph(program: Program, tensors: tuple[Tensor, ...]) -> Program:
    """Record the program into a CUDA graph with its own input and output buffers."""
    inputs = [x.clone() for x in tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):  # library handles and workspaces are made outside the recording
            program(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        results = program(*inputs)

    # `kept`: the graph reads the constants that the program holds, long after the recording
    def replay(*new: Tensor, kept: Program = program) -> tuple[Tensor, ...]:
        torch._foreach_copy_(inputs, new, non_blocking=True)
        graph.replay()
        # the next replay overwrites the recorded results
        fresh = tuple([torch.empty_like(x) for x in results])
        torch._foreach_copy_(fresh, results)
        return fresh

    return replay
