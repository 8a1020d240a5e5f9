"""Lowering: rewrites a recorded graph of aten calls into a quicker one that computes the same bits."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_NO_OPS = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
_BOUND = """add.Tensor addcmul addmm argmax bitwise_and.Tensor cat clamp clamp.Tensor cos div.Tensor div.Scalar
eq.Tensor exp ge.Scalar ge.Tensor gt.Scalar gt.Tensor le.Scalar le.Tensor log logical_and lt.Scalar lt.Tensor
maximum mean mean.dim minimum mm mul.Tensor mul.Scalar neg permute pow.Tensor_Scalar relu rsub.Scalar select.int
sigmoid sin sqrt squeeze.dim stack sub.Tensor sum sum.dim_IntList t tanh transpose.int unsqueeze where.self
zeros_like"""
# The same operator through torch's own Python binding costs half of what the generic overload call does.
_BINDINGS: dict[Any, Callable[..., Any]] = {
    getattr(getattr(aten, name), overload or "default"): getattr(torch, name)
    for name, _, overload in (operation.partition(".") for operation in _BOUND.split())
}
_CONSTRUCTORS = {
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.scalar_tensor.default,
    aten.full.default,
    aten.ones.default,
    aten.zeros.default,
    aten.new_zeros.default,
    aten.new_ones.default,
}
_PURE = {
    aten.add_.Tensor: aten.add.Tensor,
    aten.div_.Tensor: aten.div.Tensor,
    aten.fill_.Scalar: aten.fill.Scalar,
    aten.masked_fill_.Scalar: aten.masked_fill.Scalar,
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.sub_.Tensor: aten.sub.Tensor,
}
_SCALAR_OPERATORS = {
    getattr(packet, overload): packet.Tensor
    for packet in (aten.add, aten.sub, aten.mul, aten.div)
    for overload in ("Tensor", "Scalar")
}
_METHODS = {aten.view.default: "view", aten._unsafe_view.default: "view", aten.expand.default: "expand"}
_OUT_VARIANTS = {torch.mm, torch.sum, torch.add, torch.mul, torch.sub, torch.addmm, torch.neg}


class Lowering:
    """Rewrites a traced graph into a quick one that computes the same bits."""

    def __init__(
        self,
        graph: fx.Graph,
        fixed: dict[fx.Node, Tensor],
        constant: Callable[[Tensor], fx.Node],
        results: Sequence[fx.Node],
    ) -> None:
        self.graph = graph
        self.graph.output(tuple(results))
        self.fixed = fixed  # tensors that never move: parameters, buffers, literals
        self.constant = constant  # a new one of them
        self.literals: set[fx.Node] = set()  # those of them whose values never change either
        self.overwritten: set[fx.Node] = set()  # their recorded tensors hold what an in-place operator left there

    def lower(self, out: Sequence[Tensor]) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """The callable `forward(*args, *constants)` and its constants."""
        self._functionalize()
        if not any(_is_mutable(n) for n in self.graph.nodes):
            self._simplify()
            self._hoist_scalars()
            self._copy_literals()
        self._bind()
        self._write_to(out)
        for node in [n for n in self.fixed if not n.users]:
            self.graph.erase_node(node)
            del self.fixed[node]
        for node in self.graph.nodes:
            node.meta.clear()  # the recorded tensors were only needed for their shapes
        ordered = [self.fixed[n].detach() for n in self.graph.nodes if n in self.fixed]
        return fx.GraphModule(torch.nn.Module(), self.graph).forward, tuple(ordered)

    def _add(self, value: Tensor, literal: bool = False) -> fx.Node:
        node = self.constant(value)
        if literal:
            self.literals.add(node)
        return node

    def _replace(self, node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)

    def _functionalize(self) -> None:
        """Turn in-place operators on fresh values (autograd's own, mostly) into their pure forms."""
        for node in list(self.graph.nodes):
            pure = _PURE.get(node.target)
            if pure is None:
                continue
            target = node.args[0]
            fresh = target.op == "call_function" and not _is_view(target) and not _is_mutable(target)
            if fresh and not any(_is_view(user) for user in target.users) and _keeps_dtype(node):
                node.target = pure  # what came after the in-place call already refers to this node
                self.overwritten.add(target)

    def _simplify(self) -> None:
        """Drop what computes nothing new: views of what never moves, double transposes, repeats, literals."""
        seen: dict[Any, fx.Node] = {}
        for node in list(self.graph.nodes):
            if node.target in _NO_OPS:
                self._replace(node, node.args[0])
                continue
            if node.op != "call_function" or _is_random(node):
                continue
            if self._fold(node) or self._rewrite(node):
                continue
            key = (node.target, _freeze(node.args), _freeze(tuple(sorted(node.kwargs.items()))))
            if key in seen:
                self._replace(node, seen[key])
            else:
                seen[key] = node
        self.graph.eliminate_dead_code()

    def _fold(self, node: Any) -> bool:
        """Evaluate now what depends on literals only, and views of tensors that never move."""
        inputs = node.all_input_nodes
        if node in self.overwritten:
            return False
        literal = node.target in _CONSTRUCTORS or (bool(inputs) and all(n in self.literals for n in inputs))
        view = _is_view(node) and inputs[0] in self.fixed
        if not (literal or view) or not isinstance(node.meta.get("val"), Tensor):
            return False
        value = node.meta["val"].detach()
        self._replace(node, self._add(value.contiguous() if literal else value, literal))
        return True

    def _rewrite(self, node: Any) -> bool:
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node):
            return False
        if node.target is aten.t.default and first.target is aten.t.default:
            (original, *_) = first.all_input_nodes
            self._replace(node, original)
            return True
        if node.target is aten.pow.Tensor_Scalar and node.args[1] == 1:
            self._replace(node, first)
            return True
        if node.target is aten.pow.Tensor_Scalar and node.args[1] == 2:
            node.target, node.args = aten.mul.Tensor, (first, first)
        elif node.target is aten.view.default and _is_kept_sum(node):
            # bias gradients come as view(sum(x, [0], keepdim=True), [n])
            node.target, node.args = aten.sum.dim_IntList, (first.args[0], [0])
        return False

    def _hoist_scalars(self) -> None:
        """A 0-D tensor as the second operand is three times cheaper than a Python number that becomes one each call."""
        for node in list(self.graph.nodes):
            if node.target not in _SCALAR_OPERATORS or len(node.args) != 2 or node.kwargs:
                continue
            tensor, number = node.args
            if not isinstance(tensor, fx.Node) or isinstance(number, bool) or not isinstance(number, int | float):
                continue
            val = tensor.meta.get("val")
            if isinstance(val, Tensor) and val.dtype in (torch.float32, torch.float64):
                constant = self._add(torch.tensor(number, dtype=val.dtype, device=val.device), literal=True)
                node.target, node.args = _SCALAR_OPERATORS[node.target], (tensor, constant)

    def _copy_literals(self) -> None:
        """A result that depends on nothing is made anew at each call: the caller may write into it."""
        (output,) = (n for n in self.graph.nodes if n.op == "output")
        for node in [n for n in output.all_input_nodes if n in self.literals]:
            with self.graph.inserting_before(output):
                output.replace_input_with(node, self.graph.call_function(aten.clone.default, (node,)))

    def _bind(self) -> None:
        for node in self.graph.nodes:
            if node.op != "call_function":
                continue
            if node.target in _METHODS:
                node.op, node.target = "call_method", _METHODS[node.target]
            elif node.target in _BINDINGS:
                node.target = _BINDINGS[node.target]

    def _write_to(self, out: Sequence[Tensor]) -> None:
        """Let the nodes behind `out` write there instead of allocating; the other results stay results."""
        (output,) = (n for n in self.graph.nodes if n.op == "output")
        results = list(output.args[0])
        for result, target in zip(results, out):
            buffer = self._add(target)
            direct = (
                isinstance(result, fx.Node)
                and result.target in _OUT_VARIANTS
                and (result.target is not torch.sum or len(result.args) > 1)  # a sum of everything takes no `out`
                and len(result.users) == 1
                and results.count(result) == 1
                and result.meta["val"].shape == target.shape
                and result.meta["val"].dtype == target.dtype
            )
            if direct:
                result.kwargs = {**result.kwargs, "out": buffer}
            else:
                with self.graph.inserting_before(output):
                    self.graph.call_method("copy_", (buffer, result))
        output.args = (tuple(results[len(out) :]),)


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _keeps_dtype(node: Any) -> bool:
    """Whether the pure form gives the dtype of the first operand, as in-place forms do."""
    first, *others = [n.meta["val"] for n in node.all_input_nodes]
    return all(x.dtype in (first.dtype, torch.bool) for x in others)


def _is_view(node: Any) -> bool:
    """Whether the value shares memory with what it was made from (the pieces of a split, too)."""
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    aliases = [a.alias_info for a in node.target._schema.arguments if a.alias_info is not None]
    return any(not alias.is_write for alias in aliases)


def _is_random(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def _is_kept_sum(node: Any) -> bool:
    total, shape = node.args[0], node.args[1]
    if not isinstance(total, fx.Node) or total.target is not aten.sum.dim_IntList or len(total.users) != 1:
        return False
    dims: Any = total.args[1]
    keepdim = len(total.args) > 2 and bool(total.args[2])
    val = total.meta["val"]
    return keepdim and list(dims) == [0] and val.ndim == 2 and list(shape) == [val.shape[1]]


def _freeze(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_freeze(v) for v in value)
    return (type(value), value)  # 1, 1.0 and True are equal keys but different arguments
